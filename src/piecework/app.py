"""The app: declares what there is, and wires it when it is opened. The only file that knows all parts."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from piecework import process
from piecework.assembly import Declared, assemble
from piecework.bus.event import Event
from piecework.bus.subscriptions import EventBus
from piecework.client.doors import RemoteParts, remote_parts
from piecework.client.within import no_transactions, publish_within
from piecework.clock import SystemClock, check_duration, micros
from piecework.config import Settings, tool_setting
from piecework.container.container import Container
from piecework.container.env import EnvService
from piecework.container.registry import Recipe
from piecework.container.scope import Scope
from piecework.declaring import Declarations
from piecework.errors import (
    AppImportError,
    ClosedError,
    InvalidStateError,
    NotFoundError,
    StoreLockedError,
    ValidationError,
)
from piecework.ids import new_id
from piecework.process import protocol
from piecework.process.address import Address, address_of
from piecework.run.intake import Receipt, check_event
from piecework.services import outbox, transactions
from piecework.services.bot import Bot
from piecework.services.data import CleanData, RollbackData
from piecework.services.database import Database
from piecework.services.job import offered_jobs
from piecework.services.outbox import Outbox
from piecework.services.relay import Relay
from piecework.services.tables import WorkspaceDatabase
from piecework.services.templates import check_migrate, templates_of
from piecework.space.piece import PieceDefinition
from piecework.store.items import DispatchResult
from piecework.store.opening import store_for
from piecework.store.sqlite import SqliteStore, sqlite_path
from piecework.store.values import check_identifier, encode_mapping
from piecework.telemetry import signals
from piecework.workspace.admission import Workspaces
from piecework.workspace.context import current_workspace
from piecework.workspace.data import ROLLBACK, check_reach, data_of
from piecework.workspace.modules import check_modules, import_modules
from piecework.workspace.opening import NewWorkspace
from piecework.workspace.processes import ProcessCalls
from piecework.workspace.supervise import Supervisor
from piecework.workspace.threads import SyncThreads
from piecework.workspace.workspace import (
    map_in_workspaces,
    open_workspace,
    queue_in,
    run_in_new_workspace,
    spawn_in_new_workspace,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from piecework.assembly import Parts
    from piecework.clock import Clock
    from piecework.container.registry import Service
    from piecework.run.node import Node
    from piecework.services.declared_job import JobDefinition
    from piecework.services.job_handle import JobOptions
    from piecework.services.mail import SendMail
    from piecework.services.notifications import Notifications
    from piecework.services.notify import Notify
    from piecework.services.templates import Migrate, Templates
    from piecework.services.transport import Transport
    from piecework.space.manager import Spaces
    from piecework.space.piece import PieceDefinition
    from piecework.space.service import PieceService
    from piecework.store.contract import Store
    from piecework.workflow.runtime import Runtime
    from piecework.workspace.context import OpenTransaction
    from piecework.workspace.data import Data
    from piecework.workspace.supervise import Handle
    from piecework.workspace.workspace import Workspace

T = TypeVar("T")

_WAIT_SECONDS = 20.0
"""How long one question of a worker waits for a run: one that goes away is forgotten after that."""


def default_store() -> str:
    """The store where none is given: PIECEWORK_STORE, else pyproject.toml's, else a file under .piecework/."""
    return os.environ.get("PIECEWORK_STORE") or tool_setting("store") or "sqlite:///.piecework/store.db"


class App(Declarations):
    """Everything that an application declares, and the node that runs it.

    Args:
        name: For people.
        store: `sqlite:///FILE`; `default_store()` when omitted. Withheld from worker processes.
        database: The application's own data, what `ws.database` opens: `sqlite:///FILE` or `postgresql://…`;
            PIECEWORK_DATABASE when omitted.
        migrate: What makes the tables of an empty database, for workspaces with data="clean" and for tests: a function
            that gets its URL, plain or async, or the MetaData of SQLAlchemy; the tables that `database` has when
            omitted.
        mail: `smtp://…`, `console:` or `outbox:`; PIECEWORK_MAIL when omitted, else `outbox:`.
        services: One instance of each per process.
        modules: Whose imports declare more by this app's decorators ("newsroom.services"): imported whenever the app
            opens, in a space's worker and on a client too, before anything of it is made ready.
        env: The app's layer of variables; the process environment when omitted.
        config: What `ws.config` is.
        import_path: "package.module:attribute", only where the app cannot be found by identity; the attribute may be
            a function that makes the app.
        settings: The numbers; read from the environment when omitted.
        clock: For tests.

    Raises:
        ValidationError: The name is empty, a service is not well-formed, or a module's name is none.
        DuplicateKeyError: Two services have one id, or one is reserved.
    """

    def __init__(
        self,
        name: str,
        *,
        store: str | None = None,
        database: str | None = None,
        migrate: Migrate = None,
        mail: str | None = None,
        services: Iterable[Service] = (),
        modules: Iterable[str] = (),
        env: Mapping[str, str | None] | None = None,
        config: Mapping[str, Any] | None = None,
        import_path: str | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValidationError("an App needs a name: App('newsroom')")
        super().__init__(name, services)
        self.config: Mapping[str, Any] = dict(config or {})
        self.bus = EventBus()
        self.clock: Clock = clock or SystemClock()
        self.import_path = import_path
        self._made_in = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001 - where to look for the app first
        self._store_url = None if process.inside() else store
        self._mail_url = None if process.inside() else mail
        self._database_url = database
        self._migrate = check_migrate(migrate)
        self._templates: Templates | None = None
        self._env = None if env is None else dict(env)
        self._settings = settings
        self._modules = check_modules(modules)
        self._parts: Parts | RemoteParts | None = None
        self._stack: AsyncExitStack | None = None
        self._container: Container | None = None
        self._supervisor: Supervisor | None = None
        self._threads: SyncThreads | None = None
        self._workspaces: Workspaces | None = None
        self._processes: ProcessCalls | None = None
        self._opened_settings: Settings | None = None
        self._ask: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None
        self._relay: Relay | None = None
        self._sender: str | None = None
        self._mailers: WeakKeyDictionary[Workspace, SendMail] = WeakKeyDictionary()
        self._notifiers: WeakKeyDictionary[Workspace, Notify] = WeakKeyDictionary()
        self._add_built_in_services()

    def configure(
        self,
        *,
        store: str | None = None,
        database: str | None = None,
        mail: str | None = None,
        env: Mapping[str, str | None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Changes what was given at construction; what is not given stays.

        Raises:
            InvalidStateError: The app is open.
        """
        if self._stack is not None:
            raise InvalidStateError(f"app {self.name!r} is open: configure it before")
        self._store_url = store or self._store_url
        self._database_url = database or self._database_url
        self._mail_url = mail or self._mail_url
        self._env = self._env if env is None else dict(env)
        self._settings = settings or self._settings

    @contextmanager
    def elsewhere(
        self, *, store: str, database: str | None = None, mail: str = "outbox:", clock: Clock | None = None
    ) -> Iterator[Self]:
        """Has the app's next opening use other places, for the body of a `with`; afterwards its own hold again.

        Args:
            store: Instead of its store.
            database: Instead of the application's own data; None leaves that.
            mail: Instead of where mails go.
            clock: Instead of its clock; None leaves that.

        Raises:
            InvalidStateError: The app is open.
        """
        before = self._store_url, self._database_url, self._mail_url, self.clock
        self.configure(store=store, database=database, mail=mail)
        self.clock = clock or self.clock
        try:
            yield self
        finally:
            self._store_url, self._database_url, self._mail_url, self.clock = before

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

    def make_templates(self) -> Templates | None:
        """What empty copies of the application's database are made from; None where it has none.

        Whoever calls this closes it. The app need not be open.
        """
        url = self._database_address()
        return None if url is None else templates_of(url, self._migrate)

    def current_transaction(self, ws: Workspace) -> OpenTransaction | None:
        """The transaction that the calling code has open on that workspace's database, or None."""
        return transactions.of_workspace(ws.root.id)

    async def promise_event(
        self,
        workspace_id: str,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any],
        *,
        id: str,  # noqa: A002 - the word of the field
        space: str | None,
    ) -> None:
        """Has an event published with the commit of that workspace's open transaction, for `Workspace.publish`."""
        check_event(Event(type, payload, id=id, space=space), limit_bytes=self.settings.payload_limit_bytes)
        told = {"type": type, "payload": payload, "id": id, "space": space}
        await _promise(workspace_id, outbox.EVENT, told)

    async def promise_job(
        self,
        workspace_id: str,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str,
        delay_seconds: float | None = None,
        dedup: str | None = None,
        space: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Has a job queued with the commit of that workspace's open transaction; arguments and errors of `enqueue`."""
        args = await self._checked_job(name, args, delay_seconds=delay_seconds, dedup=dedup)
        encode_mapping(args, what=f"the arguments of {name}", limit_bytes=self.settings.payload_limit_bytes)
        told: dict[str, Any] = {"name": name, "args": args, "run_id": run_id, "dedup": dedup, "space": space}
        told["due_at"] = self.clock.now() + micros(delay_seconds) if delay_seconds else None
        await _promise(workspace_id, outbox.JOB, told, overrides=overrides)

    def refuse_running(self, ws: Workspace, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of that workspace."""
        outbox.refuse_running(name, ws.root.id)

    def refuse_running_here(self, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of the current workspace."""
        ws = _workspace_of(self)
        if ws is not None:
            self.refuse_running(ws, name)

    @property
    def supervisor(self) -> Supervisor:
        """Who owns the children that nobody awaits."""
        return self._opened(self._supervisor)

    @property
    def environment(self) -> str:
        """PIECEWORK_ENV, else development."""
        return os.environ.get("PIECEWORK_ENV", "development")

    @property
    def database_url(self) -> str | None:
        """The application's own database, if there is one."""
        return self._database_address()

    @property
    def store_url(self) -> str | None:
        """The store that was given at construction or by `configure`, if one was."""
        return self._store_url

    # -- what is open --------------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """Workflows and runs; on a client of a file's node, that node's."""
        # A RemoteRuntime has the same names and signatures: see its test.
        return cast("Runtime", self._any_parts().runtime)

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

    async def publish(
        self,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - as in CloudEvents
        space: str | None = None,
        connection: Any = None,
    ) -> Receipt:
        """Publishes an event and returns when it, and all that follows from it at once, is durable.

        Args:
            type: A dotted name.
            payload: A mapping of JSON values.
            id: Names this very occurrence: a second event of the same id is a duplicate.
            space: The tenant, or None.
            connection: The event goes along with a transaction of the caller's: it is published when that one commits,
                and never when it is rolled back; the receipt's `dispatched` is None then. An asyncpg connection, a
                SQLAlchemy AsyncConnection or AsyncSession, or a psycopg AsyncConnection, inside a transaction on the
                PostgreSQL database that the store is in.

        Raises:
            ValidationError: Something of it is not acceptable; nothing was stored.
            ClosedError: The app is not open.
            InvalidStateError: The connection is not inside a transaction, or the store is no PostgreSQL one.
            StoreError: It could not be written; or the store is not in the connection's database.
            NoNodeError: This is a client of a file's node, and there is none; see `error.unknown`.
        """
        payload = {} if payload is None else payload
        if connection is not None:
            return await self._publish_within(connection, Event(type, payload, id=id, space=space))
        if self._ask is not None:
            answer = await self._ask("publish", {"type": type, "payload": payload, "id": id, "space": space})
            return Receipt(answer["event_id"], [DispatchResult(**result) for result in answer["dispatched"]])
        return await self._any_parts().intake.publish(Event(type, payload, id=id, space=space))

    async def _publish_within(self, connection: Any, event: Event) -> Receipt:
        if self._ask is not None:
            raise InvalidStateError(
                "publish(connection=…) is not possible in a space's worker, which does not know the store: publish "
                "without connection= when the transaction has committed, with an id= made from what was committed"
            )
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            raise no_transactions(f"the file {parts.link.path}")
        limit_bytes = self.settings.payload_limit_bytes
        return await publish_within(connection, event, parts.store, limit_bytes=limit_bytes, now=parts.node.now())

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
        """Queues a job and returns its run id when it is durable; the same `run_id` twice is one run.

        Args:
            name: The job.
            args: Its own arguments, by name.
            run_id: Names the run; made when not given.
            delay_seconds: How much later it may begin.
            dedup: While a job of this name and key is queued or running, its run id is the answer.
            space: The tenant.
            overrides: What stands for services in it, by name, if this very process carries it out.

        Raises:
            NotFoundError: There is no such job.
            ValidationError: The arguments are not acceptable; nothing was queued.
            InvalidStateError: It comes from a workspace whose data only this process has, and this is not the node.
            NoNodeError: This is a client of a file's node, and there is none; see `error.unknown`.
        """
        args = await self._checked_job(name, args, delay_seconds=delay_seconds, dedup=dedup)
        if self._ask is not None or isinstance(self._parts, RemoteParts):
            check_reach(overrides, f"the node that runs job {name!r}")
        if self._ask is not None:
            told = {"name": name, "args": args, "run_id": run_id, "delay_seconds": delay_seconds}
            answer: str = await self._ask("enqueue", told | {"dedup": dedup, "space": space})
            return answer
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            return await parts.intake.enqueue(
                name, args, run_id=run_id, delay_seconds=delay_seconds, dedup=dedup, space=space
            )
        due_at = parts.node.now() + micros(delay_seconds) if delay_seconds else None
        run_id = new_id() if run_id is None else check_identifier(run_id, "run_id")
        key = None if dedup is None else f"dedup:{name}:{dedup}"
        remembered = parts.jobs.inheriting(run_id, overrides, _ended_on(parts.runtime)) if overrides else nullcontext()
        with remembered:
            queued = await parts.intake.enqueue(
                "job", name, args, run_id=run_id, space=space, due_at=due_at, occurrence=key, again=key is not None
            )
        return queued.run_id

    async def _checked_job(
        self, name: str, args: dict[str, Any], *, delay_seconds: float | None, dedup: str | None
    ) -> dict[str, Any]:
        """What a job is given, as it is stored; refuses what is known here not to be acceptable."""
        if name in self._jobs:
            args = self._jobs[name].arguments.stored(args, self.has_service)
        if delay_seconds:
            check_duration("delay_seconds", delay_seconds)
        if dedup is not None:
            check_identifier(dedup, "dedup")
        parts = None if self._ask is not None else self._any_parts()
        if parts is not None and not isinstance(parts, RemoteParts):
            if not parts.jobs.has(name):
                parts.jobs.check(name, await offered_jobs(parts.store, parts.node.now()))
            parts.jobs.check_args(name, args)
        return args

    async def queue_job(
        self, definition: JobDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], options: JobOptions
    ) -> str:
        """Queues a declared job for its `Job`: from the current workspace, where there is one."""
        given = definition.arguments.named(args, kwargs, self.has_service)
        told = {"delay_seconds": options.delay_seconds, "dedup": options.dedup, "space": options.space}
        ws = _workspace_of(self)
        if ws is None:
            return await self.enqueue(definition.name, given, **told)  # type: ignore[arg-type]  # the options' own types
        return await queue_in(ws, definition.name, given, **told)  # type: ignore[arg-type]  # as above

    async def job_value(self, run_id: str) -> Any:
        """Waits for the end of a job's run and gives what it returned.

        Raises:
            NotFoundError: There is no such run.
            InvalidStateError: It begins with the commit of a transaction that the caller is in.
            PieceworkError: It failed or was aborted: its own error, or EXECUTION_FAILED with its words.
        """
        outbox.refuse_waiting(run_id)
        if self._ask is None:
            (await self.runtime.wait(run_id)).unwrap()
            return (await self.runtime.get(run_id)).result
        while True:
            told = await self._ask("jobs.value", {"run_id": run_id, "seconds": _WAIT_SECONDS})
            if told is not None:
                return told["value"]

    async def enqueue_job(self, name: str, /, **args: Any) -> str:
        """Queues a job; returns its run id when it is durable. See `Workspace.enqueue_job`."""
        return await self.enqueue(name, args)

    async def run_background_job(self, name: str, /, **args: Any) -> Any:
        """Has a job run on a node, waits and gives what it returned. See `Workspace.run_background_job`."""
        return await self.job_value(await self.enqueue(name, args))

    async def run_command(self, name: str, /, **params: Any) -> Any:
        """Calls a command in a fresh workspace and gives what it returns. See `Workspace.run_command`."""
        async with self.workspace() as ws:
            return await ws.run_command(name, **params)

    async def call_command(self, ws: Workspace, name: str, params: Mapping[str, Any], *, key: str | None) -> Any:
        """Calls a command in a fork of a workspace, for `Workspace.run_command`."""
        return await self._commands.run(ws, name, params, key=key)

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
        once: bool = False,
    ) -> None:
        """Keeps what somebody is to be told until their digest is due; `row.notify` ends here.

        Args:
            notification_id: Names it: the same twice is one, as long as it waits.
            email: Whom to tell.
            body: The words.
            subject: One line, or None.
            frequency: asap, daily, or none, of which nothing is kept.
            force: Whether to tell it at once.
            space: The tenant.
            once: The same twice is one also when it has been told.

        Raises:
            ValidationError: Something of it is not acceptable; nothing was stored.
            NoNodeError: This is a client of a file's node, and there is none; see `error.unknown`.
        """
        told: dict[str, Any] = {
            "notification_id": notification_id,
            "email": email,
            "body": body,
            "subject": subject,
            "frequency": frequency,
            "force": force,
            "space": space,
            "once": once,
        }
        if self._ask is not None:
            await self._ask("notify", told)
            return
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            await parts.link.ask("notify", told)
        else:
            await parts.notifications.add(**told)

    def workspace(
        self,
        *,
        isolation: str = "scope",
        data: str | None = None,
        timeout_seconds: float | None = None,
        inherit: Iterable[str] = (),
        space: str | None = None,
        user: Any = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> NewWorkspace:
        """Says what a new workspace is to be like: open it by `async with`, or `run`, `spawn` or `map` a function.

        Args:
            isolation: "scope", or "process" for a fresh child process; see `NewWorkspace`.
            data: "shared" (as when not given), "rollback" or "clean"; see `NewWorkspace`.
            timeout_seconds: How long it may be open; None means no limit.
            inherit: Empty: there is no workspace here that it could be taken from.
            space: The tenant.
            user: What `ws.user` is.
            params: What `ws.params` is.
            key: The idempotency key, where the same work may be done again.

        Raises:
            ClosedError: The app is not open.
            ValidationError: There is no such isolation or data, something is to be inherited, or the time is not
                positive.
        """
        return NewWorkspace(
            self,
            isolation=isolation,
            data=data,
            timeout_seconds=timeout_seconds,
            inherit=inherit,
            space=space,
            user=user,
            params=params,
            key=key,
        )

    async def run_in_new_workspace(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function in a fresh workspace; see `Workspace.run_in_new_workspace`."""
        return await run_in_new_workspace(self, fn, args, kwargs)

    def spawn_in_new_workspace(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Handle:
        """Starts a function in a fresh workspace, supervised; see `Workspace.spawn_in_new_workspace`."""
        return spawn_in_new_workspace(self, fn, args, kwargs)

    async def map_in_workspaces(self, fn: Callable[..., Any], items: Iterable[Any], *, limit: int = 10) -> list[Any]:
        """Calls a function for each item, each in a fresh workspace; see `Workspace.map_in_workspaces`."""
        return await map_in_workspaces(self, fn, items, limit=limit)

    # -- opening -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Opens a node: takes the store, continues what was left, starts to run what is due.

        Raises:
            StoreError: The store cannot be opened, or somebody else has it.
            AppImportError: One of its modules cannot be imported; or there are pieces, and another process could not
                import the app.
            InvalidStateError: It is open already.
        """
        return await self._enter("node")

    @asynccontextmanager
    async def open(self, role: str = "node") -> AsyncIterator[Self]:
        """Opens the app in a role, with `async with`.

        Args:
            role: "node" runs runs, like `async with app:`. "client" is a whole process (services, workspaces, the
                application's database) that claims and decides nothing: what it publishes, queues, resumes or aborts is
                done by a node of the store. It has the store itself where that is PostgreSQL; of a file it asks the
                node, has no `app.store`, and waits `connect_timeout_seconds` until there is one. "auto" is a node, but
                where another process is the node of a file a client.

        Raises:
            ValidationError: There is no such role.
            AppImportError: As when a node opens.
            StoreError: As when a node opens.
            NoNodeError: No node has the file of a client; the message says how to start one.
            InvalidStateError: It is open already.
        """
        if role not in {"node", "client", "auto"}:
            raise ValidationError(f"app.open(role={role!r}): choose 'node', 'client' or 'auto'")
        try:
            await self._enter("node" if role == "auto" else role)
        except StoreLockedError:
            if role != "auto":
                raise
            await self._enter("client")
        try:
            yield self
        finally:
            await self._close(*sys.exc_info())

    async def _enter(self, role: str) -> Self:
        if self._stack is not None:
            raise InvalidStateError(f"app {self.name!r} is open already")
        if process.inside():
            raise AppImportError(
                f"app {self.name!r} was opened while a worker process imported its module: put what runs it, such as "
                "asyncio.run(main()), under if __name__ == '__main__':"
            )
        # Not awaited: two openers at once cannot come between, and what it declares is there for all that follows.
        import_modules(self._modules, app=self.name)
        self._stack = AsyncExitStack()
        try:
            await self._open_role(self._stack, role)
        except BaseException:
            await self._close(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets runs end for a while, interrupts the rest (the next node continues them), and closes everything."""
        await self._close(exc_type, error, trace)

    @asynccontextmanager
    async def worker_side(
        self, init: protocol.Init, ask: Callable[[str, dict[str, Any]], Awaitable[Any]]
    ) -> AsyncIterator[WorkerSide]:
        """Opens what updates need inside a worker: services and the application's database, never the store.

        Args:
            init: What is in force on the node; it wins over the module's own values.
            ask: Asks the node.
        """
        import_modules(self._modules, app=self.name)
        self._ask = ask
        self._database_url = init.database
        self._env = {**init.env} if self._env is not None else None
        self._sender = init.sender
        self.config = init.config
        self._stack = AsyncExitStack()
        try:
            settings = Settings(**{**init.settings, "database_pool_size": 2})
            await self._open_services(self._stack, settings)
            yield WorkerSide(self, self._definitions)
        finally:
            await self._close(*sys.exc_info())
            self._ask = None

    async def _close(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.__aexit__(exc_type, error, trace)

    async def _open_services(self, stack: AsyncExitStack, settings: Settings) -> None:
        self._opened_settings = settings
        self._threads = SyncThreads(settings.sync_threads_limit)
        stack.callback(self._threads.close)
        self._container = Container(
            "app",
            id=self.name,
            level=Scope.APP,
            registry=self._registry,
            close_timeout_seconds=settings.close_timeout_seconds,
        )
        stack.push_async_callback(self._close_templates)
        stack.push_async_exit(self._container)
        self._workspaces = Workspaces(
            settings.workspaces_limit, wait_seconds=settings.workspaces_wait_seconds, clock=self.clock
        )
        self._relay = Relay(self, self._database_there, self.clock, sweep_seconds=settings.outbox_sweep_seconds)
        stack.push_async_callback(self._relay.close)
        self._processes = ProcessCalls(self, settings, make_init=self._worker_init, address=self._address)
        stack.push_async_callback(self._processes.stop)
        self._supervisor = Supervisor()
        stack.push_async_callback(self._supervisor.drain, settings.close_timeout_seconds)
        stack.push_async_callback(self.bus.drain, settings.close_timeout_seconds)
        await self._container.ready()

    async def _open_role(self, stack: AsyncExitStack, role: str) -> None:
        from piecework.services.transport import Console, Outbox, transport_for

        settings = self._settings or Settings.load()
        transport = transport_for(self._mail_url or os.environ.get("PIECEWORK_MAIL") or "outbox:")
        self._sender = transport.sender
        if transport.sender is None and not isinstance(transport, Outbox | Console):
            raise ValidationError(
                "the mail URL names no sender, and servers refuse mails without one: end it with ?from=you@example.org"
            )
        url = _absolute(self._store_url or default_store())
        if role == "client" and url.startswith("sqlite:"):
            remote = remote_parts(sqlite_path(url), self.bus, self.clock, settings, transport)
            await self._open_remote(stack, remote, settings)
            return
        self._check_jobs()
        declared = self._declared(serving=role == "node")
        store = store_for(
            url, clock=self.clock, connect_seconds=settings.connect_timeout_seconds, create=role == "node"
        )
        await store.open()
        stack.push_async_callback(store.close)
        _set_switch_interval(stack, settings)
        parts = assemble(declared, store, settings, transport, serving=role == "node")
        await self._open_services(stack, settings)
        # Closed from the bottom up: runs, their workers, what was spawned, the workflows' services.
        stack.push_async_callback(parts.spaces.end)
        await parts.spaces.begin()
        stack.callback(self._forget_parts)
        self._parts = parts
        parts.runtime.before_wait = outbox.refuse_waiting
        stack.push_async_callback(parts.runtime.stop)
        stack.push_async_callback(self.supervisor.drain, settings.close_timeout_seconds)
        stack.push_async_callback(parts.spaces.stop)
        self.bus.connect(parts.intake.publish)
        stack.callback(self.bus.connect, None)
        # What still runs while the node stops is its own: it says so until the last of it has ended.
        stack.push_async_callback(parts.node.leave)
        heartbeat = store.heartbeat(
            parts.node.beat, every_seconds=settings.heartbeat_seconds, stall_seconds=settings.loop_stall_seconds
        )
        stack.push_async_callback(heartbeat.stop)
        stack.push_async_callback(parts.node.stop, settings.close_timeout_seconds)
        stack.push_async_callback(parts.dispatcher.stop)
        # All of them before anything runs: what a continued run publishes has to find every workflow.
        for workflow, mode in self._workflows:
            await parts.runtime.register(workflow, mode=mode)
        if role == "node":
            await heartbeat.start()
            await self._begin(stack, parts)

    async def _open_remote(self, stack: AsyncExitStack, parts: RemoteParts, settings: Settings) -> None:
        """Opens a client of the node that has a file: everything of its own, and the way to that node."""
        stack.push_async_callback(parts.link.close)
        await parts.link.open()
        _set_switch_interval(stack, settings)
        await self._open_services(stack, settings)
        stack.callback(self._forget_parts)
        self._parts = parts
        parts.runtime.before_wait = outbox.refuse_waiting
        stack.push_async_callback(self.supervisor.drain, settings.close_timeout_seconds)
        self.bus.connect(parts.intake.publish)
        stack.callback(self.bus.connect, None)

    async def _begin(self, stack: AsyncExitStack, parts: Parts) -> None:
        """Lets a node live: from here on it has what it claims, and whoever is no node may ask it."""
        node, store = parts.node, parts.store
        stack.callback(signals.emit, signals.NODE_STOPPED, node_id=node.node_id)
        await node.start()
        await parts.bot.start()
        stack.push_async_callback(parts.bot.stop)
        parts.dispatcher.start()
        parts.retention.start()
        stack.push_async_callback(parts.retention.stop)
        if self._relay is not None and self._database_address() is not None:
            self._relay.start()
            stack.push_async_callback(self._relay.stop)
        if parts.link is not None:
            stack.push_async_callback(parts.link.stop)
            socket = str(await parts.link.start())
            if isinstance(store, SqliteStore):
                store.lock.describe(socket=socket)
        signals.emit(signals.NODE_STARTED, node_id=node.node_id, store=store.url, pid=os.getpid())

    def _declared(self, *, serving: bool) -> Declared:
        return Declared(
            app=self,
            desk_app=self,
            bus=self.bus,
            definitions=self._definitions,
            jobs=self._jobs,
            env=os.environ if self._env is None else self._env,
            address=self._address() if self._definitions and serving else None,
            make_init=self._worker_init,
            version=_version(),
        )

    @property
    def is_open(self) -> bool:
        """Whether it is open now."""
        return self._parts is not None

    @property
    def made_of(self) -> tuple[Any, ...]:
        """What the tables of its database are known by: the address, and what makes them."""
        return self._database_address(), self._migrate

    @property
    def _is_open(self) -> bool:
        return self.is_open

    def load(self) -> None:
        """Imports the app's modules, so that all that they declare is there; opening does so by itself.

        Raises:
            AppImportError: One cannot be imported.
        """
        import_modules(self._modules, app=self.name)

    async def _close_templates(self) -> None:
        templates, self._templates = self._templates, None
        if templates is not None:
            await templates.close()

    def _forget_parts(self) -> None:
        self._parts = None

    # -- parts ---------------------------------------------------------------------------------------------------

    def _add_built_in_services(self) -> None:
        add = self._registry.add
        add(Recipe("config", lambda: self.config, Scope.TRANSIENT))
        add(Recipe("environment", lambda: self.environment, Scope.TRANSIENT))
        add(Recipe("notify", self._notify, Scope.TRANSIENT))
        add(Recipe("notifications", lambda: self.notifications, Scope.TRANSIENT))
        add(Recipe("application_database", self._open_database, Scope.APP, provides=Database))
        add(Recipe("database", _workspace_database, Scope.RUN, provides=WorkspaceDatabase))
        add(Recipe("send_mail", self._send_mail, Scope.TRANSIENT))
        add(Recipe("bot", lambda: self.bot, Scope.APP, provides=Bot))
        add(Recipe("__env__", self._env_service, Scope.APP, provides=EnvService), internal=True)

    def _address(self, why: str = "has pieces") -> Address:
        return address_of(self, name=self.name, made_in=self._made_in, import_path=self.import_path, why=why)

    def _worker_init(self, space: str | None) -> protocol.Init:
        """What is in force here and wins over the module's own values in a worker."""
        defaults, settings = Settings(), self.settings
        numbers = {name: getattr(settings, name) for name in Settings.__slots__}
        return protocol.Init(
            space=space or "",
            env={key: value for key, value in (self._env or {}).items() if value is not None},
            database=self._database_address(),
            settings={name: value for name, value in numbers.items() if value != getattr(defaults, name)},
            config=dict(self.config),
            sender=self._sender,
        )

    def _database_address(self) -> str | None:
        url = self._database_url or os.environ.get("PIECEWORK_DATABASE")
        return None if url is None else _absolute(url)

    def _open_database(self, ctx: Any) -> Database:
        url = self._database_address()
        if url is None:
            raise ValidationError(
                f"app {self.name!r} has no database: give App(database='sqlite:///FILE') or set PIECEWORK_DATABASE"
            )
        database = Database(url, pool_size=self.settings.database_pool_size)
        database.outbox = Outbox(self.clock, self._opened(self._relay))
        ctx.on_cleanup(database.close)
        return database

    async def _database_there(self) -> Database | None:
        """The application's database, unless it is a file that is not there: looking into it would make it."""
        url = self._database_address()
        if url is None or (url.startswith("sqlite:") and not sqlite_path(url).exists()):
            return None
        database: Database = await self.container.require("application_database")
        return database

    def _send_mail(self, ctx: Any) -> SendMail:
        from piecework.services.attachments import limit_of
        from piecework.services.mail import SendMail  # the mail libraries are large, and few workspaces send mail

        ws: Workspace = ctx.workspace
        space, workspace_id = ws.space, ws.root.id  # not the workspace itself: it is to be forgotten

        async def enqueue(name: str, args: dict[str, Any], /, *, run_id: str) -> str:
            if transactions.of_workspace(workspace_id) is None:
                return await self.enqueue(name, args, run_id=run_id, space=space)
            await self.promise_job(workspace_id, name, args, run_id=run_id, space=space)
            return run_id

        # One for each workspace, however often it is asked for: it counts, so that two mails alike are two.
        if ws not in self._mailers:
            self._mailers[ws] = SendMail(
                enqueue,
                sender=self._sender,
                key=ws.key,
                limit_bytes=limit_of(self.settings.payload_limit_bytes),
            )
        return self._mailers[ws]

    def _notify(self, ctx: Any) -> Notify:
        from piecework.services.notify import Notify  # it checks addresses by the mail libraries

        ws: Workspace = ctx.workspace
        space, workspace_id = ws.space, ws.root.id  # as above

        async def keep(**told: Any) -> None:
            told["space"] = space
            if transactions.of_workspace(workspace_id) is None:
                await self.keep_notification(**told)
            else:
                await _promise(workspace_id, outbox.NOTIFICATION, told)

        if ws not in self._notifiers:
            self._notifiers[ws] = Notify(keep, key=ws.key)
        return self._notifiers[ws]

    def _env_service(self) -> EnvService:
        return EnvService(os.environ if self._env is None else self._env)

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


class WorkerSide:
    """What a worker uses of the app.

    Args:
        app: The app, opened by `worker_side`.
        definitions: Its pieces.
    """

    def __init__(self, app: App, definitions: Mapping[str, PieceDefinition]) -> None:
        self._app = app
        self._definitions = definitions

    def piece(self, integration: str) -> PieceDefinition:
        """How pieces of an integration are updated.

        Raises:
            NotFoundError: With near names.
        """
        if integration not in self._definitions:
            raise NotFoundError.among("integration", integration, self._definitions)
        return self._definitions[integration]

    def workspace(
        self, *, space: str, key: str, params: dict[str, Any] | None = None
    ) -> AbstractAsyncContextManager[Workspace]:
        """A fresh workspace of a space."""
        return open_workspace(self._app, space=space, key=key, run_id=key, params=params)


def _ended_on(runtime: Runtime) -> Callable[[str], Awaitable[Any]]:
    async def ended(run_id: str) -> bool:
        return (await runtime.wait(run_id)).ok  # looked at: what a job came to is told by its run

    return ended


def _workspace_of(app: App) -> Workspace | None:
    """The current workspace, if there is one and it is an open one of this app."""
    try:
        ws = current_workspace()
    except (InvalidStateError, ClosedError):
        return None
    return ws if ws.host is app else None


async def _promise(
    workspace_id: str, kind: str, told: Mapping[str, Any], *, overrides: Mapping[str, Any] | None = None
) -> None:
    transaction = transactions.of_workspace(workspace_id)
    assert transaction is not None, "whoever promises has looked for it"
    await transaction.promise(kind, told, overrides=overrides)


def _workspace_database(ctx: Any, application_database: Database) -> WorkspaceDatabase:
    ws: Workspace = ctx.workspace
    data = data_of(ws.overridden)
    if isinstance(data, RollbackData | CleanData):
        application_database = data.database_of(ws.root.id, ctx)
    database = WorkspaceDatabase(
        application_database, closed=lambda: ws.closed, workspace_id=ws.root.id, check_here=ws.check_here
    )
    ctx.on_cleanup(database.close)
    return database


def _set_switch_interval(stack: AsyncExitStack, settings: Settings) -> None:
    if settings.switch_interval_seconds is not None:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(settings.switch_interval_seconds)


def _absolute(url: str) -> str:
    """The address of a store, with a file's path made absolute: who changes the folder later still means this file."""
    prefix = "sqlite:///"
    return f"{prefix}{Path(url[len(prefix) :]).absolute()}" if url.startswith(prefix) and url != prefix else url


def _version() -> str:
    from importlib.metadata import version

    return version("piecework")
