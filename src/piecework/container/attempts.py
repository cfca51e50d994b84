"""The attempts of a build in a task of its own: again after a failure, anew after a change, never twice at once."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Final

from piecework.container import watching
from piecework.container.artifact import Made
from piecework.container.closing import close_made, note_failures
from piecework.container.context import FactoryContext
from piecework.container.eager import start
from piecework.container.ends import begin_attempt, clean_up_interrupted, end, fail, may_go_on, note, run_in, take
from piecework.container.factory import call, open_later, open_now
from piecework.container.plan import MISSING
from piecework.errors import DisposedError, TimeoutExceededError, UnstableError

if TYPE_CHECKING:
    from piecework.container.artifact import Build

DISCARDS_LIMIT: Final = 5
"""How many results in a row are discarded because what they were made from changed meanwhile."""

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 2.0


def go_on(build: Build, attempts: Any, *, apart: bool) -> None:
    """Goes on with a build in a task; it may have ended when this returns."""
    context = contextvars.Context() if apart else contextvars.copy_context()
    # A factory that raises a cancellation of its own in its first step must not cancel whoever asked.
    try:
        build.task = start(attempts, name=f"build {build.recipe.name}", context=context)
    except asyncio.CancelledError:
        end(build)


def end_at_once(build: Build, instance: Any, *, apart: bool = False) -> None:
    """Ends a build that took no waiting, or goes on when what it was made from is another one by now."""
    try:
        taken = take(build, instance)
    except DisposedError as error:
        fail_at_once(build, error, apart=apart, in_loop=True)
        return
    if not taken:
        go_on(build, Attempts(build).after_discard(), apart=apart)
        return
    end(build)
    build.artifact.home.sweep()


def fail_at_once(build: Build, error: Exception, *, apart: bool, in_loop: bool) -> None:
    """Ends a build whose first attempt failed without waiting, or goes on with the next one in a task."""
    note(build, error)
    if in_loop and (build.made.closers or may_go_on(build, error)):
        go_on(build, Attempts(build).after_failure(error), apart=apart)
        return
    if build.made.closers:
        # Closers may need the loop, which synchronous code cannot wait for: they run when the container closes.
        build.artifact.home.graph.stack[build.made] = None
    fail(build, error)


class Attempts:
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
        if not take(self._build, instance):
            await self._discard()

    async def after_discard(self) -> None:
        """Goes on after a first attempt whose result was outdated at once."""
        await self._guarded(self._discard())

    async def run(self, opened: Any) -> None:
        """Makes the service; goes on with what the factory gave, if it was called already."""
        await self._guarded(self._attempts(opened))

    async def _guarded(self, steps: Any) -> None:
        build = self._build
        run_in(build, asyncio.current_task())
        try:
            await steps
        except asyncio.CancelledError:
            await clean_up_interrupted(build)
            raise
        except Exception as error:  # noqa: BLE001 - its container was closed meanwhile, or a fault of ours
            home = build.artifact.home
            failures = await close_made(build.made, home.close_timeout_seconds)
            note_failures(error, failures)
            fail(build, error)
        finally:
            end(build)
        home = build.artifact.home
        if not home.closed:
            home.graph.served(build.artifact)
        home.sweep()

    async def _attempts(self, opened: Any) -> None:
        build = self._build
        while True:
            try:
                instance = await _in_time(build, opened)
            except Exception as error:  # noqa: BLE001 - kept for those who ask, or the next attempt follows
                note(build, error)
                if not await self._recovers(error):
                    return
            else:
                if take(build, instance):
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
        if not may_go_on(build, error):
            fail(build, error)
            return False
        home.graph.tell(watching.BUILD_ERROR, build.artifact, error=error, attempt=build.attempt)
        pause_seconds = FIRST_PAUSE_SECONDS * 2 ** (build.attempt - 1)
        await home.clock.sleep(min(pause_seconds, LONGEST_PAUSE_SECONDS))
        build.attempt += 1
        self._renew()
        return True

    async def _discards_once(self) -> bool:
        build = self._build
        home = build.artifact.home
        failures = await close_made(build.made, home.close_timeout_seconds)
        home.graph.told(failures, build.name)
        self._discards += 1
        if self._discards >= DISCARDS_LIMIT:
            error = UnstableError(
                f"service {build.name!r} was built {DISCARDS_LIMIT} times, and each time what it had read or used "
                "was another by the end: let its factory not change what it selects, or read less",
                name=build.name,
            )
            note_failures(error, failures)
            fail(build, error)
            return False
        self._renew()
        return True

    def _renew(self) -> None:
        self._build.made = Made(self._build.artifact, self._build)
        self._build.artifact.home.sweep()
        begin_attempt(self._build)


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
    if recipe.exclusive:
        if predecessors := home.graph.predecessors(artifact):
            home.graph.told(await home.graph.let_go(predecessors, build), artifact.name)
        await home.graph.let_go_ended(artifact)
    wiring = home.plans.wiring(recipe)
    values: dict[str, Any] = {}
    if wiring.context is not None:
        values[wiring.context] = FactoryContext(build.made)
    for parameter, key in wiring.needs:
        values[parameter.name] = await home.require_for(key, build.made)
    done, made = open_now(build.made, call(recipe, values))
    return made if done else await open_later(build.made, made)
