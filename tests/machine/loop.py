"""An event loop whose time moves only when a test says so, timeouts and timers included."""

from __future__ import annotations

import asyncio
import heapq
import time
from contextlib import contextmanager
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any

from piecework.clock import SECOND, micros

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

BEGINNING = 1_767_225_600 * SECOND
"""The wall clock when a loop is made."""


_PATIENCE_SECONDS = 2.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that is at one moment until its driver goes on to the next; it knows which of its tasks belong to whom.

    A task belongs to whom the task belongs that made it. The driver's own, and what a store has, belong to nobody.
    """

    def __init__(self) -> None:
        self._elapsed = 0
        self._outside_since: float | None = None
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()
        self._owners: dict[asyncio.Task[Any], object] = {}
        super().__init__()
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Seconds since the loop was made, as far as time has been moved on."""
        return (self._elapsed + self._overtime()) / SECOND

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        return BEGINNING + self._elapsed + self._overtime()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """While an engine is waited for: when it takes long, time goes on, as it may be trying again by and by."""
        self._outside_since = time.monotonic()
        try:
            yield
        finally:
            self._elapsed += self._overtime()
            self._outside_since = None

    def _overtime(self) -> int:
        if self._outside_since is None:
            return 0
        return micros(max(0.0, time.monotonic() - self._outside_since - _PATIENCE_SECONDS))

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        """As every loop does; the timer is remembered."""
        handle = super().call_at(when, callback, *args, context=context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    async def idle(self) -> None:
        """Waits until nothing can happen any more at this moment, but for what other threads and servers do."""
        while True:
            await asyncio.sleep(0)
            if not self._ready:  # type: ignore[attr-defined]  # the loop's own queue: it alone says that nothing is to come
                return

    async def advance(self, seconds: float, settle: Callable[[], Awaitable[None]]) -> None:
        """Moves time on from timer to timer, each at its own moment.

        Args:
            seconds: How far.
            settle: Awaited at each moment: until nothing moves.
        """
        end = self._elapsed + micros(seconds)
        await settle()
        while (moment := self._next_timer()) is not None and moment <= end:
            self._elapsed = max(self._elapsed, moment)
            await settle()
        self._elapsed = end
        await settle()

    def _next_timer(self) -> int | None:
        while self._timers:
            when, _, handle = self._timers[0]
            if not handle.cancelled() and ceil(when * SECOND) > self._elapsed:
                return ceil(when * SECOND)
            heapq.heappop(self._timers)
        return None

    # -- tasks -----------------------------------------------------------------------------------------------------

    def start(self, owner: object, work: Any) -> asyncio.Task[Any]:
        """Starts a task of an owner."""
        task = self.create_task(work)
        self._owners[task] = owner
        return task

    def tasks_of(self, owner: object) -> set[asyncio.Task[Any]]:
        """The tasks of an owner that have not ended."""
        self._owners = {task: whose for task, whose in self._owners.items() if not task.done()}
        return {task for task, whose in self._owners.items() if whose is owner}

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        try:
            maker = asyncio.current_task(self)
        except RuntimeError:
            maker = None
        task = asyncio.Task(coro, loop=loop, **options)
        if maker in self._owners:
            self._owners[task] = self._owners[maker]
        return task


class LoopClock:
    """A `Clock` that goes by the time of a virtual loop.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        return self._loop.now()

    def monotonic(self) -> float:
        """Seconds since the loop was made."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Waits that long by the loop's time."""
        await asyncio.sleep(seconds)
