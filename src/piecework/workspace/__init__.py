"""Workspaces: a fresh, isolated place for each call, with services of its own, cleaned up whatever happens.

Promises: nothing of one workspace is seen in another; what was opened is closed before the caller goes on; the error
of the body wins and none is lost; children that nobody awaits are supervised.
Read `workspace`, then `context` (opening and closing), `inject`, `supervise` and `threads`. May import `container`
and below.
"""
