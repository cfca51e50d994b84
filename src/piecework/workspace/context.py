"""The workspace that code runs in, the states of one, and what it needs of the app that hosts it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import ClosedError, InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.container.container import Container
    from piecework.workspace.admission import Workspaces
    from piecework.workspace.data import Data
    from piecework.workspace.opening import Opening
    from piecework.workspace.processes import ProcessCalls
    from piecework.workspace.supervise import Supervisor
    from piecework.workspace.threads import SyncThreads
    from piecework.workspace.workspace import Workspace


class State(StrEnum):
    """Where a workspace is in its life; it only goes forward."""

    NEW = "new"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED_OPEN = "failed_open"


class OpenTransaction(Protocol):
    """What the open transaction of a workspace lets others do."""

    def after_commit(self, fn: Callable[[], Any]) -> None:
        """Has `fn`, plain or async, called when the outermost transaction has committed; a rollback drops it."""
        ...

    def after_rollback(self, fn: Callable[[], Any]) -> None:
        """Has the plain function `fn` called when it, or one around it, was rolled back."""
        ...


@dataclass(frozen=True, slots=True)
class Promised:
    """The receipt of an event that waits for the commit of a transaction.

    Attributes:
        event_id: The event.
        dispatched: None: what becomes of it is decided when it is published.
    """

    event_id: str
    dispatched: None = None


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

    @property
    def workspaces(self) -> Workspaces:
        """The workspaces that are open: how many there may be, and who hears of them."""
        ...

    @property
    def processes(self) -> ProcessCalls:
        """Where functions run in processes of their own."""
        ...

    def data_for(self, mode: str) -> Data:
        """What stands for the app's database in a workspace with data="rollback" or "clean"."""
        ...

    def current_transaction(self, ws: Workspace) -> OpenTransaction | None:
        """The transaction that the calling code has open on that workspace's database, or None."""
        ...

    async def promise_event(
        self,
        workspace_id: str,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any],
        *,
        id: str,  # noqa: A002 - the word of the field
        space: str | None,
    ) -> None:
        """Has an event published with the commit of the transaction that is open in a root workspace."""
        ...

    async def promise_job(
        self,
        workspace_id: str,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str,
        delay_seconds: float | None,
        dedup: str | None,
        space: str | None,
        overrides: Mapping[str, Any] | None,
    ) -> None:
        """Has a job queued with the commit of the transaction that is open in a root workspace."""
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

    async def keep_notification(
        self,
        *,
        notification_id: str,
        email: str,
        body: str,
        subject: str | None,
        frequency: str,
        force: bool,
        space: str | None,
        once: bool,
    ) -> None:
        """Keeps what somebody is to be told until their digest is due."""
        ...

    def refuse_running(self, ws: Workspace, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of that workspace, with whose commit it would begin."""
        ...

    async def call_command(self, ws: Workspace, name: str, params: Mapping[str, Any], *, key: str | None) -> Any:
        """Calls a command in a fork of a workspace; gives what it returns."""
        ...


current: ContextVar[Opening | None] = ContextVar("piecework_workspace", default=None)
"""What opened the innermost workspace of the code that runs; it lets go of that when it closes it."""


def current_workspace() -> Workspace:
    """Gives the workspace that the calling code runs in.

    Raises:
        InvalidStateError: It runs in none.
        ClosedError: That workspace is closed; the caller has outlived it.
    """
    opening = current.get()
    if opening is None:
        raise InvalidStateError("there is no current workspace: call this inside `async with app.workspace()`")
    workspace = opening.workspace
    if workspace is None:
        raise ClosedError(
            f"the current workspace, {opening.id}, is closed: what runs on after it needs a workspace of its own",
            id=opening.id,
        )
    workspace.check_open()
    return workspace
