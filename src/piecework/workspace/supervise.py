"""Children that nobody awaits: owned, counted, their failures told, and joined when the app ends."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.errors import StoppedError, describe
from piecework.ids import new_id
from piecework.telemetry import logs, signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


class Handle:
    """A child that runs on its own.

    Attributes:
        id: Names it.
        name: What it runs.
    """

    __slots__ = ("__weakref__", "_task", "id", "name")

    def __init__(self, name: str, task: asyncio.Task[Any]) -> None:
        self.id = new_id()
        self.name = name
        self._task = task

    def __repr__(self) -> str:
        return f"<child {self.name} {'ended' if self.done else 'running'}>"

    @property
    def task(self) -> asyncio.Task[Any]:
        """What runs it: to be waited for, not to be awaited."""
        return self._task

    @property
    def done(self) -> bool:
        """True once it has ended, in whatever way."""
        return self._task.done()

    def cancel(self) -> None:
        """Asks it to stop; its workspace is closed as ever."""
        self._task.cancel()

    async def result(self) -> Any:
        """Waits for its end and gives what it returned. Who is cancelled here stops waiting; the child goes on.

        Raises:
            StoppedError: It was cancelled.
            Exception: Whatever it raised.
        """
        await asyncio.wait((self._task,))
        if self._task.cancelled():
            raise StoppedError(f"child {self.name!r} was cancelled before it had ended", name=self.name)
        return self._task.result()


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of the children that were alive when the app began to end.

    Attributes:
        ended: Ended by themselves within the grace, well or not.
        cancelled: Were cancelled after it, and ended.
        abandoned: Did not even end then.
    """

    ended: int = 0
    cancelled: int = 0
    abandoned: int = 0


class Supervisor:
    """Owns spawned children: a strong reference to each, a signal and a count for each failure.

    Attributes:
        started: How many there were.
        failed: How many of them raised.
    """

    def __init__(self) -> None:
        self.started = 0
        self.failed = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def running(self) -> int:
        """How many children are alive."""
        return len(self._tasks)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, Any]], *, name: str) -> Handle:
        """Starts a child, with context variables of its own: but for what the log lines carry, nothing comes along.

        Args:
            work: Makes the coroutine to run.
            name: What it is, in logs.

        Raises:
            StoppedError: The app is ending.
        """
        if self._closed:
            raise StoppedError(f"the app is stopping: {name!r} was not started", name=name)
        task = asyncio.create_task(work(), name=f"child {name}", context=logs.carry(contextvars.Context()))
        self.started += 1
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, name))
        return Handle(name, task)

    def call(self, fn: Callable[[], Any]) -> None:
        """Calls a function that takes nothing; what it returns, if that can be awaited, becomes a child.

        Raises:
            StoppedError: It returned something to await, and the app is ending.
            Exception: Whatever it raised.
        """
        result = fn()
        if inspect.isawaitable(result):
            try:
                self.spawn(lambda: _awaited(result), name=getattr(fn, "__qualname__", type(fn).__qualname__))
            except StoppedError:
                if inspect.iscoroutine(result):
                    result.close()  # nobody will await it: that is told by the error, not by a warning as well
                raise

    def call_safely(self, fn: Callable[[], Any]) -> None:
        """Calls it like `call`; a failure is counted and told, and reaches nobody."""
        try:
            self.call(fn)
        except Exception as error:  # noqa: BLE001 - told: what is done already is not to fail by what comes after it
            self.failed += 1
            name = getattr(fn, "__qualname__", type(fn).__qualname__)
            signals.emit(signals.CHILD_FAILED, level="error", name=name, error=describe(error))

    async def drain(self, grace_seconds: float) -> Drained:
        """Takes no more children, waits for those alive, then cancels the rest.

        Args:
            grace_seconds: How long they may go on, and how long after the cancel they may take to stop.
        """
        self._closed = True
        alive = set(self._tasks)
        if not alive:
            return Drained()
        ended, late = await asyncio.wait(alive, timeout=grace_seconds)
        for task in late:
            task.cancel()
        stopped, stuck = await asyncio.wait(late, timeout=grace_seconds) if late else (set(), set())
        return Drained(ended=len(ended), cancelled=len(stopped), abandoned=len(stuck))

    def _ended(self, task: asyncio.Task[Any], name: str) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        self.failed += 1
        signals.emit(signals.CHILD_FAILED, level="error", name=name, error=describe(error))
        # Who keeps the handle keeps the error; its frames would keep the workspace and all that was in it.
        traceback.clear_frames(error.__traceback__)


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
