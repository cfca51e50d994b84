"""What a run started, and what became of it: nothing slips out of its account.

On a loop that is ours, every task and executor item carries the account of the run that started it, and of whoever
that one started, through a context variable. When the run's own code has returned, its leftovers are awaited to the
deadline (`join`) or fail the run (`strict`), and the exceptions of all its tasks are looked at, those that somebody
still holds included, which asyncio would never report.

A failed task counts unless somebody has looked at its exception (awaited it, asked for it): asyncio notes that on the
future for its own "exception was never retrieved", and so do we.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import warnings
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from piecework.errors import ExecutionFailedError, TimeoutExceededError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

T = TypeVar("T")
Policy = Literal["join", "strict"]

_current: contextvars.ContextVar[Account | None] = contextvars.ContextVar("piecework_account", default=None)
_NOT_THE_USERS = ("asyncio.", "piecework.process.accounting.", "piecework.space.", "contextlib.")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A task or an executor item that a run started.

    Attributes:
        future: Done when its work is: for an executor item the asyncio future that its caller got.
        ended: Done when nothing of it runs any more; an item that was cancelled may well go on in its thread.
        where: The line that started it.
    """

    future: asyncio.Future[Any]
    ended: asyncio.Future[Any]
    where: str


class Account:
    """All that one run started. Enter it around the run's own code; leaving waits for the rest.

    Args:
        name: Which run; for messages.
        policy: "join" awaits leftovers to the deadline, "strict" fails the run when there are any.
    """

    def __init__(self, name: str, *, policy: Policy = "join") -> None:
        self.name = name
        self.policy: Policy = policy
        self._live: dict[asyncio.Future[Any], Leftover] = {}
        self._failed: list[Leftover] = []
        self._never_awaited: list[str] = []

    def start(self, create: Callable[..., asyncio.Task[T]], coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts the run's own task: what it starts is charged here, it itself is not.

        Args:
            create: Makes a task of a coroutine and a context, such as `TaskGroup.create_task`; its owner awaits it.
            coroutine: The run's own code.
        """
        context = contextvars.copy_context()
        context.run(_current.set, self)
        task = create(coroutine, context=context)
        self._live.pop(task, None)
        return task

    def charge(self, future: asyncio.Future[Any], ended: asyncio.Future[Any] | None = None) -> None:
        """Notes a task or an executor item as started by this run, with the line that did it."""
        item = Leftover(future, future if ended is None else ended, _place(sys._getframe(1)))  # noqa: SLF001 - the way to learn who called
        self._live[item.ended] = item
        item.ended.add_done_callback(self._ended)

    def blame(self, message: str) -> None:
        """Notes that a coroutine of this run was made and never awaited."""
        self._never_awaited.append(message)

    @contextlib.asynccontextmanager
    async def settled(self, deadline: float) -> Any:
        """Runs its body, then sees all leftovers to their end: awaits them, or cancels them when the body failed.

        Args:
            deadline: Until when leftovers may go on, in the loop's time; then they are cancelled.

        Raises:
            ExecutionFailedError: A leftover failed, or was there at all under "strict"; the message names the line.
            TimeoutExceededError: Leftovers had not ended by the deadline.
        """
        try:
            yield self
        except BaseException as error:
            await self.clear()
            for trouble in self._troubles()[0]:
                error.add_note(f"meanwhile, {trouble}")
            raise
        await self.join(deadline)

    async def join(self, deadline: float) -> None:
        """Awaits what the run left behind, what that starts included; raises as `settled` says."""
        _collect()
        left = self._leftovers()
        if left and self.policy == "strict":
            await self.clear()
            raise ExecutionFailedError(
                f"the update returned and left behind {_list(left)}: await them, or use detached()"
            )
        loop = asyncio.get_running_loop()
        while left and (remaining := deadline - loop.time()) > 0:
            await asyncio.wait([item.ended for item in left], timeout=remaining)
            left = self._leftovers()
        if left:
            await self.clear()
            raise TimeoutExceededError(f"the update returned, and by the deadline it had left behind {_list(left)}")
        self.check()

    async def clear(self) -> None:
        """Cancels what is left and waits until nothing of it runs, however long that takes and whoever cancels us."""
        cancelled: asyncio.CancelledError | None = None
        while left := self._leftovers():
            for item in left:
                item.future.cancel()
            try:
                await asyncio.wait([item.ended for item in left])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def check(self) -> None:
        """Looks at what all tasks and coroutines of the run came to.

        Raises:
            ExecutionFailedError: One failed and nobody had looked at it, or a coroutine was never awaited.
        """
        troubles, first = self._troubles()
        if troubles:
            raise ExecutionFailedError("the update returned, but " + "; ".join(troubles)) from first

    def _troubles(self) -> tuple[list[str], BaseException | None]:
        unseen = [item for item in self._failed if item.future._log_traceback]  # noqa: SLF001 - see the top of the file
        errors = [item.future.exception() for item in unseen]
        troubles = [
            f"{_name(item)} failed with {error!r}, started at {item.where}"
            for item, error in zip(unseen, errors, strict=True)
        ]
        troubles += self._never_awaited
        self._failed, self._never_awaited = [], []
        return troubles, errors[0] if errors else None

    def _leftovers(self) -> list[Leftover]:
        current = asyncio.current_task()
        return [item for item in self._live.values() if item.future is not current]

    def _ended(self, ended: asyncio.Future[Any]) -> None:
        item = self._live.pop(ended, None)
        # Its exception is only read at the end: reading it now would count as somebody having looked.
        if item is not None and item.future.done() and not item.future.cancelled() and item.future._log_traceback:  # noqa: SLF001 - see the top of the file
            self._failed.append(item)


class AccountedLoop(asyncio.SelectorEventLoop):
    """An event loop that charges every task and executor item to the run that started it."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(thread_name_prefix="piecework")
        self.set_default_executor(self._pool)
        self.set_task_factory(_make_task)

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:  # type: ignore[override]  # as BaseEventLoop has it
        """Uses `executor` for items that name none."""
        super().set_default_executor(executor)
        self._pool = executor

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # variadic there
        """Runs `func` in the executor; the item is charged to the current run until its thread is done with it."""
        account = _current.get()
        if account is None:
            return super().run_in_executor(executor, func, *args)
        item = (self._pool if executor is None else executor).submit(func, *args)
        future = asyncio.wrap_future(item, loop=self)
        ended = self.create_future()
        account.charge(future, ended)
        item.add_done_callback(lambda _: _finish(self, ended))
        return future


def current() -> Account | None:
    """The account of the run whose code is running, or None."""
    return _current.get()


@contextlib.contextmanager
def uncharged() -> Any:
    """What is started within belongs to no run."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls a synchronous function in a daemon thread of its own, charged to the current run while it lasts.

    A thread cannot be stopped: a caller that is cancelled is free at once, the account is not.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    ended: asyncio.Future[None] = loop.create_future()
    if (account := _current.get()) is not None:
        account.charge(future, ended)
    context = contextvars.copy_context()

    def call() -> None:
        """Runs in the thread; tells the loop how it went, and that it is over."""
        settle: Callable[[], None]
        try:
            value = context.run(function, *args)
            settle = lambda: future.set_result(value)  # noqa: E731 - one of two endings
        except BaseException as error:  # noqa: BLE001 - raised where the caller awaits
            # A future refuses StopIteration, and a loop ends on SystemExit: neither is what the caller waits for.
            fits = isinstance(error, Exception) and not isinstance(error, StopIteration)
            failure = error if fits else RuntimeError(f"{type(error).__name__} in a thread: {error}")
            settle = lambda: future.set_exception(failure)  # noqa: E731 - the other
        _finish(loop, future, settle)
        _finish(loop, ended)

    threading.Thread(target=call, name="piecework-sync", daemon=True).start()
    return await future


def watch_coroutines() -> None:
    """Charges "coroutine … was never awaited" to the run it happens in; for a process that is ours, once."""
    # Once a line is the usual: every run of the same piece has to hear it.
    warnings.filterwarnings("always", message="coroutine .* was never awaited", category=RuntimeWarning)
    show = warnings.showwarning

    def charge(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        account = _current.get()
        if account is not None and issubclass(category, RuntimeWarning) and "was never awaited" in str(message):
            account.blame(f"{message} ({filename}:{lineno})")
        show(message, category, filename, lineno, file, line)

    warnings.showwarning = charge


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    account = _current.get() if context is None else context.get(_current)
    if account is not None:
        account.charge(task)
    return task


def _finish(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], settle: Callable[[], None] | None = None
) -> None:
    end = settle or (lambda: future.set_result(None))
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(lambda: future.done() or end())


def _collect() -> None:
    # Coroutines in reference cycles are found out only by a collection; the imports are frozen, so it is a short one.
    gc.collect()


def _place(frame: FrameType | None) -> str:
    while frame is not None:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(_NOT_THE_USERS):
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown line"


def _name(item: Leftover) -> str:
    if isinstance(item.future, asyncio.Task):
        coroutine = item.future.get_coro()
        return f"the task {getattr(coroutine, '__qualname__', coroutine)!s}"
    return "a call in a thread"


def _list(items: list[Leftover]) -> str:
    return ", ".join(f"{_name(item)}, started at {item.where}" for item in items)
