"""Pieces: `register_piece`, `run_piece`, `set_desired`, `finish_piece`. A piece's next update is a queued run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import Change, Failure, Lock, Read
from piecework.store.draft import Draft
from piecework.store.records import Piece, Run
from piecework.store.verbs.loading import decided, load_runs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from piecework.store.contract import Decide, Request, Script
    from piecework.store.items import FinishPiece, RegisterPiece, RunPiece, SetDesired


def register_piece(items: Sequence[RegisterPiece], decide: Decide, now: int) -> Script:
    """Registers pieces, or enables them again with a new configuration; the first update is due at once."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.piece.space, item.piece.piece_id) for item in items])
    return (yield from decided(draft, items, decide, now))


def run_piece(items: Sequence[RunPiece], decide: Decide, now: int) -> Script:
    """Makes the next update of pieces due now; one that is under way is left alone."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.space, item.piece_id) for item in items])
    return (yield from decided(draft, items, decide, now))


def set_desired(items: Sequence[SetDesired], decide: Decide, now: int) -> Script:
    """Enables or pauses pieces; an update that is under way goes on to its end, one that was to come is forgotten."""
    draft = Draft()
    yield from _load_pieces(draft, [(item.space, item.piece_id) for item in items])
    outcomes = yield from decided(draft, items, decide, now)
    known = {item.run_id for item in items} | {run.run_id for run, _ in draft.changed(Run) if run is not None}
    called_off = sorted(i for i in known if draft.knows(Run, i) and draft.find(Run, i) is None)
    if called_off:
        yield Change("delete_timelines", {"run_ids": called_off})
    return outcomes


def finish_piece(items: Sequence[FinishPiece], decide: Decide, now: int) -> Script:
    """Ends updates: outcome, counters, state and the next due time in one commit; surplus history goes with it."""
    draft = Draft()
    # The piece before its runs, as everybody locks them; whose update a run is never changes.
    peeked = yield Read("pieces_of_runs", {"run_ids": [item.run_id for item in items]}, Piece)
    pieces = sorted({row.identity() for row in peeked})
    draft.load(Piece, pieces, (yield Lock(Piece, pieces)) if pieces else ())
    yield from load_runs(draft, [item.run_id for item in items])
    draft.load(Piece, [(run.space, run.key_value) for run in draft.all(Run)], ())
    outcomes = yield from decided(draft, items, decide, now)
    for item, outcome in zip(items, outcomes, strict=True):
        if not isinstance(outcome, Failure):
            yield from _trim(draft.get(Run, item.run_id), item)
    return outcomes


def _load_pieces(draft: Draft, keys: Iterable[tuple[str, str]]) -> Generator[Request, Any, None]:
    wanted = sorted(set(keys))
    rows = yield Lock(Piece, wanted)
    draft.load(Piece, wanted, rows)
    yield from load_runs(draft, [row.run_id for row in rows if row.run_id is not None])


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
