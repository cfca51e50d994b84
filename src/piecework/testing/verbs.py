"""A store spoken to in the words of its verbs, with the arguments that a test cares about and plain defaults.

Everything goes through `Store.run` with the real folds: what is tested is the engine and the decisions together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.ids import new_id
from piecework.run import folds
from piecework.run.lifecycle import Status
from piecework.space import folds as piece_folds
from piecework.store import items
from piecework.store.records import Entry, EventRow, Piece, Run, RunValue, Slot, Wait
from piecework.store.verbs import pieces, runs
from piecework.store.verbs.accept import accept
from piecework.store.verbs.claim import claim
from piecework.workflow.pause import WaitFor, resume_patch, waits_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.contract import Decide, Script, Store, Verb

NOW = 1_767_225_600_000_000
"""Where the time of a test begins: microseconds since the epoch."""

WORKFLOW = "orders"
KNOWN = ("workflow:orders", "job:tidy", "piece:feed")
decide_accept = partial(folds.decide_accept, resume_patch)


def slot(
    key: str = "a", *, mode: str = "serialized", concurrency: int = 1, capacity: int = 1000, hold: bool = True
) -> Slot:
    """The slot of one key, as a registration would make it."""
    return Slot(key, WORKFLOW, mode, concurrency, capacity, int(hold))


def transient(key: str = "t", *, concurrency: int = 2, capacity: int = 1000, hold: bool = False) -> Slot:
    """A slot with room for several runs, whose paused runs leave their places."""
    return slot(key, mode="transient", concurrency=concurrency, capacity=capacity, hold=hold)


def route(to: Slot, *, run_id: str | None = None, trigger: str = "default") -> items.Route:
    """A trigger that an event matches."""
    return items.Route(
        kind="workflow",
        workflow_id=to.workflow_id,
        trigger_id=trigger,
        pipeline_id=trigger,
        run_id=run_id or new_id(),
        slot=to,
        key=to.slot_key,
        version="1",
    )


def event(
    type_: str = "order.placed",
    payload: dict[str, Any] | None = None,
    *,
    event_id: str | None = None,
    routes: Sequence[items.Route] = (),
    space: str | None = None,
) -> items.Accept:
    """A new event with the triggers that it matches."""
    body = {} if payload is None else payload
    row = EventRow(None, event_id or new_id(), type_, space, msgspec.json.encode(body), NOW)
    return items.Accept(event=row, payload=body, routes=tuple(routes))


def waits(
    run_id: str, *events: str, max_buffer: int = 1000, wait_id: str | None = None, **options: Any
) -> tuple[Wait, ...]:
    """The rows of one registration; `options` are those of `WaitFor`."""
    wait_for = WaitFor(*(events or ("order.paid",)), **options)
    rows = waits_of(wait_for, run_id, max_buffer=max_buffer)
    return rows if wait_id is None else tuple(msgspec.structs.replace(row, wait_id=wait_id) for row in rows)


def job(run_id: str | None = None, *, due_at: int | None = None, args: bytes = b"{}") -> items.Enqueue:
    """A run that no event asked for."""
    run = Run(
        run_id=run_id or new_id(),
        kind="job",
        workflow_id="tidy",
        trigger_id="",
        pipeline_id="",
        slot_key=None,
        key_value=None,
        space="default",
        status=Status.QUEUED,
        stage=None,
        version=None,
        event_seq=None,
        due_at=due_at,
    )
    return items.Enqueue(run=run, args=args)


def stage_end(run: Run, then: Any, *, visit: int | None = None, state: bytes = b"{}") -> items.CommitStage:
    """The end of a stage of a claimed run."""
    at = run.visit if visit is None else visit
    return items.CommitStage(run_id=run.run_id, epoch=run.epoch, visit=at, state=state, then=then)


def piece(piece_id: str = "hn", *, space: str = "acme", config: bytes = b"{}", every: int = 60_000_000) -> Piece:
    """A piece as its registration describes it."""
    return Piece(
        space=space,
        piece_id=piece_id,
        integration="feed",
        config=config,
        every=every,
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
) -> items.FinishPiece:
    """The end of a piece's update."""
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
        spread=0.0,
        history_limit=history_limit,
        skipped_limit=skipped_limit,
    )


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
        """Takes in an event without triggers; answers what became of it at each waiting run."""
        outcome = await self.accept(event(type_, payload))
        return [result.outcome for result in outcome.dispatched]

    async def start(self, to: Slot, *, run_id: str | None = None) -> items.DispatchResult:
        """Takes in an event with one trigger."""
        outcome = await self.accept(event(routes=[route(to, run_id=run_id)]))
        return outcome.dispatched[0]

    async def claim(
        self, owner: str = "node-1", *, limit: int = 100, known: tuple[str, ...] = KNOWN, orphans: bool = False
    ) -> list[items.Claimed]:
        """Takes what is due, or what dead owners had."""
        item = items.Claim(owner=owner, limit=limit, known=known, orphans=orphans)
        claimed: list[items.Claimed] = await self.do(claim, item, folds.decide_claim)
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

    async def end_stage(self, run: Run, then: Any, *, visit: int | None = None, state: bytes = b"{}") -> items.Progress:
        """Commits the end of a stage."""
        item = stage_end(run, then, visit=visit, state=state)
        progress: items.Progress = await self.do(runs.commit_stage, item, folds.decide_commit_stage)
        return progress

    async def settle(self, run: Run, status: str = "completed", **rest: Any) -> str:
        """Ends a run."""
        item = items.Settle(run_id=run.run_id, epoch=run.epoch, status=status, **rest)
        final: str = await self.do(runs.settle, item, folds.decide_settle)
        return final

    async def cleaned(self, run: Run) -> int:
        """Frees an ended run's slot."""
        item = items.Cleaned(run_id=run.run_id, epoch=run.epoch)
        started: int = await self.do(runs.cleaned, item, folds.decide_cleaned)
        return started

    async def resume(self, run_id: str, patch: dict[str, Any] | None = None, *, stage: str | None = None) -> Run:
        """Resumes a paused run by hand."""
        item = items.Resume(run_id=run_id, reason="manual", patch=patch or {}, stage=stage)
        woken: Run = await self.do(runs.resume, item, folds.decide_resume)
        return woken

    async def abort(self, run_id: str, reason: str = "no longer needed") -> items.Aborted:
        """Ends a run from outside."""
        item = items.Abort(run_id=run_id, reason=reason)
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

    async def register_piece(self, what: Piece, *, run_id: str | None = None) -> bool:
        """Registers a piece; answers whether it is new."""
        item = items.RegisterPiece(piece=what, run_id=run_id or new_id())
        outcome: items.Registered = await self.do(pieces.register_piece, item, piece_folds.decide_register_piece)
        return outcome.added

    async def run_piece(self, piece_id: str = "hn", *, space: str = "acme") -> str:
        """Wants a piece to run now; answers the run."""
        item = items.RunPiece(space=space, piece_id=piece_id, run_id=new_id())
        run_id: str = await self.do(pieces.run_piece, item, piece_folds.decide_run_piece)
        return run_id

    async def finish_piece(self, item: items.FinishPiece) -> items.PieceFinished:
        """Ends a piece's update."""
        outcome: items.PieceFinished = await self.do(pieces.finish_piece, item, piece_folds.decide_finish_piece)
        return outcome

    async def updating(self, what: Piece | None = None) -> Run:
        """Registers a piece and claims its first update."""
        await self.register_piece(piece() if what is None else what)
        return (await self.claim())[0].run

    async def run(self, run_id: str) -> Run:
        """A run's row as it stands."""
        rows: list[Run] = await self.store.read("runs_by_id", {"run_ids": [run_id]}, Run)
        return rows[0]

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
