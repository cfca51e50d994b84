"""Where synchronous functions of the user's run: daemon threads of our own, a bounded number of them.

The loop's own executor is not used: its threads are joined when the loop and the interpreter end, so that one call
that hangs holds up both. Here a call that its caller gave up on goes on in its thread, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import StoppedError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class SyncThreads:
    """Runs synchronous functions beside the event loop.

    Args:
        limit: How many may run at once; further calls wait for their turn. A call that hangs keeps its place.
    """

    def __init__(self, limit: int = 32) -> None:
        if limit < 1:
            raise ValidationError(f"sync_threads_limit is {limit}: at least one thread is needed", limit=limit)
        self._limit = limit
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0
        self._running = 0
        self._closed = False

    @property
    def busy(self) -> int:
        """How many calls are running, those that their callers gave up on included."""
        return self._running

    async def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Calls a function in a thread, with the caller's context variables, and waits for what it returns.

        A cancelled caller gets its CancelledError at once; a call that runs already goes on unseen to its end, one
        that waits for its turn is not made at all.

        Raises:
            StoppedError: The threads are closed.
            Exception: Whatever the function raised.
        """
        if self._closed:
            raise StoppedError("the app has closed its threads and takes no more synchronous functions")
        call = _Call(partial(fn, *args, **kwargs))
        self._put(call)
        try:
            result: T = await call.future
        except asyncio.CancelledError:
            call.abandoned = True
            raise
        return result

    def close(self) -> None:
        """Ends the threads that are free, and the others once their calls return; waits for none."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)

    def _put(self, call: _Call) -> None:
        with self._lock:
            self._queue.put(call)
            # `_free` counts threads without a call of their own to come: below zero, calls outnumber threads.
            self._free -= 1
            if self._free >= 0 or self._threads >= self._limit:
                return
            self._threads += 1
            self._free += 1
        threading.Thread(target=self._serve, name=f"piecework-sync-{self._threads}", daemon=True).start()

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            tell: Callable[[], None] | None = None
            if not call.abandoned:
                with self._lock:
                    self._running += 1
                tell = call.make()
                with self._lock:
                    self._running -= 1
            # Free before the caller hears of it: its next call finds this thread and starts no other.
            with self._lock:
                self._free += 1
            if tell is not None:
                tell()
            # Nothing of a finished call may linger while the thread waits for the next.
            del call, tell


class _Call:
    """One call on its way to a thread and back."""

    __slots__ = ("_context", "_fn", "_loop", "abandoned", "future")

    def __init__(self, fn: Callable[[], Any]) -> None:
        self._fn = fn
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()
        self.abandoned = False

    def make(self) -> Callable[[], None]:
        """Calls the function, in the thread; answers what sends the result to the loop."""
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._context.run(self._fn)
        except StopIteration as stop:  # which a future cannot carry
            error = RuntimeError(f"a synchronous function raised StopIteration: {stop}")
            error.__cause__ = stop
        except BaseException as raised:  # noqa: BLE001 - raised where the call is awaited
            error = raised
        return partial(self._tell, result, error)

    def _tell(self, result: Any, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            # The loop has closed meanwhile: nobody is left who could be told.
            _discard(result)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            _discard(result)
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


def _discard(result: Any) -> None:
    """Closes a coroutine that nobody will await any more."""
    if inspect.iscoroutine(result):
        result.close()
