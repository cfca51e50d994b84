"""The life of a workspace: opened, current, closed; and what a workspace needs of the app that hosts it."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import ClosedError, InvalidStateError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.container.container import Container
    from piecework.workspace.supervise import Supervisor
    from piecework.workspace.threads import SyncThreads
    from piecework.workspace.workspace import Workspace


class Host(Protocol):
    """What a workspace needs of the app that opens it."""

    @property
    def name(self) -> str:
        """The app's name."""
        ...

    @property
    def container(self) -> Container:
        """The services of scope app; its registry holds the recipes of every scope."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """What `ws.config` is."""
        ...

    @property
    def environment(self) -> str:
        """What `ws.environment` is: development, test, production."""
        ...

    @property
    def settings(self) -> Settings:
        """The numbers that an operator may turn."""
        ...

    @property
    def clock(self) -> Clock:
        """What tells the time."""
        ...

    @property
    def threads(self) -> SyncThreads:
        """Where synchronous functions run."""
        ...

    @property
    def supervisor(self) -> Supervisor:
        """Who owns the children that nobody awaits."""
        ...

    async def publish(self, type: str, payload: dict[str, Any], *, id: str | None, space: str | None) -> Any:  # noqa: A002 - the words of the field
        """Publishes an event; returns its receipt when it is durable."""
        ...

    async def enqueue(
        self,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None = None,
        delay_seconds: float | None = None,
        dedup: str | None = None,
        space: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> str:
        """Queues a job; returns its run id when it is durable. `overrides` stand for services, if it runs here."""
        ...

    async def job_value(self, run_id: str) -> Any:
        """Waits for the end of a job's run; gives what it returned, or raises what it failed with."""
        ...

    async def call_command(self, ws: Workspace, name: str, params: Mapping[str, Any], *, key: str | None) -> Any:
        """Calls a command in a fork of a workspace; gives what it returns."""
        ...


# A weak reference: a task that outlives its workspace carries these variables on and must not keep it alive.
_current: ContextVar[weakref.ref[Workspace] | None] = ContextVar("piecework_workspace", default=None)


def current_workspace() -> Workspace:
    """Gives the workspace that the calling code runs in.

    Raises:
        InvalidStateError: It runs in none.
        ClosedError: That workspace is closed; the caller has outlived it.
    """
    reference = _current.get()
    if reference is None:
        raise InvalidStateError("there is no current workspace: call this inside `async with app.workspace()`")
    workspace = reference()
    if workspace is None:
        raise ClosedError("the current workspace is closed: what runs on after it needs a workspace of its own")
    workspace.check_open()
    return workspace


class Opened:
    """Opens a workspace for the body of an `async with`, and closes what was opened in it.

    Closing goes on to its end however often the caller is cancelled. The error of the body wins, with what failed
    while closing written onto it; failures of closing alone are raised as a group. All of them are logged.
    """

    __slots__ = ("_container", "_previous", "_workspace")

    def __init__(self, workspace: Workspace, container: Container) -> None:
        self._workspace = workspace
        self._container = container
        self._previous: weakref.ref[Workspace] | None = None

    async def __aenter__(self) -> Workspace:
        if self._container.closed:
            raise ClosedError(f"workspace {self._workspace.id} was closed already: open a new one")
        self._previous = _current.get()
        _current.set(weakref.ref(self._workspace))
        return self._workspace

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._container.finish(error)
        finally:
            self._leave()

    def _leave(self) -> None:
        # No token: it could not be reset when the body is left in another task than it was entered in.
        current = _current.get()
        if current is not None and current() is self._workspace:
            _current.set(self._previous)
        # The two know each other; without this they would wait for the garbage collector.
        self._container.workspace = None
        failures = self._container.close_failures
        if failures:
            signals.emit(
                signals.CLOSE_FAILED,
                level="error",
                workspace_id=self._workspace.id,
                errors=[describe(failure) for failure in failures],
            )
