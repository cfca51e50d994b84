"""The rows of the store, one frozen class a table. Moments are microseconds since the epoch, flags are 0 or 1.

A run row stays small, because every decision rewrites it: payloads, states and results live in `RunValue` rows.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Record(msgspec.Struct, frozen=True):
    """A row: its fields are the table's columns, in order.

    Attributes:
        table: The table's name.
        key: The columns of its primary key.
    """

    table: ClassVar[str]
    key: ClassVar[tuple[str, ...]]

    def identity(self) -> tuple[object, ...]:
        """The values of the primary key."""
        return tuple(getattr(self, name) for name in self.key)


class EventRow(Record, frozen=True):
    """An accepted event; `seq` is the order of acceptance, None until the store has given it."""

    table: ClassVar[str] = "events"
    key: ClassVar[tuple[str, ...]] = ("seq",)

    seq: int | None
    event_id: str | None
    type: str
    space: str | None
    payload: bytes
    accepted_at: int


class Delivery(Record, frozen=True):
    """What became of an event at one trigger, or at one run that waited for it (then `trigger_id` is empty)."""

    table: ClassVar[str] = "deliveries"
    key: ClassVar[tuple[str, ...]] = ("event_seq", "workflow_id", "trigger_id", "run_id")

    event_seq: int
    workflow_id: str
    trigger_id: str
    run_id: str
    outcome: str
    reason: str | None


class Slot(Record, frozen=True):
    """The room that one key of one workflow has for runs; all that admission needs stands here."""

    table: ClassVar[str] = "slots"
    key: ClassVar[tuple[str, ...]] = ("slot_key",)

    slot_key: str
    workflow_id: str
    mode: str
    concurrency: int
    capacity: int
    hold_while_paused: int
    live: int = 0
    queued: int = 0
    closing: int = 0
    paused: int = 0


class Run(Record, frozen=True):
    """One piece of work of any kind.

    `workflow_id` is the workflow's id, the job's name or the piece's integration; `key` is the slot's key or the
    piece's id. `due_at` is set while the run may be claimed; `owner` while a node has it; `visit` counts committed
    stages, `decision` timeline entries, `epoch` claims: a write of a superseded epoch is refused.
    """

    table: ClassVar[str] = "runs"
    key: ClassVar[tuple[str, ...]] = ("run_id",)

    run_id: str
    kind: str
    workflow_id: str
    trigger_id: str
    pipeline_id: str
    slot_key: str | None
    key_value: str | None
    space: str
    status: str
    stage: str | None
    version: str | None
    event_seq: int | None
    epoch: int = 0
    owner: str | None = None
    visit: int = 0
    decision: int = 0
    attempt: int = 0
    resume_count: int = 0
    cleaned: int = 0
    due_at: int | None = None
    expires_at: int | None = None
    created_at: int = 0
    started_at: int | None = None
    paused_at: int | None = None
    ended_at: int | None = None
    abort_reason: str | None = None
    waiting_for: str | None = None
    outcome: str | None = None
    error: str | None = None


class RunValue(Record, frozen=True):
    """A large value of a run, as JSON bytes: `args`, `state`, `patch` (of a resume under way) or `result`."""

    table: ClassVar[str] = "run_values"
    key: ClassVar[tuple[str, ...]] = ("run_id", "name")

    run_id: str
    name: str
    data: bytes


class Wait(Record, frozen=True):
    """One event type that a run waits for. `probe` finds it: see `verbs.probes`.

    `stage` names the stage whose `wait=` it is; it is empty for one that a step registered.
    """

    table: ClassVar[str] = "waits"
    key: ClassVar[tuple[str, ...]] = ("wait_id", "event_type")

    wait_id: str
    event_type: str
    run_id: str
    stage: str
    field: str
    probe: str
    clauses: bytes
    patch: bytes | None
    timeout: int | None
    max_buffer: int
    registered_at: int


class Buffered(Record, frozen=True):
    """An event that a run waits for and that came before it paused; `patch` is what the resume will merge."""

    table: ClassVar[str] = "buffers"
    key: ClassVar[tuple[str, ...]] = ("run_id", "event_seq")

    run_id: str
    event_seq: int
    wait_id: str
    patch: bytes


class Entry(Record, frozen=True):
    """A line of a run's timeline. Decisions have ordinal 0; logs sort beneath the decision that they follow."""

    table: ClassVar[str] = "timeline"
    key: ClassVar[tuple[str, ...]] = ("run_id", "decision", "attempt", "ordinal")

    run_id: str
    decision: int
    attempt: int
    ordinal: int
    at: int
    source: str
    type: str
    path: str
    payload: bytes | None


class Piece(Record, frozen=True):
    """A registered piece. People write `desired`, the runner writes `observed`: neither can overwrite the other."""

    table: ClassVar[str] = "pieces"
    key: ClassVar[tuple[str, ...]] = ("space", "piece_id")

    space: str
    piece_id: str
    integration: str
    config: bytes
    every: int
    desired: str
    desired_reason: str | None
    observed: str
    status: str
    state: bytes
    run_id: str | None
    next_run_at: int | None
    last_run_at: int | None
    last_success_at: int | None
    last_failure_at: int | None
    consecutive_failures: int
    last_error: str | None
    created_at: int
    updated_at: int


TABLES: tuple[type[Record], ...] = (EventRow, Slot, Run, RunValue, Wait, Buffered, Delivery, Entry, Piece)
"""Every table, in the order in which a transaction writes them."""
