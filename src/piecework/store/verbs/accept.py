"""`accept`: events become durable together with everything that this node decides about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import Delete, Failure, InsertMissing, Read
from piecework.store.draft import Draft
from piecework.store.items import Accept, Accepted, Accepting, DispatchResult
from piecework.store.records import Buffered, Delivery, EventRow, Slot, Wait
from piecework.store.verbs.loading import load_queues, load_runs, lock_slots
from piecework.store.verbs.probes import probes_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script


def accept(items: Sequence[Accept], decide: Decide, now: int) -> Script:
    """Stores new events and decides about their triggers and about the runs that wait for them.

    An event id that is there already ends as a duplicate with the first outcomes; nothing else happens for it.
    """
    stored = yield from _store_events(items)
    new = [item for item in items if stored.get(_id(item)) is not None]
    draft = Draft()
    waits = yield from _candidates(_first_of_each(new))
    run_ids = {wait.run_id for found in waits.values() for wait in found}
    slots = [route.slot for item in new for route in item.routes if route.refused is None]
    yield from lock_slots(draft, slots, run_ids)
    yield from load_runs(draft, run_ids)
    changed = {slot.slot_key: slot for slot in slots if _has_more_room(draft, slot)}
    yield from load_queues(draft, changed, max((slot.concurrency for slot in changed.values()), default=0))
    if run_ids:
        waits = yield from _reread(draft, waits, run_ids)
    accepting = [
        Accepting(item=item, event=stored[_id(item)], waits=tuple(waits.get(_id(item), ())))
        for item in _first_of_each(new)
    ]
    folded = draft.fold(accepting, decide, now)
    outcomes = {_id(entry.item): outcome for entry, outcome in zip(accepting, folded, strict=True)}
    yield from draft.write()
    # An event that could not be decided is not kept either: published again, it must not pass for a duplicate.
    refused = [(stored[key].seq,) for key, outcome in outcomes.items() if isinstance(outcome, Failure)]
    if refused:
        yield Delete(EventRow, refused)
    outcomes |= yield from _earlier([item for item in items if _id(item) not in outcomes])
    return _in_order(items, outcomes)


def _has_more_room(draft: Draft, slot: Slot) -> bool:
    """Whether a trigger's mode leaves more room than the slot's last one did: then queued runs may start."""
    stored = draft.get(Slot, slot.slot_key)
    return bool(stored.queued) and (
        slot.concurrency > stored.concurrency or slot.hold_while_paused < stored.hold_while_paused
    )


def _id(item: Accept) -> str:
    return item.event.event_id or ""


def _first_of_each(items: Sequence[Accept]) -> list[Accept]:
    first: dict[str, Accept] = {}
    for item in items:
        first.setdefault(_id(item), item)
    return list(first.values())


def _store_events(items: Sequence[Accept]) -> Generator[Request, Any, dict[str, EventRow]]:
    # In order of arrival, which becomes the order of acceptance: queues go by it.
    inserted = yield InsertMissing([item.event for item in _first_of_each(items)], "event_id")
    return {row.event_id: row for row in inserted}


def _candidates(items: Sequence[Accept]) -> Generator[Request, Any, dict[str, list[Wait]]]:
    """Peeks at the waits that each event may match."""
    fields: dict[str, list[str]] = {}
    for event_type in dict.fromkeys(item.event.type for item in items):
        rows = yield Read("wait_fields", {"type": event_type})
        fields[event_type] = [row[0] for row in rows]
    wanted = {
        _id(item): probes_of(item.event.type, item.payload, fields[item.event.type])
        for item in items
        if fields[item.event.type]
    }
    if not wanted:
        return {}
    rows = yield Read("waits_by_probe", {"probes": sorted({p for found in wanted.values() for p in found})}, Wait)
    return {key: [row for row in rows if row.probe in found] for key, found in wanted.items()}


def _reread(
    draft: Draft, peeked: dict[str, list[Wait]], run_ids: set[str]
) -> Generator[Request, Any, dict[str, list[Wait]]]:
    """Under the locks of their runs: drops waits that have gone meanwhile, loads what is buffered."""
    rows = yield Read("waits_of_runs", {"run_ids": sorted(run_ids)}, Wait)
    there = {row.identity() for row in rows}
    draft.load(Wait, [], rows)
    buffered = yield Read("buffers_of_runs", {"run_ids": sorted(run_ids)}, Buffered)
    draft.load(Buffered, [], buffered)
    return {key: [wait for wait in found if wait.identity() in there] for key, found in peeked.items()}


def _earlier(items: Sequence[Accept]) -> Generator[Request, Any, dict[str, Accepted]]:
    """The outcomes that events had when they came first."""
    if not items:
        return {}
    events = yield Read("events_by_id", {"ids": sorted({_id(item) for item in items})}, EventRow)
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
            outcome = Accepted(
                event_id=outcome.event_id,
                seq=outcome.seq,
                duplicate=True,
                dispatched=tuple(
                    DispatchResult(
                        outcome="duplicate",
                        workflow_id=result.workflow_id,
                        trigger_id=result.trigger_id,
                        run_id=result.run_id,
                        reason=result.outcome,
                    )
                    for result in outcome.dispatched
                ),
            )
        seen.add(_id(item))
        answers.append(outcome)
    return answers
