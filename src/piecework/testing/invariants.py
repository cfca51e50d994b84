"""What has to be true of every store at every commit, whatever was done to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.run.admission import startable
from piecework.run.lifecycle import ENDED, Status
from piecework.run.parts import HELD
from piecework.space.coming import MANUAL
from piecework.store.contract import Lock, Read
from piecework.store.records import Buffered, EventRow, Fanout, Piece, Run, RunValue, Signal, Slot, Space, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.contract import Decide, Script, Store

_UNSEEN = ("value_without_run", "timeline_without_run", "delivery_without_event")
"""Rules of `store check` about rows that no other row leads to."""

_EVERYTHING = {"status": None, "workflow": None, "space": None, "kind": None, "created_at": None, "run_id": None}


@dataclass(slots=True)
class Snapshot:
    """Rows of one moment.

    Attributes:
        runs: All of them, by id.
        slots: Those that runs are in, by key; one that nobody was in may be gone.
        waits: What the runs wait for.
        buffers: What is kept for them.
        signals: What was sent to them and is in no checkpoint.
        patched: The runs for which the patch of a resume is kept.
        spaces: Those that they are in, by name.
        pieces: All of them.
        fanouts: The events that are on their way to many runs.
        events: The numbers of the events that `fanouts` and unended runs name, as far as they are there.
        unseen: What `store check` finds of rows that no other row leads to, in words.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    buffers: list[Buffered] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    patched: set[str] = field(default_factory=set)
    spaces: dict[str, Space] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    fanouts: list[Fanout] = field(default_factory=list)
    events: set[int] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)


async def snapshot(store: Store) -> Snapshot:
    """Reads everything in one transaction."""
    taken: Snapshot = await store.run(_look, None, _no_decision, 0)
    return taken


async def check_invariants(store: Store) -> Snapshot:
    """Reads a store and fails when what stands in it cannot be: counts, places, owners, waits.

    Raises:
        AssertionError: With every contradiction, one a line.
    """
    taken = await snapshot(store)
    wrong = [line for rule in _RULES for line in rule(taken)] + taken.unseen
    if wrong:
        raise AssertionError("the store contradicts itself:\n" + "\n".join(wrong))
    return taken


def _look(asked: Sequence[Any], _decide: Decide, _now: int) -> Script:
    taken = Snapshot()
    rows = yield Read("list_runs", {**_EVERYTHING, "limit": 1_000_000}, Run)
    taken.runs = {run.run_id: run for run in rows}
    keys = sorted({run.slot_key for run in rows if run.slot_key is not None})
    if keys:
        slots = yield Lock(Slot, [(key,) for key in keys])
        taken.slots = {slot.slot_key: slot for slot in slots}
    ids = {"run_ids": sorted(taken.runs)}
    taken.waits = yield Read("waits_of_runs", ids, Wait)
    taken.buffers = yield Read("buffers_of_runs", ids, Buffered)
    taken.signals = yield Read("signals_of_runs", ids, Signal)
    values = yield Read("values_of_runs", ids, RunValue)
    taken.patched = {value.run_id for value in values if value.name == "patch"}
    spaces = yield Read("spaces_by_name", {"spaces": sorted({run.space for run in rows})}, Space)
    taken.spaces = {space.space: space for space in spaces}
    taken.pieces = yield Read("list_pieces", {"space": None}, Piece)
    taken.fanouts = yield Read("open_fanouts", {"limit": 1_000_000}, Fanout)
    named = {run.event_seq for run in rows if run.event_seq is not None and not _ended(run)}
    events = yield Read("events_by_seq", {"seqs": sorted(named | {row.event_seq for row in taken.fanouts})}, EventRow)
    taken.events = {event.seq for event in events if event.seq is not None}
    for name in _UNSEEN:
        found = yield Read(f"check_{name}", {"limit": 100})
        taken.unseen += [f"{name}: {subject} {message}" for subject, message in found]
    return [taken for _ in asked]


def _no_decision(_draft: Any, _item: Any, _now: int) -> None:
    """Looking decides nothing."""


def _of_runs(taken: Snapshot) -> list[str]:
    wrong: list[str] = []
    for run in taken.runs.values():
        ended, owned, due = _ended(run), run.owner is not None, run.due_at is not None
        rules = {
            "has an owner and is due as well": not (owned and due),
            "is cleaned but has not ended": not run.cleaned or ended,
            "is cleaned but has an owner": not (run.cleaned and owned),
            "has ended, but not at a moment": ended == (run.ended_at is not None),
            "runs, but nobody has it and nobody will": run.status != Status.RUNNING or owned or due,
            "ended, but nobody will clean it": not ended or run.cleaned or owned or due,
            "is queued but has an owner": run.status != Status.QUEUED or not owned,
            "is paused but has an owner or is due": run.status != Status.PAUSED or not (owned or due),
            "has a deadline but is not paused": run.expires_at is None or run.status == Status.PAUSED,
            "is queued outside of a slot and never due": run.status != Status.QUEUED
            or due
            or run.slot_key is not None
            or run.kind == "piece",  # it follows another update: the rules of pieces look after it
            "is in a slot that is not there": run.cleaned or run.slot_key is None or run.slot_key in taken.slots,
            "says otherwise than its values whether a patch is kept": bool(run.patched)
            == (run.run_id in taken.patched),
            "has not ended, but its event is gone": ended or run.event_seq is None or run.event_seq in taken.events,
            "is due earlier than its space": run.due_at is None or owned or _in_time(taken, run),
        }
        wrong += [f"run {run.run_id} ({run.status}) {what}" for what, fine in rules.items() if not fine]
    return wrong


def _in_time(taken: Snapshot, run: Run) -> bool:
    """Whether a claim that looks at the run's space in time finds the run."""
    space = taken.spaces.get(run.space)
    return space is not None and space.next_due is not None and space.next_due <= (run.due_at or 0)


def _of_slots(taken: Snapshot) -> list[str]:
    counts: dict[str, Counter[str]] = {key: Counter() for key in taken.slots}
    first_time: Counter[str] = Counter()
    for run in taken.runs.values():
        if run.slot_key not in counts:
            continue
        place = _place(run)
        counts[run.slot_key][place] += 1
        if place == "paused":
            counts[run.slot_key]["live"] += 1
        if run.resume_count == 0 and place in {"live", "closing"}:
            first_time[run.slot_key] += 1
    wrong: list[str] = []
    for key, slot in taken.slots.items():
        wrong += [
            f"slot {key} says {getattr(slot, name)} {name}, there are {counts[key][name]}"
            for name in ("live", "queued", "closing", "paused")
            if getattr(slot, name) != counts[key][name]
        ]
        # A resumed run never waits for room, so only those that were never resumed are bounded where a pause gives up
        # its place.
        bounded = slot.live + slot.closing if slot.hold_while_paused else first_time[key]
        if bounded > slot.concurrency:
            wrong.append(f"slot {key} has {bounded} runs at once, {slot.concurrency} are allowed")
        if startable(slot):
            wrong.append(f"slot {key} has room for {startable(slot)} of its queued runs, and they do not start")
    return wrong


def _of_places(taken: Snapshot) -> list[str]:
    """Who has the place of a mode of one run at a time, who is next, and in which order the others come."""
    wrong: list[str] = []
    for key, slot in taken.slots.items():
        for name, wanted in (("active", "live"), ("pending", "queued")):
            run_id = getattr(slot, f"{name}_run_id")
            run = taken.runs.get(run_id or "")
            if run_id is None:
                continue
            if not slot.on_busy:
                wrong.append(f"slot {key} keeps no ids, but says that {run_id} is {name}")
            if run is None or run.slot_key != key:
                wrong.append(f"slot {key} says that {run_id} is {name}, which is not in it")
            elif _place(run) != wanted and not (
                name == "active" and slot.hold_while_paused and _place(run) == "paused"
            ):
                wrong.append(f"slot {key} says that {run_id} is {name}, which is {run.status} ({_place(run)})")
    numbers = Counter(
        (run.slot_key, run.place) for run in taken.runs.values() if run.slot_key is not None and not _ended(run)
    )
    wrong += [f"slot {key} has {count} runs with place {place}" for (key, place), count in numbers.items() if count > 1]
    wrong += [
        f"run {run.run_id} has place {run.place}, slot {run.slot_key} gave {taken.slots[run.slot_key].admitted}"
        for run in taken.runs.values()
        if run.slot_key in taken.slots
        and not _ended(run)
        and not 0 < (run.place or 0) <= taken.slots[run.slot_key].admitted
    ]
    return wrong


def _place(run: Run) -> str:
    if _ended(run):
        return "gone" if run.cleaned else "live" if run.telling == HELD else "closing"
    if run.status == Status.QUEUED and run.due_at is None:
        return "queued"
    return "paused" if run.status == Status.PAUSED else "live"


def _ended(run: Run) -> bool:
    return Status(run.status) in ENDED


def _met(taken: Snapshot, run_id: str) -> bool:
    """Whether what is kept for a run is enough to go on with."""
    kept: dict[str, set[str]] = {}
    for row in taken.buffers:
        if row.run_id == run_id:
            kept.setdefault(row.wait_id, set()).add(row.event_type)
    for wait in taken.waits:
        if wait.mode == "all" and wait.event_type not in kept.get(wait.wait_id, ()):
            kept.pop(wait.wait_id, None)  # one of its types has still to come
    return bool(kept)


def _of_waits(taken: Snapshot) -> list[str]:
    told = [*((row.run_id, "waits") for row in taken.waits), *((row.run_id, "buffers") for row in taken.buffers)]
    wrong = [f"run {run_id} has ended, but {what} remember it" for run_id, what in told if _ended(taken.runs[run_id])]
    # One whose resume failed is woken by itself, with the patch that it has; what came behind is kept.
    wrong += [
        f"run {run_id} is paused beside an event that it waits for"
        for run_id in sorted({row.run_id for row in taken.buffers})
        if taken.runs[run_id].status == Status.PAUSED and not _comes_back(taken.runs[run_id]) and _met(taken, run_id)
    ]
    awaited: dict[str, set[str]] = {}
    for wait in taken.waits:
        awaited.setdefault(wait.run_id, set()).add(wait.event_type)
    for run in taken.runs.values():
        said = set(msgspec.json.decode(run.waiting_for)) if run.waiting_for is not None else set()
        if run.status == Status.PAUSED and said != awaited.get(run.run_id, set()):
            wrong.append(f"run {run.run_id} says that it waits for {said}, it waits for {awaited.get(run.run_id)}")
    return wrong


def _comes_back(run: Run) -> bool:
    """Whether a paused run waits for its next resume after one that failed, or for a definition that can carry it."""
    return bool(run.patched) and (run.expires_at is not None or run.error is not None)


def _of_signals(taken: Snapshot) -> list[str]:
    kept = Counter(row.run_id for row in taken.signals)
    wrong = [f"run {run_id} has ended, but signals are kept for it" for run_id in kept if _ended(taken.runs[run_id])]
    wrong += [
        f"run {run.run_id} says that {run.signals} signals are kept, there are {kept[run.run_id]}"
        for run in taken.runs.values()
        if run.signals != kept[run.run_id]
    ]
    return wrong


def _of_events(taken: Snapshot) -> list[str]:
    return [
        f"event {row.event_seq} is on its way to runs that wait for it, and is not there"
        for row in taken.fanouts
        if row.event_seq not in taken.events
    ]


def _of_pieces(taken: Snapshot) -> list[str]:
    wrong: list[str] = []
    updates: dict[tuple[str, str | None], list[Run]] = {}
    for run in taken.runs.values():
        if run.kind == "piece" and not _ended(run):
            updates.setdefault((run.space, run.key_value), []).append(run)
    for piece in taken.pieces:
        name = f"piece {piece.space}/{piece.piece_id}"
        mine = updates.pop((piece.space, piece.piece_id), [])
        broken, paused = piece.observed == "broken", piece.desired in {"paused", "removed"}
        rests = broken or paused or piece.observed == "waiting"
        told = [run_id for run_id in (piece.run_id, piece.after_run_id) if run_id is not None]
        if piece.desired == "removed" and not mine:
            wrong.append(f"{name} was removed and has no update that has still to end, but is there")
        tried = broken and bool(mine) and all(run.trigger_id == MANUAL for run in mine)
        rests_yet_due = (broken and not tried) or (paused and not mine)
        if rests_yet_due and (piece.run_id is not None or piece.next_run_at is not None):
            wrong.append(f"{name} is {'broken' if broken else 'paused'} but still due")
        if not rests and not mine:
            wrong.append(f"{name} is {piece.observed}, but no update of it is to come")
        if {run.run_id for run in mine} != set(told) and (mine or piece.after_run_id is not None):
            wrong.append(f"{name} says that {told} are its updates, there are {[run.run_id for run in mine]}")
        first, second = ([run for run in mine if run.run_id == of] for of in (piece.run_id, piece.after_run_id))
        if any(run.due_at is None and run.owner is None for run in first):
            wrong.append(f"{name} has an update that is never due")
        if piece.after_run_id is not None and (not first or any(run.due_at or run.owner for run in second)):
            wrong.append(f"{name} has an update that follows another, and one of the two is not where it should be")
    wrong += [f"run {run.run_id} updates a piece that is not there" for left in updates.values() for run in left]
    return wrong


_RULES = (_of_runs, _of_slots, _of_places, _of_waits, _of_signals, _of_events, _of_pieces)
