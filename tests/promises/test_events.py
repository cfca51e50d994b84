from __future__ import annotations

import asyncio

import pytest

from piecework import Event, EventBus, PieceworkError, Pipeline, Stage, Trigger, WaitFor, Workflow
from piecework.errors import ClosedError, ValidationError

from .flows import Gate, ended, flow, keep, nothing, paused, run_id_of


@pytest.mark.covers("R2")
async def test_an_event_runs_the_pipeline_of_its_trigger_and_no_other(make_app):
    """An event runs the pipeline that its trigger names, and no other."""
    ran = []
    workflow = Workflow(
        "invoice",
        triggers={"received": Trigger("invoice.received"), "paid": Trigger("invoice.paid")},
        pipelines={
            "received": Pipeline([Stage("a", steps=[keep(ran, lambda ctx: ctx.pipeline_id)])]),
            "paid": Pipeline([Stage("a", steps=[keep(ran, lambda ctx: ctx.pipeline_id)])]),
        },
    )
    async with make_app(workflow) as app:
        await ended(app, await app.publish("invoice.paid"))
    assert ran == ["paid"]


@pytest.mark.covers("R15")
async def test_a_matching_event_starts_a_run(make_app):
    """An event that matches a trigger of a registered workflow starts a run, and the receipt names it."""
    async with make_app(flow()) as app:
        receipt = await app.publish("go", {"n": 1})
        (result,) = receipt.dispatched
        assert (result.outcome, result.workflow_id, result.trigger_id) == ("started", "flow", "default")
        assert (await ended(app, receipt)).unwrap().state["n"] == 1


@pytest.mark.covers("R16")
@pytest.mark.parametrize(("type_", "payload"), [("stay", {"n": 1}), ("go", {"n": 0}), ("go", {})])
async def test_other_events_start_none(make_app, type_, payload):
    """Another event, or one whose predicate is false or raises, starts no run."""
    async with make_app(flow(when=lambda event: event.payload["n"] > 0)) as app:
        receipt = await app.publish(type_, payload)
        assert receipt.dispatched == []
        assert await app.runtime.list_all_runs() == []


@pytest.mark.covers("R7")
async def test_the_bus_is_both_watched_and_spoken_to(make_app):
    """What is emitted on an app's bus reaches its workflows, and what they publish reaches the bus's observers."""

    async def answer(ctx):
        await ctx.workspace.publish("answered", {"to": ctx.event.id})

    async with make_app(flow(answer)) as app:
        heard = asyncio.get_running_loop().create_future()
        app.bus.subscribe("answered", lambda event: heard.set_result(event.payload))
        await app.bus.emit(Event("go", id="e1"))
        assert await heard == {"to": "e1"}


@pytest.mark.covers("R33")
async def test_deregistering_leaves_a_shared_event_to_the_other_workflow(make_app):
    """Deregistering a workflow takes its triggers away; another one with the same event goes on."""
    async with make_app(flow(id="one"), flow(id="two")) as app:
        await app.runtime.deregister("one")
        receipt = await app.publish("go")
        assert [result.workflow_id for result in receipt.dispatched] == ["two"]
        await app.runtime.deregister("two")
        assert (await app.publish("go")).dispatched == []


@pytest.mark.covers("R168")
async def test_what_happens_to_an_event_happens_in_order(make_app):
    """An event is accepted, then its run is claimed, then its stages run, then it ends: the timeline shows it so."""
    async with make_app(flow()) as app:
        run_id = (await ended(app, await app.publish("go"))).metadata.run_id
        types = [entry.type for entry in await app.runtime.timeline(run_id)]
    assert types == ["run:started", "run:claimed", "step:completed", "stage:completed", "run:completed"]


@pytest.mark.covers("R169")
async def test_publish_answers_while_the_run_is_under_way(make_app, gate):
    """`publish` answers with the run's id while the run is still executing."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        assert await gate.reached.get() == run_id
        assert (await app.runtime.get(run_id)).status == "running"
        gate.open.set()
        assert (await app.runtime.wait(run_id)).ok


@pytest.mark.covers("E12")
async def test_the_same_event_id_twice_is_one_event(make_app):
    """A second event of the same id starts nothing: its outcome is duplicate, with the first run's id."""
    async with make_app(flow()) as app:
        first = await app.publish("go", id="evt-7")
        await ended(app, first)
        again = await app.publish("go", id="evt-7")
        assert [(r.outcome, r.run_id) for r in again.dispatched] == [("duplicate", run_id_of(first))]
        assert len(await app.runtime.list_all_runs()) == 1


@pytest.mark.covers("E14")
async def test_a_redelivery_after_a_restart_is_still_a_duplicate(make_app):
    """An event that is delivered again after a restart has no second effect."""
    ran = []
    step = keep(ran, lambda ctx: ctx.run_id)
    async with make_app(flow(step)) as app:
        await ended(app, await app.publish("go", id="evt-7"))
    async with make_app(flow(step)) as app:
        assert [r.outcome for r in (await app.publish("go", id="evt-7")).dispatched] == ["duplicate"]
    assert len(ran) == 1


async def test_ids_are_made_where_none_is_given(app):
    """Two events without an id are two events."""
    assert (await app.publish("go")).event_id != (await app.publish("go")).event_id


@pytest.mark.covers("E37")
async def test_an_event_wakes_a_run_and_starts_another(make_app):
    """An event that a run waits for and that also matches a trigger does both, the waiting run first."""
    workflow = Workflow("flow", on="go", stages=[Stage("a", wait=WaitFor("go", n=2)), Stage("b")])
    async with make_app(workflow) as app:
        first = await paused(app, await app.publish("go", {"n": 1}))
        woken, started = (await app.publish("go", {"n": 2})).dispatched
        assert (woken.outcome, woken.run_id, started.outcome) == ("resumed", first, "started")


@pytest.mark.covers("E57")
async def test_a_step_may_publish_what_its_own_run_waits_for(make_app):
    """An event that a step publishes counts for its own run's registered waits too."""

    async def ask(ctx):
        pauses = await ctx.require("__pause_service__")
        await pauses.register(["done"])
        await ctx.workspace.publish("done", {"by": "me"})

    workflow = Workflow("flow", on="go", stages=[Stage("a", wait=WaitFor("never"), steps=[ask]), Stage("b")])
    async with make_app(workflow) as app:
        assert (await ended(app, await app.publish("go"))).unwrap().state["by"] == "me"


@pytest.mark.covers("E44")
@pytest.mark.parametrize("key", ["__run_meta__", "__resume_reason__", "__x"])
async def test_payloads_cannot_reach_into_the_runtimes_own_keys(make_app, key):
    """A payload key that begins with two underscores is refused, and nothing is stored."""
    async with make_app(flow()) as app:
        with pytest.raises(ValidationError, match=key):
            await app.publish("go", {key: 1}, id="e1")
        assert (await app.publish("go", id="e1")).dispatched[0].outcome == "started"


@pytest.mark.covers("N4")
@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"a": {"b": float("nan")}}, r"payload\.a\.b"),
        ({"a": [1, object()]}, r"payload\.a\[1\]"),
        ({"a": {1: 2}}, r"payload\.a"),
        ({"a": 2**63}, r"payload\.a"),
        ({"a": "\ud800"}, r"payload\.a"),
        ([1], "payload"),
        ("text", "payload"),
    ],
)
async def test_a_payload_that_is_not_json_is_refused_with_its_path(app, payload, where):
    """What is not JSON is refused at the door with the path of the first thing that is not; nothing is stored."""
    with pytest.raises(ValidationError, match=where):
        await app.publish("go", payload)


@pytest.mark.covers("N5")
@pytest.mark.parametrize("name", ["", 7, None, "x" * 513, "a\x00b"])
async def test_names_that_are_no_names_are_refused(app, name):
    """An event type, id or space that is empty, too long, or no text is refused with a ValidationError."""
    with pytest.raises(ValidationError):
        await app.publish(name)
    with pytest.raises(ValidationError):
        await app.publish("go", space=name if name is not None else "")
    with pytest.raises(ValidationError):
        await app.publish("go", id=name if name is not None else "")


@pytest.mark.covers("N6")
async def test_an_observers_failure_is_nobody_elses(make_app):
    """What an observer of the bus raises reaches neither the emitter nor other observers nor the workflow."""
    heard = []

    def fails(event):
        raise RuntimeError(event.type)

    async with make_app(flow()) as app:
        app.bus.subscribe("*", fails)
        app.bus.subscribe("g*", lambda event: heard.append((event.type, event.payload)))
        assert (await ended(app, await app.publish("go", {"n": 1}))).ok
    assert heard == [("go", {"n": 1})]


async def test_an_unsubscribed_observer_hears_nothing(app):
    """After `unsubscribe` an observer is not called any more; calling it twice is harmless."""
    heard = []
    unsubscribe = app.bus.subscribe("go", heard.append)
    unsubscribe()
    unsubscribe()
    await app.publish("go")
    assert heard == []


async def test_a_bus_without_an_app_says_so():
    """Emitting on a bus that belongs to no open app raises STOPPED."""
    with pytest.raises(PieceworkError) as caught:
        await EventBus().emit(Event("go"))
    assert caught.value.code == "STOPPED"


@pytest.mark.covers("N7")
async def test_a_closed_app_refuses_to_publish(make_app):
    """Outside of `async with` an app refuses to publish, with CLOSED, and says what to do."""
    app = make_app()
    with pytest.raises(ClosedError, match="async with"):
        await app.publish("go")
    async with app:
        pass
    with pytest.raises(ClosedError):
        await app.publish("go")


@pytest.mark.covers("N1")
async def test_what_publish_answered_survives(make_app):
    """When `publish` has returned, the event and all that follows from it are durable: a restart finds the run."""
    held = Gate()
    async with make_app(flow(held)) as app:
        run_id = run_id_of(await app.publish("go", {"n": 1}))
        await app.runtime.stop(grace_seconds=0)  # interrupts the run where it is
    async with make_app(flow(nothing)) as app:
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state["n"] == 1
