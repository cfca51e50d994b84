"""The life of a run, from `enqueue` to `cleaned`, and what happens beside it: waits and log lines.

Each locks the run before it reads its waits and buffers, and the run's slot before the run where the slot may change.
What is decided stands in the folds that are handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import DeleteWhere, Read
from piecework.store.draft import Draft
from piecework.store.items import Abort, Append, Cleaned, CommitStage, Enqueue, Park, Register, Release, Resume, Settle
from piecework.store.records import Buffered, Run, Wait
from piecework.store.verbs.loading import load_patches, load_queues, load_runs, lock_slots

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from piecework.store.contract import Decide, Request, Script


def enqueue(items: Sequence[Enqueue], decide: Decide, now: int) -> Script:
    """Makes runs that no event asked for; a run id that is there already is a duplicate."""
    draft = Draft()
    yield from load_runs(draft, [item.run.run_id for item in items])
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def commit_stage(items: Sequence[CommitStage], decide: Decide, now: int) -> Script:
    """Ends stages: state, timeline and what comes next in one commit.

    A run whose abort was asked for is left as it is and its outcome says so. A run that parks beside a buffered event
    is resumed at once and stays with its owner.
    """
    draft = Draft()
    parking = [item.run_id for item in items if isinstance(item.then, Park)]
    slots = yield from lock_slots(draft, (), parking)
    yield from load_runs(draft, [item.run_id for item in items])
    yield from load_queues(draft, slots.values(), len(parking))
    yield from _load_waiting(draft, parking)
    yield from load_patches(draft, [item.run_id for item in items if _is_repeat(draft, item)])
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def _is_repeat(draft: Draft, item: CommitStage) -> bool:
    run = draft.find(Run, item.run_id)
    return run is not None and run.visit == item.visit + 1


def settle(items: Sequence[Settle], decide: Decide, now: int) -> Script:
    """Ends runs: terminal status, result and error; what they waited for is forgotten. The slot is closing."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    outcomes = draft.fold(items, decide, now)
    yield from _forget_waiting(draft, run_ids)
    yield from draft.write()
    return outcomes


def cleaned(items: Sequence[Cleaned], decide: Decide, now: int) -> Script:
    """Frees the slots of ended runs and lets their successors start."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    slots = yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    yield from load_queues(draft, slots.values(), len(items))
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def release(items: Sequence[Release], decide: Decide, now: int) -> Script:
    """Gives runs back unfinished: whoever claims them next begins at their last checkpoint."""
    draft = Draft()
    yield from load_runs(draft, [item.run_id for item in items])
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def resume(items: Sequence[Resume], decide: Decide, now: int) -> Script:
    """Wakes paused runs; the loser of a race is told INVALID_STATE and changes nothing."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def abort(items: Sequence[Abort], decide: Decide, now: int) -> Script:
    """Ends queued and paused runs at once and asks the owner of a running one to."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    slots = yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    yield from load_queues(draft, slots.values(), len(items) + 1)
    outcomes = draft.fold(items, decide, now)
    yield from _forget_waiting(draft, run_ids)
    yield from draft.write()
    return outcomes


def due(items: Sequence[Any], decide: Decide, now: int) -> Script:
    """Wakes paused runs whose deadline has passed; every item is one look at the clock and its outcome a count."""
    draft = Draft()
    peeked = yield Read("expired_runs", {"now": now, "limit": 500}, Run)
    run_ids = [run.run_id for run in peeked]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    wakes = [Resume(run_id=run_id, reason="timeout") for run_id in run_ids]
    # Whoever was faster than the clock has won: those outcomes are failures that nobody waits for.
    draft.fold(wakes, decide, now)
    yield from draft.write()
    return [len(run_ids)] * len(items)


def register_waits(items: Sequence[Register], decide: Decide, now: int) -> Script:
    """Registers and cancels what running runs wait for; from this commit on matching events are kept for them."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from load_runs(draft, run_ids)
    yield from _load_waiting(draft, run_ids)
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def append(items: Sequence[Append], decide: Decide, now: int) -> Script:
    """Adds log lines and progress to timelines; refused for a superseded epoch."""
    draft = Draft()
    yield from load_runs(draft, [item.run_id for item in items])
    outcomes = draft.fold(items, decide, now)
    yield from draft.write()
    return outcomes


def _load_waiting(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    ids = sorted(set(run_ids))
    if ids:
        waits = yield Read("waits_of_runs", {"run_ids": ids}, Wait)
        draft.load(Wait, [], waits)
        buffered = yield Read("buffers_of_runs", {"run_ids": ids}, Buffered)
        draft.load(Buffered, [], buffered)


def _forget_waiting(draft: Draft, run_ids: Iterable[str]) -> Generator[Request, Any, None]:
    """Deletes the waits and buffers of the runs that this batch ended."""
    ended = [
        run for run_id in set(run_ids) if (run := draft.find(Run, run_id)) is not None and run.ended_at is not None
    ]
    if ended:
        ids = sorted(run.run_id for run in ended)
        yield DeleteWhere("delete_waits", {"run_ids": ids})
        yield DeleteWhere("delete_buffers", {"run_ids": ids})
