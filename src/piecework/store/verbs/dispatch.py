"""`dispatch` and `continue_fanout`: what was left of events when they were accepted.

An event waits for its workflow where whoever accepted it did not have the workflow's newest version: a client, a
transaction of the user's, a node in the middle of a rolling deploy. And an event that more runs wait for than one
commit wakes goes on from a durable cursor; a later event may overtake it there, and a wait registered meanwhile is hit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from piecework.store.contract import Failure, Lock, Read
from piecework.store.draft import Draft
from piecework.store.items import ContinueFanout, Dispatch, Dispatched, Dispatching, FannedOut, FanningOut
from piecework.store.records import Delivery, EventRow, Fanout, RouteRow, Slot
from piecework.store.verbs.loading import actives, conclude, load_waiting, lock_runs, lock_slots
from piecework.store.verbs.waiting import more_waits, still_there

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script

PENDING = "pending"


def dispatch(items: Sequence[Dispatch], decide: Decide, now: int) -> Script:
    """Decides pending events at their workflows; one that is decided already, or is for a newer version, stays."""
    draft = Draft()
    keys = sorted({_key(item) for item in items})
    rows: list[Delivery] = yield Lock(Delivery, keys)
    draft.load(Delivery, keys, rows)
    newest = yield from _newest(items)
    open_ = {row.identity() for row in rows if row.outcome == PENDING}
    mine: list[Dispatch] = []
    for item in items:
        if _key(item) in open_ and newest.get(item.workflow_id, item.version) == item.version:
            open_.discard(_key(item))
            mine.append(item)
    if not mine:
        return [Dispatched(decided=False) for _ in items]
    events = yield from _events([item.event_seq for item in mine])
    slots = [route.slot for item in mine for route in item.routes if route.refused is None]
    yield from lock_slots(draft, slots, ())
    named = {slot.slot_key: draft.get(Slot, slot.slot_key) for slot in slots}
    places = max((slot.concurrency for slot in slots), default=0)
    yield from lock_runs(draft, actives(draft, slots), places=places, slots=named.values())
    folded = draft.fold([Dispatching(item=item, event=events[item.event_seq]) for item in mine], decide, now)
    yield from conclude(draft)
    outcomes = {id(item): outcome for item, outcome in zip(mine, folded, strict=True)}
    return [outcomes.get(id(item), Dispatched(decided=False)) for item in items]


def _key(item: Dispatch) -> tuple[int, str, str, str]:
    return (item.event_seq, item.workflow_id, "", "")


def _newest(items: Sequence[Dispatch]) -> Generator[Request, Any, dict[str, str | None]]:
    ids = sorted({item.workflow_id for item in items})
    rows: list[RouteRow] = yield Read("routes_of_workflows", {"workflow_ids": ids}, RouteRow)
    return {row.workflow_id: row.version for row in rows}


def _events(seqs: Sequence[int]) -> Generator[Request, Any, dict[int, EventRow]]:
    rows: list[EventRow] = yield Read("events_by_seq", {"seqs": sorted(set(seqs))}, EventRow)
    return {row.seq: row for row in rows if row.seq is not None}


def continue_fanout(items: Sequence[ContinueFanout], decide: Decide, now: int) -> Script:
    """Offers an event to the next part of the runs that wait for it; two fan-outs share no commit: each is wide."""
    outcomes: dict[int, Any] = {}
    for seq in sorted({item.event_seq for item in items})[:1]:
        outcomes[seq] = yield from _next_part(seq, decide, now)
    return [outcomes.get(item.event_seq, FannedOut(dispatched=(), more=True)) for item in items]


def _next_part(seq: int, decide: Decide, now: int) -> Generator[Request, Any, Any]:
    draft = Draft()
    rows: list[Fanout] = yield Lock(Fanout, [(seq,)])
    draft.load(Fanout, [(seq,)], rows)
    events = yield from _events([seq])
    if not rows or seq not in events:
        return FannedOut(dispatched=(), more=False)
    event, payload = events[seq], msgspec.json.decode(events[seq].payload)
    candidates = yield from more_waits(event, payload, rows[0])
    run_ids = {wait.run_id for wait in candidates.waits}
    yield from lock_slots(draft, (), run_ids)
    yield from lock_runs(draft, run_ids)
    waits = yield from load_waiting(draft, run_ids)
    told: list[Delivery] = yield Read("deliveries_of_runs", {"seq": seq, "run_ids": sorted(run_ids)}, Delivery)
    left = still_there({seq: candidates}, event, {wait.identity() for wait in waits})
    met = {row.run_id for row in told}
    fresh = tuple(wait for wait in left.waits if wait.run_id not in met)
    (outcome,) = draft.fold([FanningOut(event=event, payload=payload, waits=fresh, rest=candidates.rest)], decide, now)
    if not isinstance(outcome, Failure):
        yield from conclude(draft)
    return outcome
