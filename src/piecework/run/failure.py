"""What follows a failure: how long to wait, and when to stop trying. Pure."""

from __future__ import annotations

FIRST_BACKOFF = 60_000_000
LAST_BACKOFF = 3_600_000_000


def backoff(every: int, failures: int, spread: float) -> int:
    """How long a piece waits after failures in a row: doubling from its interval, half of it by chance.

    Args:
        every: The piece's interval in microseconds; waits are never shorter than half of it.
        failures: How many failures in a row there have been, this one included.
        spread: A random number from 0 to 1.

    Returns:
        Microseconds; at most an hour, or the interval where that is longer.
    """
    first = min(every, FIRST_BACKOFF)
    longest = max(LAST_BACKOFF, every)
    full = min(longest, max(every, first * (1 << min(failures, 30))))
    return round(full / 2 + full / 2 * spread)


def step_delay(attempt: int, spread: float) -> float:
    """Seconds before a failed step is tried again: doubling from a tenth of a second to ten, half of it by chance.

    Args:
        attempt: Which attempt failed, from 1.
        spread: A random number from 0 to 1.
    """
    full = min(10.0, 0.1 * (1 << min(attempt - 1, 20)))
    return full / 2 + full / 2 * spread


def job_delay(failures: int, spread: float) -> float:
    """Seconds before a failed job is tried again: doubling from half a second to ten minutes, half of it by chance.

    Args:
        failures: How many failures there have been, this one included.
        spread: A random number from 0 to 1.
    """
    full = min(600.0, 0.5 * (1 << min(failures - 1, 20)))
    return full / 2 + full / 2 * spread
