"""Promises about the services of paused runs: kept for a window, closed once, made anew where they are gone."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from piecework import Service, Settings, SingletonLoop, Stage, WaitFor, Workflow, pause

from .flows import asks, ended, nothing, paused


class Ledger:
    """A service of a run's own that knows how often it was made and closed."""

    made = closed = 0

    def __init__(self):
        type(self).made += 1


@pytest.fixture
def ledgers():
    """A run service, and what became of its instances."""

    class Mine(Ledger):
        """Counted by itself."""

    def open_ledger(ctx):
        def close():
            Mine.closed += 1

        ctx.on_cleanup(close)
        return Mine()

    Mine.service = Service("ledger", factory=open_ledger, scope="run")
    return Mine


def flow(ledgers, seen, *, wait=None, **options):
    """A workflow that uses its run service before and behind a pause."""

    async def use(ctx):
        ledger = await ctx.require("ledger")
        seen.append(id(ledger))
        ctx.logger.info("used")
        if options:
            await asks(ctx, "more", **options)

    stages = [
        Stage("a", steps=[use], **({"router": pause()} if options else {"wait": wait or WaitFor("more")})),
        Stage("b", steps=[use]),
    ]
    return Workflow("flow", on="go", stages=stages, services=[ledgers.service])


def hot(app):
    """Of how many paused runs the services are kept."""
    return len(app.runtime._executor.hot)


async def kept(app, count=1):
    """Waits until the services of so many paused runs are kept: the store may tell of the pause a turn before."""
    while hot(app) < count:
        await asyncio.sleep(0)


@pytest.mark.covers("N326")
async def test_a_run_that_is_resumed_soon_has_its_services(make_app, ledgers):
    """Within the window a resumed run goes on with the very instances that it had; they are closed at its end."""
    seen = []
    async with make_app(flow(ledgers, seen)) as app:
        run_id = await paused(app, await app.publish("go"))
        await kept(app)
        assert (hot(app), app.workspaces.open, ledgers.closed) == (1, 0, 0)
        await app.publish("more")
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok
        lines = [entry.type for entry in await app.runtime.timeline(run_id) if entry.source == "logger"]
        assert hot(app) == 0
    assert (seen[0], ledgers.made, ledgers.closed) == (seen[1], 1, 1)
    assert lines == ["log.info", "log.info"]


@pytest.mark.covers("N327")
async def test_the_services_are_closed_when_the_window_is_over(make_app, ledgers, clock):
    """When the window is over a paused run's services are closed, once; the run keeps its checkpoint and its waits."""
    seen = []
    async with make_app(flow(ledgers, seen), clock=clock, settings=Settings(pause_window_seconds=60)) as app:
        run_id = await paused(app, await app.publish("go"))
        await kept(app)
        await clock.advance(59)
        assert (hot(app), ledgers.closed) == (1, 0)
        await clock.advance(1)
        await _cold(app)
        assert ledgers.closed == 1
        await app.publish("more")
        assert (await app.runtime.wait(run_id)).ok
    assert (ledgers.made, ledgers.closed) == (2, 2)


async def _cold(app):
    """Waits until nothing is kept and nothing is being closed."""
    await app.runtime._executor.hot.drop_workflow("nothing")
    while hot(app) or app.runtime._executor.hot._closing:
        await asyncio.sleep(0)


@pytest.mark.covers("N328")
async def test_a_window_of_its_own(make_app, ledgers, clock):
    """`register(window_seconds=…)` says for one run how long its services are kept."""
    async with make_app(flow(ledgers, [], window_seconds=5), clock=clock) as app:
        await paused(app, await app.publish("go"))
        await kept(app)
        await clock.advance(5)
        await _cold(app)
        assert ledgers.closed == 1


@pytest.mark.covers("N329")
async def test_so_many_runs_and_no_more(make_app, ledgers):
    """Of more than `hot_runs_limit` paused runs those that paused first are closed, and go on all the same."""
    seen = []
    async with make_app(flow(ledgers, seen), settings=Settings(hot_runs_limit=2)) as app:
        runs = []
        for _ in range(3):
            runs.append(await paused(app, await app.publish("go")))
            await kept(app, min(len(runs), 2))
        assert hot(app) == 2
        assert (await app.runtime.resume(runs[0])).ok
        assert (ledgers.made, ledgers.closed, seen[0] == seen[3]) == (4, 2, False)


@pytest.mark.covers("E62")
async def test_a_window_that_ends_as_the_run_goes_on(make_app, ledgers, clock):
    """A window that ends at the moment of the resume: the services are kept or made anew, never both, closed once."""
    seen = []
    async with make_app(flow(ledgers, seen), clock=clock, settings=Settings(pause_window_seconds=60)) as app:
        for _ in range(10):
            run_id = await paused(app, await app.publish("go"))
            await kept(app)
            going_on = asyncio.ensure_future(app.runtime.resume(run_id))
            await clock.advance(60)
            while not going_on.done():  # a claim that found the row locked looks again a moment later, by this clock
                await clock.advance(0.5)
            assert going_on.result().unwrap().status == "completed"
            await _cold(app)
            assert ledgers.made == ledgers.closed


@pytest.mark.covers("E62")
async def test_services_of_another_claim_are_not_used(make_app, ledgers):
    """What was kept is good for the next claim of its run only: somebody who had the run since has changed it."""
    async with make_app(flow(ledgers, [])) as app:
        run_id = await paused(app, await app.publish("go"))
        await kept(app)
        rooms = app.runtime._executor.hot
        epoch = rooms._kept[run_id].epoch
        assert await rooms.take(run_id, epoch + 2) is None
        assert (hot(app), ledgers.closed) == (0, 1)
        assert (await app.runtime.resume(run_id)).ok
    assert (ledgers.made, ledgers.closed) == (2, 2)


@pytest.mark.parametrize("how", ["abort", "deregister", "close"])
async def test_what_ends_a_paused_run_closes_its_services(make_app, ledgers, how):
    """An abort, `deregister` and the end of the app close the services of paused runs, once."""
    async with make_app(flow(ledgers, [])) as app:
        run_id = await paused(app, await app.publish("go"))
        await kept(app)
        if how == "abort":
            assert await app.runtime.abort(run_id)
        elif how == "deregister":
            await app.runtime.deregister("flow")
        if how != "close":
            assert (hot(app), ledgers.closed) == (0, 1)
    assert (ledgers.made, ledgers.closed) == (1, 1)


async def test_an_event_that_ends_a_paused_run_closes_its_services(make_app):
    """The services of a paused run that an event replaces are closed at once, not when the window is over."""
    closed = asyncio.Queue()

    def open_port(ctx):
        ctx.on_cleanup(lambda: closed.put_nowait(ctx.run_id))
        return object()

    async def use(ctx):
        await ctx.require("port")

    stages = [Stage("a", steps=[use], wait=WaitFor("more")), Stage("b")]
    services = [Service("port", factory=open_port, scope="run")]
    replacing = SingletonLoop(on_busy="replace")
    async with make_app(Workflow("flow", on="go", stages=stages, services=services), mode=replacing) as app:
        run_id = await paused(app, await app.publish("go"))
        await kept(app)
        (result,) = (await app.publish("go")).dispatched
        assert (result.outcome, await asyncio.wait_for(closed.get(), 20)) == ("replaced", run_id)


async def test_a_run_that_ends_as_it_pauses_keeps_nothing(make_app, ledgers):
    """Services are not kept of a run that was ended between the commit of its pause and the end of its task."""
    async with make_app(flow(ledgers, [])) as app:
        executor, over = app.runtime._executor, asyncio.Event()
        settle = executor._settle

        async def ends_meanwhile(flight, error):
            ended = await settle(flight, error)
            await app.runtime.abort(flight.run.run_id)
            over.set()
            return ended

        executor._settle = ends_meanwhile
        await app.publish("go")
        await asyncio.wait_for(over.wait(), 20)
        await app.runtime._node.let_end("workflow", "flow")
        assert (hot(app), ledgers.made, ledgers.closed) == (0, 1, 1)


@pytest.mark.covers("N330")
async def test_nothing_is_kept_of_a_run_without_services(make_app):
    """Of a parked run without services of its own, or whose window is over, nothing at all is in memory."""
    wait = Workflow("flow", on="go", stages=[Stage("a", steps=[nothing], wait=WaitFor("more")), Stage("b")])
    async with make_app(wait) as app:
        await paused(app, await app.publish("go"))
        assert (hot(app), app.workspaces.open, app.runtime._executor.flights) == (0, 0, {})


@pytest.mark.covers("N330")
async def test_nothing_is_left_when_the_window_is_over(make_app, ledgers, clock):
    """When the window is over even the services' own objects are gone."""
    alive = []

    async def use(ctx):
        alive.append(weakref.ref(await ctx.require("ledger")))

    stages = [Stage("a", steps=[use], wait=WaitFor("more")), Stage("b")]
    mine = Workflow("flow", on="go", stages=stages, services=[ledgers.service])
    async with make_app(mine, clock=clock, settings=Settings(pause_window_seconds=60)) as app:
        await paused(app, await app.publish("go"))
        await kept(app)
        assert alive[0]() is not None
        await clock.advance(60)
        await _cold(app)
        gc.collect()
        assert alive[0]() is None


async def test_a_run_that_goes_on_at_once_keeps_its_services(make_app, ledgers):
    """A run that is woken from its buffer never lets go of its services."""
    seen = []

    async def use(ctx):
        seen.append(id(await ctx.require("ledger")))
        if len(seen) == 1:
            await asks(ctx, "more")
            await ctx.workspace.publish("more")

    stages = [Stage("a", steps=[use], router=pause()), Stage("b", steps=[use])]
    mine = Workflow("flow", on="go", stages=stages, services=[ledgers.service])
    async with make_app(mine) as app:
        assert (await ended(app, await app.publish("go"))).ok
    assert (seen[0], ledgers.made, ledgers.closed) == (seen[1], 1, 1)


async def test_a_replaced_run_lets_go_of_its_services(make_app, ledgers):
    """The services of a paused run that is replaced are closed with that: its successor may need what they hold."""
    async with make_app(flow(ledgers, []), mode=SingletonLoop(on_busy="replace")) as app:
        await paused(app, await app.publish("go"))
        await kept(app)
        (result,) = (await app.publish("go")).dispatched
        (await app.runtime.wait(result.run_id, until="paused", timeout_seconds=20)).unwrap()
        await kept(app)
        assert (hot(app), ledgers.made, ledgers.closed) == (1, 2, 1)
