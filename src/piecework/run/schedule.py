"""When a piece is due next, and when a scheduled job is. Pure: chance comes in as a number between 0 and 1.

Moments are microseconds since the epoch. What a schedule's times are is asked of `following`, which answers the first
one after a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    Following = Callable[[int], int | None]

TRIGGER = "schedule"
"""The trigger of runs that a schedule asked for; their key is the time, their version the schedule."""

JITTER = 0.1
"""By which part of its interval a piece's next run may be later, so that a thousand pieces do not run as one."""

LATE = 60_000_000
"""How late a job may begin before its time counts as missed."""

Missed = Literal["once", "skip", "all"]
"""What becomes of times at which nobody was there: one run for all of them, none, or one for each."""

Overlap = Literal["skip", "queue", "allow"]
"""What becomes of a time at which the run before has not ended: none, one when it has, or one beside it."""


def next_run(now: int, every: int, spread: float, *, jitter: float = JITTER) -> int:
    """The next due time after an update that went well: a fixed delay from its end.

    Args:
        now: When the update ended.
        every: The interval, in microseconds.
        spread: A random number from 0 to 1.
        jitter: The largest delay on top, as a part of the interval.
    """
    return now + every + round(every * jitter * spread)


def is_missed(occurrence: int, now: int, missed: Missed, *, late: int = LATE) -> bool:
    """Whether a job whose time has come is left out because it comes too late.

    Args:
        occurrence: Its time.
        now: When it could begin.
        missed: The schedule's rule.
        late: How late it may be.
    """
    return missed == "skip" and now - occurrence > late


def next_occurrence(
    occurrence: int, began: int, now: int, following: Following, *, missed: Missed, overlap: Overlap
) -> int | None:
    """The time that comes after one that is being, or has been, carried out; it may have passed already.

    Args:
        occurrence: The time that was carried out.
        began: When that began: what lies between the two had nobody there, it was missed.
        now: When this is asked: what lies between `began` and now found the run before it still at work.
        following: The schedule's times.
        missed: What becomes of the former.
        overlap: What becomes of the latter.
    """
    if missed == "all":
        coming = following(occurrence)
        if coming is None or coming <= began or overlap != "skip":
            return coming
        return following(max(began, now))
    return following(max(occurrence, now if overlap == "skip" else began))


def later(moment: int, following: Following, *, jitter: float, spread: float) -> int:
    """A time with its share of chance: so many nodes' jobs of one minute do not begin as one.

    Args:
        moment: The time.
        following: The schedule's times.
        jitter: The largest delay, as a part of what lies between this time and the next.
        spread: A random number from 0 to 1.
    """
    if not jitter:
        return moment
    coming = following(moment)
    return moment if coming is None else moment + round((coming - moment) * jitter * spread)


TURN = 100_000
"""What lies between two pieces that were overdue together, where there are few."""

ALL_TURNS = 30_000_000
"""How long it takes at most until all that were overdue together are due again."""


def in_turn(now: int, count: int) -> list[int]:
    """When each of several pieces that are overdue together is due: the first at once, none much later than it was.

    Args:
        now: The moment.
        count: How many there are.
    """
    gap = min(TURN, ALL_TURNS // max(1, count))
    return [now + place * gap for place in range(count)]


def set_back(due_at: int, since: int, now: int) -> int:
    """A due time by a clock that was set back behind the moment that it was reckoned from.

    Args:
        due_at: The time as it was reckoned.
        since: The moment from which it was; in the future it cannot be by a clock that goes right.
        now: The moment by the clock as it goes now.
    """
    return due_at if since <= now else min(due_at, now + max(0, due_at - since))
