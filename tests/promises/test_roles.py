# Of several processes with one store one is the node, and another takes its place when it goes.
# Annotations are evaluated as they stand: FastAPI reads them.
import asyncio
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

import piecework.blocking
from piecework import Event, Service, Settings, Workspace
from piecework.bridges.fastapi import piecework_workspace
from piecework.errors import ClosedError, InvalidStateError, NoNodeError, StoppedError
from piecework.telemetry import signals

from .flows import Gate, ended, flow, keep

FILE = pytest.mark.engines("sqlite")
PATIENT = Settings(connect_timeout_seconds=20)
PATIENCE_SECONDS = 20


class Told:
    """What nodes told: the names of all signals, and the fields of those of trouble."""

    def __init__(self):
        self.names = []
        self.trouble = asyncio.Queue()

    def __call__(self, signal, **fields):
        self.names.append(signal)
        if signal == signals.NODE_TROUBLE:
            self.trouble.put_nowait(fields)


@pytest.fixture
def told(monkeypatch):
    told = Told()
    monkeypatch.setattr(signals, "emit", told)
    return told


@pytest.fixture
def make_auto(make_app):
    """Opens an app in the role that it can have; the receiver may close it before the end of the test."""

    @asynccontextmanager
    async def open_auto(*workflows, **options):
        async with make_app(*workflows, **{"settings": PATIENT, **options}).open(role="auto") as app:
            yield app

    return open_auto


async def settled(*apps):
    """Waits until each has an answer of a node again: the one that there was has gone."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for app in apps:
            await app.runtime.registered()


@asynccontextmanager
async def opened(*opening):
    """Opens apps one after the other, each in a stack of its own."""
    async with AsyncExitStack() as all_of_them:
        pairs = []
        for one in opening:
            stack = await all_of_them.enter_async_context(AsyncExitStack())
            pairs.append((await stack.enter_async_context(one), stack))
        yield pairs


@pytest.mark.covers("N250")
async def test_each_knows_its_role(make_app, make_auto, engine):
    """Opened as auto, the first process is the node of a file and the others its clients; on a server all are nodes."""
    app = make_app()
    with pytest.raises(ClosedError):
        _ = app.role
    async with make_auto() as first, make_auto() as second, make_app().open(role="client") as client:
        assert [first.role, second.role, client.role] == [
            "node",
            "client" if engine == "sqlite" else "node",
            "client",
        ]


@FILE
@pytest.mark.covers("N251")
async def test_a_client_becomes_the_node_in_place(make_auto):
    """When the node goes, a client becomes it: its services, workspaces, subscriptions and kept doors go on."""
    made, ran, seen = [], [], []
    things = Service("thing", factory=lambda: made.append(1) or object())
    async with opened(make_auto(flow()), make_auto(flow(keep(ran, lambda ctx: ctx.event.id)), services=[things])) as (
        (_, first),
        (app, _),
    ):
        app.bus.subscribe("go", lambda event: seen.append(event.id))
        runtime, pieces = app.runtime, app.pieces
        async with app.workspace() as ws:
            thing = await ws.require("thing")
            await ended(app, await app.publish("go", id="a"))
            await first.aclose()
            await settled(app)
            assert app.role == "node"
            await ended(app, await ws.publish("go", id="b"))
            assert await ws.require("thing") is thing
        assert (await runtime.invoke("flow", "default", Event("go", {}, id="c"))).ok
        assert (runtime.list_workflows(), await pieces.list()) == (["flow"], [])
        assert app.runtime.has_workflow("flow")
        assert (await app.bus.emit(Event("go", {}, id="b"))).dispatched[0].outcome == "duplicate"
        assert app.store.url
    assert (ran, seen, made) == (["b", "c"], ["a", "b"], [1])


@FILE
@pytest.mark.covers("N251")
async def test_a_question_under_way_is_asked_of_the_new_node(make_auto):
    """Whoever waits at a client for a run of the node gets what it comes to in the client that took over."""
    first_gate, second_gate = Gate(), Gate()
    hasty = Settings(close_timeout_seconds=0.1)
    async with opened(make_auto(flow(first_gate), settings=hasty), make_auto(flow(second_gate))) as (
        (_, stack),
        (app, _),
    ):
        invoked = asyncio.ensure_future(app.runtime.invoke("flow", "default", Event("go", {}), run_id="r-1"))
        assert await first_gate.reached.get() == "r-1"
        waiting = asyncio.ensure_future(app.runtime.wait("r-1"))
        await stack.aclose()
        assert await second_gate.reached.get() == "r-1"
        second_gate.open.set()
        assert (await invoked).unwrap().status == "completed"
        assert (await waiting).ok
        assert app.role == "node"


@FILE
@pytest.mark.covers("N252")
async def test_of_two_clients_one_takes_over(make_auto):
    """Of several clients exactly one becomes the node; the others are its clients, and may follow it in turn."""
    async with opened(*(make_auto(flow()) for _ in range(3))) as ((_, stack), *others):
        await stack.aclose()
        apps = [app for app, _ in others]
        await settled(*apps)
        receipts = [await app.publish("go", id="a") for app in apps]
        assert sorted(app.role for app in apps) == ["client", "node"]
        assert receipts[1].dispatched[0].outcome == "duplicate"
        (node,) = [pair for pair in others if pair[0].role == "node"]
        (client,) = [app for app in apps if app is not node[0]]
        await node[1].aclose()
        await settled(client)
        assert client.role == "node"
        assert await ended(client, await client.publish("go", id="b"))


@FILE
@pytest.mark.covers("N253")
async def test_a_takeover_that_fails_is_told_and_tried_again(make_auto, told):
    """What keeps a client from taking over is told; the client stays one, and lets go of the file meanwhile."""
    tries = []

    async def ledger():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no ledger")
        return "ledger"

    eager = flow(services=[Service("ledger", factory=ledger, scope="workflow", lazy=False)])
    async with opened(make_auto(flow()), make_auto(eager)) as ((_, stack), (app, _)):
        child = app.spawn_in_new_workspace(asyncio.Event().wait)
        await stack.aclose()
        assert "no ledger" in (await told.trouble.get())["error"]["message"]
        assert (app.role, child.done) == ("client", False)
        await settled(app)
        assert app.role == "node"
        assert await ended(app, await app.publish("go"))
        child.cancel()
    assert (told.names.count(signals.NODE_LOST), len(tries)) == (1, 2)


@FILE
@pytest.mark.covers("N254")
async def test_an_event_waits_for_the_client_that_takes_over(make_app, make_auto):
    """An event for a workflow that the node does not have waits, and runs in the client that takes the node's place."""
    gate = Gate()
    async with make_app(flow()):
        pass
    async with opened(make_auto(), make_auto(flow(gate))) as ((_, stack), (app, _)):
        (result,) = (await app.publish("go", id="a")).dispatched
        assert (result.outcome, gate.reached.empty()) == ("pending", True)
        await stack.aclose()
        run_id = await gate.reached.get()
        gate.open.set()
        assert (await app.runtime.wait(run_id)).ok


@FILE
@pytest.mark.covers("N251")
async def test_closing_in_the_midst_of_a_takeover(make_auto):
    """A client that is closed while it takes over closes everything, and lets go of the file."""
    reached = asyncio.Event()

    async def ledger():
        reached.set()
        await asyncio.Event().wait()

    eager = flow(services=[Service("ledger", factory=ledger, scope="workflow", lazy=False)])
    async with opened(make_auto(flow()), make_auto(eager)) as ((_, first), (app, second)):
        await first.aclose()
        await reached.wait()
        await second.aclose()
        assert not app.is_open
        async with make_auto(flow()) as third:
            assert third.role == "node"


@FILE
async def test_a_node_opens_while_the_one_before_closes(make_app, make_auto):
    """A process that finds the file taken by a node that answers nobody takes it as soon as that one lets go."""
    async with opened(make_app().open()) as ((node, stack),):
        await node._parts.link.stop()
        auto = make_auto()
        opening = asyncio.ensure_future(auto.__aenter__())
        await asyncio.sleep(0)
        await stack.aclose()
        assert (await opening).role == "node"
        await auto.__aexit__(None, None, None)


@FILE
@pytest.mark.covers("N255")
async def test_a_web_application_opens_its_app(make_app):
    """`FastAPI(lifespan=app.lifespan)` opens the app with the web application, whose handlers find it."""
    app = make_app(flow())
    api = FastAPI(lifespan=app.lifespan)

    @api.post("/")
    async def publish(ws: Annotated[Workspace, Depends(piecework_workspace)]):
        receipt = await ws.publish("go")
        return [app.role, (await ended(app, receipt)).value.status]

    def visit():
        for _ in range(2):  # a test client after the other
            with TestClient(api) as client:
                assert client.post("/").json() == ["node", "completed"]

    await asyncio.to_thread(visit)
    assert not app.is_open


@FILE
@pytest.mark.covers("N251")
async def test_a_blocking_client_becomes_the_node(make_app, make_auto):
    """A synchronous client of role auto takes over as an asynchronous one does; kept doors go on."""
    lost, done = threading.Event(), threading.Event()

    def work():
        with piecework.blocking.open(make_app(flow(), settings=PATIENT), role="auto") as app:
            runtime, role = app.runtime, app.role
            lost.set()
            result = runtime.invoke("flow", "default", Event("go", {}))
            done.wait()
            return role, result.ok, runtime.invoke("flow", "default", Event("go", {})).ok, app.role

    async with opened(make_auto(flow())) as ((_, stack),):
        working = asyncio.ensure_future(asyncio.to_thread(work))
        await asyncio.to_thread(lost.wait)
        await asyncio.sleep(0)
        await stack.aclose()
        done.set()
        assert await working == ("client", True, True, "node")


@FILE
async def test_a_plain_client_stays_one(make_app):
    """A client that was opened as such never becomes the node: it says that there is none."""
    quick = Settings(connect_timeout_seconds=0.2)
    async with opened(make_app(flow()).open(), make_app(settings=quick).open(role="client")) as ((_, stack), (app, _)):
        await stack.aclose()
        with pytest.raises(NoNodeError):
            await app.publish("go")
        assert app.role == "client"
        with pytest.raises(InvalidStateError):
            _ = app.store


@pytest.mark.covers("E54")
async def test_a_stopped_runtime_stays_stopped(make_app):
    """Stopping a runtime twice is harmless, and to register with a stopped one is refused with STOPPED."""
    async with make_app(flow()) as app:
        await app.runtime.stop()
        await app.runtime.stop()
        with pytest.raises(StoppedError, match="stopped"):
            await app.runtime.register(flow(id="late"))
        assert app.runtime.list_workflows() == []


@FILE
@pytest.mark.covers("N259")
async def test_a_node_that_ends_answers_until_its_runs_have_ended(make_auto):
    """A node that ends in order takes events while it waits for its runs; the next one has them."""
    gate, ran = Gate(), asyncio.Queue()
    held = flow(gate, id="held", on="hold")

    async def note(ctx):
        ran.put_nowait(ctx.event.id)

    async with opened(make_auto(held, flow()), make_auto(held, flow(note))) as ((first, stack), (app, _)):
        await first.publish("hold")
        run_id = await gate.reached.get()
        closing = asyncio.ensure_future(stack.aclose())
        while not first.node._stopping:
            await asyncio.sleep(0)
        assert (await app.publish("go", id="a")).event_id == "a"
        assert not closing.done()
        gate.open.set()
        assert (await app.runtime.wait(run_id)).unwrap().status == "completed"
        await closing
        assert (await ran.get(), app.role) == ("a", "node")
