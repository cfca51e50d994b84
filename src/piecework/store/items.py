"""What verbs are given and what they answer: one item in, one outcome out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from piecework.store.records import Digest, Entry, EventRow, Fanout, NodeRow, Notification, Piece, Run, Slot, Wait


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Base of items and outcomes."""


class NewEntry(Item, frozen=True, kw_only=True):
    """A timeline entry to be; the store gives it its number and moment.

    `delta` is what became of the run's state since the last entry that has one; it stands there only with that state.
    """

    source: str = "pipeline"
    type: str
    path: str = ""
    payload: bytes | None = None
    delta: bytes | None = None


class Route(Item, frozen=True, kw_only=True):
    """A trigger that an event matches: what its run would be. `run_id` is made before sending, so a repeat is known.

    `patch` is what a signal would carry where the mode signals; `refused` says why it cannot start a run although it
    matches; `telling` that its workflow wants to hear of the run's end.
    """

    kind: str
    workflow_id: str
    trigger_id: str
    pipeline_id: str
    run_id: str
    slot: Slot
    key: str | None
    version: str | None
    patch: bytes | None = None
    refused: str | None = None
    telling: bool = False


class Accept(Item, frozen=True, kw_only=True):
    """A new event with the triggers that it matches.

    `known` names the workflows, with their versions, that whoever accepts it has evaluated: for every other one that
    was registered for the event's type, and for newer versions of these, it stays pending. `inbox_seq` is its row in
    the inbox, when it came from there. `alone`: these triggers only, no wait and nobody else's workflow sees it.
    """

    event: EventRow
    payload: dict[str, Any]
    routes: tuple[Route, ...]
    known: dict[str, str | None] = {}
    inbox_seq: int | None = None
    alone: bool = False


class Accepting(Item, frozen=True, kw_only=True):
    """What the fold of `accept` sees.

    Attributes:
        item: What was asked.
        event: As it is stored.
        waits: That it may match, as far as one commit goes.
        pending: Workflows that others have to decide about.
        rest: Where its fan-out goes on, if it does.
    """

    item: Accept
    event: EventRow
    waits: tuple[Wait, ...]
    pending: tuple[str, ...] = ()
    rest: Fanout | None = None


class DispatchResult(Item, frozen=True, kw_only=True):
    """What became of an event at one trigger or one waiting run.

    Attributes:
        outcome: started, queued, dropped, rejected, signalled, replaced, superseded, resumed, buffered, pending or
            duplicate.
        workflow_id: Whose.
        trigger_id: Of which trigger; empty where a waiting run was resumed.
        run_id: The run that it started, queued or resumed.
        active_run_id: The run that stood in the way, where the mode tells.
        reason: Why, where there is more to say.
        event_id: The event, where `on_dispatch` is told of it; None for one that a newer event superseded.
    """

    outcome: str
    workflow_id: str
    trigger_id: str
    run_id: str | None = None
    active_run_id: str | None = None
    reason: str | None = None
    event_id: str | None = None


class Aborting(Item, frozen=True, kw_only=True):
    """A run that this decision tells to end, and who has it: None where it has ended with it.

    `displaced` is what became of its event, where that is told anew.
    """

    run_id: str
    reason: str
    owner: str | None
    displaced: DispatchResult | None = None


class Accepted(Item, frozen=True, kw_only=True):
    """The outcome of `accept`: where the event went, or where it had gone when it is a duplicate.

    Attributes:
        event_id: Its id.
        seq: Its number.
        duplicate: Whether an event of that id had come before.
        dispatched: What became of it.
        aborting: The runs that it replaces, or that it displaced from a queue.
        more: Whether its fan-out goes on in further commits.
    """

    event_id: str
    seq: int
    duplicate: bool
    dispatched: tuple[DispatchResult, ...]
    aborting: tuple[Aborting, ...] = ()
    more: bool = False


class Dispatch(Item, frozen=True, kw_only=True):
    """A pending event that a node of the workflow's version has evaluated."""

    event_seq: int
    workflow_id: str
    version: str | None
    routes: tuple[Route, ...]


class Dispatching(Item, frozen=True, kw_only=True):
    """What the fold of `dispatch` sees."""

    item: Dispatch
    event: EventRow


class Dispatched(Item, frozen=True, kw_only=True):
    """The outcome of `dispatch`; not decided when somebody else was faster, or has to do it."""

    decided: bool
    dispatched: tuple[DispatchResult, ...] = ()
    aborting: tuple[Aborting, ...] = ()


class ContinueFanout(Item, frozen=True, kw_only=True):
    """The next part of an event's fan-out."""

    event_seq: int


class FanningOut(Item, frozen=True, kw_only=True):
    """What the fold of `continue_fanout` sees: like `Accepting`, without triggers."""

    event: EventRow
    payload: dict[str, Any]
    waits: tuple[Wait, ...]
    rest: Fanout | None


class FannedOut(Item, frozen=True, kw_only=True):
    """The outcome of `continue_fanout`."""

    dispatched: tuple[DispatchResult, ...]
    more: bool


class Enqueue(Item, frozen=True, kw_only=True):
    """A run that no event asked for: a job, an invoked pipeline. The same `run_id` twice is one run.

    `occurrence` names what may happen only once: a second run of it is not made, the first one's id is answered. With
    `again` it may happen again once that run has ended.
    """

    run: Run
    args: bytes
    occurrence: str | None = None
    again: bool = False


class Enqueued(Item, frozen=True, kw_only=True):
    """The outcome of `enqueue`."""

    run_id: str
    duplicate: bool


class Notify(Item, frozen=True, kw_only=True):
    """Something that somebody is to be told, in the digest of an address; the same `notification_id` twice is one.

    The digest is due at `digest.due_at`, or before that if it was already. `wake` is the run that will deliver it: its
    occurrence is shared by all that are due at the same moment. None where somebody else sees to it. With `once` the
    same id is known also when the digest has been mailed, for as long as the ids of events are.
    """

    digest: Digest
    notification: Notification
    wake: Enqueue | None = None
    once: bool = False


class Notifying(Item, frozen=True, kw_only=True):
    """A notification as the verb hands it to its decision: new or not, and which run delivers what is due with it."""

    item: Notify
    new: bool
    run_id: str | None


class Notified(Item, frozen=True, kw_only=True):
    """The outcome of `notify`; `woken` is whether a run was made that will deliver it."""

    due_at: int
    duplicate: bool = False
    woken: bool = False


class MailDigest(Item, frozen=True, kw_only=True):
    """The end of a digest: the run that mails it, made of all notifications up to `last_id`."""

    digest_id: str
    last_id: str
    mail: Enqueue


class Definition(Item, frozen=True, kw_only=True):
    """What a node has of a workflow, as far as it tells which of its runs can go on there.

    Attributes:
        version: Of the definition.
        stages: The stages of each trigger's pipeline, in their order.
    """

    version: str | None
    stages: dict[str, tuple[str, ...]]


class Claim(Item, frozen=True, kw_only=True):
    """A node's wish for work of the kinds and names that it knows, as `kind:name`.

    Of names with a definition it gets only the runs that this one can carry; `barred` are the shapes of runs of which
    it knows that it cannot. Spaces are served in turn, those behind `after` first. A space gets at most `places`
    updates of its pieces at a time, less those that it has `taken`: more would only wait at the node, in the way of
    others. Of workflows that it does not know it gets what ended up to `forsaken` and nobody has cleaned: whoever has
    their code would have by now.
    """

    owner: str
    limit: int
    known: tuple[str, ...]
    definitions: dict[str, Definition] = {}
    barred: tuple[str, ...] = ()
    after: str = ""
    places: int = 4
    taken: dict[str, int] = {}
    forsaken: int = 0


class TakeOver(Item, frozen=True, kw_only=True):
    """A node's wish for what owners have that are gone, or whose lease has ended.

    What its definitions cannot carry is nobody's from then on, and due. `forsaken` is as with `Claim`.
    """

    owner: str
    limit: int
    known: tuple[str, ...]
    definitions: dict[str, Definition] = {}
    forsaken: int = 0


class Taking(Item, frozen=True, kw_only=True):
    """What the folds of `claim` and `take_over` see: who wants which run, and who had it when it was looked at."""

    owner: str
    run_id: str
    had: str | None = None
    definitions: dict[str, Definition] = {}


class Claimed(Item, frozen=True, kw_only=True):
    """A run that is this node's now, with all it needs to go on."""

    run: Run
    event: EventRow | None
    values: dict[str, bytes]
    piece: Piece | None = None
    signals: tuple[tuple[int, bytes], ...] = ()


class LeftAlone(Item, frozen=True, kw_only=True):
    """A run that the node's definition cannot carry: nobody has it, and it is due."""

    run: Run


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
    """The end of a stage: its state, its timeline, and what comes next, in one commit.

    `signalled` is the number of the last signal that the state holds, 0 when there is none.
    """

    run_id: str
    epoch: int
    visit: int
    state: bytes
    signalled: int = 0
    entries: tuple[NewEntry, ...] = ()
    then: Continue | Park | Defer


class Progress(Item, frozen=True, kw_only=True):
    """The outcome of `commit_stage`: continued, parked, deferred, resumed (with the patch to merge) or aborted.

    `signals` are those, each with its number, that the next state has to hold.
    """

    outcome: str
    decision: int
    patch: bytes | None = None
    reason: str | None = None
    signals: tuple[tuple[int, bytes], ...] = ()


class Settle(Item, frozen=True, kw_only=True):
    """The end of a run. With `telling` it keeps its place until whoever wants to hear of it has.

    `signalled` is the number of the last signal that the state holds: later ones are merged into it.
    """

    run_id: str
    epoch: int
    status: str
    telling: bool = False
    state: bytes | None = None
    signalled: int = 0
    result: bytes | None = None
    error: str | None = None
    outcome: str | None = None
    entries: tuple[NewEntry, ...] = ()


class EndTold(Item, frozen=True, kw_only=True):
    """Whoever wants to hear of a run's end has: it gives its place up, and is only to be cleaned."""

    run_id: str
    epoch: int
    entries: tuple[NewEntry, ...] = ()


class Cleaned(Item, frozen=True, kw_only=True):
    """Everything of an ended run has been closed: its slot is free."""

    run_id: str
    epoch: int
    entries: tuple[NewEntry, ...] = ()


class Resume(Item, frozen=True, kw_only=True):
    """Somebody resumes a paused run. `reason` is manual, event, timeout or again; `token` makes a repeat known.

    With `stage` it goes on there, under whatever definition has that stage. `again` wakes one that no definition could
    carry, with the patch that it has.
    """

    run_id: str
    reason: str
    patch: dict[str, Any] = {}
    stage: str | None = None
    token: str | None = None


class Unresume(Item, frozen=True, kw_only=True):
    """A run that was woken could not go on: it is paused again and woken once more at `due_at`, with the same patch.

    With `unclaimed` nobody has it, since no node has a definition that can carry it: it keeps the error, which is JSON.
    """

    run_id: str
    epoch: int
    due_at: int | None
    error: str | None = None
    unclaimed: bool = False


class SendSignal(Item, frozen=True, kw_only=True):
    """Somebody sends a patch to an unended run; `token` makes a repeat known."""

    run_id: str
    patch: bytes
    token: str | None = None


class Signalled(Item, frozen=True, kw_only=True):
    """The outcome of `signal`: live where the run is running, stored where it is to run later; its owner if any."""

    delivered: str
    number: int
    owner: str | None = None


class Abort(Item, frozen=True, kw_only=True):
    """Somebody ends a run; `token` makes a repeat known.

    With `dropping` only one that waits is ended, as an event that was dropped: nobody wants to hear of its end.
    """

    run_id: str
    reason: str
    token: str | None = None
    dropping: bool = False


class KeepEntries(Item, frozen=True, kw_only=True):
    """Entries of another store's timelines, to be kept as they are."""

    rows: tuple[Entry, ...]


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
    """Log lines and progress of a run, beneath the decision that they follow; `progress` is the newest."""

    run_id: str
    epoch: int
    decision: int
    attempt: int
    first: int
    entries: tuple[NewEntry, ...]
    progress: tuple[float, str | None] | None = None


class Renew(Item, frozen=True, kw_only=True):
    """A node says that it lives. `alone`: nobody else can be a node of this store, so every other one is dead."""

    node: NodeRow
    alone: bool = False


class Leave(Item, frozen=True, kw_only=True):
    """A node says that it stops: what it still has may be taken over at once."""

    node_id: str


class RegisterRoutes(Item, frozen=True, kw_only=True):
    """A workflow is registered for event types."""

    workflow_id: str
    version: str | None
    event_types: tuple[str, ...]


class RetireWorkflow(Item, frozen=True, kw_only=True):
    """No more events for a workflow, unless a node other than `node_id` has it."""

    workflow_id: str
    node_id: str | None = None


class Retired(Item, frozen=True, kw_only=True):
    """The outcome of `retire_workflow`: the nodes that still have it; where there are none, how much was dropped."""

    nodes: tuple[str, ...]
    dropped: int


class RaiseLimit(Item, frozen=True, kw_only=True):
    """New numbers for the slots of a workflow, those behind `after` first; `like` carries them."""

    like: Slot
    after: str = ""
    limit: int = 100


class Raised(Item, frozen=True, kw_only=True):
    """The outcome of `raise_limit`: how many runs start, and the last slot looked at where there may be more."""

    started: int
    last: str | None


class Retain(Item, frozen=True, kw_only=True):
    """What history may go: ended runs, event ids for duplicates, empty slots, each from before a moment."""

    before: int
    limit: int = 500


class SetDesired(Item, frozen=True, kw_only=True):
    """Somebody wants a piece enabled or paused; `run_id` and `hops` are of the update that may have to be queued."""

    space: str
    piece_id: str
    desired: str
    reason: str | None
    run_id: str
    hops: int = 0


class RemovePiece(Item, frozen=True, kw_only=True):
    """Somebody wants a piece to be no more."""

    space: str
    piece_id: str


class PieceRemoved(Item, frozen=True, kw_only=True):
    """The outcome of `remove_piece`: the update under way that has been told to end, where there was one."""

    aborting: Aborting | None = None


class RegisterPiece(Item, frozen=True, kw_only=True):
    """A piece to be registered, or enabled again; only one that waits for events alone is not due `at_once`.

    `hops` is what its next update is made with.
    """

    piece: Piece
    run_id: str
    at_once: bool = True
    hops: int = 0


class Registered(Item, frozen=True, kw_only=True):
    """The outcome of `register_piece`: True when it was not there before."""

    added: bool


class RunPiece(Item, frozen=True, kw_only=True):
    """Somebody wants a piece to run now; `run_id` and `hops` are for one that is queued, `overlap` for one at work."""

    space: str
    piece_id: str
    run_id: str
    overlap: str = "skip"
    hops: int = 0


class PieceAsked(Item, frozen=True, kw_only=True):
    """The outcome of `run_piece`: the update that it will be, and what is told to end for it."""

    run_id: str
    aborting: Aborting | None = None


class WakePieces(Item, frozen=True, kw_only=True):
    """An event that waits for the pieces of an integration: the next `limit` of them behind `after` are due now.

    `workflow_id` is the name under which the event waits; `run_ids` are used where an update has to be queued.
    """

    event_seq: int
    workflow_id: str
    integration: str
    overlap: str
    run_ids: tuple[str, ...]
    after: tuple[str, str] = ("", "")


class WakingPieces(Item, frozen=True, kw_only=True):
    """What the fold of `wake_pieces` sees: the event, the pieces, and whether there may be more of them."""

    item: WakePieces
    event: EventRow
    pieces: tuple[tuple[str, str], ...]
    more: bool


class PiecesWoken(Item, frozen=True, kw_only=True):
    """The outcome of `wake_pieces`: what is due now, what is told to end for it, and the last piece if there are more.

    Not `decided` means that the event waits no longer.
    """

    decided: bool
    run_ids: tuple[str, ...] = ()
    aborting: tuple[Aborting, ...] = ()
    more: tuple[str, str] | None = None


class MovePiece(Item, frozen=True, kw_only=True):
    """An update that is to come at another time, if it still stands where it was seen.

    `occurrence` is another time of its schedule that it is for; None leaves that as it is.
    """

    space: str
    piece_id: str
    was: int
    due_at: int
    occurrence: int | None = None


class FinishPiece(Item, frozen=True, kw_only=True):
    """The end of a piece's update: status, counters, state, next due time and history in one commit.

    What is in force of its schedule is told along: `every` where it runs at intervals, with `jitter`; `due_at` where a
    cron schedule is met next, which is at `occurrence` before its share of chance. Without either it waits for events.
    `missed` is a time that came too late to be carried out.
    `failure` is the policy of its integration, for the fold; None is the usual one. `retry_after` is what the update
    asks to be waited for, also where it failed.
    """

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
    every: int | None = None
    jitter: float = 0.1
    due_at: int | None = None
    occurrence: int | None = None
    missed: bool = False
    history_limit: int
    skipped_limit: int
    failure: Any = None


class PieceFinished(Item, frozen=True, kw_only=True):
    """The outcome of `finish_piece`; `told` is the type of the event that went into the inbox with it, if one did."""

    status: str
    next_run_at: int | None
    told: str | None = None


class LateFailure(Item, frozen=True, kw_only=True):
    """What an update started has failed when the update had ended; `number` counts those of one update from 1."""

    run_id: str
    epoch: int
    space: str
    number: int
    error: str
    reason: str
