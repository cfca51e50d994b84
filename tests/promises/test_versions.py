"""Versions of a workflow: a run goes on only under a definition that can carry it, and says what it waits for."""

from __future__ import annotations

import asyncio

import pytest

from piecework import Stage, Transient, WaitFor, Workflow, pause
from piecework.errors import StaleEpochError
from piecework.store.opening import store_for
from piecework.telemetry import signals
from piecework.testing.promises_claims import late_write
from piecework.testing.verbs import Verbs, node

from .flows import Gate, ended, flow, keep, paused, run_id_of

pytestmark = pytest.mark.engines("sqlite", "postgres")
LIMIT = 20


def asking(version, *names, wait=None, seen=None):
    """A workflow whose first stage pauses, and whose others note their names."""
    first = Stage("ask", router=pause()) if wait is None else Stage("ask", wait=WaitFor(wait))
    noted = [] if seen is None else seen
    stages = [Stage(name, steps=[keep(noted, lambda _, name=name: name)]) for name in names]
    return Workflow("flow", on="go", stages=[first, *stages], version=version)


async def stopped_at(app, run_id):
    """Waits until a woken run is paused again with its error; answers it."""
    while True:
        info = await app.runtime.get(run_id)
        if info.status == "paused" and info.error is not None:
            return info
        await asyncio.sleep(0)


@pytest.mark.covers("E32")
async def test_a_run_whose_stage_is_gone_stays_paused(make_app):
    """`resume` of a run whose stage the definition no longer has is EXPIRED_DEFINITION; nothing of it changes."""
    async with make_app(asking("1", "approve")) as app:
        run_id = await paused(app, await app.publish("go"))
    async with make_app(asking("2", "review")) as app:
        before = await app.runtime.get(run_id), await app.runtime.timeline(run_id)
        result = await app.runtime.resume(run_id, {"by": "Ada"})
        assert (result.ok, result.error.code, result.metadata.status) == (False, "EXPIRED_DEFINITION", "paused")
        assert (await app.runtime.get(run_id), await app.runtime.timeline(run_id)) == before


@pytest.mark.covers("E32")
async def test_an_operator_says_where_a_run_goes_on(make_app):
    """`resume(at=stage)` goes on there, with the patch; a stage that there is not is NOT_FOUND with near names."""
    seen = []
    async with make_app(asking("1", "approve")) as app:
        run_id = await paused(app, await app.publish("go"))
    async with make_app(asking("2", "review", "send", seen=seen)) as app:
        wrong = await app.runtime.resume(run_id, at="sned")
        assert (wrong.error.code, "did you mean 'send'" in str(wrong.error)) == ("NOT_FOUND", True)
        assert (await app.runtime.get(run_id)).status == "paused"
        result = await app.runtime.resume(run_id, {"by": "Ada"}, at="send")
        assert (result.unwrap().state["by"], seen) == ("Ada", ["send"])
        assert (await app.runtime.get(run_id)).version == "2"


@pytest.mark.covers("E32")
async def test_an_event_does_not_lose_a_run_whose_stage_is_gone(make_app):
    """An event that wakes such a run is kept: it is paused again, says why, and goes on where somebody says."""
    async with make_app(asking("1", "approve", wait="yes")) as app:
        run_id = await paused(app, await app.publish("go"))
    async with make_app(asking("2", "review", wait="yes")) as app:
        await app.publish("yes", {"by": "Ada"})
        info = await stopped_at(app, run_id)
        assert (info.error["code"], info.stage) == ("EXPIRED_DEFINITION", "approve")
        assert (await app.runtime.resume(run_id)).error.code == "EXPIRED_DEFINITION"
        state = (await app.runtime.resume(run_id, {"n": 1}, at="review")).unwrap().state
        assert (state["by"], state["n"]) == ("Ada", 1)
        assert (await app.runtime.get(run_id)).error is None


@pytest.mark.covers("E32")
async def test_a_woken_run_goes_on_when_its_definition_is_back(make_app):
    """A run that rests since no definition could carry it is woken by itself when one comes, with what woke it."""
    seen = []
    async with make_app(asking("1", "approve", wait="yes")) as app:
        run_id = await paused(app, await app.publish("go"))
    async with make_app(asking("2", "review", wait="yes")) as app:
        await app.publish("yes", {"by": "Ada"})
        await stopped_at(app, run_id)
    async with make_app(asking("3", "approve", wait="yes", seen=seen)) as app:
        result = await app.runtime.wait(run_id, timeout_seconds=LIMIT)
        assert (result.unwrap().state["by"], seen) == ("Ada", ["approve"])


@pytest.mark.covers("N230")
async def test_a_run_in_between_waits_for_its_stage(make_app, monkeypatch):
    """A run that was cut off at a stage that is gone neither fails nor begins anew: it waits, and that is shown."""
    told, gate, seen = [], Gate(), []
    monkeypatch.setattr(signals, "emit", lambda signal, **fields: told.append(fields.get("what")))
    app = make_app(Workflow("flow", on="go", stages=[Stage("one"), Stage("two", steps=[gate])], version="1"))
    async with app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await app.runtime.register(Workflow("flow", on="go", stages=[Stage("new")], version="2"), replace=True)
        assert (await ended(app, await app.publish("go"))).ok  # others go on beside it
        info = await app.runtime.get(run_id)
        assert (info.status, info.stage, info.error["code"]) == ("running", "two", "EXPIRED_DEFINITION")
        stages = [Stage("two", steps=[keep(seen, lambda ctx: ctx.run_id)])]
        await app.runtime.register(Workflow("flow", on="go", stages=stages, version="3"), replace=True)
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert (seen, told.count("runs wait for a node that can carry them")) == ([run_id], 1)


@pytest.mark.covers("N230")
async def test_runs_that_wait_for_their_stage_are_in_nobodys_way(make_app):
    """More of them than a node asks for at once do not hold up the runs behind them; an abort ends them."""
    gate = Gate()
    old = Workflow("flow", on="go", stages=[Stage("one"), Stage("two", steps=[gate])], version="1")
    async with make_app(old, mode=Transient(concurrency=500)) as app:
        ids = [run_id_of(await app.publish("go")) for _ in range(150)]
        for _ in ids:
            await gate.reached.get()
        await app.runtime.register(flow(version="2"), mode=Transient(concurrency=500), replace=True)
        assert (await ended(app, await app.publish("go"))).ok
        assert await app.runtime.abort(ids[0])
        assert (await app.runtime.wait(ids[0], timeout_seconds=LIMIT)).error.code == "ABORTED"


@pytest.mark.covers("N230")
@pytest.mark.engines("postgres")
async def test_a_node_leaves_newer_runs_to_others(make_app):
    """A node of an older version does not take what a newer one has begun, though it knows the stage."""
    done = []

    def noting(node, version):
        stages = [Stage("ask", router=pause()), Stage("after", steps=[keep(done, lambda _: node)])]
        return Workflow("flow", on="go", stages=stages, version=version)

    async with make_app(noting("new", "1.10")) as new, make_app(noting("old", "1.9")) as old:
        ids = [await paused(new, await new.publish("go")) for _ in range(20)]
        results = await asyncio.gather(*(old.runtime.resume(run_id) for run_id in ids))
        (info,) = await old.runtime.registered()
        assert info.versions == {new.node_id: "1.10", old.node_id: "1.9"}
    assert all(result.ok for result in results)
    assert done == ["new"] * 20


@pytest.mark.covers("N230")
async def test_a_run_that_has_not_begun_starts_under_the_new_definition(make_app):
    """A queued run has no stage yet: whoever claims it starts it, and its version is then that definition's."""
    gate, seen = Gate(), []
    async with make_app() as app:
        await app.runtime.register(flow(gate, version="1"), mode=Transient(concurrency=1, capacity=5))
        await app.publish("go")
        await gate.reached.get()
        second = run_id_of(await app.publish("go"))
        gate.open.set()
        step = keep(seen, lambda ctx: ctx.run_id)
        await app.runtime.register(flow(step, version="2"), mode=Transient(concurrency=1, capacity=5), replace=True)
        assert (await app.runtime.wait(second, timeout_seconds=LIMIT)).ok
        assert (await app.runtime.get(second)).version == "2"
    assert second in seen


@pytest.mark.covers("E34")
async def test_a_lower_concurrency_ends_nothing(make_app):
    """Of a workflow registered again with less room all that runs goes on; new runs start under the new limit."""
    gates = Gate(), Gate()
    async with make_app() as app:
        await app.runtime.register(flow(gates[0]), mode=Transient(concurrency=3, capacity=9))
        first = [run_id_of(await app.publish("go")) for _ in range(3)]
        for _ in first:
            await gates[0].reached.get()
        await app.runtime.register(flow(gates[1]), mode=Transient(concurrency=1, capacity=9), replace=True)
        for _ in first:  # they go on, all three
            await gates[1].reached.get()
        outcomes = [(await app.publish("go")).dispatched[0] for _ in range(2)]
        assert [outcome.outcome for outcome in outcomes] == ["queued", "queued"]
        gates[1].open.set()
        for run_id in (*first, *(outcome.run_id for outcome in outcomes)):
            assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok


@pytest.mark.covers("E19")
async def test_two_nodes_recover_one_run(store):
    """Of two nodes that take over what a dead one had one gets it; a run has one end, and all others are refused."""
    there = store_for(store)
    await there.open()
    try:
        verbs = Verbs(there)
        for name in ("one", "two"):
            await verbs.renew(node(name, expires_at=verbs.now + 5))
        run = await verbs.running(owner="dead")
        found = await asyncio.gather(*(verbs.claim(name, orphans=True) for name in ("one", "two")))
        ((now,),) = [[entry.run for entry in taken] for taken in found if taken]
        for write in ("continue", "settle", "append"):
            with pytest.raises(StaleEpochError):
                await late_write(verbs, write, run)
        assert await verbs.settle(now) == "completed"
        assert (await verbs.run(run.run_id)).status == "completed"
    finally:
        await there.close()


@pytest.mark.engines("postgres")
@pytest.mark.covers("E32")
async def test_a_client_says_where_a_run_goes_on(make_app):
    """A client hears EXPIRED_DEFINITION as a node does, and says where the run goes on."""
    async with make_app(asking("1", "approve")) as app:
        run_id = await paused(app, await app.publish("go"))
    async with make_app(asking("2", "review")), make_app().open(role="client") as client:
        assert (await client.runtime.resume(run_id)).error.code == "EXPIRED_DEFINITION"
        assert (await client.runtime.resume(run_id, at="nowhere")).error.code == "NOT_FOUND"
        assert (await client.runtime.resume(run_id, at="review")).unwrap().status == "completed"
