"""One run, stage by stage: each stage's steps run concurrently, then one commit says what became of them.

Whatever a crash interrupts begins again at the last commit. A step sees a copy of the state and returns a patch;
the patches of a stage are committed together or not at all. An abort is looked at in every commit, so it cannot slip
between two stages.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.clock import micros
from piecework.container.state import merge
from piecework.errors import (
    AbortedError,
    ClosedError,
    CrashedError,
    ExecutionFailedError,
    NotFoundError,
    PieceworkError,
    StoppedError,
    StoreError,
    describe,
    trace_of,
)
from piecework.run.folds import decide_cleaned, decide_commit_stage, decide_settle
from piecework.run.lifecycle import ENDED, Status
from piecework.run.logger import LogBook, RunLogger
from piecework.run.parts import encode
from piecework.store.items import Cleaned, CommitStage, Continue, Park, Settle
from piecework.store.values import encode_mapping
from piecework.store.verbs.runs import cleaned, commit_stage, settle
from piecework.telemetry import signals
from piecework.workflow.catalogue import KIND, Catalogue
from piecework.workflow.flight import Flight, event_of
from piecework.workflow.pause import WaitFor, resume_patch, waits_of
from piecework.workflow.stages import Stages, target_of
from piecework.workflow.state import initial_state, merge_all, snapshot
from piecework.workspace.calls import open_workspace
from piecework.workspace.context import Host, current_workspace

if TYPE_CHECKING:
    from piecework.bus.event import Event
    from piecework.run.node import Node
    from piecework.store.items import Claimed, Progress, Route
    from piecework.store.records import EventRow, Run, Wait
    from piecework.workflow.definition import Instruction, Stage
    from piecework.workspace.workspace import Workspace


class Executor:
    """The kind `workflow`: carries its runs to their next pause or their end.

    Args:
        host: The app, for workspaces.
        catalogue: The registered workflows.
        crash_limit: How often a run may take its process down without progress.
        abort_grace_seconds: How long an aborted step may go on.
        payload_limit_bytes: The largest encoded state.
    """

    name = KIND

    def __init__(
        self,
        host: Host,
        catalogue: Catalogue,
        *,
        crash_limit: int,
        abort_grace_seconds: float,
        payload_limit_bytes: int,
    ) -> None:
        self._host = host
        self._catalogue = catalogue
        self._crash_limit = crash_limit
        self._abort_grace_seconds = abort_grace_seconds
        self._limit = payload_limit_bytes
        self._stages = Stages(host.clock, payload_limit_bytes)
        self._node: Node | None = None
        self._left: set[asyncio.Task[None]] = set()
        self.flights: dict[str, Flight] = {}

    def attach(self, node: Node) -> None:
        """Says which node commits for this executor."""
        self._node = node

    @property
    def node(self) -> Node:
        """The node that commits."""
        assert self._node is not None
        return self._node

    def known(self) -> list[str]:
        """The workflows whose runs may be claimed here."""
        return self._catalogue.ids()

    def versions(self) -> dict[str, str | None]:
        """The registered workflows with their versions."""
        return self._catalogue.versions()

    def offers(self) -> list[str]:
        """The registered workflows."""
        return self._catalogue.ids()

    def routes(self, event: Event) -> list[Route]:
        """The triggers that an event matches."""
        return self._catalogue.routes(event)

    def matches(self, wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:
        """Whether an event meets a wait."""
        return resume_patch(wait, event, payload)

    def abort(self, run_id: str, reason: str) -> None:
        """Tells a run that executes here to end: its steps are cancelled, nothing of its stage is committed."""
        flight = self.flights.get(run_id)
        if flight is not None and flight.abort_reason is None:
            flight.abort_reason = reason
            if flight.body is not None:
                flight.body.cancel()
                asyncio.get_running_loop().call_later(self._abort_grace_seconds, flight.abandon)

    def carries_caller(self, workflow_id: str) -> bool:
        """Whether the calling code is part of a run of this workflow."""
        try:
            flight = self.flights.get(current_workspace().run_id or "")
        except PieceworkError:
            return False
        return flight is not None and flight.run.workflow_id == workflow_id

    async def execute(self, claimed: Claimed) -> None:
        """Carries a run to its next pause or its end."""
        if Status(claimed.run.status) in ENDED:
            await self._clean(claimed.run)
            return
        if claimed.run.attempt > self._crash_limit:
            await self._settle_without_code(claimed.run, self._crashed(claimed.run))
            return
        if claimed.run.workflow_id not in self._catalogue:
            # Deregistered while the claim was under way: the run stays, for whoever registers the workflow again.
            raise StoppedError(f"workflow {claimed.run.workflow_id!r} was deregistered", run_id=claimed.run.run_id)
        try:
            flight = self._board(claimed)
        except PieceworkError as error:
            await self._settle_without_code(claimed.run, error)
            return
        self.flights[flight.run.run_id] = flight
        try:
            await self._fly(flight)
        finally:
            if self.flights.get(flight.run.run_id) is flight:
                del self.flights[flight.run.run_id]

    # -- the heart -----------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        """Runs stages until the run pauses or ends; settles, closes its workspace, frees its slot."""
        committed = ended = False
        try:
            async with self._workspace(flight) as ws:
                error = self._verdict_before(flight) or await self._run_body(flight, ws)
                await flight.book.flush()
                ended = await self._settle(flight, error)
                committed = True
        except BaseExceptionGroup:
            if not committed:
                raise
            # What failed while closing has been shown by the workspace; the run's outcome stands.
        if ended:
            await self._clean(flight.run)

    async def _run_stages(self, flight: Flight, ws: Workspace) -> None:
        """Goes from stage to stage; returns when the run has nothing more to do, raises `_Parked` when it pauses."""
        while (stage := self._stage(flight)) is not None:
            patches = await self._stages.run_steps(flight, ws, stage)
            state = merge_all(flight.state, patches)
            instruction, wait_for = self._stages.route(flight, stage, state)
            await flight.book.flush()
            await self._commit(flight, stage, state, instruction, wait_for)
            flight.show()

    # -- its parts -----------------------------------------------------------------------------------------------

    def _board(self, claimed: Claimed) -> Flight:
        run = claimed.run
        registered = self._catalogue.get(run.workflow_id)
        pipelines = registered.workflow.pipelines
        if run.trigger_id not in pipelines:
            raise NotFoundError.among("trigger", run.trigger_id, pipelines, hint=f"run {run.run_id} was started by it")
        event = event_of(claimed)
        stored = claimed.values.get("state")
        if stored is not None:
            state = msgspec.json.decode(stored)
        else:
            told = {"id": event.id, "type": event.type, "payload": event.payload, "space": event.space}
            state = initial_state(
                snapshot(event.payload),
                workflow_id=run.workflow_id,
                trigger_id=run.trigger_id,
                pipeline_id=run.pipeline_id,
                event=told,
            )
        patch = claimed.values.get("patch")
        if patch is not None:
            news = msgspec.json.decode(patch)
            state = merge(state, news)
            signals.emit(signals.RUN_RESUMED, level="debug", reason=news.get("__resume_reason__"))
        flight = Flight(
            run=run,
            registered=registered,
            pipeline=pipelines[run.trigger_id],
            event=event,
            state=state,
            book=LogBook(self.node.commit, run.run_id, run.epoch, run.decision, run.attempt),
            visit=run.visit,
            stage=run.stage,
            abort_reason=self.node.abort_reason(run),
        )
        flight.take_signals(claimed.signals)
        flight.show()
        return flight

    def _workspace(self, flight: Flight) -> Any:
        run = flight.run
        return open_workspace(
            self._host,
            parents=(flight.registered.container,),
            space=run.space,
            key=run.run_id,
            run_id=run.run_id,
            state=flight.shown,
            logger=RunLogger(flight.book, run_id=run.run_id, workflow_id=run.workflow_id),
        )

    def _verdict_before(self, flight: Flight) -> PieceworkError | None:
        run = flight.run
        if flight.abort_reason is not None:
            return AbortedError(f"run {run.run_id} was aborted: {flight.abort_reason}")
        return None

    def _crashed(self, run: Run) -> CrashedError:
        where = "its first stage" if run.stage is None else f"stage {run.stage!r}"
        return CrashedError(
            f"run {run.run_id} took its process down {self._crash_limit} times at {where} without progress; "
            "its checkpoint is kept",
            run_id=run.run_id,
        )

    async def _run_body(self, flight: Flight, ws: Workspace) -> BaseException | None:
        """Runs the stages in a task of their own, so that an abort can cancel them and still settle the run."""
        flight.body = asyncio.create_task(self._run_stages(flight, ws), name=f"stages-{flight.run.run_id}")
        flight.abandoned = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({flight.body, flight.abandoned}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            flight.body.cancel()
            await asyncio.wait({flight.body}, timeout=self._abort_grace_seconds)
            raise
        if flight.abort_reason is not None:
            if flight.body.done():
                self._see_off(flight.body)
            return self._aborted(flight)
        if flight.body.cancelled():
            return ExecutionFailedError(f"run {flight.run.run_id} raised CancelledError, and nobody had cancelled it")
        error = flight.body.exception()
        if isinstance(error, StoreError | ClosedError):
            raise error  # the store's trouble, not the run's: it goes on from its last commit
        return error

    def _aborted(self, flight: Flight) -> AbortedError:
        """The end of an aborted run; a step that ignored its cancel is left to itself: the store refuses its writes."""
        if flight.body is not None and not flight.body.done():
            flight.note("abort:forced", flight.stage or "", grace_seconds=self._abort_grace_seconds)
            self._left.add(flight.body)
            flight.body.add_done_callback(self._see_off)
        return AbortedError(f"run {flight.run.run_id} was aborted: {flight.abort_reason}")

    def _see_off(self, body: asyncio.Task[None]) -> None:
        """Shows what became of steps that were abandoned."""
        self._left.discard(body)
        error = None if body.cancelled() else body.exception()
        if error is not None and not isinstance(error, AbortedError | _Parked):
            signals.emit(signals.RUN_LOST, level="warning", error=describe(error))

    def _stage(self, flight: Flight) -> Stage | None:
        if flight.stage is None:
            return None if flight.visit else flight.pipeline.stages[0]
        return flight.pipeline.stages[flight.pipeline.position(flight.stage)]

    async def _commit(
        self, flight: Flight, stage: Stage, state: dict[str, Any], instruction: Instruction, wait_for: WaitFor | None
    ) -> None:
        target = target_of(flight.pipeline, stage, instruction)
        flight.note("stage:completed", stage.id, next=target, instruction=instruction.action)
        flight.state = state
        flight.stage = target
        if instruction.action != "pause" and target is None:
            flight.visit += 1  # the settle that follows at once carries the state
            return
        then: Continue | Park
        if instruction.action == "pause":
            waits = () if wait_for is None else waits_of(wait_for, flight.run.run_id, stage=stage.id)
            seconds = instruction.timeout_seconds
            then = Park(stage=target, waits=waits, timeout=None if seconds is None else micros(seconds))
        else:
            assert target is not None
            then = Continue(stage=target)
        item = CommitStage(
            run_id=flight.run.run_id,
            epoch=flight.run.epoch,
            visit=flight.visit,
            state=encode_mapping(state, what="the run's state", limit_bytes=self._limit),
            signalled=flight.signalled,
            entries=flight.take_entries(),
            then=then,
        )
        progress: Progress = await self.node.commit(commit_stage, item, decide_commit_stage)
        flight.visit += 1
        self._follow(flight, progress)

    def _follow(self, flight: Flight, progress: Progress) -> None:
        """Does what a commit's answer asks for."""
        flight.book.decided(progress.decision, 0)
        if progress.outcome == "aborted":
            flight.abort_reason = progress.reason
            raise AbortedError(f"run {flight.run.run_id} was aborted: {progress.reason}")
        if progress.outcome == "parked":
            raise _Parked
        if progress.outcome == "resumed" and progress.patch is not None:
            flight.state = merge(flight.state, msgspec.json.decode(progress.patch))
        flight.take_signals(progress.signals)

    async def _settle(self, flight: Flight, error: BaseException | None) -> bool:
        """Commits the end of a run, unless it paused; answers whether it ended."""
        run = flight.run
        if isinstance(error, _Parked):
            signals.emit(signals.RUN_PAUSED, level="debug", stage=flight.stage)
            self.node.news.announce(run.run_id, Status.PAUSED)
            self.node.wake()  # its deadline may be the next thing to do, and a successor may have got its place
            return False
        item = Settle(
            run_id=run.run_id,
            epoch=run.epoch,
            status=_status_of(error),
            state=encode(flight.state) if error is None else None,
            error=None if error is None else encode(describe(error) | {"trace": trace_of(error)}).decode(),
            entries=flight.take_entries(),
        )
        status: str = await self.node.commit(settle, item, decide_settle)
        if error is None or status == Status.ABORTED:
            signals.emit(signals.RUN_ENDED, status=status)
        else:
            signals.emit(
                signals.RUN_ENDED, level="warning", status=status, error=describe(error), exception=trace_of(error)
            )
        self.node.news.announce(run.run_id, status)
        return True

    async def _settle_without_code(self, run: Run, error: PieceworkError) -> None:
        item = Settle(run_id=run.run_id, epoch=run.epoch, status=Status.FAILED, error=encode(describe(error)).decode())
        status: str = await self.node.commit(settle, item, decide_settle)
        signals.emit(signals.RUN_ENDED, level="warning", status=status, error=describe(error))
        self.node.news.announce(run.run_id, status)
        await self._clean(run)

    async def _clean(self, run: Run) -> None:
        started: int = await self.node.commit(cleaned, Cleaned(run_id=run.run_id, epoch=run.epoch), decide_cleaned)
        if started:
            self.node.wake()


class _Parked(Exception):  # noqa: N818 - a signal to the heart, not an error
    """The run has paused: its commit said so."""


def _status_of(error: BaseException | None) -> Status:
    if error is None:
        return Status.COMPLETED
    return Status.ABORTED if isinstance(error, AbortedError) else Status.FAILED
