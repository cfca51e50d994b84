"""What an event does: to the runs that wait for it, to its triggers, and where it is left to others. Pure.

Each looks at the Draft, refuses by raising, or puts new rows and answers the outcome. A Draft that an item leaves by
raising is as it was before. Nothing here knows a clock, an engine or a kind of work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.run import admission
from piecework.run.admission import Admission, Verdict, admit
from piecework.run.lifecycle import ENDED, Status
from piecework.run.parts import encode, start_successors, tell_to_end, write_entries
from piecework.run.waking import offer_to_waiting
from piecework.store.items import (
    Aborting,
    Accepted,
    Accepting,
    Dispatched,
    Dispatching,
    DispatchResult,
    FannedOut,
    FanningOut,
    NewEntry,
    Route,
)
from piecework.store.records import Delivery, EventRow, Fanout, Run, Signal, Slot, Wait

if TYPE_CHECKING:
    from piecework.store.draft import Draft

HOP_LIMIT = 32
"""How many runs an event may have come by and still start another: a workflow that feeds itself stops here."""

Matcher = Callable[[Wait, EventRow, dict[str, Any]], dict[str, Any] | None]
"""Tells whether an event meets a wait: the patch that the run would resume with, or None."""


def decide_accept(matches: Matcher, draft: Draft, entry: Accepting, now: int) -> Accepted:
    """Wakes or fills the buffers of the runs that wait for an event, then offers it to its triggers.

    Args:
        matches: The rule of the kind of work that registers waits.
        draft: Slots of the routes, waiting runs, their waits and buffers.
        entry: The stored event with its routes and candidate waits.
        now: Microseconds since the epoch.
    """
    event, seq = entry.event, entry.event.seq or 0
    results = _offer_to_all(matches, draft, entry.waits, event, entry.item.payload, now)
    aborting: list[Aborting] = []
    _write_deliveries(draft, seq, results)
    results += _offer_to_triggers(draft, entry.item.routes, event, now, aborting)
    left = [DispatchResult(outcome="pending", workflow_id=name, trigger_id="") for name in entry.pending]
    _write_deliveries(draft, seq, left)
    if entry.rest is not None:
        draft.add(entry.rest)
    return Accepted(
        event_id=event.event_id or "",
        seq=seq,
        duplicate=False,
        dispatched=(*results, *left),
        aborting=tuple(aborting),
        more=entry.rest is not None,
    )


def decide_dispatch(draft: Draft, entry: Dispatching, now: int) -> Dispatched:
    """Offers a pending event to the triggers of its workflow that it matches; then it is pending no more."""
    item, seq = entry.item, entry.event.seq or 0
    draft.remove(Delivery, seq, item.workflow_id, "", "")
    aborting: list[Aborting] = []
    results = _offer_to_triggers(draft, item.routes, entry.event, now, aborting)
    return Dispatched(decided=True, dispatched=tuple(results), aborting=tuple(aborting))


def decide_fanout(matches: Matcher, draft: Draft, entry: FanningOut, now: int) -> FannedOut:
    """Offers an event to the next part of the runs that wait for it, and moves its cursor on."""
    seq = entry.event.seq or 0
    results = _offer_to_all(matches, draft, entry.waits, entry.event, entry.payload, now)
    _write_deliveries(draft, seq, results)
    if entry.rest is None:
        draft.remove(Fanout, seq)
    else:
        draft.put(entry.rest)
    return FannedOut(dispatched=tuple(results), more=entry.rest is not None)


def _write_deliveries(draft: Draft, seq: int, results: list[DispatchResult]) -> None:
    for result in results:
        draft.append(
            Delivery(seq, result.workflow_id, result.trigger_id, result.run_id or "", result.outcome, result.reason)
        )


def _offer_to_all(
    matches: Matcher, draft: Draft, waits: tuple[Wait, ...], event: EventRow, payload: dict[str, Any], now: int
) -> list[DispatchResult]:
    """Each run that waits is met once, by the wait that it registered first.

    Waits that one event is enough for go before those that want one of each type: an event that can wake its run is
    never kept instead.
    """
    met: set[str] = set()
    results: list[DispatchResult] = []
    for wait in sorted(waits, key=lambda w: (w.mode == "all", w.registered_at, w.wait_id)):
        still = wait.run_id not in met and draft.find(Wait, *wait.identity()) is not None  # it may have ended meanwhile
        patch = matches(wait, event, payload) if still else None
        if patch is not None:
            met.add(wait.run_id)
            results.append(offer_to_waiting(draft, wait, patch, event, now))
    return results


# -- triggers ----------------------------------------------------------------------------------------------------


def _offer_to_triggers(
    draft: Draft, routes: tuple[Route, ...], event: EventRow, now: int, aborting: list[Aborting]
) -> list[DispatchResult]:
    """Each outcome is written before the next trigger is asked, which may supersede the run of this one."""
    results: list[DispatchResult] = []
    for route in routes:
        results.append(_offer_to_trigger(draft, route, event, now, aborting))
        _write_deliveries(draft, event.seq or 0, results[-1:])
    return results


def _offer_to_trigger(
    draft: Draft, route: Route, event: EventRow, now: int, aborting: list[Aborting]
) -> DispatchResult:
    result = DispatchResult(outcome="rejected", workflow_id=route.workflow_id, trigger_id=route.trigger_id)
    if route.refused is not None:
        return replace(result, reason=route.refused)
    if event.hops >= HOP_LIMIT:
        return replace(result, reason="loop")
    slot = _slot_of(draft, route, now)
    verdict = admit(slot)
    result = replace(result, outcome=verdict.admission.value, reason=verdict.reason)
    if verdict.admission in _TO_ACTIVE and _is_leaving(draft.get(Run, slot.active_run_id), verdict.admission):
        # It would never read it, or there is nothing left to abort: a run of its own starts as soon as there is room.
        verdict = Verdict(Admission.QUEUE, "closing", supersedes=slot.pending_run_id is not None)
        result = replace(result, outcome=verdict.admission.value, reason=verdict.reason)
    match verdict.admission:
        case Admission.DROP:
            return result
        case Admission.REJECT:
            return replace(result, active_run_id=slot.active_run_id)
        case Admission.SIGNAL:
            return _send_to_active(draft, slot, route, event, now, result)
    if verdict.supersedes and slot.pending_run_id is not None:
        _supersede(draft, slot.pending_run_id, event, now, aborting)
    if verdict.admission is Admission.REPLACE and slot.active_run_id is not None:
        _replace_active(draft, slot.active_run_id, event, now, aborting)
        result = replace(result, active_run_id=slot.active_run_id)
    run = _enter(draft, route, event, now, start=verdict.admission is Admission.START)
    if verdict.admission is Admission.REPLACE:
        start_successors(draft, slot.slot_key, now)  # a paused one has ended with it, and its place is free
    return replace(result, run_id=run.run_id)


_TO_ACTIVE = frozenset({Admission.SIGNAL, Admission.REPLACE})


def _is_leaving(active: Run, admission_: Admission) -> bool:
    """Whether the active run has ended and only keeps its place, or is on its way out and would read no signal."""
    return Status(active.status) in ENDED or (admission_ is Admission.SIGNAL and active.abort_reason is not None)


def _slot_of(draft: Draft, route: Route, now: int) -> Slot:
    """The slot as it stands, under the numbers of the newest registration: the counts are the store's own."""
    stored = draft.get(Slot, route.slot.slot_key)
    slot = admission.governed(stored, route.slot)
    if slot is not stored:
        draft.put(slot)
        start_successors(draft, slot.slot_key, now)
    return draft.get(Slot, slot.slot_key)


def _supersede(draft: Draft, run_id: str, event: EventRow, now: int, aborting: list[Aborting]) -> None:
    """Takes the waiting run of an earlier event out; that event's outcome says so from now on."""
    run, why = draft.get(Run, run_id), f"superseded by event {event.event_id}"
    displaced = DispatchResult(
        outcome="superseded", workflow_id=run.workflow_id, trigger_id=run.trigger_id, run_id=run_id, reason=why
    )
    told = tell_to_end(draft, run, why, now, unheard=True)
    aborting.append(replace(told, displaced=displaced))
    if run.event_seq is not None:
        _write_deliveries(draft, run.event_seq, [displaced])


def _replace_active(draft: Draft, run_id: str, event: EventRow, now: int, aborting: list[Aborting]) -> None:
    active = draft.get(Run, run_id)
    if active.abort_reason is None:
        aborting.append(tell_to_end(draft, active, f"replaced by event {event.event_id}", now))


def _send_to_active(
    draft: Draft, slot: Slot, route: Route, event: EventRow, now: int, result: DispatchResult
) -> DispatchResult:
    run = draft.get(Run, slot.active_run_id)
    send_signal(draft, run, route.patch if route.patch is not None else event.payload, now)
    return replace(result, run_id=run.run_id, active_run_id=run.run_id)


def send_signal(draft: Draft, run: Run, patch: bytes, now: int) -> Run:
    """Keeps a patch for a run that has not ended; its number is that of its timeline entry."""
    # Without the patch, which may hold secrets: what it changed stands with the entry of where the run read it.
    said = NewEntry(source="store", type="run:signalled")
    run = write_entries(draft, run, (said,), now)
    run = replace(run, signals=run.signals + 1)
    draft.put(run)
    draft.add(Signal(run.run_id, run.decision, patch, now))
    return run


def _enter(draft: Draft, route: Route, event: EventRow, now: int, *, start: bool) -> Run:
    """Makes the run of an event that was admitted, due at once or waiting in its slot."""
    slot = draft.get(Slot, route.slot.slot_key)
    slot = (admission.started if start else admission.queued)(slot, route.run_id)
    run = Run(
        run_id=route.run_id,
        kind=route.kind,
        workflow_id=route.workflow_id,
        trigger_id=route.trigger_id,
        pipeline_id=route.pipeline_id,
        slot_key=slot.slot_key,
        place=slot.admitted,
        key_value=route.key,
        space=event.space or "default",
        status=Status.QUEUED,
        stage=None,
        version=route.version,
        event_seq=event.seq,
        telling=int(route.telling),
        hops=event.hops,
        due_at=now if start else None,
        created_at=now,
    )
    said = NewEntry(type="run:started" if start else "run:queued", payload=encode({"event_id": event.event_id}))
    run = write_entries(draft, run, (said,), now)
    draft.add(run)
    draft.put(slot)
    return run
