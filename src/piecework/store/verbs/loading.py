"""The lock protocol's common steps: slots first, then runs, then what belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import InsertMissing, Lock, Read
from piecework.store.records import Run, RunValue, Slot

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from piecework.store.contract import Request
    from piecework.store.draft import Draft


_HEADS_LIMIT = 500


def lock_slots(
    draft: Draft, wanted: Iterable[Slot], run_ids: Iterable[str]
) -> Generator[Request, Any, dict[str, str | None]]:
    """Locks the slots of triggers (made when missing) and those of runs that were peeked at.

    Args:
        draft: Gets them.
        wanted: Slots as their triggers would make them.
        run_ids: Runs whose slots may change.

    Returns:
        For each run its slot's key, or None.
    """
    fresh = {slot.slot_key: slot for slot in wanted}
    of_runs: dict[str, str | None] = {}
    ids = sorted(set(run_ids))
    if ids:
        rows = yield Read("slots_of_runs", {"run_ids": ids})
        of_runs = {row[0]: row[1] for row in rows}
    keys = sorted({*fresh, *(key for key in of_runs.values() if key is not None)})
    if not keys:
        return of_runs
    found = yield Lock(Slot, [(key,) for key in keys])
    missing = sorted(fresh.keys() - {slot.slot_key for slot in found})
    if missing:
        yield InsertMissing([fresh[key] for key in missing], "slot_key")
        found = yield Lock(Slot, [(key,) for key in keys])
    draft.load(Slot, [(key,) for key in keys], found)
    return of_runs


def load_runs(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    """Locks runs and loads their rows."""
    keys = [(run_id,) for run_id in sorted(set(run_ids))]
    if keys:
        rows = yield Lock(Run, keys)
        draft.load(Run, keys, rows)


def load_queues(draft: Draft, slot_keys: Iterable[str | None], places: int) -> Generator[Request, Any, None]:
    """Loads the runs that wait longest in slots, as many as a batch may set free and as have room already."""
    for key in sorted({key for key in slot_keys if key is not None}):
        slot = draft.find(Slot, key)
        if slot is not None and slot.queued:
            busy = slot.live if slot.hold_while_paused else slot.live - slot.paused
            limit = min(places + max(0, slot.concurrency - busy), _HEADS_LIMIT)
            rows = yield Read("queue_heads", {"slot_key": key, "limit": limit}, Run)
            yield from load_runs(draft, [row.run_id for row in rows])
            draft.queues[key] = [row.run_id for row in rows]


def load_patches(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    """Loads the patches of resumes under way."""
    keys = [(run_id, "patch") for run_id in sorted(set(run_ids))]
    if keys:
        rows = yield Lock(RunValue, keys)
        draft.load(RunValue, keys, rows)
