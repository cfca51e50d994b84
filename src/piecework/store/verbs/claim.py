"""`claim`: a node takes what is due, or what owners had that are dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import Failure, Read
from piecework.store.draft import Draft
from piecework.store.items import Claim, Claimed
from piecework.store.records import EventRow, Piece, Run, RunValue
from piecework.store.verbs.loading import load_runs

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script


def claim(items: Sequence[Claim], decide: Decide, now: int) -> Script:
    """Gives each node up to its limit of runs, with their events and values.

    It takes no slot, so it only takes over: it never ends, parks or resumes a run. The epoch is raised, so whoever
    had a run before can write no more; the attempt is counted before the run starts.
    """
    draft = Draft()
    picked: list[list[str]] = []
    for item in items:
        taken = {run_id for ids in picked for run_id in ids}
        if item.orphans:
            rows = yield Read("orphaned_runs", {"owner": item.owner, "known": item.known, "limit": item.limit}, Run)
            picked.append([row.run_id for row in rows if row.run_id not in taken])
        else:
            picked.append((yield from _pick_due(item, taken, now)))
    run_ids = sorted({run_id for ids in picked for run_id in ids})
    yield from load_runs(draft, run_ids)
    pairs = [(item.owner, run_id) for item, ids in zip(items, picked, strict=True) for run_id in ids]
    outcomes = draft.fold(pairs, decide, now)
    yield from draft.write()
    runs = {run.run_id: run for run in outcomes if not isinstance(run, Failure)}
    if not runs:
        return [[] for _ in items]
    values = yield Read("values_of_runs", {"run_ids": sorted(runs)}, RunValue)
    by_run: dict[str, dict[str, bytes]] = {}
    for value in values:
        by_run.setdefault(value.run_id, {})[value.name] = value.data
    seqs = sorted({run.event_seq for run in runs.values() if run.event_seq is not None})
    events = {}
    if seqs:
        rows = yield Read("events_by_seq", {"seqs": seqs}, EventRow)
        events = {row.seq: row for row in rows}
    pieces = {}
    if any(run.kind == "piece" for run in runs.values()):
        rows = yield Read("pieces_of_runs", {"run_ids": sorted(runs)}, Piece)
        pieces = {(row.space, row.piece_id): row for row in rows}
    return [
        [
            Claimed(
                run=run,
                event=events.get(run.event_seq),
                values=by_run.get(run.run_id, {}),
                piece=pieces.get((run.space, run.key_value)) if run.kind == "piece" else None,
            )
            for run in (runs[run_id] for run_id in ids if run_id in runs)
        ]
        for ids in picked
    ]


def _pick_due(item: Claim, taken: set[str], now: int) -> Generator[Request, Any, list[str]]:
    """Picks due runs, the longest due first, passing over the updates of spaces that have no place left."""
    picked: list[str] = []
    places = {space: item.places - count for space, count in item.taken.items()}
    while True:
        full = [space for space, left in places.items() if left <= 0]
        rows = yield Read("due_runs", {"now": now, "known": item.known, "full": full, "limit": item.limit}, Run)
        news = [row for row in rows if row.run_id not in taken]
        for row in news:
            if len(picked) == item.limit:
                return picked
            if row.kind == "piece":
                left = places.get(row.space, item.places)
                if left <= 0:
                    continue
                places[row.space] = left - 1
            taken.add(row.run_id)
            picked.append(row.run_id)
        # Another look is of use only where rows of spaces that have become full stood in the way of others.
        if len(rows) < item.limit or full == [space for space, left in places.items() if left <= 0]:
            return picked
