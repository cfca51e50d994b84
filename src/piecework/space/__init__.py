"""Pieces: every tenant's background work in a process of its own.

Promises: an update is done when all that it started is; it is stopped for real at its deadline; a crash is charged to
the run that caused it. Read `piece` (what users write), `worker` (carries it out), `controller` (the node's side of one
worker). May import `run` and below, not `workflow` or `services`.
"""
