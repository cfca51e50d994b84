from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from piecework import DELETE, Exclusive, Pipeline, Stage, Step, Trigger, WaitFor, Workflow, jump
from piecework.container.container import Container
from piecework.errors import PieceworkError, ValidationError

from .flows import ended, flow, keep, paused, run_id_of


@pytest.mark.covers("N301")
async def test_routers_that_jump_for_ever_fail_their_run(make_app):
    """A run whose routers jump for ever fails after `max_stage_visits` stages, and says what to do."""
    visits = []
    round_and_round = Stage("a", steps=[keep(visits, lambda ctx: ctx.stage_id)], router=jump("a"))
    pipeline = Pipeline([round_and_round], max_stage_visits=5)
    async with make_app(Workflow("flow", triggers={"go": Trigger("go")}, pipelines={"go": pipeline})) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.error.code, "max_stage_visits" in result.error.message) == ("EXECUTION_FAILED", True)
    assert visits == ["a"] * 5


async def test_a_run_that_pauses_is_no_endless_loop(make_app):
    """A run that pauses in every round may go on for ever: the guard counts stages without a pause between them."""
    stages = [Stage("a", wait=WaitFor("next")), Stage("b", router=jump("a"))]
    pipeline = Pipeline(stages, max_stage_visits=3)
    async with make_app(Workflow("flow", triggers={"go": Trigger("go")}, pipelines={"go": pipeline})) as app:
        run_id = await paused(app, await app.publish("go"))
        for _ in range(4):
            assert (await app.runtime.resume(run_id)).unwrap().status == "paused"


@pytest.mark.parametrize("limit", [0, -1, True, 1.5])
def test_a_wrong_guard_is_refused(limit):
    """`max_stage_visits` is a whole number from 1."""
    with pytest.raises(ValidationError, match="max_stage_visits"):
        Pipeline([Stage("a")], max_stage_visits=limit)


@pytest.mark.covers("N302")
async def test_the_last_step_wins_where_the_stage_says_so(make_app):
    """With `Stage(merge="last")` the value of the step that is declared later stands; nothing is a conflict."""
    first_may_end = asyncio.Event()

    async def first(ctx):
        await first_may_end.wait()
        return {"total": 1, "first": True}

    async def second(ctx):
        first_may_end.set()
        return {"total": 2}

    stages = [Stage("only", steps=[first, second], merge="last")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        state = (await ended(app, await app.publish("go"))).unwrap().state
        assert (state["total"], state["first"]) == (2, True)


@pytest.mark.covers("N303")
async def test_a_patch_takes_a_key_away(make_app):
    """`DELETE` in a step's patch, also beneath a key, takes the key out of the state; None is a value like another."""

    async def clears(ctx):
        return {"old": DELETE, "deep": {"gone": DELETE, "none": None}, "never": DELETE}

    async with make_app(flow(clears)) as app:
        receipt = await app.publish("go", {"old": 1, "deep": {"gone": 1, "kept": 2}})
        state = (await ended(app, receipt)).unwrap().state
        assert ("old" in state, "never" in state, state["deep"]) == (False, False, {"kept": 2, "none": None})


@pytest.mark.parametrize("gone", [DELETE, {"__delete__": True}])
async def test_a_resume_takes_a_key_away(make_app, gone):
    """A resume's patch deletes with `DELETE`, which is `{"__delete__": true}` where it has to be JSON."""
    stages = [Stage("a", wait=WaitFor("next")), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", {"old": 1, "kept": 2}))
        state = (await app.runtime.resume(run_id, {"old": gone})).unwrap().state
        assert ("old" in state, state["kept"]) == (False, 2)


async def test_to_delete_and_to_write_is_a_conflict(make_app):
    """A step that deletes what its neighbour writes disagrees with it."""

    async def writes(ctx):
        return {"place": {"a": 1}}

    async def deletes(ctx):
        return {"place": DELETE}

    async with make_app(flow(writes, deletes)) as app:
        assert (await ended(app, await app.publish("go"))).error.code == "CONFLICT"


@pytest.mark.covers("N304")
@pytest.mark.parametrize("what", ["router", "wait"])
def test_what_decides_how_a_run_goes_on_is_not_async(what):
    """An async router or wait function is refused when the stage is made."""

    async def asks(view):
        """Would be awaited by nobody."""

    with pytest.raises(ValidationError, match="not async"):
        Stage("a", **{what: asks})


@pytest.mark.covers("N305")
async def test_progress_is_seen_while_the_run_runs(make_app, gate):
    """What a step tells of its progress stands in RunInfo and in the timeline while the run still runs."""

    async def works(ctx):
        ctx.progress(0.4, "page 2 of 5")
        await gate(ctx)

    async with make_app(flow(works)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        while (info := await app.runtime.watch("flow", run_id)).progress is None:
            await asyncio.sleep(0)
        assert (info.status, info.progress.fraction, info.progress.message) == ("running", 0.4, "page 2 of 5")
        (listed,) = await app.runtime.list_all_runs()
        (line,) = [entry for entry in await app.runtime.timeline(run_id) if entry.type == "step:progress"]
        assert (listed.progress, line.path) == (info.progress, "only/works")
        assert line.payload == {"fraction": 0.4, "message": "page 2 of 5"}
        gate.open.set()
        assert (await app.runtime.wait(run_id)).ok


async def test_progress_of_a_thread_is_batched(make_app):
    """A synchronous step may tell its progress as often as it likes: the newest stands, and the run goes on."""

    def works(ctx):
        for done in range(1001):
            ctx.progress(done / 1000)

    async with make_app(flow(works)) as app:
        run_id = (await ended(app, await app.publish("go"))).metadata.run_id
        assert (await app.runtime.watch("flow", run_id)).progress.fraction == 1
        told = [entry for entry in await app.runtime.timeline(run_id) if entry.type == "step:progress"]
        assert 0 < len(told) < 1000


@pytest.mark.parametrize("told", [(2,), (-0.1,), (float("nan"),), (True,), ("half",), (0.5, 7)])
async def test_progress_that_is_none_is_refused(make_app, told):
    """Progress is a number from 0 to 1, with a text or none."""

    async def works(ctx):
        ctx.progress(*told)

    async with make_app(flow(works)) as app:
        assert (await ended(app, await app.publish("go"))).error.code == "VALIDATION_ERROR"


@pytest.mark.covers("N306")
async def test_a_step_has_its_services_at_hand(make_app):
    """A step asks by `require`, `resolve` and `select`, and has the services of its workspace as attributes."""
    seen = []

    async def works(ctx):
        resolved = await ctx.resolve("rate")
        seen.extend([await ctx.require("rate"), resolved.instance, ctx.rate, ctx.select(lambda state: state["n"])])
        with pytest.raises(AttributeError, match="rates"):
            _ = ctx.rates

    app = make_app(flow(works))
    app.service(scope="run")(rate)
    async with app:
        assert (await ended(app, await app.publish("go", {"n": 3}))).ok
    assert seen == [7, 7, 7, 3]


def rate(ctx):
    """A service."""
    return 7


@pytest.mark.covers("N307")
async def test_a_hung_thread_ends_its_run_and_holds_nothing_up(make_app):
    """A synchronous step that ignores its timeout fails its run with TIMEOUT and advice, is not tried again while it
    lives, and does not hold up the end of the app."""
    begun, may_end, calls = threading.Event(), threading.Event(), []

    def hangs(ctx):
        calls.append(ctx.attempt)
        begun.set()
        may_end.wait()

    try:
        async with make_app(flow(Step(hangs, retries=3, timeout_seconds=0.05))) as app:
            result = await ended(app, await app.publish("go"))
            assert (result.error.code, 'isolation="process"' in result.error.message) == ("TIMEOUT", True)
            assert (begun.is_set(), app.threads.busy) == (True, 1)
        assert calls == [1]
    finally:
        may_end.set()


async def test_a_stage_timeout_caps_all_attempts(make_app, clock):
    """A stage's timeout ends its steps also between their attempts; what has timed out is not tried again."""
    calls = []

    async def fails(ctx):
        calls.append(ctx.attempt)
        raise RuntimeError("not yet")

    stages = [Stage("only", steps=[Step(fails, retries=9)], timeout_seconds=0.05)]
    async with make_app(Workflow("flow", on="go", stages=stages), clock=clock) as app:
        assert (await ended(app, await app.publish("go"))).error.code == "TIMEOUT"
    assert calls == [1]


async def test_a_failure_names_the_stage_and_every_cause(make_app):
    """The failure of a stage says how many steps failed, in which stage, and each cause."""

    async def left(ctx):
        raise RuntimeError("left went wrong")

    async def right(ctx):
        raise LookupError("right went wrong")

    stages = [Stage("only", steps=[left, right], label="The only one")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        message = (await ended(app, await app.publish("go"))).error.message
    assert message.startswith("2 step(s) failed in The only one:only: ")
    assert all(cause in message for cause in ("left went wrong", "right went wrong"))


async def test_attempts_are_further_and_further_apart(make_app, clock):
    """A step's attempts are apart by growing waits on the clock: none is made before its time."""
    attempts = []

    async def fails(ctx):
        attempts.append(ctx.attempt)
        raise RuntimeError("again")

    async with make_app(flow(Step(fails, retries=3)), clock=clock) as app:
        run_id = run_id_of(await app.publish("go"))
        while not attempts:
            await asyncio.sleep(0)
        await clock.advance(0.04)
        assert attempts == [1]
        await clock.advance(11)
        assert not (await app.runtime.wait(run_id, timeout_seconds=20)).ok
        assert attempts == [1, 2, 3, 4]
        waits = [e.payload["delay_seconds"] for e in await app.runtime.timeline(run_id) if e.type == "step:retry"]
        assert len(waits) == 3
        assert waits == sorted(waits)


async def test_an_abort_ends_the_wait_between_attempts(make_app, clock):
    """A run that is aborted between two attempts of a step makes no further one."""
    attempts = []

    async def fails(ctx):
        attempts.append(ctx.attempt)
        raise RuntimeError("again")

    async with make_app(flow(Step(fails, retries=3)), clock=clock) as app:
        run_id = run_id_of(await app.publish("go"))
        while not attempts:
            await asyncio.sleep(0)
        await clock.advance(0)
        assert await app.runtime.abort(run_id)
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).error.code == "ABORTED"
        await clock.advance(60)
    assert attempts == [1]


async def test_a_router_decides_on_a_copy(make_app):
    """What a router does with the state that it is given changes nothing."""

    def meddles(view):
        view.state["deep"]["n"] = 2
        return jump("b")

    stages = [Stage("a", router=meddles), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        state = (await ended(app, await app.publish("go", {"deep": {"n": 1}}))).unwrap().state
        assert state["deep"] == {"n": 1}


async def test_a_jump_to_nowhere_fails_with_near_names(make_app):
    """A router that jumps to a stage that is not there fails its run with NOT_FOUND."""
    stages = [Stage("first", router=lambda view: jump("secnd")), Stage("second")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        error = (await ended(app, await app.publish("go"))).error
        assert (error.code, "'second'" in error.message) == ("NOT_FOUND", True)


PROGRAM = """
import asyncio, threading
from piecework import App, Stage, Step, Workflow

async def interrupts(ctx):
    raise KeyboardInterrupt

def hangs(ctx):
    threading.Event().wait()

app = App("program", store="sqlite:///state.db")
app.workflow(Workflow("flow", on="go", stages=[Stage("only", steps=[Step({step}, timeout_seconds=0.05)])]))

async def main():
    async with app:
        (result,) = (await app.publish("go")).dispatched
        print((await app.runtime.wait(result.run_id)).error.code, flush=True)

asyncio.run(main())
print("over")
"""


def run_program(folder, step):
    program = PROGRAM.replace("{step}", step)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=25, check=False
    )


def test_a_hung_thread_does_not_hold_up_the_process(tmp_path):
    """A process ends although a synchronous step of it hangs for ever."""
    done = run_program(tmp_path, "hangs")
    assert (done.returncode, done.stdout.split()) == (0, ["TIMEOUT", "over"])


def test_an_interrupt_is_not_swallowed(tmp_path):
    """A KeyboardInterrupt in a step ends the program; it is no failure of the step."""
    done = run_program(tmp_path, "interrupts")
    assert (done.returncode != 0, "KeyboardInterrupt" in done.stderr, "over" in done.stdout) == (True, True, False)


@pytest.mark.covers("E58")
async def test_a_workflow_that_feeds_itself_is_stopped(make_app):
    """An event carries how many runs it came by; at 32 its triggers answer rejected, reason loop."""
    stopped = asyncio.get_running_loop().create_future()

    async def publishes(ctx):
        receipt = await ctx.workspace.publish("go")
        (result,) = receipt.dispatched
        if result.outcome == "rejected":
            stopped.set_result((ctx.event.hops, result.reason))

    async with make_app(flow(publishes)) as app:
        last = run_id_of(await app.publish("go"))
        assert await stopped == (31, "loop")
        await app.runtime.wait(last)
        assert len(await app.runtime.list_all_runs()) == 32


async def test_hops_are_counted_by_way_of_jobs_and_transactions(make_app, database_url):
    """An event has its run's hops and one more, published by a step, by its job, or with its transaction."""
    heard = asyncio.Queue()

    async def steps(ctx):
        await ctx.workspace.publish("told", {"by": "step"})
        await ctx.workspace.enqueue_job("tells")
        async with ctx.database.transaction():
            await ctx.workspace.publish("told", {"by": "transaction"})

    async def hears(ctx):
        heard.put_nowait((ctx.state["by"], ctx.event.hops))

    app = make_app(flow(steps), flow(hears, id="hears", on="told"), database=database_url)

    @app.job("tells")
    async def tells(ws):
        await ws.publish("told", {"by": "job"})

    async with app:
        assert (await ended(app, await app.publish("go"))).ok
        told = {await heard.get() for _ in range(3)}
        await app.publish("told", {"by": "outside"})
        assert told | {await heard.get()} == {("step", 1), ("job", 1), ("transaction", 1), ("outside", 0)}


@pytest.mark.covers("E35")
async def test_a_forgotten_pause_is_found_and_has_an_end(make_app, clock):
    """A paused run keeps an exclusive workflow busy; `list_all_runs` shows it, and the timeout of its pause ends it."""
    stages = [Stage("a", wait=WaitFor("never", timeout_seconds=3600)), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages), mode=Exclusive(), clock=clock) as app:
        run_id = await paused(app, await app.publish("go"))
        (result,) = (await app.publish("go")).dispatched
        assert (result.outcome, result.active_run_id) == ("rejected", run_id)
        (stuck,) = await app.runtime.list_all_runs(status="paused")
        assert (stuck.run_id, stuck.waiting_for, (stuck.expires_at - stuck.paused_at).total_seconds()) == (
            run_id,
            ["never"],
            3600,
        )
        await clock.advance(3600)
        state = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state
        assert state["__resume_reason__"] == "timeout"
        assert await paused(app, await app.publish("go")) != run_id


@pytest.mark.covers("E52")
async def test_a_container_that_closes_tells_who_waits_for_a_build():
    """Whoever waits for a service while its container is disposed gets CANCELLED."""
    building = asyncio.Event()

    async def slow():
        building.set()
        await asyncio.Event().wait()

    async with Container() as workflow_scoped, Container() as run:
        workflow_scoped.register("slow", slow)
        run.extend(workflow_scoped)
        waiting = asyncio.ensure_future(run.resolve("slow"))
        await building.wait()
        await workflow_scoped.dispose()
        with pytest.raises(PieceworkError) as cut_off:
            await waiting
        assert cut_off.value.code == "CANCELLED"


@pytest.mark.covers("E56")
async def test_a_clock_that_is_set_moves_deadlines_and_not_waits(make_app, clock):
    """Due times are moments of the wall clock, waits of this process last as long as they were to: when the clock is
    set a year on, a deadline has come, and a step's next attempt is as far away as before."""
    attempts = []

    async def fails_once(ctx):
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise RuntimeError("once")

    waits = Workflow("waits", on="wait", stages=[Stage("a", wait=WaitFor("x", timeout_seconds=3600)), Stage("b")])
    async with make_app(waits, flow(Step(fails_once, retries=1)), clock=clock) as app:
        run_id = await paused(app, await app.publish("wait"))
        retried = asyncio.ensure_future(ended(app, await app.publish("go")))
        await clock.until_asleep(2)
        clock.set(clock.now() + 365 * 86_400 * 1_000_000)
        await app.publish("wakes")  # whatever makes the node look
        app._any_parts().node.wake()
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state["__resume_reason__"] == "timeout"
        assert attempts == [1]
        await clock.advance(11)
        assert ((await retried).ok, attempts) == (True, [1, 2])
