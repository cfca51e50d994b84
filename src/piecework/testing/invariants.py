"""What has to be true of every store at every commit, whatever was done to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.run.admission import startable
from piecework.run.lifecycle import ENDED, Status
from piecework.store.contract import Lock, Read
from piecework.store.records import Buffered, Piece, Run, Slot, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.contract import Decide, Script, Store

_EVERYTHING = {"status": None, "workflow": None, "space": None, "kind": None, "created_at": None, "run_id": None}


@dataclass(slots=True)
class Snapshot:
    """Rows of one moment.

    Attributes:
        runs: All of them, by id.
        slots: Those that runs are in, by key.
        waits: What the runs wait for.
        buffers: What is kept for them.
        pieces: All of them.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    buffers: list[Buffered] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


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
    wrong = [*_of_runs(taken), *_of_slots(taken), *_of_waits(taken), *_of_pieces(taken)]
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
    taken.waits = yield Read("waits_of_runs", {"run_ids": sorted(taken.runs)}, Wait)
    taken.buffers = yield Read("buffers_of_runs", {"run_ids": sorted(taken.runs)}, Buffered)
    taken.pieces = yield Read("list_pieces", {"space": None}, Piece)
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
            "is queued outside of a slot and never due": run.status != Status.QUEUED or due or run.slot_key is not None,
        }
        wrong += [f"run {run.run_id} ({run.status}) {what}" for what, fine in rules.items() if not fine]
    return wrong


def _of_slots(taken: Snapshot) -> list[str]:
    counts: dict[str, Counter[str]] = {key: Counter() for key in taken.slots}
    first_time: Counter[str] = Counter()
    for run in taken.runs.values():
        if run.slot_key is None:
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


def _place(run: Run) -> str:
    if _ended(run):
        return "gone" if run.cleaned else "closing"
    if run.status == Status.QUEUED and run.due_at is None:
        return "queued"
    return "paused" if run.status == Status.PAUSED else "live"


def _ended(run: Run) -> bool:
    return Status(run.status) in ENDED


def _of_waits(taken: Snapshot) -> list[str]:
    told = [*((row.run_id, "waits") for row in taken.waits), *((row.run_id, "buffers") for row in taken.buffers)]
    wrong = [f"run {run_id} has ended, but {what} remember it" for run_id, what in told if _ended(taken.runs[run_id])]
    wrong += [
        f"run {run_id} is paused beside an event that it waits for"
        for run_id in sorted({row.run_id for row in taken.buffers})
        if taken.runs[run_id].status == Status.PAUSED
    ]
    awaited: dict[str, set[str]] = {}
    for wait in taken.waits:
        awaited.setdefault(wait.run_id, set()).add(wait.event_type)
    for run in taken.runs.values():
        said = set(msgspec.json.decode(run.waiting_for)) if run.waiting_for is not None else set()
        if run.status == Status.PAUSED and said != awaited.get(run.run_id, set()):
            wrong.append(f"run {run.run_id} says that it waits for {said}, it waits for {awaited.get(run.run_id)}")
    return wrong


def _of_pieces(taken: Snapshot) -> list[str]:
    wrong: list[str] = []
    for piece in taken.pieces:
        name = f"piece {piece.space}/{piece.piece_id}"
        run = taken.runs.get(piece.run_id or "")
        stopped = piece.observed == "broken"
        if stopped and (piece.run_id is not None or piece.next_run_at is not None):
            wrong.append(f"{name} is broken but still due")
        if not stopped and (run is None or _ended(run)):
            wrong.append(f"{name} is {piece.observed}, but no update of it is to come")
    return wrong
