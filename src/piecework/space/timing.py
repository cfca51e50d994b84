"""When the pieces of an integration run, as it was declared, and what a piece's own registration changes of that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import msgspec

from piecework.clock import SECOND, check_duration
from piecework.errors import ValidationError
from piecework.run.cron import Cron
from piecework.run.schedule import JITTER, Missed, later, next_occurrence
from piecework.run.schedule import Overlap as JobOverlap
from piecework.store.records import PIECES
from piecework.store.values import check_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable

Overlap = Literal["skip", "queue", "cancel"]
"""What becomes of what is asked for while an update is under way: nothing, one more after it, or one in its stead."""

EVERY_SECONDS = 60.0
"""How often pieces run where nothing is said."""

SHORTEST_SECONDS = 0.01
"""No interval may be shorter: each update is a commit, and without a pause a piece would take its node for itself."""

OFFER = PIECES
"""What an integration begins with among the offers of a node, and as the name under which events wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When pieces run.

    Attributes:
        every_seconds: From the end of one update to the start of the next; None where there is no interval.
        schedule: Cron expressions, in their own words; None where there are none.
        tz: Where the schedule's clock stands; UTC when None.
        on: Event types, or patterns of them, that make an update due.
        overlap: What becomes of what is asked for while an update is under way.
        missed: What becomes of a schedule's times at which no node was there.
        jitter: By which part of what lies between two updates the next may be later, by chance; None means a tenth of
            an interval, and nothing of a schedule.
    """

    every_seconds: float | None = EVERY_SECONDS
    schedule: tuple[str, ...] | None = None
    tz: str | None = None
    on: tuple[str, ...] = ()
    overlap: Overlap = "skip"
    missed: Missed = "once"
    jitter: float | None = None

    @property
    def at_once(self) -> bool:
        """Whether a new piece is updated at once: not where only events make it due."""
        return self.every_seconds is not None or self.schedule is not None

    @property
    def every(self) -> int | None:
        """The interval in microseconds, where there is one."""
        return None if self.every_seconds is None else round(self.every_seconds * SECOND)

    @property
    def spread(self) -> float:
        """The jitter that is in force."""
        if self.jitter is not None:
            return self.jitter
        return JITTER if self.schedule is None else 0.0

    def of_piece(self, every: int | None, schedule: str | None) -> Timing:
        """The timing of a piece with an interval, in microseconds, or a schedule of its own."""
        if every is not None:
            return replace(self, every_seconds=every / SECOND, schedule=None)
        if schedule is not None:
            return replace(self, every_seconds=None, schedule=tuple(schedule.split("\n")))
        return self

    def after(self, occurrence: int | None, began: int, now: int, spread: float) -> tuple[int, int] | None:
        """When a schedule makes the next update due, and the time that this is for; None where nothing does.

        Args:
            occurrence: The time that the update was for; None where it was for none.
            began: When it began.
            now: When it ended.
            spread: A random number from 0 to 1.
        """
        if self.schedule is None:
            return None
        following = Cron(self.schedule, self.tz).following
        overlap: JobOverlap = "skip" if self.overlap == "skip" else "queue"
        coming = next_occurrence(
            began if occurrence is None else occurrence, began, now, following, missed=self.missed, overlap=overlap
        )
        if coming is None:
            return None
        return later(coming, following, jitter=self.spread, spread=spread), coming

    def from_then_on(self, moment: int) -> int | None:
        """The first time of the schedule that is not before a moment; None where there is none."""
        return None if self.schedule is None else Cron(self.schedule, self.tz).following(moment - 1)

    def words(self) -> str:
        """The timing for people."""
        told = []
        if self.schedule is not None:
            told.append(Cron(self.schedule, self.tz).text)
        elif self.every_seconds is not None:
            told.append(f"every {self.every_seconds:g} s")
        if self.on:
            told.append(f"on {', '.join(self.on)}")
        return ", ".join(told)

    def offer(self, integration: str) -> str:
        """The integration as a node offers it."""
        told = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) != getattr(_USUAL, name)}
        return f"{OFFER}{integration}={msgspec.json.encode(told).decode()}"


_USUAL = Timing()


def offered(offer: str) -> tuple[str, Timing] | None:
    """Reads what `Timing.offer` told: the integration and its timing; None where it is no integration's."""
    if not offer.startswith(OFFER):
        return None
    integration, found, told = offer.removeprefix(OFFER).partition("={")
    if not found:
        return None
    return integration, msgspec.convert(msgspec.json.decode("{" + told), Timing)


def check_timing(
    what: str,
    *,
    every_seconds: float | None = None,
    schedule: str | Iterable[str] | None = None,
    tz: str | None = None,
    on: str | Iterable[str] = (),
    overlap: str | None = None,
    missed: str = "once",
    jitter: float | None = None,
) -> Timing:
    """Checks a declaration; the arguments are those of `App.piece`.

    Raises:
        ValidationError: Something of it is not acceptable.
    """
    if every_seconds is not None:
        _check_interval(f"{what}: every_seconds", every_seconds)
    _check_one(what, every_seconds, schedule)
    topics = _topics(what, on)
    if every_seconds is None and schedule is None and not topics:
        every_seconds = EVERY_SECONDS
    # What comes while an update looks is news to it: only polls may be left out without a loss.
    overlap = ("queue" if topics else "skip") if overlap is None else overlap
    for word, given, choices in (("missed", missed, get_args(Missed)), ("overlap", overlap, get_args(Overlap))):
        if given not in choices:
            raise ValidationError(f"{what}: {word} is one of {', '.join(choices)}, not {given!r}")
    if jitter is not None and (isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1):
        raise ValidationError(f"{what}: jitter is a part from 0 to 1 of what lies between two updates, not {jitter!r}")
    if tz is not None:
        Cron("@daily", tz)  # also without a schedule: those that pieces are registered with go by this clock
    return Timing(
        every_seconds=None if every_seconds is None else float(every_seconds),
        schedule=_expressions(schedule, tz),
        tz=tz,
        on=topics,
        overlap=cast("Overlap", overlap),
        missed=cast("Missed", missed),
        jitter=jitter,
    )


def own_timing(usual: Timing, every_seconds: float | None, schedule: str | Iterable[str] | None) -> dict[str, Any]:
    """What a registration changes of its integration's timing, as columns of its row.

    Raises:
        ValidationError: The interval or the schedule is none, or there are both.
    """
    _check_one("register", every_seconds, schedule)
    every = None if every_seconds is None else round(_check_interval("every_seconds", every_seconds) * SECOND)
    expressions = _expressions(schedule, usual.tz)
    return {"every": every, "schedule": None if expressions is None else "\n".join(expressions)}


def _check_interval(what: str, every_seconds: float) -> float:
    if check_duration(what, every_seconds) < SHORTEST_SECONDS:
        raise ValidationError(
            f"{what} has to be {SHORTEST_SECONDS:g} at least, not {every_seconds!r}: what has to come more often than "
            "that is one update that goes on, with pauses of its own"
        )
    return every_seconds


def _check_one(what: str, every_seconds: float | None, schedule: str | Iterable[str] | None) -> None:
    if every_seconds is not None and schedule is not None:
        raise ValidationError(f"{what}: a piece runs at intervals or by a schedule: give every_seconds or schedule")


def _expressions(schedule: str | Iterable[str] | None, tz: str | None) -> tuple[str, ...] | None:
    if schedule is None:
        return None
    try:
        given = (schedule,) if isinstance(schedule, str) else tuple(schedule)
    except TypeError:
        raise ValidationError(
            f"a schedule is a cron expression such as '0 8 * * 1', or a list of them, not {schedule!r:.80}"
        ) from None
    Cron(given, tz)
    return tuple(" ".join(one.split()) for one in given)


def _topics(what: str, on: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(on, str):
        raise ValidationError(f"{what}: on is a list of event types: on=[{on!r}]")
    topics = tuple(on)
    for topic in topics:
        if not isinstance(topic, str):
            raise ValidationError(f"{what}: on has event types such as 'feed.changed', not {topic!r:.80}")
        check_identifier(topic, f"{what}: an event type")
    return topics
