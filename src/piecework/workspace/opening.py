"""A workspace that is about to be opened: what it will be like, and its opening and closing.

    new → opening → open → closing → closed        (failed_open where there was no place for it)

Closing goes on to its end however often the caller is cancelled; then the place is given back, last of all. Nothing
that few use is paid for by all: an empty workspace has no container, no id and no logger until somebody asks.
"""

# ruff: noqa: SLF001 - a workspace and what opens it are one thing in two parts

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from piecework.clock import check_duration
from piecework.errors import (
    ClosedError,
    InvalidStateError,
    TimeoutExceededError,
    ValidationError,
    describe,
)
from piecework.ids import new_id
from piecework.telemetry import signals
from piecework.workspace.context import State, current
from piecework.workspace.data import DATABASE, SHARED, check_data, check_reach, without
from piecework.workspace.inheriting import check_inherit, frozen
from piecework.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from piecework.container.container import Container
    from piecework.container.state import State as RunState
    from piecework.workspace.admission import Workspaces
    from piecework.workspace.context import Host
    from piecework.workspace.supervise import Handle

SCOPE = "scope"
PROCESS = "process"


class Opening:
    """Opens a workspace for the body of an `async with`, and closes what was opened in it.

    The error of the body wins, with what failed while closing written onto it; failures of closing alone are raised
    as a group. All of them are logged.
    """

    # What most workspaces are not given is kept with the class.
    space: str | None = None
    user: Any = None
    params: Mapping[str, Any] | None = None
    key: str | None = None
    run_id: str | None = None
    logger: Any = None
    overrides: Mapping[str, Any] | None = None
    state: RunState | None = None
    parents: tuple[Container, ...] = ()
    parent: Workspace | None = None
    timeout_seconds: float | None = None
    fn: Any = None
    workspace: Workspace | None = None
    isolation: str = SCOPE
    data: str | None = None
    caller: Workspace | None = None
    used: bool = False
    simple: bool = True
    previous: Opening | None = None
    _id: str | None = None
    _limit: asyncio.Timeout | None = None

    def __init__(self, host: Host, rooms: Workspaces) -> None:
        self.host = host
        self.rooms = rooms

    @property
    def id(self) -> str:
        """Names the workspace, also when it is gone."""
        if self._id is None:
            self._id = new_id()
        return self._id

    async def __aenter__(self) -> Workspace:
        """Opens it.

        Raises:
            WorkspacesLimitError: As many as may be are open, and none was closed in time.
            InvalidStateError: It was opened already, or its isolation is "process".
        """
        if self.used:
            raise InvalidStateError("this workspace was opened already: make another")
        ws = self.workspace = Workspace(self)
        self.used = True
        rooms, previous = self.rooms, current.get()
        # Here and in __aexit__ the most common case is written out: it is to cost no call that it can do without.
        if previous is None and self.simple and not rooms.queue and len(rooms.holders) < rooms.limit:
            rooms.holders[ws] = None
            ws._opened = rooms.monotonic()
        else:
            await self._open(ws, previous)
        current.set(self)
        if rooms.listeners is not None:
            rooms.tell("created", ws)
            rooms.tell("called", ws)
        return ws

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ws = self.workspace
        if ws is None or ws._closing:
            raise ClosedError("this workspace was closed already: open a new one")
        frame = sys._getframe(1)
        ws._place = frame.f_code, frame.f_lasti
        if self._limit is not None:
            await self._close_in_time(ws, error, self._limit)
        elif ws._container is not None or self.rooms.listeners is not None:
            await self._close(ws, error)
        elif ws._above is not None or self.parent is not None:
            ws._closing = True
            self._end(ws)
        else:
            ws._closing = True
            if current.get() is self:
                current.set(self.previous)
            rooms = self.rooms
            ws._closed = rooms.monotonic()
            self.workspace = self.previous = None
            del rooms.holders[ws]
            if ws._below or rooms.queue:
                rooms.left(ws)

    def set_aside(self) -> bool:
        """Gives an open workspace's place back without closing it: its services stay as they are.

        Nobody may use it until `take_up`; `close_aside` closes it instead.

        Returns:
            False, and nothing is done, for one that is part of another, or has a time limit.
        """
        ws = self.workspace
        if ws is None or ws._closing or ws._above is not None or ws._below or self.parent is not None or self._limit:
            return False
        if current.get() is self:
            current.set(self.previous)
        self.rooms.leave(ws, None)
        return True

    async def take_up(self) -> Workspace:
        """Has the workspace that was set aside open again, in whatever task this is.

        Raises:
            WorkspacesLimitError: There is no place for it; it is still set aside.
        """
        ws = self.workspace
        assert ws is not None
        if not self.rooms.take(ws, None):
            await self.rooms.wait(ws, None)
        self.previous = current.get()
        current.set(self)
        return ws

    async def close_aside(self) -> None:
        """Closes the workspace that was set aside.

        Raises:
            ExceptionGroup: What failed while closing; all was closed.
        """
        ws = self.workspace
        if ws is not None and not ws._closing:
            self.rooms.holders[ws] = None  # for as long as that takes, also where there is no place left
            await self._close(ws, None)

    async def _open(self, ws: Workspace, previous: Opening | None) -> None:
        if self.isolation is PROCESS:
            raise InvalidStateError(
                "a workspace in a process of its own runs a function: await ….run(fn), not `async with`"
            )
        if self.data is not None:
            # Before there is anything that would have to be given back.
            self.overrides = {**(self.overrides or {}), DATABASE: self.host.data_for(self.data)}
        above = None
        if previous is not None:
            self.previous, self.caller = previous, None
            above = self._open_above(ws, previous)
        if self.parent is not None:
            ws.parent, ws._root = self.parent, self.parent.root
        elif not self.rooms.take(ws, above):
            ws._phase = State.OPENING
            try:
                await self.rooms.wait(ws, above)
            except BaseException:
                ws._phase = State.FAILED_OPEN
                ws._closing = True
                ws._above = self.workspace = None
                raise
        ws._opened = self.rooms.monotonic()
        if self.timeout_seconds is not None or above is not None:
            await self._set_deadline(ws, above)
        if self.data is not None:
            # Built first, so that it ends last, and by this workspace, so that it is not a child's.
            ws.container.require_now("database")

    async def _close(self, ws: Workspace, error: BaseException | None) -> None:
        ws._closing = True
        if self.rooms.listeners is not None:
            self.rooms.tell("closing", ws)
        container = ws._container
        try:
            if container is not None:
                ws._services = tuple(container.closing_names())
                await container.finish(error)
        finally:
            if container is not None:
                self._let_go(ws, container)
            self._end(ws)
            if self.rooms.listeners is not None:
                self.rooms.tell("closed", ws)

    def _end(self, ws: Workspace) -> None:
        # No token: it could not be reset when the body is left in another task than it was entered in.
        if current.get() is self:
            current.set(self.previous)
        ws._closed = self.rooms.monotonic()
        # The two know each other; without this they would wait for the garbage collector. Tasks that outlive it may
        # carry this on as what is current there, and must keep nothing else alive.
        self.workspace = self.previous = None
        if self.parent is not None:
            self.parent = None
        elif ws._above is None:
            self.rooms.leave(ws, None)
        else:
            above, ws._above = ws._above, None
            self.rooms.leave(ws, above)

    def _let_go(self, ws: Workspace, container: Container) -> None:
        container.workspace = None
        if container.close_failures:
            ws._failures = tuple(describe(failure) for failure in container.close_failures)
            signals.emit(signals.CLOSE_FAILED, level="error", workspace_id=ws.id, errors=list(ws._failures))

    async def _close_in_time(self, ws: Workspace, error: BaseException | None, limit: asyncio.Timeout) -> None:
        try:
            await self._close(ws, error)
        except BaseException as raised:
            if not isinstance(raised, asyncio.CancelledError):
                await self._end_limit(ws, limit, error)
                raise
            error = raised
            await self._end_limit(ws, limit, error)
            raise
        await self._end_limit(ws, limit, error)

    async def _end_limit(self, ws: Workspace, limit: asyncio.Timeout, error: BaseException | None) -> None:
        try:
            await limit.__aexit__(None if error is None else type(error), error, None)
        except TimeoutError as late:
            raise TimeoutExceededError(
                f"workspace {ws.id} ({ws._what}) took more than {self.timeout_seconds:g} s and was stopped: "
                "do less in it, or raise timeout_seconds",
                id=ws.id,
                timeout_seconds=self.timeout_seconds,
            ) from late

    def _open_above(self, ws: Workspace, previous: Opening) -> Workspace | None:
        """The open workspace of the same app that this one is opened inside of."""
        outer = previous.workspace
        if outer is None or outer.closed or outer._host is not self.host or self.parent is not None:
            return None
        root: Workspace = outer.root
        if not self.rooms.holds(root):
            return None
        ws._above = root
        return root

    async def _set_deadline(self, ws: Workspace, above: Workspace | None) -> None:
        inherited = None if above is None else above._deadline
        own = None
        if self.timeout_seconds is not None:
            own = self.rooms.monotonic() + self.timeout_seconds
            self._limit = asyncio.timeout(self.timeout_seconds)
            await self._limit.__aenter__()
        ws._deadline = inherited if own is None else own if inherited is None else min(own, inherited)


class NewWorkspace(Opening):
    """What a new workspace will be like: open it with `async with`, or have it opened for a function.

    `run`, `spawn` and `map` may be called any number of times, each opens workspaces of its own.

    Args:
        host: The app.
        isolation: "scope" is in this process; "process" runs the function in a fresh child process, which is killed
            with all that it started when time is up or the caller is cancelled. The function has to be importable,
            arguments and result are JSON values, services are made anew over there, what it raises comes back as
            RemoteError.
        data: "shared" is the app's database; "rollback" one transaction on it, which is rolled back when the workspace
            is closed; "clean" an empty copy of its tables, which is dropped then; None the same as the workspace that
            opens it. What is opened inside of "rollback" works in that transaction too, what is opened inside of
            "clean" gets an empty copy of its own; see `docs/guides/testing.md`.
        timeout_seconds: How long it may be open; None means no limit. One that is awaited ends with its caller anyway.
        inherit: What it takes over from the workspace that opens it: any of "space", "params" and "user", as copies
            that cannot be changed. What is given by itself wins.
        space: The tenant.
        user: What `ws.user` is.
        params: What `ws.params` is.
        key: The idempotency key, where the same work may be done again.
        caller: The workspace that opens it, or None.

    Raises:
        ValidationError: There is no such isolation or data, nothing of that name to inherit, or the time is not
            positive; or data other than "shared" is asked for in a process of its own.
        InvalidStateError: A process of its own is asked for where the data is not shared.
    """

    def __init__(
        self,
        host: Host,
        *,
        isolation: str = SCOPE,
        data: str | None = None,
        timeout_seconds: float | None = None,
        inherit: Iterable[str] = (),
        space: str | None = None,
        user: Any = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        caller: Workspace | None = None,
    ) -> None:
        self.host = host
        self.rooms = host.workspaces
        if isolation is not SCOPE and isolation != SCOPE:
            if isolation != PROCESS:
                raise ValidationError(f"isolation={isolation!r}: choose 'scope' or 'process'", isolation=isolation)
            self.isolation = PROCESS
            self.simple = False
        if timeout_seconds is not None:
            self.timeout_seconds = check_duration("timeout_seconds", timeout_seconds)
            self.simple = False
        if caller is not None:
            self.caller = caller
            self.overrides = caller.overridden
        if data is not None:
            self._choose_data(check_data(data))
        if self.isolation is PROCESS:
            check_reach(self.overrides, "a process of its own")
        if inherit:
            self._inherit(check_inherit(inherit), caller)
        if space is not None:
            self.space = space
        if user is not None:
            self.user = user
        if params is not None:
            self.params = params
        if key is not None:
            self.key = key

    async def run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function in such a workspace and gives what it returns, after everything in it is closed.

        Args:
            fn: Async or sync; gets the workspace as its parameter `ws`, if it has one.
            *args: The function's own arguments.
            **kwargs: The function's own arguments.

        Raises:
            TypeError: `fn` cannot be called; nothing was opened.
            TimeoutExceededError: It took longer than it may; it was stopped.
            WorkspacesLimitError: There was no place for another workspace.
            ExceptionGroup: It succeeded, and closing failed.
            ValidationError: With isolation="process": it is not importable, or arguments or result are not JSON.
            RemoteError: With isolation="process": whatever it raised.
            CrashedError: With isolation="process": its process ended by itself, or was killed.
            Exception: Whatever it raised.
        """
        return await Workspace.run(self.again(), fn, *args, **kwargs)

    def spawn(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Handle:
        """Starts a function in such a workspace, supervised, and does not wait; see `ws.spawn_in_new_workspace`.

        Raises:
            TypeError: `fn` cannot be called; nothing was opened.
            StoppedError: The app is ending.
        """
        from piecework.workspace.calls import spawn

        return spawn(self.again(), fn, args, kwargs)

    async def map(self, fn: Callable[..., Any], items: Iterable[Any], *, limit: int = 10) -> list[Any]:
        """Calls a function for each item, each in such a workspace; gives the results in the items' order.

        Args:
            fn: Gets the item as its first own argument.
            items: Taken one by one, as there is room.
            limit: How many workspaces may be open at once.

        Raises:
            ValidationError: `limit` is below one.
            Exception: Whatever the first failing call raised; the others were cancelled and closed.
        """
        from piecework.workspace.calls import map_items

        return await map_items(self.again, fn, items, limit=limit)

    def again(self) -> NewWorkspace:
        """Another one like it, not yet opened."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name in ("workspace", "used", "previous", "_id", "_limit"):
            other.__dict__.pop(name, None)
        return other

    def _choose_data(self, data: str) -> None:
        self.overrides = without(self.overrides)
        if data == SHARED:
            return
        if self.isolation is PROCESS:
            raise ValidationError(
                f"data={data!r} is what this process has, and isolation='process' has another: choose one of them",
                data=data,
            )
        self.data = data
        self.simple = False

    def _inherit(self, names: Sequence[str], caller: Workspace | None) -> None:
        if caller is None:
            raise ValidationError(
                f"inherit={tuple(names)!r}: nothing can be inherited where no workspace opens it: use ws.workspace(…)"
            )
        for name in names:
            setattr(self, name, frozen(getattr(caller, name)))


class Fork(Opening):
    """A fork of a workspace that is about to be opened: it takes no place, it is part of its root."""

    simple = False

    def __init__(self, host: Host, rooms: Workspaces, parent: Workspace) -> None:
        super().__init__(host, rooms)
        self.parent = parent
