"""What a run started, and what became of it: nothing slips out of its account.

On a loop that is ours (`loop`), every task, executor item, callback and async generator carries the account of the run
that started it, and of whoever that one started, through a context variable; `ledger` says whose child process, thread
or forgotten coroutine it is. When the run's own code has returned, its leftovers are awaited to the deadline (`join`)
or fail the run (`strict`), and the exceptions of all its tasks are looked at, those that somebody still holds
included, which asyncio would never report. What fails after that is late: it is told to whoever closed the account.

A failed task counts unless somebody has looked at its exception (awaited it, asked for it): asyncio notes that on the
future for its own "exception was never retrieved", and so do we. A timer that is still to come is no leftover:
libraries keep such for what outlives a run. What it does when it fires is charged to the run that set it, as late.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from piecework.errors import ExecutionFailedError, TimeoutExceededError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from types import FrameType

    Tell = Callable[[str, str], None]
    """Takes level and words."""
    Late = Callable[[str, BaseException | None], None]
    """Takes what failed, in words and as it was raised."""

T = TypeVar("T")
Policy = Literal["join", "strict"]

_UNKNOWN = "an unknown line"
_TOLD = 5
"""How many leftovers are told by name."""

_current: contextvars.ContextVar[Account | None] = contextvars.ContextVar("piecework_account", default=None)
_ending: contextvars.ContextVar[bool] = contextvars.ContextVar("piecework_ending", default=False)
_NOT_THE_USERS = tuple(
    f"{name}."
    for name in (
        "asyncio",
        "concurrent",
        "contextlib",
        "multiprocessing",
        "os",
        "pty",
        "subprocess",
        "threading",
        "piecework.container",
        "piecework.process",
        "piecework.space",
        "piecework.workspace",
    )
)


class Leftover(Protocol):
    """Something that a run started and that has not ended."""

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done when nothing of it runs any more."""
        ...

    @property
    def where(self) -> str:
        """The line that started it."""
        ...

    @property
    def what(self) -> str:
        """What it is, in words."""
        ...

    def cancel(self) -> None:
        """Asks it to end; it may take its time."""
        ...


class Others(Protocol):
    """What runs of an account beside the loop."""

    def of(self, account: Account) -> Sequence[Leftover]:
        """What has not ended and is that account's to wait for."""
        ...


@dataclass(frozen=True, slots=True)
class _Item:
    """A task or an executor item; the future of an item that was cancelled is done before its thread is."""

    future: asyncio.Future[Any]
    ended: asyncio.Future[Any]
    where: str

    @property
    def what(self) -> str:
        """What it is, in words."""
        if isinstance(self.future, asyncio.Task):
            coroutine = self.future.get_coro()
            return f"the task {getattr(coroutine, '__qualname__', coroutine)!s}"
        return "a call in a thread"

    @property
    def unseen(self) -> bool:
        """Whether it failed and nobody has looked at its exception; this does not count as a look."""
        future = self.future
        return future.done() and not future.cancelled() and future._log_traceback  # noqa: SLF001 - see the top of the file

    def cancel(self) -> None:
        """Cancels its future."""
        self.future.cancel()

    def trouble(self) -> tuple[str, BaseException | None]:
        """How it failed, in words and as it was raised."""
        error = self.future.exception()
        return f"{self.what} failed with {error!r}, started at {self.where}", error


class Account:
    """All that one run started. Enter it around the run's own code; leaving waits for the rest.

    Args:
        name: Which run; for messages.
        policy: "join" awaits leftovers to the deadline, "strict" fails the run when there are any.
        others: What the run has beside the loop; None: nothing is known of that.
        tell: Takes level and words about what is no failure but should be known.
    """

    def __init__(
        self, name: str, *, policy: Policy = "join", others: Others | None = None, tell: Tell | None = None
    ) -> None:
        self.name = name
        self.policy: Policy = policy
        self._others = others
        self._tell = tell
        self._late: Late | None = None
        self._live: dict[asyncio.Future[Any], _Item] = {}
        self._failed: list[_Item] = []
        self._troubles: list[tuple[str, BaseException | None]] = []

    @property
    def closed(self) -> bool:
        """Whether all that comes now is late."""
        return self._late is not None

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

    def charge(
        self, future: asyncio.Future[Any], ended: asyncio.Future[Any] | None = None, *, where: str | None = None
    ) -> None:
        """Notes a task or an executor item as started by this run.

        Args:
            future: Done when its work is: for an executor item the asyncio future that its caller got.
            ended: Done when nothing of it runs any more, where that is something else.
            where: The line that started it; else it is looked up.
        """
        item = _Item(future, future if ended is None else ended, place() if where is None else where)
        self._live[item.ended] = item
        item.ended.add_done_callback(self._ended)
        if self.closed:
            self.tell("warning", f"{item.what} was started after the update had ended, at {item.where}")

    def blame(self, trouble: str, error: BaseException | None = None) -> None:
        """Notes a failure of something that this run started and nobody awaits: the run fails, or it is late.

        Args:
            trouble: What failed, and where that was started.
            error: What was raised, if anything was.
        """
        if self._late is None:
            self._troubles.append((trouble, error))
        else:
            self._late(trouble, error)

    def tell(self, level: str, message: str) -> None:
        """Says something about the run that is no failure of it."""
        if self._tell is not None:
            self._tell(level, message)

    def close(self, late: Late) -> None:
        """Says that the run has settled: what fails from now on is told to `late`, in words and as it was raised."""
        self._late = late

    @contextlib.asynccontextmanager
    async def settled(self, deadline: float, *, thorough: bool = True) -> Any:
        """Runs its body, then sees all leftovers to their end: awaits them, or ends them when the body failed.

        Args:
            deadline: Until when leftovers may go on, in the loop's time; then they are ended.
            thorough: Whether to look also for what was abandoned.

        Raises:
            ExecutionFailedError: A leftover failed, or was there at all under "strict"; the message names the line.
            TimeoutExceededError: Leftovers had not ended by the deadline.
        """
        try:
            yield self
        except BaseException as error:
            await self.clear()
            for trouble, _ in self._found():
                error.add_note(f"meanwhile, {trouble}")
            raise
        await self.join(deadline, thorough=thorough)

    async def join(self, deadline: float, *, thorough: bool = True) -> None:
        """Awaits what the run left behind, what that starts included; raises as `settled` says."""
        if thorough:
            await _let_go()
        left = self._leftovers()
        if left and self.policy == "strict":
            told = f"the update returned and left behind {_list(left)}: await them, or use detached()"
            self.tell("error", told)  # ending them may take long, up to the end of this process
            await self.clear()
            raise ExecutionFailedError(told)
        loop = asyncio.get_running_loop()
        while left and (remaining := deadline - loop.time()) > 0:
            try:
                await asyncio.wait([item.ended for item in left], timeout=remaining)
            except asyncio.CancelledError:
                self.tell("warning", f"stopped while it waited for what the update had left behind: {_list(left)}")
                raise
            await _let_go()
            left = self._leftovers()
        if left:
            await self.clear()
            raise TimeoutExceededError(f"the update returned, and by the deadline it had left behind {_list(left)}")
        self.check()

    async def clear(self) -> None:
        """Ends what is left and waits until nothing of it runs, however long that takes and whoever cancels us."""
        cancelled: asyncio.CancelledError | None = None
        while left := self._leftovers():
            for item in left:
                item.cancel()
            try:
                await asyncio.wait([item.ended for item in left])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def left(self) -> str:
        """What the run has started and has not ended, in words, as far as it is known where; a few of them."""
        left = [item for item in self._leftovers() if item.where != _UNKNOWN]
        return _list(left[:_TOLD]) + (f" and {len(left) - _TOLD} more" if len(left) > _TOLD else "")

    def check(self) -> None:
        """Looks at what all tasks, callbacks and coroutines of the run came to.

        Raises:
            ExecutionFailedError: One failed and nobody had looked at it, or a coroutine was never awaited.
        """
        troubles = self._found()
        if troubles:
            first = next((error for _, error in troubles if error is not None), None)
            raise ExecutionFailedError("the update returned, but " + "; ".join(t for t, _ in troubles)) from first

    def _found(self) -> list[tuple[str, BaseException | None]]:
        """The troubles up to now, which are then told."""
        troubles = [item.trouble() for item in self._failed if item.unseen] + self._troubles
        self._failed, self._troubles = [], []
        return troubles

    def _leftovers(self) -> list[Leftover]:
        current = asyncio.current_task()
        left: list[Leftover] = [item for item in self._live.values() if item.future is not current]
        if self._others is not None:
            left += self._others.of(self)
        return left

    def _ended(self, ended: asyncio.Future[Any]) -> None:
        item = self._live.pop(ended, None)
        # Its exception is only read at the end: reading it now would count as somebody having looked.
        if item is None or not item.unseen:
            return
        if self._late is None:
            self._failed.append(item)
        else:  # there is no end any more; whoever awaits it will have looked two turns from now
            loop = ended.get_loop()
            loop.call_soon(loop.call_soon, self._blame_late, item)

    def _blame_late(self, item: _Item) -> None:
        if item.unseen:
            self.blame(*item.trouble())


def current() -> Account | None:
    """The account of the run whose code is running, or None."""
    return _current.get()


def ending() -> bool:
    """Whether a run collects what it has abandoned, at its end."""
    return _ending.get()


def of_context(context: contextvars.Context) -> Account | None:
    """The account of the run that a context belongs to, or None."""
    return context.get(_current)


@contextlib.contextmanager
def charged(account: Account | None) -> Iterator[None]:
    """What is started within belongs to that account; None: to no run."""
    token = _current.set(account)
    try:
        yield
    finally:
        _current.reset(token)


def uncharged() -> contextlib.AbstractContextManager[None]:
    """What is started within belongs to no run."""
    return charged(None)


def place() -> str:
    """The innermost line of the user's that led here."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the way to learn who called
    while frame is not None:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(_NOT_THE_USERS):
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return _UNKNOWN


async def _let_go() -> None:
    """Lets what was abandoned be found: callbacks that are ready, coroutines and generators that nobody has."""
    # Those in reference cycles are found only by a collection; the imports are frozen, so it is a short one. What a
    # generator does to close itself is a task that the first turn makes, and that the second has begun.
    _ending.set(True)
    gc.collect()
    _ending.set(False)
    for _ in range(2):
        await asyncio.sleep(0)


def _list(items: Sequence[Leftover]) -> str:
    return ", ".join(f"{item.what}, started at {item.where}" for item in items)
