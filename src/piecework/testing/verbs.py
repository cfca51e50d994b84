"""A store spoken to in the words of its verbs, with the arguments that a test cares about and plain defaults.

Everything goes through `Store.run` with the real folds: what is tested is the engine and the decisions together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.errors import ConflictError
from piecework.ids import new_id
from piecework.run import folds, folds_events, folds_nodes
from piecework.services import folds as notification_folds
from piecework.space import folds as piece_folds
from piecework.space import folds_wake
from piecework.space import late as late_folds
from piecework.store import items
from piecework.store.contract import Insert
from piecework.store.records import (
    PIECES,
    Delivery,
    Digest,
    Entry,
    Inbox,
    Piece,
    Run,
    RunValue,
    Signal,
    Slot,
    Space,
    Wait,
)
from piecework.store.verbs import dispatch, late, nodes, notifications, pieces, runs
from piecework.store.verbs.accept import accept
from piecework.store.verbs.claim import claim, take_over
from piecework.testing.rows import (
    KNOWN,
    NOW,
    WORKFLOW,
    event,
    job,
    node,
    piece,
    piece_end,
    published,
    route,
    single,
    slot,
    stage_end,
    transient,
    waits,
)
from piecework.workflow.pause import resume_patch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.contract import Decide, Script, Store, Verb
    from piecework.store.draft import Draft
    from piecework.store.records import NodeRow, Record

decide_accept = partial(folds_events.decide_accept, resume_patch)
decide_fanout = partial(folds_events.decide_fanout, resume_patch)


class Verbs:
    """The verbs of one store, at a moment that the test moves.

    Args:
        store: Open.

    Attributes:
        now: What every verb is told as the time, in microseconds since the epoch.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = NOW

    async def do(self, verb: Verb, item: Any, decide: Decide) -> Any:
        """Submits one item."""
        return await self.store.run(verb, item, decide, self.now)

    async def together(self, verb: Verb, batch: Sequence[Any], decide: Decide) -> list[Any]:
        """Submits items that one transaction decides as one batch; a refused one's outcome is a `Failure`."""

        def whole(batches: Sequence[Any], fold: Decide, now: int) -> Script:
            """The verb, given whole batches as its items."""
            answers = yield from verb([item for one in batches for item in one], fold, now)
            return [[answers.pop(0) for _ in one] for one in batches]

        outcomes: list[Any] = await self.store.run(whole, list(batch), decide, self.now)
        return outcomes

    async def accept(self, item: items.Accept) -> items.Accepted:
        """Takes an event in."""
        outcome: items.Accepted = await self.do(accept, item, decide_accept)
        return outcome

    async def publish(self, type_: str = "order.paid", **payload: Any) -> list[str]:
        """Takes in an event without triggers; answers what became of it at each waiting run, in one word."""
        return [result.outcome for result in await self.publish_to(type_, **payload)]

    async def publish_to(self, type_: str, **payload: Any) -> tuple[items.DispatchResult, ...]:
        """Takes in an event without triggers; answers what became of it at each waiting run."""
        return (await self.accept(event(type_, payload))).dispatched

    async def start(self, to: Slot, *, run_id: str | None = None, telling: bool = False) -> items.DispatchResult:
        """Takes in an event with one trigger; `telling`: somebody wants to hear of the run's end."""
        outcome = await self.accept(event(routes=[route(to, run_id=run_id, telling=telling)]))
        return outcome.dispatched[0]

    async def claim(
        self,
        owner: str = "node-1",
        *,
        limit: int = 100,
        known: tuple[str, ...] = KNOWN,
        orphans: bool = False,
        **options: Any,
    ) -> list[items.Claimed]:
        """Takes what is due, or what dead owners had; `options` are further fields of `Claim`."""
        item: items.Claim | items.TakeOver
        if orphans:
            item = items.TakeOver(owner=owner, limit=limit, known=known)
        else:
            item = items.Claim(owner=owner, limit=limit, known=known, **options)
        claimed: list[items.Claimed] = await self.do(take_over if orphans else claim, item, folds.decide_claim)
        return claimed

    async def running(self, to: Slot | None = None, *, owner: str = "node-1") -> Run:
        """Starts and claims one run; in a slot of its own when none is given."""
        result = await self.start(slot(new_id()) if to is None else to)
        claimed = {entry.run.run_id: entry.run for entry in await self.claim(owner)}
        return claimed[result.run_id or ""]

    async def paused(self, to: Slot | None = None, *events: str, **options: Any) -> Run:
        """Starts, claims and parks one run that waits."""
        run = await self.running(to)
        await self.end_stage(run, items.Park(stage="after", waits=waits(run.run_id, *events, **options)))
        return await self.run(run.run_id)

    async def end_stage(
        self, run: Run, then: Any, *, visit: int | None = None, state: bytes = b"{}", signalled: int = 0
    ) -> items.Progress:
        """Commits the end of a stage."""
        item = stage_end(run, then, visit=visit, state=state, signalled=signalled)
        progress: items.Progress = await self.do(runs.commit_stage, item, folds.decide_commit_stage)
        return progress

    async def settle(self, run: Run, status: str = "completed", **rest: Any) -> str:
        """Ends a run."""
        item = items.Settle(run_id=run.run_id, epoch=run.epoch, status=status, **rest)
        final: str = await self.do(runs.settle, item, folds.decide_settle)
        return final

    async def end_told(self, run: Run) -> bool:
        """Notes that a run's end has been heard of."""
        item = items.EndTold(run_id=run.run_id, epoch=run.epoch)
        new: bool = await self.do(runs.end_told, item, folds.decide_end_told)
        return new

    async def cleaned(self, run: Run) -> int:
        """Frees an ended run's slot."""
        item = items.Cleaned(run_id=run.run_id, epoch=run.epoch)
        started: int = await self.do(runs.cleaned, item, folds.decide_cleaned)
        return started

    async def end(self, run: Run, status: str = "completed") -> int:
        """Ends a run and cleans up; answers how many start after it."""
        await self.settle(run, status)
        return await self.cleaned(run)

    async def resume(
        self, run_id: str, patch: dict[str, Any] | None = None, *, stage: str | None = None, token: str | None = None
    ) -> Run:
        """Resumes a paused run by hand."""
        item = items.Resume(run_id=run_id, reason="manual", patch=patch or {}, stage=stage, token=token)
        woken: Run = await self.do(runs.resume, item, folds.decide_resume)
        return woken

    async def unresume(self, run: Run, *, seconds: int = 5, error: str | None = None) -> int:
        """Pauses a woken run again that could not go on; answers how often it has been tried."""
        item = items.Unresume(run_id=run.run_id, epoch=run.epoch, due_at=self.now + seconds * 1_000_000, error=error)
        tried: int = await self.do(runs.unresume, item, folds.decide_unresume)
        return tried

    async def signal(self, run_id: str, patch: bytes = b"{}", *, token: str | None = None) -> items.Signalled:
        """Sends a patch to a run."""
        item = items.SendSignal(run_id=run_id, patch=patch, token=token)
        outcome: items.Signalled = await self.do(runs.signal, item, folds.decide_signal)
        return outcome

    async def abort(
        self,
        run_id: str,
        reason: str = "no longer needed",
        *,
        token: str | None = None,
        dropping: bool = False,
    ) -> items.Aborted:
        """Ends a run from outside, or with `dropping` only if it waits."""
        item = items.Abort(run_id=run_id, reason=reason, token=token, dropping=dropping)
        outcome: items.Aborted = await self.do(runs.abort, item, folds.decide_abort)
        return outcome

    async def due(self) -> int:
        """Wakes the paused runs whose deadline has passed."""
        woken: int = await self.do(runs.due, None, folds.decide_resume)
        return woken

    async def register(self, run: Run, new: tuple[Wait, ...] = (), *, cancel: tuple[str, ...] | None = ()) -> int:
        """Registers and cancels what a running run waits for."""
        item = items.Register(run_id=run.run_id, epoch=run.epoch, waits=new, cancel=cancel)
        left: int = await self.do(runs.register_waits, item, folds.decide_register)
        return left

    async def release(self, run: Run, *, counted: bool = False) -> bool:
        """Gives a run back unfinished."""
        item = items.Release(run_id=run.run_id, epoch=run.epoch, due_at=self.now, counted=counted)
        released: bool = await self.do(runs.release, item, folds.decide_release)
        return released

    async def append(self, run: Run, *messages: str, first: int = 1) -> int:
        """Adds log lines to a run's timeline."""
        lines = tuple(items.NewEntry(source="logger", type="log.info", path=message) for message in messages)
        item = items.Append(
            run_id=run.run_id, epoch=run.epoch, decision=run.decision, attempt=run.attempt, first=first, entries=lines
        )
        count: int = await self.do(runs.append, item, folds.decide_append)
        return count

    async def enqueue(self, item: items.Enqueue) -> items.Enqueued:
        """Makes a run that no event asked for."""
        outcome: items.Enqueued = await self.do(runs.enqueue, item, folds.decide_enqueue)
        return outcome

    async def notify(self, item: items.Notify) -> items.Notified:
        """Keeps a notification for the digest of its address."""
        outcome: items.Notified = await self.do(notifications.notify, item, notification_folds.decide_notify)
        return outcome

    async def mail_digest(self, digest: Digest, *, run_id: str | None = None) -> bool:
        """Has a run mail a digest as it was read."""
        item = items.MailDigest(digest_id=digest.digest_id, last_id=digest.last_id, mail=job(run_id))
        mailed: bool = await self.do(notifications.mail_digest, item, notification_folds.decide_mail_digest)
        return mailed

    async def due_digests(self) -> list[Digest]:
        """The digests that are due now."""
        asked = {"now": self.now, "after": 0, "after_id": "", "limit": 100}
        return await self.store.read("due_digests", asked, Digest)

    async def told_by(self, digest_id: str) -> list[tuple[bytes, int]]:
        """What a digest is to tell: each body, and how many times."""
        rows = await self.store.read("notifications_of", {"digest_id": digest_id, "limit": 100})
        return [(bytes(body), times) for _, body, times in rows]

    async def register_piece(self, what: Piece, *, run_id: str | None = None, at_once: bool = True) -> bool:
        """Registers a piece; answers whether it is new."""
        item = items.RegisterPiece(piece=what, run_id=run_id or new_id(), at_once=at_once)
        outcome: items.Registered = await self.do(pieces.register_piece, item, piece_folds.decide_register_piece)
        return outcome.added

    async def run_piece(self, piece_id: str = "hn", *, space: str = "acme", overlap: str = "skip") -> str:
        """Wants a piece to run now; answers the run."""
        item = items.RunPiece(space=space, piece_id=piece_id, run_id=new_id(), overlap=overlap)
        asked: items.PieceAsked = await self.do(pieces.run_piece, item, piece_folds.decide_run_piece)
        return asked.run_id

    async def event_for_pieces(self, *, integration: str = "feed", space: str | None = None) -> int:
        """Takes in an event that the pieces of an integration are registered for; answers its number."""
        await self.register_routes("feed.changed", workflow=f"{PIECES}{integration}", version=None)
        outcome = await self.accept(event("feed.changed", space=space))
        assert outcome.seq is not None
        return outcome.seq

    async def wake_pieces(
        self, seq: int, *, overlap: str = "queue", limit: int = 100, after: tuple[str, str] | None = None
    ) -> items.PiecesWoken:
        """Hands an event to the pieces of the integration `feed`."""
        item = items.WakePieces(
            event_seq=seq,
            workflow_id=f"{PIECES}feed",
            integration="feed",
            overlap=overlap,
            run_ids=tuple(new_id() for _ in range(limit)),
            after=after or ("", ""),
        )
        woken: items.PiecesWoken = await self.do(pieces.wake_pieces, item, folds_wake.decide_wake_pieces)
        return woken

    async def move_piece(self, was: int, due_at: int, piece_id: str = "hn", *, space: str = "acme") -> bool:
        """Gives an update that is to come another time; answers whether it did."""
        item = items.MovePiece(space=space, piece_id=piece_id, was=was, due_at=due_at)
        moved: bool = await self.do(pieces.move_piece, item, folds_wake.decide_move_piece)
        return moved

    async def finish_piece(self, item: items.FinishPiece) -> items.PieceFinished:
        """Ends a piece's update."""
        outcome: items.PieceFinished = await self.do(pieces.finish_piece, item, piece_folds.decide_finish_piece)
        return outcome

    async def late_failure(self, run: Run, *, number: int = 1, space: str = "acme") -> bool:
        """Tells of a failure after the end of an update; answers whether it counts."""
        item = items.LateFailure(
            run_id=run.run_id, epoch=run.epoch, space=space, number=number, error='{"code":"X"}', reason="late"
        )
        counted: bool = await self.do(late.late_failure, item, late_folds.decide_late_failure)
        return counted

    async def set_desired(self, desired: str, piece_id: str = "hn", *, space: str = "acme", reason: str = "") -> bool:
        """Pauses or enables a piece; answers whether that changed anything."""
        item = items.SetDesired(space=space, piece_id=piece_id, desired=desired, reason=reason, run_id=new_id())
        changed: bool = await self.do(pieces.set_desired, item, piece_folds.decide_set_desired)
        return changed

    async def remove_piece(self, piece_id: str = "hn", *, space: str = "acme") -> items.PieceRemoved:
        """Ends a piece."""
        item = items.RemovePiece(space=space, piece_id=piece_id)
        outcome: items.PieceRemoved = await self.do(pieces.remove_piece, item, piece_folds.decide_remove_piece)
        return outcome

    # -- nodes, and what is left to them ---------------------------------------------------------------------------

    async def renew(self, row: NodeRow, *, alone: bool = False) -> None:
        """Says that a node lives."""
        await self.do(nodes.renew, items.Renew(node=row, alone=alone), _nothing)

    async def leave(self, node_id: str) -> None:
        """Says that a node stops."""
        await self.do(nodes.leave, items.Leave(node_id=node_id), _nothing)

    async def register_routes(self, *types: str, workflow: str = WORKFLOW, version: str | None = "1") -> None:
        """Registers a workflow for event types."""
        item = items.RegisterRoutes(workflow_id=workflow, version=version, event_types=types)
        await self.do(nodes.register_routes, item, folds_nodes.decide_routes)

    async def retire(self, workflow: str = WORKFLOW, *, node_id: str | None = None) -> items.Retired:
        """Ends a workflow."""
        item = items.RetireWorkflow(workflow_id=workflow, node_id=node_id)
        outcome: items.Retired = await self.do(nodes.retire_workflow, item, _nothing)
        return outcome

    async def raise_limit(self, like: Slot, *, after: str = "", limit: int = 100) -> items.Raised:
        """Gives a page of a workflow's slots new numbers."""
        item = items.RaiseLimit(like=like, after=after, limit=limit)
        outcome: items.Raised = await self.do(nodes.raise_limit, item, folds_nodes.decide_raise_limit)
        return outcome

    async def dispatch(
        self, seq: int, *routes: items.Route, workflow: str = WORKFLOW, version: str | None = "1"
    ) -> items.Dispatched:
        """Decides a pending event at its workflow."""
        item = items.Dispatch(event_seq=seq, workflow_id=workflow, version=version, routes=routes)
        outcome: items.Dispatched = await self.do(dispatch.dispatch, item, folds_events.decide_dispatch)
        return outcome

    async def continue_fanout(self, seq: int) -> items.FannedOut:
        """Wakes the next part of those that wait for an event."""
        item = items.ContinueFanout(event_seq=seq)
        outcome: items.FannedOut = await self.do(dispatch.continue_fanout, item, decide_fanout)
        return outcome

    async def insert(self, *rows: Record) -> None:
        """Puts rows in by hand, as a transaction of somebody else's does."""
        await self.do(_insert, rows, _nothing)

    async def forget(self, verb: Verb, before: int | None = None, *, limit: int = 500) -> int:
        """Removes a batch of history from before a moment; answers how much was looked at."""
        item = items.Retain(before=self.now if before is None else before, limit=limit)
        count: int = await self.do(verb, item, _nothing)
        return count

    # -- what stands there -----------------------------------------------------------------------------------------

    async def updating(self, what: Piece | None = None) -> Run:
        """Registers a piece and claims its first update."""
        await self.register_piece(piece() if what is None else what)
        return (await self.claim())[0].run

    async def run(self, run_id: str) -> Run:
        """A run's row as it stands."""
        rows: list[Run] = await self.store.read("runs_by_id", {"run_ids": [run_id]}, Run)
        return rows[0]

    async def runs(self, *run_ids: str) -> list[Run]:
        """Rows of runs, those there are, in the order of the ids."""
        rows: list[Run] = await self.store.read("runs_by_id", {"run_ids": list(run_ids)}, Run)
        found = {row.run_id: row for row in rows}
        return [found[run_id] for run_id in run_ids if run_id in found]

    async def piece(self, piece_id: str = "hn", *, space: str = "acme") -> Piece:
        """A piece's row as it stands."""
        rows: list[Piece] = await self.store.read("get_piece", {"space": space, "piece_id": piece_id}, Piece)
        return rows[0]

    async def values(self, run_id: str) -> dict[str, Any]:
        """A run's values, decoded."""
        rows: list[RunValue] = await self.store.read("values_of_runs", {"run_ids": [run_id]}, RunValue)
        return {row.name: msgspec.json.decode(row.data) for row in rows}

    async def timeline(self, run_id: str) -> list[Entry]:
        """A run's timeline, oldest first."""
        rows: list[Entry] = await self.store.read("timeline_of", {"run_id": run_id}, Entry)
        return rows

    async def waits(self, run_id: str) -> list[Wait]:
        """What a run waits for."""
        rows: list[Wait] = await self.store.read("waits_of_runs", {"run_ids": [run_id]}, Wait)
        return rows

    async def signals(self, run_id: str) -> list[Signal]:
        """The signals that are kept for a run."""
        rows: list[Signal] = await self.store.read("signals_of_runs", {"run_ids": [run_id]}, Signal)
        return rows

    async def slot(self, key: str, *, workflow: str = WORKFLOW) -> Slot | None:
        """A slot's row as it stands."""
        params = {"workflow_id": workflow, "after": "", "limit": 1_000_000}
        rows: list[Slot] = await self.store.read("slots_of_workflow", params, Slot)
        return next((row for row in rows if row.slot_key == key), None)

    async def deliveries(self, seq: int) -> list[Delivery]:
        """What became of an event."""
        rows: list[Delivery] = await self.store.read("deliveries_of", {"seqs": [seq]}, Delivery)
        return rows

    async def pending(self, *workflows: str) -> list[int]:
        """The events that wait for workflows, oldest first."""
        params = {"workflow_ids": list(workflows or (WORKFLOW,)), "after": 0, "after_id": "", "limit": 1000}
        rows: list[Delivery] = await self.store.read("pending_deliveries", params, Delivery)
        return [row.event_seq for row in rows]

    async def inbox(self) -> list[Inbox]:
        """What is still in the inbox."""
        rows: list[Inbox] = await self.store.read("inbox", {"after": 0, "limit": 1000}, Inbox)
        return rows

    async def space(self, name: str = "default") -> Space | None:
        """A space's row as it stands."""
        rows: list[Space] = await self.store.read("spaces_by_name", {"spaces": [name]}, Space)
        return rows[0] if rows else None


def refusing(event_id: str) -> Decide:
    """The decision of `accept`, but one that cannot be made for one event."""

    def decide(draft: Draft, entry: items.Accepting, now: int) -> items.Accepted:
        """As ever, and in vain."""
        outcome = decide_accept(draft, entry, now)
        if entry.event.event_id == event_id:
            raise ConflictError(f"event {event_id} cannot be decided")
        return outcome

    return decide


def _insert(batches: Sequence[Sequence[Record]], _decide: Decide, _now: int) -> Script:
    for rows in batches:
        yield Insert(rows)
    return [True for _ in batches]


def _nothing(_draft: Any, _item: Any, _now: int) -> None:
    """What these verbs do is decided by nobody."""


__all__ = [
    "KNOWN",
    "NOW",
    "WORKFLOW",
    "Verbs",
    "decide_accept",
    "decide_fanout",
    "event",
    "job",
    "node",
    "piece",
    "piece_end",
    "published",
    "refusing",
    "route",
    "single",
    "slot",
    "stage_end",
    "transient",
    "waits",
]
