from __future__ import annotations

import asyncio

import pytest

from piecework import Service
from piecework.errors import ClosedError, NotFoundError, ValidationError
from piecework.services.job import Done, GaveUp
from piecework.workspace.calls import open_workspace

from .flows import ended, flow, keep

pytestmark = pytest.mark.covers("N94")


class Rates:
    """Something that a service is."""


class Shop:
    """Something that needs it."""

    def __init__(self, rates):
        self.rates = rates


@pytest.fixture
async def shop(make_app, database):
    """An open app with services that need each other."""
    app = make_app(database=database)

    @app.service(scope="app")
    def rates() -> Rates:
        return Rates()

    @app.service(scope="app")
    def shared(rates) -> object:
        return Shop(rates)

    @app.service(scope="run")
    async def cart(rates) -> Shop:
        return Shop(rates)

    async with app:
        yield app


async def of(ws):
    """What stands for the rates in a workspace."""
    return await ws.require("rates")


async def test_whoever_asks_gets_it(shop):
    """In its workspace a value stands for a service: by name, by type, as an attribute, as a parameter, for others."""
    fake, tables = object(), object()
    async with shop.workspace() as ws:
        with ws.override("rates", fake) as given, ws.override("database", tables):
            assert given is fake
            assert await ws.require("rates") is await ws.require(Rates) is ws.rates is fake
            assert await ws.run_in_new_workspace(lambda rates: rates) is fake
            assert await ws.run_in_new_workspace(_by_type) is fake
            assert (await ws.require("cart")).rates is fake
            assert ws.database is tables
        assert isinstance(await ws.require(Rates), Rates)
        assert ws.rates is not fake
        assert ws.database is not tables


def _by_type(found: Rates):
    return found


async def test_it_may_be_named_by_its_type(shop):
    """A service that is overridden by its type is so by its name too."""
    fake = Rates()
    async with shop.workspace() as ws:
        with ws.override(Rates, fake):
            assert await ws.require("rates") is fake


async def test_what_is_shared_never_has_it(shop):
    """A service of the app that is built meanwhile has the real ones: it outlives the workspace, and others have it."""
    fake = object()
    async with shop.workspace() as ws:
        with ws.override("rates", fake):
            assert (await ws.require("shared")).rates is not fake
    async with shop.workspace() as ws:
        assert (await ws.require("shared")).rates is await of(ws)


@pytest.mark.parametrize("end", [None, RuntimeError, asyncio.CancelledError])
async def test_it_ends_with_its_body(shop, end):
    """However the body ends, what was there before is there again: the service, or an override around it."""
    outer, inner = object(), object()
    async with shop.workspace() as ws:
        with ws.override("rates", outer):
            try:
                with ws.override("rates", inner):
                    assert await of(ws) is inner
                    if end is not None:
                        raise end
            except (RuntimeError, asyncio.CancelledError):
                pass
            assert await of(ws) is outer
            assert await ws.run_in_new_workspace(of) is outer
        assert isinstance(await of(ws), Rates)
        assert isinstance(await ws.run_in_new_workspace(of), Rates)


async def test_children_and_forks_inherit_it(shop):
    """What a workspace opens meanwhile has it too, for its whole life, and so have the children of that."""
    fake, seen = object(), []
    go_on = asyncio.Event()

    async def grandchild(ws):
        return await ws.run_in_new_workspace(of)

    async def later(ws):
        await go_on.wait()
        return await of(ws)

    async with shop.workspace() as ws:
        with ws.override("rates", fake):
            seen.append(await ws.run_in_new_workspace(of))
            seen.append(await ws.run_in_new_workspace(grandchild))
            seen += await ws.map_in_workspaces(lambda n, ws: of(ws), range(3), limit=2)
            handle = ws.spawn_in_new_workspace(later)
            async with ws.fork() as fork, fork.fork() as inner:
                seen += [await of(fork), await of(inner), await inner.run_in_new_workspace(of)]
        go_on.set()
        seen.append(await handle.result())
    assert seen == [fake] * 9


async def test_a_fork_keeps_its_own_to_itself(shop):
    """What is overridden in a fork is so in its own forks and children, not in what it is a fork of."""
    fake = object()
    async with shop.workspace() as ws, ws.fork() as fork, ws.fork() as other:
        with fork.override("rates", fake):
            async with fork.fork() as inner:
                assert await of(inner) is await of(fork) is await fork.run_in_new_workspace(of) is fake
            for beside in (ws, other):
                assert isinstance(await of(beside), Rates)
                assert isinstance(await beside.run_in_new_workspace(of), Rates)


async def test_two_at_once_see_their_own(shop):
    """Two tests at once override one service differently, and neither, nor anybody else, sees the other's."""
    meeting = asyncio.Barrier(3)

    async def test(fake):
        async with shop.workspace() as ws:
            with ws.override("rates", fake):
                await meeting.wait()
                found = [await of(ws), (await ws.require("cart")).rates, await ws.run_in_new_workspace(of)]
                await meeting.wait()
                return found

    async def bystander():
        await meeting.wait()
        found = await shop.run_in_new_workspace(of)
        await meeting.wait()
        return found

    one, two, theirs = await asyncio.gather(test("one"), test("two"), bystander())
    assert (one, two) == (["one"] * 3, ["two"] * 3)
    assert isinstance(theirs, Rates)


@pytest.fixture
def jobs(shop):
    """The jobs of the app, with one that says what stands for the rates in its workspace, and one that fails."""

    async def probe(attempt):
        async with open_workspace(shop, overrides=attempt.overrides) as ws:
            found = await of(ws)
            return Done(found if isinstance(found, str) else "the real ones")

    async def fails(attempt):
        return GaveUp(NotFoundError(f"{attempt.overrides}"))

    shop._parts.jobs._functions |= {"probe": probe, "fails": fails}
    return shop._parts.jobs


async def result_of(app, run_id):
    """What a job came to."""
    _ = (await app.runtime.wait(run_id, timeout_seconds=20)).ok
    return (await app.runtime.get(run_id)).result


async def test_jobs_inherit_it_until_they_have_ended(shop, jobs):
    """A job that is queued meanwhile has it, however much later it runs; then it is forgotten."""
    async with shop.workspace() as ws:
        with ws.override("rates", "the fake"):
            inside = await ws.enqueue_job("probe")
            child = await ws.run_in_new_workspace(lambda ws: ws.enqueue_job("probe"))
            failing = await ws.enqueue_job("fails")
        outside = await ws.enqueue_job("probe")
    found = [await result_of(shop, run_id) for run_id in (inside, child, failing, outside)]
    assert found == ["the fake", "the fake", None, "the real ones"]
    await asyncio.gather(*jobs._watchers)
    assert (jobs._overrides, jobs._watchers) == ({}, set())


async def test_a_job_that_is_never_queued_or_aborted_is_forgotten(shop, jobs):
    """Nothing is kept for a job that was refused, or that was aborted before it began."""
    async with shop.workspace() as ws:
        with ws.override("rates", "the fake"):
            with pytest.raises(NotFoundError):
                await ws.enqueue_job("prob")
            with pytest.raises(ValidationError):
                await ws.enqueue_job("probe", args=object())
            given = {"overrides": ws.container.overridden, "run_id": "later"}
            assert await shop.enqueue("probe", {}, delay_seconds=3600, **given) == "later"
            assert await shop.enqueue("probe", {}, delay_seconds=3600, **given) == "later"
    assert set(jobs._overrides) >= {"later"}
    await shop.runtime.abort("later")
    await asyncio.gather(*jobs._watchers)
    assert jobs._overrides == {}


async def test_closing_forgets_them(make_app, database):
    """An app that closes while a job waits leaves nothing behind for it."""
    async with make_app(database=database) as app:
        async with app.workspace() as ws:
            with ws.override("send_mail", "fake"):
                mail = {"to": "ada@example.org", "subject": "Hello"}
                await app.enqueue("send-mail", mail, delay_seconds=3600, overrides=ws.container.overridden)
        jobs = app._parts.jobs
        assert len(jobs._watchers) == 1
    assert (jobs._overrides, jobs._watchers) == ({}, set())


async def test_a_step_may_override(make_app):
    """In a step, what stands for a service of the app or the workflow does so in that step only."""
    seen = []

    async def overrides(ctx):
        ws = ctx.workspace
        with ws.override("own", "fake own"), ws.override("shared", "fake shared"):
            seen.append([await ctx.require("own"), await ctx.require("shared")])
            seen.append(await ws.run_in_new_workspace(lambda shared: shared))
            with pytest.raises(NotFoundError):
                await ws.run_in_new_workspace(lambda own: own)

    async def plain(ctx):
        return [await ctx.require("own"), await ctx.require("shared")]

    workflow = flow(overrides, keep(seen, plain), services=[Service("own", lambda: "own")])
    async with make_app(workflow, services=[Service("shared", lambda: "shared")]) as app:
        (await ended(app, await app.publish("go"))).unwrap()
    assert sorted(map(str, seen)) == sorted(map(str, [["fake own", "fake shared"], "fake shared", ["own", "shared"]]))


async def test_what_is_not_there_cannot_be_overridden(shop):
    """An unknown service is NOT_FOUND with near names, and a closed workspace is refused."""
    async with shop.workspace() as ws:
        with pytest.raises(NotFoundError, match="rates"), ws.override("ratse", 1):
            raise AssertionError
    with pytest.raises(ClosedError), ws.override("rates", 1):
        raise AssertionError
