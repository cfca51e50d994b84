"""Closing what was opened: the last first, every one whatever the others do, and nothing cut short by a cancel."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from piecework.errors import ExecutionFailedError, TimeoutExceededError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Closers:
    """What has to run when one thing is closed; the last that was added runs first."""

    __slots__ = ("callbacks", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.callbacks: list[Callable[[], Any]] = []


async def close_all(stack: list[Closers], limit_seconds: float) -> list[BaseException]:
    """Runs and empties a stack of closers, the last first; tells what failed and never raises.

    Args:
        stack: What closers leave behind while it runs is run too.
        limit_seconds: How long each single closer may take.
    """
    failures: list[BaseException] = []
    while stack:
        closers = stack[-1]
        if not closers.callbacks:
            stack.pop()
            continue
        failure = await _close(closers.name, closers.callbacks.pop(), limit_seconds)
        if failure is not None:
            failure.add_note(f"while closing service {closers.name!r}")
            failures.append(failure)
    return failures


async def _close(name: str, callback: Callable[[], Any], limit_seconds: float) -> BaseException | None:
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            result = callback()
            if inspect.isawaitable(result):
                await result
    except asyncio.CancelledError:
        return ExecutionFailedError(f"a closer of service {name!r} was cancelled before it had ended", name=name)
    except BaseException as error:  # noqa: BLE001 - returned: the others have to run first, then all are raised
        if not limit.expired() or not isinstance(error, TimeoutError):
            return error
        return TimeoutExceededError(
            f"a closer of service {name!r} took more than {limit_seconds:g} s and was cancelled: "
            "make it faster, or raise close_timeout_seconds",
            name=name,
        )
    return None


async def outlast(task: asyncio.Task[Any]) -> asyncio.CancelledError | None:
    """Waits for a task to its very end, however often the waiter is cancelled meanwhile.

    Returns:
        The last such cancellation, for the caller to raise when it is done; None when there was none.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


def note_failures(error: BaseException, failures: Sequence[BaseException]) -> None:
    """Writes what failed while closing onto the error that wins over it."""
    for failure in failures:
        error.add_note(f"and while closing: {type(failure).__name__}: {failure}")
