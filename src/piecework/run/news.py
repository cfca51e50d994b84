"""Who wants to know what becomes of a run: futures, resolved after a commit here or when others tell of one.

An announcement is a reason to look, never the truth itself.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from piecework.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_LOOK_AGAIN_SECONDS = 1.0


class News:
    """Announces the statuses of runs once they are durable.

    Args:
        shared: Whether other processes commit too.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._waiting: dict[str, set[asyncio.Future[str]]] = defaultdict(set)
        self._listeners: set[Callable[[str, str], None]] = set()
        self._closed = False

    def expect(self, run_id: str) -> asyncio.Future[str]:
        """A future of the next status that is announced for a run; cancel it when it is not needed any more."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self._closed:
            _end(future)
            return future
        self._waiting[run_id].add(future)
        future.add_done_callback(lambda done: self._forget(run_id, done))
        return future

    def listen(self, fn: Callable[[str, str], None]) -> Callable[[], None]:
        """Calls `fn(run_id, status)` for every announcement; answers how to stop that."""
        self._listeners.add(fn)
        return lambda: self._listeners.discard(fn)

    def announce(self, run_id: str, status: str) -> None:
        """Tells everybody who waits for this run, and every listener."""
        for future in list(self._waiting.get(run_id, ())):
            if not future.done():
                future.set_result(status)
        for listener in list(self._listeners):
            listener(run_id, status)

    def look(self, run_ids: Iterable[str] | None) -> None:
        """Has those look who wait for some runs, or for any (None): another process has told of something."""
        for run_id in list(self._waiting) if run_ids is None else run_ids:
            for future in list(self._waiting.get(run_id, ())):
                if not future.done():
                    future.set_result("")

    async def after(self, future: asyncio.Future[str]) -> None:
        """Waits for an announcement; where others commit too one may get lost, so it is waited for only for a while.

        Args:
            future: Of `expect`, nobody else's: it ends with this wait.

        Raises:
            StoppedError: The node is stopping.
        """
        if not self._shared:
            await future
            return
        late = asyncio.get_running_loop().call_later(_LOOK_AGAIN_SECONDS, _give_up, future)
        try:
            await future
        finally:
            late.cancel()

    def close(self) -> None:
        """Ends every wait with STOPPED."""
        self._closed = True
        for futures in list(self._waiting.values()):
            for future in list(futures):
                if not future.done():
                    _end(future)

    def _forget(self, run_id: str, future: asyncio.Future[str]) -> None:
        waiting = self._waiting.get(run_id)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[run_id]


def _give_up(future: asyncio.Future[str]) -> None:
    if not future.done():
        future.set_result("")


def _end(future: asyncio.Future[str]) -> None:
    future.set_exception(StoppedError("the node is stopping: the run goes on when a node of this store starts again"))
    future.exception()  # marks it as seen: whoever waits gets it, and nobody is warned who does not wait any more
