"""Building a service: in one task that all askers share, or at once where nothing has to be awaited.

The task belongs to the container that the instance will live in, not to the first asker: who is cancelled stops
waiting, and the build goes on. A failure goes to everybody who waits, and is forgotten: the next asker tries again.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from typing import TYPE_CHECKING, Any

from piecework.container.artifact import Artifact, Build
from piecework.container.closing import close_all, note_failures
from piecework.container.context import FactoryContext
from piecework.container.factory import call, context_parameter, injected, open_later, open_now
from piecework.errors import InvalidStateError, TimeoutExceededError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from piecework.container.container import Container


async def build(artifact: Artifact, home: Container, asker: Build | None, *, apart: bool) -> Artifact:
    """Makes a service ready, or waits for the build that does so already.

    Args:
        artifact: Not ready yet.
        home: The container that the instance lives in.
        asker: The build that needs it, or None.
        apart: Build in variables of its own, not in the asker's: what a shared service starts must not be charged to
            whoever happened to ask first.

    Raises:
        CycleError: It would wait for itself.
        Exception: Whatever its factory raised.
    """
    attempt = artifact.build
    if attempt is None:
        attempt = Build(artifact, home, asker)
        attempt.refuse_itself()
        if await _begin(attempt, _context(apart=apart)):
            return artifact
    await _wait(attempt, asker)
    if attempt.error is not None:
        raise attempt.error
    return artifact


def build_now(artifact: Artifact, home: Container, asker: Build | None, *, apart: bool) -> Artifact:
    """Makes a service ready without waiting.

    Raises:
        InvalidStateError: That needs the event loop; the message says what to write instead.
        CycleError: It needs itself.
        Exception: Whatever its factory raised.
    """
    attempt = Build(artifact, home, asker)
    attempt.refuse_itself()
    if artifact.recipe.is_async or artifact.build is not None:
        raise _needs_loop(attempt.name)
    name = context_parameter(artifact.recipe, home.has)
    values = {} if name is None else {name: FactoryContext(attempt)}
    for parameter in injected(artifact.recipe, name):
        values[parameter.name] = home.require_now_for(parameter.key(home.has), attempt)
    try:
        done, made = _context(apart=apart).run(_call, attempt, values)
    except Exception as error:
        error.add_note(f"while building service {attempt.name!r}")
        # Its closers may need the loop, which synchronous code cannot wait for: they run when the container closes.
        home.keep(attempt)
        raise
    if not done:
        if inspect.iscoroutine(made):
            made.close()
        home.keep(attempt)
        raise _needs_loop(attempt.name)
    _complete(attempt, made)
    return artifact


async def _begin(attempt: Build, context: contextvars.Context) -> bool:
    """Starts a build; True when it is complete already, False when a task goes on with it."""
    name = context_parameter(attempt.recipe, attempt.home.has)
    if attempt.recipe.is_async or injected(attempt.recipe, name):
        _start(attempt, context, name, None)
        return False
    try:
        done, made = context.run(_call, attempt, {} if name is None else {name: FactoryContext(attempt)})
    except Exception as error:
        error.add_note(f"while building service {attempt.name!r}")
        note_failures(error, await close_all([attempt.closers], attempt.home.close_timeout_seconds))
        raise
    if done:
        _complete(attempt, made)
    else:
        _start(attempt, context, name, made)
    return done


def _start(attempt: Build, context: contextvars.Context, name: str | None, made: Any) -> None:
    def ended(_task: asyncio.Task[None]) -> None:
        # A task that was cancelled before its first step never reached a `finally` of its own.
        attempt.artifact.build = None
        attempt.home.builds.discard(attempt)
        if inspect.iscoroutine(made):
            made.close()

    attempt.artifact.build = attempt
    attempt.home.builds.add(attempt)
    attempt.task = asyncio.create_task(_run(attempt, name, made), name=f"build {attempt.name}", context=context)
    attempt.task.add_done_callback(ended)


async def _wait(attempt: Build, asker: Build | None) -> None:
    assert attempt.task is not None
    if asker is not None:
        attempt.refuse_circle(asker)
        asker.waits.append(attempt)
    attempt.waiters += 1
    try:
        # `wait` neither passes the caller's cancellation on to the build nor raises what the build raised.
        await asyncio.wait((attempt.task,))
    finally:
        attempt.waiters -= 1
        if asker is not None:
            asker.waits.remove(attempt)
    if attempt.task.cancelled():
        attempt.home.check_open()
        raise InvalidStateError(f"the build of service {attempt.name!r} was cancelled: ask again", name=attempt.name)


async def _run(attempt: Build, context_name: str | None, made: Any) -> None:
    """Runs a build to its end; what fails is kept for those who wait, and what it opened is closed."""
    try:
        instance = await _in_time(attempt, context_name, made)
    except Exception as error:  # noqa: BLE001 - raised to everyone who waits, or told by a signal when nobody does
        error.add_note(f"while building service {attempt.name!r}")
        note_failures(error, await close_all([attempt.closers], attempt.home.close_timeout_seconds))
        attempt.error = error
        if not attempt.waiters:
            name = f"build of service {attempt.name}"
            signals.emit(signals.CHILD_FAILED, level="warning", name=name, error=describe(error))
    except asyncio.CancelledError as error:
        note_failures(error, await close_all([attempt.closers], attempt.home.close_timeout_seconds))
        raise
    else:
        _complete(attempt, instance)


async def _in_time(attempt: Build, context_name: str | None, made: Any) -> Any:
    limit_seconds = attempt.recipe.timeout_seconds
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            if made is None:
                return await _construct(attempt, context_name)
            return await open_later(attempt, made)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutExceededError(
            f"building service {attempt.name!r} took more than {limit_seconds:g} s and was stopped", name=attempt.name
        ) from error


async def _construct(attempt: Build, context_name: str | None) -> Any:
    values: dict[str, Any] = {} if context_name is None else {context_name: FactoryContext(attempt)}
    for parameter in injected(attempt.recipe, context_name):
        values[parameter.name] = await attempt.home.require_for(parameter.key(attempt.home.has), attempt)
    done, made = _call(attempt, values)
    return made if done else await open_later(attempt, made)


def _call(attempt: Build, values: dict[str, Any]) -> tuple[bool, Any]:
    return open_now(attempt, call(attempt.recipe, values))


def _complete(attempt: Build, instance: Any) -> None:
    attempt.artifact.instance = instance
    attempt.artifact.ready = True
    attempt.artifact.version += 1
    attempt.home.keep(attempt)


def _context(*, apart: bool) -> contextvars.Context:
    return contextvars.Context() if apart else contextvars.copy_context()


def _needs_loop(name: str) -> InvalidStateError:
    return InvalidStateError(
        f"service {name!r} is made asynchronously, so it is no attribute yet: "
        f"use `await ws.require({name!r})`; where it lives on, `ws.{name}` works from then on",
        name=name,
    )
