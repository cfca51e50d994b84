"""The lease: until when what a node has started may go on without another word of the node's.

A node that was stopped or cut off is one whose work others take over; what it started must have ended by then, and
nobody of its own can see to that: so each keeper knows a moment, and kills when that has come. The thread that renews
the node's own lease in the store puts it off, after each renewal that went through; a loop that stands still for a
while does not matter.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from piecework.clock import boottime

if TYPE_CHECKING:
    from piecework.process.child import Child

_PART = 0.9
"""How much of the node's lease its keepers have: they need some time to kill before it is over."""


class Lease:
    """What binds the processes that were started under it. Of nobody's until it is renewed for the first time.

    A client that is no node has one too, which never binds; one that becomes a node binds what it has already started.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._children: set[Child] = set()
        self._lock = threading.Lock()

    @property
    def until(self) -> float | None:
        """When it lapses, in seconds of CLOCK_BOOTTIME; None is never."""
        return self._until

    @property
    def lapsed(self) -> bool:
        """Whether it is over: what is started now would be killed at once."""
        return self._until is not None and boottime() >= self._until

    def renew(self, began: float, seconds: float) -> None:
        """Puts off the end, and tells every keeper; from any thread.

        Args:
            began: When the renewal in the store began, in seconds of CLOCK_BOOTTIME.
            seconds: How long it holds from there on.
        """
        self._tell(began + seconds * _PART)

    def release(self) -> None:
        """Binds nothing any more: the node has ended in order, and whoever has started something ends it."""
        self._tell(None)

    def bind(self, child: Child) -> None:
        """Has a worker hear of renewals, of those since it was asked for too, until it is dead."""
        with self._lock:
            self._children.add(child)
            child.renew(self._until)
        child.when_dead(lambda _: self._children.discard(child))

    def _tell(self, until: float | None) -> None:
        with self._lock:
            self._until = until
            for child in tuple(self._children):
                child.renew(until)
