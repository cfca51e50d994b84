"""The folds that the verbs are handed: what one item does to the rows, decided by the pure files. Pure.

Each looks at the Draft, refuses by raising, or puts new rows and answers the outcome. A Draft that an item leaves by
raising is as it was before. Nothing here knows a clock, an engine or a kind of work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.errors import InvalidStateError, NotFoundError, StaleEpochError
from piecework.run.admission import Admission, admit, startable
from piecework.run.lifecycle import ENDED, Status, check_move
from piecework.store.items import (
    Abort,
    Aborted,
    Accepted,
    Accepting,
    Append,
    Cleaned,
    CommitStage,
    Continue,
    Defer,
    DispatchResult,
    Enqueue,
    Enqueued,
    NewEntry,
    Park,
    Progress,
    Register,
    Release,
    Resume,
    Route,
    Settle,
)
from piecework.store.records import Buffered, Delivery, Entry, Run, RunValue, Slot, Wait

if TYPE_CHECKING:
    from piecework.store.draft import Draft

Matcher = Callable[[Wait, Accepting], dict[str, Any] | None]
"""Tells whether an event meets a wait: the patch that the run would resume with, or None."""

_json = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """JSON bytes of a value that is known to be JSON."""
    return _json.encode(value)


def write_entries(draft: Draft, run: Run, entries: tuple[NewEntry, ...], now: int) -> Run:
    """Appends decision entries to a run's timeline and answers the run with its counter moved on."""
    number = run.decision
    for entry in entries:
        number += 1
        draft.append(
            Entry(run.run_id, number, run.attempt, 0, now, entry.source, entry.type, entry.path, entry.payload)
        )
    return replace(run, decision=number)


def decide_accept(matches: Matcher, draft: Draft, entry: Accepting, now: int) -> Accepted:
    """Wakes or fills the buffers of the runs that wait for an event, then offers it to its triggers.

    Args:
        matches: The rule of the kind of work that registers waits.
        draft: Slots of the routes, waiting runs, their waits and buffers.
        entry: The stored event with its routes and candidate waits.
        now: Microseconds since the epoch.
    """
    seq = entry.event.seq or 0
    results: list[DispatchResult] = []
    met: set[str] = set()
    for wait in sorted(entry.waits, key=lambda w: (w.registered_at, w.wait_id)):
        patch = matches(wait, entry) if wait.run_id not in met else None
        if patch is not None:
            met.add(wait.run_id)
            results.append(_offer_to_waiting(draft, wait, patch, entry, now))
    results += [_offer_to_trigger(draft, route, entry, now) for route in entry.item.routes]
    for result in results:
        draft.append(
            Delivery(seq, result.workflow_id, result.trigger_id, result.run_id or "", result.outcome, result.reason)
        )
    return Accepted(event_id=entry.event.event_id or "", seq=seq, duplicate=False, dispatched=tuple(results))


def _offer_to_waiting(draft: Draft, wait: Wait, patch: dict[str, Any], entry: Accepting, now: int) -> DispatchResult:
    run = draft.get(Run, wait.run_id)
    if run.status == Status.PAUSED:
        _wake(draft, run, "event", patch, now)
        return DispatchResult(outcome="resumed", workflow_id=run.workflow_id, trigger_id="", run_id=run.run_id)
    kept = [row for row in draft.all(Buffered) if row.run_id == run.run_id]
    result = DispatchResult(outcome="buffered", workflow_id=run.workflow_id, trigger_id="", run_id=run.run_id)
    if len(kept) >= wait.max_buffer:
        overflow = NewEntry(type="watch:overflow", payload=encode({"event_id": entry.event.event_id}))
        draft.put(write_entries(draft, run, (overflow,), now))
        return replace(result, outcome="dropped", reason="buffer_full")
    draft.add(Buffered(run.run_id, entry.event.seq or 0, wait.wait_id, encode(patch)))
    return result


def _offer_to_trigger(draft: Draft, route: Route, entry: Accepting, now: int) -> DispatchResult:
    if route.refused is not None:
        return DispatchResult(
            outcome="rejected", workflow_id=route.workflow_id, trigger_id=route.trigger_id, reason=route.refused
        )
    stored = draft.get(Slot, route.slot.slot_key)
    # The numbers of the newest registration hold; the counts are the store's own.
    slot = replace(
        stored,
        mode=route.slot.mode,
        concurrency=route.slot.concurrency,
        capacity=route.slot.capacity,
        hold_while_paused=route.slot.hold_while_paused,
    )
    if slot != stored:
        draft.put(slot)
        start_successors(draft, slot.slot_key, now)
        slot = draft.get(Slot, slot.slot_key)
    verdict = admit(slot)
    result = DispatchResult(
        outcome=verdict.admission.value,
        workflow_id=route.workflow_id,
        trigger_id=route.trigger_id,
        reason=verdict.reason,
    )
    if verdict.admission is Admission.DROP:
        return result
    started = verdict.admission is Admission.START
    run = Run(
        run_id=route.run_id,
        kind=route.kind,
        workflow_id=route.workflow_id,
        trigger_id=route.trigger_id,
        pipeline_id=route.pipeline_id,
        slot_key=slot.slot_key,
        key_value=route.key,
        space=entry.event.space or "default",
        status=Status.QUEUED,
        stage=None,
        version=route.version,
        event_seq=entry.event.seq,
        due_at=now if started else None,
        created_at=now,
    )
    said = NewEntry(type=f"run:{verdict.admission}", payload=encode({"event_id": entry.event.event_id}))
    draft.add(write_entries(draft, run, (said,), now))
    draft.put(replace(slot, live=slot.live + 1) if started else replace(slot, queued=slot.queued + 1))
    return replace(result, run_id=run.run_id)


def decide_enqueue(draft: Draft, item: Enqueue, now: int) -> Enqueued:
    """Makes a run that no event asked for."""
    run = item.run
    if draft.find(Run, run.run_id) is not None:
        return Enqueued(run_id=run.run_id, duplicate=True)
    run = replace(run, created_at=now, due_at=now if run.due_at is None else run.due_at)
    draft.add(write_entries(draft, run, (NewEntry(type="run:queued"),), now))
    draft.append(RunValue(run.run_id, "args", item.args))
    return Enqueued(run_id=run.run_id, duplicate=False)


def decide_claim(draft: Draft, pair: tuple[str, str], now: int) -> Run:
    """Hands a run to an owner: epoch raised, attempt counted, before anything of it starts."""
    owner, run_id = pair
    run = draft.get(Run, run_id)
    if run.cleaned:
        raise NotFoundError(f"run {run_id} has ended", run_id=run_id)
    if Status(run.status) in ENDED:
        run = replace(run, owner=owner, epoch=run.epoch + 1, due_at=None)
        draft.put(run)
        return run
    check_move(run_id, run.status, Status.RUNNING)
    claimed = replace(
        run,
        status=Status.RUNNING,
        owner=owner,
        epoch=run.epoch + 1,
        attempt=run.attempt + 1,
        due_at=None,
        started_at=now if run.started_at is None else run.started_at,
    )
    said = NewEntry(type="run:claimed", payload=encode({"attempt": claimed.attempt, "epoch": claimed.epoch}))
    claimed = write_entries(draft, claimed, (said,), now)
    draft.put(claimed)
    return claimed


def decide_commit_stage(draft: Draft, item: CommitStage, now: int) -> Progress:
    """Ends a stage: writes its state, then continues, parks (or wakes at once) or defers the run."""
    run = _owned(draft, item.run_id, item.epoch)
    if run.visit == item.visit + 1:
        return _repeated(draft, run, item)
    _check_held(run)
    if run.visit != item.visit or Status(run.status) is not Status.RUNNING:
        raise InvalidStateError(
            f"run {run.run_id} {_words(run)} and has {run.visit} stages behind it: the end of its stage {item.visit} "
            "is not what comes next",
            run_id=run.run_id,
            status=run.status,
        )
    if run.abort_reason is not None:
        return Progress(outcome="aborted", reason=run.abort_reason, decision=run.decision)
    run = replace(run, visit=run.visit + 1, attempt=0)
    run = write_entries(draft, run, item.entries, now)
    draft.append(RunValue(run.run_id, "state", item.state))
    draft.remove(RunValue, run.run_id, "patch")
    match item.then:
        case Continue(stage=stage):
            draft.put(replace(run, stage=stage))
            return Progress(outcome="continued", decision=run.decision)
        case Defer(due_at=due_at):
            check_move(run.run_id, run.status, Status.QUEUED)
            draft.put(replace(run, status=Status.QUEUED, owner=None, due_at=due_at))
            return Progress(outcome="deferred", decision=run.decision)
        case Park():
            return _park(draft, run, item.then, now)


def _repeated(draft: Draft, run: Run, item: CommitStage) -> Progress:
    """The answer to a commit that was made already and whose reply was lost."""
    if run.abort_reason is not None:
        return Progress(outcome="aborted", reason=run.abort_reason, decision=run.decision)
    if isinstance(item.then, Park):
        if run.owner is not None:  # woken at once: the run is still its owner's, who has to go on with the patch
            patch = draft.get(RunValue, run.run_id, "patch").data
            return Progress(outcome="resumed", patch=patch, decision=run.decision)
        return Progress(outcome="parked", decision=run.decision)
    return Progress(outcome="deferred" if isinstance(item.then, Defer) else "continued", decision=run.decision)


def _park(draft: Draft, run: Run, park: Park, now: int) -> Progress:
    _replace_stage_waits(draft, run, park, now)
    waits = [wait for wait in draft.all(Wait) if wait.run_id == run.run_id]
    run = replace(run, stage=park.stage)
    buffered = sorted((row for row in draft.all(Buffered) if row.run_id == run.run_id), key=lambda row: row.event_seq)
    if buffered:
        first = buffered[0]
        draft.remove(Buffered, *first.identity())
        patch = _patch_with_reason(msgspec.json.decode(first.patch), "event")
        draft.append(RunValue(run.run_id, "patch", patch))
        said = NewEntry(type="run:resumed", payload=encode({"reason": "event", "buffered": True}))
        run = write_entries(draft, replace(run, resume_count=run.resume_count + 1), (said,), now)
        draft.put(run)
        return Progress(outcome="resumed", patch=patch, decision=run.decision)
    check_move(run.run_id, run.status, Status.PAUSED)
    timeouts = [t for t in (park.timeout, *(wait.timeout for wait in waits)) if t is not None]
    waiting_for = sorted({wait.event_type for wait in waits})
    said = NewEntry(type="run:paused", payload=encode({"waiting_for": waiting_for}))
    run = replace(
        run,
        status=Status.PAUSED,
        owner=None,
        paused_at=now,
        expires_at=now + min(timeouts) if timeouts else None,
        waiting_for=encode(waiting_for).decode(),
    )
    draft.put(write_entries(draft, run, (said,), now))
    if run.slot_key is not None:
        slot = draft.get(Slot, run.slot_key)
        draft.put(replace(slot, paused=slot.paused + 1))
        start_successors(draft, run.slot_key, now)
    return Progress(outcome="parked", decision=run.decision)


def _replace_stage_waits(draft: Draft, run: Run, park: Park, now: int) -> None:
    """Registers what this pause waits for and forgets what earlier stages waited for, with what was kept for them.

    A stage that waits for the same again, in a loop, keeps what came in between.
    """
    asked = {wait.identity(): wait.clauses for wait in park.waits}
    for wait in draft.all(Wait):
        if wait.run_id == run.run_id and wait.stage and asked.get(wait.identity()) != wait.clauses:
            draft.remove(Wait, *wait.identity())
            _forget_buffered(draft, run.run_id, {wait.wait_id})
    for wait in park.waits:
        draft.add(replace(wait, registered_at=now))


def _forget_buffered(draft: Draft, run_id: str, wait_ids: set[str]) -> None:
    for row in draft.all(Buffered):
        if row.run_id == run_id and row.wait_id in wait_ids:
            draft.remove(Buffered, *row.identity())


def decide_register(draft: Draft, item: Register, now: int) -> int:
    """Registers waits of a running run, and cancels earlier ones (None: all) with what was kept for them."""
    run = _owned(draft, item.run_id, item.epoch)
    _check_held(run)
    mine = [wait for wait in draft.all(Wait) if wait.run_id == run.run_id]
    doomed = mine if item.cancel is None else [wait for wait in mine if wait.wait_id in item.cancel]
    for wait in doomed:
        draft.remove(Wait, *wait.identity())
    _forget_buffered(draft, run.run_id, {wait.wait_id for wait in doomed})
    for wait in item.waits:
        draft.add(replace(wait, registered_at=now))
    return len({wait.identity() for wait in draft.all(Wait) if wait.run_id == run.run_id})


def decide_resume(draft: Draft, item: Resume, now: int) -> Run:
    """Wakes a paused run; raises INVALID_STATE when it is not paused (any more)."""
    run = _known(draft, item.run_id)
    if item.stage is not None:
        run = replace(run, stage=item.stage)
    return _wake(draft, run, item.reason, item.patch, now)


def _wake(draft: Draft, run: Run, reason: str, patch: dict[str, Any], now: int) -> Run:
    if run.status != Status.PAUSED:
        raise InvalidStateError(
            f"run {run.run_id} is {run.status}, not paused, so it cannot be resumed",
            run_id=run.run_id,
            status=run.status,
        )
    said = NewEntry(type="run:resumed", payload=encode({"reason": reason}))
    woken = replace(
        run,
        status=Status.RUNNING,
        due_at=now,
        paused_at=None,
        expires_at=None,
        waiting_for=None,
        resume_count=run.resume_count + 1,
    )
    woken = write_entries(draft, woken, (said,), now)
    draft.put(woken)
    draft.append(RunValue(run.run_id, "patch", _patch_with_reason(patch, reason)))
    if run.slot_key is not None:
        slot = draft.get(Slot, run.slot_key)
        draft.put(replace(slot, paused=slot.paused - 1))
    return woken


def _patch_with_reason(patch: dict[str, Any], reason: str) -> bytes:
    return encode({"__resume_event__": None, **patch, "__resume_reason__": reason})


def decide_settle(draft: Draft, item: Settle, now: int) -> str:
    """Ends a run; an abort that was promised before wins over whatever the run came to. Answers the final status."""
    run = _owned(draft, item.run_id, item.epoch)
    if Status(run.status) in ENDED:
        return run.status
    _check_held(run)
    status = Status.ABORTED if run.abort_reason is not None else Status(item.status)
    check_move(run.run_id, run.status, status)
    error = item.error if run.abort_reason is None else abort_error(run.run_id, run.abort_reason)
    run = write_entries(draft, run, (*item.entries, NewEntry(type=f"run:{status}", payload=_bytes(error))), now)
    ended = replace(run, status=status, ended_at=now, due_at=None, expires_at=None, error=error, outcome=item.outcome)
    draft.put(ended)
    if item.state is not None:
        draft.append(RunValue(run.run_id, "state", item.state))
    if item.result is not None:
        draft.append(RunValue(run.run_id, "result", item.result))
    draft.remove(RunValue, run.run_id, "patch")
    if run.slot_key is not None:
        slot = draft.get(Slot, run.slot_key)
        draft.put(replace(slot, live=slot.live - 1, closing=slot.closing + 1))
    return status


def decide_cleaned(draft: Draft, item: Cleaned, now: int) -> int:
    """Frees an ended run's slot and starts successors; answers how many."""
    run = _owned(draft, item.run_id, item.epoch)
    if run.cleaned:
        return 0
    if Status(run.status) not in ENDED:
        raise InvalidStateError(
            f"run {run.run_id} {_words(run)}: only a run that has ended can be clean",
            run_id=run.run_id,
            status=run.status,
        )
    _check_held(run)
    draft.put(replace(run, cleaned=1, owner=None))
    if run.slot_key is None:
        return 0
    slot = draft.get(Slot, run.slot_key)
    draft.put(replace(slot, closing=slot.closing - 1))
    return start_successors(draft, run.slot_key, now)


def start_successors(draft: Draft, slot_key: str, now: int) -> int:
    """Makes the longest waiting runs of a slot due, as many as there is room for; answers how many."""
    slot = draft.get(Slot, slot_key)
    queue = draft.queues.get(slot_key, [])
    started = 0
    while queue and startable(slot) > 0:
        run = draft.get(Run, queue.pop(0))
        if run.status != Status.QUEUED or run.due_at is not None:
            continue
        draft.put(replace(run, due_at=now))
        slot = replace(slot, queued=slot.queued - 1, live=slot.live + 1)
        started += 1
    draft.put(slot)
    return started


def decide_release(draft: Draft, item: Release, now: int) -> bool:
    """Leaves a run to its next claim; an attempt that was merely interrupted is taken back."""
    run = _owned(draft, item.run_id, item.epoch)
    if run.owner is None:
        return False
    if Status(run.status) in ENDED:
        draft.put(replace(run, owner=None, due_at=item.due_at))
        return True
    attempt = run.attempt if item.counted else max(0, run.attempt - 1)
    said = NewEntry(type="run:released", payload=encode({"counted": item.counted}))
    draft.put(write_entries(draft, replace(run, owner=None, due_at=item.due_at, attempt=attempt), (said,), now))
    return True


def decide_abort(draft: Draft, item: Abort, now: int) -> Aborted:
    """Ends a queued or paused run at once; marks a running one, whose owner then settles it."""
    run = _known(draft, item.run_id)
    if Status(run.status) in ENDED or run.abort_reason is not None:
        return Aborted(aborted=False)
    if run.kind == "piece" and run.status == Status.QUEUED:
        raise InvalidStateError(
            f"run {run.run_id} is the next update of piece {run.key_value!r} in space {run.space!r} and has not begun: "
            "aborting it would end the piece's schedule",
            run_id=run.run_id,
        )
    asked = NewEntry(type="run:abort", payload=encode({"reason": item.reason}))
    run = write_entries(draft, replace(run, abort_reason=item.reason), (asked,), now)
    if run.owner is not None or run.kind == "piece":
        draft.put(run)
        return Aborted(aborted=True, owner=run.owner)
    started = run.status != Status.QUEUED or run.due_at is not None
    ended = replace(
        run,
        status=check_move(run.run_id, run.status, Status.ABORTED),
        ended_at=now,
        cleaned=1,
        due_at=None,
        expires_at=None,
        error=abort_error(run.run_id, item.reason),
    )
    draft.put(write_entries(draft, ended, (NewEntry(type="run:aborted"),), now))
    if run.slot_key is not None:
        _leave(draft, run, started=started, now=now)
    return Aborted(aborted=True, ended=True)


def _leave(draft: Draft, run: Run, *, started: bool, now: int) -> None:
    assert run.slot_key is not None
    slot = draft.get(Slot, run.slot_key)
    paused = int(run.status == Status.PAUSED)
    if started:
        draft.put(replace(slot, live=slot.live - 1, paused=slot.paused - paused))
    else:
        draft.put(replace(slot, queued=slot.queued - 1))
    start_successors(draft, run.slot_key, now)


def abort_error(run_id: str, reason: str) -> str:
    """The stored error of an aborted run."""
    message = f"run {run_id} was aborted: {reason}"
    return encode({"type": "piecework.errors.AbortedError", "code": "ABORTED", "message": message}).decode()


def decide_append(draft: Draft, item: Append, now: int) -> int:
    """Adds log lines beneath the decision that they follow."""
    run = _owned(draft, item.run_id, item.epoch)
    for ordinal, entry in enumerate(item.entries, start=item.first):
        draft.append(
            Entry(
                run.run_id,
                item.decision,
                item.attempt,
                ordinal,
                now,
                entry.source,
                entry.type,
                entry.path,
                entry.payload,
            )
        )
    return len(item.entries)


def _known(draft: Draft, run_id: str) -> Run:
    run = draft.find(Run, run_id)
    if run is None:
        raise NotFoundError(f"there is no run {run_id!r}: `piecework runs list` shows those there are", run_id=run_id)
    return run


def _owned(draft: Draft, run_id: str, epoch: int) -> Run:
    run = _known(draft, run_id)
    if run.epoch != epoch:
        raise StaleEpochError(
            f"run {run_id} is at epoch {run.epoch}, this write is of {epoch}: another owner has it now",
            run_id=run_id,
            epoch=epoch,
        )
    return run


def _check_held(run: Run) -> None:
    """Refuses the write of an owner that has let go: what it gave back may be somebody else's at any moment."""
    if run.owner is None:
        raise StaleEpochError(
            f"run {run.run_id} {_words(run)} and nobody has it: this write is of an owner that gave it back",
            run_id=run.run_id,
            epoch=run.epoch,
        )


def _words(run: Run) -> str:
    return f"has ended ({run.status})" if Status(run.status) in ENDED else f"is {run.status}"


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
