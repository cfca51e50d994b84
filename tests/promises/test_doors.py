from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from piecework import Event, Exclusive, Serialized, SingletonLoop, Stage, WaitFor, Workflow, advance, pause
from piecework.bus.event import hops_of_run, within_run
from piecework.errors import BusyError, NotFoundError, ValidationError

from .flows import Gate, flow, keep, nothing, paused, run_id_of

WAITS = Workflow("flow", on="go", stages=[Stage("ask", router=pause()), Stage("end", steps=[nothing])])


@pytest.fixture(params=["node", "client"])
def doors(make_app, engine, request):
    """Opens a node with some workflows, and gives it and the app whose doors are used: its own, or a client's."""

    @asynccontextmanager
    async def open_doors(*workflows, **options):
        async with make_app(*workflows, **options) as node:
            if request.param == "node":
                yield node, node
                return
            known = workflows if engine == "postgres" else ()
            async with make_app(*known, **options).open(role="client") as client:
                yield node, client

    return open_doors


def routed(gate, seen):
    """A stage behind a gate whose router tells what it sees, and one behind it."""

    def router(view):
        seen.append(view.state.get("hint"))
        return pause()

    stages = [Stage("held", steps=[gate], router=router), Stage("end", steps=[keep(seen, _hint)])]
    return Workflow("flow", on="go", stages=stages)


def _hint(ctx):
    return ctx.state["hint"]


async def heard(node, run_id):
    """Waits until the node knows that a signal waits for a run."""
    flight = node._parts.runtime._executor.flights[run_id]
    async with asyncio.timeout(20):
        while not flight.signals_wait:
            await asyncio.sleep(0)


# -- signal ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R48", "E45")
async def test_a_signal_reaches_the_router_of_the_stage_that_runs(doors, gate):
    """`signal` writes into a running run's state: the router of its stage and all later stages see it."""
    seen = []
    async with doors(routed(gate, seen)) as (node, app):
        run_id = run_id_of(await node.publish("go", {"hint": 0}))
        await gate.reached.get()
        result = await app.runtime.signal(run_id, {"hint": 1, "more": {"a": 1}})
        assert (result.value.delivered, result.value.status, result.metadata.run_id) == ("live", "running", run_id)
        await heard(node, run_id)
        gate.open.set()
        assert (await node.runtime.wait(run_id, until="paused", timeout_seconds=20)).value.state["more"] == {"a": 1}
        assert (await node.runtime.resume(run_id)).ok
    assert seen == [1, 1]


@pytest.mark.covers("R48")
async def test_steps_that_run_keep_what_they_have_and_win(make_app):
    """A step that runs keeps its snapshot of the state, and what it returns wins over a signal that came before."""
    gate, seen = Gate(), []

    async def step(ctx):
        await gate(ctx)
        seen.append(ctx.state["hint"])
        return {"won": "step"}

    async with make_app(flow(step)) as app:
        run_id = run_id_of(await app.publish("go", {"hint": 0}))
        await gate.reached.get()
        assert (await app.runtime.signal(run_id, {"hint": 1, "won": "signal"})).ok
        gate.open.set()
        state = (await app.runtime.wait(run_id)).value.state
    assert (seen, state["hint"], state["won"]) == ([0], 1, "step")


@pytest.mark.covers("E46")
async def test_a_signal_behind_the_last_router_is_in_the_last_state(make_app):
    """A signal that is taken when the last router has been asked is in the state that the run ends with."""

    def router(view):
        view_of.append(view.run_id)
        return advance

    view_of = []
    async with make_app(Workflow("flow", on="go", stages=[Stage("only", steps=[nothing], router=router)])) as app:
        executor = app._parts.runtime._executor
        settle = executor._settle

        async def late(flight, error):
            assert (await app.runtime.signal(flight.run.run_id, {"hint": 1})).value.delivered == "live"
            return await settle(flight, error)

        executor._settle = late
        result = await app.runtime.invoke("flow", "default", Event("go"))
        assert (result.value.state["hint"], view_of) == (1, [result.metadata.run_id])
        told = await app.runtime.timeline(result.metadata.run_id)
        assert await app.runtime.seek(result.metadata.run_id, len(told)) == result.value.state
        assert (told[-1].type, told[-1].changed) == ("run:completed", ["hint"])


async def test_a_signal_to_a_paused_run_is_stored(doors):
    """A signal to a paused run does not wake it; the run has it when it goes on."""
    seen = []
    workflow = Workflow("flow", on="go", stages=[Stage("ask", router=pause()), Stage("end", steps=[keep(seen, _hint)])])
    async with doors(workflow) as (node, app):
        run_id = await paused(node, await node.publish("go"))
        result = await app.runtime.signal(run_id, {"hint": 7})
        assert (result.value.delivered, result.value.status) == ("stored", "paused")
        assert (await app.runtime.get(run_id)).status == "paused"
        assert (await app.runtime.resume(run_id)).value.status == "completed"
    assert seen == [7]


@pytest.mark.covers("E46")
async def test_a_signal_to_an_ended_run_is_refused(doors):
    """A signal to a run that has ended is INVALID_STATE and changes nothing; to an unknown one NOT_FOUND."""
    async with doors(flow()) as (node, app):
        run_id = (await node.runtime.invoke("flow", "default", Event("go"))).metadata.run_id
        result = await app.runtime.signal(run_id, {"hint": 1})
        assert (result.ok, result.error.code) == (False, "INVALID_STATE")
        assert "hint" not in await app.runtime.state(run_id)
        assert (await app.runtime.signal("nobody", {})).error.code == "NOT_FOUND"


async def test_a_patch_that_reaches_into_the_run_s_own_state_is_refused(doors):
    """A signal whose patch is no JSON, or names what is the runtime's own, is refused."""
    async with doors(WAITS) as (node, app):
        run_id = await paused(node, await node.publish("go"))
        for patch in ({"__run_meta__": 1}, {"x": {1, 2}}):
            assert (await app.runtime.signal(run_id, patch)).error.code == "VALIDATION_ERROR"


async def test_a_signal_is_known_by_its_token(doors):
    """A signal that is repeated under its token is there once."""
    async with doors(WAITS) as (node, app):
        run_id = await paused(node, await node.publish("go"))
        for _ in range(2):
            assert (await app.runtime.signal(run_id, {"hint": 1}, token="once")).ok
        entries = [entry for entry in await app.runtime.timeline(run_id) if entry.type == "run:signalled"]
        assert len(entries) == 1


# -- the registry ------------------------------------------------------------------------------------------------


@pytest.mark.covers("R51")
async def test_the_registry_has_the_live_and_the_paused_runs(doors, gate):
    """`registry` tells a workflow's live and paused runs, page by page; of an unknown workflow it is None."""
    workflow = Workflow(
        "flow",
        on="go",
        stages=[Stage("first", steps=[_hold_if(gate)], router=pause()), Stage("end", steps=[nothing])],
    )
    async with doors(workflow, flow(id="other", on="other")) as (node, app):
        registry = app.runtime.registry("flow")
        assert app.runtime.registry("unknown") is None
        assert (await registry.live(), (await registry.paused()).items, await registry.count()) == ([], [], 0)
        parked = [await paused(node, await node.publish("go")) for _ in range(3)]
        await node.publish("go", {"hold": True})
        running = await gate.reached.get()
        assert [info.run_id for info in await registry.live()] == [running]
        first = await registry.paused(limit=2)
        last = await registry.paused(limit=2, cursor=first.next_cursor)
        assert [info.run_id for page in (first, last) for info in page.items] == parked[::-1]
        assert (len(first.items), last.next_cursor, await registry.count()) == (2, None, 4)
        assert (await registry.get(running)).status == "running"
        gate.open.set()
        assert (await node.runtime.resume(parked[0])).ok
        for run_id in (parked[0], "nobody"):
            with pytest.raises(NotFoundError, match="no live or paused run"):
                await registry.get(run_id)


def _hold_if(gate):
    async def step(ctx):
        if ctx.state.get("hold"):
            await gate(ctx)

    return step


async def test_a_page_has_at_least_one_run(doors):
    """A page of the registry that is to have none is refused."""
    async with doors(flow()) as (_, app):
        with pytest.raises(ValidationError, match="at least 1"):
            await app.runtime.registry("flow").paused(limit=0)


# -- the bus -----------------------------------------------------------------------------------------------------


async def test_the_bus_aborts_and_signals_runs(doors):
    """The events run:abort and run:signal do what the calls do, whoever publishes them."""
    async with doors(WAITS) as (node, app):
        run_id = await paused(node, await node.publish("go"))
        await app.bus.emit(Event("run:signal", {"run": run_id, "patch": {"hint": 1}}))
        await app.publish("run:abort", {"run": run_id, "reason": "enough"})
        result = await node.runtime.wait(run_id)
        assert (result.error.code, result.metadata.status) == ("ABORTED", "aborted")
        types = [entry.type for entry in await node.runtime.timeline(run_id)]
        assert types.count("run:signalled") == 1


async def test_a_command_that_is_wrong_reaches_nobody(doors):
    """An abort or signal on the bus that is wrong, or of no run, is shown and holds nobody up."""
    async with doors(WAITS) as (_, app):
        for payload in ({}, {"run": 7}, {"run": "nobody"}, {"run": "nobody", "patch": {}}):
            assert (await app.publish("run:abort", payload)).event_id
            assert (await app.publish("run:signal", payload)).event_id


async def test_a_command_is_known_by_its_event(doors):
    """A run:signal event that is published twice under one id signals once."""
    async with doors(WAITS) as (node, app):
        run_id = await paused(node, await node.publish("go"))
        for _ in range(2):
            await app.publish("run:signal", {"run": run_id, "patch": {"hint": 1}}, id="evt-1")
        entries = [entry for entry in await app.runtime.timeline(run_id) if entry.type == "run:signalled"]
        assert len(entries) == 1


async def test_a_command_that_comes_again_late_does_nothing(doors):
    """A run:signal event that is published again, behind another one, does not undo what that one has brought."""
    async with doors(WAITS) as (node, app):
        run_id = await paused(node, await node.publish("go"))
        for event_id, hint in (("evt-1", 1), ("evt-2", 2), ("evt-1", 1)):
            await app.publish("run:signal", {"run": run_id, "patch": {"hint": hint}}, id=event_id)
        assert (await app.runtime.resume(run_id)).unwrap().state["hint"] == 2


@pytest.mark.covers("R55")
async def test_after_stop_the_bus_aborts_nobody(make_app):
    """After `stop` an abort or signal on the bus is an event that does nothing."""
    async with make_app(WAITS) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.stop()
        await app.bus.emit(Event("run:abort", {"run": run_id}))
        assert (await app.runtime.get(run_id)).status == "paused"


# -- invoke ------------------------------------------------------------------------------------------------------


@pytest.mark.covers("E61")
async def test_an_invoked_run_is_outside_the_mode_unless_it_asks(doors, gate):
    """Beside an invoked run an exclusive workflow starts one by an event; with admission="enforce" the mode decides."""
    async with doors(flow(gate), mode=Exclusive()) as (node, app):
        outside = asyncio.ensure_future(app.runtime.invoke("flow", "default", Event("go")))
        await gate.reached.get()
        first = run_id_of(await node.publish("go"))
        await gate.reached.get()
        refused = await app.runtime.invoke("flow", "default", Event("go"), admission="enforce")
        assert (refused.error.code, refused.error.data["outcome"]) == ("BUSY", "rejected")
        assert refused.error.data["active_run_id"] == first
        with pytest.raises(BusyError):
            refused.unwrap()
        gate.open.set()
        assert (await outside).ok
        assert (await node.runtime.wait(first)).ok
        enforced = await app.runtime.invoke("flow", "default", Event("go"), admission="enforce", run_id="mine")
        assert (enforced.value.status, enforced.metadata.run_id) == ("completed", "mine")


async def test_enforced_invokes_queue_and_run_in_order(doors):
    """An invoke with admission="enforce" waits its turn in a serialized workflow, and answers its own end."""
    seen = []
    async with doors(flow(keep(seen, lambda ctx: ctx.event.payload["n"])), mode=Serialized()) as (_, app):
        calls = [app.runtime.invoke("flow", "default", Event("go", {"n": n}), admission="enforce") for n in range(3)]
        assert all(result.ok for result in await asyncio.gather(*calls))
    assert sorted(seen) == [0, 1, 2]


async def test_an_enforced_invoke_may_signal(doors, gate):
    """Where the mode signals, an invoke with admission="enforce" answers how the active run stands."""
    async with doors(flow(gate), mode=SingletonLoop(on_busy="signal")) as (node, app):
        first = run_id_of(await node.publish("go"))
        await gate.reached.get()
        result = await app.runtime.invoke("flow", "default", Event("go", {"hint": 1}), admission="enforce")
        assert (result.metadata.run_id, result.value.status) == (first, "running")
        gate.open.set()
        assert (await node.runtime.wait(first)).value.state["hint"] == 1


async def test_an_enforced_invoke_wakes_nobody(doors):
    """No run that waits for an event of that type, and no other trigger, sees what is invoked in the mode."""
    waits = Workflow("waits", on="begin", stages=[Stage("ask", wait=WaitFor("go"))])
    async with doors(flow(), waits, flow(id="other")) as (node, app):
        run_id = await paused(node, await node.publish("begin"))
        assert (await app.runtime.invoke("flow", "default", Event("go"), admission="enforce")).ok
        assert (await node.runtime.get(run_id)).status == "paused"
        assert await node.runtime.list_all_runs(workflow="other") == []


async def test_there_is_no_other_admission(doors):
    """An admission that there is not is refused, and there is no run."""
    async with doors(flow()) as (_, app):
        result = await app.runtime.invoke("flow", "default", Event("go"), admission="maybe")
        assert (result.error.code, result.metadata) == ("VALIDATION_ERROR", None)


@pytest.mark.parametrize("admission", ["bypass", "enforce"])
async def test_a_cancelled_caller_may_take_its_run_along(doors, gate, admission):
    """`invoke(cancel_on_exit=True)` aborts its run when its caller is cancelled; else the run goes on."""
    async with doors(flow(gate)) as (node, app):
        for cancel_on_exit, status in ((True, "aborted"), (False, "completed")):
            call = app.runtime.invoke(
                "flow", "default", Event("go"), admission=admission, cancel_on_exit=cancel_on_exit
            )
            task = asyncio.ensure_future(call)
            run_id = await gate.reached.get()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if not cancel_on_exit:
                gate.open.set()
            result = await node.runtime.wait(run_id, timeout_seconds=20)
            assert (result.ok, result.metadata.status) == (status == "completed", status)


@pytest.mark.covers("R53")
async def test_listings_go_on_behind_a_cursor(doors):
    """`list_all_runs` spans workflows, the newest first, by status, workflow and space, and goes on behind a cursor."""
    async with doors(flow(), flow(id="other", on="other")) as (node, app):
        for name in ("go", "other", "go"):
            assert (await node.runtime.wait(run_id_of(await node.publish(name, space="acme")))).ok
        everything = [info.run_id for info in await app.runtime.list_all_runs()]
        behind = await app.runtime.list_all_runs(limit=2, cursor=everything[0])
        assert [info.run_id for info in behind] == everything[1:]
        assert len(await app.runtime.list_all_runs(workflow="other", status="completed", space="acme")) == 1
        assert await app.runtime.count_runs(space="acme", status="completed") == 3
        with pytest.raises(ValidationError, match="no status"):
            await app.runtime.count_runs(status="lost")
        assert await app.runtime.count_runs(space="nobody") == 0


@pytest.mark.parametrize("admission", ["bypass", "enforce"])
async def test_an_invoked_run_has_the_hops_of_its_caller(make_app, admission):
    """A run that a run has invoked is as many hops away as that one, whichever way it was let in."""
    seen = []

    async def invoke(ctx):
        (await app.runtime.invoke("inner", "default", Event("in"), admission=admission)).unwrap()

    async def look(ctx):
        seen.append(hops_of_run())

    async with make_app(flow(invoke), flow(look, id="inner", on="in")) as app:
        with within_run(6):
            receipt = await app.publish("go")
        (await app.runtime.wait(run_id_of(receipt), timeout_seconds=20)).unwrap()
    assert seen == [7]
