from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar

import pytest

from piecework import Serialized, Service
from piecework.errors import ConflictError, DuplicateKeyError, StoppedError, StoreError, StoreUnavailableError
from piecework.store.records import NodeRow, RouteRow, WorkflowRow
from piecework.store.values import decode

from .flows import ended, flow, keep, run_id_of

_counted: ContextVar[bool] = ContextVar("counted", default=False)


class Thing:
    """Something that a service is."""


class Trouble:
    """Does something to one of the store's calls that a registration makes; the others are as ever.

    `before` fails it, `after` loses its answer, `late` does it when it may `go_on`, also for a caller who has gone, and
    `held` fails it then.
    """

    def __init__(self, app, number, how):
        self._number, self._how = number, how
        self._store, self._calls = app.store, 0
        self.met, self.reached, self.go_on = False, asyncio.Event(), asyncio.Event()

    async def of(self, work):
        """Awaits a registration that meets it."""
        _counted.set(True)
        for name in ("run", "read"):
            setattr(self._store, name, self._in_the_way_of(getattr(self._store, name)))
        try:
            return await work
        finally:
            del self._store.run, self._store.read
            _counted.set(False)

    def _in_the_way_of(self, method):
        async def call(*args):
            if not _counted.get():
                return await method(*args)
            self._calls += 1
            if self._calls != self._number:
                return await method(*args)
            self.met = True
            self.reached.set()
            if self._how == "before":
                raise StoreError("the disk has a hole")
            if self._how == "late":
                return await asyncio.shield(asyncio.create_task(self._late(method, args)))
            if self._how == "held":
                await self.go_on.wait()
                raise StoreError("the disk has a hole")
            await method(*args)
            raise StoreUnavailableError("the answer was lost", unknown=True)

        return call

    async def _late(self, method, args):
        await self.go_on.wait()
        return await method(*args)


async def busy(app):
    """Writes so often that whatever does not wait for anything has long been written too."""
    for _ in range(10):
        await app.publish("busy")


async def standing(app):
    """What the store and the node have of workflows."""
    rows = await app.store.read("list_workflows", {}, WorkflowRow)
    ids = [row.workflow_id for row in rows]
    routes = await app.store.read("routes_of_workflows", {"workflow_ids": ids}, RouteRow)
    nodes = await app.store.read("living_nodes", {"now": app.node.now()}, NodeRow)
    told = [[name for name in decode(node.workflows) if not name.startswith("job:")] for node in nodes]
    return rows, routes, told, app.runtime.list_workflows()


def eager(log):
    """A service that is there from the registration on; `log` has what became of it."""

    def thing(ctx):
        log.append("built")
        ctx.on_cleanup(lambda: log.append("closed"))
        return Thing()

    return Service("thing", thing, lazy=False)


@pytest.mark.covers("N92")
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_registration_that_fails_leaves_nothing(make_app, how):
    """Whatever call to the store fails, or loses its answer, while a workflow is registered: nothing of it stays."""
    async with make_app() as app:
        before = await standing(app)
        failed = 0
        while True:
            log = []
            trouble = Trouble(app, failed + 1, how)
            try:
                await trouble.of(app.runtime.register(flow(services=[eager(log)])))
            except StoreError:
                failed += 1
            else:
                break
            assert await standing(app) == before
            assert log == ["built", "closed"]
            assert (await app.publish("go")).dispatched == []
        assert failed >= 5, "its word, its routes, its slots, its word again, what was left"
        assert not trouble.met
        assert (await ended(app, await app.publish("go"))).ok


@pytest.mark.covers("N92")
@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_registration_that_fails_leaves_what_was_there(make_app, gate, how):
    """When a newer version cannot be registered, the routes of the older one stand, and what waits for it waits on."""
    old = {"version": "1", "id": "flow"}
    async with make_app(flow(gate, **old)) as app:
        left = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await app.node.stop(0)  # which gives the run back, for whoever registers its workflow again
    gate.open.set()
    async with make_app() as app:
        assert (await app.publish("go")).dispatched[0].outcome == "pending"
        before = await standing(app)
        failed = 0
        while True:
            try:
                newer = flow(gate, on="come", id="flow", version="2")
                await Trouble(app, failed + 1, how).of(app.runtime.register(newer))
            except StoreError:
                failed += 1
            else:
                break
            assert await standing(app) == before
            (info,) = await app.runtime.registered()
            assert (info.version, info.events, info.pending) == ("1", ["go"], 1)
        assert failed >= 5
        (info,) = await app.runtime.registered()
        assert (info.version, info.events) == ("2", ["come"])
        assert (await app.runtime.wait(left, timeout_seconds=20)).ok


@pytest.mark.covers("N92")
async def test_a_registration_that_is_cancelled_leaves_nothing(make_app):
    """However far a registration has come when its caller is cancelled: nothing of it stays."""
    async with make_app() as app:
        before = await standing(app)
        for number in range(1, 100):
            log = []
            trouble = Trouble(app, number, "late")
            task = asyncio.create_task(trouble.of(app.runtime.register(flow(services=[eager(log)]))))
            reached = asyncio.create_task(trouble.reached.wait())
            await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                reached.cancel()
                break
            task.cancel()
            await busy(app)
            trouble.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await standing(app) == before
            assert log == ["built", "closed"]
        assert number > 5
        await task
        assert app.runtime.has_workflow("flow")


@pytest.mark.covers("N92")
async def test_runs_that_it_started_are_given_back(make_app, gate):
    """When a registration fails late, runs that go on already are interrupted: they wait for the next."""
    async with make_app(flow(gate)) as app:
        left = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await app.node.stop(0)
    async with make_app() as app:
        trouble = Trouble(app, 4, "held")
        task = asyncio.create_task(trouble.of(app.runtime.register(flow(gate))))
        await trouble.reached.wait()
        app.node.wake()
        assert await gate.reached.get() == left
        trouble.go_on.set()
        with pytest.raises(StoreError, match="hole"):
            await task
        assert app.node.in_flight == 0
        gate.open.set()
        await app.runtime.register(flow(gate))
        assert (await app.runtime.wait(left, timeout_seconds=20)).ok


@pytest.mark.covers("N92")
async def test_no_other_registration_unsays_it_on_its_way(app):
    """While a workflow is being registered, another one that comes or goes does not unsay it."""
    await app.runtime.register(flow(id="goes", on="come"))
    trouble = Trouble(app, 3, "late")
    task = asyncio.create_task(trouble.of(app.runtime.register(flow())))
    await trouble.reached.wait()
    others = asyncio.gather(app.runtime.register(flow(id="comes", on="come")), app.runtime.deregister("goes"))
    await busy(app)
    assert ["flow"] in [[name for name in names if name == "flow"] for names in (await standing(app))[2]]
    trouble.go_on.set()
    await asyncio.gather(task, others)
    assert sorted((await standing(app))[2][0]) == ["comes", "flow"]


@pytest.mark.covers("N92")
async def test_a_service_that_fails_leaves_nothing(app):
    """When a service of the workflow fails while it is registered, those before it are closed and nothing stays."""
    before, log = await standing(app), []

    def broken():
        raise RuntimeError("no such host")

    services = [eager(log), Service("broken", broken, lazy=False)]
    with pytest.raises(RuntimeError, match="no such host"):
        await app.runtime.register(flow(services=services))
    assert (await standing(app), log) == (before, ["built", "closed"])


@pytest.mark.covers("N92")
@pytest.mark.parametrize("end", ["cancel", "stop"])
async def test_a_registration_that_is_cut_off_while_it_builds(app, end):
    """A registration whose caller is cancelled, or whose runtime stops, while a service is built is undone."""
    log, building = [], asyncio.Event()

    async def slow(ctx, thing):
        building.set()
        await asyncio.Event().wait()

    before = await standing(app)
    services = [eager(log), Service("slow", slow, lazy=False)]
    task = asyncio.create_task(app.runtime.register(flow(services=services)))
    await building.wait()
    if end == "cancel":
        task.cancel()
    else:
        await app.runtime.stop()
    with pytest.raises(asyncio.CancelledError if end == "cancel" else StoppedError):
        await task
    assert (await standing(app), log) == (before, ["built", "closed"])


@pytest.mark.covers("N92")
async def test_of_two_registrations_at_once_one_wins(app):
    """Of two calls at once that register one id, one does and the other gets CONFLICT; nothing of that one stays."""
    logs = [], []
    calls = (app.runtime.register(flow(services=[eager(log)])) for log in logs)
    first, second = await asyncio.gather(*calls, return_exceptions=True)
    assert first is None
    assert isinstance(second, ConflictError)
    assert "flow" in second.message
    assert logs == (["built"], [])
    assert (await ended(app, await app.publish("go"))).ok
    with pytest.raises(ConflictError):
        await app.runtime.register(flow())


@pytest.mark.covers("N92")
async def test_registrations_of_many_at_once_all_stand(app):
    """Workflows that are registered and deregistered side by side do not unsay each other."""
    names = [f"flow-{number}" for number in range(8)]
    await asyncio.gather(*(app.runtime.register(flow(id=name, on=name)) for name in names))
    more = (app.runtime.register(flow(id=f"{name}-more", on=name)) for name in names)
    await asyncio.gather(*more, *(app.runtime.deregister(name) for name in names))
    wanted = [f"{name}-more" for name in names]
    assert [(info.workflow_id, info.nodes) for info in await app.runtime.registered()] == [
        (name, [app.node_id]) for name in wanted
    ]


@pytest.mark.covers("N92")
@pytest.mark.parametrize("ids", [("a", "a"), ("fine", "__env__")])
async def test_a_repeated_or_reserved_id_leaves_nothing(app, ids):
    """A workflow with a reserved service, or with two of one id, of whatever scopes, is refused and nothing stays."""
    before, log = await standing(app), []
    services = [Service(ids[0], lambda: log.append("built"), lazy=False), Service(ids[1], Thing, scope="run")]
    with pytest.raises(DuplicateKeyError, match=ids[1]):
        await app.runtime.register(flow(services=services))
    assert (await standing(app), log) == (before, [])


@pytest.mark.covers("N92")
async def test_what_cannot_be_undone_is_told(app, caplog):
    """When the store stays away, the first error comes out, with a note of what could not be undone, and is shown."""

    async def away(*args):
        raise StoreError("the disk has gone")

    app.store.run = away
    try:
        with caplog.at_level(logging.ERROR, "piecework"), pytest.raises(StoreError, match="has gone") as caught:
            await app.runtime.register(flow())
    finally:
        del app.store.run
    assert any("undoing the registration of workflow 'flow'" in note for note in caught.value.__notes__)
    assert any("undoing the registration of workflow 'flow'" in record.getMessage() for record in caplog.records)
    assert not app.runtime.has_workflow("flow")
    await app.runtime.register(flow(), mode=Serialized())


@pytest.mark.covers("N93")
async def test_a_workflow_may_hide_a_service_of_the_app(make_app, caplog):
    """A workflow's service may have the id of one of the app's: its runs see its own; it is logged."""
    seen = []
    step = keep(seen, lambda ctx: ctx.require("thing"))
    own = flow(step, id="own", on="go", services=[Service("thing", lambda: "the workflow's")])
    services = [Service("thing", lambda: "the app's")]
    with caplog.at_level(logging.INFO, "piecework"):
        async with make_app(own, flow(step, id="other", on="come"), services=services) as app:
            for event in ("go", "come"):
                (await ended(app, await app.publish(event))).unwrap()
    assert seen == ["the workflow's", "the app's"]
    (line,) = [record.msg for record in caplog.records if record.msg.event == "service.shadowed"]
    assert line.fields == {"workflow_id": "own", "service": "thing"}
