"""Closing what was opened: the last first, every one whatever the others do, and nothing cut short by a cancel."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from contextvars import ContextVar
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from piecework.container.eager import PENDING, first_step
from piecework.errors import ExecutionFailedError, TimeoutExceededError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from piecework.container.artifact import Made
    from piecework.container.registry import Recipe


class Opened(list["tuple[Recipe, Any]"]):
    """Generators that wait for their end, each with the recipe it came from; complains when it is forgotten."""

    __slots__ = ("title",)

    title: str

    def __del__(self) -> None:
        if self:
            complain(self.title, [recipe.name for recipe, _ in self])


def complain(title: str, names: list[str]) -> None:
    """Warns of services that will never be closed, because what held them was dropped."""
    warnings.warn(
        f"{title} was dropped and never closed, and with it {', '.join(names)}: use `async with`, or await dispose()",
        ResourceWarning,
        stacklevel=1,
    )


def of_opened(opened: Opened) -> Iterator[tuple[str, Any]]:
    """Takes generators away, the last first, each with its service's name."""
    while opened:
        recipe, generator = opened.pop()
        yield recipe.name, generator


def of_instance(made: Made) -> Iterator[tuple[str, Any]]:
    """Takes the closers of an instance away, the last first, each with its service's name."""
    made.closed = True
    while made.closers:
        yield made.artifact.name, made.closers.pop()


async def close_made(made: Made, limit_seconds: float) -> list[BaseException]:
    """Runs and empties the closers of one instance, the last first; tells what failed and never raises."""
    return await close_all(of_instance(made), limit_seconds)


async def close_all(closers: Iterator[tuple[str, Any]], limit_seconds: float) -> list[BaseException]:
    """Runs closers one after the other; tells what failed and never raises.

    Args:
        closers: Functions, and generators to be ended, each with its service's name; asked for one by one, so what is
            added meanwhile is run too.
        limit_seconds: How long each single one may take.
    """
    failures: list[BaseException] = []
    outside = IN_CLOSER.set(True)
    for name, closer in closers:
        try:
            result = _end(name, closer)
            if result is not None:
                # Most closers never wait; the time limit is set for those that do.
                done, rest = first_step(result)
                if done is PENDING:
                    await _as_a_closer(_in_time(name, rest, limit_seconds))
        except BaseException as error:  # noqa: BLE001 - returned: the others have to run first, then all are raised
            failures.append(_told(name, error))
    IN_CLOSER.reset(outside)
    return failures


def _end(name: str, closer: Any) -> Any:
    """Runs a closer; answers what is to be awaited for its end, or None."""
    kind = type(closer)
    if kind is AsyncGeneratorType:
        return _end_later(name, closer)
    if kind is GeneratorType:
        for _ in closer:
            closer.close()
            raise _second_yield(name)
        return None
    result = closer()
    return result if hasattr(result, "__await__") and inspect.isawaitable(result) else None


async def _end_later(name: str, generator: AsyncGeneratorType[Any, Any]) -> None:
    try:
        await generator.__anext__()
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise _second_yield(name)


def _second_yield(name: str) -> ValidationError:
    return ValidationError(f"the factory of service {name!r} yields a second time: only clean-up may follow", name=name)


def _told(name: str, error: BaseException) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        error = ExecutionFailedError(f"a closer of service {name!r} was cancelled before it had ended", name=name)
    error.add_note(f"while closing service {name!r}")
    return error


IN_CLOSER: ContextVar[bool] = ContextVar("IN_CLOSER", default=False)
"""Whether what runs was begun by a closer: it does not wait for what is being closed, which may wait for it."""

_CLOSING: set[asyncio.Task[Any] | None] = set()
"""The tasks in which a closer waits now."""


async def _as_a_closer(closing: Coroutine[Any, Any, None]) -> None:
    task = asyncio.current_task()
    _CLOSING.add(task)
    try:
        await closing
    finally:
        _CLOSING.discard(task)


async def _in_time(name: str, rest: Any, limit_seconds: float) -> None:
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            await rest
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutExceededError(
            f"a closer of service {name!r} took more than {limit_seconds:g} s and was cancelled: "
            "make it faster, or raise close_timeout_seconds",
            name=name,
        ) from error


async def outlast(task: asyncio.Task[Any]) -> asyncio.CancelledError | None:
    """Waits for a task to its very end, however often the waiter is cancelled meanwhile.

    Returns:
        The last such cancellation, for the caller to raise when it is done; None when there was none.
    """
    cancelled: asyncio.CancelledError | None = None
    if asyncio.current_task() in _CLOSING:
        # A closer has a time limit of its own, and may be waiting for itself.
        await asyncio.wait((task,))
        return None
    while not task.done():
        # As `asyncio.wait` does, for one task.
        ended = asyncio.get_running_loop().create_future()
        wake = partial(_wake, ended)
        task.add_done_callback(wake)
        try:
            await ended
        except asyncio.CancelledError as error:
            cancelled = error
        finally:
            task.remove_done_callback(wake)
    return cancelled


def _wake(ended: asyncio.Future[None], _task: asyncio.Task[Any]) -> None:
    if not ended.done():
        ended.set_result(None)


def note_failures(error: BaseException, failures: Sequence[BaseException]) -> None:
    """Writes what failed while closing onto the error that wins over it."""
    for failure in failures:
        error.add_note(f"and while closing: {type(failure).__name__}: {failure}")
