from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from piecework.container.container import Container
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope
from piecework.errors import DisposedError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from piecework.container.context import FactoryContext
    from piecework.container.watching import Event


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


@pytest.mark.covers("N82")
@pytest.mark.parametrize("named", [True, False])
async def test_what_looks_in_a_fork_is_seen_from_above(log: list[str], *, named: bool) -> None:
    """What is made in a scope of a fork, or in a container that looks in one, goes with what it was made from."""
    app, run, fork = tree()
    below = fork.scope("below") if named else Container("below", parents=[fork])
    app.register("base", closing("base", log))
    below.register("top", standing_on_base("top", log))
    await below.require("top")
    await app.invalidate("base")
    assert log == ["top", "base"]
    for container in (below, fork, run, app):
        await container.dispose()


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


# -- containers that are closed before those below -------------------------------------------------------------------


def standing(*, quick: bool, gate: asyncio.Event, log: list[str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A factory of `base`, and of `top`, which is made from it and waits; made the quick way, or with a record."""

    async def base() -> AsyncIterator[str]:
        yield "base"
        log.append("base")

    async def plain(base: Any) -> tuple[str, object]:
        await gate.wait()
        return "top", base

    async def recorded(ctx: FactoryContext, base: Any) -> tuple[str, object]:
        ctx.on_cleanup(lambda: log.append("top"))
        return await plain(base)

    return base, plain if quick else recorded


@pytest.mark.covers("N540")
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("quick", [True, False])
async def test_what_is_being_made_from_something_closed_is_given_to_nobody(
    log: list[str], *, quick: bool, at_once: bool
) -> None:
    """A build below that used what is closed meanwhile is given up, also when it ends while the closer runs."""
    gate = asyncio.Event()
    base, top = standing(quick=quick, gate=gate, log=log)
    app = Container("app", registry=Registry([Recipe("base", base, Scope.APP), Recipe("top", top, Scope.RUN)]))
    run = Container("run", level=Scope.RUN, parents=[app])
    assert app.has("base")
    assert run.has("base")
    assert run.has("top")  # from now on the quick way is known
    await app.require("base")
    asked = asyncio.create_task(run.require("top"))
    await settle()
    if at_once:
        gate.set()
    await app.dispose()
    gate.set()
    with pytest.raises(DisposedError, match="'base' lived in app"):
        await asked
    assert sorted(log) == (["base"] if quick else ["base", "top"])
    await run.dispose()
    assert sorted(log) == (["base"] if quick else ["base", "top"])


@pytest.mark.covers("N540")
async def test_what_was_made_the_quick_way_goes_before_what_it_was_made_from(log: list[str]) -> None:
    """Whoever is closed first, nothing is closed before what was made from it, also where no records are kept."""

    def base() -> Iterator[str]:
        yield "base"
        log.append("base")

    def top(base: Any) -> Iterator[tuple[str, object]]:
        yield "top", base
        log.append("top")

    app = Container("app", registry=Registry([Recipe("base", base, Scope.APP), Recipe("top", top, Scope.RUN)]))
    run = Container("run", level=Scope.RUN, parents=[app])
    assert app.has("base")
    assert run.has("top")
    await app.require("base")
    await run.require("top")
    assert not app.has_graph
    assert not run.has_graph
    await app.dispose()
    assert log == ["top", "base"]
    await run.dispose()
    assert log == ["top", "base"]


@pytest.mark.covers("N540")
async def test_a_run_closes_what_its_fork_made_the_quick_way(log: list[str]) -> None:
    """A run that is closed before its fork closes what was made there from its services, then these."""

    def top(base: Any) -> Iterator[tuple[str, object]]:
        yield "top", base
        log.append("top")

    recipes = [Recipe("base", closing("base", log), Scope.RUN), Recipe("top", top, Scope.TRANSIENT)]
    app = Container("app", registry=Registry(recipes))
    run = Container("run", level=Scope.RUN, parents=[app])
    fork = Container("fork", level=Scope.TRANSIENT, parents=[run])
    await run.require("base")
    fork.require_now("top")
    await run.dispose()
    assert log == ["top", "base"]
    await fork.dispose()
    await app.dispose()
    assert log == ["top", "base"]


@pytest.mark.covers("N540")
@pytest.mark.parametrize("quick", [True, False])
async def test_a_transient_of_which_no_record_is_kept_goes_after_what_was_made_from_it(
    log: list[str], *, quick: bool
) -> None:
    """What was opened the quick way for a service is closed after it, whenever a record of either is made."""

    def part(base: Any) -> Iterator[tuple[str, object]]:
        yield "part", base
        log.append("part")

    def whole(part: Any) -> Iterator[tuple[str, object]]:
        yield "whole", part
        log.append("whole")

    def recorded(ctx: FactoryContext, part: Any) -> tuple[str, object]:
        ctx.on_cleanup(lambda: log.append("whole"))
        return "whole", part

    async with Container() as box:
        box.register("base", closing("base", log))
        box.register("part", part, scope="transient")
        box.register("whole", whole if quick else recorded)
        await box.require("base")
        assert box.has("part")
        assert box.has("whole")
        await box.require("whole")
        assert box.watch("whole").get() is not None
        await box.invalidate("base")
    assert log == ["whole", "part", "base"]


def slowly(gate: asyncio.Event, log: list[str]) -> Callable[..., Any]:
    async def top(base: Any) -> AsyncIterator[tuple[str, object]]:
        yield "top", base
        await gate.wait()
        log.append("top")

    return top


async def begun(closing: Any) -> asyncio.Task[None]:
    task = asyncio.ensure_future(closing)
    await settle()
    return task


@pytest.mark.covers("N540")
@pytest.mark.parametrize("first", ["dispose", "invalidate"])
@pytest.mark.parametrize("then", ["dispose", "invalidate"])
@pytest.mark.parametrize("noted", [True, False])
async def test_a_closer_that_waits_still_has_what_its_service_was_made_from(
    log: list[str], *, first: str, then: str, noted: bool
) -> None:
    """While a run closes a service, neither invalidating nor closing what is above closes what it was made from."""
    gate = asyncio.Event()
    recipes = [Recipe("base", closing("base", log), Scope.APP), Recipe("top", slowly(gate, log), Scope.RUN)]
    app = Container("app", registry=Registry(recipes))
    run = Container("run", level=Scope.RUN, parents=[app])
    for container in (app, run):
        assert container.has("base")
    assert run.has("top")
    await app.require("base")
    await run.require("top")
    assert not run.has_graph
    if noted:
        run.note()
    going = await begun(run.dispose() if first == "dispose" else run.invalidate("top"))
    other = await begun(app.dispose() if then == "dispose" else app.invalidate("base"))
    assert log == []
    gate.set()
    await going
    await other
    assert log == ["top", "base"]
    await run.dispose()
    await app.dispose()
    assert log == ["top", "base"]


@pytest.mark.covers("N540")
async def test_a_container_waits_for_what_is_being_closed_in_it_from_above(log: list[str]) -> None:
    """Closing a run ends when all that lived there is closed, also what goes with something further up."""
    gate = asyncio.Event()
    app, run, _ = tree()
    app.register("base", closing("base", log))
    run.register("top", slowly(gate, log))
    await run.require("top")
    going = await begun(app.invalidate("base"))
    other = await begun(run.dispose())
    assert not other.done()
    gate.set()
    await other
    assert log[0] == "top"
    await going
    assert log == ["top", "base"]
    await app.dispose()


@pytest.mark.covers("N540")
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_closer_may_close_what_is_above_it(log: list[str], *, at_once: bool) -> None:
    """A closer that invalidates what its service was made from, or closes the app, does not wait for itself."""
    app, run, _ = tree()
    app.register("base", closing("base", log))
    app.register("other", closing("other", log))

    def top(ctx: FactoryContext, base: Any, other: Any) -> tuple[object, object]:
        async def close() -> None:
            if not at_once:
                await asyncio.sleep(0)
            await app.invalidate("base")
            await app.dispose()
            log.append("top")

        ctx.on_cleanup(close)
        return base, other

    run.register("top", top)
    await run.require("top")
    async with asyncio.timeout(5):
        await run.dispose()
    assert log == ["base", "other", "top"]


@pytest.mark.covers("N540")
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_closer_may_close_the_container_that_lets_its_service_go(log: list[str], *, at_once: bool) -> None:
    """A closer that closes its container, while its service is invalidated, does not wait for itself."""
    _, run, _ = tree()

    def top(ctx: FactoryContext) -> object:
        async def close() -> None:
            if not at_once:
                await asyncio.sleep(0)
            await run.dispose()
            log.append("top")

        ctx.on_cleanup(close)
        return object()

    run.register("top", top)
    await run.require("top")
    async with asyncio.timeout(5):
        await run.invalidate("top")
    assert log == ["top"]


@pytest.mark.covers("N540")
async def test_a_transient_that_is_closed_before_it_reaches_who_asked_is_made_anew() -> None:
    """Nobody is given a transient whose closers have run: it goes with what it was made from, and is made again."""
    gate = asyncio.Event()
    closed: list[object] = []

    async def part(ctx: FactoryContext, base: object) -> object:
        await gate.wait()
        made = object()
        ctx.on_cleanup(lambda: closed.append(made))
        return made

    async with Container() as box:
        box.register("base", object)
        box.register("part", part, scope="transient")
        going: list[asyncio.Future[None]] = []

        def invalidate(event: Event) -> None:
            if event.key == "part" and not going:
                going.append(asyncio.ensure_future(box.invalidate("base")))

        box.on("build:complete", invalidate)
        asked = asyncio.create_task(box.require("part"))
        await settle()
        gate.set()
        assert await asked not in closed
        await going[0]
        assert len(closed) == 1


# -- one at a time ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("N541")
async def test_an_exclusive_service_waits_for_its_predecessor_whoever_closes_that(log: list[str]) -> None:
    """An exclusive service that goes with something further up is made anew when it is closed."""
    gate = asyncio.Event()
    app, run, _ = tree()
    app.register("base", closing("base", log))

    async def port(base: Any) -> AsyncIterator[object]:
        log.append("opening")
        yield object()
        await gate.wait()
        log.append("closed")

    run.register("port", port, exclusive=True)
    await run.require("port")
    going = await begun(app.invalidate("base"))
    asked = await begun(run.require("port"))
    assert log == ["opening"]
    gate.set()
    await asked
    await going
    assert [one for one in log if one != "base"] == ["opening", "closed", "opening"]
    await run.dispose()
    await app.dispose()


def port(ctx: FactoryContext, log: list[str]) -> object:
    number = ctx.params or 0
    ctx.select(lambda data: data["n"])
    log.append(f"opening {number}")
    ctx.on_cleanup(lambda: log.append(f"closed {number}"))
    return object()


@pytest.mark.covers("N541")
@pytest.mark.parametrize("changed", [True, False])
async def test_an_exclusive_member_that_was_let_go_is_given_again_or_closed_before(
    log: list[str], *, changed: bool
) -> None:
    """What a full family has let go, and something was made from, is given again; outdated, it is closed before."""
    state = Container.State({"n": 0})

    def opened(ctx: FactoryContext) -> object:
        return port(ctx, log)

    async with Container(state=state) as box:
        box.register("port", opened, param_key=lambda params: str(params or 0), param_limit=1, exclusive=True)
        box.register("server", standing_on("server", log))
        server, first = await box.require("server"), box.peek("port")
        await box.require("port", 1)
        assert log == ["opening 0", "opening 1"]
        assert box.peek("port") is None
        if changed:
            await state.set({"n": 1})
        assert (await box.require("port", 0) is first) is not changed
        assert log[2:5] == (["server", "closed 0", "opening 0"] if changed else ["closed 1"])
        assert (await box.require("server") is server) is not changed


def standing_on(name: str, log: list[str]) -> Callable[..., Any]:
    def make(ctx: FactoryContext, port: Any) -> tuple[str, object]:
        ctx.on_cleanup(lambda: log.append(name))
        return name, port

    return make


async def test_who_asks_for_a_member_does_not_drive_it_out_of_a_full_family() -> None:
    """A member that is asked for stays while another one is being made, also when there is place for one only."""
    gate = asyncio.Event()

    async def member(ctx: FactoryContext) -> object:
        if ctx.params == "slow":
            await gate.wait()
        return object()

    async with Container() as box:
        box.register("member", member, param_key=str, param_limit=1)
        there = await box.require("member", "there")
        slow = asyncio.create_task(box.require("member", "slow"))
        await settle()
        assert await box.require("member", "there") is there
        assert await box.require("member", "there") is there
        slow.cancel()
        gate.set()
        await settle()
        assert box.peek("member", "there") is there
        assert box.peek("member", "slow") is None


async def test_a_member_that_was_let_go_is_not_made_anew_for_those_who_watch_it(log: list[str]) -> None:
    """What its family has let go is rebuilt by nobody; who watches it hears of the one that is asked for next."""
    made: list[int] = []

    def member(ctx: FactoryContext, base: Any) -> object:
        number = ctx.params or 0
        made.append(number)
        ctx.on_cleanup(lambda: log.append(f"closed {number}"))
        return object()

    async with Container() as box:
        box.register("base", object)
        box.register("port", member, param_key=lambda params: str(params or 0), param_limit=1)
        box.register("server", standing_on("server", log))
        await box.require("server")
        await box.require("port", 1)
        box.watch("port", 0).subscribe(lambda _: None)
        await box.invalidate("base", rebuild=True)
        assert made == [0, 1]
        assert sorted(log) == ["closed 0", "closed 1", "server"]
        await box.require("port", 0)
        assert made == [0, 1, 0]


# -- taken out while it is made --------------------------------------------------------------------------------------


@pytest.mark.covers("N542")
async def test_what_is_taken_out_while_it_is_made_reaches_who_waits_and_goes(log: list[str]) -> None:
    """Who waits for a service that is taken out meanwhile is given it; then it is closed."""
    gate = asyncio.Event()

    async def late() -> AsyncIterator[str]:
        await gate.wait()
        yield "late"
        log.append("late")

    async with Container() as box:
        unregister = box.register("late", late)
        asked = [asyncio.create_task(box.require("late")) for _ in range(2)]
        await settle()
        unregister()
        gate.set()
        assert await asyncio.gather(*asked) == ["late", "late"]
        await settle()
        assert log == ["late"]
        assert "late" not in box.debug_info()
    assert log == ["late"]


@pytest.mark.covers("N542")
async def test_what_is_taken_out_while_it_is_made_is_not_made_again(log: list[str]) -> None:
    """A service declared with `lazy=False` that is taken out while it is made is closed and never made anew."""
    gate = asyncio.Event()
    state = Container.State({"n": 0})

    async def late(ctx: FactoryContext) -> object:
        log.append("making")
        ctx.on_cleanup(lambda: log.append("closed"))
        await gate.wait()
        return ctx.select(lambda data: data["n"])

    async with Container(state=state) as box:
        unregister = box.register("late", late, lazy=False)
        unregister()
        gate.set()
        await box.ready()
        assert log == ["making", "closed"]
        await state.set({"n": 1})
        await box.ready()
    assert log == ["making", "closed"]


@pytest.mark.covers("N542")
async def test_what_asked_for_something_goes_on_with_it_when_that_is_taken_out() -> None:
    """A build that waits for a service which is taken out meanwhile is told how that one's build failed."""
    gate = asyncio.Event()

    async def base() -> object:
        await gate.wait()
        raise LookupError("sold out")

    async with Container() as box:
        unregister = box.register("base", base)
        box.register("top", lambda ctx, base: ("top", base))
        asked = asyncio.create_task(box.require("top"))
        await settle()
        unregister()
        other = asyncio.create_task(box.require("top"))
        await settle()
        gate.set()
        for task in (asked, other):
            with pytest.raises(LookupError, match="sold out"):
                await task
        with pytest.raises(NotFoundError, match="base"):
            await box.require("top")


async def test_a_container_tells_the_same_of_what_was_made_the_quick_way() -> None:
    """What a service depends on is told alike, whether a record was kept when it was made or not."""
    told = []
    for quick in (True, False):
        async with Container() as box:
            box.register("base", object)
            box.register("part", lambda base: ("part", base), scope="transient")
            box.register("whole", lambda part: ("whole", part))
            if not quick:
                box.observe()
            await box.require("whole")
            told.append(box.debug_info()["whole"]["dependencies"])
            await box.invalidate("base")
            assert box.peek("whole") is None
    assert told == [["part"], ["part"]]


# -- told once -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("N80")
async def test_a_commit_that_several_containers_follow_rebuilds_each_service_once() -> None:
    """All that a commit makes stale is so before the first of it is made anew, whoever heard of the commit first."""
    made: list[tuple[int, int]] = []
    state = Container.State({"n": 0})

    def number(ctx: FactoryContext) -> Any:
        return ctx.select(lambda data: data["n"])

    def top(ctx: FactoryContext, base: Any) -> object:
        made.append((number(ctx), base))
        return object()

    run = Container("run", level=Scope.RUN, state=state)
    fork = Container("fork", level=Scope.TRANSIENT, parents=[run])
    run.register("base", number)
    fork.register("first", number)
    fork.register("top", top)
    await fork.require("first")
    await fork.require("top")
    fork.watch("top").subscribe(lambda _: None)
    await state.set({"n": 1})
    await fork.ready()
    assert made == [(0, 0), (1, 1)]
    await fork.dispose()
    await run.dispose()


async def test_who_watches_a_service_hears_nothing_of_a_namesake() -> None:
    """A transient that was asked for before another service took its name is not told to those who watch that."""
    gate = asyncio.Event()
    told: list[str] = []

    async def part() -> object:
        await gate.wait()
        return object()

    async with Container() as box:
        unregister = box.register("part", part, scope="transient")
        asked = asyncio.create_task(box.require("part"))
        await settle()
        unregister()
        box.register("part", object)
        box.watch("part").subscribe(lambda change: told.append(change.event))
        gate.set()
        await asked
        assert told == []
        await box.require("part")
        assert told == ["built"]
