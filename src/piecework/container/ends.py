"""How the making of a service ends: its result takes its place, is discarded, or its failure goes to who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from piecework.container import watching
from piecework.container.closing import close_made
from piecework.errors import (
    ClosedError,
    CycleError,
    DisposedError,
    InvalidScopeError,
    InvalidStateError,
    NotFoundError,
    describe,
)
from piecework.telemetry import signals

if TYPE_CHECKING:
    import asyncio

    from piecework.container.artifact import Build, Made
    from piecework.container.container import Container

RUNNING: Final[dict[asyncio.Task[Any], Build]] = {}
"""Which build a task runs: a factory may ask the container itself, past its context."""

_HOPELESS: Final = (CycleError, NotFoundError, InvalidScopeError, ClosedError)


def disposed(home: Container, name: str) -> DisposedError:
    """The refusal of what was built while its container was closed."""
    text = f"{home.title} was closed while service {name!r} was built: open a new one and ask there"
    return DisposedError(text, name=name, id=home.id)


def begin_attempt(build: Build) -> None:
    """Tells those who listen that an attempt begins."""
    home = build.artifact.home
    if home.watched:
        build.began = home.clock.monotonic() if build.began is None else build.began
        home.graph.tell(watching.BUILD_START, build.artifact, attempt=build.attempt)


def take(build: Build, instance: Any) -> bool:
    """Puts a result in place; False when what it was made from is another one by now."""
    artifact, made = build.artifact, build.made
    home = artifact.home
    if home.closed:
        raise disposed(home, build.name)
    if (made.uses or made.readings or made.spoiled) and not made.is_transient and not made.settled():
        return False
    rebuilt = artifact.version > 0
    home.graph.complete(artifact, made, instance)
    if home.watched:
        took = 0.0 if build.began is None else home.clock.monotonic() - build.began
        home.graph.tell(
            watching.BUILD_COMPLETE,
            artifact,
            version=artifact.version,
            duration_seconds=took,
            attempt=build.attempt,
        )
        watching.tell_watchers(artifact, "rebuilt" if rebuilt else "built")
    return True


def run_in(build: Build, task: asyncio.Task[Any] | None) -> None:
    """Notes which task runs a build, until that ends."""
    if task is not None:
        build.runner = task
        RUNNING[task] = build


def outcome(build: Build) -> Made:
    """What an ended build came to.

    Raises:
        DisposedError: It was cut off because its container was closed.
        InvalidStateError: Its factory raised a cancellation of its own.
        Exception: Whatever its factory raised.
    """
    if build.error is not None:
        raise build.error
    if not build.made.order:
        home = build.artifact.home
        if home.closed:
            raise disposed(home, build.name)
        raise InvalidStateError(f"the build of service {build.name!r} was cancelled: ask again", name=build.name)
    return build.made


def may_go_on(build: Build, error: Exception) -> bool:
    """Tells whether another attempt follows one that failed."""
    return build.attempt <= build.recipe.retries and not isinstance(error, _HOPELESS) and not build.artifact.home.closed


def note(build: Build, error: Exception) -> None:
    """Writes onto an error which service was built, once."""
    text = f"while building service {build.name!r}"
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)


def fail(build: Build, error: Exception) -> None:
    """Ends a build that failed for good."""
    artifact = build.artifact
    build.error = error
    artifact.error = error
    if build.task is not None and not build.waiters:
        signals.emit(signals.SERVICE_FAILED, level="warning", service=build.name, error=describe(error))
    artifact.home.graph.tell(watching.BUILD_ERROR, artifact, error=error, attempt=build.attempt)
    end(build)
    watching.tell_watchers(artifact, "error", error)


def end(build: Build) -> None:
    """Ends a build, whatever it came to, and wakes who waits for it."""
    if build.ended:
        return
    build.ended = True
    if build.runner is not None:
        RUNNING.pop(build.runner, None)
        build.runner = None
    build.made.build = None
    if build.waiters:
        build.made.waiters = build.waiters
    artifact = build.artifact
    artifact.build = None
    home = artifact.home
    home.graph.builds.discard(build)
    if not home.watched:
        home.quick = not home.graph.builds
    for waiter in build.waiters:
        if not waiter.done():
            waiter.set_result(None)


async def clean_up_interrupted(build: Build) -> None:
    """Closes what a build that is cut off has opened; what fails is told by whoever closes its container."""
    home = build.artifact.home
    home.graph.interrupted += await close_made(build.made, home.close_timeout_seconds)
