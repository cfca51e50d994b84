"""The workspace: what a function of the user's gets to work with, its own and gone with it.

Services are attributes (`ws.database`) or awaited (`await ws.require("reports")`). A root workspace has run services
of its own; a fork shares those of its root and has its own params, idempotency key and logger.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from piecework.container.container import Container
from piecework.container.scope import Scope
from piecework.errors import ClosedError, NotFoundError, ValidationError
from piecework.ids import new_id
from piecework.store import values
from piecework.telemetry.logs import get_logger
from piecework.workspace.context import Host, Opened
from piecework.workspace.inject import call_injected, check_callable, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from piecework.container.state import State
    from piecework.workspace.supervise import Handle

T = TypeVar("T")


class Workspace:
    """An isolated place to work in; `open_workspace` and `fork` make one.

    An attribute that is none of its own is a service. One that is made asynchronously is awaited first:
    `await ws.require(name)`.

    Attributes:
        id: Names it.
        params: What it was opened with: a mapping of its own.
        space: The tenant it works for, or None.
        user: Whoever it works for, or None.
        key: The idempotency key: the same whenever the same work is done again; None where nothing repeats it.
        parent: The workspace that it is a fork of, or None.
    """

    __slots__ = (
        "__weakref__",
        "_container",
        "_host",
        "_logger",
        "_published",
        "_root",
        "id",
        "key",
        "params",
        "parent",
        "space",
        "user",
    )

    def __init__(
        self,
        host: Host,
        container: Container,
        *,
        id: str,  # noqa: A002 - the word of the field
        params: Mapping[str, Any] | None,
        space: str | None,
        user: Any,
        key: str | None,
        logger: Any,
        parent: Workspace | None,
    ) -> None:
        self.id = id
        self.params: dict[str, Any] = dict(params) if params else {}
        self.space = space
        self.user = user
        self.key = key
        self.parent = parent
        self._host = host
        self._container = container
        self._logger = logger
        self._published: dict[str, int] | None = None
        self._root = None if parent is None else parent.root
        container.workspace = self

    def __repr__(self) -> str:
        return f"<{'fork' if self.parent else 'workspace'} {self.id}{' (closed)' if self.closed else ''}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a workspace has no {name!r}")
        self.check_open()
        try:
            return self._container.require_now(name)
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
        return self._container

    @property
    def config(self) -> Mapping[str, Any]:
        """The app's `config`."""
        return self._host.config

    @property
    def environment(self) -> str:
        """Where the app runs: development, test, production."""
        return self._host.environment

    @property
    def run_id(self) -> str | None:
        """The run that it belongs to, or None."""
        return self.root.container.run_id

    @property
    def logger(self) -> Any:
        """A logger whose lines carry this workspace's id."""
        if self._logger is None:
            self._logger = get_logger("piecework.workspace", workspace_id=self.id)
        return self._logger

    @property
    def closed(self) -> bool:
        """True from the moment that closing begins; of a fork also when its root closes."""
        return self._container.closed or (self._root is not None and self._root.closed)

    def check_open(self) -> None:
        """Refuses any use once closing has begun.

        Raises:
            ClosedError: The message has the workspace's id.
        """
        if self.closed:
            raise ClosedError(
                f"workspace {self.id} is closed: what runs on after it needs one of its own, "
                "as ws.spawn_in_new_workspace gives it",
                id=self.id,
            )

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
        return await self._container.require(key)

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
        restore = self._container.override(key, value)
        try:
            yield value
        finally:
            restore()

    def fork(self, *, key: str | None = None, params: Mapping[str, Any] | None = None, logger: Any = None) -> Opened:
        """Opens, with `async with`, a workspace that shares this one's run services.

        Transient services asked for in it see it, and are closed with it.

        Args:
            key: Its idempotency key; None means it has none.
            params: Its params; this one's are not passed on.
            logger: Its logger; None means one with its id.

        Raises:
            ClosedError: The workspace is closed.
        """
        self.check_open()
        fork_id = new_id()
        container = Container(
            "workspace",
            id=fork_id,
            level=Scope.TRANSIENT,
            parents=(self.root.container,),
            close_timeout_seconds=self._host.settings.close_timeout_seconds,
        )
        # The container of a fork is a child of the root's, whose overrides it sees by itself.
        if self._root is not None and (overridden := self._container.overridden) is not None:
            _override_all(container, overridden)
        fork = Workspace(
            self._host,
            container,
            id=fork_id,
            params=params,
            space=self.space,
            user=self.user,
            key=key,
            logger=logger,
            parent=self,
        )
        return Opened(fork, container)

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
        return await run_in_new_workspace(self._host, fn, args, kwargs, overrides=self._container.overridden)

    def spawn_in_new_workspace(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Handle:
        """Starts a function in a fresh workspace and does not wait for it.

        It is supervised: a failure is logged and counted and never reaches the caller, and the app waits for it when
        it ends. For work that must not be lost, enqueue a job.

        Returns:
            A handle; `await handle.result()` waits.

        Raises:
            TypeError: `fn` cannot be called; nothing was opened.
            StoppedError: The app is ending.
        """
        return spawn_in_new_workspace(self._host, fn, args, kwargs, overrides=self._container.overridden)

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
        return await map_in_workspaces(self._host, fn, items, limit=limit, overrides=self._container.overridden)

    async def publish(
        self,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the word of the field
        space: str | None = None,
    ) -> Any:
        """Publishes an event; returns its receipt when it is durable.

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
        self.check_open()
        payload = {} if payload is None else payload
        if id is None and self.key is not None:
            id = self._event_id(type, payload)  # noqa: A001 - the word of the field
        return await self._host.publish(type, payload, id=id, space=self.space if space is None else space)

    def _event_id(self, event_type: str, payload: dict[str, Any]) -> str:
        return self.repeatable_id(event_type, values.encode(payload, what="payload"))

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
            PieceworkError: It failed or was aborted: its own error, or EXECUTION_FAILED with its words.
        """
        self.check_open()
        overridden = self._container.overridden
        run_id = await self._host.enqueue(name, args, space=self.space, overrides=overridden)
        return await self._host.job_value(run_id)

    async def enqueue_job(self, name: str, /, **args: Any) -> str:
        """Queues a job; returns its run id when it is durable.

        Where the workspace has an idempotency key, work that is done again queues the same jobs once.

        Args:
            name: The job.
            **args: The job's own arguments: checked by its function's annotations.

        Raises:
            ClosedError: The workspace is closed.
            NotFoundError: There is no such job.
            ValidationError: The arguments are not acceptable; nothing was queued.
        """
        return await queue_in(self, name, args)


ATTRIBUTES = frozenset(name for name in dir(Workspace) if not name.startswith("_"))
"""Names that a workspace uses itself: a service of such a name can only be had by `require`."""


def open_workspace(
    host: Host,
    *,
    parents: Sequence[Container] = (),
    space: str | None = None,
    user: Any = None,
    params: Mapping[str, Any] | None = None,
    key: str | None = None,
    run_id: str | None = None,
    logger: Any = None,
    overrides: Mapping[str, Any] | None = None,
    state: State | None = None,
) -> Opened:
    """Opens a fresh root workspace with `async with`; it costs microseconds until a service is asked for.

    Args:
        host: The app.
        parents: Where it looks for services, in order; empty means the app's container. A workflow's own container
            comes before the app's.
        space: The tenant it works for, or None.
        user: Whoever it works for.
        params: What `ws.params` is.
        key: The idempotency key, or None.
        run_id: The run that it belongs to, or None.
        logger: What `ws.logger` is; None means one with the workspace's id.
        overrides: What stands for services in it, by name; names that it does not know are left out.
        state: What its services select from; None where there is none.
    """
    workspace_id = new_id()
    container = Container(
        "workspace",
        id=workspace_id,
        state=state,
        level=Scope.RUN,
        parents=parents or (host.container,),
        close_timeout_seconds=host.settings.close_timeout_seconds,
        run_id=run_id,
    )
    if overrides is not None:
        _override_all(container, overrides)
    workspace = Workspace(
        host, container, id=workspace_id, params=params, space=space, user=user, key=key, logger=logger, parent=None
    )
    return Opened(workspace, container)


async def queue_in(
    ws: Workspace,
    name: str,
    args: dict[str, Any],
    *,
    delay_seconds: float | None = None,
    dedup: str | None = None,
    space: str | None = None,
) -> str:
    """Queues a job from a workspace, as `Workspace.enqueue_job` does, with options.

    Args:
        ws: The workspace.
        name: The job.
        args: The job's own arguments.
        delay_seconds: How much later it may begin.
        dedup: While a job of this name and key is queued or running, its run id is the answer.
        space: The tenant; None means the workspace's own.

    Raises:
        ClosedError: The workspace is closed.
        NotFoundError: There is no such job.
        ValidationError: The arguments are not acceptable; nothing was queued.
    """
    ws.check_open()
    run_id = None if ws.key is None else ws.repeatable_id(f"job {name}", repr(sorted(args.items())).encode())
    return await ws.host.enqueue(
        name,
        args,
        run_id=run_id,
        delay_seconds=delay_seconds,
        dedup=dedup,
        space=ws.space if space is None else space,
        overrides=ws.container.overridden,
    )


def _override_all(container: Container, overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        # One of a workflow's own services is not known outside of its runs, so nothing stands for it there.
        if container.has(name):
            container.override(name, value)


async def run_in_new_workspace(
    host: Host,
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Calls a function in a fresh workspace of the app; see `Workspace.run_in_new_workspace`.

    Raises:
        TypeError: `fn` cannot be called; nothing was opened.
    """
    check_callable(fn)
    async with open_workspace(host, overrides=overrides) as ws:
        return await call_injected(fn, ws, args, kwargs)


def spawn_in_new_workspace(
    host: Host,
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> Handle:
    """Starts a function in a fresh workspace of the app; see `Workspace.spawn_in_new_workspace`.

    Raises:
        TypeError: `fn` cannot be called; nothing was opened.
        StoppedError: The app is ending.
    """
    check_callable(fn)
    return host.supervisor.spawn(
        lambda: run_in_new_workspace(host, fn, args, kwargs, overrides=overrides), name=name_of(fn)
    )


async def map_in_workspaces(
    host: Host,
    fn: Callable[..., Any],
    items: Iterable[Any],
    *,
    limit: int = 10,
    overrides: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Calls a function for each item, each in a fresh workspace; see `Workspace.map_in_workspaces`.

    Raises:
        ValidationError: `limit` is below one.
        TypeError: `fn` cannot be called; nothing was opened.
    """
    check_callable(fn)
    if limit < 1:
        raise ValidationError(f"limit is {limit}: at least one workspace has to be open at a time", limit=limit)
    results: dict[int, Any] = {}
    numbered = enumerate(items)

    async def map_some() -> None:
        for index, item in numbered:
            results[index] = await run_in_new_workspace(host, fn, (item,), overrides=overrides)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(map_some())
    except BaseExceptionGroup as errors:
        # Callers write `except ValueError`: the first failure is raised as itself, further ones are noted on it.
        first, *others = errors.exceptions
        for other in others:
            first.add_note(f"and, in another workspace: {type(other).__name__}: {other}")
        raise first from None
    return [results[index] for index in sorted(results)]
