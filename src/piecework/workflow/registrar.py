"""How a workflow is registered: whole or not at all.

The steps are: its services, this node's word that it has it, its routes, the catalogue, what was left of its runs. When
one of them fails, or the caller is cancelled, those before it are undone. Of several registrations the parts that reach
the store are done one after the other, since each says all that this node has.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from piecework.container.container import Container
from piecework.container.env import EnvService
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope
from piecework.errors import ConflictError, ExecutionFailedError, StoppedError, ValidationError, describe
from piecework.run.admission import check_mode, slot_of
from piecework.run.folds_nodes import decide_raise_limit, decide_routes, no_decision
from piecework.store.items import Raised, RaiseLimit, RegisterRoutes, RetireWorkflow
from piecework.store.verbs.nodes import raise_limit, register_routes, retire_workflow
from piecework.telemetry import signals
from piecework.workflow.catalogue import KIND, Catalogue, Registered
from piecework.workflow.definition import Workflow
from piecework.workflow.hooks import NO_HOOKS
from piecework.workflow.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Mapping

    from piecework.clock import Clock
    from piecework.run.admission import Mode
    from piecework.run.intake import Intake
    from piecework.run.node import Node
    from piecework.store.contract import Store
    from piecework.store.records import RouteRow, WorkflowRow
    from piecework.workflow.executor import Executor
    from piecework.workflow.hooks import Hooks
    from piecework.workspace.context import Host

_Standing = tuple["WorkflowRow", list["RouteRow"]]


class Routes:
    """What one registration makes of a workflow's routes, and what they were before: both decisions, with a memory.

    Attributes:
        before: What stood when they were decided; None when they were not.
        after: What was decided.
    """

    def __init__(self) -> None:
        self.before: _Standing | None = None
        self.after: _Standing | None = None

    @property
    def fresh(self) -> bool:
        """Whether the workflow was not known before: only then has it no version."""
        return self.before is not None and self.before[0].version is None

    def decide(self, asked: tuple[RegisterRoutes, WorkflowRow, list[RouteRow]], _: None, now: int) -> _Standing:
        """As `decide_routes` says."""
        standing = asked[1:]
        # A commit whose answer was lost is decided again, and then finds what it has written itself.
        if standing != self.after:
            self.before = standing
        self.after = decide_routes(asked, None, now)
        return self.after

    def restore(self, asked: tuple[RegisterRoutes, WorkflowRow, list[RouteRow]], _: None, _now: int) -> _Standing:
        """What was there before, unless somebody has changed it meanwhile."""
        standing = asked[1:]
        return self.before if self.before is not None and standing == self.after else standing


@dataclass(slots=True, eq=False)
class _Registration:
    """One registration, and how far it has come."""

    registered: Registered
    routes: Routes = field(default_factory=Routes)
    told: bool = False
    listed: bool = False

    @property
    def workflow(self) -> Workflow:
        return self.registered.workflow


class Registrar:
    """Registers workflows.

    Args:
        host: The app.
        store: Open.
        node: Which says what it has.
        intake: Told when events that were left may find their workflow now.
        executor: For the services that runs have of Piecework itself.
        catalogue: Where registered workflows stand.
        clock: Tells the time.
        env: The app's layer of variables.
        serving: Whether registered workflows get events and run here.

    Attributes:
        turn: Held by whoever says in the store what this node has.
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
        serving: bool,
    ) -> None:
        self._host = host
        self._store = store
        self._node = node
        self._intake = intake
        self._executor = executor
        self._catalogue = catalogue
        self._clock = clock
        self._env = env
        self._serving = serving
        self._stopped = False
        self._coming: dict[str, asyncio.Task[None]] = {}
        self.turn = asyncio.Lock()

    async def register(self, workflow: Workflow, mode: Mode | None, hooks: Hooks = NO_HOOKS) -> None:
        """Registers a workflow; see `Runtime.register`."""
        if self._stopped:
            raise _stopped(getattr(workflow, "id", workflow))
        if not isinstance(workflow, Workflow):
            raise ValidationError(f"register needs a Workflow, not {workflow!r:.80}")
        checked = check_mode(mode)
        self._catalogue.check_free(workflow.id)
        if workflow.id in self._coming:
            raise ConflictError(
                f"workflow {workflow.id!r} is being registered by another call: let that one end", id=workflow.id
            )
        registration = _Registration(Registered(workflow, checked, self._container(workflow), hooks))
        # A task of its own, so that whoever stops the runtime can end it, and a caller who is cancelled its clean-up.
        task = asyncio.create_task(self._carry_out(registration), name=f"register {workflow.id}")
        self._coming[workflow.id] = task
        task.add_done_callback(lambda _: self._coming.pop(workflow.id, None))
        cancelled = await _outlast(task, pass_on=True)
        if cancelled is not None:
            if not task.cancelled() and task.exception() is None:  # it was there already: it must not stay
                await _to_its_end(self._take_back(registration, cancelled))
            raise cancelled
        if task.cancelled():
            raise _stopped(workflow.id) if self._stopped else _gave_up(workflow.id)
        task.result()
        self._tell_shadows(workflow)

    def check_open(self) -> None:
        """Refuses new work once the runtime has stopped.

        Raises:
            StoppedError: It has.
        """
        if self._stopped:
            raise StoppedError("the runtime has stopped and starts no runs: the store keeps those that there are")

    async def stop(self) -> None:
        """Takes no more, and ends what is being registered: it is undone. Stopping twice is harmless."""
        self._stopped = True
        coming = set(self._coming.values())
        for task in coming:
            task.cancel()
        if coming:
            await asyncio.wait(coming)

    async def _carry_out(self, registration: _Registration) -> None:
        try:
            await registration.registered.container.ready()
            async with self.turn:
                try:
                    await _to_its_end(self._make_known(registration))
                except BaseException as error:
                    await _to_its_end(self._undo(registration, error))
                    raise
        except BaseException as error:
            await self._close(registration, error)
            raise

    async def _make_known(self, registration: _Registration) -> None:
        workflow = registration.workflow
        if self._serving:
            registration.told = True
            # First that this node has it: nobody retires it between here and its routes.
            await self._node.register(workflow.id)
            await self._announce(registration)
        if self._stopped:
            raise _stopped(workflow.id)
        self._catalogue.add(registration.registered)
        registration.listed = True
        if self._node.started:
            await self._node.catch_up()
            self._intake.on_left()

    async def _announce(self, registration: _Registration) -> None:
        """Lets events find the workflow from now on, wherever they are accepted; its slots go by the new numbers."""
        workflow = registration.workflow
        await self._store.run(register_routes, _routes(workflow), registration.routes.decide, self._clock.now())
        like, after = slot_of(registration.registered.mode, "", workflow.id), ""
        while True:
            item = RaiseLimit(like=like, after=after)
            raised: Raised = await self._store.run(raise_limit, item, decide_raise_limit, self._clock.now())
            if raised.last is None:
                return
            after = raised.last

    # -- undoing -------------------------------------------------------------------------------------------------

    async def _take_back(self, registration: _Registration, error: BaseException) -> None:
        async with self.turn:
            await self._undo(registration, error)
        await self._close(registration, error)

    async def _undo(self, registration: _Registration, error: BaseException) -> None:
        """Leaves nothing of a registration but its container; what cannot be undone is shown and noted on the error."""
        workflow_id = registration.workflow.id
        if registration.listed:
            self._catalogue.remove(workflow_id)
        for undo in (self._restore_routes, self._take_word_back, self._interrupt):
            await _noted(undo(registration), error, f"undoing the registration of workflow {workflow_id!r}")

    async def _restore_routes(self, registration: _Registration) -> None:
        routes = registration.routes
        if routes.before is None or routes.before == routes.after:
            return
        if routes.fresh:
            retire = RetireWorkflow(workflow_id=registration.workflow.id, node_id=self._node.node_id)
            await self._store.run(retire_workflow, retire, no_decision, self._clock.now())
        else:
            asked = _routes(registration.workflow)
            await self._store.run(register_routes, asked, routes.restore, self._clock.now())

    async def _take_word_back(self, registration: _Registration) -> None:
        if registration.told:
            await self._node.register()

    async def _interrupt(self, registration: _Registration) -> None:
        if registration.listed:
            await self._node.interrupt(KIND, registration.workflow.id)

    async def _close(self, registration: _Registration, error: BaseException) -> None:
        what = f"closing the services of workflow {registration.workflow.id!r}"
        await _noted(registration.registered.container.dispose(), error, what)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _container(self, workflow: Workflow) -> Container:
        return Container(
            f"workflow {workflow.id}",
            level=Scope.WORKFLOW,
            registry=self._registry(workflow),
            parents=(self._host.container,),
            close_timeout_seconds=self._host.settings.close_timeout_seconds,
        )

    def _registry(self, workflow: Workflow) -> Registry:
        registry = Registry(service.recipe(Scope.WORKFLOW) for service in workflow.services)
        env = EnvService(workflow.env, self._env)
        registry.add(Recipe("__env__", lambda: env, Scope.WORKFLOW), internal=True)
        executor = self._executor
        pauses = Recipe("__pause_service__", lambda ctx: Pauses(executor, ctx.run_id), Scope.RUN)
        registry.add(pauses, internal=True)
        return registry

    def _tell_shadows(self, workflow: Workflow) -> None:
        hidden = self._host.container.names()
        for service in workflow.services:
            if service.id in hidden:
                signals.emit(signals.SERVICE_SHADOWED, workflow_id=workflow.id, service=service.id)


def _routes(workflow: Workflow) -> RegisterRoutes:
    types = tuple(sorted({trigger.event for trigger in workflow.triggers.values()}))
    return RegisterRoutes(workflow_id=workflow.id, version=workflow.version, event_types=types)


def _stopped(workflow_id: object) -> StoppedError:
    return StoppedError(f"the runtime has stopped: workflow {workflow_id!r} was not registered")


def _gave_up(workflow_id: str) -> ExecutionFailedError:
    return ExecutionFailedError(
        f"a service of workflow {workflow_id!r} raised CancelledError, and nobody had cancelled it: the workflow "
        "was not registered",
        id=workflow_id,
    )


async def _noted(work: Awaitable[None], error: BaseException, what: str) -> None:
    """Awaits a part of a clean-up; what fails in it is shown, and noted on the error that it follows from."""
    try:
        await work
    except Exception as failure:  # noqa: BLE001 - the other parts have to be done too, and the first error is raised
        signals.emit(signals.NODE_TROUBLE, level="error", what=what, error=describe(failure))
        error.add_note(f"and while {what}: {type(failure).__name__}: {failure}")


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits something to its very end, however often the caller is cancelled meanwhile; that is raised afterwards."""
    task = asyncio.create_task(work)
    cancelled = await _outlast(task)
    if cancelled is None:
        task.result()
        return
    if not task.cancelled() and (error := task.exception()) is not None:
        cancelled.add_note(f"and meanwhile: {type(error).__name__}: {error}")
    raise cancelled


async def _outlast(task: asyncio.Task[None], *, pass_on: bool = False) -> asyncio.CancelledError | None:
    """Waits until a task has ended; answers the first cancellation of the caller meanwhile, which may be passed on."""
    first: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            if first is None:
                first = error
                if pass_on:
                    task.cancel()
    return first
