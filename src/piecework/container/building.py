"""Building a service: at once where nothing has to be awaited, else in one task that all askers share.

The build belongs to the container that the instance will live in, not to the first asker: who is cancelled stops
waiting, and the build goes on. A failure goes to everybody who waits, and is forgotten: the next asker tries again.
What was read or used while it was made has to be so still when it is done; else the result is closed, and made anew.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from piecework.container import watching
from piecework.container.artifact import Artifact, Build, Made
from piecework.container.closing import close_made, note_failures
from piecework.container.context import FactoryContext
from piecework.container.eager import start
from piecework.container.factory import call, open_later, open_now, unyielded
from piecework.container.plan import MISSING, NotNowError, WaitsError
from piecework.errors import (
    ClosedError,
    CycleError,
    DisposedError,
    InvalidScopeError,
    InvalidStateError,
    NotFoundError,
    TimeoutExceededError,
    UnstableError,
    describe,
)
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.container.container import Container
    from piecework.container.plan import Plan
    from piecework.container.registry import Recipe

T = TypeVar("T")

DISCARDS_LIMIT: Final = 5
"""How many results in a row are discarded because what they were made from changed meanwhile."""

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 2.0
_NOBODY: Final[Any] = None  # the maker of what takes no context
_HOPELESS: Final = (CycleError, NotFoundError, InvalidScopeError, ClosedError)


async def obtain(artifact: Artifact, asker: Made | None = None, *, apart: bool = False, given: Any = MISSING) -> Made:
    """Gives the instance of a service that is not fresh: builds it, or waits for the build that does so already.

    Args:
        artifact: Which.
        asker: What is being made that needs it, or None.
        apart: Build in variables of its own, not in the asker's: what a shared service starts must not be charged to
            whoever happened to ask first.
        given: What its factory has given already, to be awaited.

    Raises:
        CycleError: It would wait for itself.
        Exception: Whatever its factory raised.
    """
    while True:
        build = artifact.build
        if build is None:
            build = begin(artifact, asker, apart=apart, given=given)
            given = MISSING
        if not build.ended:
            await _wait(build, asker)
        made = outcome(build)
        if made.is_transient or artifact.made is made:
            return made
        # It was taken away between its completion and this waiter's turn.
        artifact.home.check_open()
        if artifact.fresh and artifact.made is not None:
            return artifact.made


class _Opening:
    """What became of a first step that took no record."""

    __slots__ = ("build", "error", "instance")

    def __init__(self) -> None:
        self.build: Build | None = None
        self.error: Exception | None = None
        self.instance: Any = MISSING


def open_quickly(home: Container, plan: Plan) -> Any:
    """Makes a service of a coroutine or an async generator; only what has to wait is kept a record of.

    Args:
        home: Nothing is being built there, and nothing has changed there.
        plan: Is `bare`.

    Returns:
        The instance; MISSING when it is being built, or something it needs is not there yet.

    Raises:
        Exception: Whatever the factory raised.
    """
    recipe = plan.recipe
    assert plan.call is not None
    try:
        given = plan.call(home, _NOBODY)
    except (NotNowError, WaitsError):
        return MISSING
    opening = _Opening()
    task = start(_open_bare(home, recipe, given, opening), name=recipe.name)
    if opening.error is not None:
        artifact = home.graph.artifact(recipe)
        artifact.error = opening.error
        opening.error.add_note(f"while building service {recipe.name!r}")
        raise opening.error
    if task is not None:
        artifact = home.graph.artifact(recipe)
        build = Build(artifact, None)
        build.made.wired = False
        build.task = task
        artifact.build = build
        home.graph.builds.add(build)
        home.quick = False
        opening.build = build
    return opening.instance


async def _open_bare(home: Container, recipe: Recipe, given: Any, opening: _Opening) -> None:
    is_generator = type(given) is AsyncGeneratorType
    try:
        instance = await given.__anext__() if is_generator else await given
    except asyncio.CancelledError:
        if opening.build is None:
            opening.error = InvalidStateError(
                f"the build of service {recipe.name!r} was cancelled: ask again", name=recipe.name
            )
            return
        _end(opening.build)
        raise
    except Exception as error:  # noqa: BLE001 - raised to who asked, or kept for those who wait
        if isinstance(error, StopAsyncIteration):
            error = unyielded(recipe.name)
        if opening.build is None:
            opening.error = error
            return
        _note(opening.build, error)
        await _Attempts(opening.build).after_failure(error)
        return
    build = opening.build
    if build is None:
        opening.instance = home.instances[recipe] = instance
        if is_generator:
            home.keep(recipe, given)
        return
    if is_generator:
        build.made.closers.append(given)
    await _Attempts(build).take(instance)


def begin_quickly(home: Container, plan: Plan) -> Build | None:
    """Begins to build a service whose factory takes the context, by the quick way to call it.

    Args:
        home: Nothing is being built there, and nothing has changed there.
        plan: Has such a way.

    Returns:
        The build, ended if that took no waiting; None when something it needs is not there yet.
    """
    recipe = plan.recipe
    artifact = home.graph.artifacts.get(recipe) if home.has_graph else None
    if artifact is None:
        artifact = Artifact(recipe, home)
    build = Build(artifact, None)
    made = build.made
    assert plan.call is not None
    try:
        given = plan.call(home, made)
        if not recipe.is_async:
            done, given = open_now(made, given)
            if done and not (made.closers or made.readings or made.stream) and home.quick:
                # It made no use of the context that would have to be remembered.
                made.build = None
                made.complete(given)
                home.instances[recipe] = given
                return build
            if done:
                _book(build)
                _at_its_end(build, given)
                return build
    except (NotNowError, WaitsError):
        return None
    except Exception as error:  # noqa: BLE001 - kept for those who ask
        _book(build)
        _failed_at_once(build, error, apart=False, in_loop=True)
        return build
    _book(build)
    _go_on(build, _open(build, given), apart=False)
    return build


def _book(build: Build) -> None:
    """Notes that a service is being built."""
    artifact = build.artifact
    graph = artifact.home.graph
    graph.artifacts[artifact.recipe] = artifact
    artifact.build = build
    build.made.wired = False
    graph.builds.add(build)
    artifact.home.quick = False


async def _open(build: Build, given: Any) -> None:
    """Opens what a factory gave; the short form of the attempts for a build that goes well."""
    made = build.made
    try:
        if type(given) is AsyncGeneratorType:
            instance = await given.__anext__()
            made.closers.append(given)
        elif type(given) is CoroutineType:
            instance = await given
        else:
            done, instance = open_now(made, given)
            if not done:
                instance = await open_later(made, given)
        if _take(build, instance):
            _end(build)
            return
    except asyncio.CancelledError:
        await _clean_up_interrupted(build)
        _end(build)
        raise
    except Exception as error:  # noqa: BLE001 - kept for those who ask
        if isinstance(error, StopAsyncIteration):
            error = unyielded(build.name)
        _note(build, error)
        await _Attempts(build).after_failure(error)
        return
    await _Attempts(build).after_discard()


def begin(artifact: Artifact, asker: Made | None, *, apart: bool, given: Any = MISSING, in_loop: bool = True) -> Build:
    """Begins to build a service; what needs no waiting is ended when this returns.

    Args:
        artifact: Nobody builds it yet.
        asker: What is being made that needs it, or None.
        apart: As in `obtain`.
        given: As in `obtain`.
        in_loop: False refuses what would have to be awaited.

    Raises:
        CycleError: It needs itself.
        InvalidStateError: It has to be awaited, and must not.
    """
    build = Build(artifact, asker)
    build.refuse_itself()
    home = artifact.home
    artifact.build = build
    home.graph.builds.add(build)
    home.quick = False
    # What it asks for may begin to be built before this returns: then the asker waits for it already.
    asking = None if asker is None else asker.build
    if asking is not None:
        asking.waits = [*asking.waits, build]
    try:
        return _begin(build, apart=apart, given=given, in_loop=in_loop)
    finally:
        if asking is not None:
            asking.waits = _without(asking.waits, build)


def _without(items: Sequence[T], one: T) -> list[T]:
    left = list(items)
    left.remove(one)
    return left


def _begin(build: Build, *, apart: bool, given: Any, in_loop: bool) -> Build:
    home = build.artifact.home
    try:
        done, opened = _at_once(build, contextvars.Context() if apart else None, given, in_loop=in_loop)
    except Exception as error:  # noqa: BLE001 - kept for those who ask, or the next attempt follows
        _failed_at_once(build, error, apart=apart, in_loop=in_loop)
        return build
    except BaseException:
        _end(build)
        raise
    if done:
        _at_its_end(build, opened, apart=apart)
    elif in_loop:
        _go_on(build, _Attempts(build).run(opened), apart=apart)
    else:
        if inspect.iscoroutine(opened):
            opened.close()
        home.graph.stack[build.made] = None
        _end(build)
        raise needs_loop(build.name)
    return build


def _at_its_end(build: Build, instance: Any, *, apart: bool = False) -> None:
    """Ends a build that took no waiting, or goes on when what it was made from is another one by now."""
    if not _take(build, instance):
        _go_on(build, _Attempts(build).after_discard(), apart=apart)
        return
    _end(build)
    build.artifact.home.graph.sweep()


def _failed_at_once(build: Build, error: Exception, *, apart: bool, in_loop: bool) -> None:
    _note(build, error)
    if in_loop and (build.made.closers or _again(build, error)):
        _go_on(build, _Attempts(build).after_failure(error), apart=apart)
        return
    if build.made.closers:
        # Closers may need the loop, which synchronous code cannot wait for: they run when the container closes.
        build.artifact.home.graph.stack[build.made] = None
    _fail(build, error)


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
            raise DisposedError(
                f"{home.title} was closed while service {build.name!r} was built: open a new one and ask there",
                name=build.name,
                id=home.id,
            )
        raise InvalidStateError(f"the build of service {build.name!r} was cancelled: ask again", name=build.name)
    return build.made


def needs_loop(name: str) -> InvalidStateError:
    """The refusal of a service that has to be awaited."""
    return InvalidStateError(
        f"service {name!r} is made asynchronously, so it is no attribute yet: "
        f"use `await ws.require({name!r})`; where it lives on, `ws.{name}` works from then on",
        name=name,
    )


def _at_once(build: Build, context: contextvars.Context | None, given: Any, *, in_loop: bool) -> tuple[bool, Any]:
    """Makes a service as far as that goes without waiting.

    Returns:
        True and the instance; or False and what has to be awaited, MISSING when the factory was not called yet.
    """
    recipe = build.recipe
    _begin_attempt(build)
    if given is not MISSING:
        return False, given
    if recipe.is_async or (recipe.exclusive and build.artifact.made is not None):
        return False, MISSING
    values = _values_at_once(build, in_loop=in_loop)
    if values is None:
        return False, MISSING
    if context is None:
        return open_now(build.made, call(recipe, values))
    return context.run(lambda: open_now(build.made, call(recipe, values)))


def _values_at_once(build: Build, *, in_loop: bool) -> dict[str, Any] | None:
    home = build.artifact.home
    wiring = home.plans.wiring(build.recipe)
    values: dict[str, Any] = {}
    for parameter, key in wiring.needs:
        found = home.at_once(key, build.made, in_loop=in_loop)
        if found is MISSING:
            return None
        values[parameter.name] = found
    if wiring.context is not None:
        values[wiring.context] = FactoryContext(build.made)
    return values


def _begin_attempt(build: Build) -> None:
    home = build.artifact.home
    if home.watched:
        build.began = home.clock.monotonic() if build.began is None else build.began
        home.graph.tell(watching.BUILD_START, build.artifact, attempt=build.attempt)


def _go_on(build: Build, attempts: Any, *, apart: bool) -> None:
    """Goes on with a build in a task; it may have ended when this returns."""
    context = contextvars.Context() if apart else contextvars.copy_context()
    # A factory that raises a cancellation of its own in its first step must not cancel whoever asked.
    try:
        build.task = start(attempts, name=f"build {build.recipe.name}", context=context)
    except asyncio.CancelledError:
        _end(build)


class _Attempts:
    """The attempts of one build, in its task."""

    __slots__ = ("_build", "_discards")

    def __init__(self, build: Build) -> None:
        self._build = build
        self._discards = 0

    async def after_failure(self, error: Exception) -> None:
        """Goes on after a first attempt that failed at once."""
        await self._guarded(self._recover(error))

    async def take(self, instance: Any) -> None:
        """Goes on after a first attempt that came to an instance."""
        await self._guarded(self._taken(instance))

    async def _taken(self, instance: Any) -> None:
        if not _take(self._build, instance):
            await self._discard()

    async def after_discard(self) -> None:
        """Goes on after a first attempt whose result was outdated at once."""
        await self._guarded(self._discard())

    async def run(self, opened: Any) -> None:
        """Makes the service; goes on with what the factory gave, if it was called already."""
        await self._guarded(self._attempts(opened))

    async def _guarded(self, steps: Any) -> None:
        build = self._build
        try:
            await steps
        except asyncio.CancelledError:
            await _clean_up_interrupted(build)
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours still reaches those who wait
            _fail(build, error)
        finally:
            _end(build)
        build.artifact.home.graph.sweep()

    async def _attempts(self, opened: Any) -> None:
        build = self._build
        while True:
            try:
                instance = await _in_time(build, opened)
            except Exception as error:  # noqa: BLE001 - kept for those who ask, or the next attempt follows
                _note(build, error)
                if not await self._recovers(error):
                    return
            else:
                if _take(build, instance):
                    return
                if not await self._discards_once():
                    return
            opened = MISSING

    async def _recover(self, error: Exception) -> None:
        if await self._recovers(error):
            await self._attempts(MISSING)

    async def _discard(self) -> None:
        if await self._discards_once():
            await self._attempts(MISSING)

    async def _recovers(self, error: Exception) -> bool:
        """Cleans up after an attempt that failed; tells whether another one follows."""
        build = self._build
        home = build.artifact.home
        note_failures(error, await close_made(build.made, home.close_timeout_seconds))
        if not _again(build, error):
            _fail(build, error)
            return False
        home.graph.tell(watching.BUILD_ERROR, build.artifact, error=error, attempt=build.attempt)
        pause_seconds = FIRST_PAUSE_SECONDS * 2 ** (build.attempt - 1)
        await home.clock.sleep(min(pause_seconds, LONGEST_PAUSE_SECONDS))
        build.attempt += 1
        self._renew()
        return True

    async def _discards_once(self) -> bool:
        build = self._build
        failures = await close_made(build.made, build.artifact.home.close_timeout_seconds)
        self._discards += 1
        if self._discards >= DISCARDS_LIMIT:
            error = UnstableError(
                f"service {build.name!r} was built {DISCARDS_LIMIT} times, and each time what it had read or used "
                "was another by the end: let its factory not change what it selects, or read less",
                name=build.name,
            )
            note_failures(error, failures)
            _fail(build, error)
            return False
        self._renew()
        return True

    def _renew(self) -> None:
        self._build.made = Made(self._build.artifact, self._build)
        _begin_attempt(self._build)


def _take(build: Build, instance: Any) -> bool:
    """Puts a result in place; False when what it was made from is another one by now."""
    artifact, made = build.artifact, build.made
    home = artifact.home
    if home.closed:
        raise DisposedError(
            f"{home.title} was closed while service {build.name!r} was built: open a new one and ask there",
            name=build.name,
            id=home.id,
        )
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


def _again(build: Build, error: Exception) -> bool:
    return build.attempt <= build.recipe.retries and not isinstance(error, _HOPELESS) and not build.artifact.home.closed


async def _clean_up_interrupted(build: Build) -> None:
    """Closes what a build that is cut off has opened; what fails is told by whoever closes its container."""
    home = build.artifact.home
    home.graph.interrupted += await close_made(build.made, home.close_timeout_seconds)


def _note(build: Build, error: Exception) -> None:
    note = f"while building service {build.name!r}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _fail(build: Build, error: Exception) -> None:
    artifact = build.artifact
    build.error = error
    artifact.error = error
    if build.task is not None and not build.waiters:
        signals.emit(signals.SERVICE_FAILED, level="warning", service=build.name, error=describe(error))
    artifact.home.graph.tell(watching.BUILD_ERROR, artifact, error=error, attempt=build.attempt)
    _end(build)
    watching.tell_watchers(artifact, "error", error)


def _end(build: Build) -> None:
    if build.ended:
        return
    build.ended = True
    build.made.build = None
    artifact = build.artifact
    artifact.build = None
    home = artifact.home
    home.graph.builds.discard(build)
    if not home.watched:
        home.quick = not home.graph.builds
    for waiter in build.waiters:
        if not waiter.done():
            waiter.set_result(None)


async def _wait(build: Build, asker: Made | None) -> None:
    asking = None if asker is None else asker.build
    if asking is not None:
        build.refuse_circle(asking)
        asking.waits = [*asking.waits, build]
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not build.waiters:
        build.waiters = []
    assert isinstance(build.waiters, list)  # one for all waiters: there may be thousands
    build.waiters.append(waiter)
    try:
        await waiter
    finally:
        build.waiters.remove(waiter)
        if asking is not None:
            asking.waits = _without(asking.waits, build)


async def _in_time(build: Build, opened: Any) -> Any:
    limit_seconds = build.recipe.timeout_seconds
    if limit_seconds is None:
        return await _construct(build, opened)
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            return await _construct(build, opened)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutExceededError(
            f"building service {build.name!r} took more than {limit_seconds:g} s and was stopped: make its factory "
            "faster, or raise timeout_seconds",
            name=build.name,
        ) from error


async def _construct(build: Build, opened: Any) -> Any:
    if opened is not MISSING:
        return await open_later(build.made, opened)
    home, recipe, artifact = build.artifact.home, build.recipe, build.artifact
    if recipe.exclusive and artifact.made is not None:
        await _close_before(home, artifact)
    wiring = home.plans.wiring(recipe)
    values: dict[str, Any] = {}
    if wiring.context is not None:
        values[wiring.context] = FactoryContext(build.made)
    for parameter, key in wiring.needs:
        values[parameter.name] = await home.require_for(key, build.made)
    done, made = open_now(build.made, call(recipe, values))
    return made if done else await open_later(build.made, made)


async def _close_before(home: Container, artifact: Artifact) -> None:
    home.graph.told(await home.graph.let_go([artifact], artifact.build), artifact.name)
