"""Two things at the same moment, and what is left of a thing that was cut off: nothing is lost, stuck or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import sys

import psycopg
import pytest

from piecework import (
    App,
    Event,
    Pipeline,
    Serialized,
    Service,
    Settings,
    Stage,
    Step,
    Transient,
    Trigger,
    WaitFor,
    Workflow,
    jump,
    pause,
    terminate,
)
from piecework.errors import ValidationError
from piecework.store.items import Claim, CommitStage
from piecework.store.records import Wait
from piecework.store.sqlite import sqlite_path

from .flows import Gate, asks, ended, flow, keep, nothing, paused, run_id_of
from .mail_server import MailServer

LIMIT = 10  # seconds: what is not lost is there much earlier


async def came_to(app, run_id):
    """What a run came to."""
    return await app.runtime.wait(run_id, timeout_seconds=LIMIT)


async def turn():
    """Lets every task that is ready go on for once."""
    await asyncio.sleep(0)


async def at_most_a_moment(waiting):
    """Gives what must not happen the time to happen."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(waiting, 0.2)


def follow(app, then):
    """Has `await then(item, outcome)` called when a write of the app is durable and before its submitter knows."""
    submit = app.store.run

    async def followed(verb, item, *rest):
        outcome = await submit(verb, item, *rest)
        await then(item, outcome)
        return outcome

    app.store.run = followed


async def cut_off(app, call):
    """Makes a call whose caller is cancelled the moment that its write has been submitted."""
    submit, caller = app.store.run, asyncio.ensure_future(call)

    async def cut(*args):
        if asyncio.current_task() is caller:
            caller.cancel()
        return await submit(*args)

    app.store.run = cut
    with pytest.raises(asyncio.CancelledError):
        await caller
    app.store.run = submit


def asleep(clock):
    """Waits until the node has nothing to do but to wait for its clock, or for somebody to wake it."""
    return clock.until_asleep()


def leave_as_a_killed_node_does(store):
    """Makes the runs in a store those of a node that has died while it executed them."""
    change = "UPDATE {}runs SET owner = 'dead', due_at = NULL WHERE ended_at IS NULL"
    if store.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(sqlite_path(store))) as file, file:
            file.execute(change.format(""))
    else:
        with psycopg.connect(store) as connection:
            connection.execute(change.format("piecework."))


def of_two(first, second):
    """The two stages of a workflow."""
    return Workflow("flow", on="go", stages=[first, second])


# -- the node sleeps, and has to be woken ----------------------------------------------------------------------------


async def test_a_sleeping_node_hears_of_a_new_deadline(make_app, clock, gate):
    """A run that pauses for some time while its node sleeps goes on when that time is over."""
    workflow = of_two(Stage("a", steps=[gate], router=pause(timeout_seconds=5)), Stage("b"))
    async with make_app(workflow, clock=clock) as app:
        receipt = await app.publish("go")
        await gate.reached.get()
        await asleep(clock)
        gate.open.set()
        await paused(app, receipt)
        await clock.advance(6)
        assert (await ended(app, receipt)).unwrap().state["__resume_reason__"] == "timeout"


async def test_a_sleeping_node_hears_of_a_place_that_a_pause_made_free(make_app, clock, gate):
    """Where a paused run gives up its place the one that waits for it starts at once."""
    workflow = of_two(Stage("a", steps=[gate], router=pause()), Stage("b"))
    async with make_app(workflow, mode=Transient(concurrency=1), clock=clock) as app:
        first, second = await app.publish("go"), await app.publish("go")
        await gate.reached.get()
        await asleep(clock)
        gate.open.set()
        assert await paused(app, first) != await paused(app, second)


async def test_a_publish_whose_caller_has_gone_starts_its_run(make_app, clock):
    """An event whose publisher was cancelled while it was written starts its run like any other."""
    async with make_app(flow(), clock=clock) as app:
        await asleep(clock)
        await cut_off(app, app.publish("go", id="e1"))
        (told,) = (await app.publish("go", id="e1")).dispatched
        assert told.outcome == "duplicate"
        assert (await came_to(app, told.run_id)).ok


async def test_a_resume_whose_caller_has_gone_wakes_the_run(make_app, clock):
    """A run whose `resume` was cancelled while it was written goes on."""
    async with make_app(of_two(Stage("a", router=pause()), Stage("b")), clock=clock) as app:
        run_id = await paused(app, await app.publish("go"))
        await asleep(clock)
        await cut_off(app, app.runtime.resume(run_id, wait=False))
        assert (await came_to(app, run_id)).ok


async def test_an_abort_whose_caller_has_gone_ends_the_run(make_app, clock, gate):
    """A run whose `abort` was cancelled while it was written is ended all the same."""
    async with make_app(flow(gate), clock=clock) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await cut_off(app, app.runtime.abort(run_id))
        assert (await came_to(app, run_id)).error.code == "ABORTED"


async def test_a_mail_whose_sender_has_gone_is_sent(make_app, clock, mail_server):
    """A mail whose sender was cancelled while it was enqueued is sent."""
    async with make_app(mail=mail_server.url, clock=clock) as app, app.workspace() as ws:
        await asleep(clock)
        await cut_off(app, ws.send_mail(to="ada@example.org", subject="Hello", text="x"))
        assert len(await mail_server.mails()) == 1
        (run,) = await app.runtime.list_all_runs(kind="job")
        assert (await came_to(app, run.run_id)).ok


# -- cut off in the middle -------------------------------------------------------------------------------------------


async def test_a_run_that_is_interrupted_before_its_first_step_goes_on(make_app):
    """A run whose workflow goes away between its claim and its first step is not stuck: it goes on when it is back."""
    async with make_app(flow()) as app:
        run_id = run_id_of(await app.publish("go"))
        while not app.node.in_flight:
            await turn()
        await app.runtime.register(flow(), replace=True)
        assert (await came_to(app, run_id)).ok


async def test_a_registration_that_is_cancelled_loses_no_run(make_app, store, gate):
    """When `register` is cancelled while it takes over what a dead node left, those runs go on nevertheless."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await app.runtime.stop(grace_seconds=0)
    leave_as_a_killed_node_does(store)
    gate.open.set()
    async with make_app() as app:
        registering = asyncio.ensure_future(app.runtime.register(flow(gate)))
        while not app.runtime.has_workflow("flow"):
            await turn()
        registering.cancel()
        await asyncio.gather(registering, return_exceptions=True)
        assert (await came_to(app, run_id)).ok


async def test_a_continued_run_finds_every_workflow(make_app, store, gate):
    """What a continued run publishes while its app still opens starts the runs of every declared workflow."""
    published = asyncio.Event()

    async def publishes(ctx):
        await ctx.workspace.publish("second")
        published.set()

    async def slowly():
        await at_most_a_moment(published.wait())
        return object()

    async with make_app(flow(gate, id="first")) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await app.runtime.stop(grace_seconds=0)
    leave_as_a_killed_node_does(store)
    second = flow(id="second", on="second", services=[Service("slow", slowly, lazy=False)])
    async with make_app(flow(publishes, id="first"), second) as app:
        assert (await came_to(app, run_id)).ok
        (run,) = await app.runtime.list_all_runs(workflow="second")
        assert (await came_to(app, run.run_id)).ok


@pytest.mark.engines("sqlite")
async def test_a_cancelled_close_of_the_store_still_closes_it(make_app, store):
    """A store whose `close` is cancelled while the last write is under way can be opened again."""
    async with make_app() as app:
        file = sqlite3.connect(sqlite_path(store), isolation_level=None)
        file.execute("BEGIN IMMEDIATE")
        writing = asyncio.ensure_future(app.publish("go", id="e1"))
        await turn()
        closing = asyncio.ensure_future(app.store.close())
        await turn()
        closing.cancel()
        await turn()
        file.execute("ROLLBACK")
        file.close()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await writing
    async with make_app(flow()) as app:
        assert (await ended(app, await app.publish("go"))).ok


# -- a run that is woken while its last segment still closes -----------------------------------------------------------


class SlowToClose:
    """A run whose first segment closes only when it is told to, and a second segment that asks for an event."""

    def __init__(self, make_app):
        self.closing, self.may_close, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.went_on, self.gate = asyncio.Event(), Gate()

        async def uses(ctx):
            await ctx.require("slow")

        async def goes_on(ctx):
            self.went_on.set()
            await self.gate(ctx)
            await asks(ctx, "late")

        stages = [Stage("a", steps=[uses], router=pause()), Stage("b", steps=[goes_on])]
        settings = Settings(pause_window_seconds=0)  # its services close when it pauses
        self.app = make_app(Workflow("flow", on="go", stages=stages), settings=settings)

        @self.app.service(scope="run")
        async def slow():
            yield 1
            self.closing.set()
            await self.may_close.wait()
            self.closed.set()

    async def woken(self):
        """Publishes, resumes the run while it closes, and answers its id when the second segment has been claimed."""
        run_id = await paused(self.app, await self.app.publish("go"))
        await self.closing.wait()
        await self.app.runtime.resume(run_id, wait=False)
        while (await self.app.runtime.get(run_id)).attempt != 1:
            await turn()
        return run_id


async def test_a_woken_run_waits_until_its_last_segment_has_closed(make_app):
    """A run that is woken while its last segment still closes is one run: it is counted once and may ask for events."""
    run = SlowToClose(make_app)
    async with run.app as app:
        run_id = await run.woken()
        await at_most_a_moment(run.went_on.wait())
        run.may_close.set()
        await run.gate.reached.get()
        await run.closed.wait()
        await app.publish("later")
        assert app.node.in_flight == 1
        run.gate.open.set()
        assert (await came_to(app, run_id)).ok


async def test_a_woken_run_can_be_aborted_while_its_last_segment_closes(make_app):
    """A run that is aborted while its last segment still closes ends aborted: nothing of the next one executes."""
    run = SlowToClose(make_app)
    async with run.app as app:
        run_id = await run.woken()
        assert await app.runtime.abort(run_id)
        run.may_close.set()
        assert (await came_to(app, run_id)).error.code == "ABORTED"
        assert not run.went_on.is_set()


async def test_an_abort_between_claim_and_start_is_honoured(make_app):
    """A run that is aborted when it has been claimed and before it starts ends aborted: no step executes."""
    ran, aborted = [], []

    async def abort(item, outcome):
        if isinstance(item, Claim) and outcome:
            aborted.append(await app.runtime.abort(outcome[0].run.run_id))

    async with make_app(flow(keep(ran, lambda ctx: ctx.run_id))) as app:
        follow(app, abort)
        result = await ended(app, await app.publish("go"))
        assert (result.error.code, aborted, ran) == ("ABORTED", [True], [])


async def test_resume_never_answers_running(make_app):
    """`resume` of a run whose pause has only just been committed answers what the run came to, not that it runs."""
    resuming = []

    async def resume(item, outcome):
        if isinstance(item, CommitStage) and outcome.outcome == "parked":
            resuming.append(asyncio.ensure_future(app.runtime.resume(item.run_id)))
            while (await app.runtime.get(item.run_id)).status == "paused":
                await turn()

    async with make_app(of_two(Stage("a", router=pause()), Stage("b"))) as app:
        follow(app, resume)
        await ended(app, await app.publish("go"))
        assert (await resuming[0]).unwrap().status == "completed"


async def test_invoke_never_answers_running(make_app):
    """`invoke` of a run that is woken as soon as it has paused answers paused or its end, never that it runs."""

    async def wake(item, outcome):
        if isinstance(item, CommitStage) and outcome.outcome == "parked":
            await app.publish("more")

    async with make_app(of_two(Stage("a", wait=WaitFor("more")), Stage("b"))) as app:
        follow(app, wake)
        result = await asyncio.wait_for(app.runtime.invoke("flow", "default", Event("go")), LIMIT)
        assert result.unwrap().status in {"paused", "completed"}  # whichever of the two it was when it looked


# -- user code that does what it should not ----------------------------------------------------------------------------


def _exit(_anything):
    sys.exit(3)


async def _exit_later(_ctx):
    sys.exit(3)


@pytest.mark.parametrize(
    "stage",
    [
        Stage("a", steps=[_exit]),
        Stage("a", steps=[_exit_later]),
        Stage("a", steps=[_exit_later, nothing]),
        Stage("a", router=_exit),
        Stage("a", wait=_exit),
    ],
    ids=["plain step", "step", "one of two steps", "router", "wait function"],
)
async def test_an_exit_ends_the_run_and_not_the_node(make_app, stage):
    """`sys.exit()` in a step, a router or a wait function fails its run; the node goes on with others."""
    async with make_app(Workflow("exits", on="go", stages=[stage]), flow(on="other")) as app:
        result = await ended(app, await app.publish("go"))
        assert result.error.code == "EXECUTION_FAILED"
        assert "exit" in result.error.message.lower()
        assert (await ended(app, await app.publish("other"))).ok


def _cancelled(_anything):
    raise asyncio.CancelledError


async def _cancelled_later(_ctx):
    raise asyncio.CancelledError


async def _cancels_itself(_ctx):
    asyncio.current_task().cancel()
    await turn()


@pytest.mark.parametrize(
    "build",
    [
        lambda count: Stage("a", steps=[count], router=_cancelled),
        lambda count: Stage("a", steps=[count], wait=_cancelled),
        lambda count: Stage("a", steps=[count, _cancelled]),
        lambda count: Stage("a", steps=[count, _cancelled_later]),
        lambda count: Stage("a", steps=[count, _cancels_itself]),
    ],
    ids=["router", "wait function", "plain step", "step", "step that cancels itself"],
)
async def test_a_cancel_that_nobody_asked_for_fails_the_run_once(make_app, build):
    """User code that raises CancelledError, or cancels its own task, fails its run; it is not begun anew."""
    ran = []
    stage = build(keep(ran, lambda ctx: ctx.run_id))
    async with make_app(Workflow("flow", on="go", stages=[stage])) as app:
        result = await ended(app, await app.publish("go"))
        assert result.error.code == "EXECUTION_FAILED"
    assert len(ran) == 1


async def test_a_step_that_cancels_itself_leaves_its_neighbours_their_time(make_app, gate):
    """A stage of which one step cancels itself is over when the others have ended, as with any other failure."""
    async with make_app(flow(_cancels_itself, gate)) as app:
        receipt = await app.publish("go")
        run_id = await gate.reached.get()
        await at_most_a_moment(app.runtime.wait(run_id))
        assert (await app.runtime.get(run_id)).status == "running"
        gate.open.set()
        assert not (await ended(app, receipt)).ok


async def test_a_synchronous_step_can_log(make_app):
    """What a synchronous step logs from its thread stands in the run's timeline."""

    def logs(ctx):
        ctx.logger.info("counted", pages=3)

    async with make_app(flow(logs)) as app:
        receipt = await app.publish("go")
        assert (await ended(app, receipt)).ok
        lines = [entry.payload for entry in await app.runtime.timeline(run_id_of(receipt)) if entry.source == "logger"]
        assert [(line["message"], line["fields"]["pages"]) for line in lines] == [("counted", 3)]


async def test_a_step_cannot_change_what_others_see(make_app, gate):
    """What a step or a router changes in its event or its state is seen by nobody else: only patches are."""
    seen = []

    def router(view):
        view.event.payload["box"]["n"] += 1
        return jump("end")

    async def scribbles(ctx):
        ctx.event.payload["box"]["n"] += 1
        ctx.state["box"]["n"] += 1
        gate.open.set()
        if ctx.attempt == 1:
            raise ValueError("once more")
        seen.append((ctx.event.payload["box"]["n"], ctx.state["box"]["n"]))

    async def looks(ctx):
        await gate(ctx)
        seen.append((ctx.event.payload["box"]["n"], ctx.state["box"]["n"]))

    stages = [Stage("a", steps=[Step(scribbles, retries=1), looks], router=router), Stage("end", steps=[looks])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        result = await ended(app, await app.publish("go", {"box": {"n": 0}}))
        assert result.unwrap().state["box"] == {"n": 0}
    assert sorted(seen) == [(0, 0), (0, 0), (1, 1)]


ABSURD = [1e12, float("inf"), float("nan"), 0, -1]


@pytest.mark.parametrize("seconds", ABSURD)
@pytest.mark.parametrize(
    "build",
    [
        lambda seconds: pause(timeout_seconds=seconds),
        lambda seconds: WaitFor("more", timeout_seconds=seconds),
        lambda seconds: Step(nothing, timeout_seconds=seconds),
        lambda seconds: Stage("a", timeout_seconds=seconds),
        lambda seconds: App("x").piece("feed", every_seconds=seconds),
        lambda seconds: App("x").piece("feed", timeout_seconds=seconds),
    ],
    ids=["pause", "wait", "step", "stage", "piece", "update"],
)
def test_absurd_durations_are_refused_where_they_are_given(build, seconds):
    """A duration that is no positive number of at most a hundred years is refused where it is given."""
    with pytest.raises(ValidationError):
        build(seconds)


def test_an_asynchronous_predicate_is_refused():
    """A predicate that would have to be awaited, and so would always be true, is refused where it is given."""

    async def when(event):
        return False

    with pytest.raises(ValidationError, match="async"):
        Trigger("go", when)


# -- what a run waits for ----------------------------------------------------------------------------------------------


async def test_what_a_stage_waits_for_ends_with_it(make_app):
    """What one stage waits for, and until when, is forgotten when the run pauses at another."""
    stages = [
        Stage("approval", wait=WaitFor("approved", timeout_seconds=60)),
        Stage("payment", wait=WaitFor("paid")),
        Stage("end"),
    ]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.publish("approved")
        while (await app.runtime.get(run_id)).waiting_for != ["paid"]:
            await app.runtime.wait(run_id, until="paused", timeout_seconds=LIMIT)
        assert (await app.runtime.get(run_id)).expires_at is None
        assert (await app.publish("approved")).dispatched == []
        assert (await app.publish("paid")).dispatched[0].run_id == run_id
        assert (await came_to(app, run_id)).ok


async def test_a_loop_that_waits_for_the_same_misses_nothing(make_app):
    """A loop over a stage that waits keeps what comes between two rounds, and leaves one row however often it turns."""
    rounds, seen = 20, []
    gate = Gate()
    again = Stage(
        "b",
        steps=[keep(seen, lambda ctx: ctx.state["n"]), gate],
        router=lambda view: jump("a") if view.state["n"] < rounds else jump("c"),
    )
    stages = [Stage("a", wait=WaitFor("tick")), again, Stage("c", router=pause())]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.publish("tick", {"n": 1})
        await gate.reached.get()
        kept = [(await app.publish("tick", {"n": n})).dispatched[0].outcome for n in range(2, rounds)]
        assert kept == ["buffered"] * (rounds - 2)
        gate.open.set()
        for _ in kept:
            await asyncio.wait_for(gate.reached.get(), LIMIT)
        assert len(await app.store.read("waits_of_runs", {"run_ids": [run_id]}, Wait)) == 1
        await app.publish("tick", {"n": rounds})
        while (await app.runtime.get(run_id)).waiting_for != []:
            await app.runtime.wait(run_id, until="paused", timeout_seconds=LIMIT)
        assert (await app.runtime.resume(run_id)).ok
    assert seen == list(range(1, rounds + 1))


async def test_a_loop_that_waits_for_less_misses_nothing(make_app):
    """What comes between two rounds is kept for the types that the next round waits for too, and only for those."""

    async def hurry(ctx):
        if ctx.state["n"] == 1:
            for event in ("late", "paid"):
                await ctx.workspace.publish(event, {"n": 2})

    def awaited(view):
        return WaitFor("paid", "late") if view.state["n"] == 0 else WaitFor("paid")

    again = Stage("b", steps=[hurry], router=lambda view: jump("a") if view.state["n"] == 1 else terminate)
    async with make_app(Workflow("flow", on="go", stages=[Stage("a", wait=awaited), again])) as app:
        run_id = await paused(app, await app.publish("go", {"n": 0}))
        await app.publish("late", {"n": 1})
        state = (await came_to(app, run_id)).unwrap().state
    assert (state["n"], state["__resume_event__"]["type"]) == (2, "paid")


async def test_cancelling_one_registration_keeps_the_events_of_the_other(make_app):
    """`cancel` of one of two registrations forgets what was kept for it, and nothing of the other's."""
    seen = []

    async def ask(ctx):
        pauses = await ctx.require("__pause_service__")
        first, _ = await pauses.register("a"), await pauses.register("b")
        for event in ("a", "b"):
            await ctx.workspace.publish(event)
        await pauses.cancel(first)

    note = keep(seen, lambda ctx: ctx.state["__resume_event__"]["type"])
    async with make_app(of_two(Stage("a", steps=[ask], router=pause()), Stage("b", steps=[note]))) as app:
        assert (await ended(app, await app.publish("go"))).ok
    assert seen == ["b"]


async def test_a_run_whose_trigger_is_no_more_is_not_tried_for_ever(make_app):
    """A run whose trigger a newer version of its workflow has not is paused again when it is woken, and says why."""

    def version(trigger):
        stages = [Stage("a", wait=WaitFor("more")), Stage("b")]
        return Workflow("flow", triggers={trigger: Trigger("go")}, pipelines={trigger: Pipeline(stages)})

    async with make_app(version("old")) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.deregister("flow")
        await app.runtime.register(version("new"))
        await app.publish("more")
        while (info := await app.runtime.get(run_id)).status != "paused" or info.error is None:
            await turn()
        assert info.error["code"] == "EXPIRED_DEFINITION"
        claims = [entry for entry in await app.runtime.timeline(run_id) if entry.type == "run:claimed"]
        assert len(claims) == 1


async def test_a_run_without_its_workflow_stays_paused(make_app):
    """`resume` of a run whose workflow is not registered answers NOT_FOUND, and the run stays as it is."""
    async with make_app(of_two(Stage("a", router=pause()), Stage("b"))) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.deregister("flow")
        result = await asyncio.wait_for(app.runtime.resume(run_id), LIMIT)
        assert (result.error.code, (await app.runtime.get(run_id)).status) == ("NOT_FOUND", "paused")


async def test_a_woken_run_that_nobody_claims_can_be_aborted(make_app):
    """`abort` ends a run that was woken and that no node executes; its place is free for the next."""
    workflow = of_two(Stage("a", wait=WaitFor("more")), Stage("b"))
    async with make_app(workflow, mode=Serialized()) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.deregister("flow")
        assert (await app.publish("more")).dispatched[0].outcome == "resumed"
        assert await app.runtime.abort(run_id)
        assert (await app.runtime.get(run_id)).status == "aborted"
        await app.runtime.register(workflow, mode=Serialized())
        assert (await app.publish("go")).dispatched[0].outcome == "started"


async def test_a_mode_that_leaves_more_room_lets_the_queue_go(make_app):
    """Runs that wait behind a paused one start, in their order, at the next event after the mode became transient."""
    started = asyncio.Queue()

    async def tells(ctx):
        started.put_nowait(ctx.event.payload["n"])

    workflow = of_two(Stage("a", steps=[tells], router=pause()), Stage("b"))
    async with make_app(workflow, mode=Serialized()) as app:
        receipts = [await app.publish("go", {"n": n}) for n in range(3)]
        await paused(app, receipts[0])
        await app.runtime.register(workflow, mode=Transient(), replace=True)
        receipts.append(await app.publish("go", {"n": 3}))
        for receipt in receipts:
            await paused(app, receipt)
    assert [started.get_nowait() for _ in range(started.qsize())] == [0, 1, 2, 3]


async def test_a_step_that_fails_while_it_is_interrupted_is_shown(make_app, caplog):
    """What a step raises when it is cut off is a line in the log, not an exception that nobody retrieved."""
    reached, tries = asyncio.Event(), []

    async def stumbles(ctx):
        tries.append(ctx.run_id)
        if len(tries) > 1:
            return
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("in its clean-up") from None

    async with make_app(flow(stumbles)) as app:
        run_id = run_id_of(await app.publish("go"))
        await reached.wait()
        await app.runtime.register(flow(stumbles), replace=True)
        assert (await came_to(app, run_id)).ok
    gc.collect()
    assert "in its clean-up" in caplog.text
    assert "never retrieved" not in caplog.text


async def test_an_event_that_waits_is_not_decided_without_its_workflow(make_app):
    """A pending event is left pending by a node that loses its workflow between the look at it and the decision."""
    async with make_app(flow(version="1")) as app:
        dispatcher = app.runtime._intake.on_left.__self__
        await app.runtime._leaving.give_way("flow")
        receipt = await app.publish("go")
        assert [result.outcome for result in receipt.dispatched] == ["pending"]

        async def a_moment_ago():
            return {"flow": "1"}

        newest, dispatcher._newest_here = dispatcher._newest_here, a_moment_ago
        await dispatcher.look()
        dispatcher._newest_here = newest
        assert await app.runtime.list_all_runs() == []
        started = asyncio.Queue()
        await app.runtime.register(flow(version="1"), on_complete=started.put)
        assert (await asyncio.wait_for(started.get(), LIMIT)).ok


async def test_more_concurrency_lets_the_queue_go(make_app, gate):
    """Runs that wait start at the next event after their workflow may have more of them at once."""
    async with make_app(flow(gate), mode=Transient(concurrency=1)) as app:
        runs = {run_id_of(await app.publish("go")) for _ in range(5)}
        await gate.reached.get()
        await app.runtime.register(flow(gate), mode=Transient(concurrency=10), replace=True)
        runs.add(run_id_of(await app.publish("go")))
        at_once = {await asyncio.wait_for(gate.reached.get(), LIMIT) for _ in runs}
        gate.open.set()
    assert at_once == runs


# -- the end of the app, and whoever only watches ----------------------------------------------------------------------


async def test_an_observer_that_never_returns_does_not_hold_up_the_end(make_app):
    """An asynchronous observer that never returns is cancelled when the app has closed for long enough."""
    heard = asyncio.Event()

    async def never(event):
        heard.set()
        await asyncio.Event().wait()

    app = make_app(settings=Settings(close_timeout_seconds=0.05))
    app.bus.subscribe("*", never)
    async with asyncio.timeout(LIMIT):
        async with app:
            await app.publish("go")
            await heard.wait()


@pytest.mark.parametrize("observer", [_cancelled, _cancelled_later], ids=["plain", "asynchronous"])
async def test_a_cancelled_observer_reaches_no_publisher(app, observer):
    """An observer that raises CancelledError does not reach whoever publishes."""
    app.bus.subscribe("*", observer)
    assert (await app.publish("go")).dispatched == []


async def test_a_step_may_publish_while_the_app_closes(make_app, gate):
    """A step that is under way when the app closes may still publish, through the bus too: its run completes."""

    async def emits(ctx):
        await gate(ctx)
        await app.bus.emit(Event("late"))

    async with make_app(flow(emits)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        letting_go = asyncio.ensure_future(let_go_when_it_stops(app.node, gate))
    await letting_go
    async with make_app() as app:
        assert (await app.runtime.get(run_id)).status == "completed"


async def let_go_when_it_stops(node, gate):
    """Opens a gate once a node has begun to stop."""
    while not node._stopping:
        await turn()
    gate.open.set()


async def test_one_failing_service_keeps_no_other_open(make_app):
    """When a service of one workflow fails to close, the services of all others are closed, and the failure is told."""
    closed = []

    def service(name, *, fails):
        async def made():
            yield name
            closed.append(name)
            if fails:
                raise ValueError(f"close {name}")

        return Service("service", made, lazy=False)

    workflows = [flow(id=name, services=[service(name, fails=name == "one")]) for name in ("one", "two", "three")]
    with pytest.raises(ExceptionGroup):
        async with make_app(*workflows):
            assert closed == []
    assert sorted(closed) == ["one", "three", "two"]


# -- mail ------------------------------------------------------------------------------------------------------------


class Latin(MailServer):
    """A mail server that refuses one recipient, and speaks Latin-1."""

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - aiosmtpd calls it so
        if address == "bob@example.org":
            return "550 Boîte pleine".encode("latin-1")
        envelope.rcpt_tos.append(address)
        return "250 OK"


async def test_a_mail_that_is_partly_refused_in_another_tongue_is_sent_once(make_app):
    """A mail of which one recipient is refused with words that are not UTF-8 is sent once; the result says who."""
    server = Latin()
    await server.start()
    async with make_app(mail=server.url) as app:
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to=["ada@example.org", "bob@example.org"], subject="Hello", text="x")
        assert (await came_to(app, run_id)).ok
        run = await app.runtime.get(run_id)
        assert list(run.result["refused"]) == ["bob@example.org"]
    await server.stop()
    assert (run.status, len(server.taken)) == ("completed", 1)
