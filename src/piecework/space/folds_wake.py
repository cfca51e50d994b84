"""What an event does to pieces, and what a clock that was set does to them. Pure, like `folds`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from piecework.run.folds_events import HOP_LIMIT
from piecework.run.lifecycle import Status
from piecework.space.coming import EVENT, ask, update_to_come
from piecework.store.items import Aborting, PiecesWoken
from piecework.store.records import Delivery, Piece, Run

if TYPE_CHECKING:
    from piecework.store.draft import Draft
    from piecework.store.items import MovePiece, WakingPieces


def decide_wake_pieces(draft: Draft, entry: WakingPieces, now: int) -> PiecesWoken:
    """Makes the updates of pieces that an event is for due now; behind the last of them the event waits no longer.

    Paused and broken pieces are passed over, and so are all where the event has come by too many runs.
    """
    item, event = entry.item, entry.event
    key = (item.event_seq, item.workflow_id, "", "")
    delivery = draft.find(Delivery, *key)
    if delivery is None or delivery.outcome != "pending":
        return PiecesWoken(decided=False)
    woken: list[str] = []
    aborting: list[Aborting] = []
    loop = event.hops >= HOP_LIMIT
    for (space, piece_id), fresh in zip(entry.pieces, item.run_ids, strict=False):
        piece = draft.find(Piece, space, piece_id)
        if loop or piece is None or piece.integration != item.integration or not _listens(piece):
            continue
        if _has_had(draft, piece, event.seq):
            continue
        run_id, told = ask(draft, piece, fresh, now, trigger=EVENT, overlap=item.overlap, event=event)
        woken.append(run_id)
        aborting += [] if told is None else [told]
    more = entry.pieces[-1] if entry.more and not loop else None
    if more is None:
        draft.put(replace(delivery, outcome="rejected", reason="loop") if loop else replace(delivery, outcome="woken"))
    return PiecesWoken(decided=True, run_ids=tuple(woken), aborting=tuple(aborting), more=more)


def _listens(piece: Piece) -> bool:
    return piece.desired == "enabled" and piece.observed != "broken"


def _has_had(draft: Draft, piece: Piece, seq: int | None) -> bool:
    """Whether an update that has not ended was woken by this event before: its delivery was cut off in the middle."""
    runs = [update_to_come(draft, piece)]
    if piece.after_run_id is not None:
        runs.append(draft.find(Run, piece.after_run_id))
    return any(run is not None and run.event_seq == seq for run in runs)


def decide_move_piece(draft: Draft, item: MovePiece, now: int) -> bool:  # noqa: ARG001 - the signature of every fold
    """Gives an update that is still to come another time; answers whether it did: others may have been faster."""
    piece = draft.find(Piece, item.space, item.piece_id)
    run = None if piece is None else update_to_come(draft, piece)
    if piece is None or run is None or run.owner is not None or run.due_at != item.was:
        return False
    if run.status != Status.QUEUED:
        return False
    draft.put(replace(run, due_at=item.due_at))
    occurrence = piece.occurrence if item.occurrence is None else item.occurrence
    draft.put(replace(piece, next_run_at=item.due_at, occurrence=occurrence))
    return True
