"""What people see of runs and timelines: the rows, told in the words of the public face."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.clock import as_datetime
from piecework.store.values import decode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from piecework.store.records import Entry, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run is, as its steps say.

    Attributes:
        fraction: From 0 to 1.
        message: In words, or None.
        at: When it was committed.
    """

    fraction: float
    message: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One run as it stands.

    Attributes:
        run_id: Its id.
        kind: workflow, job or piece.
        workflow_id: The workflow's id, the job's name or the piece's integration.
        trigger_id: The trigger that started it.
        pipeline_id: The pipeline that it runs.
        key: The key of its slot, or the piece's id.
        space: The tenant.
        status: queued, running, paused, completed, failed or aborted.
        stage: The stage that it is at or goes on with.
        created_at: When it was accepted.
        started_at: When it first ran.
        paused_at: Since when it has been paused.
        ended_at: When it ended.
        expires_at: When its wait ends by itself.
        attempt: How often it has started since its last checkpoint.
        resume_count: How often it has been resumed.
        waiting_for: The event types that it waits for.
        progress: What a step said last of how far it is, or None.
        outcome: Of a piece's run: success, skipped, retry_after, failed or interrupted.
        error: `{type, code, message}` of what ended it, or keeps it from going on; or None.
        result: What it came to, where somebody asked for values.
        version: Of its definition.
    """

    run_id: str
    kind: str
    workflow_id: str
    trigger_id: str
    pipeline_id: str
    key: str | None
    space: str
    status: str
    stage: str | None
    created_at: datetime
    started_at: datetime | None
    paused_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    attempt: int
    resume_count: int
    waiting_for: list[str] | None
    progress: RunProgress | None
    outcome: str | None
    error: dict[str, Any] | None
    result: Any
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One line of a run's timeline.

    Attributes:
        run_id: The run.
        seq: Its place, from 1.
        at: When it was committed.
        source: pipeline, store (what changed the state from outside), container (the run's services), logger or print.
        type: What happened, such as `stage:completed` or `log.info`.
        path: Where: `stage` or `stage/step`, or a service's name.
        payload: More about it, or None.
        attempt: Of the run, since its last checkpoint.
        changed: The places of the run's state that it changed, as dotted paths; `seek` has the values.
    """

    run_id: str
    seq: int
    at: datetime
    source: str
    type: str
    path: str
    payload: Any
    attempt: int
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """A workflow that events find, wherever it is registered.

    Attributes:
        workflow_id: Its id.
        version: The newest that was registered; one that begins with "#" is a digest of its shape.
        events: The event types of its triggers.
        nodes: The living nodes that have it.
        versions: The version that each of them has.
        pending: How many events wait for a node that has it.
    """

    workflow_id: str
    version: str | None
    events: list[str]
    nodes: list[str]
    versions: dict[str, str | None]
    pending: int


def run_info(run: Run, *, result: bytes | None = None) -> RunInfo:
    """Tells a row as a RunInfo."""
    created_at = as_datetime(run.created_at)
    assert created_at is not None
    return RunInfo(
        run_id=run.run_id,
        kind=run.kind,
        workflow_id=run.workflow_id,
        trigger_id=run.trigger_id,
        pipeline_id=run.pipeline_id,
        key=run.key_value,
        space=run.space,
        status=run.status,
        stage=run.stage,
        created_at=created_at,
        started_at=as_datetime(run.started_at),
        paused_at=as_datetime(run.paused_at),
        ended_at=as_datetime(run.ended_at),
        expires_at=as_datetime(run.expires_at),
        attempt=run.attempt,
        resume_count=run.resume_count,
        waiting_for=None if run.waiting_for is None else msgspec.json.decode(run.waiting_for),
        progress=_progress(run.progress),
        outcome=run.outcome,
        error=None if run.error is None else msgspec.json.decode(run.error),
        result=decode(result),
        version=run.version,
    )


def _progress(stored: str | None) -> RunProgress | None:
    if stored is None:
        return None
    fraction, message, moment = msgspec.json.decode(stored)
    at = as_datetime(moment)
    assert at is not None
    return RunProgress(fraction=fraction, message=message, at=at)


def timeline_entry(entry: Entry, seq: int, changed: Sequence[str] = ()) -> TimelineEntry:
    """Tells a row as a TimelineEntry at place `seq` that changed such places of the state."""
    at = as_datetime(entry.at)
    assert at is not None
    return TimelineEntry(
        run_id=entry.run_id,
        seq=seq,
        at=at,
        source=entry.source,
        type=entry.type,
        path=entry.path,
        payload=decode(entry.payload),
        attempt=entry.attempt,
        changed=list(changed),
    )
