from __future__ import annotations

import asyncio

import pytest

from piecework import Event, Pipeline, Serialized, Stage, Trigger, WaitFor, Workflow, jump, pause, terminate
from piecework.errors import ConflictError, NotFoundError, StoppedError, TimeoutExceededError, ValidationError
from piecework.store.items import Claim

from .flows import ended, flow, keep, nothing, paused, run_id_of

WAITS = Workflow("flow", on="go", stages=[Stage("ask", router=pause()), Stage("end", steps=[nothing])])


@pytest.mark.covers("R1")
async def test_all_steps_run_and_stages_run_in_order(make_app):
    """Every step of every stage runs, and a stage begins when the one before it is over."""
    ran = []
    steps = {name: keep(ran, lambda ctx: ctx.step_id) for name in "abcd"}
    for name, step in steps.items():
        step.__name__ = name
    stages = [Stage("1", steps=[steps["a"], steps["b"]]), Stage("2", steps=[steps["c"], steps["d"]])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        assert (await ended(app, await app.publish("go"))).ok
    assert (set(ran[:2]), set(ran[2:])) == ({"a", "b"}, {"c", "d"})


@pytest.mark.covers("R3")
async def test_a_run_goes_through_its_statuses(make_app):
    """Invoke, pause, resume and abort move a run through the statuses that the documentation tells."""
    async with make_app(WAITS) as app:
        one = await app.runtime.invoke("flow", "default", Event("go"))
        assert one.value.status == "paused"
        assert (await app.runtime.resume(one.metadata.run_id)).value.status == "completed"
        two = await app.runtime.invoke("flow", "default", Event("go"))
        assert await app.runtime.abort(two.metadata.run_id)
        assert (await app.runtime.get(two.metadata.run_id)).status == "aborted"


@pytest.mark.covers("R38", "R40")
async def test_invoke_needs_no_event_on_the_bus_and_answers_the_end(make_app):
    """`invoke` runs a pipeline without any published event and answers, ok, when the run has completed."""
    heard = []
    async with make_app(flow()) as app:
        app.bus.subscribe("*", heard.append)
        result = await app.runtime.invoke("flow", "default", Event("go", {"n": 1}))
        assert (result.ok, result.value.status, result.value.state["n"]) == (True, "completed", 1)
        assert heard == []


@pytest.mark.covers("R41", "R42")
async def test_invoke_answers_at_a_pause_with_the_id_to_resume_by(make_app):
    """`invoke` answers, ok, when the run pauses; `metadata.run_id` is what `resume` takes."""
    async with make_app(WAITS) as app:
        result = await app.runtime.invoke("flow", "default", Event("go"))
        assert (result.ok, result.value.status) == (True, "paused")
        assert (await app.runtime.resume(result.metadata.run_id)).unwrap().status == "completed"


@pytest.mark.covers("R39")
async def test_invoke_is_outside_the_mode(make_app, gate):
    """`invoke` runs even while the mode would drop an event, and takes no place in it."""
    mode = Serialized(capacity=0)
    held = flow(gate)
    async with make_app(held, mode=mode) as app:
        first = await app.publish("go")
        await gate.reached.get()
        assert [r.outcome for r in (await app.publish("go")).dispatched] == ["dropped"]
        invoked = asyncio.ensure_future(app.runtime.invoke("flow", "default", Event("go")))
        await gate.reached.get()
        gate.open.set()
        assert (await invoked).ok
        assert (await ended(app, first)).ok


async def test_a_run_id_names_one_call(make_app):
    """`invoke` under the id of another workflow's run answers CONFLICT, not what that run came to."""
    async with make_app(flow(id="one"), flow(id="two")) as app:
        one = [await app.runtime.invoke("one", "default", Event("go"), run_id="mine") for _ in range(2)]
        assert [result.unwrap().status for result in one] == ["completed"] * 2
        two = await app.runtime.invoke("two", "default", Event("go"), run_id="mine")
        assert (two.error.code, two.metadata) == ("CONFLICT", None)
        assert len(await app.runtime.list_all_runs()) == 1


@pytest.mark.parametrize(("workflow", "trigger"), [("flaw", "default"), ("flow", "defualt")])
async def test_invoke_of_what_is_not_there_answers_not_found(make_app, workflow, trigger):
    """`invoke` of an unknown workflow or trigger answers NOT_FOUND with near names, and there is no run."""
    async with make_app(flow()) as app:
        result = await app.runtime.invoke(workflow, trigger, Event("go"))
        assert (result.ok, result.error.code, result.metadata) == (False, "NOT_FOUND", None)
        assert "did you mean" in result.error.message
        assert await app.runtime.list_all_runs() == []


@pytest.mark.covers("N8")
async def test_a_failed_run_is_a_value_with_its_error(make_app):
    """A run that fails is a Result that is not ok, with the code, what was raised, and where."""

    async def fails(ctx):
        raise RuntimeError("the ledger is closed")

    async with make_app(flow(fails)) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.ok, result.value, result.error.code) == (False, None, "EXECUTION_FAILED")
        assert "the ledger is closed" in result.error.message
        info = await app.runtime.get(result.metadata.run_id)
        assert (info.status, info.error["code"]) == ("failed", "EXECUTION_FAILED")
        paths = [entry.path for entry in await app.runtime.timeline(info.run_id) if entry.type == "step:failed"]
        assert paths == ["only/fails"]


@pytest.mark.parametrize("patch", [{"__run_meta__": {}}, {"__resume_event__": {}}, {"n": object()}, 5, [1]])
@pytest.mark.parametrize("verb", ["resume", "signal"])
async def test_a_patch_that_cannot_be_is_refused(make_app, verb, patch):
    """A patch that is no mapping, not JSON, or of the runtime's own keys is refused as a value; nothing is changed."""
    async with make_app(WAITS) as app:
        run_id = await paused(app, await app.publish("go"))
        result = await getattr(app.runtime, verb)(run_id, patch)
        assert (result.error.code, result.metadata.status) == ("VALIDATION_ERROR", "paused")
        assert (await app.runtime.get(run_id)).resume_count == 0


@pytest.mark.covers("R43")
async def test_resume_needs_no_patch(make_app):
    """`resume` without a patch lets a paused run go on."""
    async with make_app(WAITS) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.resume(run_id)).unwrap().status == "completed"


@pytest.mark.covers("R44")
async def test_the_first_resumed_stage_reads_the_patch(make_app):
    """What `resume` is given is in the state that the first resumed stage reads."""
    seen = []
    stages = [Stage("ask", router=pause()), Stage("end", steps=[keep(seen, lambda ctx: ctx.state["approved"])])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", {"approved": False}))
        await app.runtime.resume(run_id, {"approved": True})
    assert seen == [True]


@pytest.mark.covers("R45", "E17")
async def test_a_paused_run_survives_a_restart(make_app):
    """A paused run is nothing but rows: after a restart it is still paused, and goes on from its checkpoint."""
    ran = []
    stages = [
        Stage("a", steps=[keep(ran, lambda ctx: ctx.stage_id)]),
        Stage("b", wait=WaitFor("approved")),
        Stage("c", steps=[keep(ran, lambda ctx: ctx.stage_id)]),
    ]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", {"n": 1}))
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        info = await app.runtime.get(run_id)
        assert (info.status, info.waiting_for) == ("paused", ["approved"])
        await app.publish("approved", {"by": "Ada"})
        state = (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap().state
    assert (ran, state["n"], state["by"]) == (["a", "c"], 1, "Ada")


@pytest.mark.covers("R46", "R171")
async def test_a_resumed_run_that_pauses_again_uses_a_kept_event_at_once(make_app):
    """A resumed run that pauses again while a matching event is kept for it goes on at once, by nobody's call."""

    async def meanwhile(ctx):
        await ctx.workspace.publish("second", {"second": True})

    async def ask(ctx):
        pauses = await ctx.require("__pause_service__")
        await pauses.register(["second"])

    stages = [
        Stage("a", router=pause()),
        Stage("b", steps=[ask]),
        Stage("c", steps=[meanwhile], router=pause()),
        Stage("d"),
    ]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        value = (await app.runtime.resume(run_id)).unwrap()
        assert (value.status, value.state["second"]) == ("completed", True)


@pytest.mark.covers("R49")
async def test_abort_ends_a_running_run(make_app, gate):
    """`abort` of a running run answers True, cancels its steps, and the run ends aborted with the reason."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        assert await app.runtime.abort(run_id, "not wanted")
        result = await app.runtime.wait(run_id, timeout_seconds=20)
        assert (result.ok, result.error.code) == (False, "ABORTED")
        assert "not wanted" in result.error.message


@pytest.mark.covers("R50")
async def test_abort_ends_a_paused_run(make_app):
    """`abort` of a paused run ends it at once; no event wakes it any more."""
    workflow = Workflow("flow", on="go", stages=[Stage("a", wait=WaitFor("more")), Stage("b")])
    async with make_app(workflow) as app:
        run_id = await paused(app, await app.publish("go"))
        assert await app.runtime.abort(run_id)
        assert (await app.runtime.get(run_id)).status == "aborted"
        assert (await app.publish("more")).dispatched == []


async def test_abort_ends_a_queued_run_before_it_starts(make_app, gate):
    """An aborted queued run ends aborted and never executes; those behind it move up."""
    async with make_app(flow(gate), mode=Serialized()) as app:
        first, second, third = [run_id_of(await app.publish("go")) for _ in range(3)]
        assert await gate.reached.get() == first
        assert await app.runtime.abort(second)
        gate.open.set()
        assert (await app.runtime.wait(third, timeout_seconds=20)).ok
        assert (await app.runtime.get(second)).status == "aborted"
        assert gate.reached.get_nowait() == third
        assert gate.reached.empty()


@pytest.mark.covers("R52")
async def test_watch_answers_a_run_of_its_workflow_or_none(make_app):
    """`watch` answers the RunInfo of a run of that workflow; None when either is unknown."""
    async with make_app(WAITS) as app:
        run_id = await paused(app, await app.publish("go", space="acme"))
        info = await app.runtime.watch("flow", run_id)
        assert (info.run_id, info.status, info.space) == (run_id, "paused", "acme")
        assert await app.runtime.watch("other", run_id) is None
        assert await app.runtime.watch("flow", "nothing") is None


@pytest.mark.covers("R53")
async def test_all_runs_of_all_workflows_are_listed(make_app):
    """`list_all_runs` spans workflows, newest first, and narrows by status, workflow and space."""
    async with make_app(flow(id="one", on="1"), flow(id="two", on="2")) as app:
        one = run_id_of(await app.publish("1", space="acme"))
        two = run_id_of(await app.publish("2"))
        for run_id in (one, two):
            await app.runtime.wait(run_id, timeout_seconds=20)

        async def listed(**options):
            return [info.run_id for info in await app.runtime.list_all_runs(**options)]

        assert await listed() == [two, one]
        assert await listed(workflow="one") == await listed(space="acme") == [one]
        assert await listed(status="paused") == []
        assert await listed(limit=1) == [two]
        assert await listed(limit=1, cursor=two) == [one]


@pytest.mark.parametrize("options", [{"limit": 0}, {"status": "finished"}, {"limit": 1, "cursor": "nothing"}])
async def test_a_listing_refuses_nonsense(runtime, options):
    """`list_all_runs` refuses a limit below one, an unknown status and an unknown cursor."""
    with pytest.raises((ValidationError, NotFoundError)):
        await runtime.list_all_runs(**options)


@pytest.mark.covers("R35", "R36")
async def test_registered_workflows_are_known_by_id(app):
    """`has_workflow` is true exactly while a workflow is registered; `list_workflows` answers the ids."""
    await app.runtime.register(flow(id="one"))
    await app.runtime.register(flow(id="two"))
    assert app.runtime.list_workflows() == ["one", "two"]
    assert app.runtime.has_workflow("one")
    assert not app.runtime.has_workflow("three")


@pytest.mark.covers("R32")
async def test_deregister_removes_a_workflow(app):
    """A deregistered workflow is not there any more; deregistering an unknown one does nothing."""
    await app.runtime.register(flow())
    await app.runtime.deregister("flow")
    assert not app.runtime.has_workflow("flow")
    await app.runtime.deregister("flow")


@pytest.mark.covers("R37")
async def test_a_workflow_can_be_registered_again(app):
    """A workflow that was deregistered can be registered again and takes events."""
    await app.runtime.register(flow())
    await app.runtime.deregister("flow")
    await app.runtime.register(flow())
    assert (await ended(app, await app.publish("go"))).ok


async def test_an_id_can_be_registered_once(app):
    """Registering a second workflow of one id raises CONFLICT and leaves the first as it is."""
    await app.runtime.register(flow())
    with pytest.raises(ConflictError, match="flow"):
        await app.runtime.register(flow(on="other"))
    assert (await app.publish("other")).dispatched == []
    assert (await ended(app, await app.publish("go"))).ok


@pytest.mark.covers("N44")
async def test_an_interrupted_run_goes_on_when_its_workflow_is_back(make_app, gate):
    """A run that executes while its workflow is replaced is interrupted and goes on under the new definition."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        gate.open.set()
        await app.runtime.register(flow(gate), replace=True)
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok
        assert gate.reached.get_nowait() == run_id


@pytest.mark.covers("N45", "E31")
async def test_a_step_may_deregister_its_own_workflow(make_app):
    """`deregister` from inside a step of the workflow's own run returns at once; the run ends with that stage."""
    left, ran = asyncio.Event(), []

    async def leave(ctx):
        await ctx.workspace.host.runtime.deregister("flow")
        left.set()

    stages = [Stage("leave", steps=[leave]), Stage("then", steps=[keep(ran, lambda ctx: ctx.stage_id)])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = run_id_of(await app.publish("go"))
        await left.wait()
        assert not app.runtime.has_workflow("flow")
        result = await app.runtime.wait(run_id, timeout_seconds=20)
        assert (result.error.code, ran) == ("ABORTED", [])


@pytest.mark.parametrize("what", ["replace", "stop"])
async def test_a_step_cannot_interrupt_itself(make_app, what):
    """A step that would replace its own workflow, or stop the runtime, is refused: all stays as it is."""

    async def act(ctx):
        runtime = ctx.workspace.host.runtime
        await (runtime.register(flow(), replace=True) if what == "replace" else runtime.stop())

    async with make_app(flow(act)) as app:
        result = await ended(app, await app.publish("go"))
        assert (result.error.code, app.runtime.has_workflow("flow")) == ("INVALID_STATE", True)
        assert result.metadata.run_id in result.error.message
        assert [r.outcome for r in (await app.publish("go")).dispatched] == ["started"]


@pytest.mark.covers("R54")
async def test_stop_deregisters_everything(make_app):
    """`stop` deregisters every workflow; stopping twice is harmless."""
    async with make_app(flow(id="one"), flow(id="two")) as app:
        await app.runtime.stop()
        assert app.runtime.list_workflows() == []
        await app.runtime.stop()


@pytest.mark.covers("R54")
async def test_the_end_of_the_app_gives_live_work_its_time(make_app, gate):
    """At the end of the app a run that is under way may still end: it is completed, not interrupted."""

    async def ends_later(ctx):
        await gate(ctx)

    async with make_app(flow(ends_later)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        asyncio.get_running_loop().call_soon(gate.open.set)
    async with make_app() as app:
        assert (await app.runtime.get(run_id)).status == "completed"
        assert "run:released" not in [entry.type for entry in await app.runtime.timeline(run_id)]


@pytest.mark.covers("E53")
async def test_an_invoke_that_the_end_of_the_app_interrupts_says_stopped(make_app, gate):
    """`invoke` of a run that the app's end interrupts answers STOPPED; the next start completes the run."""
    from piecework import Settings

    async with make_app(flow(gate), settings=Settings(close_timeout_seconds=0.01)) as app:
        invoked = asyncio.ensure_future(app.runtime.invoke("flow", "default", Event("go")))
        run_id = await gate.reached.get()
    result = await invoked
    assert (result.ok, result.error.code) == (False, "STOPPED")
    async with make_app(flow(nothing)) as app:
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok


async def test_who_waits_when_the_app_ends_is_told(make_app):
    """`wait` for a paused run ends with STOPPED when the app is closed."""
    async with make_app(WAITS) as app:
        run_id = await paused(app, await app.publish("go"))
        waiting = asyncio.ensure_future(app.runtime.wait(run_id))
        await app.runtime.get(run_id)
    with pytest.raises(StoppedError):
        await waiting


async def test_wait_has_a_limit(make_app, gate):
    """`wait` raises TIMEOUT, a TimeoutError too, when the run is not there in time; the run goes on."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        with pytest.raises(TimeoutExceededError, match=run_id):
            await app.runtime.wait(run_id, timeout_seconds=0.01)
        gate.open.set()
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok


@pytest.mark.covers("N9")
async def test_unknown_runs_are_not_found(runtime):
    """Whatever is asked about a run that there is not answers NOT_FOUND: as a value or raised, as documented."""
    assert (await runtime.resume("nothing")).error.code == "NOT_FOUND"
    for call in (runtime.abort, runtime.wait, runtime.get, runtime.state, runtime.timeline):
        with pytest.raises(NotFoundError, match="nothing"):
            await call("nothing")


@pytest.mark.covers("E5")
async def test_of_two_resumes_one_wins(make_app):
    """Of two resumes at once one wins; the other gets INVALID_STATE and its patch is not applied."""
    seen = []
    stages = [Stage("ask", router=pause()), Stage("end", steps=[keep(seen, lambda ctx: ctx.state["by"])])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        results = await asyncio.gather(*(app.runtime.resume(run_id, {"by": by}) for by in ("Ada", "Bob")))
        won = [result for result in results if result.ok]
        lost = [result.error.code for result in results if not result.ok]
    assert (len(won), lost) == (1, ["INVALID_STATE"])
    assert seen == [won[0].value.state["by"]]


@pytest.mark.covers("E10")
async def test_an_ended_run_cannot_be_aborted(make_app):
    """`abort` of a run that has ended answers False and changes nothing."""
    async with make_app(flow()) as app:
        run_id = (await ended(app, await app.publish("go"))).metadata.run_id
        before = await app.runtime.timeline(run_id)
        assert await app.runtime.abort(run_id) is False
        assert (await app.runtime.get(run_id)).status == "completed"
        assert await app.runtime.timeline(run_id) == before


async def test_an_ended_run_cannot_be_resumed(make_app):
    """`resume` of a run that has ended answers INVALID_STATE."""
    async with make_app(flow()) as app:
        result = await app.runtime.resume((await ended(app, await app.publish("go"))).metadata.run_id)
        assert (result.ok, result.error.code, result.metadata.status) == (False, "INVALID_STATE", "completed")


@pytest.mark.covers("E11")
async def test_a_paused_run_can_be_aborted_without_its_workflow(make_app):
    """A paused run whose workflow is not registered any more can be aborted."""
    async with make_app(WAITS) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.deregister("flow")
        assert await app.runtime.abort(run_id)
        assert (await app.runtime.get(run_id)).status == "aborted"


@pytest.mark.covers("E9")
async def test_an_abort_right_after_a_resume_runs_no_stage(make_app):
    """A run that is aborted between its resume and its first stage ends aborted: no stage executes."""
    ran = []
    stages = [Stage("ask", router=pause()), Stage("end", steps=[keep(ran, lambda ctx: ctx.stage_id)])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        submit, aborted = app.store.run, asyncio.Event()

        async def claims_wait(verb, item, *rest):
            if isinstance(item, Claim):
                await aborted.wait()
            return await submit(verb, item, *rest)

        app.store.run = claims_wait
        resumed = asyncio.ensure_future(app.runtime.resume(run_id))
        while (await app.runtime.get(run_id)).status != "running":
            await asyncio.sleep(0)
        assert await app.runtime.abort(run_id)
        aborted.set()
        assert (await resumed).error.code == "ABORTED"
        assert ((await app.runtime.get(run_id)).status, ran) == ("aborted", [])


async def test_terminate_completes_a_run_early(make_app):
    """A router that answers `terminate` completes the run; later stages do not run."""
    ran = []
    stages = [Stage("a", router=terminate), Stage("b", steps=[keep(ran, lambda ctx: ctx.stage_id)])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        assert (await ended(app, await app.publish("go"))).unwrap().status == "completed"
    assert ran == []


async def test_jump_goes_on_elsewhere(make_app):
    """A router that answers `jump` goes on with that stage, earlier or later, and sees the stage's own patches."""

    async def count(ctx):
        return {"count": ctx.state.get("count", 0) + 1}

    again = Stage("a", steps=[count], router=lambda view: jump("a") if view.state["count"] < 3 else jump("c"))
    stages = [again, Stage("b", steps=[count]), Stage("c")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        assert (await ended(app, await app.publish("go"))).unwrap().state["count"] == 3


@pytest.mark.covers("N10")
@pytest.mark.parametrize("router", [lambda view: "next", lambda view: view.state["missing"], lambda view: jump("x")])
async def test_a_router_that_fails_fails_the_run(make_app, router):
    """A router that raises, answers no instruction, or names an unknown stage fails the run and no other."""
    async with make_app(Workflow("flow", on="go", stages=[Stage("a", router=router), Stage("b")])) as app:
        result = await ended(app, await app.publish("go"))
        assert not result.ok
        assert (await app.runtime.get(result.metadata.run_id)).status == "failed"


async def test_a_checkpoint_is_readable_while_the_run_goes_on(make_app, gate):
    """`state` answers a run's data as of its last commit; of an unfinished stage nothing is seen."""

    async def first(ctx):
        return {"first": 1}

    stages = [Stage("a", steps=[first]), Stage("b", steps=[gate])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        assert (await app.runtime.state(run_id))["first"] == 1
        gate.open.set()
        await app.runtime.wait(run_id)


async def test_definitions_are_checked_when_they_are_made():
    """A workflow, pipeline, stage or step that cannot work is refused when it is built, with the place."""
    for build in (
        lambda: Workflow("w", on="go"),
        lambda: Workflow("w", on="go", stages=[]),
        lambda: Workflow("w", triggers={"a": Trigger("go")}, pipelines={"b": Pipeline([Stage("s")])}),
        lambda: Workflow("w", triggers={"a": Trigger("go")}, pipelines={}),
        lambda: Stage("s", steps=["text"]),
        lambda: Stage("s", router=pause(), wait=WaitFor("x")),
        lambda: Pipeline([Stage("s", router=jump("t"))]),
        lambda: pause(timeout_seconds=0),
        WaitFor,
        lambda: WaitFor("x", conditions=[{"field": "n", "op": "like", "value": 3}]),
    ):
        with pytest.raises((ValidationError, NotFoundError)):
            build()
