"""How a run that waits meets an event: it is woken, or the event is kept for its next pause. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.errors import InvalidStateError
from piecework.run import admission
from piecework.run.lifecycle import Status
from piecework.run.parts import encode, keep_patch, write_entries
from piecework.store.items import DispatchResult, NewEntry
from piecework.store.records import Buffered, EventRow, Run, Slot, Wait

if TYPE_CHECKING:
    from piecework.store.draft import Draft


def offer_to_waiting(draft: Draft, wait: Wait, patch: dict[str, Any], event: EventRow, now: int) -> DispatchResult:
    """Wakes a paused run; for one that runs, or is about to be woken again, the event is kept while there is room."""
    run = draft.get(Run, wait.run_id)
    result = DispatchResult(outcome="buffered", workflow_id=run.workflow_id, trigger_id="", run_id=run.run_id)
    if run.status == Status.PAUSED and not run.patched:
        wake(draft, run, "event", with_reason(patch, "event"), now)
        return replace(result, outcome="resumed")
    if len(draft.of_run(Buffered, run.run_id)) >= wait.max_buffer:
        overflow = NewEntry(type="watch:overflow", payload=encode({"event_id": event.event_id}))
        draft.put(write_entries(draft, run, (overflow,), now))
        return replace(result, outcome="dropped", reason="buffer_full")
    draft.add(Buffered(run.run_id, event.seq or 0, wait.wait_id, encode(patch)))
    return result


def wake(draft: Draft, run: Run, reason: str, patch: bytes | None, now: int) -> Run:
    """Makes a paused run due, with what it will merge; None: with what it has.

    Raises:
        InvalidStateError: It is not paused (any more).
    """
    if run.status != Status.PAUSED:
        raise InvalidStateError(
            f"run {run.run_id} is {run.status}, not paused, so it cannot be resumed",
            run_id=run.run_id,
            status=run.status,
        )
    woken = replace(
        run,
        status=Status.RUNNING,
        due_at=now,
        paused_at=None,
        expires_at=None,
        waiting_for=None,
        resume_count=run.resume_count + 1,
    )
    woken = write_entries(draft, woken, (NewEntry(type="run:resumed", payload=encode({"reason": reason})),), now)
    if patch is not None:
        woken = keep_patch(draft, woken, patch)
    draft.put(woken)
    if run.slot_key is not None:
        draft.put(admission.woken(draft.get(Slot, run.slot_key), run.run_id))
    return woken


def with_reason(patch: dict[str, Any], reason: str) -> bytes:
    """A resume's patch as it is stored."""
    return encode({"__resume_event__": None, **patch, "__resume_reason__": reason})
