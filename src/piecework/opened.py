"""What an app has while it is open; whoever asks for something of it before or afterwards is told so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from piecework.client.parts import RemoteParts
from piecework.configured import Configured
from piecework.errors import ClosedError, InvalidStateError
from piecework.services.data import CleanData, RollbackData
from piecework.services.database import Database
from piecework.workspace.data import ROLLBACK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.assembly import Parts
    from piecework.config import Settings
    from piecework.container.container import Container
    from piecework.run.node import Node
    from piecework.services.bot import Bot
    from piecework.services.notifications import Notifications
    from piecework.services.relay import Relay
    from piecework.services.templates import Templates
    from piecework.services.transport import Transport
    from piecework.space.manager import Spaces
    from piecework.space.service import PieceService
    from piecework.store.contract import Store
    from piecework.workflow.runtime import Runtime
    from piecework.workspace.admission import Workspaces
    from piecework.workspace.data import Data
    from piecework.workspace.processes import ProcessCalls
    from piecework.workspace.supervise import Supervisor
    from piecework.workspace.threads import SyncThreads

T = TypeVar("T")


class Opened(Configured):
    """Holds the parts of an app between its opening and its closing."""

    _parts: Parts | RemoteParts | None = None
    _taking_over: RemoteParts | None = None
    """What a client asks that is about to become the node: until then only this knows all workflows."""
    _door: Runtime | None = None
    """The runtime that was made before the parts, where this app is inside of one."""
    _container: Container | None = None
    _supervisor: Supervisor | None = None
    _threads: SyncThreads | None = None
    _workspaces: Workspaces | None = None
    _processes: ProcessCalls | None = None
    _opened_settings: Settings | None = None
    _templates: Templates | None = None
    _relay: Relay | None = None
    _sender: str | None = None
    _ask: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None
    """How a worker asks the node; None where this is none."""

    @property
    def is_open(self) -> bool:
        """Whether it is open now."""
        return self._parts is not None

    @property
    def _is_open(self) -> bool:
        return self.is_open

    # -- what a workspace needs ----------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The numbers in force."""
        return self._opened(self._opened_settings)

    @property
    def container(self) -> Container:
        """The services of scope app."""
        return self._opened(self._container)

    @property
    def threads(self) -> SyncThreads:
        """Where synchronous functions run."""
        return self._opened(self._threads)

    @property
    def workspaces(self) -> Workspaces:
        """The workspaces that are open: how many there may be, and who hears of them."""
        if self._workspaces is None:
            raise self._not_open()
        return self._workspaces

    @property
    def processes(self) -> ProcessCalls:
        """Where functions run in processes of their own."""
        return self._opened(self._processes)

    def data_for(self, mode: str) -> Data:
        """What stands for the app's database in a workspace with data="rollback" or "clean".

        Raises:
            ValidationError: The app has no database.
        """
        real: Database = self.container.require_now(Database)
        if mode == ROLLBACK:
            return RollbackData(real)
        if self._templates is None:
            self._templates = self.make_templates()
        assert self._templates is not None, "there is a database"
        return CleanData(real, self._templates)

    @property
    def supervisor(self) -> Supervisor:
        """Who owns the children that nobody awaits."""
        return self._opened(self._supervisor)

    # -- what is open --------------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """What it is now: "node" or "client". One that was opened as "auto" may be a client first and a node later.

        Raises:
            ClosedError: It is not open.
        """
        parts = self._taking_over or self._any_parts()
        return "node" if not isinstance(parts, RemoteParts) and parts.serving else "client"

    @property
    def runtime(self) -> Runtime:
        """Workflows and runs; on a client of a file's node, that node's.

        Who keeps it may go on to ask it when this process becomes the node; to register workflows, ask for it anew.
        """
        # A RemoteRuntime has the same names and signatures: see its test.
        return cast("Runtime", (self._taking_over or self._any_parts()).runtime)

    @property
    def pieces(self) -> PieceService:
        """Pieces; on a client of a file's node, that node's."""
        return cast("PieceService", self._any_parts().pieces)

    @property
    def store(self) -> Store:
        """The store.

        Raises:
            InvalidStateError: The app is a client of a file's node.
        """
        return self._here("store").store

    @property
    def mail(self) -> Transport:
        """Where mails go; of `outbox:` its `messages` are what was sent, for tests."""
        return self._any_parts().mail

    @property
    def notifications(self) -> Notifications:
        """What people are to be told; a job of your own named `deliver-notifications` awaits its `deliver()`.

        Raises:
            InvalidStateError: The app is a client of a file's node.
        """
        return self._here("notifications").notifications

    @property
    def spaces(self) -> Spaces:
        """The workers of spaces.

        Raises:
            InvalidStateError: The app is a client of a file's node.
        """
        return self._here("spaces").spaces

    @property
    def bot(self) -> Bot:
        """Jobs and their schedules.

        Raises:
            InvalidStateError: The app is a client of a file's node.
        """
        return self._here("bot").bot

    @property
    def node(self) -> Node:
        """The node that runs runs.

        Raises:
            InvalidStateError: The app is a client of a file's node.
        """
        return self._here("node").node

    @property
    def node_id(self) -> str:
        """What names this node in the store."""
        return self.node.node_id

    @property
    def integrations(self) -> list[str]:
        """The integrations that pieces may name."""
        return list(self._definitions)

    # -- for those that add to it ----------------------------------------------------------------------------------

    def _any_parts(self) -> Parts | RemoteParts:
        if self._parts is None:
            raise self._not_open()
        return self._parts

    def _here(self, what: str) -> Parts:
        """The parts of an app that has the store itself."""
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            raise InvalidStateError(
                f"app {self.name!r} is a client of the node of {parts.link.path}, so it has no app.{what}: only that "
                "process has the store. Ask by app.runtime, app.pieces and app.publish, or open it as a node"
            )
        return parts

    def _opened(self, part: T | None) -> T:
        if part is None:
            raise self._not_open()
        return part

    def _not_open(self) -> ClosedError:
        return ClosedError(f"app {self.name!r} is not open: use it inside `async with app:`")
