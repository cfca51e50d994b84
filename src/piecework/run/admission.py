"""Which events may start a run, which wait, and which are turned away: decided from a slot's row alone. Pure.

A mode's numbers and the slot's counts are all that is looked at, so the decision is the same on every node. A run that
was admitted either waits in the slot's queue or is `live`, from its start until it ends, pauses included. A live run
takes a place, except while it is paused under a mode that lets paused runs give theirs up. A run that has ended is
`closing` until its clean-up is done: its place counts as free, so nothing is turned away or aborted because of it, but
a successor starts only when it is clean.

Modes of one run at a time (`on_busy` is not empty) also keep two ids: the active run, which has the place, and the
pending one, which gets it next. Only the newest event waits there; the one before it is superseded.

What holds between two decisions, when whoever frees a place also starts who may have it (`startable`, `promoted`):

* no count is negative, and `paused` is at most `live`;
* `startable` is 0: nobody waits while there is a place for them;
* places taken and places being cleaned are at most `concurrency`. It is never a start that exceeds it, but a paused run
  that gave its place up does when it is woken, or is cleaned, beside its successor; and a lowered limit kills nobody.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from msgspec.structs import replace

from piecework.errors import StoreError, ValidationError
from piecework.store.records import Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.bus.event import Event

KeyFunction: TypeAlias = "Callable[[Event], str | int | None]"
Mapper: TypeAlias = "Callable[[Event], dict[str, Any]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """Up to `concurrency` runs at once, `capacity` more waiting; what comes on top is dropped.

    Attributes:
        concurrency: Runs at once, at least 1.
        capacity: Runs that may wait; 0 means none.
        key: Makes the limits hold for each key apart; None means one key for the workflow.
        hold_while_paused: Whether a paused run keeps its place.

    Raises:
        ValidationError: A number is out of range, or `key` is not a plain function.
    """

    name: ClassVar[str] = "transient"
    on_busy: ClassVar[str] = ""

    concurrency: int = 10
    capacity: int = 1000
    key: KeyFunction | None = None
    hold_while_paused: bool = False

    def __post_init__(self) -> None:
        _check_number("concurrency", self.concurrency, 1)
        _check_number("capacity", self.capacity, 0)
        _check_rest(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serialized:
    """One run at a time, in the order of acceptance; `capacity` more wait, what comes on top is dropped.

    Attributes:
        capacity: Runs that may wait; 0 means none.
        key: Makes the order hold for each key apart; None means one key for the workflow.
        hold_while_paused: Whether a paused run keeps its place.

    Raises:
        ValidationError: A number is out of range, or `key` is not a plain function.
    """

    name: ClassVar[str] = "serialized"
    on_busy: ClassVar[str] = ""
    concurrency: ClassVar[int] = 1

    capacity: int = 1000
    key: KeyFunction | None = None
    hold_while_paused: bool = True

    def __post_init__(self) -> None:
        _check_number("capacity", self.capacity, 0)
        _check_rest(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonLoop:
    """One long-lived run; an event that finds it busy is dropped, told to it, or ends it.

    Attributes:
        on_busy: `drop` forgets the event; `signal` merges it into the active run's state; `replace` aborts the active
            run and starts a new one when that is clean. Of several that wait to replace, the newest does.
        mapper: Makes the patch of a signal from the event; None means its payload. Only with `signal`.
        key: Makes it one run for each key; None means one for the workflow.
        hold_while_paused: Whether a paused run keeps its place.

    Raises:
        ValidationError: `on_busy` is none of these, a mapper is of no use to it, or a function is not a plain one.
    """

    name: ClassVar[str] = "singleton_loop"
    choices: ClassVar[tuple[str, ...]] = ("drop", "signal", "replace")
    concurrency: ClassVar[int] = 1

    on_busy: Literal["drop", "signal", "replace"] = "drop"
    mapper: Mapper | None = None
    key: KeyFunction | None = None
    hold_while_paused: bool = True

    def __post_init__(self) -> None:
        _check_choice(self)
        _check_function("mapper", self.mapper)
        if self.mapper is not None and self.on_busy != "signal":
            raise ValidationError(
                f"a mapper makes the patch of a signal, and SingletonLoop(on_busy={self.on_busy!r}) sends none: "
                "leave it out, or take on_busy='signal'",
                name="mapper",
            )
        _check_rest(self)

    @property
    def capacity(self) -> int:
        """Runs that may wait for a busy one: 1 with `replace`, else 0."""
        return int(self.on_busy == "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusive:
    """At most one run; an event that finds it busy is rejected, or waits until a newer one takes its turn away.

    Attributes:
        on_busy: `reject` is an error to whoever published the event; `queue_single` keeps the newest event, which
            starts a run when the active one is clean.
        key: Makes it one run for each key; None means one for the workflow.
        hold_while_paused: Whether a paused run keeps its place.

    Raises:
        ValidationError: `on_busy` is neither, or `key` is not a plain function.
    """

    name: ClassVar[str] = "exclusive"
    choices: ClassVar[tuple[str, ...]] = ("reject", "queue_single")
    concurrency: ClassVar[int] = 1

    on_busy: Literal["reject", "queue_single"] = "reject"
    key: KeyFunction | None = None
    hold_while_paused: bool = True

    def __post_init__(self) -> None:
        _check_choice(self)
        _check_rest(self)

    @property
    def capacity(self) -> int:
        """Runs that may wait for a busy one: 1 with `queue_single`, else 0."""
        return int(self.on_busy == "queue_single")


Mode: TypeAlias = Transient | Serialized | SingletonLoop | Exclusive
MODES: Final[dict[str, type[Mode]]] = {mode.name: mode for mode in (Transient, Serialized, SingletonLoop, Exclusive)}
_FULL: Final = {Transient.name: "capacity", Serialized.name: "queue_full"}


class Admission(StrEnum):
    """What becomes of an event at a trigger."""

    START = "started"
    QUEUE = "queued"
    DROP = "dropped"
    REJECT = "rejected"
    SIGNAL = "signalled"
    REPLACE = "replaced"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its reason, where there is one to tell.

    Attributes:
        admission: START makes a run that may begin at once, QUEUE and REPLACE one that waits; the others make none.
            SIGNAL is meant for the active run. REPLACE also aborts the active run; it may be on its way out already.
        reason: Why it is as it is, where that is not plain: `closing`, `busy`, `BUSY`, `capacity` or `queue_full`.
        supersedes: The pending run has to be taken out (`unqueued`) before the new one waits in its stead.
    """

    admission: Admission
    reason: str | None = None
    supersedes: bool = False


def check_mode(mode: object) -> Mode:
    """Checks what somebody gave as a mode; None means `Transient()`.

    Raises:
        ValidationError: It is none.
    """
    if mode is None:
        return Transient()
    if isinstance(mode, Transient | Serialized | SingletonLoop | Exclusive):
        return mode
    raise ValidationError(
        f"mode has to be Transient(…), Serialized(…), SingletonLoop(…) or Exclusive(…), not {mode!r:.80}"
    )


def slot_of(mode: Mode, slot_key: str, workflow_id: str) -> Slot:
    """The empty slot of a key under a mode."""
    return Slot(
        slot_key=slot_key,
        workflow_id=workflow_id,
        mode=mode.name,
        on_busy=mode.on_busy,
        concurrency=mode.concurrency,
        capacity=mode.capacity,
        hold_while_paused=int(mode.hold_while_paused),
    )


def governed(slot: Slot, newest: Slot) -> Slot:
    """A slot under the mode of the newest registration: its numbers hold from now on, the counts go on.

    The ids stay true as far as they are known. A run that got the place under a mode that keeps none is not found out,
    so a slot may be busy without an active run until that one has ended.
    """
    changed = replace(
        slot,
        mode=newest.mode,
        on_busy=newest.on_busy,
        concurrency=newest.concurrency,
        capacity=newest.capacity,
        hold_while_paused=newest.hold_while_paused,
    )
    if changed == slot:
        return slot
    return replace(
        changed,
        active_run_id=slot.active_run_id if newest.on_busy and _busy(changed) else None,
        pending_run_id=slot.pending_run_id if newest.on_busy else None,
    )


def admit(slot: Slot) -> Verdict:
    """Decides about one more event at a slot."""
    free = max(0, slot.concurrency - _busy(slot))  # those that are being cleaned among them
    if slot.queued == 0 and slot.closing < free:
        return Verdict(Admission.START)
    if slot.on_busy:
        return _admit_single(slot, free)
    # The first of those that wait would have these places by now, were they clean: they take up none of the queue.
    if slot.queued < free:
        return Verdict(Admission.QUEUE, "closing")
    if slot.queued < free + slot.capacity:
        return Verdict(Admission.QUEUE)
    return Verdict(Admission.DROP, _FULL[slot.mode])


def _admit_single(slot: Slot, free: int) -> Verdict:
    supersedes = slot.pending_run_id is not None
    if free:
        return Verdict(Admission.QUEUE, "closing", supersedes)
    known = slot.active_run_id is not None
    match slot.on_busy:
        case "drop":
            return Verdict(Admission.DROP, "busy")
        case "reject":
            return Verdict(Admission.REJECT, "BUSY")
        case "signal" if known:
            return Verdict(Admission.SIGNAL)
        case "replace" if known:
            return Verdict(Admission.REPLACE, None, supersedes)
        case "queue_single":
            return Verdict(Admission.QUEUE, None, supersedes)
    # Somebody has the place and nobody can say who (see `governed` and `woken`): there is nobody to signal or to
    # abort, and to lose the event would be worse than to let it wait.
    return Verdict(Admission.QUEUE, "busy", supersedes)


def startable(slot: Slot) -> int:
    """How many of the queued runs may start now."""
    return max(0, min(slot.queued, slot.concurrency - _busy(slot) - slot.closing))


def started(slot: Slot, run_id: str) -> Slot:
    """A run is admitted and starts; `admitted` of the answer is its place in the order of admission."""
    return _checked(
        replace(
            slot,
            live=slot.live + 1,
            admitted=slot.admitted + 1,
            active_run_id=run_id if slot.on_busy else None,
        )
    )


def queued(slot: Slot, run_id: str) -> Slot:
    """A run is admitted and waits; `admitted` of the answer is its place in the order of admission.

    One that it supersedes has been taken out (`unqueued`) before.
    """
    return _checked(
        replace(
            slot,
            queued=slot.queued + 1,
            admitted=slot.admitted + 1,
            pending_run_id=run_id if slot.on_busy else None,
        )
    )


def unqueued(slot: Slot, run_id: str) -> Slot:
    """A waiting run leaves without having started: it was superseded, aborted or dropped."""
    return _checked(replace(slot, queued=slot.queued - 1, pending_run_id=_without(run_id, slot.pending_run_id)))


def promoted(slot: Slot, run_id: str) -> Slot:
    """A waiting run starts."""
    return _checked(
        replace(
            slot,
            queued=slot.queued - 1,
            live=slot.live + 1,
            active_run_id=run_id if slot.on_busy else None,
            pending_run_id=_without(run_id, slot.pending_run_id),
        )
    )


def paused(slot: Slot, run_id: str) -> Slot:
    """A live run pauses, or is paused again when its resume failed; it gives up its place where the mode says so."""
    active = slot.active_run_id if slot.hold_while_paused else _without(run_id, slot.active_run_id)
    return _checked(replace(slot, paused=slot.paused + 1, active_run_id=active))


def woken(slot: Slot, run_id: str) -> Slot:
    """A paused run goes on at once. Where its place is another's by now it is live beside that one, but not active."""
    active = run_id if slot.on_busy and slot.active_run_id is None else slot.active_run_id
    return _checked(replace(slot, paused=slot.paused - 1, active_run_id=active))


def closing(slot: Slot, run_id: str, *, was_paused: bool = False) -> Slot:
    """A live run has ended, and its clean-up is still to be done."""
    return _checked(
        replace(
            slot,
            live=slot.live - 1,
            paused=slot.paused - was_paused,
            closing=slot.closing + 1,
            active_run_id=_without(run_id, slot.active_run_id),
        )
    )


def cleaned(slot: Slot) -> Slot:
    """A run that had ended is clean."""
    return _checked(replace(slot, closing=slot.closing - 1))


def gone(slot: Slot, run_id: str, *, was_paused: bool = False) -> Slot:
    """A live run has ended, and there is nothing to clean."""
    return cleaned(closing(slot, run_id, was_paused=was_paused))


def _without(run_id: str, current: str | None) -> str | None:
    return None if current == run_id else current


def _busy(slot: Slot) -> int:
    return slot.live if slot.hold_while_paused else slot.live - slot.paused


def _checked(slot: Slot) -> Slot:
    """Refuses counts that cannot be, before they are written: every later decision would be wrong."""
    counts = {"live": slot.live, "queued": slot.queued, "closing": slot.closing, "paused": slot.paused}
    if min(counts.values()) < 0 or slot.paused > slot.live:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise StoreError(
            f"slot {slot.slot_key} of workflow {slot.workflow_id} would have the counts {told}, which cannot be: "
            "nothing was written; `piecework store check` looks for what is wrong",
            slot_key=slot.slot_key,
            **counts,
        )
    return slot


def _check_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValidationError(f"{name} has to be a whole number of at least {least}, not {value!r}", name=name)


def _check_choice(mode: SingletonLoop | Exclusive) -> None:
    value: object = mode.on_busy
    if value in mode.choices:
        return
    import difflib

    near = difflib.get_close_matches(value, mode.choices, n=1) if isinstance(value, str) else []
    advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(map(repr, mode.choices))}"
    raise ValidationError(f"{type(mode).__name__} has no on_busy={value!r}: {advice}", name="on_busy")


def _check_function(name: str, function: object) -> None:
    if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
        raise ValidationError(f"{name} has to be a plain function (not async), not {function!r:.80}", name=name)


def _check_rest(mode: Mode) -> None:
    _check_function("key", mode.key)
    held: object = mode.hold_while_paused
    if not isinstance(held, bool):
        raise ValidationError(f"hold_while_paused has to be True or False, not {held!r}", name="hold_while_paused")
