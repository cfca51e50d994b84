"""When somebody is told, and what the mail says that tells it. Pure: from what is known to the moment and the words.

Notifications are collected: for ten minutes, or until midnight for who wants to hear once a day. What has the same
words is told once, with how often it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

COLLECT_SECONDS: Final = 600
"""How long notifications are collected for who wants them soon."""

BODIES_LIMIT: Final = 100
"""How many different notifications one mail tells; of the rest it says how many they are."""

TEXT_LIMIT: Final = 1_048_576
"""How long the text of one mail may get, in characters."""

BREAK: Final = "\n\n---\n\n"
"""What stands between two notifications."""

FREQUENCIES: Final = ("asap", "daily", "none")
"""What `notify_frequency` of a row may be."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a mail tells, once.

    Attributes:
        subject: Its own, if it has one.
        body: The words.
        times: How often it came.
    """

    subject: str | None
    body: str
    times: int


def due_at(frequency: str, now: datetime, *, force: bool = False, zone: tzinfo | None = None) -> datetime | None:
    """Decides when somebody is told.

    Args:
        frequency: One of `FREQUENCIES`.
        now: Aware.
        force: Tells it at once, unless they want to hear nothing.
        zone: Whose midnight counts; None means this machine's.

    Returns:
        An aware moment in UTC, in full seconds unless it is now; None means never.

    Raises:
        ValidationError: There is no such frequency.
    """
    check_frequency(frequency)
    if frequency == "none":
        return None
    if force:
        return now
    if frequency == "asap":
        return now.replace(microsecond=0) + timedelta(seconds=COLLECT_SECONDS)
    tomorrow = now.astimezone(zone).date() + timedelta(days=1)
    # On a day whose midnight the clocks leave out this is the first moment that there is.
    return datetime.combine(tomorrow, time(0), zone).astimezone(UTC)


def check_frequency(frequency: object) -> None:
    """Refuses a frequency that there is not.

    Raises:
        ValidationError: With those that there are.
    """
    if frequency not in FREQUENCIES:
        raise ValidationError(
            f"notify_frequency is {frequency!r:.80}: set it to {', '.join(FREQUENCIES)}", path="notify_frequency"
        )


def subject_of(told: Sequence[Told], count: int, title: str) -> str:
    """Gives the mail its subject: that of the only notification, if it has one, else how many there are.

    Args:
        told: What is told, at least one.
        count: How many notifications there are in all.
        title: Who tells it.
    """
    if len(told) == 1 and told[0].times == count and told[0].subject is not None:
        return told[0].subject
    return f"{title}: {_counted(count, 'notification')}"


def text_of(told: Sequence[Told], count: int) -> str:
    """Writes the mail: each notification with how often it came, and how many did not find room.

    Args:
        told: What is told, at least one, the oldest first.
        count: How many notifications there are in all.
    """
    parts: list[str] = []
    room, left = TEXT_LIMIT, count
    for each in told[:BODIES_LIMIT]:
        part = _part(each, alone=len(told) == 1)
        room -= len(part)
        if parts and room < 0:
            break
        parts.append(part)
        left -= each.times
    if left:
        parts.append(f"and {_counted(left, 'more notification')}")
    return BREAK.join(parts)


def _part(told: Told, *, alone: bool) -> str:
    heading = "" if alone or told.subject is None else f"{told.subject}\n\n"
    return f"{heading}{told.body}" + (f"\n({told.times} times)" if told.times > 1 else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
