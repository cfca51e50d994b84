"""What becomes of a piece when it is registered, asked for, or has been updated. Pure, like `run/folds`.

People write the desired half of a piece's row, the runner the observed half; neither touches the other's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import NotFoundError, StaleEpochError, ValidationError
from piecework.run.failure import Observed
from piecework.run.lifecycle import ENDED, Status, check_move
from piecework.run.parts import encode, tell_to_end, write_entries
from piecework.run.schedule import next_run
from piecework.space.coming import (
    CRON,
    INTERRUPTED,
    INTERVAL,
    MANUAL,
    REGISTERED,
    RETRY,
    ask,
    bring_forward,
    drop_after,
    end_uncharged,
    queue,
    rest,
    start_after,
)
from piecework.space.verdicts import judge_failure, judge_success, next_probe
from piecework.store.items import (
    FinishPiece,
    NewEntry,
    PieceAsked,
    PieceFinished,
    PieceRemoved,
    Registered,
    RegisterPiece,
    RemovePiece,
    RunPiece,
    SetDesired,
)
from piecework.store.records import Piece, Run, RunValue

if TYPE_CHECKING:
    from piecework.store.draft import Draft

ENABLED = "enabled"
PAUSED = "paused"
REMOVED = "removed"


def decide_register_piece(draft: Draft, item: RegisterPiece, now: int) -> Registered:
    """Adds a piece, or enables it again with a new configuration and a clean slate; its next update is due now.

    One that waits for events alone has no first update.
    """
    before = draft.find(Piece, item.piece.space, item.piece.piece_id)
    if before is None or before.desired == REMOVED:
        piece = replace(item.piece, created_at=now, updated_at=now)
        if before is not None:  # its namesake's last update is still being stopped: the first one follows its end
            piece = replace(piece, run_id=_call_off(draft, before, now, "the piece was removed").run_id)
        draft.add(piece)
        _begin(draft, piece, item, now)
        return Registered(added=True)
    piece = replace(
        before,
        integration=item.piece.integration,
        config=item.piece.config,
        every=item.piece.every,
        schedule=item.piece.schedule,
        occurrence=None,
        desired=ENABLED,
        desired_reason=None,
        observed=Observed.IDLE,
        status="Re-initializing",
        consecutive_failures=0,
        updated_at=now,
    )
    _begin(draft, piece, item, now)
    return Registered(added=False)


def _begin(draft: Draft, piece: Piece, item: RegisterPiece, now: int) -> None:
    if item.at_once:
        bring_forward(draft, piece, item.run_id, now, trigger=REGISTERED, hops=item.hops)
    else:
        rest(draft, piece, now)


def decide_run_piece(draft: Draft, item: RunPiece, now: int) -> PieceAsked:
    """Makes the next update due now and answers its run; where one is under way the overlap says what follows.

    An update of a broken piece is a probe: it goes on as usual when that succeeds, and stays broken when not.
    """
    piece = _known(draft, item.space, item.piece_id)
    run_id, aborting = ask(draft, piece, item.run_id, now, trigger=MANUAL, overlap=item.overlap, hops=item.hops)
    return PieceAsked(run_id=run_id, aborting=aborting)


def decide_set_desired(draft: Draft, item: SetDesired, now: int) -> bool:
    """Pauses a piece, so that no update follows, or enables it, so that one is due now; answers whether that is new.

    An update that is under way goes on to its end. One that was to come is gone; if it had begun it ends interrupted.
    Enabling what is enabled, and is not out of order, changes nothing.

    Raises:
        NotFoundError: There is no such piece.
        ValidationError: It is neither `enabled` nor `paused` that is wanted.
    """
    piece = _known(draft, item.space, item.piece_id)
    if item.desired not in {ENABLED, PAUSED}:
        raise ValidationError(
            f"piece {item.piece_id!r} in space {item.space!r} cannot be {item.desired!r}: enabled and paused are there",
            desired=item.desired,
        )
    same = piece.desired == item.desired
    if item.desired == PAUSED:
        why = "the piece was paused"
        left = _call_off(draft, drop_after(draft, piece, why, now), now, why)
        if not (same and left is piece):
            draft.put(replace(left, desired=PAUSED, desired_reason=item.reason, updated_at=now))
        return not same
    if same and not Observed(piece.observed).out_of_order:
        return False
    wanted = replace(
        piece,
        desired=ENABLED,
        desired_reason=item.reason,
        observed=Observed.IDLE,
        consecutive_failures=0,
        updated_at=now,
    )
    bring_forward(draft, wanted, item.run_id, now, hops=item.hops)
    return True


def decide_remove_piece(draft: Draft, item: RemovePiece, now: int) -> PieceRemoved:
    """Ends a piece: an update that was to come is gone, one that is under way is told to end, and the row goes with it.

    What its updates came to stays in the history, until that is forgotten.

    Raises:
        NotFoundError: There is no such piece.
    """
    why = "the piece was removed"
    piece = drop_after(draft, _known(draft, item.space, item.piece_id), why, now)
    piece = _call_off(draft, piece, now, why)
    run = None if piece.run_id is None else draft.find(Run, piece.run_id)
    if run is None or Status(run.status) in ENDED:
        draft.remove(Piece, *piece.identity())
        return PieceRemoved()
    draft.put(replace(piece, desired=REMOVED, desired_reason=None, next_run_at=None, updated_at=now))
    if run.abort_reason is not None:
        return PieceRemoved()
    return PieceRemoved(aborting=tell_to_end(draft, run, why, now))


def decide_finish_piece(draft: Draft, item: FinishPiece, now: int) -> PieceFinished:
    """Ends an update: its outcome, the piece's counters and state, and the next due time, all in one."""
    run = draft.find(Run, item.run_id)
    if run is None or run.epoch != item.epoch:
        raise StaleEpochError(
            f"run {item.run_id} is somebody else's now: its late result is refused", run_id=item.run_id
        )
    piece = draft.find(Piece, run.space, run.key_value)
    if Status(run.status) in ENDED:
        return PieceFinished(status=run.status, next_run_at=None if piece is None else piece.next_run_at)
    if piece is not None and piece.after_run_id is not None and run.abort_reason is not None:
        item = replace(item, outcome=INTERRUPTED if item.outcome == "failed" else item.outcome)  # it made room
    status = _end_run(draft, run, item, now)
    if piece is None or piece.run_id != run.run_id:
        return PieceFinished(status=status, next_run_at=None)
    if piece.desired == REMOVED:
        draft.remove(Piece, *piece.identity())
        return PieceFinished(status=status, next_run_at=None)
    piece, told = _followed(draft, piece, run, item, now)
    draft.put(piece)
    return PieceFinished(status=status, next_run_at=piece.next_run_at, told=told)


def _followed(draft: Draft, piece: Piece, run: Run, item: FinishPiece, now: int) -> tuple[Piece, str | None]:
    """What the update came to, with what follows it: what was asked for meanwhile, the next time, or nothing.

    Returns:
        The piece, and the event that tells of it.
    """
    after = None if piece.after_run_id is None else draft.get(Run, piece.after_run_id)
    rests = piece.observed == Observed.WAITING  # registered meanwhile, for events alone
    anew = rests or (after is not None and after.trigger_id == REGISTERED)  # it is another configuration that failed
    if item.outcome == "failed" and run.abort_reason is None and not anew:
        piece, moment, told = judge_failure(draft, piece, run, item, now)
        if moment is None:
            piece = drop_after(draft, piece, "the piece has stopped", now)
            return replace(piece, run_id=None, next_run_at=None, occurrence=None), told
        trigger = RETRY
    else:
        piece, told = _observed(draft, piece, run, item, now)
        moment, trigger = (None, "") if rests else _next_moment(item, now)
        if piece.observed == Observed.HALF_OPEN and run.abort_reason is not None:
            moment, trigger = next_probe(item, now), RETRY
    if after is not None:
        return start_after(draft, piece, now, probe_at=moment), told
    if piece.desired == PAUSED or piece.observed == Observed.BROKEN:  # a probe that was no success brings none
        return replace(piece, run_id=None, next_run_at=None, occurrence=None), told
    if moment is None:
        return replace(piece, observed=Observed.WAITING, run_id=None, next_run_at=None, occurrence=None), told
    queue(draft, piece, item.next_run_id, moment, now, trigger=trigger, again=run if trigger == RETRY else None)
    occurrence = item.occurrence if trigger == CRON else piece.occurrence
    return replace(piece, run_id=item.next_run_id, next_run_at=moment, occurrence=occurrence), told


def _known(draft: Draft, space: str, piece_id: str) -> Piece:
    piece = draft.find(Piece, space, piece_id)
    if piece is None or piece.desired == REMOVED:
        raise NotFoundError(
            f"there is no piece {piece_id!r} in space {space!r}: `piecework pieces list` shows them",
            space=space,
            piece_id=piece_id,
        )
    return piece


def _call_off(draft: Draft, piece: Piece, now: int, why: str) -> Piece:
    """The piece without the update that was to come; itself, where there is none or somebody has it."""
    run = None if piece.run_id is None else draft.find(Run, piece.run_id)
    if run is None or run.owner is not None or Status(run.status) in ENDED:
        return piece
    if run.status == Status.QUEUED:
        draft.remove(Run, run.run_id)
    else:  # given back by its owner: what it did so far stays in the history
        end_uncharged(draft, run, why, now)
    return replace(piece, run_id=None, next_run_at=None, occurrence=None)


def _end_run(draft: Draft, run: Run, item: FinishPiece, now: int) -> Status:
    failed = item.outcome == "failed"
    wanted = Status.FAILED if failed else Status.COMPLETED
    status = check_move(run.run_id, run.status, Status.ABORTED if run.abort_reason is not None else wanted)
    said = NewEntry(type=f"run:{status}", payload=encode({"outcome": item.outcome, "reason": item.reason}))
    run = write_entries(draft, run, (said,), now)
    draft.put(replace(run, status=status, ended_at=now, cleaned=1, owner=None, outcome=item.outcome, error=item.error))
    if item.result is not None:
        draft.append(RunValue(run.run_id, "result", item.result))
    return status


def _observed(draft: Draft, piece: Piece, run: Run, item: FinishPiece, now: int) -> tuple[Piece, str | None]:
    """What the piece is after an update that is no failure of it, and the event that tells of that."""
    if not item.missed:
        piece = replace(piece, last_run_at=now)
    if item.outcome == INTERRUPTED:
        return piece, None
    if run.abort_reason is not None:  # somebody has stopped it: whatever it came to is not the piece's doing
        return replace(piece, status=f"Aborted: {run.abort_reason}"), None
    if item.outcome == "failed":
        return replace(piece, status=item.reason, last_failure_at=now, last_error=item.error), None
    if item.missed:  # nothing was carried out, and nothing is known better than before
        return replace(piece, status=_words(item)), None
    piece = replace(piece, status=_words(item), state=piece.state if item.state is None else item.state)
    if item.outcome == "retry_after":
        return piece, None
    return judge_success(draft, piece, run, now)


def _words(item: FinishPiece) -> str:
    if item.outcome == "success":
        return "Success"
    word = "Skipped" if item.outcome == "skipped" else "Retry later"
    return f"{word}: {item.reason}" if item.reason else word


def _next_moment(item: FinishPiece, now: int) -> tuple[int | None, str]:
    """When the next update is due, and what makes it so; None where only an event will."""
    if item.outcome == "retry_after":
        return now + max(item.retry_after or 0, SECOND), RETRY
    if item.due_at is not None:
        return item.due_at, CRON
    if item.every is not None:
        return next_run(now, item.every, item.spread, jitter=item.jitter), INTERVAL
    return None, ""
