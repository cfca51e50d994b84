"""The workspace: what a function of the user's gets to work with, its own and gone with it.

Services are attributes (`ws.database`) or awaited (`await ws.require("reports")`). A root workspace has run services
of its own; a fork shares those of its root and has its own params, idempotency key and logger.
"""

# ruff: noqa: SLF001 - a workspace reads the private parts of its root and of what it is a fork of

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from piecework.clock import as_datetime, micros
from piecework.container.container import Container
from piecework.container.scope import Scope
from piecework.errors import ClosedError, CrossWorkspaceError, NotFoundError
from piecework.telemetry.logs import get_logger
from piecework.workspace.context import Host, State, current, current_workspace
from piecework.workspace.inheriting import FrozenDict
from piecework.workspace.inject import call_injected, check_callable, name_of
from piecework.workspace.report import CloseReport, place_text
from piecework.workspace.sending import publish_from, queue_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from types import CodeType

    from piecework.workspace.opening import NewWorkspace, Opening
    from piecework.workspace.supervise import Handle

T = TypeVar("T")


class Workspace:
    """An isolated place to work in; `app.workspace()` and `fork` make one.

    An attribute that is none of its own is a service. One that is made asynchronously is awaited first:
    `await ws.require(name)`.

    Attributes:
        parent: The workspace that it is a fork of, or None.
    """

    # What most workspaces never have is kept with the class: opening one is to cost next to nothing.
    parent: Workspace | None = None
    _root: Workspace | None = None
    _container: Container | None = None
    _params: dict[str, Any] | None = None
    _logger: Any = None
    _published: dict[str, int] | None = None
    _phase: State = State.NEW
    _closing: bool = False
    _opened: float | None = None
    _closed: float | None = None
    _deadline: float | None = None
    _place: tuple[CodeType, int] | None = None
    _services: tuple[str, ...] = ()
    _failures: tuple[dict[str, Any], ...] = ()
    _above: Workspace | None = None
    _below: int = 0

    def __init__(self, opening: Opening) -> None:
        self._host = opening.host
        self._opening = opening

    def __repr__(self) -> str:
        return f"<{'fork' if self.parent else 'workspace'} {self.id}{' (closed)' if self.closed else ''}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a workspace has no {name!r}")
        self.check_open()
        try:
            return self.container.require_now(name)
        except NotFoundError as error:
            raise AttributeError(f"a workspace has no {name!r}: {error.message}") from error

    @property
    def root(self) -> Workspace:
        """The workspace that owns the run services: itself, or the one that it is a fork of."""
        return self if self._root is None else self._root

    @property
    def host(self) -> Host:
        """The app that opened it."""
        return self._host

    @property
    def container(self) -> Container:
        """Where its services live."""
        found = self._container
        if found is None:
            self.check_open()
            found = self._container = self._make_container()
        return found

    @property
    def id(self) -> str:
        """Names it."""
        return self._opening.id

    @property
    def params(self) -> dict[str, Any]:
        """What it was opened with: a mapping of its own; what was inherited cannot be changed."""
        if self._params is None:
            given = self._opening.params
            self._params = given if isinstance(given, FrozenDict) else dict(given or ())
        return self._params

    @property
    def space(self) -> str | None:
        """The tenant it works for, or None."""
        return self._opening.space

    @property
    def user(self) -> Any:
        """Whoever it works for, or None."""
        return self._opening.user

    @property
    def key(self) -> str | None:
        """The idempotency key: the same whenever the same work is done again; None where nothing repeats it."""
        return self._opening.key

    @property
    def phase(self) -> State:
        """Where it is in its life: new, opening, open, closing, closed, or failed_open."""
        if self._closed is not None:
            return State.CLOSED
        if self._opened is None:
            return self._phase
        return State.CLOSING if self._closing else State.OPEN

    @property
    def deadline(self) -> datetime | None:
        """Until when it may be open: its own time limit, or that of a workspace around it; None where there is none."""
        if self._deadline is None:
            return None if self._root is None else self._root.deadline
        left = self._deadline - self._opening.rooms.monotonic()
        return as_datetime(self._host.clock.now() + micros(left))

    @property
    def report(self) -> CloseReport | None:
        """How it ended; None until it is closed."""
        if self._closed is None or self._opened is None:
            return None
        since = self._opening.rooms.monotonic() - self._closed
        closed_at = as_datetime(self._host.clock.now() - micros(since))
        assert closed_at is not None
        return CloseReport(
            id=self.id,
            closed_at=closed_at,
            duration_seconds=self._closed - self._opened,
            place=place_text(self._place),
            services=self._services,
            failures=self._failures,
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The app's `config`, or what stands for it here: `ws.override("config", {…})`."""
        return self._standing("config", self._host.config)

    @property
    def environment(self) -> str:
        """Where the app runs: development, test, production; or what stands for it here."""
        return self._standing("environment", self._host.environment)

    @property
    def run_id(self) -> str | None:
        """The run that it belongs to, or None."""
        return self.root._opening.run_id

    @property
    def logger(self) -> Any:
        """A logger whose lines carry this workspace's id."""
        if self._logger is None:
            given = self._opening.logger
            self._logger = get_logger("piecework.workspace", workspace_id=self.id) if given is None else given
        return self._logger

    @property
    def closed(self) -> bool:
        """True from the moment that closing begins; of a fork also when its root closes."""
        return self._closing or (self._root is not None and self._root._closing)

    def check_open(self) -> None:
        """Refuses any use once closing has begun.

        Raises:
            ClosedError: The message has the workspace's id, and where and when it was closed.
        """
        if self._closing or (self._root is not None and self._root._closing):
            ended = self if self._closing else self.root
            report = ended.report
            when = "" if report is None else f" (at {report.closed_at:%Y-%m-%d %H:%M:%S} UTC)"
            place = place_text(ended._place)
            what = f" when {ended._what} had ended" if ended._opening.fn is not None else ""
            where = f", in {place}" if place else what
            raise ClosedError(
                f"workspace {self.id} is closed{when}{where}: what runs on after it needs one of its own, "
                "as ws.spawn_in_new_workspace gives it",
                id=self.id,
                closed_at=None if report is None else report.closed_at,
                place=place,
            )

    def check_here(self, what: str) -> None:
        """Refuses the use of what belongs to this workspace inside a function that was given another one.

        Args:
            what: Named in the error, such as "its database".

        Raises:
            CrossWorkspaceError: The message has both ids.
            ClosedError: It is closed.
        """
        self.check_open()
        root, opening = self.root, current.get()
        while opening is not None and (other := opening.workspace) is not None and other.root is not root:
            if opening.fn is not None:
                raise CrossWorkspaceError(
                    f"{what} belongs to workspace {self.id} and was used in {other.id} ({other._what}): "
                    "ask the function's own ws for it, and hand over plain values such as ids",
                    id=self.id,
                    used_in=other.id,
                )
            opening = opening.previous

    @overload
    async def require(self, key: type[T]) -> T: ...
    @overload
    async def require(self, key: str) -> Any: ...
    async def require(self, key: str | type) -> Any:
        """Gives a service, and builds it first if need be.

        Args:
            key: Its name or its type.

        Raises:
            NotFoundError: There is none, or it lives in a workflow and this workspace is of none; the message has the
                nearest names, or says so.
            ClosedError: The workspace is closed.
            Exception: Whatever its factory raised; the next call tries again.
        """
        self.check_open()
        return await self.container.require(key)

    @contextmanager
    def override(self, key: str | type, value: Any) -> Iterator[Any]:
        """Lets a value stand for a service, for the body of a `with`: for tests above all.

            with ws.override("send_mail", fake) as fake:

        Whoever asks here gets it: by `require`, as an attribute such as `ws.database`, as a parameter; and so do
        services that are built here meanwhile. So do forks, the workspaces that this one opens meanwhile
        (`run_in_new_workspace` and the others), as long as they live, and the jobs that it queues meanwhile, until
        their runs have ended. Nobody else sees it: two tests at once may override one service differently.

        It stays in this process: a job that another node of the store carries out, and a piece, have the service
        itself. What was built before keeps what it was built with, and what was built meanwhile keeps the value.

        Args:
            key: The service's name or its type.
            value: What stands for it; it is not closed. `as` gives it too.

        Raises:
            NotFoundError: There is no such service.
            ClosedError: The workspace is closed.
        """
        self.check_open()
        restore = self.container.override(key, value)
        try:
            yield value
        finally:
            restore()

    def fork(self, *, key: str | None = None, params: Mapping[str, Any] | None = None, logger: Any = None) -> Opening:
        """Opens, with `async with`, a workspace that shares this one's run services.

        Transient services asked for in it see it, and are closed with it.

        Args:
            key: Its idempotency key; None means it has none.
            params: Its params; this one's are not passed on.
            logger: Its logger; None means one with its id.

        Raises:
            ClosedError: The workspace is closed.
        """
        from piecework.workspace.opening import Fork  # the two modules need each other

        self.check_open()
        fork = Fork(self._host, self._opening.rooms, self)
        fork.space = self.space
        fork.user = self.user
        fork.key = key
        fork.params = params
        fork.logger = logger
        return fork

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

            value = await ws.workspace(timeout_seconds=5, inherit=("space",)).run(fn, 1)

        Whatever is not said, it does not have; what stands for services here by `override` it has anyway.

        Args:
            isolation: "scope", or "process" for a fresh child process; see `NewWorkspace`.
            data: "shared", "rollback" or "clean"; None is what this workspace has; see `NewWorkspace`.
            timeout_seconds: How long it may be open; None means no limit of its own.
            inherit: What it takes over from here: any of "space", "params" and "user", as copies that cannot be
                changed.
            space: The tenant.
            user: What its `user` is.
            params: What its `params` are.
            key: The idempotency key, where the same work may be done again.

        Raises:
            ValidationError: There is no such isolation or data, nothing of that name to inherit, or the time is not
                positive.
            InvalidStateError: A process of its own is asked for where the data is not shared.
        """
        from piecework.workspace.opening import NewWorkspace  # the two modules need each other

        return NewWorkspace(
            self._host,
            isolation=isolation,
            data=data,
            timeout_seconds=timeout_seconds,
            inherit=inherit,
            space=space,
            user=user,
            params=params,
            key=key,
            caller=self,
        )

    @staticmethod
    async def run(where: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function in a fresh workspace: all that runs functions in new workspaces comes through here.

            await Workspace.run(app, fn, 1, key="x")

        Args:
            where: The app, a workspace of it, or what `workspace(…)` gave. It may be left out inside a workspace:
                `Workspace.run(fn, 1)`.
            *args: The function, then its own arguments.
            **kwargs: The function's own arguments.

        Raises:
            TypeError: There is nothing that can be called; nothing was opened.
            InvalidStateError: It was left out, and no workspace is open here.
            Exception: As of `NewWorkspace.run`.
        """
        from piecework.workspace.opening import PROCESS, NewWorkspace  # the two modules need each other

        if isinstance(where, NewWorkspace):
            new = where
        elif isinstance(where, Workspace):
            new = where.workspace()
        elif hasattr(where, "workspaces"):
            new = NewWorkspace(where)
        else:
            check_callable(where)
            new, args = current_workspace().workspace(), (where, *args)
        fn, *own = args or (None,)
        check_callable(fn)
        new.fn = fn
        if new.isolation is PROCESS:
            return await new.host.processes.call(new, fn, own, kwargs)
        async with new as ws:
            return await call_injected(fn, ws, own, kwargs)

    def peek(self, key: str | type) -> Any:
        """Gives a service that is built already, without ever building; else None."""
        container = self.root._container
        return None if container is None else container.peek(key)

    def after_commit(self, fn: Callable[[], Any]) -> None:
        """Has a function called when the open transaction of `ws.database` has committed, and never when it did not.

        Where no transaction is open it is called at once. It stays in this process: what must not be lost when the
        process dies in between is a job.

        Args:
            fn: Takes nothing. A plain one is called on the event loop; an async one runs supervised, nobody waits for
                it.

        Raises:
            ClosedError: The workspace is closed.
            TypeError: It cannot be called.
            Exception: Whatever a plain one raised that was called at once.
        """
        self.check_open()
        check_callable(fn)
        transaction = self._host.current_transaction(self)
        if transaction is None:
            self._host.supervisor.call(fn)
        else:
            transaction.after_commit(partial(self._host.supervisor.call_safely, fn))

    # The three below need nothing of this workspace, so a reference to them works on after it is closed.

    async def run_in_new_workspace(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function in a fresh workspace and gives what it returns, after everything in it is closed.

        Args:
            fn: Async or sync; gets the workspace as its parameter `ws`, if it has one.
            *args: The function's own arguments.
            **kwargs: The function's own arguments.

        Raises:
            TypeError: `fn` cannot be called; nothing was opened.
            ExceptionGroup: It succeeded, and closing failed.
            Exception: Whatever it raised.
        """
        from piecework.workspace.calls import run_in_new_workspace  # the two modules need each other

        return await run_in_new_workspace(self._host, fn, args, kwargs, overrides=self.overridden)

    def spawn_in_new_workspace(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Handle:
        """Starts a function in a fresh workspace and does not wait for it.

        Inside an open transaction of `ws.database` it starts when that commits; a rollback drops it.
        It is supervised: a failure is logged and counted and never reaches the caller, and the app waits for it when
        it ends. For work that must not be lost, enqueue a job.

        Returns:
            A handle; `await handle.result()` waits.

        Raises:
            TypeError: `fn` cannot be called; nothing was opened.
            StoppedError: The app is ending.
        """
        return self.workspace().spawn(fn, *args, **kwargs)

    async def map_in_workspaces(self, fn: Callable[..., Any], items: Iterable[Any], *, limit: int = 10) -> list[Any]:
        """Calls a function for each item, each in a fresh workspace; gives the results in the items' order.

        Args:
            fn: Gets the item as its first own argument.
            items: Taken one by one, as there is room.
            limit: How many workspaces may be open at once.

        Raises:
            ValidationError: `limit` is below one.
            Exception: Whatever the first failing call raised; the others were cancelled and closed.
        """
        from piecework.workspace.calls import map_in_workspaces  # the two modules need each other

        return await map_in_workspaces(self._host, fn, items, limit=limit, overrides=self.overridden)

    async def publish(
        self,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the word of the field
        space: str | None = None,
    ) -> Any:
        """Publishes an event; returns its receipt when it is durable.

        Inside an open transaction of `ws.database` it goes along with the commit, whatever happens to the process then,
        and vanishes with a rollback; the receipt's `dispatched` is None there.

        Args:
            type: A dotted name such as `article.new`.
            payload: JSON values.
            id: Names this very occurrence: a second event of the same id is a duplicate. Where the workspace has an
                idempotency key and no id is given, it is made of the key and the event: work that is done again
                publishes the same events once.
            space: The tenant; None means the workspace's own.

        Raises:
            ClosedError: The workspace is closed.
            ValidationError: The payload is not JSON, or the type is not acceptable.
        """
        return await publish_from(self, type, payload, id=id, space=space)

    def repeatable_id(self, what: str, data: bytes) -> str:
        """An id that is the same when the same work does the same again: which of several alike it is counts too.

        Args:
            what: What is done.
            data: With what.
        """
        digest = hashlib.sha256(f"{self.key}\x00{what}\x00".encode())
        digest.update(data)
        alike = digest.hexdigest()[:32]
        if self._published is None:
            self._published = {}
        number = self._published[alike] = self._published.get(alike, 0) + 1
        return alike if number == 1 else f"{alike}-{number}"

    async def run_command(self, name: str, /, **params: Any) -> Any:
        """Calls a command and gives what it returns.

        It works in a fork of this workspace: with the same run services and the transaction that is open here, and with
        params of its own. Which time in this workspace it is called, and with what, is its idempotency key, where this
        workspace has one.

        Args:
            name: The command.
            **params: The command's own: checked and converted by its function's annotations.

        Raises:
            ClosedError: The workspace is closed.
            NotFoundError: There is no such command.
            ValidationError: The params are not acceptable; `fields` has the reason of each.
            Exception: Whatever it raised.
        """
        self.check_open()
        key = None if self.key is None else self.repeatable_id(f"command {name}", repr(sorted(params)).encode())
        return await self._host.call_command(self, name, params, key=key)

    async def run_background_job(self, name: str, /, **args: Any) -> Any:
        """Has a job run durably, in a new workspace on a node, waits for its end and gives what it returned.

        Who is cancelled here stops waiting; the job goes on.

        Args:
            name: The job.
            **args: The job's own arguments: checked by its function's annotations.

        Raises:
            ClosedError: The workspace is closed.
            NotFoundError: There is no such job.
            ValidationError: The arguments are not acceptable; nothing was queued.
            InvalidStateError: A transaction of `ws.database` is open here: the job would begin with its commit.
            PieceworkError: It failed or was aborted: its own error, or EXECUTION_FAILED with its words.
        """
        self.check_open()
        self._host.refuse_running(self, name)
        run_id = await self._host.enqueue(name, args, space=self.space, overrides=self.overridden)
        return await self._host.job_value(run_id)

    async def enqueue_job(self, name: str, /, **args: Any) -> str:
        """Queues a job; returns its run id when it is durable.

        Where the workspace has an idempotency key, work that is done again queues the same jobs once. Inside an open
        transaction of `ws.database` it goes along with the commit, whatever happens to the process then, and vanishes
        with a rollback; the id is the run's from the commit on.

        Args:
            name: The job.
            **args: The job's own arguments: checked by its function's annotations.

        Raises:
            ClosedError: The workspace is closed.
            NotFoundError: There is no such job.
            ValidationError: The arguments are not acceptable; nothing was queued.
        """
        return await queue_in(self, name, args)

    @property
    def overridden(self) -> Mapping[str, Any] | None:
        """What stands for services here, by name; None: nothing."""
        if self._container is not None:
            return self._container.overridden
        return self._opening.overrides if self.parent is None else self.parent.overridden

    def _standing(self, name: str, real: T) -> T:
        overridden = self.overridden
        return real if overridden is None else overridden.get(name, real)

    @property
    def _what(self) -> str:
        """What runs in it, for messages."""
        return "async with" if self._opening.fn is None else name_of(self._opening.fn)

    def _make_container(self) -> Container:
        opening, root = self._opening, self._root
        container = Container(
            "workspace",
            id=self.id,
            state=opening.state,
            level=Scope.RUN if root is None else Scope.TRANSIENT,
            parents=(opening.parents or (self._host.container,)) if root is None else (root.container,),
            close_timeout_seconds=self._host.settings.close_timeout_seconds,
            run_id=opening.run_id,
        )
        container.workspace = self
        # The container of a fork is a child of the root's, whose overrides it sees by itself.
        inherited = opening.overrides if root is None else None if self.parent is root else self._inherited()
        for name, value in (inherited or {}).items():
            # One of a workflow's own services is not known outside of its runs, so nothing stands for it there.
            if container.has(name):
                container.override(name, value)
        return container

    def _inherited(self) -> Mapping[str, Any] | None:
        return None if self.parent is None else self.parent.overridden


ATTRIBUTES = frozenset(name for name in dir(Workspace) if not name.startswith("_"))
"""Names that a workspace uses itself: a service of such a name can only be had by `require`."""
