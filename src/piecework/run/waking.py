"""How a run that waits meets an event: it is woken, or the event is kept for its next pause. Pure.

A wait of mode "any" is met by one event. One of mode "all" is met when there is an event of each of its types: those
that came first are kept until the last one is there, and go with it in the same commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.errors import InvalidStateError
from piecework.run import admission
from piecework.run.lifecycle import Status
from piecework.run.parts import encode, keep_patch, write_entries
from piecework.store.items import DispatchResult, NewEntry
from piecework.store.records import Buffered, EventRow, Run, Slot, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.draft import Draft


def offer_to_waiting(draft: Draft, wait: Wait, patch: dict[str, Any], event: EventRow, now: int) -> DispatchResult:
    """Wakes a paused run; for one that runs, or is about to be woken again, the event is kept while there is room."""
    run = draft.get(Run, wait.run_id)
    result = DispatchResult(outcome="buffered", workflow_id=run.workflow_id, trigger_id="", run_id=run.run_id)
    parked = run.status == Status.PAUSED and not run.patched
    kept = draft.of_run(Buffered, run.run_id)
    again = [row for row in kept if row.event_seq == event.seq]  # another of the run's waits, in an earlier commit
    if parked and wait.mode != "all":
        take_kept(draft, again)
        wake(draft, run, "event", with_reason(patch, "event"), now)
        return replace(result, outcome="resumed")
    if again:
        return result
    news = Buffered(run.run_id, event.seq or 0, wait.wait_id, wait.event_type, encode(patch))
    if parked:
        waits = draft.of_run(Wait, run.run_id)
        found = next_met(waits, [*kept, news])
        if found:
            take_kept(draft, [row for row in found if row is not news])
            wake(draft, run, "event", with_reason(joined_patch(waits, found), "event"), now)
            return replace(result, outcome="resumed")
    if len(kept) >= wait.max_buffer and not _is_missing(wait, kept):
        overflow = NewEntry(
            type="watch:overflow", payload=encode({"event_id": event.event_id, "wait_id": wait.wait_id})
        )
        draft.put(write_entries(draft, run, (overflow,), now))
        return replace(result, outcome="dropped", reason="buffer_full")
    draft.add(news)
    return result


def next_met(waits: Sequence[Wait], kept: Sequence[Buffered]) -> list[Buffered]:
    """The kept events that a run goes on with next, oldest first; none while nothing is complete.

    That is the wait that was complete first: one of mode "any" with its event, one of mode "all" with the last of its
    types, for each of which its oldest event counts.
    """
    types: dict[str, set[str]] = {}
    for wait in waits:
        if wait.mode == "all":
            types.setdefault(wait.wait_id, set()).add(wait.event_type)
    found: dict[str, dict[str, Buffered]] = {}
    for row in sorted(kept, key=lambda row: row.event_seq):
        if row.wait_id not in types:
            return [row]
        mine = found.setdefault(row.wait_id, {})
        mine.setdefault(row.event_type, row)
        if mine.keys() >= types[row.wait_id]:
            return list(mine.values())
    return []


def joined_patch(waits: Sequence[Wait], rows: Sequence[Buffered]) -> dict[str, Any]:
    """What a run resumes with: the last event's patch; under "all" with each type's payload as `__events__`."""
    patches = [msgspec.json.decode(row.patch) for row in rows]
    last: dict[str, Any] = patches[-1]
    if not any(wait.mode == "all" and wait.wait_id == rows[0].wait_id for wait in waits):
        return last
    payloads = {row.event_type: patch["__resume_event__"]["payload"] for row, patch in zip(rows, patches, strict=True)}
    return {**last, "__events__": payloads}


def take_kept(draft: Draft, rows: Sequence[Buffered]) -> None:
    """Takes kept events out: the run goes on with them."""
    for row in rows:
        draft.remove(Buffered, *row.identity())


def _is_missing(wait: Wait, kept: Sequence[Buffered]) -> bool:
    """Whether a wait for all of its types has none of this one yet: without room for it, it would never be met."""
    return wait.mode == "all" and not any(
        (row.wait_id, row.event_type) == (wait.wait_id, wait.event_type) for row in kept
    )


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
