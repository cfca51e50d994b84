from __future__ import annotations

import asyncio
import threading

import pytest

from piecework import App, Stage, Step, Workflow

from .flows import Gate, ended, flow, keep, run_id_of


class Flaky:
    """A step that fails its first attempts."""

    def __init__(self, failures):
        self.left = failures
        self.keys = []
        self.attempts = []

    async def __call__(self, ctx):
        self.keys.append(ctx.idempotency_key)
        self.attempts.append(ctx.attempt)
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError(f"{self.left} more to come")
        return {"done": True}


async def through(app, clock, receipt):
    """Lets time pass until the run has ended."""
    waiting = asyncio.ensure_future(ended(app, receipt))
    while not waiting.done():
        asleep = asyncio.ensure_future(clock.until_asleep(2))
        await asyncio.wait({waiting, asleep}, return_when=asyncio.FIRST_COMPLETED)
        asleep.cancel()
        await clock.advance(11)
    return await waiting


async def test_steps_of_a_stage_run_concurrently(make_app):
    """The steps of one stage run at the same time."""
    meeting = asyncio.Barrier(2)

    async def left(ctx):
        await meeting.wait()
        return {"left": 1}

    async def right(ctx):
        await meeting.wait()
        return {"right": 2}

    async with make_app(flow(left, right)) as app:
        state = (await ended(app, await app.publish("go"))).unwrap().state
        assert (state["left"], state["right"]) == (1, 2)


@pytest.mark.covers("N14")
async def test_steps_that_disagree_are_a_conflict(make_app):
    """Two steps of a stage that write different values to one place fail the run with CONFLICT and the place."""

    async def left(ctx):
        return {"total": {"net": 1, "tax": 1}}

    async def right(ctx):
        return {"total": {"net": 2}}

    async with make_app(flow(left, right)) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.error.code, "total.net" in result.error.message) == ("CONFLICT", True)


async def test_steps_that_agree_are_merged(make_app):
    """What the steps of a stage write is merged key by key; the same value twice is no conflict."""

    async def left(ctx):
        return {"total": {"net": 1, "tax": 1}, "list": [1]}

    async def right(ctx):
        return {"total": {"net": 1, "sum": 2}}

    async with make_app(flow(left, right)) as app:
        state = (await ended(app, await app.publish("go", {"total": {"old": 0}, "list": [0]}))).unwrap().state
        assert (state["total"], state["list"]) == ({"old": 0, "net": 1, "tax": 1, "sum": 2}, [1])


async def test_one_failing_step_discards_the_whole_stage(make_app):
    """When one step of a stage fails, its neighbours end, and no patch of the stage is kept."""
    done = []

    async def good(ctx):
        done.append("good")
        return {"good": True}

    async def bad(ctx):
        raise RuntimeError("bad")

    async with make_app(flow(good, bad)) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.ok, done) == (False, ["good"])
        assert "good" not in await app.runtime.state(result.metadata.run_id)


@pytest.mark.covers("E15")
async def test_every_attempt_of_a_step_has_the_same_key(make_app, clock):
    """A step that runs again has the same `ctx.idempotency_key`; `ctx.attempt` counts."""
    step = Flaky(2)
    async with make_app(flow(Step(step, retries=2)), clock=clock) as app:
        assert (await through(app, clock, await app.publish("go"))).unwrap().state["done"]
    assert (len(set(step.keys)), step.attempts) == (1, [1, 2, 3])


async def test_keys_differ_between_steps_runs_and_visits(make_app):
    """No two steps, visits of a stage or runs have the same idempotency key."""
    from piecework import jump

    keys = []
    twice = Stage("a", steps=[keep(keys, lambda ctx: ctx.idempotency_key)], router=lambda v: jump("b"))
    back = Stage("b", router=lambda view: jump("a") if len(keys) < 2 else jump("c"))
    workflow = Workflow("flow", on="go", stages=[twice, back, Stage("c")])
    async with make_app(workflow) as app:
        for _ in range(2):
            await ended(app, await app.publish("go"))
    assert len(keys) == len(set(keys)) == 3


@pytest.mark.covers("N15")
async def test_retries_are_extra_attempts(make_app, clock):
    """A step with `retries` is tried that often again, with growing pauses; then the run fails with its error."""
    step = Flaky(9)
    async with make_app(flow(Step(step, retries=2)), clock=clock) as app:
        result = await through(app, clock, await app.publish("go"))
        assert "6 more to come" in result.error.message
        types = [entry.type for entry in await app.runtime.timeline(result.metadata.run_id)]
    assert step.attempts == [1, 2, 3]
    assert [t for t in types if t.startswith("step:")] == ["step:retry", "step:retry", "step:failed"]


@pytest.mark.covers("N16")
async def test_a_step_that_takes_too_long_is_stopped(make_app):
    """A step that runs into its `timeout_seconds` is cancelled, and the run fails with TIMEOUT; it is not retried."""
    began = []

    async def hangs(ctx):
        began.append(ctx.attempt)
        await asyncio.Event().wait()

    async with make_app(flow(Step(hangs, retries=3, timeout_seconds=0.01))) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.error.code, began) == ("TIMEOUT", [1])
        assert "only/hangs" in result.error.message


async def test_a_stage_that_takes_too_long_is_stopped(make_app):
    """The limit of a stage holds for all attempts of all of its steps together."""
    stages = [Stage("slow", steps=[Gate()], timeout_seconds=0.01)]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        assert (await ended(app, await app.publish("go"))).error.code == "TIMEOUT"


async def test_a_step_cannot_change_the_state_behind_its_back(make_app):
    """A step sees a copy of the state: what it changes in there is seen by nobody, only what it returns."""

    async def scribbles(ctx):
        ctx.state["n"] = 99
        ctx.state["deep"]["list"].append(1)

    async with make_app(flow(scribbles)) as app:
        state = (await ended(app, await app.publish("go", {"n": 1, "deep": {"list": []}}))).unwrap().state
        assert (state["n"], state["deep"]) == (1, {"list": []})


async def test_a_plain_function_runs_in_a_thread(make_app):
    """A step may be a plain function; it runs beside the event loop."""

    def plain(ctx):
        return {"thread": threading.current_thread() is threading.main_thread()}

    async with make_app(flow(plain)) as app:
        assert (await ended(app, await app.publish("go"))).unwrap().state["thread"] is False


@pytest.mark.covers("R10")
async def test_log_lines_stand_in_the_timeline(make_app):
    """Every line that a step logs stands in the run's timeline with source logger, its path and its fields."""

    async def logs(ctx):
        ctx.logger.info("extracted", pages=3, odd=object())

    async with make_app(flow(logs)) as app:
        run_id = (await ended(app, await app.publish("go"))).metadata.run_id
        (line,) = [entry for entry in await app.runtime.timeline(run_id) if entry.source == "logger"]
        assert (line.type, line.path, line.payload["message"]) == ("log.info", "only/logs", "extracted")
        assert line.payload["fields"]["pages"] == 3


@pytest.mark.covers("N17")
async def test_a_timeline_is_in_the_order_of_what_happened(make_app):
    """A timeline is numbered from 1 without a gap, in the order of what happened, and the same when read again."""

    async def logs(ctx):
        for n in range(5):
            ctx.logger.info("line", n=n)

    stages = [Stage("a", steps=[logs]), Stage("b", steps=[logs])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = (await ended(app, await app.publish("go"))).metadata.run_id
        timeline = await app.runtime.timeline(run_id)
        assert [entry.seq for entry in timeline] == list(range(1, len(timeline) + 1))
        lines = [entry.payload["fields"]["n"] for entry in timeline if entry.source == "logger"]
        assert lines == [*range(5)] * 2
        assert await app.runtime.timeline(run_id) == timeline


@pytest.mark.covers("N10")
@pytest.mark.parametrize("patch", ["text", 7, ["list"], {"a": object()}, {"a": float("inf")}, {1: 2}])
async def test_a_step_that_returns_no_patch_fails_its_run(make_app, patch):
    """A step that returns anything but a JSON mapping or nothing fails its run with VALIDATION_ERROR."""

    async def odd(ctx):
        return patch

    async with make_app(flow(odd)) as app:
        result = await ended(app, await app.publish("go"))
        assert result.error.code == "VALIDATION_ERROR"
        assert "only/odd" in result.error.message


@pytest.mark.covers("N18")
async def test_a_step_that_cancels_itself_fails_its_run(make_app):
    """A step that raises CancelledError by itself fails its run; the run is not started over for ever."""

    async def odd(ctx):
        raise asyncio.CancelledError

    async with make_app(flow(odd, _quick)) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.error.code, "CancelledError" in result.error.message) == ("EXECUTION_FAILED", True)


async def _quick(ctx):
    """A neighbour."""


async def test_a_step_knows_where_it_is(make_app):
    """A step sees its run, workflow, pipeline, stage, step, event and space."""
    seen = []

    def look(ctx):
        return (ctx.workflow_id, ctx.pipeline_id, ctx.stage_id, ctx.step_id, ctx.event.id, ctx.workspace.space)

    async with make_app(flow(Step(keep(seen, look), id="look"))) as app:
        receipt = await app.publish("go", id="e1", space="acme")
        await ended(app, receipt)
        assert seen == [("flow", "default", "only", "look", "e1", "acme")]


@pytest.mark.covers("R8")
async def test_each_run_has_its_own_state(make_app):
    """Runs that are under way at the same time do not see each other's state."""
    meeting = asyncio.Barrier(3)

    async def add(ctx):
        await meeting.wait()
        return {"seen": [ctx.state["n"]]}

    async with make_app(flow(add)) as app:
        receipts = [await app.publish("go", {"n": n}) for n in range(3)]
        states = [(await ended(app, receipt)).unwrap().state for receipt in receipts]
    assert [(state["n"], state["seen"]) for state in states] == [(0, [0]), (1, [1]), (2, [2])]


@pytest.mark.covers("E8")
async def test_an_abort_while_a_stage_ends_wins(make_app, gate):
    """An abort that comes while a run is pausing or ending ends it aborted: no paused run is left behind."""
    from piecework import pause

    async def aborts_itself(ctx):
        app: App = ctx.workspace.host
        assert await app.runtime.abort(ctx.run_id, "by itself")

    stages = [Stage("a", steps=[aborts_itself], router=pause()), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = run_id_of(await app.publish("go"))
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).error.code == "ABORTED"


@pytest.mark.covers("N21")
async def test_a_step_that_runs_again_publishes_its_events_once(make_app, clock):
    """A step that runs again publishes the same events under the same ids: each of them counts once."""
    heard = []

    async def publishes(ctx):
        for _ in range(2):
            await ctx.workspace.publish("told", {"n": 1})
        if ctx.attempt == 1:
            raise RuntimeError("after the events")

    async with make_app(flow(Step(publishes, retries=1)), clock=clock) as app:
        app.bus.subscribe("told", heard.append)
        assert (await through(app, clock, await app.publish("go"))).ok
    assert len(heard) == 2


@pytest.mark.covers("N47")
async def test_what_a_step_used_does_not_decide_over_its_run(make_app):
    """A step that fails because what it used was closed, aborted or stopped fails its own run as any other."""

    async def uses_what_is_closed(ctx):
        await closed.require("database")

    async def waits_for_another(ctx):
        (await ctx.workspace.host.runtime.wait(aborted)).unwrap()

    held = Gate()
    workflows = [flow(held, id="held", on="held"), flow(uses_what_is_closed, id="1", on="1")]
    async with make_app(*workflows, flow(waits_for_another, id="2", on="2")) as app:
        async with app.workspace() as closed:
            pass
        aborted = run_id_of(await app.publish("held"))
        await app.runtime.abort(aborted)
        for event, word in (("1", closed.id), ("2", "aborted by a call")):
            result = await ended(app, await app.publish(event))
            assert (result.metadata.status, result.error.code) == ("failed", "EXECUTION_FAILED")
            assert word in result.error.message
