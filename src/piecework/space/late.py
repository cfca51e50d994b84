"""What becomes of a piece when something fails that its update had started, and the update has ended. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from piecework.errors import StaleEpochError
from piecework.run.lifecycle import ENDED, Status
from piecework.run.parts import known
from piecework.store.records import Entry, Piece

if TYPE_CHECKING:
    from piecework.store.draft import Draft
    from piecework.store.items import LateFailure

_BEHIND_ALL = 1_000_000
"""Where such entries stand beneath the run's last decision: behind its log lines."""


def decide_late_failure(draft: Draft, item: LateFailure, now: int) -> bool:
    """Writes it into the update's timeline; counts it once where the update went well, and answers whether it did.

    The next update is due when it was.

    Raises:
        NotFoundError: The update is no longer there.
        StaleEpochError: The update is of another space, or was done again by somebody else since.
    """
    run = known(draft, item.run_id)
    if run.space != item.space or run.epoch != item.epoch:
        raise StaleEpochError(
            f"run {item.run_id} is not that of space {item.space!r} at epoch {item.epoch}: a late failure is refused",
            run_id=item.run_id,
        )
    ordinal = _BEHIND_ALL + item.number
    told = item.error.encode()
    draft.append(Entry(run.run_id, run.decision, run.attempt, ordinal, now, "pipeline", "run:late", "", told))
    if run.error is not None or Status(run.status) not in ENDED:
        return False
    draft.put(replace(run, error=item.error))
    piece = draft.find(Piece, run.space, run.key_value)
    if piece is not None and piece.created_at <= run.created_at:  # or it is another one of its name
        failures = piece.consecutive_failures + 1
        seen = replace(piece, status=item.reason, consecutive_failures=failures, last_error=item.error)
        draft.put(replace(seen, last_failure_at=now))
    return True
