"""What the folds have in common: timeline entries, ends, and who gets a place in a slot. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.errors import InvalidStateError, NotFoundError, StaleEpochError
from piecework.run import admission
from piecework.run.lifecycle import ENDED, Status, check_move
from piecework.run.schedule import TRIGGER
from piecework.store.items import Aborting, NewEntry
from piecework.store.records import Buffered, Entry, Run, RunValue, Signal, Slot, Wait

if TYPE_CHECKING:
    from piecework.store.draft import Draft

_json = msgspec.json.Encoder()

HELD, FREED = 1, 2
"""`Run.telling` of a run whose end is still to be heard of: it keeps its place, or has none to keep any more."""


def encode(value: Any) -> bytes:
    """JSON bytes of a value that is known to be JSON."""
    return _json.encode(value)


def write_entries(draft: Draft, run: Run, entries: tuple[NewEntry, ...], now: int) -> Run:
    """Appends decision entries to a run's timeline and answers the run with its counter moved on."""
    number = run.decision
    for entry in entries:
        number += 1
        draft.append(
            Entry(
                run.run_id,
                number,
                run.attempt,
                0,
                now,
                entry.source,
                entry.type,
                entry.path,
                entry.payload,
                entry.delta,
            )
        )
    return replace(run, decision=number)


# -- runs --------------------------------------------------------------------------------------------------------


def known(draft: Draft, run_id: str) -> Run:
    """A run that has to be there.

    Raises:
        NotFoundError: It is not.
    """
    run = draft.find(Run, run_id)
    if run is None:
        raise NotFoundError(f"there is no run {run_id!r}: `piecework runs list` shows those there are", run_id=run_id)
    return run


def owned(draft: Draft, run_id: str, epoch: int) -> Run:
    """A run that has to be at an epoch.

    Raises:
        NotFoundError: It is not there.
        StaleEpochError: Somebody else has it, or had it since.
    """
    run = known(draft, run_id)
    if run.epoch != epoch:
        raise StaleEpochError(
            f"run {run_id} is at epoch {run.epoch}, this write is of {epoch}: another owner has it now",
            run_id=run_id,
            epoch=epoch,
        )
    return run


def check_held(run: Run) -> None:
    """Refuses the write of an owner that has let go: what it gave back may be somebody else's at any moment.

    Raises:
        StaleEpochError: Nobody has the run.
    """
    if run.owner is None:
        raise StaleEpochError(
            f"run {run.run_id} {words(run)} and nobody has it: this write is of an owner that gave it back",
            run_id=run.run_id,
            epoch=run.epoch,
        )


def check_running(run: Run) -> None:
    """Refuses what only an unended, running run can do.

    Raises:
        InvalidStateError: It is not.
    """
    if Status(run.status) is not Status.RUNNING:
        raise InvalidStateError(f"run {run.run_id} {words(run)}, not running", run_id=run.run_id, status=run.status)


def words(run: Run) -> str:
    """Where a run stands, for messages."""
    return f"has ended ({run.status})" if Status(run.status) in ENDED else f"is {run.status}"


def abort_error(run_id: str, reason: str) -> str:
    """The stored error of an aborted run."""
    message = f"run {run_id} was aborted: {reason}"
    return encode({"type": "piecework.errors.AbortedError", "code": "ABORTED", "message": message}).decode()


def tell_to_end(
    draft: Draft, run: Run, reason: str, now: int, *, token: str | None = None, unheard: bool = False
) -> Aborting:
    """Ends a run that nobody has at once; one that somebody has is marked, and its owner settles it.

    Where somebody wants to hear of its end it is due once more, for that alone, unless `unheard`. Successors are not
    started here: whoever calls knows what has to follow.
    """
    asked = NewEntry(type="run:abort", payload=encode({"reason": reason}))
    run = write_entries(draft, replace(run, abort_reason=reason, told=token or run.told), (asked,), now)
    if run.owner is not None or run.kind == "piece":
        draft.put(run)
        return Aborting(run_id=run.run_id, reason=reason, owner=run.owner)
    if run.kind == "job" and run.trigger_id == TRIGGER:
        draft.put(replace(run, due_at=now))  # whoever claims it ends it and puts its successor there
        return Aborting(run_id=run.run_id, reason=reason, owner=None)
    started = run.status != Status.QUEUED or run.due_at is not None
    heard = bool(run.telling) and not unheard
    ended = replace(
        run,
        status=check_move(run.run_id, run.status, Status.ABORTED),
        # One that waits in its slot leaves it; only one that had a place keeps others off it until it is clean.
        slot_key=run.slot_key if started or not heard else None,
        ended_at=now,
        telling=FREED if heard else 0,
        cleaned=int(not heard),
        due_at=now if heard else None,
        expires_at=None,
        signals=0,
        error=abort_error(run.run_id, reason),
    )
    draft.put(forget_patch(draft, write_entries(draft, ended, (NewEntry(type="run:aborted"),), now)))
    for cls in (Wait, Buffered, Signal):  # also for the items of this batch that come behind
        for row in draft.of_run(cls, run.run_id):
            draft.remove(cls, *row.identity())
    if run.slot_key is not None:
        slot = draft.get(Slot, run.slot_key)
        if started:
            leave = admission.closing if heard else admission.gone
            draft.put(leave(slot, run.run_id, was_paused=run.status == Status.PAUSED))
        else:
            draft.put(admission.unqueued(slot, run.run_id))
    return Aborting(run_id=run.run_id, reason=reason, owner=None)


def keep_patch(draft: Draft, run: Run, patch: bytes) -> Run:
    """Keeps what a woken run will merge, until its stage commits."""
    draft.append(RunValue(run.run_id, "patch", patch))
    return replace(run, patched=1)


def forget_patch(draft: Draft, run: Run) -> Run:
    """Forgets the patch of a resume that has been taken in, or never will be."""
    if not run.patched:
        return run
    draft.remove(RunValue, run.run_id, "patch")
    return replace(run, patched=0)


# -- slots -------------------------------------------------------------------------------------------------------


def start_successors(draft: Draft, slot_key: str, now: int) -> int:
    """Makes the longest waiting runs of a slot due, as many as there is room for; answers how many."""
    slot = draft.get(Slot, slot_key)
    started = 0
    while admission.startable(slot) > 0:
        run_id = draft.next_in_queue(slot_key) or slot.pending_run_id
        if run_id is None:
            break
        run = draft.get(Run, run_id)
        if run.status != Status.QUEUED or run.due_at is not None:
            if run_id == slot.pending_run_id:
                break
            continue
        draft.put(replace(run, due_at=now))
        slot = admission.promoted(slot, run_id)
        started += 1
    draft.put(slot)
    return started
