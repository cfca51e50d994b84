"""Which events may start a run, which wait and which are dropped: decided from a slot's row alone. Pure.

A mode's numbers and the slot's counts are all that is looked at, so the decision is the same on every node. `live`
counts started, unended runs, paused ones among them; a paused run keeps its place only where the mode says so. A run
whose clean-up is under way is `closing`: its place counts as free, but its successor starts only when it is clean.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.bus.event import Event
    from piecework.store.records import Slot

KeyFunction: TypeAlias = "Callable[[Event], str | None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """Up to `concurrency` runs at once, `capacity` more waiting; what comes on top is dropped.

    Attributes:
        concurrency: Runs at once, at least 1.
        capacity: Runs that may wait; 0 means none.
        key: Makes the limits hold for each key apart; None means one key for the workflow.
        hold_while_paused: Whether a paused run keeps its place.

    Raises:
        ValidationError: A number is out of range.
    """

    name: ClassVar[str] = "transient"
    full: ClassVar[str] = "capacity"

    concurrency: int = 10
    capacity: int = 1000
    key: KeyFunction | None = None
    hold_while_paused: bool = False

    def __post_init__(self) -> None:
        _check("concurrency", self.concurrency, 1)
        _check("capacity", self.capacity, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serialized:
    """One run at a time, in the order of acceptance; `capacity` more wait, what comes on top is dropped.

    Attributes:
        capacity: Runs that may wait; 0 means none.
        key: Makes the order hold for each key apart; None means one key for the workflow.
        hold_while_paused: Whether a paused run keeps its place.

    Raises:
        ValidationError: A number is out of range.
    """

    name: ClassVar[str] = "serialized"
    full: ClassVar[str] = "queue_full"
    concurrency: ClassVar[int] = 1

    capacity: int = 1000
    key: KeyFunction | None = None
    hold_while_paused: bool = True

    def __post_init__(self) -> None:
        _check("capacity", self.capacity, 0)


Mode: TypeAlias = Transient | Serialized
MODES: dict[str, type[Transient | Serialized]] = {mode.name: mode for mode in (Transient, Serialized)}


class Admission(StrEnum):
    """What becomes of an event at a trigger."""

    START = "started"
    QUEUE = "queued"
    DROP = "dropped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its reason, where there is one to tell."""

    admission: Admission
    reason: str | None = None


def admit(slot: Slot) -> Verdict:
    """Decides about one more event at a slot."""
    if slot.queued == 0 and _busy(slot) + slot.closing < slot.concurrency:
        return Verdict(Admission.START)
    if slot.closing and _busy(slot) + slot.queued < slot.concurrency:
        return Verdict(Admission.QUEUE, "closing")
    if slot.queued < slot.capacity:
        return Verdict(Admission.QUEUE)
    return Verdict(Admission.DROP, MODES[slot.mode].full)


def startable(slot: Slot) -> int:
    """How many of the queued runs may start now."""
    return max(0, min(slot.queued, slot.concurrency - _busy(slot) - slot.closing))


def _busy(slot: Slot) -> int:
    return slot.live if slot.hold_while_paused else slot.live - slot.paused


def _check(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValidationError(f"{name} has to be a whole number of at least {least}, not {value!r}", name=name)
