"""The life of a run, from `enqueue` to `cleaned`, and what happens beside it: waits, signals and log lines.

Each locks the run before it reads its waits and buffers, and the run's slot before the run where the slot may change.
What is decided stands in the folds that are handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.store.contract import InsertMissing, Lock, Read, StartAgain, Update
from piecework.store.draft import Draft
from piecework.store.items import (
    Abort,
    Append,
    Cleaned,
    CommitStage,
    EndTold,
    Enqueue,
    Enqueued,
    Park,
    Register,
    Release,
    Resume,
    SendSignal,
    Settle,
    Unresume,
)
from piecework.store.records import Occurrence, Run, Wait
from piecework.store.verbs.loading import (
    decided,
    load_patches,
    load_runs,
    load_signals,
    load_waiting,
    lock_runs,
    lock_slots,
)
from piecework.store.verbs.probes import BUCKET, bucket
from piecework.store.verbs.waiting import wait_fields

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script

FIELDS_LIMIT = 50
"""How many fields of one event type are looked up by value; waits on further ones are looked at one by one."""

_DUE_AT_ONCE = 500


def enqueue(items: Sequence[Enqueue], decide: Decide, now: int) -> Script:
    """Makes runs that no event asked for; a run id, or an occurrence, that is there already is a duplicate.

    An occurrence that may happen again is one only while its run has not ended.
    """
    draft = Draft()
    earlier = yield from _occurrences(items, now)
    mine = [item for item in items if item.occurrence is None or earlier[item.occurrence] == item.run.run_id]
    yield from load_runs(draft, [item.run.run_id for item in mine])
    folded = yield from decided(draft, mine, decide, now)
    outcomes = {id(item): outcome for item, outcome in zip(mine, folded, strict=True)}
    return [
        outcomes[id(item)] if id(item) in outcomes else Enqueued(run_id=earlier[item.occurrence or ""], duplicate=True)
        for item in items
    ]


def _occurrences(items: Sequence[Enqueue], now: int) -> Generator[Request, Any, dict[str, str]]:
    """Which run each occurrence is: the first one that was ever asked for."""
    first: dict[str, Occurrence] = {}
    for item in items:
        if item.occurrence is not None:
            first.setdefault(item.occurrence, Occurrence(item.occurrence, item.run.run_id, now))
    if not first:
        return {}
    inserted: list[Occurrence] = yield InsertMissing(list(first.values()), "occurrence")
    runs = {row.occurrence: row.run_id for row in inserted}
    left = sorted(first.keys() - runs.keys())
    if left:
        rows: list[Occurrence] = yield Read("occurrences_by_key", {"keys": left}, Occurrence)
        runs |= {row.occurrence: row.run_id for row in rows}
        if first.keys() - runs.keys():  # forgotten since it was found there: it may happen again
            yield StartAgain()
    again = sorted({item.occurrence for item in items if item.again and item.occurrence in left} - {None})
    if again:
        runs |= yield from _ended(first, again)
    return runs


def _ended(first: dict[str, Occurrence], keys: Sequence[str]) -> Generator[Request, Any, dict[str, str]]:
    """Which run each occurrence is that may happen again: a new one where its last one has ended."""
    rows: list[Occurrence] = yield Lock(Occurrence, [(key,) for key in keys])
    if len(rows) < len(keys):
        yield StartAgain()
    # Not locked: a run that is seen to have ended stays so, and one that ends this moment may stand for this call.
    found: list[Run] = yield Read("runs_by_id", {"run_ids": sorted({row.run_id for row in rows})}, Run)
    alive = {run.run_id for run in found if run.ended_at is None}
    anew = [first[row.occurrence] for row in rows if row.run_id not in alive]
    if anew:
        yield Update(anew)
    return {row.occurrence: row.run_id for row in [*rows, *anew]}


def commit_stage(items: Sequence[CommitStage], decide: Decide, now: int) -> Script:
    """Ends stages: state, timeline and what comes next in one commit.

    A run whose abort was asked for is left as it is and its outcome says so. A run that parks beside a buffered event
    is resumed at once and stays with its owner. Signals that the state does not hold yet are answered.
    """
    draft = Draft()
    run_ids = [item.run_id for item in items]
    parking = [item.run_id for item in items if isinstance(item.then, Park)]
    if parking:
        yield from lock_slots(draft, (), parking)
    yield from lock_runs(draft, run_ids, places=len(parking))
    if parking:
        yield from load_waiting(draft, parking)
        items = yield from _indexed(items)
    yield from load_signals(draft, run_ids)
    repeats = [item.run_id for item in items if _is_repeat(draft, item)]
    if repeats:
        yield from load_patches(draft, repeats)
    return (yield from decided(draft, items, decide, now))


def _is_repeat(draft: Draft, item: CommitStage) -> bool:
    run = draft.find(Run, item.run_id)
    return run is not None and run.visit == item.visit + 1


def _indexed(items: Sequence[CommitStage]) -> Generator[Request, Any, list[CommitStage]]:
    """The items with their waits as they are to be found."""
    waits = [wait for item in items if isinstance(item.then, Park) for wait in item.then.waits]
    found = yield from _findable(waits)
    return [
        replace(item, then=replace(item.then, waits=tuple(found[wait.identity()] for wait in item.then.waits)))
        if isinstance(item.then, Park)
        else item
        for item in items
    ]


def _findable(waits: Sequence[Wait]) -> Generator[Request, Any, dict[tuple[object, ...], Wait]]:
    """Waits by their keys; one on a field beyond the limit of its type stands in the type's bucket."""
    types = {wait.event_type for wait in waits if wait.field != BUCKET}
    fields = {event_type: set(known) for event_type, known in (yield from wait_fields(types)).items()}
    found: dict[tuple[object, ...], Wait] = {}
    for wait in waits:
        if wait.field != BUCKET:
            known = fields[wait.event_type]
            if wait.field not in known and len(known) >= FIELDS_LIMIT:
                found[wait.identity()] = replace(wait, field=BUCKET, probe=bucket(wait.event_type))
                continue
            known.add(wait.field)
        found[wait.identity()] = wait
    return found


def settle(items: Sequence[Settle], decide: Decide, now: int) -> Script:
    """Ends runs: terminal status, result and error; what they waited for is forgotten. The slot is closing.

    A run whose end somebody wants to hear of keeps its place in the slot until they have.
    """
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    yield from load_signals(draft, run_ids)
    return (yield from decided(draft, items, decide, now))


def end_told(items: Sequence[EndTold], decide: Decide, now: int) -> Script:
    """Notes that the ends of runs have been heard of: from here on their slots are closing."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    return (yield from decided(draft, items, decide, now))


def cleaned(items: Sequence[Cleaned], decide: Decide, now: int) -> Script:
    """Frees the slots of ended runs and lets their successors start."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from lock_runs(draft, run_ids, places=len(items))
    return (yield from decided(draft, items, decide, now))


def release(items: Sequence[Release], decide: Decide, now: int) -> Script:
    """Gives runs back unfinished: whoever claims them next begins at their last checkpoint."""
    draft = Draft()
    yield from load_runs(draft, [item.run_id for item in items])
    return (yield from decided(draft, items, decide, now))


def resume(items: Sequence[Resume], decide: Decide, now: int) -> Script:
    """Wakes paused runs; the loser of a race is told INVALID_STATE and changes nothing."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    yield from load_patches(draft, run_ids)
    return (yield from decided(draft, items, decide, now))


def unresume(items: Sequence[Unresume], decide: Decide, now: int) -> Script:
    """Pauses woken runs again that could not go on; each is woken once more later, with the patch that it had."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from lock_runs(draft, run_ids, places=len(items))
    yield from load_waiting(draft, run_ids)
    return (yield from decided(draft, items, decide, now))


def signal(items: Sequence[SendSignal], decide: Decide, now: int) -> Script:
    """Keeps patches for unended runs, which merge them at their next commit."""
    draft = Draft()
    yield from load_runs(draft, [item.run_id for item in items])
    return (yield from decided(draft, items, decide, now))


def abort(items: Sequence[Abort], decide: Decide, now: int) -> Script:
    """Ends queued and paused runs at once and asks the owner of a running one to."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from lock_slots(draft, (), run_ids)
    yield from lock_runs(draft, run_ids, places=len(items) + 1)
    return (yield from decided(draft, items, decide, now))


def due(items: Sequence[Any], decide: Decide, now: int) -> Script:
    """Wakes paused runs whose deadline has passed; every item is one look at the clock and its outcome a count."""
    draft = Draft()
    peeked = yield Read("expired_runs", {"now": now, "limit": _DUE_AT_ONCE}, Run)
    run_ids = [run.run_id for run in peeked]
    yield from lock_slots(draft, (), run_ids)
    yield from load_runs(draft, run_ids)
    yield from load_patches(draft, run_ids)
    wakes = [Resume(run_id=run_id, reason="timeout") for run_id in run_ids]
    # Whoever was faster than the clock has won: those outcomes are failures that nobody waits for.
    yield from decided(draft, wakes, decide, now)
    return [len(run_ids)] * len(items)


def register_waits(items: Sequence[Register], decide: Decide, now: int) -> Script:
    """Registers and cancels what running runs wait for; from this commit on matching events are kept for them."""
    draft = Draft()
    run_ids = [item.run_id for item in items]
    yield from load_runs(draft, run_ids)
    yield from load_waiting(draft, run_ids)
    found = yield from _findable([wait for item in items for wait in item.waits])
    indexed = [replace(item, waits=tuple(found[wait.identity()] for wait in item.waits)) for item in items]
    return (yield from decided(draft, indexed, decide, now))


def append(items: Sequence[Append], decide: Decide, now: int) -> Script:
    """Adds log lines and progress to timelines; refused for a superseded epoch."""
    draft = Draft()
    # Where nothing of the run changes the lock is shared: a commit of its own may not pass in between, other lines may.
    share = all(item.progress is None for item in items)
    ids = sorted({item.run_id for item in items})
    rows = yield Lock(Run, [(run_id,) for run_id in ids], share=share)
    draft.load(Run, [(run_id,) for run_id in ids], rows)
    return (yield from decided(draft, items, decide, now))
