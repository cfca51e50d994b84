"""The rows of the store, one frozen class a table. Moments are microseconds since the epoch, flags are 0 or 1.

A run row stays small, because every decision rewrites it: payloads, states and results live in `RunValue` rows.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Record(msgspec.Struct, frozen=True):
    """A row: its fields are the table's columns, in order.

    Attributes:
        table: The table's name.
        key: The columns of its primary key.
        serial: The column that the store numbers in order of arrival; None in a row that it has not seen.
        together: Columns that change together again and again, the fewest first: where only such do, only they are
            written. Each is one more text of a statement, so there are few.
    """

    table: ClassVar[str]
    key: ClassVar[tuple[str, ...]]
    serial: ClassVar[str | None] = None
    together: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def identity(self) -> tuple[object, ...]:
        """The values of the primary key."""
        return _key_of(type(self))(self)


@cache
def _key_of(record: type[Record]) -> Callable[[Record], tuple[object, ...]]:
    get = attrgetter(*record.key)
    return get if len(record.key) > 1 else lambda row: (get(row),)


class EventRow(Record, frozen=True):
    """An accepted event. Its id is cleared when duplicates of it are no longer looked for.

    `hops` counts the runs that it came by: each published the event that started the next.
    """

    table: ClassVar[str] = "events"
    key: ClassVar[tuple[str, ...]] = ("seq",)
    serial: ClassVar[str | None] = "seq"

    seq: int | None
    event_id: str | None
    type: str
    space: str | None
    payload: bytes
    accepted_at: int
    hops: int = 0


class Inbox(Record, frozen=True):
    """An event published inside somebody's own transaction: a node accepts it once that has committed.

    It shares no unique column with `events`, so two transactions never wait for each other here.
    """

    table: ClassVar[str] = "event_inbox"
    key: ClassVar[tuple[str, ...]] = ("inbox_seq",)
    serial: ClassVar[str | None] = "inbox_seq"

    inbox_seq: int | None
    event_id: str
    type: str
    space: str | None
    payload: bytes
    published_at: int
    hops: int = 0


class WorkflowRow(Record, frozen=True):
    """A workflow that was registered and not retired: what stands between its registrations and its events.

    `version` is the newest that was registered; a node of an older one decides nothing for it.
    """

    table: ClassVar[str] = "workflows"
    key: ClassVar[tuple[str, ...]] = ("workflow_id",)

    workflow_id: str
    version: str | None
    registered_at: int


PIECES = "piece:"
"""What integrations of pieces begin with where events wait for them as for workflows; their types may be patterns."""


class RouteRow(Record, frozen=True):
    """An event type that a workflow was registered for: its events find it also where no node has it just now.

    `version` is its workflow's.
    """

    table: ClassVar[str] = "routes"
    key: ClassVar[tuple[str, ...]] = ("event_type", "workflow_id")

    event_type: str
    workflow_id: str
    version: str | None
    registered_at: int


class Fanout(Record, frozen=True):
    """An event that more runs wait for than one commit wakes: the rest begins behind `probe`, `wait_id`."""

    table: ClassVar[str] = "fanouts"
    key: ClassVar[tuple[str, ...]] = ("event_seq",)

    event_seq: int
    probe: str
    wait_id: str


class Occurrence(Record, frozen=True):
    """Something that may happen once (a job at its moment, under a key of the user's), and the run that it became."""

    table: ClassVar[str] = "occurrences"
    key: ClassVar[tuple[str, ...]] = ("occurrence",)

    occurrence: str
    run_id: str
    created_at: int


NO_SPACES = b"[]"
"""What a node says that knows of no space."""


class NodeRow(Record, frozen=True):
    """A process that runs runs. Its lease ends at `expires_at`; None where a lock stands for the lease.

    `workflows` is the JSON list of those that it has registered; `spaces` is what it knows of its spaces' workers, for
    processes that cannot ask it.
    """

    table: ClassVar[str] = "nodes"
    key: ClassVar[tuple[str, ...]] = ("node_id",)

    node_id: str
    pid: int
    host: str
    version: str
    workflows: bytes
    started_at: int
    renewed_at: int
    expires_at: int | None
    spaces: bytes = NO_SPACES


class Space(Record, frozen=True):
    """A tenant. `next_due` is no later than the earliest due time of its runs; None where nothing is due."""

    table: ClassVar[str] = "spaces"
    key: ClassVar[tuple[str, ...]] = ("space",)

    space: str
    next_due: int | None
    weight: int = 1


class Delivery(Record, frozen=True):
    """What became of an event at one trigger, or at one run that waited for it (then `trigger_id` is empty).

    `pending` (trigger and run empty): a node that has the workflow's newest version has still to decide.
    """

    table: ClassVar[str] = "deliveries"
    key: ClassVar[tuple[str, ...]] = ("event_seq", "workflow_id", "trigger_id", "run_id")

    event_seq: int
    workflow_id: str
    trigger_id: str
    run_id: str
    outcome: str
    reason: str | None


class Slot(Record, frozen=True):
    """The room that one key of one workflow has for runs; all that admission needs stands here.

    `live` counts started, unended runs, `paused` those of them that are paused, `closing` ended ones that are not clean
    yet. `admitted` numbers the runs in the order of admission. The two run ids are kept by modes of one run at a time:
    the one that has the place, and the one that gets it next.
    """

    table: ClassVar[str] = "slots"
    key: ClassVar[tuple[str, ...]] = ("slot_key",)

    slot_key: str
    workflow_id: str
    mode: str
    on_busy: str
    concurrency: int
    capacity: int
    hold_while_paused: int
    live: int = 0
    queued: int = 0
    closing: int = 0
    paused: int = 0
    admitted: int = 0
    active_run_id: str | None = None
    pending_run_id: str | None = None


class Run(Record, frozen=True):
    """One piece of work of any kind.

    `workflow_id` is the workflow's id, the job's name or the piece's integration; `key_value` is the slot's key or the
    piece's id. `place` is its number in the slot's queue. `due_at` is set while the run may be claimed; `owner` while a
    node has it; `visit` counts committed stages, `decision` timeline entries, `epoch` claims: a write of a superseded
    epoch is refused. `patched` says that the patch of a resume is kept until its stage commits, `signals` how many were
    sent and are not in a checkpoint, `told` names the last call from outside that had an effect: its repeat is known
    by it. `telling` says whether somebody wants to hear of its end: 1 before it has ended, and until they have heard of
    it, as long as the run keeps its place; 2 when it ended without an owner, and its place is free; 0 else. `hops` is
    its event's, or that of the run that asked for it; `progress` is what a step said last, as JSON.
    """

    table: ClassVar[str] = "runs"
    key: ClassVar[tuple[str, ...]] = ("run_id",)
    together: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("owner", "cleaned", "decision", "telling"),
        ("stage", "visit", "decision", "attempt", "patched", "signals"),
        ("status", "decision", "ended_at", "error", "signals", "telling"),
        ("status", "version", "epoch", "owner", "decision", "attempt", "due_at", "started_at", "error"),
    )

    run_id: str
    kind: str
    workflow_id: str
    trigger_id: str
    pipeline_id: str
    slot_key: str | None
    place: int | None
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
    patched: int = 0
    signals: int = 0
    telling: int = 0
    cleaned: int = 0
    due_at: int | None = None
    expires_at: int | None = None
    created_at: int = 0
    started_at: int | None = None
    paused_at: int | None = None
    ended_at: int | None = None
    abort_reason: str | None = None
    told: str | None = None
    waiting_for: str | None = None
    outcome: str | None = None
    error: str | None = None
    hops: int = 0
    progress: str | None = None


class RunValue(Record, frozen=True):
    """A large value of a run, as JSON bytes: `args`, `state`, `patch` (of a resume under way) or `result`."""

    table: ClassVar[str] = "run_values"
    key: ClassVar[tuple[str, ...]] = ("run_id", "name")

    run_id: str
    name: str
    data: bytes


class Wait(Record, frozen=True):
    """One event type that a run waits for. `probe` finds it: see `verbs.probes`.

    `stage` names the stage whose `wait=` it is; it is empty for one that a step registered. Under `mode` "any" one
    event is enough; under "all" there has to be one of each type under its `wait_id`.
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
    mode: str = "any"


class Signal(Record, frozen=True):
    """A patch that somebody sent to an unended run; it goes when a checkpoint holds it."""

    table: ClassVar[str] = "signals"
    key: ClassVar[tuple[str, ...]] = ("run_id", "number")

    run_id: str
    number: int
    patch: bytes
    sent_at: int


class Buffered(Record, frozen=True):
    """An event that a run waits for and that came before it could be used; `patch` is what the resume will merge.

    It came before the run paused; or its wait wants one of each type, and others are still missing.
    """

    table: ClassVar[str] = "buffers"
    key: ClassVar[tuple[str, ...]] = ("run_id", "event_seq")

    run_id: str
    event_seq: int
    wait_id: str
    event_type: str
    patch: bytes


class Entry(Record, frozen=True):
    """A line of a run's timeline. Decisions have ordinal 0; logs sort beneath the decision that they follow.

    `delta` says what became of the run's state there, as `workflow.deltas` has it.
    """

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
    delta: bytes | None = None


class Piece(Record, frozen=True):
    """A registered piece. People write `desired`, the runner writes `observed`: neither can overwrite the other.

    `every` and `schedule` stand only where its registration gave its own. `occurrence` is the cron time that the update
    to come, or under way, is for; `after_run_id` is the update that follows right after the one under way.
    `broken_at` is when it was last told to be out of order, until it has succeeded again. One that was removed while an
    update of it is under way stays, `desired` removed, until that has ended: so no two updates of one piece overlap.
    """

    table: ClassVar[str] = "pieces"
    key: ClassVar[tuple[str, ...]] = ("space", "piece_id")

    space: str
    piece_id: str
    integration: str
    config: bytes
    every: int | None
    schedule: str | None
    occurrence: int | None
    after_run_id: str | None
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
    broken_at: int | None
    created_at: int
    updated_at: int


class Digest(Record, frozen=True):
    """The mail that collects what one address in one space is to be told; it stands here only while there is something.

    `last_id` is the notification that came last: what was read is known by it to be all. It is empty before the first.
    """

    table: ClassVar[str] = "digests"
    key: ClassVar[tuple[str, ...]] = ("digest_id",)

    digest_id: str
    space: str
    email: str
    last_id: str
    due_at: int


class Notification(Record, frozen=True):
    """Something that somebody is to be told. `alike` is the same for those that are counted as one."""

    table: ClassVar[str] = "notifications"
    key: ClassVar[tuple[str, ...]] = ("seq",)
    serial: ClassVar[str | None] = "seq"

    seq: int | None
    notification_id: str
    digest_id: str
    alike: str
    subject: str | None
    body: bytes
    created_at: int


TABLES: tuple[type[Record], ...] = (
    Digest,
    Notification,
    EventRow,
    Inbox,
    Fanout,
    Occurrence,
    Slot,
    Run,
    RunValue,
    Wait,
    Buffered,
    Signal,
    Delivery,
    Entry,
    Piece,
    WorkflowRow,
    RouteRow,
    NodeRow,
    Space,
)
"""Every table, in the order in which a transaction writes them."""
