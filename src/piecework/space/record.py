"""What people are told of a registered piece, and of a space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.clock import as_datetime
from piecework.run.failure import Observed
from piecework.space.timing import Timing
from piecework.store.values import decode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from piecework.store.records import Piece, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRecord:
    """A registered piece as it stands.

    Attributes:
        space: The tenant.
        piece_id: Unique in its space.
        integration: Which update function it has.
        config: What the update is given.
        schedule: When it runs, in words.
        desired: enabled or paused: what people want.
        desired_reason: Why.
        observed: What is: idle, waiting (for an event), queued, running; after a failure backoff, half-open or broken.
        status: The last outcome in words.
        next_run_at: When it is due.
        last_run_at: When it last ended.
        last_success_at: When it last succeeded.
        last_failure_at: When it last failed.
        consecutive_failures: In a row, up to now.
        last_error: `{type, code, message}` of the last failure.
        broken_at: Since when it has been out of order: half-open, or stopped for good, and not well again since.
        created_at: When it was registered.
        updated_at: When it was last registered.
    """

    space: str
    piece_id: str
    integration: str
    config: dict[str, Any]
    schedule: str
    desired: str
    desired_reason: str | None
    observed: str
    status: str
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    consecutive_failures: int
    last_error: dict[str, Any] | None
    broken_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None


def piece_record(row: Piece, usual: Timing | None, update: Run | None, now: int) -> PieceRecord:
    """Tells a piece as it stands.

    Args:
        row: As it is kept.
        usual: Its integration's timing; None when no living node declares it.
        update: Its next or present one, where there is one.
        now: In microseconds.
    """
    timing = (Timing(every_seconds=None) if usual is None else usual).of_piece(row.every, row.schedule)
    return PieceRecord(
        space=row.space,
        piece_id=row.piece_id,
        integration=row.integration,
        config=decode(row.config),
        schedule=timing.words() or "unknown: no living node has its integration",
        desired=row.desired,
        desired_reason=row.desired_reason,
        observed=str(_standing(row, update, now)),
        status=row.status,
        next_run_at=as_datetime(row.next_run_at),
        last_run_at=as_datetime(row.last_run_at),
        last_success_at=as_datetime(row.last_success_at),
        last_failure_at=as_datetime(row.last_failure_at),
        consecutive_failures=row.consecutive_failures,
        last_error=None if row.last_error is None else msgspec.json.decode(row.last_error),
        broken_at=as_datetime(row.broken_at),
        created_at=as_datetime(row.created_at),
        updated_at=as_datetime(row.updated_at),
    )


def _standing(row: Piece, update: Run | None, now: int) -> str:
    """What a piece is: beside what its updates came to, whether the next one is due or under way."""
    if Observed(row.observed).out_of_order or update is None:
        return row.observed
    if update.owner is not None:
        return Observed.RUNNING
    return Observed.QUEUED if update.due_at is not None and update.due_at <= now else row.observed


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRecord:
    """A space as it is now.

    Of a worker that another node of a PostgreSQL store has, it is what that node told with its last heartbeat.

    Attributes:
        space: Its name.
        observed: idle (no worker), starting, running, ready (a worker waits), blocked (its loop does not turn),
            stopping, backoff (the next start is put off) or broken (only a probe is tried now and then).
        pid: Of its worker, as its node numbers it.
        memory_bytes: What its worker has in memory, shared pages included; None without one, or where that is hidden.
        restarts: How often a worker of it ended by itself or could not be started, since its node opened.
        broken_reason: Why it is broken, or its next start put off.
        blocked_at: Since when the loop of its worker has not turned.
        limits: How each limit is enforced here: memory cpu processes files wall folder filesystem syscalls.
    """

    space: str
    observed: str
    pid: int | None
    memory_bytes: int | None
    restarts: int
    broken_reason: str | None
    blocked_at: datetime | None
    limits: Mapping[str, str]
