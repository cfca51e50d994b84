"""What history may go, in small batches: ended runs, events and their ids, occurrences, empty slots, lost nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.store.contract import Change, Delete, Lock, Read
from piecework.store.records import Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.contract import Decide, Script
    from piecework.store.items import Retain

_OF_RUNS = ("delete_run_values", "delete_timelines", "delete_runs")


def forget_runs(items: Sequence[Retain], _decide: Decide, _now: int) -> Script:
    """Removes runs that ended before a moment and are clean, with all that belongs to them; answers how many.

    The updates of pieces that are there are left alone: a piece keeps its own history.
    """
    counts: list[int] = []
    for item in items:
        rows = yield Read("runs_ended_before", {"before": item.before, "limit": item.limit})
        ids = [row[0] for row in rows]
        if ids:
            for name in _OF_RUNS:
                yield Change(name, {"run_ids": ids})
        counts.append(len(ids))
    return list(counts)


def forget_events(items: Sequence[Retain], _decide: Decide, _now: int) -> Script:
    """Removes events from before a moment that nobody needs any more, with what became of them; answers how many.

    Needed are those of unended runs and those that are pending or still fan out.
    """
    counts: list[int] = []
    for item in items:
        rows = yield Read("events_before", {"before": item.before, "limit": item.limit})
        seqs = [row[0] for row in rows]
        if seqs:
            for name in ("delete_deliveries", "delete_events"):
                yield Change(name, {"seqs": seqs})
        counts.append(len(seqs))
    return list(counts)


def forget_ids(items: Sequence[Retain], _decide: Decide, _now: int) -> Script:
    """Clears the ids of events from before a moment, and occurrences: they may come again; answers how many.

    Those of unended runs stay.
    """
    counts: list[int] = []
    for item in items:
        rows = yield Read("ids_before", {"before": item.before, "limit": item.limit})
        if rows:
            yield Change("clear_event_ids", {"seqs": [row[0] for row in rows]})
        keys = yield Read("occurrences_before", {"before": item.before, "limit": item.limit})
        if keys:
            yield Change("delete_occurrences", {"keys": [row[0] for row in keys], "before": item.before})
        counts.append(max(len(rows), len(keys)))
    return list(counts)


def forget_nodes(items: Sequence[Retain], _decide: Decide, _now: int) -> Script:
    """Removes nodes whose lease ended before a moment and that have nothing any more; answers how many."""
    counts: list[int] = []
    for item in items:
        rows = yield Read("nodes_gone", {"before": item.before, "limit": item.limit})
        if rows:
            yield Change("delete_nodes", {"node_ids": [row[0] for row in rows]})
        counts.append(len(rows))
    return list(counts)


def forget_slots(items: Sequence[Retain], _decide: Decide, _now: int) -> Script:
    """Removes slots that no unended run is in, under their locks; answers how many were looked at."""
    counts: list[int] = []
    for item in items:
        rows = yield Read("empty_slots", {"limit": item.limit})
        if rows:
            slots: list[Slot] = yield Lock(Slot, sorted((row[0],) for row in rows))
            empty = [slot.identity() for slot in slots if not (slot.live or slot.queued or slot.closing)]
            if empty:
                yield Delete(Slot, empty)
        counts.append(len(rows))
    return list(counts)
