"""Time that moves only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

from piecework.clock import SECOND, micros
from piecework.errors import ValidationError

_TURNS = 16
"""How many turns of the loop a woken sleeper gets before time goes on: enough for a task behind a few futures."""


class VirtualClock:
    """A `Clock` for tests: nobody who sleeps on it wakes before `advance`.

    Args:
        now: The wall clock at the start, in microseconds since the epoch.
    """

    def __init__(self, now: int = 1_767_225_600 * SECOND) -> None:
        self._start = now
        self._elapsed = 0
        self._order = count()
        self._asleep: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    @property
    def sleeping(self) -> int:
        """How many sleepers there are."""
        return sum(not future.done() for _, _, future in self._asleep)

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._elapsed / SECOND

    def set(self, now: int) -> None:
        """Steps the wall clock, as an operator or NTP does; sleepers and `monotonic` do not notice."""
        self._start = now - self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Waits until the clock has been advanced that far; nothing and less than nothing is one turn of the loop."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._asleep, (self._elapsed + micros(seconds), next(self._order), future))
        self._arrived.set()
        await future

    async def until_asleep(self, sleepers: int = 1) -> None:
        """Waits until that many sleep here, so that a test need not guess when its subject is idle."""
        while self.sleeping < sleepers:
            self._arrived.clear()
            await self._arrived.wait()

    async def advance(self, seconds: float) -> None:
        """Moves time on, waking sleepers in the order of their times, each at its own moment.

        A sleeper that goes to sleep again within the span is woken again.

        Args:
            seconds: How far; never backwards.

        Raises:
            ValidationError: The span is negative.
        """
        if seconds < 0:
            raise ValidationError(f"a clock cannot be advanced by {seconds} seconds: use set() to step it back")
        end = self._elapsed + micros(seconds)
        await self._settle()
        while self._asleep and self._asleep[0][0] <= end:
            moment, _, future = heapq.heappop(self._asleep)
            if future.done():
                continue
            self._elapsed = max(self._elapsed, moment)
            future.set_result(None)
            await self._settle()
        self._elapsed = end

    async def _settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
