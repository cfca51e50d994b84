"""Pieces: `register_piece`, `run_piece`, `set_desired`, `remove_piece`, `finish_piece`, `wake_pieces`, `move_piece`.

A piece's next update is a queued run, and so is the one that follows right after what is under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import Change, Failure, Lock, Read, Tell
from piecework.store.draft import Draft
from piecework.store.items import PiecesWoken, WakingPieces
from piecework.store.records import Delivery, EventRow, Piece, Run
from piecework.store.verbs.loading import decided, load_runs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from piecework.store.contract import Decide, Request, Script
    from piecework.store.items import (
        FinishPiece,
        MovePiece,
        RegisterPiece,
        RemovePiece,
        RunPiece,
        SetDesired,
        WakePieces,
    )


def register_piece(items: Sequence[RegisterPiece], decide: Decide, now: int) -> Script:
    """Registers pieces, or enables them again with a new configuration; the first update is due at once."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.piece.space, item.piece.piece_id) for item in items])
    return (yield from decided(draft, items, decide, now))


def run_piece(items: Sequence[RunPiece], decide: Decide, now: int) -> Script:
    """Makes the next update of pieces due now; what becomes of one that is under way is the overlap's."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.space, item.piece_id) for item in items])
    return (yield from decided(draft, items, decide, now))


def set_desired(items: Sequence[SetDesired], decide: Decide, now: int) -> Script:
    """Enables or pauses pieces; an update that is under way goes on to its end, one that was to come is forgotten."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.space, item.piece_id) for item in items])
    outcomes = yield from decided(draft, items, decide, now)
    yield from _forget_called_off(draft, [item.run_id for item in items])
    return outcomes


def remove_piece(items: Sequence[RemovePiece], decide: Decide, now: int) -> Script:
    """Ends pieces: an update that was to come is forgotten, one that is under way is told to end, and is the last."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.space, item.piece_id) for item in items])
    outcomes = yield from decided(draft, items, decide, now)
    yield from _forget_called_off(draft, ())
    return outcomes


def finish_piece(items: Sequence[FinishPiece], decide: Decide, now: int) -> Script:
    """Ends updates: outcome, counters, state and the next due time in one commit; surplus history goes with it.

    An event that tells of a piece that broke, or works again, goes into the inbox with the same commit.
    """
    draft = Draft()
    # The piece before its runs, as everybody locks them; whose update a run is never changes.
    peeked = yield Read("pieces_of_runs", {"run_ids": [item.run_id for item in items]}, Piece)
    pieces = sorted({row.identity() for row in peeked})
    rows = (yield Lock(Piece, pieces)) if pieces else ()
    draft.load(Piece, pieces, rows)
    after = [row.after_run_id for row in rows if row.after_run_id is not None]
    yield from load_runs(draft, [*(item.run_id for item in items), *after])
    draft.load(Piece, [(run.space, run.key_value) for run in draft.all(Run)], ())
    outcomes = yield from decided(draft, items, decide, now)
    for item, outcome in zip(items, outcomes, strict=True):
        if not isinstance(outcome, Failure):
            yield from _trim(draft.get(Run, item.run_id), item)
    if any(getattr(outcome, "told", None) is not None for outcome in outcomes):
        yield Tell(["inbox"])
    return outcomes


def wake_pieces(items: Sequence[WakePieces], decide: Decide, now: int) -> Script:
    """Makes the updates of pieces due that events are for, the next so many of each; then the event waits no longer."""
    draft = Draft()
    keys = sorted({(item.event_seq, item.workflow_id, "", "") for item in items})
    draft.load(Delivery, keys, (yield Lock(Delivery, keys)))
    seqs = sorted({item.event_seq for item in items})
    events: list[EventRow] = yield Read("events_by_seq", {"seqs": seqs}, EventRow)
    by_seq = {event.seq: event for event in events}
    found: list[list[tuple[str, str]]] = []
    for item in items:
        limit, (after_space, after_id) = len(item.run_ids), item.after
        event = by_seq.get(item.event_seq)
        params: dict[str, Any] = {"integration": item.integration, "space": None if event is None else event.space}
        params |= {"after_space": after_space, "after_id": after_id, "limit": limit}
        rows: list[Piece] = yield Read("pieces_of_integration", params, Piece)
        found.append([(row.space, row.piece_id) for row in rows])
    yield from _load_pieces(draft, [key for keys in found for key in keys])
    entries = [
        WakingPieces(item=item, event=by_seq[item.event_seq], pieces=tuple(mine), more=len(mine) == len(item.run_ids))
        for item, mine in zip(items, found, strict=True)
        if item.event_seq in by_seq
    ]
    outcomes = iter((yield from decided(draft, entries, decide, now)))
    return [next(outcomes) if item.event_seq in by_seq else PiecesWoken(decided=False) for item in items]


def move_piece(items: Sequence[MovePiece], decide: Decide, now: int) -> Script:
    """Gives updates that are to come another time."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.space, item.piece_id) for item in items])
    return (yield from decided(draft, items, decide, now))


def _forget_called_off(draft: Draft, made: Iterable[str]) -> Generator[Request, Any, None]:
    """Removes the timelines of updates that were to come and are gone; `made` may have come and gone in this batch."""
    known = {*made, *(run.run_id for run, _ in draft.changed(Run) if run is not None)}
    called_off = sorted(i for i in known if draft.knows(Run, i) and draft.find(Run, i) is None)
    if called_off:
        yield Change("delete_timelines", {"run_ids": called_off})


def _load_pieces(draft: Draft, keys: Iterable[tuple[str, str]]) -> Generator[Request, Any, None]:
    wanted = sorted(set(keys))
    rows: Sequence[Piece] = (yield Lock(Piece, wanted)) if wanted else ()
    draft.load(Piece, wanted, rows)
    yield from load_runs(draft, [i for row in rows for i in (row.run_id, row.after_run_id) if i is not None])


def _trim(run: Run, item: FinishPiece) -> Generator[Request, Any, None]:
    rows = yield Read(
        "surplus_piece_runs",
        {
            "space": run.space,
            "piece_id": run.key_value,
            "history_limit": item.history_limit,
            "skipped_limit": item.skipped_limit,
        },
    )
    if rows:
        ids = [row[0] for row in rows]
        for name in ("delete_run_values", "delete_timelines", "delete_runs"):
            yield Change(name, {"run_ids": ids})
