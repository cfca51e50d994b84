"""What the verbs of a run's life do to its rows, decided by the pure files. Pure.

Each looks at the Draft, refuses by raising, or puts new rows and answers the outcome. A Draft that an item leaves by
raising is as it was before. Nothing here knows a clock, an engine or a kind of work. `parts` and `waking` are shared
with `folds_events`.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.container.state import merge
from piecework.errors import InvalidStateError, NotFoundError
from piecework.run import admission
from piecework.run.folds_events import send_signal
from piecework.run.folds_nodes import carries
from piecework.run.lifecycle import ENDED, Status, check_move
from piecework.run.parts import (
    HELD,
    abort_error,
    check_held,
    check_running,
    encode,
    forget_patch,
    keep_patch,
    known,
    owned,
    start_successors,
    tell_to_end,
    words,
    write_entries,
)
from piecework.run.waking import joined_patch, next_met, take_kept, wake, with_reason
from piecework.store.items import (
    Abort,
    Aborted,
    Append,
    Cleaned,
    CommitStage,
    Continue,
    Defer,
    EndTold,
    Enqueue,
    Enqueued,
    NewEntry,
    Park,
    Progress,
    Register,
    Release,
    Resume,
    SendSignal,
    Settle,
    Signalled,
    Taking,
    Unresume,
)
from piecework.store.records import Buffered, Delivery, Entry, Run, RunValue, Signal, Slot, Wait

if TYPE_CHECKING:
    from piecework.store.draft import Draft


def decide_enqueue(draft: Draft, item: Enqueue, now: int) -> Enqueued:
    """Makes a run that no event asked for."""
    run = item.run
    if draft.find(Run, run.run_id) is not None:
        return Enqueued(run_id=run.run_id, duplicate=True)
    run = replace(run, created_at=now, due_at=now if run.due_at is None else run.due_at)
    draft.add(write_entries(draft, run, (NewEntry(type="run:queued"),), now))
    draft.append(RunValue(run.run_id, "args", item.args))
    return Enqueued(run_id=run.run_id, duplicate=False)


def decide_claim(draft: Draft, taking: Taking, now: int) -> Run:
    """Hands a run to an owner: epoch raised, attempt counted, before anything of it starts.

    One that the owner's definition cannot carry is left to others and answered as nobody's: the first attempt that it
    then makes is under the version of a definition that can.

    Raises:
        NotFoundError: Somebody else was faster, or it has ended meanwhile.
    """
    run = known(draft, taking.run_id)
    wanted = run.owner == taking.had if taking.had is not None else run.owner is None and run.due_at is not None
    if run.cleaned or not wanted:
        raise NotFoundError(f"run {run.run_id} is not to be had any more", run_id=run.run_id)
    if Status(run.status) in ENDED:
        run = replace(run, owner=taking.owner, epoch=run.epoch + 1, due_at=None)
        draft.put(run)
        return run
    check_move(run.run_id, run.status, Status.RUNNING)
    definition = taking.definitions.get(f"{run.kind}:{run.workflow_id}") if taking.definitions else None
    if definition is not None and run.abort_reason is None and not carries(definition, run):
        return _leave(draft, run, now)
    claimed = replace(
        run,
        status=Status.RUNNING,
        version=run.version if definition is None else definition.version,
        owner=taking.owner,
        epoch=run.epoch + 1,
        attempt=run.attempt + 1,
        due_at=None,
        error=None,
        started_at=now if run.started_at is None else run.started_at,
    )
    said = NewEntry(type="run:claimed", payload=encode({"attempt": claimed.attempt, "epoch": claimed.epoch}))
    claimed = write_entries(draft, claimed, (said,), now)
    draft.put(claimed)
    return claimed


def _leave(draft: Draft, run: Run, now: int) -> Run:
    """Leaves a run to nodes that can carry it; what a dead owner had is nobody's from now on."""
    if run.owner is None:
        return run
    said = NewEntry(type="run:released", payload=encode({"counted": True}))
    left = replace(run, owner=None, epoch=run.epoch + 1, due_at=now)
    left = write_entries(draft, left, (said,), now)
    draft.put(left)
    return left


# -- stages ------------------------------------------------------------------------------------------------------


def decide_commit_stage(draft: Draft, item: CommitStage, now: int) -> Progress:
    """Ends a stage: writes its state, then continues, parks (or wakes at once) or defers the run."""
    run = owned(draft, item.run_id, item.epoch)
    if run.visit == item.visit + 1:
        return _repeated(draft, run, item)
    check_held(run)
    if run.visit != item.visit or run.status != Status.RUNNING:
        raise InvalidStateError(
            f"run {run.run_id} {words(run)} and has {run.visit} stages behind it: the end of its stage {item.visit} "
            "is not what comes next",
            run_id=run.run_id,
            status=run.status,
        )
    if run.abort_reason is not None:
        return Progress(outcome="aborted", reason=run.abort_reason, decision=run.decision)
    run = forget_patch(draft, _without_signals(draft, run, item.signalled))
    draft.append(RunValue(run.run_id, "state", item.state))
    if isinstance(item.then, Continue):  # nearly every one: the row is made once
        run = _next_stage(draft, run, item, item.then.stage, now)
        draft.put(run)
        return Progress(outcome="continued", decision=run.decision, signals=_signals(draft, run))
    run = _next_stage(draft, run, item, run.stage, now)
    match item.then:
        case Defer(due_at=due_at):
            check_move(run.run_id, run.status, Status.QUEUED)
            draft.put(replace(run, status=Status.QUEUED, owner=None, due_at=due_at))
            return Progress(outcome="deferred", decision=run.decision)
        case Park():
            return _park(draft, run, item.then, now)


def _next_stage(draft: Draft, run: Run, item: CommitStage, stage: str | None, now: int) -> Run:
    """A run behind the stage that it was at, its timeline written; attempts begin anew."""
    for number, entry in enumerate(item.entries, start=run.decision + 1):
        line = Entry(run.run_id, number, 0, 0, now, entry.source, entry.type, entry.path, entry.payload, entry.delta)
        draft.append(line)
    return replace(run, visit=run.visit + 1, attempt=0, stage=stage, decision=run.decision + len(item.entries))


def _repeated(draft: Draft, run: Run, item: CommitStage) -> Progress:
    """The answer to a commit that was made already and whose reply was lost."""
    if run.abort_reason is not None:
        return Progress(outcome="aborted", reason=run.abort_reason, decision=run.decision)
    if isinstance(item.then, Park):
        if run.owner is not None:  # woken at once: the run is still its owner's, who has to go on with the patch
            patch = draft.get(RunValue, run.run_id, "patch").data
            signals = _signals(draft, run)
            return Progress(outcome="resumed", patch=patch, decision=run.decision, signals=signals)
        return Progress(outcome="parked", decision=run.decision)
    if isinstance(item.then, Defer):
        return Progress(outcome="deferred", decision=run.decision)
    return Progress(outcome="continued", decision=run.decision, signals=_signals(draft, run))


def _without_signals(draft: Draft, run: Run, upto: int) -> Run:
    """Forgets the signals that a state holds."""
    if not run.signals or not upto:
        return run
    left = 0
    for row in draft.of_run(Signal, run.run_id):
        if row.number <= upto:
            draft.remove(Signal, *row.identity())
        else:
            left += 1
    return replace(run, signals=left)


def _with_signals(draft: Draft, run: Run, state: bytes | None, upto: int) -> tuple[bytes | None, bytes | None]:
    """The last state of a run, with what was sent to it since its last router was asked: nothing is lost.

    And the delta of the entry that tells so; None where nothing was sent.
    """
    missed = [msgspec.json.decode(patch) for number, patch in _signals(draft, run) if number > upto]
    if state is None or not missed:
        return state, None
    nothing: dict[str, Any] = {}
    merged = reduce(merge, missed, msgspec.json.decode(state))
    return encode(merged), encode({"set": reduce(merge, missed, nothing), "all": merged})


def _signals(draft: Draft, run: Run) -> tuple[tuple[int, bytes], ...]:
    if not run.signals:
        return ()
    return tuple(sorted((row.number, row.patch) for row in draft.of_run(Signal, run.run_id)))


def _park(draft: Draft, run: Run, park: Park, now: int) -> Progress:
    _replace_stage_waits(draft, run, park, now)
    waits = draft.of_run(Wait, run.run_id)
    run = replace(run, stage=park.stage)
    met = next_met(waits, draft.of_run(Buffered, run.run_id))
    if met:
        take_kept(draft, met)
        patch = with_reason(joined_patch(waits, met), "event")
        said = NewEntry(type="run:resumed", payload=encode({"reason": "event", "buffered": True}))
        run = write_entries(draft, replace(run, resume_count=run.resume_count + 1), (said,), now)
        draft.put(keep_patch(draft, run, patch))
        signals = _signals(draft, run)
        return Progress(outcome="resumed", patch=patch, decision=run.decision, signals=signals)
    check_move(run.run_id, run.status, Status.PAUSED)
    timeouts = [t for t in (park.timeout, *(wait.timeout for wait in waits)) if t is not None]
    waiting_for = sorted({wait.event_type for wait in waits})
    said = NewEntry(type="run:paused", payload=encode({"waiting_for": waiting_for}))
    run = write_entries(draft, run, (said,), now)
    _pause(draft, run, waiting_for, now + min(timeouts) if timeouts else None, now)
    return Progress(outcome="parked", decision=run.decision)


def _pause(draft: Draft, run: Run, waiting_for: list[str], expires_at: int | None, now: int) -> None:
    """Lets go of a run; where its place is free with that, the next of its slot starts."""
    draft.put(
        replace(
            run,
            status=Status.PAUSED,
            owner=None,
            paused_at=now,
            expires_at=expires_at,
            waiting_for=encode(waiting_for).decode(),
        )
    )
    if run.slot_key is not None:
        draft.put(admission.paused(draft.get(Slot, run.slot_key), run.run_id))
        start_successors(draft, run.slot_key, now)


def _replace_stage_waits(draft: Draft, run: Run, park: Park, now: int) -> None:
    """Registers what this pause waits for and forgets what earlier stages waited for, with what was kept for them.

    A stage that waits for the same again, in a loop, keeps what came in between.
    """
    asked = {wait.identity(): wait.clauses for wait in park.waits}
    for wait in draft.of_run(Wait, run.run_id):
        if wait.stage and asked.get(wait.identity()) != wait.clauses:
            draft.remove(Wait, *wait.identity())
            _forget_buffered(draft, run.run_id, {(wait.wait_id, wait.event_type)})
    for wait in park.waits:
        draft.add(replace(wait, registered_at=now))


def _forget_buffered(draft: Draft, run_id: str, waits: set[tuple[str, str]]) -> None:
    for row in draft.of_run(Buffered, run_id):
        if (row.wait_id, row.event_type) in waits:
            draft.remove(Buffered, *row.identity())


def decide_register(draft: Draft, item: Register, now: int) -> int:
    """Registers waits of a running run, and cancels earlier ones (None: all) with what was kept for them."""
    run = owned(draft, item.run_id, item.epoch)
    check_held(run)
    check_running(run)
    mine = draft.of_run(Wait, run.run_id)
    doomed = mine if item.cancel is None else [wait for wait in mine if wait.wait_id in item.cancel]
    for wait in doomed:
        draft.remove(Wait, *wait.identity())
    _forget_buffered(draft, run.run_id, {(wait.wait_id, wait.event_type) for wait in doomed})
    for wait in item.waits:
        draft.add(replace(wait, registered_at=now))
    return len(draft.of_run(Wait, run.run_id))


def decide_release(draft: Draft, item: Release, now: int) -> bool:
    """Leaves a run to its next claim; an attempt that was merely interrupted is taken back."""
    run = owned(draft, item.run_id, item.epoch)
    if run.owner is None:
        return False
    if Status(run.status) in ENDED:
        draft.put(replace(run, owner=None, due_at=item.due_at))
        return True
    attempt = run.attempt if item.counted else max(0, run.attempt - 1)
    said = NewEntry(type="run:released", payload=encode({"counted": item.counted}))
    draft.put(write_entries(draft, replace(run, owner=None, due_at=item.due_at, attempt=attempt), (said,), now))
    return True


# -- calls from outside ------------------------------------------------------------------------------------------


def decide_resume(draft: Draft, item: Resume, now: int) -> Run:
    """Wakes a paused run; one that could not go on after an earlier resume keeps that one's patch, beneath the new one.

    Raises:
        NotFoundError: There is no such run.
        InvalidStateError: It is not paused (any more), or its deadline is another by now.
    """
    run = known(draft, item.run_id)
    if item.token is not None and run.told == item.token:
        return run
    if item.reason == "timeout":
        if run.expires_at is None or run.expires_at > now:
            raise InvalidStateError(f"run {run.run_id} has no deadline that has passed", run_id=run.run_id)
        if run.patched:
            return wake(draft, run, "again", None, now)
    if item.reason == "again":
        if run.status != Status.PAUSED or not run.patched or run.expires_at is not None:
            raise InvalidStateError(f"run {run.run_id} does not wait for a definition", run_id=run.run_id)
        return wake(draft, run, "again", None, now)
    if item.stage is not None:  # whoever says where it goes on has compared the definitions
        run = replace(run, stage=item.stage, version=None)
    held = run.patched and run.status == Status.PAUSED
    kept = msgspec.json.decode(draft.get(RunValue, run.run_id, "patch").data) if held else {}
    patch = with_reason({**kept, **item.patch}, item.reason)
    return wake(draft, replace(run, told=item.token or run.told), item.reason, patch, now)


def decide_unresume(draft: Draft, item: Unresume, now: int) -> int:
    """Pauses a woken run again that could not go on; its patch stays, and it is woken once more at a later moment.

    One that nobody could even claim is woken when there is a definition for it.

    Answers how often it has been tried.
    """
    run = owned(draft, item.run_id, item.epoch)
    if run.owner is None and run.status == Status.PAUSED and run.expires_at == item.due_at:
        return run.attempt
    if not item.unclaimed or run.due_at is None:
        check_held(run)
    check_running(run)
    if not run.patched:
        raise InvalidStateError(
            f"run {run.run_id} was not woken, or has committed since: there is no pause to go back to",
            run_id=run.run_id,
        )
    if run.abort_reason is not None:
        raise InvalidStateError(
            f"run {run.run_id} has been told to end ({run.abort_reason}): settle it", run_id=run.run_id
        )
    check_move(run.run_id, run.status, Status.PAUSED)
    said = NewEntry(type="run:unresumed", payload=None if item.error is None else item.error.encode())
    waiting_for = sorted({wait.event_type for wait in draft.of_run(Wait, run.run_id)})
    if item.unclaimed:
        run = replace(run, error=item.error, due_at=None)
    elif not run.attempt:  # it went on from its buffer, with no claim: this was its first try all the same
        run = replace(run, attempt=1)
    _pause(draft, write_entries(draft, run, (said,), now), waiting_for, item.due_at, now)
    return run.attempt


def decide_signal(draft: Draft, item: SendSignal, now: int) -> Signalled:
    """Keeps a patch for a run; it is merged at the run's next commit, or when the run goes on.

    Raises:
        NotFoundError: There is no such run.
        InvalidStateError: It has ended.
    """
    run = known(draft, item.run_id)
    live = Status(run.status) is Status.RUNNING
    if item.token is not None and run.told == item.token:
        return Signalled(delivered="live" if live else "stored", number=run.decision, owner=run.owner)
    if Status(run.status) in ENDED:
        raise InvalidStateError(
            f"run {run.run_id} {words(run)}: it takes no signal", run_id=run.run_id, status=run.status
        )
    run = send_signal(draft, replace(run, told=item.token or run.told), item.patch, now)
    return Signalled(delivered="live" if live else "stored", number=run.decision, owner=run.owner)


def decide_abort(draft: Draft, item: Abort, now: int) -> Aborted:
    """Ends a queued or paused run at once; marks a running one, whose owner then settles it."""
    run = known(draft, item.run_id)
    if item.token is not None and run.told == item.token and run.abort_reason is not None:
        return Aborted(aborted=True, ended=run.ended_at is not None, owner=run.owner)
    if Status(run.status) in ENDED or run.abort_reason is not None:
        return Aborted(aborted=False)
    if run.kind == "piece" and run.status == Status.QUEUED:
        raise InvalidStateError(
            f"run {run.run_id} is the next update of piece {run.key_value!r} in space {run.space!r} and has not begun: "
            "aborting it would end the piece's schedule",
            run_id=run.run_id,
        )
    if item.dropping and (run.status != Status.QUEUED or run.owner is not None):
        return Aborted(aborted=False)
    told = tell_to_end(draft, run, item.reason, now, token=item.token, unheard=item.dropping)
    if item.dropping and run.event_seq is not None:
        draft.append(Delivery(run.event_seq, run.workflow_id, run.trigger_id, run.run_id, "dropped", item.reason))
    ended = draft.get(Run, run.run_id).ended_at is not None
    if ended and run.slot_key is not None:
        start_successors(draft, run.slot_key, now)
    return Aborted(aborted=True, ended=ended, owner=told.owner)


# -- the end -----------------------------------------------------------------------------------------------------


def decide_settle(draft: Draft, item: Settle, now: int) -> str:
    """Ends a run; an abort that was promised before wins over whatever the run came to. Answers the final status."""
    run = owned(draft, item.run_id, item.epoch)
    if Status(run.status) in ENDED:
        return run.status
    check_held(run)
    status = Status.ABORTED if run.abort_reason is not None else Status(item.status)
    check_move(run.run_id, run.status, status)
    error = item.error if run.abort_reason is None else abort_error(run.run_id, run.abort_reason)
    entries = item.entries if item.state is not None else tuple(replace(entry, delta=None) for entry in item.entries)
    state, delta = _with_signals(draft, run, item.state, item.signalled)
    over = NewEntry(type=f"run:{status}", payload=_bytes(error), delta=delta)
    run = forget_patch(draft, write_entries(draft, run, (*entries, over), now))
    draft.put(
        replace(
            run,
            status=status,
            ended_at=now,
            due_at=None,
            expires_at=None,
            signals=0,
            telling=int(item.telling),
            error=error,
            outcome=item.outcome,
        )
    )
    if state is not None:
        draft.append(RunValue(run.run_id, "state", state))
    if item.result is not None:
        draft.append(RunValue(run.run_id, "result", item.result))
    if run.slot_key is not None and not item.telling:
        draft.put(admission.closing(draft.get(Slot, run.slot_key), run.run_id))
    return status


def decide_end_told(draft: Draft, item: EndTold, now: int) -> bool:
    """Notes that a run's end has been heard of: from here on it is only to be cleaned. Answers whether that was new."""
    run = owned(draft, item.run_id, item.epoch)
    _check_over(run)
    if not run.telling:
        return False
    check_held(run)
    draft.put(replace(_give_place_up(draft, write_entries(draft, run, item.entries, now)), telling=0))
    return True


def _give_place_up(draft: Draft, run: Run) -> Run:
    """An ended run that has kept its place gives it up: it is being cleaned."""
    if run.telling == HELD and run.slot_key is not None:
        draft.put(admission.closing(draft.get(Slot, run.slot_key), run.run_id))
    return run


def _check_over(run: Run) -> None:
    if Status(run.status) not in ENDED:
        raise InvalidStateError(
            f"run {run.run_id} {words(run)}: only a run that has ended can be clean",
            run_id=run.run_id,
            status=run.status,
        )


def decide_cleaned(draft: Draft, item: Cleaned, now: int) -> int:
    """Frees an ended run's slot and starts successors; answers how many."""
    run = owned(draft, item.run_id, item.epoch)
    if run.cleaned:
        return 0
    _check_over(run)
    check_held(run)
    run = _give_place_up(draft, write_entries(draft, run, item.entries, now))
    draft.put(replace(run, telling=0, cleaned=1, owner=None))
    if run.slot_key is None:
        return 0
    draft.put(admission.cleaned(draft.get(Slot, run.slot_key)))
    return start_successors(draft, run.slot_key, now)


def decide_append(draft: Draft, item: Append, now: int) -> int:
    """Adds log lines beneath the decision that they follow, and says how far the run is."""
    run = owned(draft, item.run_id, item.epoch)
    if item.progress is not None:
        draft.put(replace(run, progress=encode([*item.progress, now]).decode()))
    for ordinal, entry in enumerate(item.entries, start=item.first):
        draft.append(
            Entry(
                item.run_id,
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


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
