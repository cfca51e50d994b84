from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from piecework.container.container import Container
from piecework.container.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.container.context import FactoryContext


@pytest.fixture
def log() -> list[str]:
    return []


def closing(name: str, log: list[str]) -> Callable[..., Any]:
    def make(ctx: FactoryContext) -> Any:
        ctx.on_cleanup(lambda: log.append(name))
        return object()

    return make


def standing_on_base(name: str, log: list[str]) -> Callable[..., Any]:
    def make(ctx: FactoryContext, base: Any) -> tuple[str, object]:
        ctx.on_cleanup(lambda: log.append(name))
        return name, base

    return make


def tree() -> tuple[Container, Container, Container]:
    app = Container("app")
    run = Container("run", level=Scope.RUN, parents=[app])
    return app, run, Container("fork", level=Scope.TRANSIENT, parents=[run])


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_container_that_is_closed_before_those_below_closes_what_stands_on_it_there(log: list[str]) -> None:
    """Whoever is closed first, nothing is closed before what was made from it."""
    app, run, _ = tree()
    app.register("base", closing("base", log))
    run.register("top", standing_on_base("top", log))
    await run.require("top")
    await app.dispose()
    await run.dispose()
    assert log == ["top", "base"]


async def test_a_fork_that_outlives_its_run_is_seen_from_above(log: list[str]) -> None:
    """What a fork made goes with what it was made from, also when the run between the two is closed."""
    app, run, fork = tree()
    app.register("base", closing("base", log))
    fork.register("top", standing_on_base("top", log))
    await fork.require("top")
    await run.dispose()
    await app.invalidate("base")
    assert log == ["top", "base"]
    await fork.dispose()
    await app.dispose()


async def test_a_fork_with_recipes_of_its_own_makes_them_anew_when_what_they_need_is_gone(log: list[str]) -> None:
    """A fork's own service is made anew after what it was made from was invalidated."""
    _, run, fork = tree()
    run.register("base", closing("base", log))
    fork.register("top", lambda base: ("top", base))
    first = await fork.require("top")
    await run.invalidate("base")
    assert await fork.require("top") is not first
    await fork.dispose()
    await run.dispose()


async def test_what_was_replaced_goes_with_the_last_container_that_used_it(log: list[str]) -> None:
    """An instance that was let go is closed when the last container closes that has something made from it."""
    app = Container("app")
    workflow = Container("workflow", level=Scope.WORKFLOW, parents=[app])

    def member(ctx: FactoryContext) -> Any:
        name = str(ctx.params)
        ctx.on_cleanup(lambda: log.append(name))
        return object()

    app.register("member", member, param_key=lambda params: str(params or 0), param_limit=1)
    workflow.register("user", lambda member: ("user", member))
    await workflow.require("user")
    await app.require("member", 1)
    await settle()
    assert log == []
    await workflow.dispose()
    await settle()
    assert log == ["None"]
    await app.dispose()


async def test_a_service_with_transient_needs_asks_each_of_them_once() -> None:
    """A transient that has to be awaited is made once for each service that needs it."""
    calls: list[int] = []

    async def part() -> Any:
        calls.append(1)
        await asyncio.sleep(0)
        return object()

    async with Container() as box:
        box.register("part", part, scope="transient")
        box.register("whole", lambda part: ("whole", part))
        await box.require("whole")
    assert calls == [1]


async def test_an_override_that_ended_leaves_nothing_behind() -> None:
    """After an override a service is as it was, also in what the container tells of itself."""
    async with Container() as box:
        box.register("service", object)
        restore = box.override("service", 1)
        assert box.debug_info()["service"]["status"] == "ready"
        restore()
        assert (box.debug_info()["service"]["status"], box.debug_info()["service"]["version"]) == ("idle", 0)


async def test_members_asked_for_at_once_are_made_once_each_and_all_are_closed(log: list[str]) -> None:
    """Whoever waits for a member of a full family is served, and each member is made and closed once."""
    gate = asyncio.Event()
    made: list[str] = []

    async def base() -> Any:
        await gate.wait()
        return object()

    def member(ctx: FactoryContext, base: Any) -> str:
        name = str(ctx.params)
        made.append(name)
        ctx.on_cleanup(lambda: log.append(name))
        return name

    async with Container() as box:
        box.register("base", base)
        box.register("member", member, param_key=str, param_limit=1)
        asked = [asyncio.create_task(box.require("member", number)) for number in range(4)]
        await settle()
        gate.set()
        assert await asyncio.gather(*asked) == ["0", "1", "2", "3"]
        await settle()
        assert sorted(log) == ["0", "1", "2"]
    assert sorted(log) == sorted(made) == ["0", "1", "2", "3"]


async def test_what_is_being_closed_still_has_what_it_was_made_from(log: list[str]) -> None:
    """While a closer waits, what its service was made from is not closed, though nothing else was made from it."""
    gate = asyncio.Event()

    def top(ctx: FactoryContext, base: Any) -> tuple[str, object]:
        async def close() -> None:
            await gate.wait()
            log.append("top")

        ctx.on_cleanup(close)
        return "top", base

    _, run, _ = tree()
    run.register("base", closing("base", log))
    run.register("top", top)
    await run.require("top")
    going = asyncio.create_task(run.invalidate("top"))
    await settle()
    run.register("base", closing("other", log), replace=True)
    await settle()
    assert log == []
    gate.set()
    await going
    await settle()
    assert log == ["top", "base"]
    await run.dispose()


async def test_a_container_that_is_being_closed_still_has_what_it_uses_above(log: list[str]) -> None:
    """While a run closes, what its services were made from further up is not closed."""
    gate = asyncio.Event()

    def top(ctx: FactoryContext, base: Any) -> tuple[str, object]:
        async def close() -> None:
            await gate.wait()
            log.append("top")

        ctx.on_cleanup(close)
        return "top", base

    app, run, _ = tree()
    app.register("base", closing("base", log))
    run.register("top", top)
    await run.require("top")
    going = asyncio.create_task(run.dispose())
    await settle()
    app.register("base", closing("other", log), replace=True)
    await settle()
    assert log == []
    gate.set()
    await going
    await settle()
    assert log == ["top", "base"]
    await app.dispose()


async def test_invalidating_closes_what_a_closing_container_made_from_it_first(log: list[str]) -> None:
    """Invalidating a service closes what was made from it first, also in a run that is just being closed."""
    gate = asyncio.Event()
    app, run, _ = tree()
    app.register("base", closing("base", log))
    run.register("top", standing_on_base("top", log))

    def last(ctx: FactoryContext) -> Any:
        ctx.on_cleanup(gate.wait)
        return object()

    run.register("last", last)
    await run.require("top")
    await run.require("last")
    going = asyncio.create_task(run.dispose())
    await settle()
    await app.invalidate("base")
    assert log == ["top", "base"]
    gate.set()
    await going
    await app.dispose()
