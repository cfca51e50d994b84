"""A process of one's own for a space: node → zygote → keeper → worker, and what keeps it honest.

Promises: no worker outlives its node; a worker is dead only when everything under it is; nothing that a run started
slips out of its account. Read `protocol` (frames), `zygote` and `keeper` (what runs over there), `launch` and `child`
(the node's handles), `accounting` (what a run started). May import `container` and below; what a worker does is named
to it as "module:function".
"""

from __future__ import annotations

_inside = False


def inside() -> bool:
    """Tells whether this process is a zygote, a keeper or a worker rather than one that a user started."""
    return _inside


def enter() -> None:
    """Marks this process, and all that it forks, as one of ours; the zygote calls it before it imports the app."""
    global _inside  # noqa: PLW0603 - a fact about the process, set once and never back
    _inside = True
