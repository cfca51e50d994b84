"""Time, replaceable: due times on the wall clock, durations on the monotonic one.

The store keeps moments as whole microseconds since the epoch, UTC; people see aware datetimes.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000
"""Microseconds in a second, the unit of every moment in the store."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What tells the time; tests hand in one of their own."""

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits that long on the monotonic clock."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits that long on the monotonic clock."""
        await asyncio.sleep(seconds)


class StoreClock:
    """A clock that tells the store's wall time, so that machines which disagree share one; the rest is the machine's.

    Args:
        clock: The machine's.
        offset: What has to be added to its wall clock now, in microseconds.
    """

    def __init__(self, clock: Clock, offset: Callable[[], int]) -> None:
        self._clock = clock
        self._offset = offset

    def now(self) -> int:
        """The store's wall clock: microseconds since the epoch."""
        return self._clock.now() + self._offset()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits that long on the monotonic clock."""
        await self._clock.sleep(seconds)


LONGEST_SECONDS = 100 * 365 * 86400
"""Durations beyond a hundred years are refused: the calendar has an end, and a typing error is likelier."""


def check_duration(what: str, seconds: Any, **data: Any) -> float:
    """Checks a duration that somebody gave.

    Args:
        what: Named in the error.
        seconds: Any value.
        data: What the error is about, besides.

    Raises:
        ValidationError: It is not a positive number of at most a hundred years.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_SECONDS:
        raise ValidationError(
            f"{what} has to be a positive number of seconds, a hundred years at most, not {seconds!r}", **data
        )
    return seconds


def boottime() -> float:
    """Seconds that go on while the machine sleeps, the same in every process; no clock of a test's replaces them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def micros(seconds: float) -> int:
    """Tells a duration in seconds as whole microseconds."""
    return round(seconds * SECOND)


def as_datetime(moment: int | None) -> datetime | None:
    """Tells a moment of the store as an aware UTC datetime; None stays None."""
    return None if moment is None else _EPOCH + timedelta(microseconds=moment)
