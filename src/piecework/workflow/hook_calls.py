"""Calls hooks: each within a limit of time, and none of what they raise gets lost or changes what a run came to."""

from __future__ import annotations

import asyncio
import contextvars
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from msgspec.structs import replace

from piecework.container.state import merge
from piecework.errors import AbortedError, ExecutionFailedError, StoppedError, TimeoutExceededError, describe, place_of
from piecework.telemetry import signals
from piecework.workflow.stages import copy_of
from piecework.workflow.state import snapshot
from piecework.workspace.inject import call_injected, invoke

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from piecework.bus.event import Event
    from piecework.run.logger import RunLogger, Timelines
    from piecework.store.items import DispatchResult
    from piecework.store.records import Run
    from piecework.workflow.catalogue import Catalogue
    from piecework.workflow.flight import Flight
    from piecework.workspace.context import Host
    from piecework.workspace.workspace import Workspace

T = TypeVar("T")

_LET_GO_SECONDS = 1.0
"""How long a call whose time is over may take to let go."""

_inside: contextvars.ContextVar[str] = contextvars.ContextVar("piecework_hook_of_workflow", default="")


@dataclass(slots=True, kw_only=True)
class HookContext:
    """What `on_prepare` and `on_resume` are given.

    Attributes:
        run_id: The run.
        workflow_id: Its workflow.
        trigger_id: What started it.
        pipeline_id: Its pipeline.
        event: What started the run.
        workspace: The run's own.
        logger: Its lines stand in the run's timeline too.
        reason: Why the run is to end without a stage; None while nobody has said so.
    """

    run_id: str
    workflow_id: str
    trigger_id: str
    pipeline_id: str
    event: Event
    workspace: Workspace
    logger: RunLogger
    _read: Callable[[], dict[str, Any]] = field(repr=False)
    _write: Callable[[Mapping[str, Any]], None] = field(repr=False)
    reason: str | None = None

    @property
    def state(self) -> dict[str, Any]:
        """A copy of the run's data as its first stage will see it."""
        return self._read()

    async def write(self, patch: Mapping[str, Any]) -> None:
        """Merges a patch into the run's data; it is durable with the next checkpoint.

        Raises:
            ValidationError: It is not JSON, or a key begins with two underscores.
        """
        self._write(patch)

    def abort(self, reason: str = "aborted by a hook") -> None:
        """Ends the run as aborted, once the hook has returned: no stage runs."""
        self.reason = reason

    @overload
    async def require(self, key: type[T]) -> T: ...
    @overload
    async def require(self, key: str) -> Any: ...
    async def require(self, key: str | type) -> Any:
        """A service of the run by name or type."""
        return await self.workspace.require(key)


def calling_workflow() -> str:
    """The workflow whose hook the caller is part of; empty when it is part of none."""
    return _inside.get()


class HookCalls:
    """Calls hooks, each within a limit of time.

    Args:
        host: The app: its threads, and what owns the calls of `on_dispatch`.
        catalogue: The registered workflows.
        timeout_seconds: How long one call may take.

    Attributes:
        timelines: Know what is secret; None before there is a node.
    """

    def __init__(self, host: Host, catalogue: Catalogue, timeout_seconds: float) -> None:
        self._host = host
        self._catalogue = catalogue
        self._timeout_seconds = timeout_seconds
        self._left: set[asyncio.Task[None]] = set()
        self.timelines: Timelines | None = None
        self._decided: defaultdict[str, deque[tuple[Callable[..., Any], DispatchResult]]] = defaultdict(deque)

    async def call(
        self, name: str, fn: Callable[..., Any], args: Sequence[Any], run: Run, ws: Workspace | None
    ) -> ExecutionFailedError | None:
        """Calls one hook of a run; a failure is shown and answered, never raised.

        Args:
            name: Which hook, for people.
            fn: The hook.
            args: What it is given; services fill its further parameters as long as the run has some.
            run: The run.
            ws: The run's workspace; None when it is closed.
        """
        error = await self._failure(name, fn, args, run.workflow_id, run.run_id, ws)
        if error is not None:
            self._show(name, run.workflow_id, error, run_id=run.run_id)
        return error

    async def before(
        self,
        name: str,
        fn: Callable[..., Any],
        flight: Flight,
        ws: Workspace,
        checked: Callable[[Any, str], dict[str, Any]],
    ) -> ExecutionFailedError | None:
        """Calls a hook that comes before the stages of a run; what it writes is in the run's data at once.

        Args:
            name: Which hook, for people.
            fn: The hook.
            flight: The run.
            ws: The run's workspace.
            checked: Makes a patch of what it writes, or refuses it.

        Raises:
            AbortedError: The hook says that the run is to end.
        """
        run = flight.run

        def write(patch: Mapping[str, Any]) -> None:
            """Merges what the hook wrote."""
            flight.state = merge(flight.state, checked(dict(patch), f"what {name} wrote"))
            flight.show()

        ctx = HookContext(
            run_id=run.run_id,
            workflow_id=run.workflow_id,
            trigger_id=run.trigger_id,
            pipeline_id=run.pipeline_id,
            event=copy_of(flight.event),
            workspace=ws,
            logger=ws.logger,
            _read=lambda: snapshot(flight.state),
            _write=write,
        )
        error = await self.call(name, fn, (ctx,), run, ws)
        if error is None and ctx.reason is not None:
            raise AbortedError(f"run {run.run_id} was aborted: {ctx.reason}", run_id=run.run_id)
        return error

    def dispatched(self, results: Sequence[DispatchResult], event_id: str | None) -> None:
        """Has `on_dispatch` hear of decisions, one after the other for each workflow; does not wait for that."""
        for result in results:
            found = self._catalogue.find(result.workflow_id)
            if found is None or found.hooks.on_dispatch is None or result.outcome == "pending":
                continue
            waiting = self._decided[result.workflow_id]
            # With the hook of now: a definition that comes in this one's place brings its own.
            waiting.append((found.hooks.on_dispatch, replace(result, event_id=event_id)))
            if len(waiting) == 1:
                self._begin(result.workflow_id)

    def _begin(self, workflow_id: str) -> None:
        try:
            self._host.supervisor.spawn(lambda: self._tell(workflow_id), name=f"on_dispatch of {workflow_id}")
        except StoppedError as error:
            del self._decided[workflow_id]
            self._show("on_dispatch", workflow_id, error)

    async def _tell(self, workflow_id: str) -> None:
        waiting = self._decided[workflow_id]
        try:
            while waiting:
                fn, result = waiting[0]
                error = await self._failure("on_dispatch", fn, (result,), workflow_id, None, None)
                if error is not None:
                    self._show("on_dispatch", workflow_id, error, outcome=result.outcome)
                waiting.popleft()
        finally:
            self._decided.pop(workflow_id, None)

    async def _failure(
        self,
        name: str,
        fn: Callable[..., Any],
        args: Sequence[Any],
        workflow_id: str,
        run_id: str | None,
        ws: Workspace | None,
    ) -> ExecutionFailedError | None:
        about = f"hook {name} of " + (f"run {run_id}" if run_id else f"workflow {workflow_id!r}")
        token = _inside.set(workflow_id)
        try:
            # A task of its own: one that swallows its cancellation is left behind, and holds nobody up.
            task = asyncio.create_task(self._call(fn, args, ws), name=about)
        finally:
            _inside.reset(token)
        try:
            await asyncio.wait({task}, timeout=self._timeout_seconds)
        finally:
            if not task.done():
                await self._end(task)
        if not task.done() or task.cancelled():
            ended = task.cancelled() and not task.cancelling()
            why = "raised CancelledError" if ended else f"took longer than {self._timeout_seconds:g} s"
            return _failed(about, TimeoutExceededError(f"{about} {why}"))
        error = task.exception()
        return None if error is None else _failed(about, error)

    async def _call(self, fn: Callable[..., Any], args: Sequence[Any], ws: Workspace | None) -> None:
        try:
            if ws is None:
                await invoke(fn, args, {}, self._host.threads)
            else:
                await call_injected(fn, ws, args)
        except SystemExit as error:
            raise ExecutionFailedError(f"it called sys.exit({error.code!r})") from None

    async def _end(self, task: asyncio.Task[None]) -> None:
        """Cancels a call that took too long, and leaves it to itself when it does not let go."""
        task.cancel()
        await asyncio.wait({task}, timeout=_LET_GO_SECONDS)
        if not task.done():
            self._left.add(task)
            task.add_done_callback(self._see_off)

    def _see_off(self, task: asyncio.Task[None]) -> None:
        self._left.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            signals.emit(signals.HOOK_FAILED, level="error", hook=task.get_name(), error=describe(error))

    def _show(self, name: str, workflow_id: str, error: Exception, **about: Any) -> None:
        told, found = describe(error), self._catalogue.find(workflow_id)
        if self.timelines is not None:
            layer = None if found is None else found.workflow.env
            told = self.timelines.redaction_of(workflow_id, layer).fields(told)
        signals.emit(signals.HOOK_FAILED, level="error", hook=name, workflow_id=workflow_id, error=told, **about)


def _failed(about: str, error: BaseException) -> ExecutionFailedError:
    said = describe(error)["message"]
    told = ExecutionFailedError(f"{about} failed: {type(error).__name__}: {said}{place_of(error)}")
    told.__cause__ = error
    return told
