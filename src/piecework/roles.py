"""Opens an app in a role and closes it: what is opened in which order. The only file that knows all parts."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from piecework import process
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
    from piecework.client.parts import RemoteParts
    from piecework.run.node import Node
    from piecework.services.transport import Transport
    from piecework.store.contract import Store
    from piecework.workflow.runtime import Runtime


class Roles(Sending):
    """Opens an app as a node, as a client, as whichever of the two it can be, or for a worker."""

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
        self._processes = ProcessCalls(
            self, settings, make_init=self._worker_init, address=self._address, lease=self._lease
        )
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
        if role == "node" or not url.startswith("sqlite:"):
            await self._open_store(stack, url, settings, transport, serving=role != "client")
            return
        from piecework.client.doors import remote_parts  # late: a worker must stay small

        remote = remote_parts(sqlite_path(url), self.bus, self.clock, settings, transport)
        if role == "auto":
            await self._open_either(stack, remote, url, settings)
        else:
            await self._open_remote(stack, remote, settings)

    async def _open_store(
        self, stack: AsyncExitStack, url: str, settings: Settings, transport: Transport, *, serving: bool
    ) -> None:
        """Opens a node, or a client that has the store itself."""
        self._check_jobs()
        declared = self._declared(serving=serving)
        store = store_for(url, clock=self.clock, connect_seconds=settings.connect_timeout_seconds, create=serving)
        await store.open()
        stack.push_async_callback(store.close)
        _set_switch_interval(stack, settings)
        await self._open_services(stack, settings)
        await self._open_parts(stack, _assemble(declared, store, settings, transport, serving=serving), settings)

    async def _open_parts(self, stack: AsyncExitStack, parts: Parts, settings: Settings) -> None:
        """Closed from the bottom up: runs, their workers, what was spawned, the workflows' services."""
        stack.push_async_callback(parts.spaces.end)
        await parts.spaces.begin()
        self._use_parts(stack, parts)
        stack.push_async_callback(parts.runtime.stop)
        stack.push_async_callback(self._drain, settings)
        stack.push_async_callback(parts.spaces.stop)
        await self._begin(stack, parts, settings)

    async def _open_remote(self, stack: AsyncExitStack, parts: RemoteParts, settings: Settings) -> None:
        """Opens a client of the node that has a file: everything of its own, and the way to that node."""
        stack.push_async_callback(parts.link.close)
        await parts.link.open()
        _set_switch_interval(stack, settings)
        await self._open_services(stack, settings)
        self._use_parts(stack, parts)
        stack.push_async_callback(self._drain, settings)

    async def _open_either(self, stack: AsyncExitStack, remote: RemoteParts, url: str, settings: Settings) -> None:
        """Opens the node of a file that has none, else a client that takes the node's place when that goes away."""
        self._check_jobs()
        declared = self._declared(serving=True)
        # What lies under the services: a store that is taken later is closed after them, as a node's is.
        ground = await stack.enter_async_context(AsyncExitStack())
        make = partial(store_for, url, clock=self.clock, connect_seconds=settings.connect_timeout_seconds)
        above = AsyncExitStack()
        from piecework.client.standby import Standby  # late: a worker must stay small

        standby = Standby(remote.link, make, partial(self._become_node, (ground, above), declared, remote, settings))
        ground.push_async_callback(remote.link.close)
        store = await standby.meet()
        if store is not None:
            ground.push_async_callback(store.close)
            _set_switch_interval(stack, settings)
            await self._open_services(stack, settings)
            await self._open_parts(stack, _assemble(declared, store, settings, remote.mail, serving=True), settings)
        else:
            await self._open_remote(stack, remote, settings)
            await stack.enter_async_context(above)
            stack.push_async_callback(standby.stop)
            standby.start()

    async def _become_node(
        self,
        stacks: tuple[AsyncExitStack, AsyncExitStack],
        declared: Declared,
        remote: RemoteParts,
        settings: Settings,
        store: Store,
    ) -> None:
        """Makes a node of an open client: its services, workspaces and subscriptions stay. Whole or not at all."""
        ground, above = stacks
        async with AsyncExitStack() as below, AsyncExitStack() as taken:
            below.push_async_callback(store.close)
            taken.callback(self._take_over, None, remote)
            self._take_over(remote, remote)
            await self._open_parts(taken, _assemble(declared, store, settings, remote.mail, serving=True), settings)
            self._taking_over = None
            above.push_async_exit(taken.pop_all())
            ground.push_async_exit(below.pop_all())

    def _take_over(self, now: RemoteParts | None, remote: RemoteParts) -> None:
        self._taking_over, remote.link.here = now, now is not None

    async def _begin(self, stack: AsyncExitStack, parts: Parts, settings: Settings) -> None:
        """Registers what is declared; a node lives from here on."""
        stack.callback(_say_stopped, parts.node)
        # What still runs while the node stops is its own: it says so until the last of it has ended.
        stack.push_async_callback(parts.node.leave)
        stack.callback(self._lease.release)
        heartbeat = parts.store.heartbeat(
            parts.node.beat,
            every_seconds=settings.heartbeat_seconds,
            stall_seconds=settings.loop_stall_seconds,
            on_held=lambda began: self._lease.renew(began, settings.lease_seconds),
        )
        stack.push_async_callback(heartbeat.stop)
        if parts.link is not None:
            # Clients are answered as long as runs may still end: what they ask for is durable, and the next node's.
            stack.push_async_callback(parts.link.stop)
        stack.push_async_callback(parts.node.stop, settings.close_timeout_seconds)
        stack.push_async_callback(parts.dispatcher.stop)
        # All of them before anything runs: what a continued run publishes has to find every workflow.
        for workflow, mode, hooks in self._workflows:
            await parts.runtime.register(workflow, mode=mode, **hooks.given())
        if parts.serving:
            await heartbeat.start()
            await self._live(stack, parts)

    async def _live(self, stack: AsyncExitStack, parts: Parts) -> None:
        """Lets a node live: from here on it has what it claims, and whoever is no node may ask it."""
        node, store = parts.node, parts.store
        if self._definitions:
            await parts.piece_events.register()
            await parts.overdue.start()
            stack.push_async_callback(parts.overdue.stop)
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
            lease=self._lease,
            version=_version(),
            door=self._door or self._new_door(),
        )

    def _new_door(self) -> Runtime | None:
        """The runtime that is to be wired."""
        return None

    def _address(self, why: str = "has pieces") -> Address:
        return address_of(self, name=self.name, made_in=self._made_in, import_path=self.import_path, why=why)

    def _worker_init(self, space: str | None) -> protocol.Init:
        """What is in force here and wins over the module's own values in a worker."""
        from piecework.process.reach import folder_of  # late: a worker must stay small

        defaults, settings = Settings(), self.settings
        numbers = {name: getattr(settings, name) for name in Settings.__slots__}
        store = absolute(self._store_url or default_store())
        return protocol.Init(
            space=space or "",
            env={key: value for key, value in (self._env or {}).items() if value is not None},
            database=self._database_address(),
            settings={name: value for name, value in numbers.items() if value != getattr(defaults, name)},
            config=dict(self.config),
            sender=self._sender,
            folder=None if space is None else folder_of(space, store),
            store_file=str(sqlite_path(store)) if store.startswith("sqlite:") else None,
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

    def _use_parts(self, stack: AsyncExitStack, parts: Parts | RemoteParts) -> None:
        """Has all that the app sends go through these parts; when they are closed, through those from before."""
        before = self._parts
        stack.callback(self._connect, before)
        parts.runtime.before_wait = outbox.refuse_waiting
        self._connect(parts)

    def _connect(self, parts: Parts | RemoteParts | None) -> None:
        if self._stack is None:  # it closes, and goes back to nothing that it had before
            parts = None
        self._parts = parts
        self.bus.connect(None if parts is None else parts.intake.publish)

    async def _drain(self, settings: Settings) -> None:
        """Waits for what was spawned, unless it goes on: a client that could not take over stays a client."""
        if self._taking_over is None:
            await self.supervisor.drain(settings.close_timeout_seconds)


def _set_switch_interval(stack: AsyncExitStack, settings: Settings) -> None:
    if settings.switch_interval_seconds is not None:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(settings.switch_interval_seconds)


def _assemble(declared: Declared, store: Store, settings: Settings, transport: Transport, *, serving: bool) -> Parts:
    from piecework.assembly import assemble  # a worker, which is to be small, has none of these parts

    return assemble(declared, store, settings, transport, serving=serving)


def _version() -> str:
    from importlib.metadata import version

    return version("piecework")


def _say_stopped(node: Node) -> None:
    if node.started:
        signals.emit(signals.NODE_STOPPED, node_id=node.node_id)
