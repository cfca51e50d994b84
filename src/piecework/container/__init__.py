"""Services: what a function asks for by name or type, built once for as long as its scope lives, and always closed.

Promises: concurrent askers share one build; a failed build is forgotten; what was opened is closed, the last first,
every closer whatever the others do; a wider scope never holds on to a narrower one.
Read `scope` (how long things live, pure), `parameters` (what a function wants), `registry` (recipes), `container`
(instances), then `artifact` and `closing`. May import `errors`, `config`, `clock` and `telemetry`.
"""
