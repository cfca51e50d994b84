"""What the model remembers, in dicts and lists, and what its verbs have in common.

It is written from what is promised and not from how the store does it, and does one thing after the other: no batches,
no locks, no indexes. What it refuses it refuses before it changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from piecework.errors import PieceworkError
    from piecework.store.records import Slot, Wait
    from piecework.testing.model_room import Room

ENDED = ("completed", "failed", "aborted")


class Refused(Exception):  # noqa: N818 - an outcome, told to whoever compares
    """What a verb refuses.

    Args:
        error: The class of the error that the caller gets.
    """

    def __init__(self, error: type[PieceworkError]) -> None:
        super().__init__(error.__name__)
        self.error = error


@dataclass(slots=True)
class ModelEvent:
    """An accepted event; its id is None when duplicates of it are no longer known."""

    seq: int
    event_id: str | None
    type: str
    payload: dict[str, Any]
    space: str | None
    at: int
    hops: int = 0


@dataclass(slots=True)
class ModelRun:
    """A run with all that is its own.

    Attributes:
        lines: The types of its decisions, in their order.
        values: `args`, `state`, `patch`, `result`; there is a patch while a resume is under way.
        signals: Patches by their numbers.
        waits: By id and event type.
        kept: Events that came too early, by number: the wait that they met, the patch, and their type.
    """

    run_id: str
    kind: str
    workflow: str
    space: str
    created: int
    due: int | None
    trigger: str = ""
    room: str | None = None
    place: int | None = None
    version: str | None = None
    event: int | None = None
    status: str = "queued"
    stage: str | None = None
    owner: str | None = None
    epoch: int = 0
    visit: int = 0
    attempt: int = 0
    resumes: int = 0
    started: int | None = None
    paused: int | None = None
    deadline: int | None = None
    ended: int | None = None
    telling: int = 0
    cleaned: bool = False
    abort_reason: str | None = None
    told: str | None = None
    progress: str | None = None
    hops: int = 0
    lines: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    signals: dict[int, Any] = field(default_factory=dict)
    waits: dict[tuple[str, str], Wait] = field(default_factory=dict)
    kept: dict[int, tuple[str, dict[str, Any], str]] = field(default_factory=dict)

    def waiting_for(self) -> list[str] | None:
        """The event types that a paused run says it waits for."""
        return sorted({wait.event_type for wait in self.waits.values()}) if self.status == "paused" else None

    def take_met(self) -> dict[str, Any] | None:
        """What was kept and is enough to go on with, which is then kept no more: the patch; None where nothing is."""
        so_far: dict[str, dict[str, int]] = {}
        for seq in sorted(self.kept):
            wait_id, patch, type_ = self.kept[seq]
            mine = so_far.setdefault(wait_id, {})
            mine.setdefault(type_, seq)
            rows = [wait for wait in self.waits.values() if wait.wait_id == wait_id]
            if any(wait.mode == "any" for wait in rows):
                del self.kept[seq]
                return patch
            if all(wait.event_type in mine for wait in rows):
                events = {
                    name: self.kept.pop(number)[1]["__resume_event__"]["payload"] for name, number in mine.items()
                }
                return {**patch, "__events__": events}
        return None

    def forget(self, keys: set[tuple[str, str]]) -> None:
        """Waits for these event types no longer, and forgets what was kept because of that."""
        self.waits = {key: wait for key, wait in self.waits.items() if key not in keys}
        self.kept = {seq: kept for seq, kept in self.kept.items() if (kept[0], kept[2]) not in keys}

    def forget_all(self) -> None:
        """What an ended run does not need."""
        self.waits, self.kept, self.signals = {}, {}, {}
        self.values.pop("patch", None)
        self.due = self.deadline = None


@dataclass(slots=True)
class World:
    """Everything that is stored.

    Attributes:
        rooms: Slots by key.
        runs: By id.
        events: By number.
        deliveries: What became of events, with the reason: by number, workflow, trigger and run.
        routes: Of each workflow the newest version, and since when each event type is its.
        nodes: When the lease of each ends.
        occurrences: The run of each, and when it was made.
    """

    rooms: dict[str, Room] = field(default_factory=dict)
    runs: dict[str, ModelRun] = field(default_factory=dict)
    events: dict[int, ModelEvent] = field(default_factory=dict)
    deliveries: dict[tuple[int, str, str, str], tuple[str, str | None]] = field(default_factory=dict)
    routes: dict[str, tuple[str | None, dict[str, int]]] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    occurrences: dict[str, tuple[str, int]] = field(default_factory=dict)

    def begin_next(self, room: Room, now: int) -> int:
        """Starts those that wait in a slot while there is room; answers how many."""
        started = 0
        while room.can_begin():
            self.runs[room.next()].due = now
            started += 1
        return started

    def govern(self, key: str, like: Slot, now: int) -> int:
        """Gives a slot new numbers; answers how many runs start because of it."""
        self.rooms[key].govern(msgspec.structs.replace(like, slot_key=key))
        return self.begin_next(self.rooms[key], now)

    def wake(self, run: ModelRun, reason: str, patch: dict[str, Any] | None, now: int) -> None:
        """A paused run goes on with a patch; None: with the one that it has."""
        run.status, run.due = "running", now
        run.paused = run.deadline = None
        run.resumes += 1
        run.lines.append("run:resumed")
        if patch is not None:
            run.values["patch"] = {"__resume_event__": None, **patch, "__resume_reason__": reason}
        if run.room is not None:
            self.rooms[run.room].wake(run.run_id)

    def let_go(self, run: ModelRun, deadline: int | None, now: int) -> None:
        """A run pauses; where that makes room, the next of its slot starts."""
        run.status, run.owner, run.paused, run.deadline = "paused", None, now, deadline
        if run.room is not None:
            self.rooms[run.room].pause(run.run_id)
            self.begin_next(self.rooms[run.room], now)

    def tell_to_end(self, run: ModelRun, reason: str, now: int, *, unheard: bool = False) -> None:
        """A run that nobody has ends at once, and another one's owner is to settle it.

        There is nothing to clean, unless somebody wants to hear of its end.
        """
        run.abort_reason = reason
        run.lines.append("run:abort")
        if run.owner is not None:
            return
        heard = run.telling and not unheard
        run.status, run.ended, run.cleaned, run.telling = "aborted", now, not heard, 2 if heard else 0
        run.lines.append("run:aborted")
        run.forget_all()
        run.due = now if heard else None
        if run.room is not None:
            room = self.rooms[run.room]
            if not heard or run.run_id in room.waiting:
                room.leave(run.run_id)
                run.room = None if heard else run.room
            else:
                room.end(run.run_id)

    def signal(self, run: ModelRun, patch: Any) -> None:
        """Keeps a patch for a run."""
        run.lines.append("run:signalled")
        run.signals[len(run.lines)] = patch


def meets(wait: Wait, event: ModelEvent) -> bool:
    """Whether an event is one that a wait is for."""
    if wait.event_type != event.type:
        return False
    return all(_holds(event.payload.get(name), op, value) for name, op, value in msgspec.json.decode(wait.clauses))


def _holds(actual: Any, op: str, value: Any) -> bool:
    if op == "exists":
        return (actual is not None) is value
    if actual is None or isinstance(actual, bool) is not isinstance(value, bool):
        return False
    if op == "==":
        return bool(actual == value)
    if isinstance(actual, str) or isinstance(value, str) or isinstance(actual, bool):
        return False
    return bool(actual > value)


def data(value: Any) -> bytes:
    """A value as it is stored."""
    return msgspec.json.encode(value)
