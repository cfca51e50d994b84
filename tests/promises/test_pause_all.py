"""Promises about waits for one event of each type, and about conditions that the run's state fills in."""

from __future__ import annotations

import pytest

from piecework import Settings, Stage, WaitFor, Workflow, pause
from piecework.errors import ValidationError

from .flows import asks, ended, paused


def waiting(wait, *later):
    """A workflow that waits at once and then ends."""
    return Workflow("flow", on="go", stages=[Stage("ask", wait=wait), *(later or [Stage("end")])])


@pytest.mark.covers("N320")
async def test_a_wait_for_all_goes_on_with_the_last(make_app):
    """A wait for all of its types is met when one of each has come: the last one's payload is the patch."""
    async with make_app(waiting(WaitFor("paid", "sent", mode="all"))) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.publish("sent", {"n": 1})).dispatched[0].outcome == "buffered"
        assert (await app.publish("paid", {"n": 2})).dispatched[0].outcome == "resumed"
        state = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state
    assert (state["n"], state["__resume_event__"]["type"]) == (2, "paid")
    assert state["__events__"] == {"sent": {"n": 1}, "paid": {"n": 2}}


@pytest.mark.covers("N321")
async def test_what_came_before_the_pause_is_credited(make_app, gate):
    """Of a wait for all, what came between `register` and the pause need not come again; a restart forgets nothing."""

    async def ask(ctx):
        await asks(ctx, "paid", "sent", mode="all", conditions=[{"field": "id", "value": 7}])

    stages = [Stage("a", steps=[ask]), Stage("b", steps=[gate], router=pause()), Stage("c")]
    flow = Workflow("flow", on="go", stages=stages)
    async with make_app(flow) as app:
        receipt = await app.publish("go")
        await gate.reached.get()
        assert (await app.publish("paid", {"id": 7})).dispatched[0].outcome == "buffered"
        gate.open.set()
        run_id = await paused(app, receipt)
    async with make_app(flow) as app:
        assert (await app.publish("sent", {"id": 8})).dispatched == []
        assert (await app.publish("sent", {"id": 7})).dispatched[0].outcome == "resumed"
        state = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state
    assert set(state["__events__"]) == {"paid", "sent"}


async def test_a_second_resume_says_nothing_of_the_first(make_app):
    """What a resume says of itself is the last one's alone: no event's payload is mixed into another's."""
    stages = [Stage("a", wait=WaitFor("x", "y", mode="all")), Stage("b", wait=WaitFor("z")), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.publish("x", {"one": 1})
        await app.publish("y", {"two": 2})
        await app.runtime.wait(run_id, until="paused", resumes=1, timeout_seconds=20)
        await app.publish("z", {"three": 3})
        state = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state
    assert state["__resume_event__"]["payload"] == {"three": 3}
    assert "__events__" not in state


def test_an_unknown_mode_is_refused():
    """There are the modes any and all."""
    with pytest.raises(ValidationError, match="any, all"):
        WaitFor("x", mode="some")


@pytest.mark.covers("N322")
async def test_a_condition_may_name_the_state(make_app):
    """A condition's value `{"$state": path}` is what the run's state has there when the wait is registered."""

    async def ask(ctx):
        await asks(ctx, "more", conditions=[{"field": "id", "op": "==", "value": {"$state": "order.id"}}])
        return {"order": {"id": 0}}

    wait = WaitFor("again", id={"$state": "order.id"})
    stages = [Stage("a", steps=[ask], router=pause()), Stage("b", wait=wait), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", {"order": {"id": 7}}))
        assert (await app.publish("more", {"id": 0})).dispatched == []
        assert (await app.publish("more", {"id": 7})).dispatched[0].outcome == "resumed"
        await app.runtime.wait(run_id, until="paused", resumes=1, timeout_seconds=20)
        assert (await app.publish("again", {"id": 7})).dispatched == []
        assert (await app.publish("again", {"id": 0})).dispatched[0].outcome == "resumed"


async def test_a_condition_that_names_nothing_is_refused(make_app):
    """A condition that names what the state does not have fails its run, and says so; its stage has not completed."""
    async with make_app(waiting(WaitFor("more", id={"$state": "order.id"}))) as app:
        result = await ended(app, await app.publish("go"))
        told = [entry.type for entry in await app.runtime.timeline(result.metadata.run_id)]
    assert (told[-1], "stage:completed" in told) == ("run:failed", False)
    assert result.error.code == "VALIDATION_ERROR"
    assert "'order.id'" in result.error.message


@pytest.mark.covers("E42")
async def test_a_run_that_wakes_itself_for_ever_fails(make_app):
    """A run that pauses at one stage and goes on from its buffer for ever, with nothing changed, fails and says so."""

    async def ask(ctx):
        await asks(ctx, "tick")

    async def wake(ctx):
        await ctx.workspace.publish("tick")

    async def look(ctx):
        turns.append(ctx.state.get("n"))

    turns = []
    stages = [Stage("a", steps=[ask]), Stage("b", steps=[wake, look], router=pause(then="b"))]
    settings = Settings(max_resumes_without_progress=5)
    async with make_app(Workflow("flow", on="go", stages=stages), settings=settings) as app:
        result = await ended(app, await app.publish("go"))
        assert (await app.publish("other")).dispatched == []  # the node had its turns meanwhile, and has them still
    assert (result.error.code, len(turns)) == ("EXECUTION_FAILED", 6)
    assert "max_resumes_without_progress" in result.error.message


async def test_a_run_whose_state_grows_may_go_on_from_its_buffer(make_app):
    """A run that uses up what is kept for it, and changes its state with each event, is making progress."""

    async def ask(ctx):
        await asks(ctx, "tick")
        for n in range(9):
            await ctx.workspace.publish("tick", {"n": n})

    async def add(ctx):
        return {"sum": ctx.state.get("sum", 0) + ctx.state["n"], "count": ctx.state.get("count", 0) + 1}

    def more(state):
        return pause(then="b") if state.state["count"] < 9 else advance

    from piecework import advance

    stages = [Stage("a", steps=[ask], router=pause()), Stage("b", steps=[add], router=more), Stage("c")]
    settings = Settings(max_resumes_without_progress=3)
    async with make_app(Workflow("flow", on="go", stages=stages), settings=settings) as app:
        assert (await ended(app, await app.publish("go"))).unwrap().state["sum"] == 36
