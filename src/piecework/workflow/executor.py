"""One run, stage by stage: each stage's steps run concurrently, then one commit says what became of them.

Whatever a crash interrupts begins again at the last commit. A step sees a copy of the state and returns a patch;
the patches of a stage are committed together or not at all. An abort is looked at in every commit, so it cannot slip
between two stages.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.clock import micros
from piecework.errors import (
    AbortedError,
    ClosedError,
    CrashedError,
    ExecutionFailedError,
    PieceworkError,
    StoppedError,
    StoreError,
    describe,
)
from piecework.run.failure import step_delay
from piecework.run.folds import decide_commit_stage, decide_settle, decide_unresume
from piecework.run.folds_nodes import carries
from piecework.run.lifecycle import ENDED, Status
from piecework.run.parts import encode
from piecework.store.items import CommitStage, Continue, Park, Settle, Unresume
from piecework.store.values import encode_mapping
from piecework.store.verbs.runs import commit_stage, settle, unresume
from piecework.telemetry import signals
from piecework.workflow.catalogue import KIND, Catalogue, definition_of
from piecework.workflow.endings import Endings
from piecework.workflow.flight import Flight, event_of
from piecework.workflow.hook_calls import HookCalls, calling_workflow
from piecework.workflow.pause import WaitFor, resume_patch, waits_of
from piecework.workflow.result import Result, RunMetadata, RunValue, error_from
from piecework.workflow.stages import Stages, target_of
from piecework.workflow.state import initial_state, merge_all, resumed, snapshot
from piecework.workspace.context import Host, current_workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.bus.event import Event
    from piecework.run.node import Node
    from piecework.store.items import Claimed, Definition, Progress, Route
    from piecework.store.records import EventRow, Run, Wait
    from piecework.workflow.definition import Instruction, Stage
    from piecework.workflow.hot import HotRoom, HotRuns
    from piecework.workspace.workspace import Workspace


_RESUME_TRIES = 3


class Executor:
    """The kind `workflow`: carries its runs to their next pause or their end, and calls the hooks on the way.

    Args:
        host: The app, for workspaces.
        catalogue: The registered workflows.
        crash_limit: How often a run may take its process down without progress.
        abort_grace_seconds: How long an aborted step may go on.
        hook_timeout_seconds: How long one call of a hook may take.
        payload_limit_bytes: The largest encoded state.
        resumes_limit: How often in a row a run may go on from its buffer without any progress.
        hot: Keeps the services of paused runs for a while.
    """

    name = KIND

    def __init__(
        self,
        host: Host,
        catalogue: Catalogue,
        *,
        crash_limit: int,
        abort_grace_seconds: float,
        hook_timeout_seconds: float,
        payload_limit_bytes: int,
        resumes_limit: int,
        hot: HotRuns,
    ) -> None:
        self._resumes_limit = resumes_limit
        self.hot = hot
        self._host = host
        self._catalogue = catalogue
        self._crash_limit = crash_limit
        self._abort_grace_seconds = abort_grace_seconds
        self._limit = payload_limit_bytes
        self.hooks = HookCalls(host, catalogue, hook_timeout_seconds)
        self._endings = Endings(host, catalogue, self.hooks, lambda: self.node)
        self._stages = Stages(host.clock, payload_limit_bytes)
        self._node: Node | None = None
        self._left: set[asyncio.Task[None]] = set()
        self.flights: dict[str, Flight] = {}
        self.on_boarded: Callable[[Flight], None] = _nobody

    def attach(self, node: Node) -> None:
        """Says which node commits for this executor."""
        self._node = node
        node.on_signal = self.signalled
        node.on_ended = self.let_go
        self.hooks.timelines = node.timelines

    @property
    def node(self) -> Node:
        """The node that commits."""
        assert self._node is not None
        return self._node

    def known(self) -> list[str]:
        """The workflows whose runs may be claimed here."""
        return self._catalogue.carried()

    def versions(self) -> dict[str, str | None]:
        """The registered workflows with their versions."""
        return self._catalogue.versions()

    def definitions(self) -> dict[str, Definition]:
        """The registered workflows with what tells which runs they can carry."""
        return self._catalogue.definitions()

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

    def signalled(self, run_id: str) -> None:
        """Tells a run that executes here that signals wait for it: it looks at them when its steps are over."""
        flight = self.flights.get(run_id)
        if flight is not None:
            flight.signals_wait = True

    def let_go(self, run_id: str) -> None:
        """Closes what is kept of a run that has ended while nobody had it; does not wait for that."""
        flight = self.flights.get(run_id)
        if flight is not None:  # it has paused, and its services were about to be kept
            flight.ended_at_rest = True
        self.hot.let_go(run_id)

    def carries_caller(self, workflow_id: str) -> bool:
        """Whether the calling code is part of a run of this workflow, or of one of its hooks."""
        if calling_workflow() == workflow_id:
            return True
        flight = self.calling_flight()
        return flight is not None and flight.run.workflow_id == workflow_id

    def interrupts_caller(self, workflow_id: str | None = None) -> str | None:
        """The run whose stages the calling code is a part of, so that it cannot wait until that has been interrupted.

        Args:
            workflow_id: Whose runs are to be interrupted; None means all.
        """
        flight = self.calling_flight()
        if flight is None or flight.body is None or flight.body.done():
            return None
        return flight.run.run_id if workflow_id in (None, flight.run.workflow_id) else None

    def calling_flight(self) -> Flight | None:
        """The run that the calling code is a part of, if it is part of one."""
        try:
            return self.flights.get(current_workspace().run_id or "")
        except PieceworkError:
            return None

    async def execute(self, claimed: Claimed) -> None:
        """Carries a run to its next pause or its end."""
        if Status(claimed.run.status) in ENDED:
            await self.hot.drop_run(claimed.run.run_id)
            await self._endings.unheard(claimed)
            return
        if claimed.run.attempt > self._crash_limit:
            await self._endings.without_code(claimed, self._crashed(claimed.run))
            return
        registered = self._catalogue.find(claimed.run.workflow_id)
        if registered is None or not carries(definition_of(registered.workflow), claimed.run):
            await self._send_off(claimed)
            return
        flight = self._board(claimed)
        self.flights[flight.run.run_id] = flight
        self.on_boarded(flight)
        try:
            await self._fly(flight)
            await flight.book.flush()  # what was logged while its services were closed
        finally:
            self._prune(flight)

    def _prune(self, flight: Flight) -> None:
        if self.flights.get(flight.run.run_id) is flight:
            del self.flights[flight.run.run_id]

    async def _send_off(self, claimed: Claimed) -> None:
        """Ends a run that was told to end; another stays, for whoever has a definition that can carry it.

        Raises:
            StoppedError: It was not told to end: its workflow was deregistered or changed while it was claimed.
        """
        run = claimed.run
        reason = self.node.abort_reason(run)
        if reason is None:
            raise StoppedError(f"workflow {run.workflow_id!r} was deregistered or changed", run_id=run.run_id)
        await self._endings.without_code(claimed, AbortedError(f"run {run.run_id} was aborted: {reason}"))

    # -- the heart -----------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        """Runs stages until the run pauses or ends; settles, closes its workspace, frees its slot."""
        committed = ended = False
        try:
            async with self._room(flight) as ws:
                error = self._verdict_before(flight) or await self._run_body(flight, ws)
                await flight.book.flush()
                ended = await self._settle(flight, error)
                if ended:
                    await self._endings.close(flight, ws)
                committed = True
        except BaseExceptionGroup:
            if not committed:
                raise
            # What failed while closing has been shown by the workspace; the run's outcome stands.
        if ended:
            self._prune(flight)
            signals.emit(signals.RUN_PRUNED, level="debug")
            await self._endings.clean(flight.run, flight.registered)

    async def _run_stages(self, flight: Flight, ws: Workspace) -> None:
        """Goes from stage to stage; returns when the run has nothing more to do, raises `_Parked` when it pauses."""
        flight.look_at_services(ws)
        if flight.visit == 0:
            await self._prepare(flight, ws)
        while (stage := self._stage(flight)) is not None:
            flight.enter(stage)
            if flight.resumed:
                await self._resume(flight, ws)
            patches = await self._stages.run_steps(flight, ws, stage)
            if flight.signals_wait:  # its router sees them, and what its steps returned wins over them
                flight.signals_wait = False
                flight.take_signals(await self.node.signals_of(flight.run.run_id))
            state = merge_all(flight.state, patches, last_wins=stage.merge == "last")
            instruction, wait_for = self._stages.route(flight, stage, state)
            await flight.book.flush()
            flight.book.check()
            await self._commit(flight, stage, state, instruction, wait_for)
            flight.show()

    # -- hooks ---------------------------------------------------------------------------------------------------

    async def _prepare(self, flight: Flight, ws: Workspace) -> None:
        """Lets `on_prepare` see the run before its first stage; one that fails fails the run."""
        hook = flight.registered.hooks.on_prepare
        error = None if hook is None else await self.hooks.before("on_prepare", hook, flight, ws, self._stages.checked)
        if error is not None:
            flight.note("hook:error", "on_prepare", error=describe(error))
            raise error

    async def _resume(self, flight: Flight, ws: Workspace) -> None:
        """Lets `on_resume` see a resumed run before its next stage; one that fails pauses the run again."""
        flight.resumed = False
        hook = flight.registered.hooks.on_resume
        error = None if hook is None else await self.hooks.before("on_resume", hook, flight, ws, self._stages.checked)
        if error is not None:
            raise _NotResumed(error)

    # -- its parts -----------------------------------------------------------------------------------------------

    def _board(self, claimed: Claimed) -> Flight:
        run = claimed.run
        registered = self._catalogue.find(run.workflow_id) or self._catalogue.get(run.workflow_id)
        pipelines = registered.workflow.pipelines
        event = event_of(claimed)
        stored = claimed.values.get("state")
        state = committed = None if stored is None else msgspec.json.decode(stored)
        if state is None:
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
            state = resumed(state, news)
            signals.emit(signals.RUN_RESUMED, level="debug", reason=news.get("__resume_reason__"))
        flight = Flight(
            run=run,
            registered=registered,
            pipeline=pipelines[run.trigger_id],
            event=event,
            state=state,
            book=self.node.timelines.book(run, registered.workflow.env),
            visit=run.visit,
            stage=run.stage,
            abort_reason=self.node.abort_reason(run),
            resumed=patch is not None,
            told=committed,
        )
        if patch is not None:
            flight.note_resumed()
        flight.take_signals(claimed.signals)
        flight.show()
        return flight

    def _room(self, flight: Flight) -> HotRoom:
        """The run's workspace: the one that was kept while it was paused, or a fresh one."""
        opening = self._endings.workspace(flight.run, flight.registered, flight.shown, flight.book)
        return self.hot.room(flight, opening, lambda: self.flights.get(flight.run.run_id) is flight)

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
            self._leave(flight.body)
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
            self._leave(flight.body)
        return AbortedError(f"run {flight.run.run_id} was aborted: {flight.abort_reason}")

    def _leave(self, body: asyncio.Task[None]) -> None:
        """Leaves steps to themselves; what becomes of them is shown."""
        self._left.add(body)
        body.add_done_callback(self._see_off)

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
        waits = () if wait_for is None else waits_of(wait_for, flight.run.run_id, stage=stage.id, state=state)
        going_on = instruction.action == "pause" or target is not None
        encoded = encode_mapping(state, what="the run's state", limit_bytes=self._limit) if going_on else b""
        # What may be refused has been: from here on the stage is told as completed.
        flight.state = state
        flight.stage = target
        flight.note_change("stage:completed", stage.id, next=target, instruction=instruction.action)
        if not going_on:
            flight.visit += 1  # the settle that follows at once carries the state
            return
        then: Continue | Park
        if instruction.action == "pause":
            seconds = instruction.timeout_seconds
            then = Park(stage=target, waits=waits, timeout=None if seconds is None else micros(seconds))
        else:
            assert target is not None
            then = Continue(stage=target)
        item = CommitStage(
            run_id=flight.run.run_id,
            epoch=flight.run.epoch,
            visit=flight.visit,
            state=encoded,
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
        if progress.outcome == "resumed":
            flight.stages_in_a_row = 0
            flight.run = replace(flight.run, attempt=0)  # as its row says: this resume has not been tried yet
        if progress.outcome == "resumed" and progress.patch is not None:
            flight.state = resumed(flight.state, msgspec.json.decode(progress.patch))
            flight.note_resumed()
            flight.check_progress(self._resumes_limit)
            flight.resumed = True
        flight.take_signals(progress.signals)

    async def _settle(self, flight: Flight, error: BaseException | None) -> bool:
        """Commits the end of a run, unless it paused; answers whether it ended."""
        run = flight.run
        if isinstance(error, _Parked):
            flight.parked = True
            signals.emit(signals.RUN_PAUSED, level="debug", stage=flight.stage)
            self.node.news.announce(run.run_id, Status.PAUSED)
            self.node.wake()  # its deadline may be the next thing to do, and a successor may have got its place
            return False
        if isinstance(error, _NotResumed):
            if run.attempt < _RESUME_TRIES:
                return await self._pause_again(flight, error.cause)
            error = error.cause
        item = Settle(
            run_id=run.run_id,
            epoch=run.epoch,
            status=_status_of(error),
            telling=flight.registered.hooks.on_complete is not None,
            state=encode(flight.state) if error is None else None,
            signalled=flight.signalled,
            error=None if error is None else encode(flight.shown_error(error)).decode(),
            entries=flight.take_entries(),
        )
        status: str = await self.node.commit(settle, item, decide_settle)
        flight.book.moved_on(len(item.entries) + 1)
        if error is None or status == Status.ABORTED:
            signals.emit(signals.RUN_ENDED, status=status)
        else:
            told = flight.shown_error(error)
            signals.emit(signals.RUN_ENDED, level="warning", status=status, error=told, exception=told.pop("trace"))
        flight.ended_as = status
        if item.telling:
            flight.ended = self._as_ended(flight, status, error)
        return True

    def _as_ended(self, flight: Flight, status: str, error: BaseException | None) -> Result:
        """What a run came to, as `on_complete` is told."""
        metadata = RunMetadata(flight.run.run_id, status)
        if status == Status.ABORTED:
            error = error if isinstance(error, AbortedError) else AbortedError(f"run {flight.run.run_id} was aborted")
        if error is None:
            return Result(value=RunValue(status, snapshot(flight.state)), metadata=metadata)
        return Result(error=error_from(describe(error)), metadata=metadata)

    async def _pause_again(self, flight: Flight, error: ExecutionFailedError) -> bool:
        """Pauses a run that could not be resumed, for another try later; answers that it has not ended."""
        run = flight.run
        seconds = step_delay(max(1, run.attempt), 1.0)
        item = Unresume(
            run_id=run.run_id,
            epoch=run.epoch,
            due_at=self.node.now() + micros(seconds),
            error=encode(flight.book.redaction.fields(describe(error))).decode(),
        )
        await self.node.commit(unresume, item, decide_unresume)
        self.node.news.announce(run.run_id, Status.PAUSED)
        self.node.wake()
        return False


class _Parked(Exception):  # noqa: N818 - a signal to the heart, not an error
    """The run has paused: its commit said so."""


class _NotResumed(Exception):  # noqa: N818 - a signal to the heart, not an error of its own
    """The hook that a resumed run begins with has failed."""

    def __init__(self, cause: ExecutionFailedError) -> None:
        super().__init__(cause.message)
        self.cause = cause


def _status_of(error: BaseException | None) -> Status:
    if error is None:
        return Status.COMPLETED
    return Status.ABORTED if isinstance(error, AbortedError) else Status.FAILED


def _nobody(_flight: Flight) -> None:
    """Nobody follows the states of runs."""
