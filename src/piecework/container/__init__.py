"""Services: what a function asks for by name or type, built once for as long as its scope lives, and always closed.

Promises: concurrent askers share one build; a failed build is forgotten; what was opened is closed, the last first,
every closer whatever the others do; a wider scope never holds on to a narrower one; what was made from something that
changed is made anew, and nothing is closed while something alive was made from it.
Read `scope` (how long things live, pure), `parameters` (what a function wants), `registry` (recipes), `plan` (where a
key leads), `place` and `container` (the face), `artifact` and `graph` (instances and what they were made from),
`building` with `quick`, `attempts`, `ends`, `eager` and `factory`, then `closing`; `state` and `reactive` (what
services follow), `watching`, `streaming`, `bundle`.
May import `errors`, `config`, `clock` and `telemetry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piecework.container.container import Container as Container

__all__ = ["Container"]


def __getattr__(name: str) -> Any:
    if name == "Container":  # late: most who import a part of this package need no container
        from piecework.container.container import Container

        return Container
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
