from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager

import pytest

from piecework import App, Event, Serialized, Service, Settings, Stage, WaitFor, Workflow
from piecework.client.doors import RemotePieces, RemoteRuntime
from piecework.errors import (
    AbortedError,
    InvalidStateError,
    NoNodeError,
    NotFoundError,
    TimeoutExceededError,
    ValidationError,
)
from piecework.process import linux
from piecework.space.service import PieceService
from piecework.store.looking import looking_at
from piecework.workflow.runtime import Runtime

from .apps.kinds import app as kinds
from .flows import flow, keep, run_id_of

QUICK = Settings(connect_timeout_seconds=0.2)
FILE = pytest.mark.engines("sqlite")
SERVER = pytest.mark.engines("postgres")


async def check(ctx):
    if ctx.state.get("bad"):
        raise ValueError("bad address")
    ctx.logger.info("checked", id=ctx.state.get("id"))


def order():
    """Waits for its approval, then checks."""
    stages = [Stage("review", wait=lambda ctx: WaitFor("order.approved")), Stage("check", steps=[check])]
    return Workflow("order", on="order.placed", stages=stages)


@pytest.fixture
def pair(make_app, engine):
    """Opens a node with some workflows, and a client of it, in one process."""

    @asynccontextmanager
    async def open_pair(*workflows, **options):
        # A server's clients invoke what they know; a file's ask its node.
        known = workflows if engine == "postgres" else ()
        async with make_app(*workflows, **options) as node, make_app(*known).open(role="client") as client:
            yield node, client

    return open_pair


async def published(client, run_ids, *args, **options):
    """Publishes by the client, whose event a node may still have to decide about; answers its run."""
    receipt = await client.publish(*args, **options)
    return await soon(client, receipt, run_ids)


async def soon(client, receipt, known=()):
    """The run of a receipt's event: named in it, or the next that appears."""
    if any(result.run_id for result in receipt.dispatched or ()):
        return run_id_of(receipt)
    async with asyncio.timeout(20):
        while True:
            new = [run.run_id for run in await client.runtime.list_all_runs() if run.run_id not in known]
            if new:
                return new[0]


async def paused_run(client, **payload):
    """A run of `order` that waits for its approval."""
    run_id = await published(client, (), "order.placed", payload, space="acme")
    assert (await client.runtime.wait(run_id, until="paused", timeout_seconds=20)).ok
    return run_id


# -- what crosses ------------------------------------------------------------------------------------------------


@pytest.mark.covers("N64")
async def test_a_client_publishes_and_the_node_runs(pair):
    """What a client publishes is durable when it returns, a node runs it, and the client sees what it came to."""
    ran = []
    async with pair(flow(keep(ran, lambda ctx: ctx.event.payload))) as (_, client):
        run_id = await published(client, (), "go", {"n": 1}, id="evt-1")
        result = await client.runtime.wait(run_id, timeout_seconds=20)
        assert result.unwrap().status == "completed"
        again = await client.publish("go", {"n": 1}, id="evt-1")
        assert {result.outcome for result in again.dispatched} == {"duplicate"}
    assert ran == [{"n": 1}]


@FILE
async def test_the_receipt_of_a_file_s_client_is_the_node_s(pair):
    """A client of a file's node gets the receipt that the node would give."""
    async with pair(flow()) as (_, client):
        (result,) = (await client.publish("go")).dispatched
        assert (result.outcome, result.workflow_id, result.trigger_id) == ("started", "flow", "default")
        assert (await client.runtime.get(result.run_id)).workflow_id == "flow"


@pytest.mark.parametrize(
    ("payload", "said"),
    [({"x": {1, 2}}, r"payload\.x"), ({"x": float("nan")}, r"payload\.x"), ({"__x": 1}, "reserved"), ([], "mapping")],
)
async def test_a_client_refuses_what_a_node_refuses(pair, payload, said):
    """A payload that is not acceptable is refused by the client, in the words of a node; nothing is stored."""
    async with pair(flow()) as (node, client):
        for app in (node, client):
            with pytest.raises(ValidationError, match=said):
                await app.publish("go", payload)
        assert await node.runtime.list_all_runs() == []


async def test_a_client_s_observers_see_what_it_publishes(pair):
    """Whoever watches the bus of a client sees the client's own events, once they are durable."""
    async with pair(flow()) as (_, client):
        seen = []
        client.bus.subscribe("*", seen.append)
        receipt = await client.bus.emit(Event("go", {"n": 1}, space="acme"))
        assert [(event.id, event.payload, event.space) for event in seen] == [(receipt.event_id, {"n": 1}, "acme")]


async def test_invoke_waits_for_what_the_run_comes_to(pair):
    """`invoke` on a client returns what the run came to on the node: its data, or the error of its own class."""
    async with pair(Workflow("check", on="x", stages=[Stage("only", steps=[check])])) as (node, client):
        good = await client.runtime.invoke("check", "default", Event("x", {"id": 7}))
        assert (good.value.status, good.value.state["id"], good.metadata.status) == ("completed", 7, "completed")
        bad = await client.runtime.invoke("check", "default", Event("x", {"bad": True}))
        there = await node.runtime.wait(bad.metadata.run_id)
        assert (type(bad.error), bad.error.message, bad.error.data) == (
            type(there.error),
            there.error.message,
            there.error.data,
        )
        assert bad.error.code == "EXECUTION_FAILED"


async def test_invoke_of_what_is_not_there_is_a_result(pair):
    """`invoke` of an unknown workflow or trigger is NOT_FOUND without metadata, and a bad event VALIDATION_ERROR."""
    async with pair(flow()) as (_, client):
        invoke = client.runtime.invoke
        results = [
            await invoke("flw", "default", Event("go")),
            await invoke("flow", "dfault", Event("go")),
            await invoke("flow", "default", Event("go", {"x": {1}})),
        ]
        told = [(result.error.code, result.metadata) for result in results]
    assert told == [("NOT_FOUND", None), ("NOT_FOUND", None), ("VALIDATION_ERROR", None)]


async def test_an_invoked_run_is_named_once(pair):
    """Two calls of `invoke` with one run id are one run."""
    ran = []
    async with pair(flow(keep(ran, lambda ctx: ctx.run_id))) as (_, client):
        for _ in range(2):
            result = await client.runtime.invoke("flow", "default", Event("go"), run_id="r-1")
            assert (result.value.status, result.metadata.run_id) == ("completed", "r-1")
    assert ran == ["r-1"]


async def test_a_client_resumes(pair):
    """`resume` on a client wakes a paused run and waits for what it comes to; one that has ended is INVALID_STATE."""
    async with pair(order()) as (_, client):
        run_id = await paused_run(client, id=7)
        result = await client.runtime.resume(run_id, {"ok": True})
        assert (result.value.status, result.value.state["ok"]) == ("completed", True)
        again = await client.runtime.resume(run_id)
        assert (again.error.code, again.metadata.status) == ("INVALID_STATE", "completed")


async def test_a_resume_repeated_under_its_token_is_one(pair):
    """The same `resume` twice, under one token, wakes the run once and answers both alike."""
    async with pair(order()) as (node, client):
        run_id = await paused_run(client)
        for _ in range(2):
            assert (await client.runtime.resume(run_id, token="t-1")).value.status == "completed"
        assert (await node.runtime.get(run_id)).resume_count == 1


async def test_a_client_aborts(pair, gate):
    """`abort` on a client ends a run that executes on the node; of a run that has ended it answers false."""
    async with pair(flow(gate)) as (_, client):
        run_id = await published(client, (), "go")
        assert await gate.reached.get() == run_id
        assert await client.runtime.abort(run_id, "no stock", token="t-1") is True
        result = await client.runtime.wait(run_id, timeout_seconds=20)
        assert isinstance(result.error, AbortedError)
        assert "no stock" in result.error.message
        assert await client.runtime.abort(run_id, token="t-1") is True
        assert await client.runtime.abort(run_id) is False


async def test_a_wait_that_takes_too_long_says_so(pair):
    """`wait` with a limit raises TIMEOUT on a client, and the run goes on."""
    async with pair(order()) as (_, client):
        run_id = await paused_run(client)
        with pytest.raises(TimeoutExceededError, match=f"{run_id} was not ended"):
            await client.runtime.wait(run_id, timeout_seconds=0.05)
        assert (await client.runtime.get(run_id)).status == "paused"


async def test_a_client_waits_longer_than_one_question(pair, gate, monkeypatch):
    """A client that waits for long asks again and again: nothing is lost between two questions."""
    monkeypatch.setattr("piecework.client.doors._WAIT_SECONDS", 0.01)
    async with pair(flow(gate)) as (_, client):
        run_id = await published(client, (), "go")
        waiting = asyncio.ensure_future(client.runtime.wait(run_id))
        with pytest.raises(TimeoutExceededError):
            await client.runtime.wait(run_id, timeout_seconds=0.1)
        gate.open.set()
        assert (await waiting).unwrap().status == "completed"


async def test_an_unknown_run_is_not_found(pair):
    """Every question of a client about a run that is not there is NOT_FOUND, as on a node; `watch` answers None."""
    async with pair(flow()) as (_, client):
        runtime = client.runtime
        for asked in (runtime.get, runtime.state, runtime.timeline, runtime.wait, runtime.abort):
            with pytest.raises(NotFoundError, match="no run 'none'") as caught:
                await asked("none")
            assert caught.value.run_id == "none"
        assert (await runtime.resume("none")).error.code == "NOT_FOUND"
        assert await runtime.watch("flow", "none") is None


async def test_what_a_client_sees_is_what_the_node_sees(pair):
    """Runs, their data and their timelines are the same on a client as on the node, to the class and the moment."""
    async with pair(order(), flow()) as (node, client):
        run_id = await paused_run(client, id=7)
        await client.runtime.invoke("flow", "default", Event("go"))
        for look in (
            lambda runtime: runtime.list_all_runs(),
            lambda runtime: runtime.list_all_runs(limit=1),
            lambda runtime: runtime.list_all_runs(status="paused", workflow="order", space="acme", kind="workflow"),
            lambda runtime: runtime.list_all_runs(cursor=run_id),
            lambda runtime: runtime.get(run_id),
            lambda runtime: runtime.watch("order", run_id),
            lambda runtime: runtime.watch("flow", run_id),
            lambda runtime: runtime.state(run_id),
            lambda runtime: runtime.timeline(run_id),
            lambda runtime: runtime.explain(run_id, Event("order.approved", {"id": 8})),
            lambda runtime: runtime.seek(run_id, 4),
        ):
            assert await look(client.runtime) == await look(node.runtime)
        assert client.runtime.list_workflows() == node.runtime.list_workflows() == ["order", "flow"]
        assert client.runtime.has_workflow("order")
        assert not client.runtime.has_workflow("none")


@FILE
async def test_long_listings_come_in_pages(pair, monkeypatch):
    """A listing that no frame carries crosses in pages, whole and in its order."""
    monkeypatch.setattr("piecework.desk_form._PAGE_BYTES", 1000)
    async with pair(flow()) as (node, client):
        for _ in range(7):
            await client.runtime.invoke("flow", "default", Event("go"))
        assert await client.runtime.list_all_runs() == await node.runtime.list_all_runs()
        runs = await client.runtime.list_all_runs(limit=5)
        assert runs == await node.runtime.list_all_runs(limit=5)
        monkeypatch.setattr("piecework.desk_form._PAGE_BYTES", 1)
        assert await client.runtime.timeline(runs[0].run_id) == await node.runtime.timeline(runs[0].run_id)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"status": "sleeping"}])
async def test_a_listing_that_makes_no_sense_is_refused(pair, wrong):
    """A limit below one and a status that there is not are refused on a client as on a node."""
    async with pair(flow()) as (_, client):
        with pytest.raises(ValidationError):
            await client.runtime.list_all_runs(**wrong)


async def test_a_mail_from_a_client_is_sent_by_the_node(pair):
    """`ws.send_mail` on a client makes a durable run, which the node carries out."""
    async with pair() as (node, client), client.workspace(space="acme") as ws:
        run_id = await (await ws.require("send_mail"))(to="ada@example.org", subject="Hi", text="Hello")
        assert (await client.runtime.wait(run_id, timeout_seconds=20)).unwrap().status == "completed"
        assert [letter["subject"] for letter in node.mail.messages] == ["Hi"]


async def test_an_unknown_job_is_not_found(pair):
    """A client's `enqueue` of a job that there is not is NOT_FOUND, with near names."""
    async with pair() as (_, client):
        with pytest.raises(NotFoundError, match="send-mail"):
            await client.enqueue("send-mial", {})


# -- what stays here ---------------------------------------------------------------------------------------------


async def test_a_client_is_a_whole_process_but_for_runs(make_app, database):
    """Services, workspaces, the application's database and what is spawned work in a client by themselves."""
    closed = []

    def thing(ctx):
        ctx.on_cleanup(lambda: closed.append("thing"))
        return "thing"

    async def use(ws):
        await ws.database.notes.insert(body=await ws.require("thing"))
        return (await ws.publish("go")).event_id

    async with make_app(flow()) as node:
        client = make_app(services=[Service("thing", thing)], database=database)
        async with client.open(role="client"):
            async with client.workspace() as ws:
                await ws.database.run("create table notes (id integer primary key, body text)")
            ids = [await client.run_in_new_workspace(use), await client.spawn_in_new_workspace(use).result()]
            async with client.workspace() as ws:
                assert [row.body for row in await ws.database.notes.all()] == ["thing", "thing"]
            assert closed == []
        assert closed == ["thing"]
        assert {result.outcome for id_ in ids for result in (await node.publish("go", id=id_)).dispatched} == {
            "duplicate"
        }


@FILE
async def test_a_file_s_client_has_no_store(pair):
    """`app.store`, `app.node` and `app.spaces` of a file's client say that the node has them, and what to use."""
    async with pair(flow()) as (node, client):
        for name in ("store", "node", "node_id", "spaces"):
            with pytest.raises(InvalidStateError, match=r"client of the node of .*state\.db.*app\.runtime"):
                getattr(client, name)
        assert node.store.path.exists()


@FILE
async def test_a_file_s_client_registers_nothing(pair):
    """Registering, deregistering and stopping are refused on a file's client: the node does that."""
    async with pair(flow()) as (node, client):
        for call in (client.runtime.register(flow(id="x")), client.runtime.deregister("flow"), client.runtime.stop()):
            with pytest.raises(InvalidStateError, match="register on the node"):
                await call
        assert node.runtime.list_workflows() == ["flow"]


@SERVER
async def test_a_server_s_client_knows_what_it_invokes(pair):
    """A workflow that is registered on a client of a server can be invoked there; events it does not get."""
    async with pair(flow()) as (_, client):
        await client.runtime.register(flow(id="other"))
        assert client.runtime.has_workflow("other")
        receipt = await client.publish("go")
        assert [result.workflow_id for result in receipt.dispatched] == ["flow"]
        await client.runtime.deregister("other")
        assert (await client.runtime.wait(await soon(client, receipt))).ok


def test_the_remote_doors_are_like_the_real_ones():
    """What a file's client has instead of runtime and pieces has the same names, arguments and answers."""
    for real, remote in ((Runtime, RemoteRuntime), (PieceService, RemotePieces)):
        names = {name for name, _ in inspect.getmembers(real, callable) if not name.startswith("_")}
        assert names == {name for name in vars(remote) if not name.startswith("_")}
        for name in names:
            assert inspect.signature(getattr(real, name)) == inspect.signature(getattr(remote, name)), name


# -- several processes on one server -----------------------------------------------------------------------------


async def started(app, number):
    """The runs of an app, once there are so many."""
    async with asyncio.timeout(20):
        while len(runs := await app.runtime.list_all_runs()) < number:
            pass  # another process does it; each look is a round trip
    return runs


@SERVER
async def test_an_event_of_a_client_is_decided_by_a_node(pair):
    """A client's event is pending when it is durable; a node that has the workflow starts its run, at once."""
    async with pair(flow()) as (_, client):
        (result,) = (await client.publish("go", id="evt-1")).dispatched
        assert (result.outcome, result.workflow_id, result.run_id) == ("pending", "flow", None)
        (run,) = await started(client, 1)
        (again,) = (await client.publish("go", id="evt-1")).dispatched
        assert (again.outcome, again.reason, again.run_id) == ("duplicate", "started", run.run_id)


@SERVER
async def test_a_node_is_told_of_what_waits_for_it(make_app, clock, gate):
    """A node does not have to look for what a client has published: it is told."""
    async with make_app(flow(gate), clock=clock), make_app().open(role="client") as client:
        for _ in range(2):  # its clock stands still, so it never looks by itself
            await client.publish("go")
            await asyncio.wait_for(gate.reached.get(), 20)
        gate.open.set()


@SERVER
async def test_news_that_are_lost_are_found(pair, gate):
    """A client that hears of nothing sees by itself what became of the run that it waits for."""
    async with pair(flow(gate)) as (_, client):
        client.store.listen(lambda topics: None)
        client.node.news.look = lambda run_ids: None
        waiting = asyncio.ensure_future(client.runtime.invoke("flow", "default", Event("go")))
        await gate.reached.get()
        gate.open.set()
        assert (await waiting).value.status == "completed"


@SERVER
async def test_a_client_resumes_what_it_does_not_know(make_app):
    """A client of a server that has no workflows resumes a run all the same: a node has its workflow."""
    async with make_app(order()), make_app().open(role="client") as client:
        run_id = await paused_run(client)
        assert (await client.runtime.resume(run_id)).value.status == "completed"


@SERVER
async def test_a_run_whose_workflow_no_node_has_stays_paused(make_app):
    """A client's `resume` of a run whose workflow no node has is NOT_FOUND, also where the client itself knows it."""
    async with make_app(order()) as node, make_app(order()).open(role="client") as client:
        run_id = await paused_run(client)
        await node.runtime.deregister("order")
        assert (await client.runtime.resume(run_id)).error.code == "NOT_FOUND"
        assert (await client.runtime.get(run_id)).status == "paused"


@SERVER
async def test_a_run_is_aborted_from_another_node(make_app, gate):
    """A run that executes on one node is aborted from another."""
    async with make_app(flow(gate)) as node, make_app() as other:
        run_id = run_id_of(await node.publish("go"))
        await gate.reached.get()
        assert await other.runtime.abort(run_id, "no stock") is True
        assert isinstance((await node.runtime.wait(run_id, timeout_seconds=20)).error, AbortedError)


@pytest.mark.covers("N67")
@SERVER
async def test_the_newest_version_decides(make_app):
    """Of two nodes the one with the newest version of a workflow decides its events, whoever accepts them."""
    asked = []
    old = flow(version="1", when=lambda event: asked.append("1") or True)
    new = flow(version="2", when=lambda event: asked.append("2") or True)
    async with make_app(old) as one, make_app(new) as two:
        for number, app in enumerate((one, two, one, two)):
            (result,) = (await app.publish("go", id=f"evt-{number}")).dispatched
            assert result.outcome == ("pending" if app is one else "started")
        runs = await started(two, 4)
        assert [run.version for run in runs] == ["2"] * 4
        assert asked.count("2") == 4


@pytest.mark.covers("N61")
@SERVER
async def test_nothing_is_lost_while_nobody_is_there(make_app):
    """What is published while no node has the workflow waits for one, and starts in the order of its coming."""
    numbers = []
    workflow = flow(keep(numbers, lambda ctx: ctx.event.payload["n"]))
    async with make_app(workflow):
        pass
    async with make_app().open(role="client") as client, make_app() as bare:
        for number, app in enumerate((client, bare, client)):
            (result,) = (await app.publish("go", {"n": number})).dispatched
            assert result.outcome == "pending"
        assert await client.runtime.list_all_runs() == []
        async with make_app(workflow, mode=Serialized()) as node:
            for run in await started(node, 3):
                assert (await node.runtime.wait(run.run_id, timeout_seconds=20)).ok
    assert numbers == [0, 1, 2]


@SERVER
async def test_deregistering_on_the_last_node_drops_what_waits(make_app):
    """When the last node that has a workflow deregisters it, the events that still waited for it are dropped."""
    async with make_app(flow(version="2")):
        pass
    async with make_app(flow(version="1")) as old, make_app().open(role="client") as client:
        (result,) = (await client.publish("go", id="evt-1")).dispatched
        assert result.outcome == "pending"  # for version 2, which may come back
        await old.runtime.deregister("flow")
        (again,) = (await client.publish("go", id="evt-1")).dispatched
        assert (again.outcome, again.reason) == ("duplicate", "dropped")
        assert (await client.publish("go")).dispatched == []
        async with make_app(flow(version="2")) as new:
            (result,) = (await client.publish("go", id="evt-2")).dispatched
            assert result.outcome == "pending"
            assert [run.version for run in await started(new, 1)] == ["2"]


# -- finding the node --------------------------------------------------------------------------------------------


@pytest.mark.covers("N65")
@FILE
async def test_without_a_node_a_client_says_how_to_start_one(make_app, tmp_path):
    """A client that finds no node in time is refused with NO_NODE and how to start one; nothing stays open."""
    before, folder = asyncio.all_tasks(), tmp_path / "nobody"
    folder.mkdir()
    with pytest.raises(NoNodeError, match="piecework serve"):
        async with make_app(store=f"sqlite:///{folder / 'none.db'}", settings=QUICK).open(role="client"):
            pass
    assert asyncio.all_tasks() == before
    assert not list(folder.iterdir())


@FILE
async def test_a_client_waits_until_a_node_is_there(make_app):
    """A client that is opened before its node waits for it."""

    async def ask():
        async with make_app().open(role="client") as client:
            return client.runtime.list_workflows()

    asking = asyncio.ensure_future(ask())
    await asyncio.sleep(0)
    async with make_app(flow()):
        assert await asking == ["flow"]


@pytest.mark.covers("N66")
@FILE
async def test_a_client_follows_the_node_s_successor(make_app, gate):
    """A client that waits for a run while its node stops goes on with the next node of the file."""
    async with make_app(flow(gate), settings=Settings(close_timeout_seconds=0)) as node:
        client = make_app()
        async with client.open(role="client"):
            run_id = run_id_of(await client.publish("go"))
            assert await gate.reached.get() == run_id
            waiting = asyncio.ensure_future(client.runtime.wait(run_id))
            invoked = asyncio.ensure_future(client.runtime.invoke("flow", "default", Event("go"), run_id="r-2"))
            assert await gate.reached.get() == "r-2"
            await node.__aexit__(None, None, None)
            gate.open.set()
            async with make_app(flow(gate), flow(id="new")) as successor:
                assert (await waiting).unwrap().status == "completed"
                assert (await invoked).metadata.run_id == "r-2"
                assert client.runtime.has_workflow("new")
                assert len(await successor.runtime.list_all_runs()) == 2


@FILE
async def test_a_client_whose_node_has_gone_says_so(make_app):
    """What a client asks for when its node has gone and none comes is NO_NODE; nothing was sent."""
    async with make_app(settings=QUICK) as node, make_app(settings=QUICK).open(role="client") as client:
        await node.__aexit__(None, None, None)
        with pytest.raises(NoNodeError, match="piecework serve") as caught:
            await client.publish("go")
        assert not caught.value.data.get("unknown")


# -- pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
async def test_pieces_are_registered_and_run_from_a_client(make_app, store, database, monkeypatch):
    """A client registers pieces, has them updated by the node's workers, and sees of them what the node sees."""
    kinds.configure(store=store, database=database, mail="outbox:", settings=Settings(space_grace_seconds=0.2))
    client = make_app()
    client._definitions.update(kinds._definitions)  # the same application, in another process
    async with kinds, client.open(role="client"):
        asked = {"space": "acme", "piece_id": "hn", "integration": "plain", "config": {"url": "x"}}
        assert await client.pieces.register(**asked) is True
        first = (await client.pieces.runs("acme", "hn"))[-1]
        assert (await client.runtime.wait(first.run_id, timeout_seconds=25)).ok
        info = await client.pieces.run_now("acme", "hn", wait=True)
        assert (info.kind, info.key, info.outcome, info.result["count"]) == ("piece", "hn", "success", 2)
        assert await client.pieces.list() == await kinds.pieces.list() == [await client.pieces.get("acme", "hn")]
        assert await client.pieces.list(space="other") == []
        await client.pieces.register(space="bcme", piece_id="hn", integration="sync", every_seconds=3600)
        await client.pieces.run_now("bcme", "hn", wait=True)
        for room in (10**6, 1):  # one piece, one update a page
            monkeypatch.setattr("piecework.desk_form._PAGE_BYTES", room)
            assert await client.pieces.list() == await kinds.pieces.list()
            updates = await client.pieces.runs("acme", "hn")
            assert updates == await kinds.pieces.runs("acme", "hn")
            assert await client.pieces.runs("acme", "hn", limit=1) == updates[:1]
        assert [update.outcome for update in updates] == [None, "success", "success"]
        assert [piece.space for piece in await client.pieces.list()] == ["acme", "bcme"]
        assert await client.pieces.register(**asked) is False
        assert await client.pieces.pause("acme", "hn", reason="holiday") is True
        assert (await kinds.pieces.get("acme", "hn")).desired_reason == "holiday"
        assert [await client.pieces.resume("acme", "hn"), await client.pieces.resume("acme", "hn")] == [True, False]
        await client.pieces.remove("acme", "hn")
        assert [piece.space for piece in await client.pieces.list()] == ["bcme"]


async def test_a_piece_that_is_not_there_is_not_found(pair):
    """Unknown integrations and pieces are NOT_FOUND on a client, and a configuration has to be JSON."""
    async with pair() as (_, client):
        with pytest.raises(NotFoundError, match="no integration 'feed'"):
            await client.pieces.register(space="acme", piece_id="x", integration="feed")
        doors = client.pieces
        for look in (doors.get, doors.runs, doors.run_now, doors.pause, doors.resume, doors.remove):
            with pytest.raises(NotFoundError):
                await look("acme", "none")


@FILE
async def test_a_configuration_is_checked_before_it_is_sent(pair):
    """What a frame would carry but is not JSON is refused by a file's client too."""
    async with pair() as (_, client):
        with pytest.raises(ValidationError, match=r"config\.x"):
            await client.pieces.register(space="acme", piece_id="x", integration="feed", config={"x": {1}})


@pytest.mark.engines("postgres")
async def test_a_client_makes_no_store(store):
    """A client that finds no store at its address says so, and makes none: a typo would swallow events."""
    with pytest.raises(NotFoundError, match="typo"):
        async with App("client", store=f"{store}?schema=typo").open(role="client"):
            pass
    with pytest.raises(NotFoundError):
        async with looking_at(f"{store}?schema=typo"):
            pass
