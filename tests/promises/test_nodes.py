"""Several nodes on one database: they share the work, and none does what is another's."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from piecework import Settings, Stage, Transient, WaitFor, Workflow, pause
from piecework.clock import SECOND
from piecework.errors import NotFoundError
from piecework.run.retention import Retention
from piecework.store.items import Claim, RegisterRoutes, TakeOver
from piecework.store.postgres import PostgresStore
from piecework.store.records import NodeRow
from piecework.telemetry import signals
from piecework.testing.clock import VirtualClock

from .flows import Gate, flow, keep, paused, run_id_of

pytestmark = pytest.mark.engines("postgres")
LIMIT = 20
QUICK = Settings(lease_seconds=1.5, heartbeat_seconds=0.3)


def counting(seen, node, *, hold=None):
    """A workflow whose step tells which node did it."""

    async def work(ctx):
        seen.append((node, ctx.run_id))
        if hold is not None:
            await hold.wait()

    return flow(work)


@pytest.mark.covers("N56")
async def test_two_nodes_share_the_work(make_app):
    """Every run is done once, whichever node does it; a node that has its hands full leaves the rest to the other."""
    seen, hold = [], asyncio.Event()
    mode = Transient(concurrency=2000, capacity=0)
    async with (
        make_app(counting(seen, "one", hold=hold), mode=mode) as one,
        make_app(counting(seen, "two", hold=hold), mode=mode) as two,
    ):
        receipts = await asyncio.gather(*(one.publish("go") for _ in range(700)))
        while len(seen) < 700:  # a node takes at most 500
            await asyncio.sleep(0)
        hold.set()
        ids = [run_id_of(receipt) for receipt in receipts]
        results = await asyncio.gather(*(two.runtime.wait(run_id, timeout_seconds=LIMIT) for run_id in ids))
    assert all(result.ok for result in results)
    assert sorted(run_id for _, run_id in seen) == sorted(ids)
    assert {node for node, _ in seen} == {"one", "two"}


@pytest.mark.covers("N57")
async def test_what_a_dead_node_had_is_taken_over(make_app, hearts):
    """When a node says nothing more its runs go on elsewhere once its lease has ended; its late write is refused."""
    seen, hold = [], asyncio.Event()
    async with make_app(counting(seen, "one", hold=hold), settings=QUICK) as one:
        run_id = run_id_of(await one.publish("go"))
        while not seen:
            await asyncio.sleep(0)
        await silence(one, hearts)
        async with make_app(counting(seen, "two"), settings=QUICK) as two:
            assert (await two.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
            before = await two.runtime.timeline(run_id)
            hold.set()  # the zombie comes to its end now
            while one.node.in_flight:
                await asyncio.sleep(0)
            assert await two.runtime.timeline(run_id) == before
    assert [node for node, _ in seen] == ["one", "two"]


@pytest.fixture
def hearts(monkeypatch):
    """The heartbeats of the stores that this test opens."""
    made, make = {}, PostgresStore.heartbeat

    def keep(store, *args, **options):
        made[store] = make(store, *args, **options)
        return made[store]

    monkeypatch.setattr(PostgresStore, "heartbeat", keep)
    return made


async def silence(app, hearts):
    """Makes a node say nothing more: it neither renews its lease nor looks after others or claims."""
    submit = app.store.run

    async def mute(verb, item, decide, now, then=None):
        if isinstance(item, Claim | TakeOver):
            return []
        return await submit(verb, item, decide, now, then)

    app.store.run = mute
    await hearts[app.store].stop()


@pytest.mark.covers("N58")
async def test_a_living_node_keeps_what_it_has(make_app, hearts):
    """A run that takes longer than the lease stays its node's, for as long as that node lives."""
    seen, gate = [], Gate()

    async def work(ctx):
        seen.append(ctx.attempt)
        await gate(ctx)

    async with make_app(flow(work), settings=QUICK) as one, make_app(flow(work), settings=QUICK) as two:
        run_id = run_id_of(await one.publish("go"))
        await gate.reached.get()
        await two_leases(hearts[two.store])
        gate.open.set()
        assert (await two.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert seen == [1]


@pytest.mark.covers("N58")
async def test_a_node_that_is_closed_keeps_what_still_runs(make_app, hearts):
    """A run that is given its time to end while its node closes is not taken over, however short the lease is."""
    seen, gate = [], Gate()

    async def work(ctx):
        seen.append(ctx.attempt)
        await gate(ctx)

    one = make_app(flow(work), settings=QUICK)
    async with make_app(flow(work), settings=QUICK) as two:
        await one.__aenter__()
        await two.runtime.deregister("flow")
        run_id = run_id_of(await one.publish("go"))
        await gate.reached.get()
        await two.runtime.register(flow(work))
        closing = asyncio.ensure_future(one.__aexit__(None, None, None))
        await two_leases(hearts[two.store])
        gate.open.set()
        await closing
        assert (await two.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        nodes = await two.store.read("nodes", {}, NodeRow)
        assert [node.node_id for node in nodes] == [two.node_id]
    assert seen == [1]


async def two_leases(heart):
    """Waits until a node has renewed its lease for as long as two of them last."""
    beats = asyncio.Queue()
    heart._on_renewed = beats.put_nowait
    for _ in range(round(2 * QUICK.lease_seconds / QUICK.heartbeat_seconds)):
        await asyncio.wait_for(beats.get(), LIMIT)


@pytest.mark.covers("N59")
async def test_an_abort_reaches_the_node_that_has_the_run(make_app):
    """`abort` on one node ends a run that executes on another."""
    gate = Gate()
    async with make_app(flow(gate)) as one:
        run_id = run_id_of(await one.publish("go"))
        await gate.reached.get()
        async with make_app() as two:
            assert await two.runtime.abort(run_id, "enough")
            result = await two.runtime.wait(run_id, timeout_seconds=LIMIT)
    assert result.error.code == "ABORTED"


@pytest.mark.covers("N60")
async def test_a_workflow_that_moves_is_not_retired_on_its_way(make_app):
    """A workflow that one node gives up while another registers it goes on finding its events."""
    async with make_app(flow()) as two, make_app() as one:
        submit = one.store.run

        async def interrupted(verb, item, *rest):
            outcome = await submit(verb, item, *rest)
            if isinstance(item, RegisterRoutes):
                await two.runtime.deregister("flow")
            return outcome

        one.store.run = interrupted
        await one.runtime.register(flow())
        (info,) = await two.runtime.registered()
        assert (info.workflow_id, info.nodes) == ("flow", [one.node_id])
        (result,) = (await two.publish("go")).dispatched
        assert result.outcome == "pending"
        while not (runs := await one.runtime.list_all_runs()):
            await one.runtime.registered()
        assert (await one.runtime.wait(runs[0].run_id, timeout_seconds=LIMIT)).ok


async def test_an_event_wakes_a_run_wherever_it_was_published(make_app):
    """A run that one node parked is woken by an event that another accepted, and goes on on either."""
    waits = Workflow("flow", on="go", stages=[Stage("ask", wait=WaitFor("yes", id=7)), Stage("after")])
    async with make_app(waits) as one, make_app(waits) as two:
        run_id = await paused(one, await one.publish("go"))
        outcomes = [result.outcome for result in (await two.publish("yes", {"id": 7})).dispatched]
        assert outcomes == ["resumed"]
        assert (await one.runtime.wait(run_id, timeout_seconds=LIMIT)).ok


async def test_a_node_that_stops_leaves_its_runs_to_others_at_once(make_app):
    """A node that is closed gives its runs back: the other does not wait for a lease to end."""
    seen, hold = [], asyncio.Event()
    async with make_app(counting(seen, "two")) as two:
        await two.runtime.deregister("flow")
        async with make_app(counting(seen, "one", hold=hold), settings=Settings(close_timeout_seconds=0.1)) as one:
            run_id = run_id_of(await one.publish("go"))
            while not seen:
                await asyncio.sleep(0)
            await two.runtime.register(counting(seen, "two"))
        assert (await two.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert [node for node, _ in seen] == ["one", "two"]


@pytest.mark.covers("N72")
async def test_an_inbox_row_that_cannot_be_read_holds_nobody_up(make_app, store, monkeypatch):
    """A row that somebody wrote by hand and that is no event is shown and tried again later; others are accepted."""
    told = []
    monkeypatch.setattr(signals, "emit", lambda signal, **fields: told.append((signal, fields.get("what"))))
    async with make_app(flow()) as app:
        async with await psycopg.AsyncConnection.connect(store) as connection:
            await connection.execute(
                "INSERT INTO piecework.event_inbox (event_id, type, space, payload, published_at, hops) "
                "VALUES ('bad', 'go', NULL, '\\xff', 0, 0), ('good', 'go', NULL, '{\"n\":1}', 0, 0)"
            )
            await connection.execute("SELECT pg_notify('piecework', 'inbox')")
        while not (runs := await app.runtime.list_all_runs()):
            pass  # each look is a round trip, and the dispatcher has its turns
        assert (await app.runtime.wait(runs[0].run_id, timeout_seconds=LIMIT)).unwrap().state["n"] == 1
        assert (await app.publish("go", {"n": 2})).dispatched[0].outcome == "started"
    assert (signals.NODE_TROUBLE, "accepting from the inbox") in told


@pytest.mark.engines("sqlite", "postgres")
@pytest.mark.parametrize("run_id", ["no\x00run", "no\ud800run", "x" * 600, ""])
async def test_what_cannot_be_an_id_is_not_there(make_app, run_id):
    """An id that no run can have is NOT_FOUND at every door, on either engine."""
    async with make_app() as app:
        for ask in (app.runtime.get, app.runtime.state, app.runtime.timeline, app.runtime.abort, app.runtime.wait):
            with pytest.raises(NotFoundError):
                await ask(run_id)
        assert (await app.runtime.resume(run_id)).error.code == "NOT_FOUND"
        assert await app.runtime.watch("flow", run_id) is None


@pytest.mark.covers("N73")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_run_knows_its_event_however_long_it_pauses(make_app, store):
    """A run that goes on after `dedup_seconds` still has the id of the event that started it."""
    seen = []
    stages = [Stage("ask", router=pause()), Stage("after", steps=[keep(seen, lambda ctx: ctx.event.id)])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", id="order-1"))
        late = VirtualClock(app.node.now() + 10 * 86_400 * SECOND)
        await Retention(app.store, late, retention_seconds=86_400, dedup_seconds=60).forget()
        assert (await app.runtime.resume(run_id)).ok
    assert seen == ["order-1"]
