"""When a piece is due next. Pure: chance comes in as a number between 0 and 1."""

from __future__ import annotations

JITTER = 0.1
"""By which part of its interval a piece's next run may be later, so that a thousand pieces do not run as one."""


def next_run(now: int, every: int, spread: float, *, jitter: float = JITTER) -> int:
    """The next due time after an update that went well: a fixed delay from its end.

    Args:
        now: When the update ended.
        every: The interval, in microseconds.
        spread: A random number from 0 to 1.
        jitter: The largest delay on top, as a part of the interval.
    """
    return now + every + round(every * jitter * spread)
