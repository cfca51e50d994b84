"""A spare worker: forked before anybody needs it, so that the next space has its worker at once.

There is one only while a worker is at work: a node whose spaces are all idle has none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.process.child import Child


class Spare:
    """Keeps a worker ready that belongs to nobody yet.

    Args:
        fork: Makes one.
    """

    def __init__(self, fork: Callable[[], Awaitable[Child]]) -> None:
        self._fork = fork
        self._next: asyncio.Future[Child] | None = None
        self._given: set[Child] = set()
        self._leaving: set[asyncio.Future[Child]] = set()

    @property
    def ready(self) -> Child | None:
        """The spare; None where there is none, or not yet."""
        child = None if self._next is None or not self._next.done() else _of(self._next)
        return child if child is not None and child.alive else None

    def take(self) -> Child | None:
        """The spare, which is somebody's from now on; None where there is none, or not yet."""
        made = self._next
        if made is None or not made.done():
            return None
        self._next = None
        child = _of(made)
        if child is not None and not child.alive:
            child.channel_socket.close()
            child = None
        return child

    def given(self, child: Child) -> None:
        """Says that somebody has this worker: from now on the next one is made ready, until the last of them ends."""
        self._given.add(child)
        child.when_dead(lambda _: self._ended(child))
        if self._next is None:
            self._next = asyncio.ensure_future(self._fork())

    def drop(self) -> None:
        """Ends the spare, also one that is still being made."""
        made, self._next = self._next, None
        if made is not None:
            self._leaving.add(made)
            made.add_done_callback(self._end)

    async def settled(self) -> None:
        """Waits until none is being made any more."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _end(self, made: asyncio.Future[Child]) -> None:
        self._leaving.discard(made)
        child = _of(made)
        if child is not None:
            child.when_dead(lambda _: child.channel_socket.close())
            child.kill()

    def _ended(self, child: Child) -> None:
        self._given.discard(child)
        if not self._given:
            self.drop()


def _of(made: asyncio.Future[Child]) -> Child | None:
    """What was made; None where that failed, which whoever forks the next one is told."""
    if made.cancelled() or made.exception() is not None:
        return None
    return made.result()
