"""The statuses of a run and the one table of moves between them. Pure.

A move that is not in the table is refused; an ended run never moves again. That a run waits for room in its slot, has
an owner, is due or is clean are facts of their own beside its status.
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
    Status.QUEUED: frozenset(
        {
            Status.RUNNING,  # claimed
            Status.ABORTED,  # by somebody, superseded, or its workflow was deregistered
        }
    ),
    Status.RUNNING: frozenset(
        {
            Status.RUNNING,  # claimed again: its owner let go of it or died, or it was woken
            Status.QUEUED,  # deferred to a later moment
            Status.PAUSED,  # parked, or its resume failed
            Status.COMPLETED,
            Status.FAILED,
            Status.ABORTED,
        }
    ),
    Status.PAUSED: frozenset(
        {
            Status.RUNNING,  # woken by an event, by its deadline or by somebody; it fails only once it runs
            Status.ABORTED,
        }
    ),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.ABORTED: frozenset(),
}
"""From each status, where a run may go."""

ENDED: Final = frozenset(status for status, moves in MOVES.items() if not moves)
"""The statuses that a run never leaves."""


def has_ended(status: str) -> bool:
    """Tells whether a run of this status is over.

    Raises:
        ValueError: There is no such status.
    """
    return Status(status) in ENDED


def standing(status: str) -> str:
    """The words for a status in a sentence about a run: "is paused", "has ended (failed)"."""
    return f"has ended ({status})" if has_ended(status) else f"is {status}"


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
        raise InvalidStateError(
            f"run {run_id} {standing(status)}, so it cannot become {to}: look at its timeline",
            run_id=run_id,
            status=status,
        )
    return to
