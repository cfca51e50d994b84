"""The quick ways to a service whose factory is not plain: no record is kept of what ends in its first step.

They are taken where nothing is being built and nobody looks on, for services without retries, limits and families.
"""

from __future__ import annotations

import asyncio
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, Final

from piecework.container.artifact import Artifact, Build
from piecework.container.attempts import Attempts, end_at_once, fail_at_once, go_on
from piecework.container.eager import start
from piecework.container.ends import disposed, end, note, run_in
from piecework.container.factory import open_now, unyielded
from piecework.container.plan import MISSING, NotNowError, WaitsError, asked_for_itself
from piecework.errors import InvalidStateError

if TYPE_CHECKING:
    from piecework.container.container import Container
    from piecework.container.plan import Plan
    from piecework.container.registry import Recipe

_NOBODY: Final[Any] = None  # the maker of what takes no context


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
        if recipe in home.instances or _is_built(home, recipe):
            task.cancel()
            raise asked_for_itself(recipe.name)
        artifact = home.graph.artifact(recipe)
        build = Build(artifact, None)
        build.made.wired = False
        build.task = task
        run_in(build, task)
        artifact.build = build
        home.graph.builds.add(build)
        home.quick = False
        opening.build = build
    return opening.instance


def _is_built(home: Container, recipe: Recipe) -> bool:
    artifact = home.graph.artifacts.get(recipe) if home.has_graph else None
    return artifact is not None and artifact.build is not None


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
        end(opening.build)
        raise
    except Exception as error:  # noqa: BLE001 - raised to who asked, or kept for those who wait
        if isinstance(error, StopAsyncIteration):
            error = unyielded(recipe.name)
        if opening.build is None:
            opening.error = error
            return
        note(opening.build, error)
        await Attempts(opening.build).after_failure(error)
        return
    build = opening.build
    if build is None and home.closed:
        opening.error = disposed(home, recipe.name)
        if is_generator:
            await given.aclose()
        return
    if build is None and (recipe in home.instances or _is_built(home, recipe)):
        opening.error = asked_for_itself(recipe.name)
        if is_generator:
            await given.aclose()
        return
    if build is None:
        opening.instance = home.instances[recipe] = instance
        if is_generator:
            home.keep(recipe, given)
        return
    if is_generator:
        build.made.closers.append(given)
    await Attempts(build).take(instance)


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
                end_at_once(build, given)
                return build
    except (NotNowError, WaitsError):
        return None
    except Exception as error:  # noqa: BLE001 - kept for those who ask
        _book(build)
        fail_at_once(build, error, apart=False, in_loop=True)
        return build
    _book(build)
    go_on(build, Attempts(build).run(given), apart=False)
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
