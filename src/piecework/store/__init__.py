"""Everything durable: one contract, the verbs written once, one driver an engine.

Read in this order: `records` (the rows), `contract` (requests, items and outcomes; what an engine must do), `draft`
(what a decision may see and change), `verbs` (what happens inside one transaction), `sqlite` (the driver).
A verb is a generator of requests: it knows no engine and does no I/O. What should happen is decided by a pure fold
that is handed in from above. May import `telemetry` and below; SQL text lives in this folder only.
"""
