"""Starting a coroutine at once, in a task of its own: what never has to wait costs no turn of the event loop.

From Python 3.12 on a task can begin eagerly. On 3.11 the same is done by hand: the first step is taken here under the
new task, which then goes on from where the step ended (`asyncio._enter_task` and `_leave_task` are documented for
those who write tasks of their own: docs.python.org, "Extending asyncio", task lifetime support). A task whose coroutine
ended there is only noticed by the loop at its next turn; until then the same task serves whatever is started next.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PENDING: Final = object()
"""What `first_step` answers for an awaitable that has to wait."""


class Begun(Coroutine[Any, Any, Any]):
    """An awaitable whose first step was taken already: it goes on where that step ended.

    Args:
        inner: What goes on.
        waits_for: What the first step ended with: a future, or None for one turn of the loop.
    """

    __slots__ = ("_ended", "_inner", "_waits_for")

    def __init__(self, inner: Any, waits_for: Any) -> None:
        self._inner = inner
        self._waits_for: Any = (waits_for,)
        self._ended = False

    def wait_for(self, waits_for: Any) -> None:
        """Notes what the first step ended with."""
        self._waits_for = (waits_for,)

    def end(self) -> None:
        """Notes that the first step was the last one: there is nothing to go on with."""
        self._ended = True
        self._inner = None

    def restart(self, inner: Any) -> None:
        """Takes another awaitable in place of one that has ended."""
        self._inner = inner
        self._ended = False

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Goes on; the first time it only hands out what the step before waits for."""
        if self._ended:
            raise StopIteration
        if self._waits_for is not None:
            (waits_for,), self._waits_for = self._waits_for, None
            return waits_for
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        """Raises an error where the awaitable waits."""
        if self._ended:
            raise StopIteration
        self._waits_for = None
        return self._inner.throw(*error)

    def close(self) -> None:
        """Ends the awaitable where it stands."""
        if self._inner is not None:
            self._inner.close()


def first_step(awaitable: Any) -> tuple[Any, Any]:
    """Takes the first step of an awaitable in the running task.

    Returns:
        What it came to and None; or `PENDING` and what has to be awaited for the rest.
    """
    steps = awaitable if hasattr(awaitable, "send") else awaitable.__await__()
    try:
        waits_for = steps.send(None) if hasattr(steps, "send") else next(steps)
    except StopIteration as end:
        return end.value, None
    return PENDING, Begun(steps, waits_for)


def start(
    coroutine: Coroutine[Any, Any, None], *, name: str, context: contextvars.Context | None = None
) -> asyncio.Task[None] | None:
    """Runs a coroutine in a task of its own, up to where it first has to wait.

    Args:
        coroutine: Deals with its own errors: what it raises in its first step is raised here.
        name: Of the task.
        context: The variables it sees; None means a copy of the caller's.

    Returns:
        The task that goes on with it; None when it has ended.
    """
    loop = asyncio.get_running_loop()
    return _start(loop, coroutine, name, contextvars.copy_context() if context is None else context)


def _start_eagerly(
    loop: asyncio.AbstractEventLoop, coroutine: Any, name: str, context: contextvars.Context
) -> asyncio.Task[None] | None:
    task: asyncio.Task[None] = asyncio.Task(
        coroutine,
        loop=loop,
        name=name,
        context=context,
        eager_start=True,  # type: ignore[call-arg,unused-ignore]  # new in 3.12, where this is used
    )
    if not task.done():
        return task
    task.result()
    return None


@dataclass(slots=True)
class _Carrier:
    """A task made by hand, with what it was made with."""

    task: asyncio.Task[None]
    begun: Begun
    loop: asyncio.AbstractEventLoop
    context: contextvars.Context


class _Idle(threading.local):
    """Tasks whose coroutine ended in its first step, until the loop comes to them."""

    def __init__(self) -> None:
        self.carriers: list[_Carrier] = []


_idle = _Idle()
_IDLE_LIMIT = 8


def _carrier(loop: asyncio.AbstractEventLoop, coroutine: Any, name: str, context: contextvars.Context) -> _Carrier:
    """A task for a coroutine: one that is idle and sees the same variables, else a new one."""
    carriers = _idle.carriers
    while carriers:
        found = carriers.pop()
        if found.loop is loop and _same(found.context, context) and not (found.task.done() or found.task.cancelling()):
            found.begun.restart(coroutine)
            found.task.set_name(name)
            return found
    begun = Begun(coroutine, None)
    return _Carrier(asyncio.Task(begun, loop=loop, name=name, context=context), begun, loop, context)


def _same(one: contextvars.Context, other: contextvars.Context) -> bool:
    """Whether two contexts hold the very same objects; that they are equal is not enough for what runs in them."""
    return len(one) == len(other) and all(other.get(variable, one) is value for variable, value in one.items())


def _start_by_hand(
    loop: asyncio.AbstractEventLoop, coroutine: Any, name: str, context: contextvars.Context
) -> asyncio.Task[None] | None:
    carrier = _carrier(loop, coroutine, name, context)
    task = carrier.task
    caller = asyncio.current_task(loop)
    if caller is not None:
        _leave_task(loop, caller)
    _enter_task(loop, task)
    try:
        carrier.begun.wait_for(carrier.context.run(coroutine.send, None))
    except BaseException as end:
        carrier.begun.end()
        if len(_idle.carriers) < _IDLE_LIMIT:
            _idle.carriers.append(carrier)
        if isinstance(end, StopIteration):
            return None
        raise
    finally:
        _leave_task(loop, task)
        if caller is not None:
            _enter_task(loop, caller)
    return task


_start: Callable[..., asyncio.Task[None] | None] = _start_eagerly if sys.version_info >= (3, 12) else _start_by_hand
