"""Promises about what is left of a container that is gone: nothing, and a warning where its closers never ran."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from collections import Counter
from contextlib import suppress

import pytest

from piecework.container.container import Container
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope

ROUNDS = 10_000
WARM_UP = 50


class Thing:
    """A service of the tests, in the census like ours."""

    def __init__(self, *needs):
        self.needs = needs


def census():
    """Counts the living objects of our classes and of the tests', and the tasks."""
    gc.collect()
    kinds = Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in map(type, gc.get_objects())
        if str(kind.__module__).startswith("piecework.") or kind is Thing
    )
    return kinds, len(asyncio.all_tasks())


async def check_nothing_is_left(scene, rounds=ROUNDS):
    """Plays a scene so many times, and finds as many objects as before.

    It plays first a few times unseen, for what is kept on purpose, as caches are.
    """
    for _ in range(WARM_UP):
        await scene()
    before, tasks = census()
    for _ in range(rounds):
        await scene()
    after, still = census()
    assert after - before == Counter()
    assert still == tasks


def five_services(log):
    """An app, and what its runs have: sync, async, both generators, and one that selects."""

    def plain():
        return Thing()

    async def awaited(plain):
        return Thing(plain)

    def generated(plain):
        yield Thing(plain)
        log.append("generated")

    async def streamed(ctx, awaited):
        yield Thing(awaited, await ctx.require("generated"))
        log.append("streamed")

    async def selecting(ctx, streamed):
        ctx.on_cleanup(lambda: log.append("selecting"))
        return Thing(streamed, ctx.select(lambda s: s["user"]["id"]))

    makers = (plain, awaited, generated, streamed, selecting)
    return Container(
        "app",
        level=Scope.APP,
        registry=Registry(Recipe(make.__name__, make, Scope.RUN) for make in makers),
    )


def one(base):
    return Thing(base)


def pair(shared, selecting):
    return Thing(shared, selecting)


def a_run(app, number=1):
    state = Container.State({"user": {"id": number}})
    return Container("run", id=f"r{number}", level=Scope.RUN, parents=[app], run_id=f"r{number}", state=state)


async def test_nothing_is_left_of_ten_thousand_scopes():
    """A scope that was closed leaves no object and no task, whatever was built in it."""
    log = []
    app = five_services(log)

    async def scene():
        log.clear()
        async with a_run(app) as run:
            await run.require("selecting")
        assert log == ["selecting", "streamed", "generated"]

    await check_nothing_is_left(scene)
    await app.dispose()


async def test_nothing_is_left_of_scopes_that_reacted():
    """Neither are the instances that a commit replaced, nor those of a parent that a scope's were built from."""
    log = []
    app = five_services(log)
    app.register("shared", Thing)

    async def scene():
        state = Container.State({"user": {"id": 1}})
        async with Container("run", level=Scope.RUN, parents=[app], run_id="r1", state=state) as run:
            run.register("own", pair)
            seen = []
            stop = run.watch("own").subscribe(seen.append)
            first = await run.require("own")
            await state.set({"user": {"id": 2}})
            await run.ready()
            assert await run.require("own") is not first
            await run.invalidate("streamed")
            await run.require("own")
            stop()

    await check_nothing_is_left(scene, 1000)
    await app.dispose()


async def test_nothing_is_left_of_scopes_that_failed():
    """A scope in which a factory raised, a closer raised, or a caller was cancelled leaves nothing either."""
    app = Container("app", level=Scope.APP)
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(ctx):
        ctx.on_cleanup(lambda: None)
        begun.set()
        await gate.wait()
        return Thing()

    async def failing(ctx):
        ctx.on_cleanup(lambda: None)
        await asyncio.sleep(0)
        raise OSError("down")

    def closing_badly():
        yield Thing()
        raise OSError("stuck")

    async def scene():
        run = Container("run", level=Scope.RUN, parents=[app], run_id="r1", state=Container.State({}))
        run.register("slow", slow)
        run.register("failing", failing)
        run.register("badly", closing_badly)
        run.register("needy", lambda badly, failing: Thing())
        begun.clear()
        caller = asyncio.ensure_future(run.require("slow"))
        await begun.wait()
        caller.cancel()
        with suppress(asyncio.CancelledError):
            await caller
        for key in ("failing", "needy"):
            assert not (await run.resolve(key)).ok
        with pytest.raises(ExceptionGroup):
            await run.dispose()

    await check_nothing_is_left(scene, 1000)
    await app.dispose()


async def test_nothing_is_left_of_parameters_that_went():
    """What a family of parameters had to let go leaves nothing in a container that stays open."""
    closed = []

    def make(ctx):
        ctx.on_cleanup(lambda: closed.append(ctx.params))
        return Thing()

    async with Container() as c:
        c.register("thing", make, param_key=str, param_limit=10)
        numbers = iter(range(1_000_000))

        async def scene():
            await c.require("thing", next(numbers))

        await check_nothing_is_left(scene, 2000)
        assert len(closed) == WARM_UP + 2000 - 10


async def test_nothing_is_left_of_rebuilds_in_a_container_that_stays_open():
    """However often a service is rebuilt, its earlier instances and what was built from them are gone."""
    state = Container.State({"n": 0})
    numbers = iter(range(1, 1_000_000))
    async with Container(state=state) as c:
        c.register("base", lambda ctx: Thing(ctx.select(lambda s: s["n"]), ctx.current is None))
        c.register("top", one)

        async def scene():
            await c.require("top")
            await state.set({"n": next(numbers)})

        await check_nothing_is_left(scene, 2000)


async def test_a_scope_that_is_dropped_is_not_kept_by_its_parent():
    """What a scope built from its parent's services does not keep the scope alive; the parent goes on."""
    async with Container("app") as app:
        app.register("shared", Thing)
        shared = await app.require("shared")
        await Container("run", level=Scope.RUN, parents=[app]).dispose()  # where keys lead from runs is kept
        before = census()
        run = Container("run", level=Scope.RUN, parents=[app], run_id="r1", state=Container.State({"n": 1}))
        run.register("own", lambda ctx, shared: Thing(shared, ctx.select(lambda s: s["n"])))
        own = weakref.ref(await run.require("own"))
        run = weakref.ref(run)
        assert census() == before
        assert run() is None
        assert own() is None
        assert await app.require("shared") is shared
        assert app.debug_info()["shared"]["dependents"] == []
        await app.invalidate("shared")


async def test_a_scope_that_is_dropped_is_not_kept_by_a_state():
    """A state that lives on, as a run's does for its forks, keeps no container that selected from it."""
    state = Container.State({"n": 1})
    before = census()
    run = Container("run", level=Scope.RUN, run_id="r1", state=state)
    run.register("own", lambda ctx: Thing(ctx.select(lambda s: s["n"])))
    await run.require("own")
    run = weakref.ref(run)
    assert census() == before
    assert run() is None
    await state.set({"n": 2})
    assert state.get() == {"n": 2}


async def test_what_nobody_closed_is_told():
    """A container that is dropped with closers that never ran says so, with its name."""
    run = Container("forgotten", id="r7", level=Scope.RUN, run_id="r7")
    run.register("own", lambda ctx: ctx.on_cleanup(lambda: None))
    await run.require("own")
    with pytest.warns(ResourceWarning, match="forgotten"):  # noqa: PT031 - being forgotten and found out is one thing
        del run
        gc.collect()


async def test_what_has_nothing_to_close_goes_quietly():
    """A container without closers, or one that was closed, may be dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untouched, plain, closed = Container(), Container(), Container()
        plain.register("own", Thing)
        closed.register("own", lambda ctx: ctx.on_cleanup(lambda: None))
        await plain.require("own")
        await closed.require("own")
        await closed.dispose()
        gone = [weakref.ref(one) for one in (untouched, plain, closed)]
        del untouched, plain, closed
        gc.collect()
    assert [reference() for reference in gone] == [None, None, None]
