"""The app: what an application declares, opens and calls."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from piecework.built_in import BuiltIns
from piecework.configured import default_store
from piecework.container.container import Container
from piecework.container.env import EnvService
from piecework.container.registry import Recipe
from piecework.container.scope import Scope
from piecework.errors import NotFoundError, ValidationError
from piecework.roles import Roles
from piecework.services.database import Database
from piecework.workspace.calls import (
    map_in_workspaces,
    open_workspace,
    run_in_new_workspace,
    spawn_in_new_workspace,
)
from piecework.workspace.opening import NewWorkspace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.container.registry import Service
    from piecework.process import protocol
    from piecework.runtime import Runtime
    from piecework.services.templates import Migrate
    from piecework.space.piece import PieceDefinition
    from piecework.workspace.supervise import Handle
    from piecework.workspace.workspace import Workspace

ATTACHED_AS: Final = "piecework"
"""The attribute of a web application's `state` and `router` by which its requests find their App."""

__all__ = ["App", "WorkerSide", "default_store"]


class App(Roles):
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
        super().__init__(
            name,
            made_in=sys._getframe(1).f_globals.get("__name__", ""),  # noqa: SLF001 - where to look for the app first
            store=store,
            database=database,
            migrate=migrate,
            mail=mail,
            services=services,
            modules=modules,
            env=env,
            config=config,
            import_path=import_path,
            settings=settings,
            clock=clock,
        )
        for recipe in BuiltIns(self, sender=lambda: self._sender).recipes():
            self._registry.add(recipe)
        self._registry.add(Recipe("application_database", self._open_database, Scope.APP, provides=Database))
        self._registry.add(
            Recipe("__env__", lambda: EnvService(self._variables), Scope.APP, provides=EnvService), internal=True
        )

    def within(self, runtime: Runtime) -> None:
        """Says whose app this is: a runtime that was made by itself is its door."""
        self._door = runtime

    def _new_door(self) -> Runtime:
        from piecework.runtime import Runtime

        return Runtime.__new__(Runtime)

    # -- work ------------------------------------------------------------------------------------------------------

    async def run_command(self, name: str, /, **params: Any) -> Any:
        """Calls a command in a fresh workspace and gives what it returns. See `Workspace.run_command`."""
        async with self.workspace() as ws:
            return await ws.run_command(name, **params)

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
                where another process is the node of a file a client of that one, which takes its place when it goes
                away: in place, with everything that is open here. See `role`.

        Raises:
            ValidationError: There is no such role.
            AppImportError: As when a node opens.
            StoreError: As when a node opens.
            NoNodeError: No node has the file of a client; the message says how to start one.
            InvalidStateError: It is open already.
        """
        if role not in {"node", "client", "auto"}:
            raise ValidationError(f"app.open(role={role!r}): choose 'node', 'client' or 'auto'")
        await self._enter(role)
        try:
            yield self
        finally:
            await self._close(*sys.exc_info())

    @asynccontextmanager
    async def lifespan(self, web: Any = None) -> AsyncIterator[None]:
        """Opens the app for as long as a web application lives: `FastAPI(lifespan=app.lifespan)`, Starlette too.

        Its role is "auto": of the processes of one server (`uvicorn --workers 4`) one is the node of a store file, and
        when it dies one of the others takes its place; on PostgreSQL each is a node. The requests of the web
        application find the app as if `piecework.bridges.fastapi.attach` had told them, unless it told them of another.

        Args:
            web: The web application, which gives itself.

        Raises:
            Exception: As of `open`.
        """
        for place in (getattr(web, "state", None), getattr(web, "router", None)):
            if place is not None and not hasattr(place, ATTACHED_AS):
                setattr(place, ATTACHED_AS, self)
        async with self.open(role="auto"):
            yield

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
        try:
            await self._enter_worker(init, ask)
            async with AsyncExitStack() as shared:
                yield WorkerSide(self, self._definitions, shared)
        finally:
            await self._close(*sys.exc_info())
            self._ask = None


class WorkerSide:
    """What a worker uses of the app.

    Args:
        app: The app, opened by `worker_side`.
        definitions: Its pieces.
        shared: Closes, with the worker, what updates of one integration have shared.
    """

    def __init__(self, app: App, definitions: Mapping[str, PieceDefinition], shared: AsyncExitStack) -> None:
        self._app = app
        self._definitions = definitions
        self._shared = shared
        self._containers: dict[str, Container] = {}

    def piece(self, integration: str) -> PieceDefinition:
        """How pieces of an integration are updated.

        Raises:
            NotFoundError: With near names.
        """
        if integration not in self._definitions:
            raise NotFoundError.among("integration", integration, self._definitions)
        return self._definitions[integration]

    def being_made(self, integration: str) -> list[str]:
        """The services of the app, and of an integration, that are being made and that somebody waits for."""
        homes = [self._app.container, *([known] if (known := self._containers.get(integration)) is not None else [])]
        return [build.name for home in homes if home.has_graph for build in home.graph.builds if build.waiters]

    def workspace(
        self, *, space: str, key: str, integration: str | None = None, params: dict[str, Any] | None = None
    ) -> AbstractAsyncContextManager[Workspace]:
        """A fresh workspace of a space; over what an integration's updates share, where one is named."""
        parents = () if integration is None else (self._container_of(integration),)
        return open_workspace(self._app, space=space, key=key, run_id=key, params=params, parents=parents)

    def _container_of(self, integration: str) -> Container:
        """Where its services of scope `workflow` live: one for each integration in this process."""
        known = self._containers.get(integration)
        if known is None:
            known = self._containers[integration] = Container(
                f"integration {integration}",
                level=Scope.WORKFLOW,
                parents=(self._app.container,),
                close_timeout_seconds=self._app.settings.close_timeout_seconds,
            )
            self._shared.push_async_callback(known.dispose)
        return known
