"""The statuses of a run and the one table of moves between them. Pure.

A move that is not in the table is refused; an ended run never moves again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from piecework.errors import InvalidStateError


class Status(StrEnum):
    """Where a run stands. A run that waits for room in its slot, or for its time, is queued."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"


MOVES: Final[dict[Status, frozenset[Status]]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.ABORTED}),
    Status.RUNNING: frozenset(
        {Status.QUEUED, Status.PAUSED, Status.COMPLETED, Status.FAILED, Status.ABORTED, Status.RUNNING}
    ),
    Status.PAUSED: frozenset({Status.RUNNING, Status.ABORTED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.ABORTED: frozenset(),
}
"""From each status, where a run may go. A running run goes back to queued when it is deferred to a later moment."""

ENDED: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.ABORTED})


def check_move(run_id: str, status: str, to: Status) -> Status:
    """Answers `to` when a run may go there.

    Args:
        run_id: Named in the error.
        status: Where the run stands.
        to: Where it shall go.

    Raises:
        InvalidStateError: The table has no such move.
    """
    if to not in MOVES[Status(status)]:
        word = "has ended" if Status(status) in ENDED else "is"
        raise InvalidStateError(
            f"run {run_id} {word} {status}, so it cannot become {to}: look at its timeline",
            run_id=run_id,
            status=status,
        )
    return to
