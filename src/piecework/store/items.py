"""What verbs are given and what they answer: one item in, one outcome out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from piecework.store.records import EventRow, Piece, Run, Slot, Wait


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Base of items and outcomes."""


class NewEntry(Item, frozen=True, kw_only=True):
    """A timeline entry to be; the store gives it its number and moment."""

    source: str = "pipeline"
    type: str
    path: str = ""
    payload: bytes | None = None


class Route(Item, frozen=True, kw_only=True):
    """A trigger that an event matches: what its run would be. `run_id` is made before sending, so a repeat is known.

    `refused` says why it cannot start one although it matches.
    """

    kind: str
    workflow_id: str
    trigger_id: str
    pipeline_id: str
    run_id: str
    slot: Slot
    key: str | None
    version: str | None
    refused: str | None = None


class Accept(Item, frozen=True, kw_only=True):
    """A new event with the triggers that it matches."""

    event: EventRow
    payload: dict[str, Any]
    routes: tuple[Route, ...]


class Accepting(Item, frozen=True, kw_only=True):
    """What the fold of `accept` sees: the item, the stored event, and the waits that it may match."""

    item: Accept
    event: EventRow
    waits: tuple[Wait, ...]


class DispatchResult(Item, frozen=True, kw_only=True):
    """What became of an event at one trigger or one waiting run.

    Attributes:
        outcome: started, queued, dropped, rejected, resumed, buffered or duplicate.
        workflow_id: Whose.
        trigger_id: Of which trigger; empty where a waiting run was resumed.
        run_id: The run that it started, queued or resumed.
        active_run_id: The run that stood in the way, where the mode tells.
        reason: Why, where there is more to say.
    """

    outcome: str
    workflow_id: str
    trigger_id: str
    run_id: str | None = None
    active_run_id: str | None = None
    reason: str | None = None


class Accepted(Item, frozen=True, kw_only=True):
    """The outcome of `accept`: where the event went, or where it had gone when it is a duplicate."""

    event_id: str
    seq: int
    duplicate: bool
    dispatched: tuple[DispatchResult, ...]


class Enqueue(Item, frozen=True, kw_only=True):
    """A run that no event asked for: a job, an invoked pipeline. The same `run_id` twice is one run."""

    run: Run
    args: bytes


class Enqueued(Item, frozen=True, kw_only=True):
    """The outcome of `enqueue`."""

    run_id: str
    duplicate: bool


class Claim(Item, frozen=True, kw_only=True):
    """A node's wish for work of the kinds and names that it knows, as `kind:name`.

    `orphans` takes over what dead owners had instead of what is due. A space gets at most `places` updates of its
    pieces at a time, less those that it has `taken`: more would only wait at the node, in the way of others.
    """

    owner: str
    limit: int
    known: tuple[str, ...]
    orphans: bool = False
    places: int = 4
    taken: dict[str, int] = {}


class Claimed(Item, frozen=True, kw_only=True):
    """A run that is this node's now, with all it needs to go on."""

    run: Run
    event: EventRow | None
    values: dict[str, bytes]
    piece: Piece | None = None


class Continue(Item, frozen=True, kw_only=True):
    """The next stage follows at once."""

    stage: str


class Park(Item, frozen=True, kw_only=True):
    """The run pauses and goes on at `stage` when a wait is met; `waits` are registered in the same commit."""

    stage: str | None
    waits: tuple[Wait, ...] = ()
    timeout: int | None = None


class Defer(Item, frozen=True, kw_only=True):
    """The run goes back and is due again at a later moment."""

    due_at: int


class CommitStage(Item, frozen=True, kw_only=True):
    """The end of a stage: its state, its timeline, and what comes next, in one commit."""

    run_id: str
    epoch: int
    visit: int
    state: bytes
    entries: tuple[NewEntry, ...] = ()
    then: Continue | Park | Defer


class Progress(Item, frozen=True, kw_only=True):
    """The outcome of `commit_stage`: continued, parked, deferred, resumed (with the patch to merge) or aborted."""

    outcome: str
    decision: int
    patch: bytes | None = None
    reason: str | None = None


class Settle(Item, frozen=True, kw_only=True):
    """The end of a run."""

    run_id: str
    epoch: int
    status: str
    state: bytes | None = None
    result: bytes | None = None
    error: str | None = None
    outcome: str | None = None
    entries: tuple[NewEntry, ...] = ()


class Cleaned(Item, frozen=True, kw_only=True):
    """Everything of an ended run has been closed: its slot is free."""

    run_id: str
    epoch: int


class Resume(Item, frozen=True, kw_only=True):
    """Somebody resumes a paused run. `reason` is manual, event or timeout."""

    run_id: str
    reason: str
    patch: dict[str, Any] = {}
    stage: str | None = None


class Abort(Item, frozen=True, kw_only=True):
    """Somebody ends a run."""

    run_id: str
    reason: str


class Aborted(Item, frozen=True, kw_only=True):
    """The outcome of `abort`: False for a run that had ended; else it ended now, or its `owner` has to be told."""

    aborted: bool
    ended: bool = False
    owner: str | None = None


class Release(Item, frozen=True, kw_only=True):
    """A run goes back unfinished. Its attempt does not count, unless `counted`."""

    run_id: str
    epoch: int
    due_at: int
    counted: bool = False


class Register(Item, frozen=True, kw_only=True):
    """A run asks for events while it is running: kept from this commit on."""

    run_id: str
    epoch: int
    waits: tuple[Wait, ...] = ()
    cancel: tuple[str, ...] | None = ()


class Append(Item, frozen=True, kw_only=True):
    """Log lines and progress of a run, beneath the decision that they follow."""

    run_id: str
    epoch: int
    decision: int
    attempt: int
    first: int
    entries: tuple[NewEntry, ...]


class RegisterPiece(Item, frozen=True, kw_only=True):
    """A piece to be registered, or enabled again."""

    piece: Piece
    run_id: str


class Registered(Item, frozen=True, kw_only=True):
    """The outcome of `register_piece`: True when it was not there before."""

    added: bool


class RunPiece(Item, frozen=True, kw_only=True):
    """Somebody wants a piece to run now; `run_id` is used where no update is queued."""

    space: str
    piece_id: str
    run_id: str


class FinishPiece(Item, frozen=True, kw_only=True):
    """The end of a piece's update: status, counters, state, next due time and history in one commit."""

    run_id: str
    epoch: int
    outcome: str
    result: bytes | None
    error: str | None
    reason: str
    permanent: bool
    retry_after: int | None
    state: bytes | None
    next_run_id: str
    spread: float
    history_limit: int
    skipped_limit: int


class PieceFinished(Item, frozen=True, kw_only=True):
    """The outcome of `finish_piece`."""

    status: str
    next_run_at: int | None
