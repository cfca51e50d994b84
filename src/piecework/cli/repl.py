"""`piecework repl`: a Python prompt inside a workspace; `await` works, and every service is a name."""

from __future__ import annotations

import ast
import asyncio
import builtins
import code
import contextvars
import inspect
import signal
import sys
import threading
from concurrent.futures import CancelledError as Abandoned
from concurrent.futures import Future
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from piecework.cli.command import named_app
from piecework.errors import InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from piecework.app import App
    from piecework.workspace.workspace import Workspace

_Named = Annotated[str | None, Parameter(help="MODULE:ATTRIBUTE of the app; default PIECEWORK_APP.")]
_Store = Annotated[str | None, Parameter(help="sqlite:///FILE or postgresql://…; default the app's own.")]
_Data = Annotated[
    Literal["shared", "rollback", "clean"],
    Parameter(help="What ws.database is: the app's own, a transaction that is undone, or empty tables."),
]


async def repl(*, app: _Named = None, store: _Store = None, data: _Data = "shared") -> None:
    """Open a Python prompt inside a workspace of the app.

    `await` works at the prompt; `app`, `ws` and every service are names (`await cart`, where a service is made
    asynchronously). The workspace is a scratch one: what is overridden in it, its params and its services end with it,
    and with `--data rollback` or `--data clean` what was done with its database too. On SQLite a rollback keeps others
    from writing, from its first use to its end. Where a node has the store this process is its client, else it is the
    node.

    Ctrl-C ends the line that is under way, Ctrl-D the prompt.

    Args:
        app: MODULE:ATTRIBUTE of the app.
        store: Where runs are kept.
        data: What the workspace's database is.

    Raises:
        AppImportError: No app is named, or it cannot be imported.
    """
    loaded = named_app(app)
    loaded.configure(store=store)
    async with loaded.open(role="auto"), loaded.workspace(data=data) as ws:
        await _converse(Names(loaded, ws))


class Names(dict[str, Any]):
    """What the prompt knows: what is assigned there, `app`, `ws`, and the workspace's services.

    Args:
        app: The app.
        ws: The workspace.
    """

    def __init__(self, app: App, ws: Workspace) -> None:
        own = {"__name__": "__console__", "__doc__": None, "__builtins__": builtins}  # what warnings look for, too
        super().__init__(own, app=app, ws=ws, asyncio=asyncio)
        self._ws = ws

    def __missing__(self, name: str) -> Any:
        if not self._ws.container.has(name):
            raise KeyError(name)  # Python looks among its own names next
        try:
            return self._ws.container.require_now(name)
        except InvalidStateError:
            return self._ws.require(name)  # one that is made asynchronously: `await` it


async def _converse(names: Names) -> None:
    """Reads lines in a thread and carries each out on the loop, until the input ends; or Ctrl-C, when no line works."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    console = _Console(names, loop)
    name = names["app"].name

    def read() -> None:
        try:
            console.interact(banner=f"piecework: app {name!r}; await works, ws is the workspace", exitmsg="")
        finally:
            loop.call_soon_threadsafe(_finish, ended)

    # A daemon: one that waits for a line holds up nobody's end.
    threading.Thread(target=read, name="piecework-repl", daemon=True).start()
    try:
        with _interrupting(console):
            await ended
    finally:
        console.stop()


@contextmanager
def _interrupting(console: _Console) -> Iterator[None]:
    """Has Ctrl-C end the line that is under way, and where there is none, whatever it ended before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not console.interrupt() and callable(before):
            before(signum, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _finish(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


class _Console(code.InteractiveConsole):
    """Python's own prompt, whose lines run on the loop."""

    def __init__(self, names: Names, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop = loop
        self._context = contextvars.copy_context()  # in which the workspace is the current one
        self._task: asyncio.Task[Any] | None = None
        self._calling = False

    def interrupt(self) -> bool:
        """Ends the line that is under way, by a handler of a signal; answers whether there is one.

        Raises:
            KeyboardInterrupt: It is in the midst of plain code.
        """
        if self._calling:
            raise KeyboardInterrupt
        if self._task is None or self._task.done() or self._task.cancelling():
            return False
        self._loop.call_soon_threadsafe(self.stop)
        return True

    def stop(self) -> None:
        """Cancels what is under way."""
        if self._task is not None:
            self._task.cancel()

    def runcode(self, code: CodeType) -> None:
        """Carries a line out on the loop and waits for it; Ctrl-C cancels it."""
        done: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._begin, FunctionType(code, self.locals), done, context=self._context)
        try:
            done.result()
        except SystemExit:
            raise
        except (KeyboardInterrupt, Abandoned):
            self._loop.call_soon_threadsafe(self.stop)
            self.write("cancelled\n")
        except BaseException:  # noqa: BLE001 - whatever the line raised is shown, and the next one is read
            self.showtraceback()

    def _begin(self, line: Callable[[], Any], done: Future[Any]) -> None:
        try:
            self._calling = True
            value = line()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
            done.set_exception(error)
            return
        finally:
            self._calling = False
        if not inspect.iscoroutine(value):
            done.set_result(value)
            return
        self._task = self._loop.create_task(value, context=self._context)
        self._task.add_done_callback(lambda task: _hand_over(task, done))

    def raw_input(self, prompt: str = "") -> str:
        """Reads a line; where nobody types, no prompt is shown."""
        return super().raw_input(prompt if sys.stdin.isatty() else "")


def _hand_over(task: asyncio.Task[Any], done: Future[Any]) -> None:
    if task.cancelled():
        done.cancel()
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())
