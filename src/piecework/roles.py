"""Opens an app in a role and closes it: what is opened in which order. The only file that knows all parts."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from piecework import process
from piecework.client.doors import RemoteParts, remote_parts
from piecework.config import Settings
from piecework.configured import absolute, default_store
from piecework.container.container import Container
from piecework.container.scope import Scope
from piecework.errors import AppImportError, InvalidStateError, ValidationError
from piecework.process import protocol
from piecework.process.address import Address, address_of
from piecework.sending import Sending
from piecework.services import outbox
from piecework.services.database import Database
from piecework.services.outbox import Outbox
from piecework.services.relay import Relay
from piecework.store.opening import store_for
from piecework.store.sqlite import SqliteStore, sqlite_path
from piecework.telemetry import signals
from piecework.workspace.admission import Workspaces
from piecework.workspace.processes import ProcessCalls
from piecework.workspace.supervise import Supervisor
from piecework.workspace.threads import SyncThreads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from piecework.assembly import Declared, Parts
    from piecework.services.transport import Transport


class Roles(Sending):
    """Opens an app as a node, as a client, or for a worker."""

    async def _enter(self, role: str) -> Self:
        if self._stack is not None:
            raise InvalidStateError(f"app {self.name!r} is open already")
        if process.inside():
            raise AppImportError(
                f"app {self.name!r} was opened while a worker process imported its module: put what runs it, such as "
                "asyncio.run(main()), under if __name__ == '__main__':"
            )
        # Not awaited: two openers at once cannot come between, and what it declares is there for all that follows.
        self.load()
        self._stack = AsyncExitStack()
        try:
            await self._open_role(self._stack, role)
        except BaseException:
            await self._close(*sys.exc_info())
            raise
        return self

    async def _enter_worker(self, init: protocol.Init, ask: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """Opens what a worker needs of the app; whoever calls this closes it, also when it fails."""
        self.load()
        self._ask = ask
        self._database_url = init.database
        self._env = {**init.env} if self._env is not None else None
        self._sender = init.sender
        self.config = init.config
        self._stack = AsyncExitStack()
        await self._open_services(self._stack, Settings(**{**init.settings, "database_pool_size": 2}))

    async def _close(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is None:
            return
        try:
            await stack.__aexit__(exc_type, error, trace)
        finally:
            if self._stack is None:  # nobody has opened it again meanwhile
                self._forget_services()

    def _forget_services(self) -> None:
        """Lets go of what was opened for services and workspaces: whoever asks for it is told that it is not open."""
        self._opened_settings = self._threads = self._container = None
        self._workspaces = self._relay = self._processes = self._supervisor = None

    # -- what is opened, from the bottom up ------------------------------------------------------------------------

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
        url = absolute(self._store_url or default_store())
        if role == "client" and url.startswith("sqlite:"):
            remote = remote_parts(sqlite_path(url), self.bus, self.clock, settings, transport)
            await self._open_remote(stack, remote, settings)
        else:
            await self._open_store(stack, role, url, settings, transport)

    async def _open_store(
        self, stack: AsyncExitStack, role: str, url: str, settings: Settings, transport: Transport
    ) -> None:
        """Opens a node, or a client that has the store itself."""
        from piecework.assembly import assemble  # a worker, which is to be small, has none of these parts

        self._check_jobs()
        serving = role == "node"
        declared = self._declared(serving=serving)
        store = store_for(url, clock=self.clock, connect_seconds=settings.connect_timeout_seconds, create=serving)
        await store.open()
        stack.push_async_callback(store.close)
        _set_switch_interval(stack, settings)
        parts = assemble(declared, store, settings, transport, serving=serving)
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
        await self._begin(stack, parts, settings, serving=serving)

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

    async def _begin(self, stack: AsyncExitStack, parts: Parts, settings: Settings, *, serving: bool) -> None:
        """Registers what is declared; a node lives from here on."""
        # What still runs while the node stops is its own: it says so until the last of it has ended.
        stack.push_async_callback(parts.node.leave)
        heartbeat = parts.store.heartbeat(
            parts.node.beat, every_seconds=settings.heartbeat_seconds, stall_seconds=settings.loop_stall_seconds
        )
        stack.push_async_callback(heartbeat.stop)
        stack.push_async_callback(parts.node.stop, settings.close_timeout_seconds)
        stack.push_async_callback(parts.dispatcher.stop)
        # All of them before anything runs: what a continued run publishes has to find every workflow.
        for workflow, mode, hooks in self._workflows:
            await parts.runtime.register_with(workflow, mode, hooks)
        if serving:
            await heartbeat.start()
            await self._live(stack, parts)

    async def _live(self, stack: AsyncExitStack, parts: Parts) -> None:
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

    # -- what the parts are given ----------------------------------------------------------------------------------

    def _declared(self, *, serving: bool) -> Declared:
        from piecework.assembly import Declared

        return Declared(
            app=self,
            desk_app=self,
            bus=self.bus,
            definitions=self._definitions,
            jobs=self._jobs,
            env=self._variables,
            address=self._address() if self._definitions and serving else None,
            make_init=self._worker_init,
            version=_version(),
        )

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

    async def _close_templates(self) -> None:
        templates, self._templates = self._templates, None
        if templates is not None:
            await templates.close()

    def _forget_parts(self) -> None:
        self._parts = None


def _set_switch_interval(stack: AsyncExitStack, settings: Settings) -> None:
    if settings.switch_interval_seconds is not None:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(settings.switch_interval_seconds)


def _version() -> str:
    from importlib.metadata import version

    return version("piecework")
