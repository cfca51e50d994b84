"""What becomes of a piece when it is registered, asked for, or has been updated. Pure, like `run/folds`.

People write the desired half of a piece's row, the runner the observed half; neither touches the other's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import NotFoundError, StaleEpochError, ValidationError
from piecework.run.failure import backoff
from piecework.run.lifecycle import ENDED, Status, check_move
from piecework.run.parts import encode, write_entries
from piecework.run.schedule import next_run
from piecework.store.items import (
    FinishPiece,
    NewEntry,
    PieceFinished,
    Registered,
    RegisterPiece,
    RunPiece,
    SetDesired,
)
from piecework.store.records import Piece, Run, RunValue

if TYPE_CHECKING:
    from piecework.store.draft import Draft

KIND = "piece"
ENABLED = "enabled"
PAUSED = "paused"
BROKEN = "broken"
INTERRUPTED = "interrupted"


def decide_register_piece(draft: Draft, item: RegisterPiece, now: int) -> Registered:
    """Adds a piece, or enables it again with a new configuration and a clean slate; its next update is due now."""
    before = draft.find(Piece, item.piece.space, item.piece.piece_id)
    if before is None:
        piece = replace(item.piece, run_id=item.run_id, next_run_at=now, created_at=now, updated_at=now)
        draft.put(piece)
        _queue(draft, piece, item.run_id, now, now)
        return Registered(added=True)
    piece = replace(
        before,
        integration=item.piece.integration,
        config=item.piece.config,
        every=item.piece.every,
        desired=ENABLED,
        desired_reason=None,
        status="Re-initializing",
        consecutive_failures=0,
        updated_at=now,
    )
    _bring_forward(draft, piece, item.run_id, now)
    return Registered(added=False)


def decide_run_piece(draft: Draft, item: RunPiece, now: int) -> str:
    """Makes the next update due now and answers its run's id; one that is under way is that run."""
    return _bring_forward(draft, _known(draft, item.space, item.piece_id), item.run_id, now)


def decide_set_desired(draft: Draft, item: SetDesired, now: int) -> bool:
    """Pauses a piece, so that no update follows, or enables it, so that one is due now; answers whether that is new.

    An update that is under way goes on to its end. One that was to come is gone; if it had begun it ends interrupted.
    Enabling what is enabled, and has not stopped for good, changes nothing.

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
        left = _call_off(draft, piece, now)
        if not (same and left is piece):
            draft.put(replace(left, desired=PAUSED, desired_reason=item.reason, updated_at=now))
        return not same
    if same and piece.observed != BROKEN:
        return False
    wanted = replace(piece, desired=ENABLED, desired_reason=item.reason, consecutive_failures=0, updated_at=now)
    _bring_forward(draft, wanted, item.run_id, now)
    return True


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
    status = _end_run(draft, run, item, now)
    if piece is None:
        return PieceFinished(status=status, next_run_at=None)
    piece = _observed(piece, item, now)
    moment = _next_moment(piece, run, item, now)
    if moment is None:
        piece = replace(piece, observed=BROKEN, run_id=None, next_run_at=None)
    elif piece.desired == PAUSED:
        moment, piece = None, replace(piece, run_id=None, next_run_at=None)
    else:
        piece = replace(piece, run_id=item.next_run_id, next_run_at=moment)
        _queue(draft, piece, item.next_run_id, moment, now)
    draft.put(piece)
    return PieceFinished(status=status, next_run_at=moment)


def _known(draft: Draft, space: str, piece_id: str) -> Piece:
    piece = draft.find(Piece, space, piece_id)
    if piece is None:
        raise NotFoundError(
            f"there is no piece {piece_id!r} in space {space!r}: `piecework pieces list` shows them",
            space=space,
            piece_id=piece_id,
        )
    return piece


def _call_off(draft: Draft, piece: Piece, now: int) -> Piece:
    """The piece without the update that was to come; itself, where there is none or somebody has it."""
    run = None if piece.run_id is None else draft.find(Run, piece.run_id)
    if run is None or run.owner is not None or Status(run.status) in ENDED:
        return piece
    if run.status == Status.QUEUED:
        draft.remove(Run, run.run_id)
    else:  # given back by its owner: what it did so far stays in the history
        status = check_move(run.run_id, run.status, Status.ABORTED)
        told = encode({"outcome": INTERRUPTED, "reason": "the piece was paused"})
        run = write_entries(draft, run, (NewEntry(type=f"run:{status}", payload=told),), now)
        draft.put(replace(run, status=status, ended_at=now, cleaned=1, due_at=None, outcome=INTERRUPTED))
    return replace(piece, run_id=None, next_run_at=None)


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


def _observed(piece: Piece, item: FinishPiece, now: int) -> Piece:
    if item.outcome == "failed":
        return replace(
            piece,
            observed="backoff",
            status=item.reason,
            last_run_at=now,
            last_failure_at=now,
            consecutive_failures=piece.consecutive_failures + 1,
            last_error=item.error,
        )
    piece = replace(
        piece,
        observed="idle",
        status=_words(item),
        last_run_at=now,
        state=piece.state if item.state is None else item.state,
    )
    if item.outcome == "retry_after":
        return piece
    return replace(piece, last_success_at=now, consecutive_failures=0)


def _words(item: FinishPiece) -> str:
    if item.outcome == "success":
        return "Success"
    word = "Skipped" if item.outcome == "skipped" else "Retry later"
    return f"{word}: {item.reason}" if item.reason else word


def _next_moment(piece: Piece, run: Run, item: FinishPiece, now: int) -> int | None:
    if piece.updated_at > (run.started_at or 0):
        return now  # registered anew while this update was under way
    if item.outcome == "failed":
        if item.permanent:
            return None
        return now + backoff(piece.every, piece.consecutive_failures, item.spread)
    if item.outcome == "retry_after":
        return now + max(item.retry_after or 0, SECOND)
    return next_run(now, piece.every, item.spread)


def _bring_forward(draft: Draft, piece: Piece, fresh_run_id: str, now: int) -> str:
    """Makes the piece's queued update due now, or queues one where there is none."""
    run = None if piece.run_id is None else draft.find(Run, piece.run_id)
    if run is None or Status(run.status) in ENDED:
        draft.put(replace(piece, run_id=fresh_run_id, next_run_at=now, observed="idle"))
        _queue(draft, piece, fresh_run_id, now, now)
        return fresh_run_id
    if run.owner is None:
        draft.put(replace(run, due_at=now, workflow_id=piece.integration))
        piece = replace(piece, next_run_at=now)
    draft.put(piece)
    return run.run_id


def _queue(draft: Draft, piece: Piece, run_id: str, due_at: int, now: int) -> None:
    run = Run(
        run_id=run_id,
        kind=KIND,
        workflow_id=piece.integration,
        trigger_id="",
        pipeline_id="",
        slot_key=None,
        place=None,
        key_value=piece.piece_id,
        space=piece.space,
        status=Status.QUEUED,
        stage=None,
        version=None,
        event_seq=None,
        due_at=due_at,
        created_at=now,
    )
    draft.add(write_entries(draft, run, (NewEntry(type="run:queued"),), now))
