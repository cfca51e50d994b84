"""What every kind of work shares.

`kind` says what a kind of work must offer, `intake` makes runs of events, `lifecycle`, `admission`, `schedule` and
`failure` decide (pure: no clock, no I/O, no await), `folds` applies the decisions inside the store's transactions,
`node` claims and hands out what is due. May import `workspace` and everything below.
"""
