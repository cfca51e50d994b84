from __future__ import annotations

import asyncio

import pytest

from piecework import Stage, Step, WaitFor, Workflow, pause
from piecework.errors import ValidationError

from .flows import Gate, asks, ended, keep, nothing, paused


def waiting(wait, *later, name="flow"):
    """A workflow that waits at once and then ends."""
    return Workflow(name, on="go", stages=[Stage("ask", wait=wait), *(later or [Stage("end")])])


@pytest.mark.covers("R68")
async def test_a_pause_takes_effect_when_the_whole_stage_is_over(make_app, gate):
    """A stage that asks for a pause pauses only when all of its steps have ended and are committed."""

    async def ask(ctx):
        await asks(ctx, "more")
        return {"asked": True}

    stages = [Stage("a", steps=[ask, gate], router=pause()), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        receipt = await app.publish("go")
        run_id = await gate.reached.get()
        assert (await app.runtime.get(run_id)).status == "running"
        gate.open.set()
        await paused(app, receipt)
        assert (await app.runtime.state(run_id))["asked"]


@pytest.mark.covers("R69", "R71")
async def test_an_event_before_the_pause_is_kept_and_used(make_app, gate):
    """A matching event between `register` and the pause is kept; at the pause the run goes on with it at once."""

    async def ask(ctx):
        await asks(ctx, "more")

    stages = [Stage("a", steps=[ask]), Stage("b", steps=[gate], router=pause()), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        receipt = await app.publish("go")
        run_id = await gate.reached.get()
        (kept,) = (await app.publish("more", {"by": "Ada"})).dispatched
        assert (kept.outcome, kept.run_id) == ("buffered", run_id)
        gate.open.set()
        state = (await ended(app, receipt)).unwrap().state
        assert (state["by"], state["__resume_reason__"]) == ("Ada", "event")


@pytest.mark.covers("R70", "R172", "E4")
async def test_events_between_two_pauses_are_used_one_by_one(make_app, gate):
    """Events that match while a run is not paused are kept and used in their order, one for each pause."""
    seen = []

    async def ask(ctx):
        await asks(ctx, "more")

    def use(name):
        return Stage(name, steps=[keep(seen, lambda ctx: ctx.state["n"])], router=pause())

    stages = [
        Stage("a", steps=[ask], router=pause()),
        Stage("b", steps=[gate, keep(seen, lambda ctx: ctx.state["n"])], router=pause()),
        use("c"),
        use("d"),
        Stage("e", steps=[keep(seen, lambda ctx: ctx.state["n"])]),
    ]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.publish("more", {"n": 0})
        await gate.reached.get()
        outcomes = [(await app.publish("more", {"n": n})).dispatched[0].outcome for n in (1, 2, 3)]
        gate.open.set()
        result = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap()
    assert (outcomes, seen, result.status) == (["buffered"] * 3, [0, 1, 2, 3], "completed")


@pytest.mark.covers("R72")
async def test_a_parked_run_is_rows(make_app):
    """A run that nothing wakes is paused: no task executes it, and `waiting_for` says what it waits for."""
    async with make_app(waiting(WaitFor("b", "a"))) as app:
        run_id = await paused(app, await app.publish("go"))
        info = await app.runtime.get(run_id)
        assert (info.status, info.waiting_for, info.paused_at is not None) == ("paused", ["a", "b"], True)
        assert app.node.in_flight == 0


@pytest.mark.covers("R73")
async def test_the_next_matching_event_wakes_a_parked_run(make_app):
    """The next matching event wakes a parked run; its payload is in the state, and so is the event."""
    async with make_app(waiting(WaitFor("more"))) as app:
        run_id = await paused(app, await app.publish("go"))
        receipt = await app.publish("more", {"by": "Ada"}, id="e2")
        assert [(r.outcome, r.run_id) for r in receipt.dispatched] == [("resumed", run_id)]
        state = (await app.runtime.wait(run_id)).unwrap().state
        assert (state["by"], state["__resume_event__"]["id"]) == ("Ada", "e2")


@pytest.mark.covers("R74")
async def test_steps_reach_the_pause_service(make_app):
    """A step gets the pause service by the id `__pause_service__`."""
    seen = []
    step = keep(seen, lambda ctx: ctx.use(lambda deps: deps.require("__pause_service__")))
    async with make_app(Workflow("flow", on="go", stages=[Stage("a", steps=[step])])) as app:
        await ended(app, await app.publish("go"))
    assert hasattr(seen[0], "register")
    assert hasattr(seen[0], "cancel")


@pytest.mark.covers("R75")
async def test_a_registration_wakes_the_run_later(make_app):
    """`register` in a step makes a later matching event wake the run."""

    async def ask(ctx):
        await asks(ctx, "more", conditions=[{"field": "id", "op": "==", "value": ctx.state["id"]}])

    stages = [Stage("a", steps=[ask], router=pause()), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", {"id": 7}))
        assert (await app.publish("more", {"id": 8})).dispatched == []
        assert (await app.publish("more", {"id": 7})).dispatched[0].run_id == run_id


@pytest.mark.covers("R75")
@pytest.mark.parametrize(
    "wrong",
    [
        {"events": []},
        {"events": [""]},
        {"events": ["x"], "conditions": [{"field": "n", "op": "~", "value": 1}]},
        {"events": ["x"], "conditions": [{"op": "==", "value": 1}]},
        {"events": ["x"], "conditions": [{"field": "n", "op": "==", "value": object()}]},
        {"events": ["x"], "conditions": [{"field": "n", "op": "==", "value": {"$state": ""}}]},
        {"events": ["x"], "conditions": [{"field": "n", "op": "==", "value": {"$state": "nothing"}}]},
        {"events": ["x"], "mode": "some"},
        {"events": ["x"], "timeout_seconds": 0},
        {"events": ["x"], "timeout_seconds": -1},
        {"events": ["x"], "timeout_seconds": float("nan")},
        {"events": ["x"], "timeout_seconds": True},
        {"events": ["x"], "timeout_seconds": "5"},
        {"events": ["x"], "window_seconds": 0},
        {"events": ["x"], "max_buffer": 0},
    ],
)
async def test_a_wrong_registration_is_refused_at_once(make_app, wrong):
    """A registration that cannot work raises VALIDATION_ERROR where it is made."""
    caught = []

    async def ask(ctx):
        pauses = await ctx.require("__pause_service__")
        with pytest.raises(ValidationError) as error:
            await pauses.register(**wrong)
        caught.append(error.value.code)

    async with make_app(Workflow("flow", on="go", stages=[Stage("a", steps=[ask])])) as app:
        assert (await ended(app, await app.publish("go"))).ok
    assert caught == ["VALIDATION_ERROR"]


@pytest.mark.covers("R76", "E40")
async def test_a_cancelled_registration_is_forgotten(make_app):
    """`cancel` forgets a registration and what was kept for it: no event wakes the run any more, only a call."""

    async def ask(ctx):
        pauses = await ctx.require("__pause_service__")
        handle = await pauses.register(["more"])
        await ctx.workspace.publish("more")
        await pauses.cancel(handle)

    stages = [Stage("a", steps=[ask], router=pause()), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.publish("more")).dispatched == []
        assert (await app.runtime.resume(run_id)).unwrap().status == "completed"


@pytest.mark.covers("R77")
async def test_all_conditions_have_to_hold(make_app):
    """One condition that does not hold keeps the run asleep."""
    async with make_app(waiting(WaitFor("more", id=7, total__gt=10))) as app:
        await paused(app, await app.publish("go"))
        assert (await app.publish("more", {"id": 7, "total": 10})).dispatched == []
        assert (await app.publish("more", {"id": 8, "total": 11})).dispatched == []
        assert [r.outcome for r in (await app.publish("more", {"id": 7, "total": 11})).dispatched] == ["resumed"]


MISSING = object()


async def clause(make_app, op, expected, met, unmet):
    """Publishes to runs that wait with one clause: each value that meets it wakes one, none of the others does."""
    wait = WaitFor("more", conditions=[{"field": "n", "op": op, "value": expected}])
    async with make_app(waiting(wait)) as app:
        for value in met:
            run_id = await paused(app, await app.publish("go"))
            for other in unmet:
                assert (await app.publish("more", payload_of(other))).dispatched == [], other
            assert [r.run_id for r in (await app.publish("more", payload_of(value))).dispatched] == [run_id], value
            assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok


def payload_of(value):
    """A payload with a value, or without one."""
    return {} if value is MISSING else {"n": value}


@pytest.mark.covers("R78")
async def test_equal(make_app):
    """`==` is met by an equal value, 7.0 for 7, and by nothing else, null or missing."""
    await clause(make_app, "==", 7, [7, 7.0], [8, "7", True, None, [7], MISSING])


@pytest.mark.covers("R79")
async def test_unequal(make_app):
    """`!=` is met by any other value, and by neither null nor a missing field."""
    await clause(make_app, "!=", 7, [8, "7", True, [7]], [7, 7.0, None, MISSING])


@pytest.mark.covers("R80")
async def test_greater(make_app):
    """`>` is met by a greater number, of texts by a later one, and by nothing odd, null or missing."""
    await clause(make_app, ">", 7, [8, 7.5], [7, 6, "8", True, None, [8], MISSING])


@pytest.mark.covers("R80")
async def test_greater_text(make_app):
    """`>` is met by a text that comes later, and by no number."""
    await clause(make_app, ">", "b", ["c"], ["a", "b", 8])


@pytest.mark.covers("R81")
async def test_greater_or_equal(make_app):
    """`>=` is met by a greater or equal number, and by nothing odd, null or missing."""
    await clause(make_app, ">=", 7, [7, 8], [6.5, "8", None, {}, MISSING])


@pytest.mark.covers("R82")
async def test_less(make_app):
    """`<` is met by a smaller number, and by nothing odd, null or missing."""
    await clause(make_app, "<", 7, [6, -1.5], [7, 8, "6", False, None, MISSING])


@pytest.mark.covers("R83")
async def test_less_or_equal(make_app):
    """`<=` is met by a smaller or equal number, and by nothing odd, null or missing."""
    await clause(make_app, "<=", 7, [7, 6], [7.5, "6", None, [], MISSING])


@pytest.mark.covers("R84")
async def test_exists(make_app):
    """`exists` is met by any value but null."""
    await clause(make_app, "exists", None, [0, False, "", []], [None, MISSING])


@pytest.mark.covers("R84")
async def test_exists_not(make_app):
    """`exists` with False is met by null and by a missing field, and by no value."""
    await clause(make_app, "exists", False, [None, MISSING], [0, False, "", []])


@pytest.mark.covers("E43")
@pytest.mark.parametrize(("op", "met"), [("==", 7), ("!=", 8), (">", 8), (">=", 7), ("<", 6), ("<=", 7)])
async def test_an_odd_payload_meets_nothing(make_app, op, met):
    """What cannot be compared with a number meets no order, a bool is no number, and nothing raises."""
    odd = [True, "7", [7], {"n": 7}, None, MISSING, {"n": {"n": [None] * 50}}]
    await clause(make_app, op, 7, [met], [value for value in odd if op != "!=" or value in (None, MISSING)])


async def test_a_clause_steps_into_mappings(make_app):
    """`__` in the name of a clause steps into a mapping; where there is none the clause is not met."""
    async with make_app(waiting(WaitFor("more", invoice__total__ge=10))) as app:
        await paused(app, await app.publish("go"))
        assert (await app.publish("more", {"invoice": 10})).dispatched == []
        assert (await app.publish("more", {"invoice": {"total": 10}})).dispatched[0].outcome == "resumed"


@pytest.mark.covers("E1")
async def test_no_wake_up_is_lost_around_the_pause(make_app):
    """An event that arrives while its run is pausing wakes it, whichever of the two commits first."""
    wait = Workflow("flow", on="go", stages=[Stage("a", wait=lambda view: WaitFor("m", n=view.state["n"])), Stage("b")])

    async def pair(app, n):
        receipt = await app.publish("go", {"n": n})
        while not (found := (await app.publish("m", {"n": n})).dispatched):
            pass  # not waited for yet: publishing goes on, as the world does
        assert found[0].outcome in {"resumed", "buffered"}
        return (await ended(app, receipt)).unwrap().status

    async with make_app(wait) as app:
        assert await asyncio.gather(*(pair(app, n) for n in range(30))) == ["completed"] * 30


@pytest.mark.covers("E2")
async def test_an_event_before_the_registration_is_not_for_the_run(make_app, gate):
    """An event from before `register` does not wake the run."""

    async def ask(ctx):
        await asks(ctx, "more")

    stages = [Stage("a", steps=[gate]), Stage("b", steps=[ask], router=pause()), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        receipt = await app.publish("go")
        await gate.reached.get()
        assert (await app.publish("more")).dispatched == []
        gate.open.set()
        await paused(app, receipt)


@pytest.mark.covers("E3")
async def test_a_failed_run_leaves_no_registration(make_app):
    """When a run ends, its registrations end with it, also when it failed."""

    async def ask(ctx):
        await asks(ctx, "more")
        raise RuntimeError

    async with make_app(Workflow("flow", on="go", stages=[Stage("a", steps=[ask])])) as app:
        assert not (await ended(app, await app.publish("go"))).ok
        assert (await app.publish("more")).dispatched == []


@pytest.mark.covers("E39")
async def test_a_registration_without_a_pause_harms_nothing(make_app):
    """A registration whose run never pauses is kept to the end of the run and harms nothing."""

    async def ask(ctx):
        await asks(ctx, "more")
        await ctx.workspace.publish("more", {"by": "Ada"})

    async with make_app(Workflow("flow", on="go", stages=[Stage("a", steps=[ask]), Stage("b")])) as app:
        assert "by" not in (await ended(app, await app.publish("go"))).unwrap().state
        assert (await app.publish("more")).dispatched == []


@pytest.mark.covers("E13")
async def test_a_repeated_event_is_kept_once(make_app, gate):
    """The same event delivered twice is kept once: it does not answer a second pause."""

    async def ask(ctx):
        await asks(ctx, "more")

    stages = [Stage("a", steps=[ask]), Stage("b", steps=[gate], router=pause()), Stage("c", router=pause()), Stage("d")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        receipt = await app.publish("go")
        run_id = await gate.reached.get()
        for _ in range(2):
            await app.publish("more", id="evt-1")
        gate.open.set()
        assert await paused(app, receipt) == run_id
        assert (await app.runtime.get(run_id)).resume_count == 1


@pytest.mark.covers("E6")
async def test_a_call_and_an_event_at_once(make_app):
    """A resume by call and one by event at once: one wins; a losing event is kept, a losing caller gets an error."""
    stages = [Stage("a", steps=[registers("more")], router=pause()), Stage("b", router=pause()), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        called, receipt = await asyncio.gather(app.runtime.resume(run_id), app.publish("more"))
        (offered,) = receipt.dispatched
        if called.ok:
            assert offered.outcome == "buffered" or called.value.status == "paused"
        else:
            assert (called.error.code, offered.outcome) == ("INVALID_STATE", "resumed")
        assert not called.ok or (await app.runtime.wait(run_id, until="paused", timeout_seconds=20)).ok


def registers(*events):
    """A step that registers for events."""

    async def register(ctx):
        await asks(ctx, *events)

    return register


@pytest.mark.covers("E36")
async def test_a_paused_run_holds_its_place_in_serialized(make_app):
    """In serialized mode a paused run keeps its place, unless `hold_while_paused=False` says otherwise."""
    from piecework import Serialized

    async with make_app(waiting(WaitFor("more"), name="holds"), mode=Serialized()) as app:
        await paused(app, await app.publish("go"))
        assert (await app.publish("go")).dispatched[0].outcome == "queued"
    lets = waiting(WaitFor("more"), name="lets")
    async with make_app(lets, mode=Serialized(hold_while_paused=False)) as app:
        await paused(app, await app.publish("go"))
        assert (await app.publish("go")).dispatched[0].outcome == "started"


@pytest.mark.covers("E38")
async def test_one_event_wakes_all_that_wait_for_it(make_app):
    """An event that two parked runs wait for wakes both."""
    async with make_app(waiting(WaitFor("more"))) as app:
        runs = [await paused(app, await app.publish("go")) for _ in range(2)]
        receipt = await app.publish("more")
        assert sorted(r.run_id for r in receipt.dispatched) == sorted(runs)
        assert all([(await app.runtime.wait(run_id, timeout_seconds=20)).ok for run_id in runs])


@pytest.mark.covers("E41")
async def test_a_pause_needs_no_registration(make_app):
    """A run may pause without waiting for anything: a call lets it go on."""
    async with make_app(Workflow("flow", on="go", stages=[Stage("a", router=pause()), Stage("b")])) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.get(run_id)).waiting_for == []
        assert (await app.runtime.resume(run_id)).unwrap().state["__resume_reason__"] == "manual"


@pytest.mark.covers("N11")
async def test_a_pause_ends_by_itself_at_its_deadline(make_app, clock):
    """A pause with `timeout_seconds` ends by itself; the reason in the state is timeout and there is no payload."""
    async with make_app(waiting(WaitFor("more", timeout_seconds=86400)), clock=clock) as app:
        run_id = await paused(app, await app.publish("go"))
        await clock.until_asleep()
        await clock.advance(86399)
        assert (await app.runtime.get(run_id)).status == "paused"
        await clock.until_asleep()
        await clock.advance(2)
        state = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state
        assert (state["__resume_reason__"], state["__resume_event__"]) == ("timeout", None)


@pytest.mark.covers("N11")
async def test_a_deadline_that_passes_while_no_node_runs_is_not_lost(make_app, clock):
    """A deadline that passes while no node is running takes effect when the next one starts."""
    workflow = waiting(WaitFor("more", timeout_seconds=86400))
    async with make_app(workflow, clock=clock) as app:
        run_id = await paused(app, await app.publish("go"))
    await clock.advance(90000)
    async with make_app(workflow, clock=clock) as app:
        result = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap()
        assert result.state["__resume_reason__"] == "timeout"


@pytest.mark.covers("E7")
async def test_a_deadline_and_an_event_at_once(make_app, clock):
    """When a deadline and an event come at once, whichever commits first wakes the run, once; no step runs twice."""
    seen = []
    later = Stage("end", steps=[keep(seen, lambda ctx: ctx.state["__resume_reason__"])])
    async with make_app(waiting(WaitFor("more", timeout_seconds=60), later), clock=clock) as app:
        run_id = await paused(app, await app.publish("go"))
        await clock.until_asleep()
        await asyncio.gather(clock.advance(60), app.publish("more"))
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok
        assert (await app.runtime.get(run_id)).resume_count == 1
    assert len(seen) == 1


async def test_a_pause_may_name_where_to_go_on(make_app):
    """`pause(then=…)` goes on with that stage."""
    stages = [Stage("a", router=pause(then="c")), Stage("b", steps=[Gate()]), Stage("c", steps=[nothing])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.resume(run_id)).unwrap().status == "completed"


async def test_a_stage_that_waits_runs_its_steps_first_and_sees_their_patches(make_app):
    """A stage with `wait` runs its steps, then asks the function, which sees their patches, what to wait for."""

    async def number(ctx):
        return {"id": 7}

    stages = [Stage("a", steps=[Step(number)], wait=lambda view: WaitFor("more", id=view.state["id"])), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.publish("more", {"id": 7})).dispatched[0].run_id == run_id


@pytest.mark.covers("E60")
async def test_state_that_is_not_json_fails_the_run_before_it_pauses(make_app):
    """A patch that is not JSON fails the run with VALIDATION_ERROR and its path, before anything is parked."""

    async def odd(ctx):
        return {"conn": {"socket": object()}}

    async with make_app(Workflow("flow", on="go", stages=[Stage("a", steps=[odd], router=pause())])) as app:
        result = await ended(app, await app.publish("go"))
        assert result.error.code == "VALIDATION_ERROR"
        assert "conn.socket" in result.error.message


@pytest.mark.covers("N12")
async def test_a_full_buffer_is_told(make_app, gate):
    """Beyond `max_buffer` events are not kept: the receipt says dropped, buffer_full, and so does the timeline."""

    async def ask(ctx):
        await asks(ctx, "more", max_buffer=1)

    stages = [Stage("a", steps=[ask]), Stage("b", steps=[gate], router=pause()), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        receipt = await app.publish("go")
        run_id = await gate.reached.get()
        told = [(await app.publish("more")).dispatched[0] for _ in range(2)]
        gate.open.set()
        await ended(app, receipt)
        assert [(r.outcome, r.reason) for r in told] == [("buffered", None), ("dropped", "buffer_full")]
        assert "watch:overflow" in [entry.type for entry in await app.runtime.timeline(run_id)]
