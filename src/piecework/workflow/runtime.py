"""The door to workflows: register them, and start, resume, abort, await and look at their runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.bus.event import Event
from piecework.container.state import in_json
from piecework.errors import (
    BusyError,
    ConflictError,
    InvalidStateError,
    NotFoundError,
    PieceworkError,
    TimeoutExceededError,
    ValidationError,
)
from piecework.ids import new_id
from piecework.run.barred import expired
from piecework.run.folds import decide_abort, decide_resume, decide_signal
from piecework.run.folds_nodes import no_decision
from piecework.run.info import run_info
from piecework.run.intake import check_payload
from piecework.run.lifecycle import ENDED, Status
from piecework.run.parts import HELD
from piecework.store.items import Abort, Aborted, Resume, Retired, RetireWorkflow, SendSignal, Signalled
from piecework.store.values import check_identifier, decode, encode_mapping
from piecework.store.verbs.nodes import retire_workflow
from piecework.store.verbs.runs import abort, resume, signal
from piecework.workflow.catalogue import KIND, Catalogue
from piecework.workflow.commands import commands_of
from piecework.workflow.hooks import Hooks
from piecework.workflow.leaving import Leaving
from piecework.workflow.looking import Looking, told_event
from piecework.workflow.registrar import Registrar
from piecework.workflow.result import Result, RunMetadata, error_from, result_of
from piecework.workflow.standing import standing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from piecework.clock import Clock
    from piecework.run.admission import Mode
    from piecework.run.intake import Intake
    from piecework.run.node import Node
    from piecework.store.contract import Store
    from piecework.store.items import DispatchResult
    from piecework.store.records import Run
    from piecework.workflow.definition import Workflow
    from piecework.workflow.executor import Executor
    from piecework.workspace.context import Host


class Runtime(Looking):
    """Runs workflows on a node.

    Args:
        host: The app.
        store: Open.
        node: Running.
        intake: For invoked runs.
        executor: Carries the runs.
        catalogue: Where registered workflows stand.
        clock: Tells the time.
        env: The app's layer of variables.
        serving: Whether registered workflows get events and run here; a client only invokes them.

    Attributes:
        before_wait: Refuses to wait for a run that cannot begin before the caller goes on; None refuses nobody.
    """

    def __init__(
        self,
        host: Host,
        store: Store,
        node: Node,
        intake: Intake,
        executor: Executor,
        catalogue: Catalogue,
        clock: Clock,
        env: Mapping[str, str | None],
        *,
        serving: bool = True,
    ) -> None:
        super().__init__(store, node, catalogue, clock, serving=serving)
        self._host = host
        self._intake = intake
        self._executor = executor
        self.before_wait: Callable[[str], None] | None = None
        intake.commands = commands_of(self)
        self._registrar = Registrar(host, store, node, intake, executor, catalogue, clock, env, serving=serving)
        self._leaving = Leaving(host, store, node, executor, catalogue, self._registrar.turn, serving=serving)
        if serving:
            intake.on_decided = self._decided

    # -- workflows -----------------------------------------------------------------------------------------------

    async def register(
        self,
        workflow: Workflow,
        *,
        mode: Mode | None = None,
        on_prepare: Callable[..., Any] | None = None,
        on_complete: Callable[..., Any] | None = None,
        on_resume: Callable[..., Any] | None = None,
        on_cleanup: Callable[..., Any] | None = None,
        on_dispatch: Callable[..., Any] | None = None,
        replace: bool = False,
    ) -> None:
        """Lets events start a workflow from now on. Whole or not at all: also when it fails late or is cancelled.

        A service of the workflow may have the id of one of the app's: in its runs it takes that one's place, and a line
        in the log says so.

        Args:
            workflow: The definition.
            mode: How many runs may be live; Transient() when omitted.
            on_prepare: Called with a `HookContext` before a run's first stage: may write state, or abort.
            on_complete: Called with the `Result` of a run that has ended, before anybody else is told: at least once.
            on_resume: Called with a `HookContext` before a resumed run goes on; where it fails, the run is paused
                again, and at the third time fails.
            on_cleanup: Called with nothing once a run has let go of everything; then its successor starts.
            on_dispatch: Called with the `DispatchResult` of each decision about an event.
            replace: Takes the place of the workflow of that id, if there is one: its runs that execute here are
                interrupted and go on under the new definition, what waits is kept, and no event is lost meanwhile. When
                the new one cannot be registered the old one is gone nevertheless, and its events wait for a next one.

        Raises:
            StoppedError: The runtime has stopped, or stopped meanwhile.
            ConflictError: A workflow of that id is registered, or is being registered by another call.
            InvalidStateError: A step of the workflow would replace it: it would be interrupted itself.
            DuplicateKeyError: A service id is reserved, or given twice.
            ValidationError: It is no workflow, or a service's scope does not fit.
            StoreError: It could not be made known.
            Exception: Whatever the factory of a service with lazy=False raised.
        """
        hooks = Hooks(
            on_prepare=on_prepare,
            on_complete=on_complete,
            on_resume=on_resume,
            on_cleanup=on_cleanup,
            on_dispatch=on_dispatch,
        )
        if replace:
            self._registrar.check_open()
            what = f"replace its own workflow {workflow.id!r}"
            self._check_outside(what, "Do it in on_complete, or where the app was opened", workflow.id)
            await self._leaving.give_way(workflow.id)
        await self._ready()
        await self._registrar.register(workflow, mode, hooks)

    async def deregister(
        self, workflow_id: str, *, grace_seconds: float | None = None, abort_paused: bool = False
    ) -> None:
        """Lets no further event reach a workflow, ends its runs and closes its services. Unknown ids: nothing.

        Where other nodes have the workflow, the runs that execute here go on there. On the last node that has it the
        events and the runs that still wait are dropped, and those that run may end by themselves for a while; then they
        are aborted. Paused runs stay paused, whatever happens to them meanwhile: they live again when the workflow is
        registered again. Called from one of its own steps or hooks it returns at once, and the rest is done beside.

        Args:
            workflow_id: The workflow.
            grace_seconds: How long runs may go on; as long as an aborted step may when not given.
            abort_paused: Whether paused runs are aborted too.

        Raises:
            StoreError: The store could not be told: events that others accept are still kept for the workflow. Here it
                is gone all the same.
        """
        gone = self._catalogue.leave(workflow_id)
        if gone is None:
            return
        grace = self._host.settings.abort_grace_seconds if grace_seconds is None else grace_seconds
        own = self._executor.calling_flight()
        mine = own.run.run_id if own is not None and own.run.workflow_id == workflow_id else ""
        finish = partial(self._leaving.finish, gone, grace_seconds=grace, abort_paused=abort_paused, own=mine)
        alone = False
        try:
            alone = await self._leaving.announce(gone, own=mine)
        finally:
            if self._executor.carries_caller(workflow_id):
                # A step cannot wait for the end of its own run: somebody else does.
                self._host.supervisor.spawn(partial(finish, alone=alone), name=f"deregister {workflow_id}")
            else:
                await finish(alone=alone)

    async def retire(self, workflow_id: str) -> int:
        """Ends a workflow that no node has any more: no more events are kept for it. Answers how many were dropped.

        Raises:
            NotFoundError: No such workflow was ever registered, or it is retired already.
            InvalidStateError: A living node has it: deregister it there.
        """
        known = [info.workflow_id for info in await self.registered()]
        if workflow_id not in known:
            raise NotFoundError.among("workflow", workflow_id, known)
        item = RetireWorkflow(workflow_id=workflow_id)
        outcome: Retired = await self._store.run(retire_workflow, item, no_decision, self._clock.now())
        if outcome.nodes:
            raise InvalidStateError(
                f"workflow {workflow_id!r} is registered on {', '.join(outcome.nodes)}: deregister it there, or stop "
                "that node, before it is retired",
                workflow_id=workflow_id,
            )
        return outcome.dropped

    async def stop(self, *, grace_seconds: float | None = None) -> None:
        """Takes no more workflows, lets runs end for a while, takes every workflow down. Stopping twice is harmless.

        Nothing of it is forgotten in the store: runs that had not ended, and events that come meanwhile, wait for the
        next node that has their workflow. Whoever waits for such a run here is told STOPPED.

        Args:
            grace_seconds: How long runs may go on; `close_timeout_seconds` when not given.

        Raises:
            InvalidStateError: It is called by a step of a run, which it would interrupt.
            ExceptionGroup: Services of some workflows failed to close; all were closed.
        """
        self._check_outside("stop the runtime", "Have it stopped where it was opened")
        self._intake.commands = {}
        await self._registrar.stop()
        await self._leaving.stop(grace_seconds)

    def _decided(self, results: Sequence[DispatchResult], event_id: str | None) -> None:
        self._leaving.decided(results)
        self._executor.hooks.dispatched(results, event_id)

    # -- runs ----------------------------------------------------------------------------------------------------

    async def invoke(
        self,
        workflow_id: str,
        trigger_id: str,
        event: Event,
        *,
        run_id: str | None = None,
        wait: bool = True,
        admission: str = "bypass",
        cancel_on_exit: bool = False,
    ) -> Result:
        """Runs a pipeline at once, past predicates and mode, and waits until it completes, fails or pauses.

        Args:
            workflow_id: A registered workflow.
            trigger_id: Whose pipeline.
            event: What the run is given.
            run_id: Names the run, so that a repeat of the call is the same run; made when not given.
            wait: False returns as soon as the run is durable.
            admission: "bypass", or "enforce": by the rules of the workflow's mode, as if it were an event that only
                this trigger sees. The event's id then names the call.
            cancel_on_exit: Whether the run is aborted when its caller is cancelled; else it is left to itself.

        Returns:
            NOT_FOUND without metadata when there is no such workflow or trigger, CONFLICT without it when `run_id` is
            the id of another one's run; else what the run came to. With admission="enforce" BUSY where the mode takes
            no run, with the outcome (dropped, rejected) and the active run's id in the error's data; and where it
            signals, how the active run stands.
        """
        try:
            await self._ready()
            self._registrar.check_open()
            registered = self._catalogue.get(workflow_id)
            workflow = registered.workflow
            if not isinstance(trigger_id, str) or trigger_id not in workflow.triggers:
                raise NotFoundError.among("trigger", trigger_id, workflow.triggers)
            told = told_event(event)
            run_id = new_id() if run_id is None else check_identifier(run_id, "run_id")
            if admission not in {"bypass", "enforce"}:
                raise ValidationError(f"invoke(admission={admission!r}): choose 'bypass' or 'enforce'")
        except PieceworkError as error:
            return Result(error=error)
        if admission == "enforce":
            told_as = Event(event.type, event.payload, id=told["id"], space=event.space)
            return await self._invoke_in_mode(workflow_id, trigger_id, told_as, run_id, wait, cancel_on_exit)
        try:
            made = await self._intake.enqueue(
                KIND,
                workflow_id,
                {"event": told},
                run_id=run_id,
                space=event.space,
                trigger_id=trigger_id,
                pipeline_id=workflow.pipelines[trigger_id].id,
                version=workflow.version,
                telling=registered.hooks.of_end,
            )
            self._leaving.late(workflow_id, run_id)
            if made.duplicate and (other := await self._not_a_repeat(run_id, workflow_id, trigger_id)) is not None:
                return Result(error=other)
            if not wait:
                return result_of(run_info(await self._run(run_id)), {})
            return await self._result(await self._reached(run_id, "paused", 0))
        except asyncio.CancelledError:
            if cancel_on_exit:
                await self._abort_left(run_id)
            raise
        except PieceworkError as error:
            return Result(error=error, metadata=await self._metadata(run_id))

    async def _invoke_in_mode(
        self, workflow_id: str, trigger_id: str, event: Event, run_id: str, wait: bool, cancel_on_exit: bool
    ) -> Result:
        """Carries out `invoke(admission="enforce")`."""
        try:
            came = await self._intake.enforce(event, self._catalogue.route(workflow_id, trigger_id, event, run_id))
            if came.run_id is None:
                beside = "" if came.active_run_id is None else f" beside run {came.active_run_id}"
                raise BusyError(
                    f"workflow {workflow_id!r} takes no run now: {came.outcome} ({came.reason or 'busy'}){beside}; try "
                    "again later, or invoke it with admission='bypass'",
                    workflow_id=workflow_id,
                    outcome=came.outcome,
                    active_run_id=came.active_run_id,
                )
            run_id = came.run_id
            if not wait or came.outcome == "signalled" or came.reason == "signalled":
                return standing(run_info(await self._run(run_id)))
            return await self._result(await self._reached(run_id, "paused", 0))
        except asyncio.CancelledError:
            if cancel_on_exit:
                await self._abort_left(run_id)
            raise
        except PieceworkError as error:
            return Result(error=error, metadata=await self._metadata(run_id))

    async def _not_a_repeat(self, run_id: str, workflow_id: str, trigger_id: str) -> ConflictError | None:
        """Says where the run of the id that a call names is something else's: its outcome is not the call's."""
        run = await self._run(run_id)
        if (run.kind, run.workflow_id, run.trigger_id) == (KIND, workflow_id, trigger_id):
            return None
        return ConflictError(
            f"there is a run {run_id!r} already, of {run.kind} {run.workflow_id!r}, trigger {run.trigger_id!r}: give "
            "this call a run_id of its own",
            run_id=run_id,
        )

    async def _abort_left(self, run_id: str) -> None:
        """Ends the run of a caller who was cancelled, if there is one."""
        if await self._rows(run_id):
            await self.abort(run_id, "its caller was cancelled")

    async def signal(self, run_id: str, patch: Mapping[str, Any], *, token: str | None = None) -> Result:
        """Merges a patch into the state of a run that has not ended, without waking it.

        A router that is asked from now on sees it, and every later stage; steps that are running keep what they have,
        and what they return wins over it. A paused or queued run has it when it goes on. What comes when the last
        router has been asked is in the state that the run ends with.

        Args:
            run_id: The run.
            patch: Merged into its state, deeply.
            token: Names this very call: its repeat under the same token, as the run's last, does nothing more.

        Returns:
            `value.delivered` is "live" for a running run, "stored" for one that goes on later. NOT_FOUND for an unknown
            run; INVALID_STATE, with nothing changed, for one that has ended or is no workflow's.
        """
        try:
            encoded = self._patch(patch)
            run = await self._run(run_id)
            if run.kind != KIND:
                raise InvalidStateError(
                    f"run {run_id} is one of a {run.kind}: only runs of workflows take signals", run_id=run_id
                )
            item = SendSignal(run_id=run_id, patch=encoded, token=_token(token))
            told = partial(self._signalled, run_id)
            outcome: Signalled = await self._store.run(signal, item, decide_signal, self._clock.now(), told)
            return standing(run_info(await self._run(run_id)), delivered=outcome.delivered)
        except PieceworkError as error:
            return Result(error=error, metadata=await self._metadata(run_id))

    def _signalled(self, run_id: str, outcome: Signalled) -> None:
        if outcome.owner == self._node.node_id:
            self._node.on_signal(run_id)

    async def resume(
        self,
        run_id: str,
        patch: Mapping[str, Any] | None = None,
        *,
        at: str | None = None,
        wait: bool = True,
        token: str | None = None,
    ) -> Result:
        """Wakes a paused run and waits until it completes, fails or pauses again.

        Args:
            run_id: The run.
            patch: Merged into its state before it goes on.
            at: The stage to go on with, whatever stage it paused for and whatever version it is of; for operators.
            wait: False returns as soon as the wake-up is durable.
            token: Names this very call: the run's last resume, repeated under the same token, is not done again.

        Returns:
            NOT_FOUND for an unknown run or stage; INVALID_STATE, with nothing changed, for one that is not paused;
            EXPIRED_DEFINITION, with nothing changed, for one that no living node's definition can carry.
        """
        try:
            given = decode(self._patch({} if patch is None else patch))
            run = await self._run(run_id)
            if run.kind == KIND:
                await self._check_goes_on(run, at)
            item = Resume(run_id=run_id, reason="manual", patch=given, stage=at, token=_token(token))
            woken: Run = await self._store.run(
                resume, item, decide_resume, self._clock.now(), lambda _: self._node.wake()
            )
            if not wait:
                return result_of(run_info(woken), {})
            reached = await self._reached(run_id, "paused", woken.resume_count)
            if reached.status == Status.PAUSED and reached.patched:
                return await self._not_resumed(reached)
            return await self._result(reached)
        except PieceworkError as error:
            return Result(error=error, metadata=await self._metadata(run_id))

    async def abort(self, run_id: str, reason: str = "aborted by a call", *, token: str | None = None) -> bool:
        """Ends a run: a queued or paused one at once, a running one as soon as its steps let go.

        Args:
            run_id: The run.
            reason: Why, for people.
            token: Names this very call: its repeat under the same token answers what the first one did.

        Returns:
            False for a run that has ended or is being aborted already.

        Raises:
            NotFoundError: There is no such run.
        """
        await self._run(run_id)
        item = Abort(run_id=run_id, reason=check_identifier(reason, "reason"), token=_token(token))
        told = partial(self._aborted, run_id, reason)
        outcome: Aborted = await self._store.run(abort, item, decide_abort, self._clock.now(), told)
        if outcome.ended:
            await self._executor.hot.drop_run(run_id)
        return outcome.aborted

    def _aborted(self, run_id: str, reason: str, outcome: Aborted) -> None:
        if outcome.owner == self._node.node_id:
            self._node.abort(run_id, reason)
        if outcome.ended:
            self._executor.let_go(run_id)
            self._node.news.announce(run_id, Status.ABORTED)
        self._node.wake()

    async def wait(
        self, run_id: str, *, until: str = "ended", timeout_seconds: float | None = None, resumes: int = 0
    ) -> Result:
        """Waits until a run has ended, or has paused.

        Args:
            run_id: The run.
            until: "ended" or "paused" (which an ended run meets too).
            timeout_seconds: Raise after that long; None waits for ever.
            resumes: A pause counts only after at least so many resumes (`RunInfo.resume_count`).

        Raises:
            NotFoundError: There is no such run.
            InvalidStateError: It begins with the commit of a transaction that the caller is in.
            TimeoutExceededError: It did not get there in time; the run goes on.
        """
        if until not in {"ended", "paused"}:
            raise ValidationError(f"wait(until={until!r}): choose 'ended' or 'paused'")
        if self.before_wait is not None:
            self.before_wait(run_id)
        if timeout_seconds is None:
            return await self._result(await self._reached(run_id, until, resumes))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._result(await self._reached(run_id, until, resumes))
        except TimeoutError:
            raise TimeoutExceededError(
                f"run {run_id} was not {until} within {timeout_seconds:g} s; it goes on", run_id=run_id
            ) from None

    # -- parts ---------------------------------------------------------------------------------------------------

    def _patch(self, patch: Mapping[str, Any]) -> bytes:
        """What a caller wants to merge into a run's state, as it is stored.

        Raises:
            ValidationError: It is no mapping, not JSON, or reaches into the runtime's own part of the state.
        """
        given = in_json(dict(patch) if isinstance(patch, Mapping) else patch)
        encoded = encode_mapping(given, what="the patch", limit_bytes=self._host.settings.payload_limit_bytes)
        check_payload(given, "patch")
        return encoded

    def _check_outside(self, what: str, instead: str, workflow_id: str | None = None) -> None:
        """Refuses what would interrupt the very stages that ask for it, and be left half done with that.

        Raises:
            InvalidStateError: A step of such a run, or a hook before one, has called it.
        """
        run_id = self._executor.interrupts_caller(workflow_id)
        if run_id is not None:
            raise InvalidStateError(
                f"a step of run {run_id} cannot {what}: that interrupts the step itself. {instead}", run_id=run_id
            )

    async def _ready(self) -> None:
        """Opens what is to be open; the runtime of an app is."""

    async def _check_goes_on(self, run: Run, at: str | None) -> None:
        """Refuses to wake a run that no living node has the workflow for, or a definition that can carry it."""
        if at is not None:
            run = replace(run, stage=check_identifier(at, "stage"), version=None)
        if await self._stuck(run) is None or run.status != Status.PAUSED:  # the store says what is wrong with that
            return
        there = await self._there(run.workflow_id)
        if at is None or not there:
            raise expired(run, there)
        stages = {stage for definition in there for stage in definition.stages.get(run.trigger_id, ())}
        raise NotFoundError.among("stage", at, stages, hint=f"Run {run.run_id} stays paused", run_id=run.run_id)

    async def _metadata(self, run_id: str) -> RunMetadata | None:
        rows = await self._rows(run_id)
        return RunMetadata(run_id, rows[0].status) if rows else None

    async def _reached(self, run_id: str, until: str, resumes: int) -> Run:
        """Waits until a run has ended, or has paused after at least so many resumes: pauses of before do not count."""
        while True:
            news = self._node.news.expect(run_id)
            try:
                run = await self._run(run_id)
                paused = until == "paused" and run.status == Status.PAUSED and run.resume_count >= resumes
                if paused or (run.status in ENDED and run.telling != HELD):
                    return run
                with self._leaving.waiting(run, news):
                    await self._node.news.after(news)
            finally:
                news.cancel()

    async def _not_resumed(self, run: Run) -> Result:
        """Says why a run that was woken is paused again."""
        entries = [entry for entry in await self.timeline(run.run_id) if entry.type == "run:unresumed"]
        told = (
            entries[-1].payload if entries and entries[-1].payload else {"message": f"run {run.run_id} is paused again"}
        )
        return Result(error=error_from(told), metadata=RunMetadata(run.run_id, run.status))

    async def _result(self, run: Run) -> Result:
        return result_of(run_info(run), decode((await self._values(run.run_id)).get("state")) or {})


def wired(door: Runtime | None, *parts: Any, serving: bool) -> Runtime:
    """A runtime over the parts of an open app: the one that was made before them, or a new one.

    Args:
        door: That has no parts yet; None has one made.
        parts: What `Runtime` takes, in its order.
        serving: As of `Runtime`.
    """
    made = Runtime.__new__(Runtime) if door is None else door
    Runtime.__init__(made, *parts, serving=serving)
    return made


def _token(given: str | None) -> str:
    return new_id() if given is None else check_identifier(given, "token")
