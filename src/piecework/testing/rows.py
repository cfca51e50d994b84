"""Rows and items as tests need them: the arguments that a test cares about, and plain defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from piecework.ids import new_id
from piecework.run.lifecycle import Status
from piecework.store import items
from piecework.store.records import Digest, EventRow, Inbox, NodeRow, Notification, Piece, Run, Slot, Wait
from piecework.workflow.pause import WaitFor, waits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from piecework.run.failure import FailurePolicy

NOW = 1_767_225_600_000_000
"""Where the time of a test begins: microseconds since the epoch."""

WORKFLOW = "orders"
KNOWN = ("workflow:orders", "job:tidy", "piece:feed")


def slot(
    key: str = "a",
    *,
    mode: str = "serialized",
    on_busy: str = "",
    concurrency: int = 1,
    capacity: int = 1000,
    hold: bool = True,
) -> Slot:
    """The slot of one key, as a registration would make it."""
    return Slot(key, WORKFLOW, mode, on_busy, concurrency, capacity, int(hold))


def transient(key: str = "t", *, concurrency: int = 2, capacity: int = 1000, hold: bool = False) -> Slot:
    """A slot with room for several runs, whose paused runs leave their places."""
    return slot(key, mode="transient", concurrency=concurrency, capacity=capacity, hold=hold)


def single(on_busy: str, key: str = "s", *, hold: bool = True) -> Slot:
    """A slot of one run at a time, as the mode with that `on_busy` would make it."""
    mode = "exclusive" if on_busy in {"reject", "queue_single"} else "singleton_loop"
    return slot(key, mode=mode, on_busy=on_busy, capacity=int(on_busy in {"replace", "queue_single"}), hold=hold)


def route(
    to: Slot,
    *,
    run_id: str | None = None,
    trigger: str = "default",
    version: str | None = "1",
    patch: bytes | None = None,
    refused: str | None = None,
    telling: bool = False,
) -> items.Route:
    """A trigger that an event matches."""
    return items.Route(
        kind="workflow",
        workflow_id=to.workflow_id,
        trigger_id=trigger,
        pipeline_id=trigger,
        run_id=run_id or new_id(),
        slot=to,
        key=to.slot_key,
        version=version,
        patch=patch,
        refused=refused,
        telling=telling,
    )


def event(
    type_: str = "order.placed",
    payload: dict[str, Any] | None = None,
    *,
    event_id: str | None = None,
    routes: Sequence[items.Route] = (),
    space: str | None = None,
    known: Mapping[str, str | None] | None = None,
    inbox_seq: int | None = None,
    accepted_at: int = NOW,
) -> items.Accept:
    """A new event with the triggers that it matches; `known` are the workflows that were looked at."""
    body = {} if payload is None else payload
    row = EventRow(None, event_id or new_id(), type_, space, msgspec.json.encode(body), accepted_at)
    return items.Accept(event=row, payload=body, routes=tuple(routes), known=dict(known or {}), inbox_seq=inbox_seq)


def published(event_id: str, type_: str = "order.placed", payload: bytes = b"{}") -> Inbox:
    """An event as a transaction of somebody else's puts it into the inbox."""
    return Inbox(None, event_id, type_, None, payload, NOW)


def waits(
    run_id: str, *events: str, max_buffer: int = 1000, wait_id: str | None = None, **options: Any
) -> tuple[Wait, ...]:
    """The rows of one registration; `options` are those of `WaitFor`."""
    wait_for = WaitFor(*(events or ("order.paid",)), **options)
    rows = waits_of(wait_for, run_id, max_buffer=max_buffer)
    return rows if wait_id is None else tuple(msgspec.structs.replace(row, wait_id=wait_id) for row in rows)


def job(
    run_id: str | None = None,
    *,
    due_at: int | None = None,
    args: bytes = b"{}",
    space: str = "default",
    occurrence: str | None = None,
    again: bool = False,
) -> items.Enqueue:
    """A run that no event asked for."""
    run = Run(
        run_id=run_id or new_id(),
        kind="job",
        workflow_id="tidy",
        trigger_id="",
        pipeline_id="",
        slot_key=None,
        place=None,
        key_value=None,
        space=space,
        status=Status.QUEUED,
        stage=None,
        version=None,
        event_seq=None,
        due_at=due_at,
    )
    return items.Enqueue(run=run, args=args, occurrence=occurrence, again=again)


def notification(
    notification_id: str | None = None,
    *,
    to: str = "ada@example.org",
    body: bytes = b"Hello",
    due_at: int = NOW,
    occurrence: str | None = None,
    wake: bool = True,
    once: bool = False,
) -> items.Notify:
    """Something that somebody is to be told; those of one body are alike."""
    identity = notification_id or new_id()
    return items.Notify(
        digest=Digest(digest_id=to, space="acme", email=to, last_id="", due_at=due_at),
        notification=Notification(None, identity, to, body.hex(), None, body, NOW),
        wake=job(due_at=due_at, occurrence=occurrence) if wake else None,
        once=once,
    )


def node(node_id: str = "node-1", *, workflows: Sequence[str] = (), expires_at: int | None = None) -> NodeRow:
    """A node as it tells of itself."""
    told = msgspec.json.encode(list(workflows))
    return NodeRow(node_id, 1, "here", "1.0", told, NOW, NOW, expires_at)


def stage_end(
    run: Run, then: Any, *, visit: int | None = None, state: bytes = b"{}", signalled: int = 0
) -> items.CommitStage:
    """The end of a stage of a claimed run."""
    at = run.visit if visit is None else visit
    return items.CommitStage(run_id=run.run_id, epoch=run.epoch, visit=at, state=state, signalled=signalled, then=then)


def piece(piece_id: str = "hn", *, space: str = "acme", config: bytes = b"{}") -> Piece:
    """A piece as its registration describes it."""
    return Piece(
        space=space,
        piece_id=piece_id,
        integration="feed",
        config=config,
        every=None,
        schedule=None,
        occurrence=None,
        after_run_id=None,
        desired="enabled",
        desired_reason=None,
        observed="idle",
        status="Initializing",
        state=b"{}",
        run_id=None,
        next_run_at=None,
        last_run_at=None,
        last_success_at=None,
        last_failure_at=None,
        consecutive_failures=0,
        last_error=None,
        broken_at=None,
        created_at=0,
        updated_at=0,
    )


def piece_end(
    run: Run,
    outcome: str = "success",
    *,
    state: bytes | None = None,
    permanent: bool = False,
    retry_after: int | None = None,
    history_limit: int = 50,
    skipped_limit: int = 5,
    next_run_id: str | None = None,
    spread: float = 0.0,
    failure: FailurePolicy | None = None,
    **schedule: Any,
) -> items.FinishPiece:
    """The end of a piece's update; every minute is its interval, where nothing else is given."""
    failed = outcome == "failed"
    return items.FinishPiece(
        run_id=run.run_id,
        epoch=run.epoch,
        outcome=outcome,
        result=None if failed else b"{}",
        error='{"type":"E","code":"EXECUTION_FAILED","message":"no"}' if failed else None,
        reason="because" if outcome != "success" else "",
        permanent=permanent,
        retry_after=retry_after,
        state=state,
        next_run_id=next_run_id or new_id(),
        spread=spread,
        history_limit=history_limit,
        skipped_limit=skipped_limit,
        failure=failure,
        **{"every": 60_000_000} | schedule,
    )
