"""Pieces, afterwards: `late_failure`. What an update started may fail when the update has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.store.contract import Lock, Read
from piecework.store.draft import Draft
from piecework.store.records import Piece
from piecework.store.verbs.loading import decided, load_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.contract import Decide, Script
    from piecework.store.items import LateFailure


def late_failure(items: Sequence[LateFailure], decide: Decide, now: int) -> Script:
    """Adds failures to timelines of updates that have ended; the first of an update that went well counts."""
    draft = Draft()
    # The piece before its runs, as everybody locks them; whose update a run is never changes.
    peeked = yield Read("pieces_of_runs", {"run_ids": [item.run_id for item in items]}, Piece)
    pieces = sorted({row.identity() for row in peeked})
    draft.load(Piece, pieces, (yield Lock(Piece, pieces)) if pieces else ())
    yield from load_runs(draft, [item.run_id for item in items])
    return (yield from decided(draft, items, decide, now))
