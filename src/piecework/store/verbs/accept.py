"""`accept`: events become durable together with everything that this node decides about them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.store.contract import Delete, Failure, InsertMissing, Lock, Read, StartAgain, Tell
from piecework.store.draft import Draft
from piecework.store.items import Accept, Accepted, Accepting, DispatchResult
from piecework.store.records import PIECES, Delivery, EventRow, Inbox, RouteRow, Slot, WorkflowRow
from piecework.store.verbs.loading import actives, conclude, load_waiting, lock_runs, lock_slots
from piecework.store.verbs.waiting import first_waits, still_there

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script
    from piecework.store.items import Route
    from piecework.store.verbs.waiting import Candidates


def accept(items: Sequence[Accept], decide: Decide, now: int) -> Script:
    """Stores new events and decides about their triggers and about the runs that wait for them.

    An event id that is there already ends as a duplicate with the first outcomes; nothing else happens for it. A
    workflow that was registered for the event's type, and that whoever accepts it does not have in its newest version,
    gets a pending delivery: see `dispatch`.
    """
    stored = yield from _store_events(items)
    new = [item for item in _first_of_each(items) if _id(item) in stored]
    draft = Draft()
    accepting = yield from _gather(draft, new, stored)
    folded = draft.fold(accepting, decide, now)
    outcomes = {_id(entry.item): outcome for entry, outcome in zip(accepting, folded, strict=True)}
    yield from _tidy(items, stored, outcomes)
    yield from conclude(draft)
    if any(entry.pending or entry.rest for entry in accepting):
        yield Tell(["pending"])
    outcomes |= yield from _earlier([item for item in items if _id(item) not in outcomes])
    return _in_order(items, outcomes)


def _store_events(items: Sequence[Accept]) -> Generator[Request, Any, dict[str, EventRow]]:
    # In order of arrival, which becomes the order of acceptance.
    inserted = yield InsertMissing([item.event for item in _first_of_each(items)], "event_id")
    return {row.event_id: row for row in inserted}


def _gather(
    draft: Draft, new: Sequence[Accept], stored: dict[str, EventRow]
) -> Generator[Request, Any, list[Accepting]]:
    """Looks at what the events may touch, locks it, and looks again."""
    if not new:
        return []
    pending = yield from _pending(new)
    items = [replace(item, routes=_mine(item, pending[_id(item)])) for item in new]
    found = yield from first_waits([(stored[_id(item)], item.payload) for item in items if not item.alone])
    run_ids = {wait.run_id for candidates in found.values() for wait in candidates.waits}
    slots = [route.slot for item in items for route in item.routes if route.refused is None]
    yield from lock_slots(draft, slots, run_ids)
    named = {slot.slot_key: draft.get(Slot, slot.slot_key) for slot in slots}
    roomier = [slot for slot in slots if _has_more_room(named[slot.slot_key], slot)]
    places = max((slot.concurrency for slot in roomier), default=0)
    yield from lock_runs(draft, run_ids | actives(draft, slots), places=places, slots=named.values())
    waits = yield from load_waiting(draft, run_ids)
    there = {wait.identity() for wait in waits}
    return [_accepting(item, stored[_id(item)], pending[_id(item)], found, there) for item in items]


def _accepting(
    item: Accept,
    event: EventRow,
    pending: tuple[str, ...],
    found: dict[int, Candidates],
    there: set[tuple[object, ...]],
) -> Accepting:
    candidates = still_there(found, event, there)
    return Accepting(item=item, event=event, waits=candidates.waits, rest=candidates.rest, pending=pending)


def _pending(items: Sequence[Accept]) -> Generator[Request, Any, dict[str, tuple[str, ...]]]:
    """For each event the workflows that somebody else has to decide about."""
    rows: list[RouteRow] = yield Read(
        "routes_of_types", {"types": sorted({item.event.type for item in items})}, RouteRow
    )
    pending = {
        _id(item): tuple(
            dict.fromkeys(
                row.workflow_id
                for row in (() if item.alone else rows)
                if _is_for(row, item.event.type)
                and (row.workflow_id not in item.known or item.known[row.workflow_id] != row.version)
            )
        )
        for item in items
    }
    names = sorted({name for found in pending.values() for name in found})
    if not names:
        return pending
    # Who retires one of them meanwhile waits for this commit and then drops what it left, or has gone before it.
    there: list[WorkflowRow] = yield Lock(WorkflowRow, [(name,) for name in names], share=True)
    left = {row.workflow_id for row in there}
    return {key: tuple(name for name in found if name in left) for key, found in pending.items()}


def _is_for(row: RouteRow, event_type: str) -> bool:
    """Whether an event of that type reaches a route; only pieces have patterns."""
    patterns = "*" in row.event_type and row.workflow_id.startswith(PIECES)
    return row.event_type == event_type or (patterns and fnmatchcase(event_type, row.event_type))


def _mine(item: Accept, pending: tuple[str, ...]) -> tuple[Route, ...]:
    return tuple(route for route in item.routes if route.workflow_id not in pending)


def _has_more_room(stored: Slot, slot: Slot) -> bool:
    """Whether a trigger's mode leaves more room than the slot's last one did: then queued runs may start."""
    return bool(stored.queued) and (
        slot.concurrency > stored.concurrency or slot.hold_while_paused < stored.hold_while_paused
    )


def _tidy(
    items: Sequence[Accept], stored: dict[str, EventRow], outcomes: dict[str, Any]
) -> Generator[Request, Any, None]:
    """Takes accepted events out of the inbox. One that could not be decided is not kept: it may come again."""
    failed = {key for key, outcome in outcomes.items() if isinstance(outcome, Failure)}
    moved = [(item.inbox_seq,) for item in items if item.inbox_seq is not None and _id(item) not in failed]
    if moved:
        yield Delete(Inbox, moved)
    if failed:
        yield Delete(EventRow, [(stored[key].seq,) for key in sorted(failed)])


def _id(item: Accept) -> str:
    return item.event.event_id or ""


def _first_of_each(items: Sequence[Accept]) -> list[Accept]:
    first: dict[str, Accept] = {}
    for item in items:
        first.setdefault(_id(item), item)
    return list(first.values())


def _earlier(items: Sequence[Accept]) -> Generator[Request, Any, dict[str, Accepted]]:
    """The outcomes that events had when they came first."""
    if not items:
        return {}
    ids = {_id(item) for item in items}
    events = yield Read("events_by_id", {"ids": sorted(ids)}, EventRow)
    if len(events) < len(ids):  # its id was forgotten since it was found there: it may come again
        yield StartAgain()
    rows = yield Read("deliveries_of", {"seqs": [event.seq for event in events]}, Delivery)
    found: dict[str, Accepted] = {}
    for event in events:
        mine = [row for row in rows if row.event_seq == event.seq]
        found[event.event_id] = Accepted(
            event_id=event.event_id, seq=event.seq, duplicate=True, dispatched=tuple(map(_as_duplicate, mine))
        )
    return found


def _as_duplicate(row: Delivery) -> DispatchResult:
    return DispatchResult(
        outcome="duplicate",
        workflow_id=row.workflow_id,
        trigger_id=row.trigger_id,
        run_id=row.run_id or None,
        reason=row.outcome,
    )


def _in_order(items: Sequence[Accept], outcomes: dict[str, Any]) -> list[Any]:
    """One outcome an item; the second of two items with one id is a duplicate of the first."""
    seen: set[str] = set()
    answers: list[Any] = []
    for item in items:
        outcome = outcomes[_id(item)]
        if _id(item) in seen and not isinstance(outcome, Failure) and not outcome.duplicate:
            outcome = _second(outcome)
        seen.add(_id(item))
        answers.append(outcome)
    return answers


def _second(first: Accepted) -> Accepted:
    return Accepted(
        event_id=first.event_id,
        seq=first.seq,
        duplicate=True,
        dispatched=tuple(
            DispatchResult(
                outcome="duplicate",
                workflow_id=result.workflow_id,
                trigger_id=result.trigger_id,
                run_id=result.run_id,
                reason=result.outcome,
            )
            for result in first.dispatched
        ),
    )
