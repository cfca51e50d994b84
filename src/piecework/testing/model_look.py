"""The rows of a store beside what the model remembers: the same facts in the same words, and where they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from piecework.store.contract import Lock, Read
from piecework.store.records import (
    Buffered,
    Delivery,
    Entry,
    EventRow,
    NodeRow,
    Occurrence,
    Record,
    RouteRow,
    Run,
    RunValue,
    Signal,
    Slot,
    Space,
    Wait,
)
from piecework.testing.model_world import ModelRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from piecework.store.contract import Decide, Script, Verb
    from piecework.testing.model_runs import Model

_EVERYTHING = {"status": None, "workflow": None, "space": None, "kind": None, "created_at": None, "run_id": None}
_RUNS: dict[str, tuple[str, type[Record]]] = {
    "waits": ("waits_of_runs", Wait),
    "buffers": ("buffers_of_runs", Buffered),
    "signals": ("signals_of_runs", Signal),
    "values": ("values_of_runs", RunValue),
}
_COUNTS = ("live", "queued", "closing", "paused", "admitted", "active_run_id", "pending_run_id")


def looking(model: Model, ever: Iterable[str], *, lines: bool) -> Verb:
    """A verb that reads, in one transaction, everything that the model knows of.

    Args:
        model: Says which slots, events and occurrences to ask for.
        ever: The ids of all runs that there ever were: nothing may be left of those that are gone.
        lines: Whether to read timelines too, which takes a query each.
    """

    def look(asked: Sequence[Any], _decide: Decide, _now: int) -> Script:
        """Answers the rows by the names of their tables."""
        run_ids, seqs = sorted(ever), sorted(model.events)
        rows: dict[str, list[Any]] = {}
        rows["runs"] = yield Read("list_runs", {**_EVERYTHING, "limit": 1_000_000}, Run)
        for table, (name, into) in _RUNS.items():
            rows[table] = yield Read(name, {"run_ids": run_ids}, into)
        if lines:
            rows["timeline"] = []
            for run_id in run_ids:
                rows["timeline"] += yield Read("timeline_of", {"run_id": run_id}, Entry)
        rows["events"] = yield Read("events_by_seq", {"seqs": seqs}, EventRow)
        rows["deliveries"] = yield Read("deliveries_of", {"seqs": seqs}, Delivery)
        workflows = sorted({*model.routes, *(room.like.workflow_id for room in model.rooms.values())})
        rows["routes"] = yield Read("routes_of_workflows", {"workflow_ids": workflows}, RouteRow)
        rows["slots"] = []
        for workflow in workflows:
            params = {"workflow_id": workflow, "after": "", "limit": 1_000}
            rows["slots"] += yield Read("slots_of_workflow", params, Slot)
        rows["nodes"] = yield Read("nodes", {}, NodeRow)
        rows["occurrences"] = yield Read("occurrences_by_key", {"keys": sorted(model.occurrences)}, Occurrence)
        spaces = sorted({run.space for run in rows["runs"]})
        rows["spaces"] = yield Lock(Space, [(name,) for name in spaces])
        return [rows for _ in asked]

    return look


def differences(model: Model, rows: dict[str, list[Any]]) -> list[str]:
    """Where the rows say something else than the model, one sentence each."""
    wrong: list[str] = []
    for table, (of_model, of_store) in _TABLES.items():
        if table not in rows:
            continue
        expected, found = of_model(model), {key: fact for key, fact in map(of_store, rows[table]) if fact is not None}
        wrong += [
            f"{table} {key}: the store has {found.get(key)}, the model {expected.get(key)}"
            for key in sorted(expected.keys() | found.keys(), key=str)
            if plain(expected.get(key)) != plain(found.get(key))
        ]
    return wrong + _spaces(model, rows["spaces"])


def run_facts(run: Run | ModelRun) -> dict[str, Any]:
    """What is compared of a run."""
    if isinstance(run, Run):
        waiting_for = msgspec.json.decode(run.waiting_for or "null") if run.status == "paused" else None
        return {name: getattr(run, name) for name in _RUN_FIELDS} | {"waiting_for": waiting_for}
    mine = {name: getattr(run, name) for name in _RUN_FIELDS if name in ModelRun.__slots__}
    return mine | {
        "workflow_id": run.workflow,
        "trigger_id": run.trigger,
        "slot_key": run.room,
        "event_seq": run.event,
        "decision": len(run.lines),
        "resume_count": run.resumes,
        "patched": "patch" in run.values,
        "signals": len(run.signals),
        "due_at": run.due,
        "expires_at": run.deadline,
        "created_at": run.created,
        "started_at": run.started,
        "ended_at": run.ended,
        "waiting_for": run.waiting_for(),
    }


def plain(value: Any) -> Any:
    """A value without its types: stored bytes as what they say, sequences as lists."""
    if isinstance(value, bytes):
        return msgspec.json.decode(value)
    if isinstance(value, Run | ModelRun):
        return run_facts(value)
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


_RUN_FIELDS = (
    "run_id", "kind", "workflow_id", "trigger_id", "slot_key", "place", "space", "status", "stage", "version",
    "event_seq", "epoch", "owner", "visit", "decision", "attempt", "resume_count", "patched", "signals", "telling",
    "cleaned", "due_at", "expires_at", "created_at", "started_at", "ended_at", "abort_reason", "told", "hops",
    "progress",
)  # fmt: skip


def _slots(model: Model) -> dict[Any, Any]:
    return {
        key: {
            "like": [getattr(room.like, name) for name in _NUMBERS],
            "live": len(room.live),
            "queued": len(room.waiting),
            "closing": len(room.closing),
            "paused": len(room.paused),
            "admitted": room.admitted,
            "active_run_id": room.active,
            "pending_run_id": room.pending,
        }
        for key, room in model.rooms.items()
    }


_NUMBERS = ("workflow_id", "mode", "on_busy", "concurrency", "capacity", "hold_while_paused")


def _slot(row: Slot) -> tuple[Any, Any]:
    return row.slot_key, {
        "like": [getattr(row, name) for name in _NUMBERS],
        **{name: getattr(row, name) for name in _COUNTS},
    }


def _spaces(model: Model, rows: list[Space]) -> list[str]:
    """A space may be looked at too early, never too late."""
    moments = {row.space: row.next_due for row in rows}
    wrong: list[str] = []
    for run in model.runs.values():
        moment = moments.get(run.space)
        if run.due is not None and run.owner is None and (moment is None or moment > run.due):
            wrong.append(f"space {run.space} is looked at {moment}, and run {run.run_id} is due {run.due}")
    return wrong


_Facts = dict[Any, Any]
_TABLES: dict[str, tuple[Callable[[Model], _Facts], Callable[[Any], tuple[Any, Any]]]] = {
    "runs": (lambda model: model.runs, lambda row: (row.run_id, row)),
    "values": (
        lambda model: {(run.run_id, name): data for run in model.runs.values() for name, data in run.values.items()},
        lambda row: ((row.run_id, row.name), row.data),
    ),
    "waits": (
        lambda model: {
            key: (run.run_id, wait.stage, wait.clauses, wait.registered_at, wait.mode)
            for run in model.runs.values()
            for key, wait in run.waits.items()
        },
        lambda row: ((row.wait_id, row.event_type), (row.run_id, row.stage, row.clauses, row.registered_at, row.mode)),
    ),
    "buffers": (
        lambda model: {(run.run_id, seq): kept for run in model.runs.values() for seq, kept in run.kept.items()},
        lambda row: ((row.run_id, row.event_seq), (row.wait_id, row.patch, row.event_type)),
    ),
    "signals": (
        lambda model: {(run.run_id, n): patch for run in model.runs.values() for n, patch in run.signals.items()},
        lambda row: ((row.run_id, row.number), row.patch),
    ),
    "timeline": (
        lambda model: {(run.run_id, n): line for run in model.runs.values() for n, line in enumerate(run.lines, 1)},
        lambda row: ((row.run_id, row.decision), row.type if row.ordinal == 0 else None),
    ),
    "events": (
        lambda model: {e.seq: (e.event_id, e.type, e.payload, e.space, e.hops) for e in model.events.values()},
        lambda row: (row.seq, (row.event_id, row.type, row.payload, row.space, row.hops)),
    ),
    "deliveries": (
        lambda model: model.deliveries,
        lambda row: ((row.event_seq, row.workflow_id, row.trigger_id, row.run_id), (row.outcome, row.reason)),
    ),
    "routes": (
        lambda model: {
            (name, type_): (version, at)
            for name, (version, types) in model.routes.items()
            for type_, at in types.items()
        },
        lambda row: ((row.workflow_id, row.event_type), (row.version, row.registered_at)),
    ),
    "slots": (_slots, _slot),
    "nodes": (lambda model: model.nodes, lambda row: (row.node_id, row.expires_at)),
    "occurrences": (
        lambda model: {key: run_id for key, (run_id, _) in model.occurrences.items()},
        lambda row: (row.occurrence, row.run_id),
    ),
}
