"""The lock protocol's common steps: slots, then runs, each in one sorted statement; at the end the spaces.

On PostgreSQL the order is what keeps verbs from waiting for each other in a ring. Slots that are missing are made
before any is locked; what was only peeked at is read again under the locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import Change, Delete, InsertMissing, Lock, Read, StartAgain, Tell, Update
from piecework.store.records import Buffered, Run, RunValue, Signal, Slot, Space, Wait

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from piecework.store.contract import Decide, Request
    from piecework.store.draft import Draft

HEADS_LIMIT = 500
"""How many queued runs of one slot a transaction starts at most."""

_TOUCHES_ACTIVE = frozenset({"signal", "replace"})
"""What an event may do to the run that has the place."""

_ENDED_TOO = ("delete_waits", "delete_buffers", "delete_signals")


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
    if fresh:
        rows = yield Read("slots_there", {"slot_keys": sorted(fresh)})
        missing = sorted(fresh.keys() - {row[0] for row in rows})
        if missing:
            yield InsertMissing([fresh[key] for key in missing], "slot_key")
    found = yield Lock(Slot, [(key,) for key in keys])
    if fresh.keys() - {slot.slot_key for slot in found}:
        yield StartAgain()
    draft.load(Slot, [(key,) for key in keys], found)
    return of_runs


def lock_runs(
    draft: Draft, run_ids: Iterable[str], *, places: int = 0, slots: Iterable[Slot] | None = None
) -> Generator[Request, Any, None]:
    """Locks runs, and with them those that the locked slots name: who waits longest, who has the place, who is next.

    Args:
        draft: Gets them; its slots are locked already.
        run_ids: The runs concerned.
        places: How many places this batch may set free in one slot; 0 where it frees none.
        slots: Those whose runs may start or be replaced; None means all that are locked.
    """
    ids = set(run_ids)
    looked_at = draft.all(Slot) if slots is None else list(slots)
    for slot in looked_at:
        active = slot.active_run_id if slot.on_busy in _TOUCHES_ACTIVE else None
        ids |= {run_id for run_id in (active, slot.pending_run_id) if run_id is not None}
    waiting = [slot for slot in looked_at if slot.queued > (slot.pending_run_id is not None)]
    for slot in looked_at:
        if slot.queued == 1 and slot.pending_run_id is not None:  # under another mode it may be any queue's head
            draft.queues[slot.slot_key] = [slot.pending_run_id]
    if places and waiting:
        limit = min(HEADS_LIMIT, places + max(_room(slot) for slot in waiting))
        keys = sorted({slot.slot_key for slot in waiting})
        rows = yield Read("queue_heads", {"slot_keys": keys, "limit": limit})
        for slot_key, run_id in rows:
            draft.queues.setdefault(slot_key, []).append(run_id)
            ids.add(run_id)
    yield from load_runs(draft, ids)


def actives(draft: Draft, wanted: Iterable[Slot]) -> set[str]:
    """The active runs of locked slots that a trigger's mode signals or replaces; it may be newer than the slot's."""
    found = (draft.get(Slot, slot.slot_key).active_run_id for slot in wanted if slot.on_busy in _TOUCHES_ACTIVE)
    return {run_id for run_id in found if run_id is not None}


def _room(slot: Slot) -> int:
    busy = slot.live if slot.hold_while_paused else slot.live - slot.paused
    return max(0, slot.concurrency - busy)


def load_runs(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    """Locks runs and loads their rows."""
    keys = [(run_id,) for run_id in sorted(set(run_ids))]
    if keys:
        rows = yield Lock(Run, keys)
        draft.load(Run, keys, rows)


def load_waiting(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, list[Wait]]:
    """Loads what locked runs wait for and what is kept for them."""
    ids = sorted(set(run_ids))
    if not ids:
        return []
    waits: list[Wait] = yield Read("waits_of_runs", {"run_ids": ids}, Wait)
    draft.load(Wait, [], waits)
    buffered = yield Read("buffers_of_runs", {"run_ids": ids}, Buffered)
    draft.load(Buffered, [], buffered)
    return waits


def load_signals(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    """Loads the signals of locked runs that have some."""
    ids = sorted({run_id for run_id in run_ids if (run := draft.find(Run, run_id)) is not None and run.signals})
    if ids:
        rows = yield Read("signals_of_runs", {"run_ids": ids}, Signal)
        draft.load(Signal, [], rows)


def load_patches(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    """Loads the patches of resumes under way, of locked runs."""
    keys = [
        (run_id, "patch")
        for run_id in sorted(set(run_ids))
        if (run := draft.find(Run, run_id)) is not None and run.patched
    ]
    if keys:
        rows = yield Lock(RunValue, keys)
        draft.load(RunValue, keys, rows)


def decided(draft: Draft, items: Sequence[Any], decide: Decide, now: int) -> Generator[Request, Any, list[Any]]:
    """Folds the items over what was loaded, and writes what came of it."""
    outcomes = draft.fold(items, decide, now)
    yield from conclude(draft)
    return outcomes


def conclude(draft: Draft) -> Generator[Request, Any, None]:
    """Writes the difference; forgets what ended runs waited for, tells spaces what became due, others what to see."""
    ended: list[str] = []
    woken: list[str] = []
    due: dict[str, int] = {}
    topics: list[str] = []
    for before, run in draft.changed(Run):
        if run is not None and before is not None and run.signals > before.signals and run.owner is not None:
            topics.append(f"signal:{run.owner}:{run.run_id}")
        if run is None or (before is not None and _stays(before, run)):
            continue
        was = before or run
        if run.ended_at is not None and (before is None or before.ended_at is None):
            ended.append(run.run_id)
            topics.append(f"run:{run.run_id}")
            if was.status == "paused" and run.resume_count > was.resume_count:  # woken with a patch, and ended at once
                woken.append(run.run_id)
        elif run.status == "paused" != was.status or was.telling != run.telling:
            topics.append(f"run:{run.run_id}")
        if run.abort_reason is not None and was.abort_reason is None and run.owner is not None:
            topics.append(f"abort:{run.owner}:{run.run_id}")
        fresh = before is None or (before.due_at, before.owner, before.space) != (run.due_at, run.owner, run.space)
        if run.due_at is not None and run.owner is None and fresh:
            due[run.space] = min(run.due_at, due.get(run.space, run.due_at))
    yield from draft.write()
    if ended:  # behind the rest: what ended a run may first have kept something for it
        for name in _ENDED_TOO:
            yield Change(name, {"run_ids": sorted(ended)})
    if woken:
        yield Delete(RunValue, [(run_id, "patch") for run_id in sorted(woken)])
    if due:
        topics.append("due")
        yield from lower_spaces(due)
    if topics:
        yield Tell(topics)


def _stays(before: Run, run: Run) -> bool:
    """Whether a run merely goes on where it is, as at the end of nearly every stage: nobody has to hear of it."""
    return (
        run.due_at is None
        and run.ended_at is None
        and run.abort_reason is None
        and run.status == before.status
        and run.patched == before.patched
    )


def lower_spaces(due: dict[str, int]) -> Generator[Request, Any, None]:
    """Sees to it that no space's next due time is later than what this transaction made due. The last locks of all.

    A claim locks a space before it reads what is due there and raises the time. So the row is locked here too: shared
    where the time is early enough already, else to lower it.
    """
    names = sorted(due)
    rows = yield Read("spaces_by_name", {"spaces": names}, Space)
    known = {row.space: row for row in rows}
    missing = [Space(name, due[name]) for name in names if name not in known]
    if missing:
        inserted = yield InsertMissing(missing, "space")
        names = [name for name in names if name not in {row.space for row in inserted}]
        if not names:
            return
    share = all(name in known and not _late(known[name], due) for name in names)
    locked = yield Lock(Space, [(name,) for name in names], share=share)
    late = [Space(row.space, due[row.space], row.weight) for row in locked if _late(row, due)]
    if len(locked) < len(names) or (late and share):
        yield StartAgain()
    if late:
        yield Update(late)


def _late(space: Space, due: dict[str, int]) -> bool:
    return space.next_due is None or space.next_due > due[space.space]
