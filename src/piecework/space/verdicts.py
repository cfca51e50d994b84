"""What the end of an update says of its piece, and what others are told with it. Pure, like `folds`.

A piece that goes out of order (half-open, or stopped for good) is told once, by an event that is in the same commit;
its next success is told once too. A piece that somebody enables begins anew: if it breaks again that is told again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from piecework.clock import as_datetime, micros
from piecework.run.failure import USUAL, Backoff, Observed, after_failure
from piecework.run.parts import encode
from piecework.store.records import Inbox

if TYPE_CHECKING:
    from piecework.store.draft import Draft
    from piecework.store.items import FinishPiece
    from piecework.store.records import Piece, Run

BROKE: Final = "piece:broken"
"""The type of the event that a piece is out of order."""

RECOVERED: Final = "piece:recovered"
"""The type of the event that it works again."""


def judge_failure(
    draft: Draft, piece: Piece, run: Run, item: FinishPiece, now: int
) -> tuple[Piece, int | None, str | None]:
    """Charges a piece with a failure, by its policy.

    Returns:
        The piece, when its next update is due (None: not until somebody enables it), and the event that tells of it.
    """
    failures = piece.consecutive_failures + 1
    after = after_failure(
        USUAL if item.failure is None else item.failure,
        item.reason,
        every=item.every or 0,
        failures=failures,
        permanent=item.permanent or piece.observed == Observed.BROKEN,  # what has stopped was tried by hand
        retry_after=item.retry_after,
        spread=item.spread,
    )
    breaks = after.observed.out_of_order and not Observed(piece.observed).out_of_order
    piece = replace(
        piece,
        observed=after.observed,
        status=after.status,
        last_run_at=now,
        last_failure_at=now,
        consecutive_failures=failures,
        last_error=item.error,
        broken_at=now if breaks else piece.broken_at,
    )
    moment = None if after.delay is None else now + after.delay
    if breaks:
        told = {"status": after.status, "error": _told(item.error), "failures": failures, "next_run_at": _iso(moment)}
        _tell(draft, BROKE, piece, run, told, now)
    return piece, moment, BROKE if breaks else None


def judge_success(draft: Draft, piece: Piece, run: Run, now: int) -> tuple[Piece, str | None]:
    """Clears what was held against a piece.

    Returns:
        The piece, and the event that tells that it works again, where it was told to be out of order.
    """
    since = piece.broken_at
    piece = replace(piece, observed=Observed.IDLE, last_success_at=now, consecutive_failures=0, broken_at=None)
    if since is None:
        return piece, None
    _tell(draft, RECOVERED, piece, run, {"status": piece.status, "broken_at": _iso(since)}, now)
    return piece, RECOVERED


def next_probe(item: FinishPiece, now: int) -> int:
    """When a half-open piece is looked at again, after a probe that somebody stopped before it could tell."""
    policy = item.failure if isinstance(item.failure, Backoff) else USUAL
    return now + micros(policy.probe_seconds)


def _tell(draft: Draft, type_: str, piece: Piece, run: Run, more: dict[str, Any], now: int) -> None:
    payload = {
        "piece_id": piece.piece_id,
        "integration": piece.integration,
        "observed": piece.observed,
        "run_id": run.run_id,
    } | more
    event_id = f"{type_}:{run.run_id}"
    draft.append(Inbox(None, event_id, type_, piece.space, encode(payload), now, run.hops + 1))


def _told(error: str | None) -> dict[str, Any] | None:
    """What failed, without its traceback."""
    known = {} if error is None else msgspec.json.decode(error)
    return {name: known[name] for name in ("type", "code", "message") if name in known} or None


def _iso(moment: int | None) -> str | None:
    at = as_datetime(moment)
    return None if at is None else at.isoformat()
