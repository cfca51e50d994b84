"""Workspaces: a fresh, isolated place for each call, with services of its own, cleaned up whatever happens.

Promises: nothing of one workspace is seen in another; what was opened is closed before the caller goes on; the error
of the body wins and none is lost; children that nobody awaits are supervised.
Read `workspace`, then `opening` (options, opening and closing), `admission` (how many), `context`, `inject`,
`supervise` and `threads`; `processes` and `remote` are the two sides of a call in a process of its own. May import
`process` and below.
"""
