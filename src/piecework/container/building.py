"""Building a service: at once where nothing has to be awaited, else in one task that all askers share.

The build belongs to the container that the instance will live in, not to the first asker: who is cancelled stops
waiting, and the build goes on. A failure goes to everybody who waits, and is forgotten: the next asker tries again.
What was read or used while it was made has to be so still when it is done; else the result is closed, and made anew.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.container.artifact import Artifact, Build, Made
from piecework.container.attempts import Attempts, end_at_once, fail_at_once, go_on
from piecework.container.context import FactoryContext
from piecework.container.ends import RUNNING, begin_attempt, end, outcome
from piecework.container.factory import call, open_now
from piecework.container.plan import MISSING
from piecework.errors import InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


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
    if asker is None and RUNNING:
        # A factory that asks the container itself is known by the task that it runs in.
        running = RUNNING.get(asyncio.current_task())  # type: ignore[arg-type]  # None is in no dict of tasks
        asker = None if running is None else running.made
    while True:
        build = artifact.build
        if build is None:
            build = begin(artifact, asker, apart=apart, given=given)
            given = MISSING
        if not build.ended:
            await _wait(build, asker)
        made = outcome(build)
        if artifact.made is made and not made.closed:
            return made
        # It was taken away between its completion and this waiter's turn.
        artifact.home.check_open()
        if artifact.fresh and artifact.made is not None and not artifact.made.closed:
            return artifact.made


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


def _begin(build: Build, *, apart: bool, given: Any, in_loop: bool) -> Build:
    home = build.artifact.home
    try:
        done, opened = _at_once(build, contextvars.Context() if apart else None, given, in_loop=in_loop)
    except Exception as error:  # noqa: BLE001 - kept for those who ask, or the next attempt follows
        fail_at_once(build, error, apart=apart, in_loop=in_loop)
        return build
    except BaseException:
        end(build)
        raise
    if done:
        end_at_once(build, opened, apart=apart)
    elif in_loop:
        go_on(build, Attempts(build).run(opened), apart=apart)
    else:
        if inspect.iscoroutine(opened):
            opened.close()
        home.graph.stack[build.made] = None
        end(build)
        raise needs_loop(build.name)
    return build


def _without(items: Sequence[T], one: T) -> list[T]:
    left = list(items)
    left.remove(one)
    return left


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
    begin_attempt(build)
    if given is not MISSING:
        return False, given
    graph = build.artifact.home.graph
    if recipe.is_async or (recipe.exclusive and (graph.is_letting_go or graph.predecessors(build.artifact))):
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
