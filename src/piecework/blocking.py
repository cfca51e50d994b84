"""The same app for synchronous callers: the same names and signatures, without `await`.

    with piecework.blocking.open(app) as app:
        receipt = app.publish("article.new", {"id": 7})
        with app.workspace() as ws:
            rows = ws.database.articles.where(read=False).all()

The app lives on an event loop in a thread of its own. What a thread of the caller's does, one call after the other,
is one task there: so a transaction, a lock or a time limit that it enters holds for the calls that follow, as it
would in asynchronous code. Here is only forwarding; nothing is decided.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
import weakref
from collections import deque
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from piecework.errors import ClosedError, InvalidStateError
from piecework.workspace.opening import PROCESS, NewWorkspace
from piecework.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from piecework.app import App

__all__ = ["open"]

_TAKE_FUNCTIONS = frozenset(
    {"run_in_new_workspace", "spawn_in_new_workspace", "map_in_workspaces", "run", "spawn", "map"}
)


@contextmanager
def open(app: App, role: str = "node") -> Iterator[Any]:  # noqa: A001 - the word of the face
    """Opens an app for synchronous code, with `with`; closes it however the body ends, by Ctrl-C too.

    Synchronous functions that are given to it (`app.run_in_new_workspace(fn)`) get a workspace of the same kind.
    Ctrl-C cancels the call that is under way and waits until it has ended.

    Args:
        app: Not open yet.
        role: "node", "client" or "auto", as of `App.open`.

    Yields:
        The app: `publish`, `workspace`, `runtime`, … without `await`.

    Raises:
        InvalidStateError: It is open already.
        Exception: As of `App.open`, and whatever closing raises.
    """
    portal = _Portal()
    try:
        with _Blocking(app.open(role), portal) as opened:
            yield opened
    finally:
        portal.stop()


class _Portal:
    """An event loop in a thread of its own, and the way there.

    Attributes:
        loop: The loop.
        servants: Those that have not ended.
        asked: What threads wait for.
        ending: Whether the loop ends, with every task on it.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self.servants: set[_Servant] = set()
        self.asked: set[Future[Any]] = set()
        self.ending = False
        self._over: asyncio.Event | None = None
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._live, args=(started,), name="piecework-blocking", daemon=True)
        self._thread.start()
        self.loop = started.result()

    def call(self, work: Callable[[], Any]) -> Any:
        """Calls a function on the loop, awaits what it returns, and gives that.

        Raises:
            InvalidStateError: The caller is on that loop, and would wait for itself.
            ClosedError: The app was closed.
            Exception: Whatever it raised.
        """
        if threading.current_thread() is self._thread:
            raise InvalidStateError(
                "this is the app's own event loop, which would wait for itself: use the blocking app in plain "
                "functions only, and await the asynchronous one in async functions"
            )
        servants = self._of_thread()
        if not servants:
            servant = _Servant(self)
            servants.append(servant)
            # It goes with its thread: a server may make one for each request.
            weakref.finalize(servants, servant.end).atexit = False
        return servants[-1].call(work)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What this thread calls meanwhile is a task of its own, which has the thread's context variables."""
        servants = self._of_thread()
        servant = _Servant(self)
        servants.append(servant)
        try:
            yield
        finally:
            servants.remove(servant)
            servant.end()

    def stop(self) -> None:
        """Ends the loop and its thread."""
        for servant in tuple(self.servants):
            servant.end()
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._end)
        while self._thread.is_alive():
            with suppress(KeyboardInterrupt):  # what is being closed is closed to its end
                self._thread.join()
        # Of a thread that asked meanwhile nobody has heard; from here on who asks is refused.
        for future in tuple(self.asked):
            if not future.done():
                future.set_exception(_closed())

    def _of_thread(self) -> _Servants:
        found: _Servants | None = getattr(self._local, "servants", None)
        if found is None:
            found = self._local.servants = _Servants()
        return found

    def _live(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def until_the_end() -> None:
            self._over = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._over.wait()

        with asyncio.Runner() as runner:
            runner.run(until_the_end())

    def _end(self) -> None:
        assert self._over is not None
        self.ending = True
        self._over.set()


class _Servant:
    """One task on the loop that does what a thread asks, one after the other."""

    def __init__(self, portal: _Portal) -> None:
        self._portal = portal
        self._loop = portal.loop
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]] | None] = deque()
        self._wanted: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._now: Future[Any] | None = None
        self._interrupted = False
        self._missed: asyncio.CancelledError | None = None
        portal.servants.add(self)
        self._tell(functools.partial(self._start, contextvars.copy_context()))

    def call(self, work: Callable[[], Any]) -> Any:
        """Has it done and waits; Ctrl-C cancels it, and is raised when it has ended."""
        future: Future[Any] = Future()
        self._portal.asked.add(future)
        try:
            self._tell(lambda: self._put((work, future)))
            return future.result()
        except KeyboardInterrupt:
            if future.done():
                raise
            self._tell(lambda: self._interrupt(future))
            while not future.done():
                with suppress(KeyboardInterrupt):  # it is being cancelled, and its end is waited for
                    wait((future,))
            raise
        finally:
            self._portal.asked.discard(future)

    def end(self) -> None:
        """Lets the task end when it has nothing more to do."""
        self._portal.servants.discard(self)
        with suppress(ClosedError):
            self._tell(lambda: self._put(None))

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError as error:
            raise _closed() from error

    def _start(self, context: contextvars.Context) -> None:
        self._task = self._loop.create_task(self._serve(), name="piecework-blocking", context=context)

    def _put(self, job: tuple[Callable[[], Any], Future[Any]] | None) -> None:
        self._jobs.append(job)
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def _interrupt(self, future: Future[Any]) -> None:
        if self._now is future and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    async def _serve(self) -> None:
        while (job := await self._next()) is not None:
            work, future = job
            self._now = future
            try:
                result = await self._do(work)
            except BaseException as error:  # noqa: BLE001 - raised where the caller waits
                self._done()
                over = self._portal.ending and isinstance(error, asyncio.CancelledError)
                future.set_exception(_closed() if over else error)
            else:
                self._done()
                future.set_result(result)

    async def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        while not self._jobs:
            self._wanted = self._loop.create_future()
            try:
                await self._wanted
            except asyncio.CancelledError as error:
                if self._portal.ending:
                    return None
                # A time limit that the thread has entered is over, while the thread does something else: its next
                # call is told. An interrupt came when its call had just ended: nothing is left of it to cancel.
                if not self._forget_interrupt():
                    self._missed = error
        return self._jobs.popleft()

    async def _do(self, work: Callable[[], Any]) -> Any:
        if self._missed is not None:
            missed, self._missed = self._missed, None
            raise missed
        result = work()
        return await result if inspect.isawaitable(result) else result

    def _done(self) -> None:
        self._now = None
        self._forget_interrupt()

    def _forget_interrupt(self) -> bool:
        interrupted, self._interrupted = self._interrupted, False
        if interrupted and self._task is not None:
            self._task.uncancel()
        return interrupted


class _Servants(list[_Servant]):
    """Those of one thread, the innermost last; gone with it."""

    __slots__ = ("__weakref__",)


class _Blocking:
    """Stands for an asynchronous object: what it would have awaited is awaited on the loop."""

    __slots__ = ("_portal", "_target")

    def __init__(self, target: Any, portal: _Portal) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_portal", portal)

    def __repr__(self) -> str:
        return f"<blocking {self._target!r}>"

    def __dir__(self) -> list[str]:
        return dir(self._target)

    def __getattr__(self, name: str) -> Any:
        target, portal = self._target, self._portal
        if name.startswith("__"):
            raise AttributeError(name)
        value = portal.call(lambda: _held(getattr(target, name)))[0]
        if inspect.ismethod(value) or inspect.isfunction(value):
            return self._forwarding(value, name)
        return _wrap(value, portal)

    def __setattr__(self, name: str, value: Any) -> None:
        self._portal.call(lambda: setattr(self._target, name, _unwrap(value)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._portal, self._target, args, kwargs)

    def __enter__(self) -> Any:
        target = self._target
        enter = target.__aenter__ if hasattr(target, "__aenter__") else target.__enter__
        return _wrap(self._portal.call(enter), self._portal)

    def __exit__(self, *raised: object) -> bool:
        target = self._target
        leave = target.__aexit__ if hasattr(target, "__aexit__") else target.__exit__
        return bool(self._portal.call(lambda: leave(*raised)))

    def __iter__(self) -> Iterator[Any]:
        target, portal = self._target, self._portal
        if not hasattr(target, "__aiter__"):
            yield from (_wrap(item, portal) for item in target)
            return
        items = portal.call(target.__aiter__)
        try:
            while True:
                try:
                    item = portal.call(items.__anext__)
                except StopAsyncIteration:
                    return
                yield _wrap(item, portal)
        finally:
            if hasattr(items, "aclose"):
                portal.call(items.aclose)

    def __getitem__(self, key: Any) -> Any:
        return _wrap(self._portal.call(lambda: _held(self._target[key]))[0], self._portal)

    def __len__(self) -> int:
        return len(self._target)

    def __bool__(self) -> bool:
        return bool(self._target)

    def __contains__(self, item: Any) -> bool:
        return _unwrap(item) in self._target

    def __eq__(self, other: object) -> bool:
        return bool(self._target == _unwrap(other))

    def __hash__(self) -> int:
        return hash(self._target)

    def _forwarding(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        portal, target = self._portal, self._target
        takes = name in _TAKE_FUNCTIONS and (isinstance(target, Workspace | NewWorkspace) or hasattr(target, "threads"))
        here = not (isinstance(target, NewWorkspace) and target.isolation is PROCESS)

        @functools.wraps(method)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if takes and here and args:
                args = (_adapted(args[0], portal), *args[1:])
            elif name == "after_commit" and args:
                args = (_apart_from_loop(args[0], target.host.threads), *args[1:])
            return _call(portal, method, args, kwargs)

        return forward


def _call(portal: _Portal, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    places = [_unwrap(value) for value in args]
    names = {name: _unwrap(value) for name, value in kwargs.items()}
    return _wrap(portal.call(lambda: fn(*places, **names)), portal)


def _closed() -> ClosedError:
    return ClosedError("the app was closed: use it inside `with piecework.blocking.open(app):`")


def _held(value: Any) -> tuple[Any]:
    """So that it is not awaited on the way."""
    return (value,)


def _adapted(fn: Any, portal: _Portal) -> Any:
    """Has a plain function, which runs in a thread, see blocking objects."""
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with portal.apart():
            places = [_wrap(value, portal) for value in args]
            names = {name: _wrap(value, portal) for name, value in kwargs.items()}
            return _unwrap(fn(*places, **names))

    return call


def _apart_from_loop(fn: Any, threads: Any) -> Any:
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    async def call() -> Any:
        return await threads.run(fn)

    return call


def _unwrap(value: Any) -> Any:
    if type(value) is _Blocking:
        return value._target  # noqa: SLF001 - it is what stands for it
    if type(value) in {list, tuple}:
        return type(value)(_unwrap(item) for item in value)
    return value


def _wrap(value: Any, portal: _Portal) -> Any:
    if type(value) in {list, tuple}:
        return type(value)(_wrap(item, portal) for item in value)
    if inspect.iscoroutinefunction(value) or _is_asynchronous(cast("Hashable", type(value))):
        return _Blocking(value, portal)
    return value


@functools.cache
def _is_asynchronous(kind: Hashable) -> bool:
    """Whether objects of a type have anything that would have to be awaited, or is a context manager of ours."""
    assert isinstance(kind, type)
    if kind.__module__ == "contextlib":
        return True
    if any(hasattr(kind, name) for name in ("__aenter__", "__aiter__", "__await__")):
        return True
    return any(
        inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
        for name in dir(kind)
        if (not name.startswith("_") or name == "__call__")
        and (member := inspect.getattr_static(kind, name, None)) is not None
    )
