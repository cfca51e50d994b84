"""What a workflow hears of the lives of its runs, and in which order."""

from __future__ import annotations

import asyncio
import logging

import pytest

from piecework import (
    Exclusive,
    Serialized,
    Service,
    Settings,
    SingletonLoop,
    Stage,
    Transient,
    WaitFor,
    Workflow,
    pause,
)
from piecework.errors import ValidationError
from piecework.run.lifecycle import Status
from piecework.store.records import Run, Slot
from promises.flows import asks, ended, flow, keep, nothing, paused, run_id_of

LIMIT = 20
ALL_HOOKS = ("on_prepare", "on_complete", "on_resume", "on_cleanup", "on_dispatch")


class Diary:
    """Writes down what happened, in order; whoever waits for a word gets it."""

    def __init__(self):
        self.lines = []
        self.said = asyncio.Condition()

    def __call__(self, *line):
        self.lines.append(line if len(line) > 1 else line[0])

    append = __call__

    def hook(self, name, *more):
        """A hook that writes its name down."""

        async def hook(*args):
            self(name)
            async with self.said:
                self.said.notify_all()
            for do in more:
                await do(*args)

        return hook

    async def until(self, word, times=1):
        """Waits until a word has been written so often."""
        async with asyncio.timeout(LIMIT), self.said:
            await self.said.wait_for(lambda: self.lines.count(word) >= times)


async def slot(app):
    """The one slot that there is."""
    (row,) = await app.store.read("slots_of_workflow", {"workflow_id": "flow", "after": "", "limit": 2}, Slot)
    return row


async def cleaned(app, run_id):
    """The run's row, once all that belongs to its end has been done."""
    async with asyncio.timeout(LIMIT):
        while True:
            (run,) = await app.store.read("runs_by_id", {"run_ids": [run_id]}, Run)
            if run.cleaned:
                return run
            await asyncio.sleep(0)


def hooked(app, workflow, mode=None, **hooks):
    """Registers a workflow with hooks."""
    return app.runtime.register(workflow, mode=mode, **hooks)


# -- which there are ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("R21", "R25")
async def test_all_hooks_are_optional_and_all_are_called(make_app):
    """Each of the five hooks may be left out; given, each is called; `on_cleanup` takes no arguments."""
    diary = Diary()
    asks = Workflow("asks", on="ask", stages=[Stage("wait", wait=WaitFor("yes")), Stage("end")])
    async with make_app() as app:
        await hooked(app, asks, **{name: diary.hook(name) for name in ALL_HOOKS})
        await hooked(app, flow())
        run_id = await paused(app, await app.publish("ask"))
        await app.publish("yes")
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        await diary.until("on_cleanup")
        await diary.until("on_dispatch", 2)
        assert (await ended(app, await app.publish("go"))).ok
    told = [line for line in diary.lines if line != "on_dispatch"]
    assert told == ["on_prepare", "on_resume", "on_complete", "on_cleanup"]


async def test_a_hook_has_to_be_a_function(make_app):
    """What cannot be called is refused as a hook, before anything is registered."""
    async with make_app() as app:
        with pytest.raises(ValidationError, match="on_complete"):
            await app.runtime.register(flow(), on_complete="done")
        assert app.runtime.list_workflows() == []


async def test_declared_workflows_have_hooks_too(make_app):
    """`app.workflow` takes the hooks that `register` takes; plain functions may be hooks."""
    diary = Diary()
    app = make_app()
    app.workflow(flow(), on_complete=lambda result: diary("complete", result.value.status))
    async with app:
        await ended(app, await app.publish("go"))
    assert diary.lines == [("complete", "completed")]


# -- on_prepare --------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R22")
async def test_the_first_stage_sees_what_on_prepare_wrote(make_app):
    """What `on_prepare` writes is in the state that the first stage sees, and in the result."""
    seen = []

    async def prepare(ctx):
        assert ctx.state["n"] == 1
        await ctx.write({"by": ctx.event.type, "deep": {"a": 1}})
        assert ctx.state["deep"] == {"a": 1}

    async with make_app() as app:
        await hooked(app, flow(keep(seen, lambda ctx: ctx.state["by"])), on_prepare=prepare)
        result = await ended(app, await app.publish("go", {"n": 1}))
    assert (seen, result.value.state["deep"]) == (["go"], {"a": 1})


async def test_on_prepare_may_end_its_run(make_app):
    """A run that `on_prepare` aborts ends aborted, with the reason: no stage runs, the other hooks hear of it."""
    diary = Diary()

    async def prepare(ctx):
        ctx.abort("not on Sundays")

    async with make_app() as app:
        hooks = {name: diary.hook(name) for name in ("on_complete", "on_cleanup")}
        await hooked(app, flow(keep(diary, lambda ctx: "ran")), on_prepare=prepare, **hooks)
        result = await ended(app, await app.publish("go"))
        await diary.until("on_cleanup")
    assert (result.error.code, "not on Sundays" in result.error.message) == ("ABORTED", True)
    assert diary.lines == ["on_complete", "on_cleanup"]


@pytest.mark.covers("E21")
@pytest.mark.parametrize("hangs", [False, True])
async def test_a_failing_on_prepare_fails_the_run(make_app, hangs):
    """A run whose `on_prepare` raises, or hangs, has failed before its first stage; its end is told as ever."""
    diary = Diary()

    async def prepare(_ctx):
        if hangs:
            await asyncio.Event().wait()
        raise RuntimeError("no desk")

    async with make_app(settings=Settings(hook_timeout_seconds=0.05 if hangs else LIMIT)) as app:
        hooks = {name: diary.hook(name) for name in ("on_complete", "on_cleanup")}
        await hooked(app, flow(keep(diary, lambda ctx: "ran")), on_prepare=prepare, **hooks)
        result = await ended(app, await app.publish("go"))
        await diary.until("on_cleanup")
    assert (result.error.code, "on_prepare" in result.error.message) == ("EXECUTION_FAILED", True)
    assert ("took longer" if hangs else "no desk") in result.error.message
    assert diary.lines == ["on_complete", "on_cleanup"]


# -- on_resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R24")
async def test_on_resume_sees_the_patch_before_the_stage_does(make_app):
    """`on_resume` gets the run as it goes on: with the patch, before the resumed stage, which sees what it writes."""
    seen = []

    async def resume(ctx):
        seen.append(ctx.state["total"])
        await ctx.write({"by": "hook"})

    stages = [Stage("ask", router=pause()), Stage("end", steps=[keep(seen, lambda ctx: ctx.state["by"])])]
    async with make_app() as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_resume=resume)
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.resume(run_id, {"total": 7})).ok
    assert seen == [7, "hook"]


async def test_on_resume_is_called_for_an_event_from_before_the_pause(make_app):
    """A run that is resumed at once, by an event that came before its pause, goes through `on_resume` too."""
    seen = []

    async def ask(ctx):
        pauses = await ctx.require("__pause_service__")
        await pauses.register(["yes"])
        await ctx.workspace.publish("yes", {"n": 5})

    stages = [Stage("ask", steps=[ask], router=pause()), Stage("end")]
    async with make_app() as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_resume=lambda ctx: seen.append(ctx.state["n"]))
        assert (await ended(app, await app.publish("go"))).ok
    assert seen == [5]


async def test_a_failing_on_resume_pauses_the_run_again(make_app):
    """A run whose `on_resume` raises is paused again, with what woke it; it is tried twice more, then it has failed."""
    tries, stages = [], [Stage("ask", router=pause()), Stage("end")]

    async def resume(ctx):
        tries.append(ctx.state["n"])
        raise RuntimeError(f"try {len(tries)}")

    async with make_app() as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_resume=resume)
        run_id = await paused(app, await app.publish("go"))
        result = await app.runtime.resume(run_id, {"n": 3})
        assert (result.ok, result.metadata.status, "try 1" in result.error.message) == (False, "paused", True)
        result = await app.runtime.wait(run_id, timeout_seconds=LIMIT)
    assert (result.error.code, tries) == ("EXECUTION_FAILED", [3, 3, 3])


async def test_a_resume_from_the_buffer_has_all_its_tries(make_app):
    """A resume from the buffer has three tries of `on_resume` like any other, whatever failed before earlier stages."""
    tries, bad = [], []

    async def ask(ctx):
        await asks(ctx, "more")
        await ctx.workspace.publish("more", {"n": 2})

    async def resume(ctx):
        tries.append(ctx.state["n"])
        if tries.count(ctx.state["n"]) < 3 or bad:
            raise RuntimeError(f"try {len(tries)}")

    stages = [Stage("first", router=pause()), Stage("ask", steps=[ask], router=pause()), Stage("end")]
    async with make_app() as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_resume=resume)
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.resume(run_id, {"n": 1})).error.code == "EXECUTION_FAILED"
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        assert tries == [1, 1, 1, 2, 2, 2]
        bad.append(True)
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.abort(run_id)
        stages[:] = [stages[1], stages[2]]
        await hooked(app, Workflow("buffer", on="go on", stages=stages), on_resume=resume)
        tries.clear()
        assert (await ended(app, await app.publish("go on"))).error.code == "EXECUTION_FAILED"
        assert tries == [2, 2, 2]


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R23")
@pytest.mark.parametrize("outcome", ["completed", "failed", "aborted"])
async def test_on_complete_gets_the_result(make_app, gate, outcome):
    """`on_complete` gets the result of a run, however it ended, with its id and what it came to."""
    told = []

    async def work(ctx):
        await gate(ctx)
        if outcome == "failed":
            raise RuntimeError("broken")
        return {"n": 1}

    async with make_app() as app:
        await hooked(app, flow(work), on_complete=told.append)
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        if outcome == "aborted":
            await app.runtime.abort(run_id)
        gate.open.set()
        result = await app.runtime.wait(run_id, timeout_seconds=LIMIT)
    (got,) = told
    assert (got.metadata.run_id, got.metadata.status, got.ok) == (run_id, outcome, result.ok)
    if result.ok:
        assert got.value.state == result.value.state
    else:
        assert (got.error.code, got.error.message) == (result.error.code, result.error.message)


@pytest.mark.covers("R28", "R29", "R173")
async def test_the_order_of_an_end(make_app, caplog):
    """The order of an end: `on_complete`, then the place is free and waiters are told, then `on_cleanup`; each once."""
    diary = Diary()
    caplog.set_level(logging.DEBUG, "piecework")

    async def complete(result):
        live = (await slot(app)).live
        logging.getLogger("piecework").debug("hook.complete", extra={"live": live})
        diary("complete", live, len(app.runtime._executor.flights))

    async def cleanup():
        free = await slot(app)
        diary("cleanup", free.live, len(app.runtime._executor.flights))
        logging.getLogger("piecework").debug("hook.cleanup")

    async with make_app() as app:
        await hooked(app, flow(), mode=Serialized(), on_complete=complete, on_cleanup=cleanup)
        run_id = run_id_of(await app.publish("go"))
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        await cleaned(app, run_id)
    assert diary.lines == [("complete", 1, 1), ("cleanup", 0, 0)]
    wanted = ("hook.complete", "run.closed", "run.pruned", "hook.cleanup")
    lines = [record.getMessage().split()[0] for record in caplog.records]
    assert [line for line in lines if line in wanted] == list(wanted)


@pytest.mark.covers("R27", "E24")
async def test_the_place_is_held_inside_on_complete(make_app):
    """Inside `on_complete` the run still has its place: a kept event starts its run only after `on_cleanup`."""
    diary = Diary()

    async def again(result):
        if not diary.lines.count("again"):
            diary("again")
            (told,) = (await app.publish("go")).dispatched
            diary("outcome", told.outcome)

    async with make_app() as app:
        await hooked(
            app,
            flow(keep(diary, lambda ctx: "ran")),
            mode=Exclusive(on_busy="queue_single"),
            on_complete=again,
            on_cleanup=diary.hook("clean"),
        )
        await app.publish("go")
        await diary.until("clean", 2)
    assert diary.lines == ["ran", "again", ("outcome", "queued"), "clean", "ran", "clean"]


@pytest.mark.covers("R27")
async def test_a_busy_workflow_rejects_inside_on_complete(make_app):
    """An event that finds an exclusive workflow inside its run's `on_complete` is rejected: the run has the place."""
    told = []

    async def again(result):
        told.extend((await app.publish("go")).dispatched)

    async with make_app() as app:
        await hooked(app, flow(), mode=Exclusive(), on_complete=again)
        run_id = run_id_of(await app.publish("go"))
        await app.runtime.wait(run_id, timeout_seconds=LIMIT)
    (result,) = told
    assert (result.outcome, result.active_run_id) == ("rejected", run_id)


@pytest.mark.parametrize("on_busy", ["signal", "replace"])
async def test_an_event_inside_on_complete_is_not_lost(make_app, on_busy):
    """An event that would signal or replace a run that has just ended starts a run of its own afterwards."""
    diary = Diary()

    async def again(result):
        if not diary.lines.count("again"):
            diary("again")
            diary("outcome", (await app.publish("go")).dispatched[0].outcome)

    async with make_app() as app:
        mode = SingletonLoop(on_busy=on_busy)
        await hooked(app, flow(), mode=mode, on_complete=again, on_cleanup=diary.hook("clean"))
        await app.publish("go")
        await diary.until("clean", 2)
    assert diary.lines == ["again", ("outcome", "queued"), "clean", "clean"]


@pytest.mark.covers("R31")
async def test_the_user_is_told_before_anything_is_cleaned(make_app):
    """`on_complete` is called before any clean-up of the run's services, which it may still use."""
    diary = Diary()

    async def desk():
        yield "desk"
        diary("service closed")

    async def complete(result, desk):
        diary("told", desk)

    workflow = flow(services=[Service("desk", desk, scope="run")])
    async with make_app() as app:
        await hooked(app, workflow, on_complete=complete, on_cleanup=diary.hook("on_cleanup"))
        await app.publish("go")
        await diary.until("on_cleanup")
    assert diary.lines == [("told", "desk"), "service closed", "on_cleanup"]


@pytest.mark.covers("R174")
async def test_a_resumed_run_completes_once(make_app):
    """A run that paused and was resumed fires `on_complete` once, at its end, and never at a pause."""
    told = []
    stages = [Stage("a", router=pause()), Stage("b", router=pause()), Stage("c")]
    async with make_app() as app:
        await hooked(
            app, Workflow("flow", on="go", stages=stages), on_complete=lambda result: told.append(result.value)
        )
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.resume(run_id)).value.status == "paused"
        assert told == []
        assert (await app.runtime.resume(run_id)).ok
    assert [value.status for value in told] == ["completed"]


@pytest.mark.covers("E22")
@pytest.mark.parametrize("hook", ["on_complete", "on_cleanup"])
async def test_a_failing_hook_changes_no_result(make_app, hook):
    """A hook of the end that raises is shown in the run's timeline; the result and the order stay as they are."""
    diary = Diary()

    async def raises(*_args):
        raise RuntimeError("the desk is gone")

    async with make_app() as app:
        hooks = {name: diary.hook(name) for name in ("on_complete", "on_cleanup")} | {hook: raises}
        await hooked(app, flow(), mode=Serialized(), **hooks)
        runs = [run_id_of(await app.publish("go")) for _ in range(2)]
        for run_id in runs:
            assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
            await cleaned(app, run_id)
            (entry,) = [entry for entry in await app.runtime.timeline(run_id) if entry.type == "hook:error"]
            assert (entry.path, "the desk is gone" in entry.payload["error"]["message"]) == (hook, True)


@pytest.mark.covers("E23")
async def test_on_complete_cannot_move_its_own_run(make_app):
    """`resume` and `abort` of the run itself inside `on_complete` answer INVALID_STATE and False: no deadlock."""
    told = []

    async def complete(result):
        run_id = result.metadata.run_id
        told.append((await app.runtime.resume(run_id)).error.code)
        told.append(await app.runtime.abort(run_id))

    async with make_app() as app:
        await hooked(app, flow(), on_complete=complete)
        assert (await ended(app, await app.publish("go"))).ok
    assert told == ["INVALID_STATE", False]


@pytest.mark.covers("R30", "E25")
async def test_on_cleanup_may_deregister(make_app, gate):
    """`deregister` inside `on_cleanup` is safe: what waits behind the run is dropped and never starts."""
    diary, told = Diary(), []

    async def cleanup():
        await app.runtime.deregister("flow")
        diary("left", app.runtime.has_workflow("flow"))

    async with make_app() as app:
        await hooked(app, flow(gate), mode=Serialized(), on_cleanup=cleanup, on_dispatch=told.append)
        first, waits = [run_id_of(await app.publish("go")) for _ in range(2)]
        gate.open.set()
        assert (await app.runtime.wait(first, timeout_seconds=LIMIT)).ok
        result = await app.runtime.wait(waits, timeout_seconds=LIMIT)
        assert (result.error.code, await gate.reached.get(), gate.reached.empty()) == ("ABORTED", first, True)
        await cleaned(app, first)
    assert diary.lines == [("left", False)]
    assert [(one.outcome, one.reason) for one in told if one.run_id == waits] == [
        ("queued", None),
        ("dropped", "deregistered"),
    ]


@pytest.mark.covers("E26")
async def test_a_replacement_waits_for_the_cleanup(make_app, gate):
    """Events that replace a run whose `on_cleanup` still works wait for it, and only the newest one's run starts."""
    diary, go_on = Diary(), asyncio.Event()
    ran = []

    async def cleanup():
        if not go_on.is_set():
            diary("cleaning")
            async with diary.said:
                diary.said.notify_all()
            await go_on.wait()

    async with make_app() as app:
        mode = SingletonLoop(on_busy="replace")
        await hooked(app, flow(keep(ran, lambda ctx: ctx.state["n"])), mode=mode, on_cleanup=cleanup)
        await app.publish("go", {"n": 0})
        await diary.until("cleaning")
        results = [(await app.publish("go", {"n": n})).dispatched[0] for n in (1, 2, 3)]
        assert ran == [0]
        go_on.set()
        assert (await app.runtime.wait(results[-1].run_id, timeout_seconds=LIMIT)).ok
    assert ({result.outcome for result in results}, ran) == ({"queued"}, [0, 3])


@pytest.mark.covers("E27")
async def test_a_step_that_ignores_its_end_is_left_behind(make_app):
    """A replaced run whose step ignores the cancel is abandoned after its grace, aborted; the new one starts."""
    stuck, release, ran = asyncio.Event(), asyncio.Event(), []

    async def stubborn(ctx):
        ran.append(ctx.state["n"])
        if ctx.state["n"] == 0:
            stuck.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    async with make_app(settings=Settings(abort_grace_seconds=0.05)) as app:
        await hooked(app, flow(stubborn), mode=SingletonLoop(on_busy="replace"))
        first = run_id_of(await app.publish("go", {"n": 0}))
        await stuck.wait()
        (told,) = (await app.publish("go", {"n": 1})).dispatched
        assert (await app.runtime.wait(told.run_id, timeout_seconds=LIMIT)).ok
        assert (await app.runtime.wait(first, timeout_seconds=LIMIT)).error.code == "ABORTED"
        entries = [entry.type for entry in await app.runtime.timeline(first)]
        release.set()
    assert (told.outcome, "abort:forced" in entries, ran) == ("replaced", True, [0, 1])


async def test_a_hook_that_does_not_let_go_is_left_behind(make_app):
    """A hook that swallows its cancellation holds up neither its run's end, nor the next run, nor the app's end."""
    release, calls = asyncio.Event(), []

    async def deaf(*_args):
        calls.append(1)
        while len(calls) == 1 and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with make_app(settings=Settings(hook_timeout_seconds=0.05)) as app:
        await hooked(app, flow(), mode=Serialized(), on_cleanup=deaf)
        runs = [run_id_of(await app.publish("go")) for _ in range(2)]
        for run_id in runs:
            assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
            await cleaned(app, run_id)
        release.set()


@pytest.mark.covers("E16")
@pytest.mark.parametrize("between", ["settled", "told"])
async def test_an_end_that_was_cut_off_is_told_again(make_app, between):
    """After a crash between the end of a run and its hooks they are called by the next node; noted calls are not."""
    diary, cut = Diary(), asyncio.Event()

    async def stops(*_args):
        diary("cut off")
        cut.set()
        await asyncio.Event().wait()

    name = "on_complete" if between == "settled" else "on_cleanup"
    hooks = {one: diary.hook(one) for one in ("on_complete", "on_cleanup")}
    async with make_app(settings=Settings(close_timeout_seconds=0.05)) as app:
        await hooked(app, flow(), mode=Serialized(), **(hooks | {name: stops}))
        run_id = run_id_of(await app.publish("go"))
        await asyncio.wait_for(cut.wait(), LIMIT)
        (row,) = await app.store.read("runs_by_id", {"run_ids": [run_id]}, Run)
        assert (row.status, row.cleaned) == (Status.COMPLETED, 0)
    before = list(diary.lines)
    async with make_app() as app:
        await hooked(app, flow(), mode=Serialized(), **hooks)
        await diary.until("on_cleanup")
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        await cleaned(app, run_id)
    after = diary.lines[len(before) :]
    assert after == (["on_complete", "on_cleanup"] if between == "settled" else ["on_cleanup"])


@pytest.mark.parametrize("where", ["queued", "paused"])
async def test_a_run_that_is_aborted_before_or_between_its_stages_is_told(make_app, gate, where):
    """A queued or a paused run that is aborted ends at once; `on_complete` and `on_cleanup` hear of it all the same."""
    diary, told = Diary(), []
    stages = [Stage("work", steps=[gate], router=pause())]
    async with make_app() as app:
        await hooked(
            app,
            Workflow("flow", on="go", stages=stages),
            mode=Serialized(),
            on_complete=lambda result: told.append((result.metadata.run_id, result.error.code)),
            on_cleanup=diary.hook("clean"),
        )
        first, behind = [run_id_of(await app.publish("go")) for _ in range(2)]
        if where == "paused":
            gate.open.set()
            await app.runtime.wait(first, until="paused", timeout_seconds=LIMIT)
        doomed = first if where == "paused" else behind
        assert await app.runtime.abort(doomed)
        assert (await app.runtime.get(doomed)).status == "aborted"
        await diary.until("clean")
        assert told == [(doomed, "ABORTED")]
        gate.open.set()
        if where == "paused":
            await app.runtime.wait(behind, until="paused", timeout_seconds=LIMIT)


async def test_the_hooks_of_a_workflow_that_is_gone_are_skipped(make_app):
    """A paused run of a workflow that nobody has any more is cleaned when it was aborted, and the timeline says so."""
    stages = [Stage("ask", router=pause()), Stage("end")]
    async with make_app(settings=Settings(hook_timeout_seconds=0.05)) as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_cleanup=lambda: None)
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.deregister("flow")
        assert await app.runtime.abort(run_id)
        await cleaned(app, run_id)
        assert "hooks:skipped" in [entry.type for entry in await app.runtime.timeline(run_id)]


async def test_a_resume_from_the_buffer_is_tried_three_times(make_app):
    """A run that goes on at once with a kept event has as many tries for its `on_resume` as one that was woken."""
    tries = []

    async def early(ctx):
        await asks(ctx, "more")
        await app.publish("more")

    async def on_resume(ctx):
        tries.append(ctx.run_id)
        raise ValueError("not yet")

    stages = [Stage("ask", steps=[early], router=pause()), Stage("end", steps=[nothing])]
    async with make_app() as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_resume=on_resume)
        result = await ended(app, await app.publish("go"))
        assert (result.ok, result.metadata.status, len(tries)) == (False, "failed", 3)


async def test_what_hooks_raise_at_the_end_shows_no_secrets(make_app, caplog):
    """A variable of the workflow's own stands in no entry about a hook that failed, and in no line of the log."""

    async def fail(*_):
        raise ValueError("no answer to hush-hush")

    async with make_app() as app:
        await hooked(app, flow(env={"KEY": "hush-hush"}), on_complete=fail, on_cleanup=fail)
        result = await ended(app, await app.publish("go"))
        await cleaned(app, result.metadata.run_id)
        told = [entry for entry in await app.runtime.timeline(result.metadata.run_id) if entry.type == "hook:error"]
        assert [entry.path for entry in told] == ["on_complete", "on_cleanup"]
        assert all("no answer to [redacted]" in str(entry.payload) for entry in told)
    assert "no answer to [redacted]" in caplog.text
    assert "hush" not in caplog.text


# -- on_dispatch -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R26")
async def test_on_dispatch_hears_of_each_decision(make_app, gate):
    """`on_dispatch` gets what became of each event, in order, also of one that a newer event superseded."""
    told = []
    done = asyncio.Event()

    async def dispatched(result):
        told.append((result.outcome, result.event_id))
        if len(told) == 5:
            done.set()

    async with make_app() as app:
        await hooked(app, flow(gate), mode=Exclusive(on_busy="queue_single"), on_dispatch=dispatched)
        for name in ("a", "b", "c"):
            await app.publish("go", id=name)
        await app.publish("go", id="a")
        gate.open.set()
        await asyncio.wait_for(done.wait(), LIMIT)
    assert told == [("started", "a"), ("queued", "b"), ("superseded", None), ("queued", "c"), ("duplicate", "a")]


async def test_a_decision_is_told_to_the_hook_of_its_definition(make_app):
    """While an `on_dispatch` is still busy its workflow is replaced: what is decided from then on the new one hears."""
    diary, busy = Diary(), asyncio.Event()

    async def old(result):
        diary("old", result.event_id)
        await busy.wait()

    async with make_app() as app:
        await hooked(app, flow(), on_dispatch=old)
        await app.publish("go", id="evt-1")
        await app.runtime.register(flow(), on_dispatch=diary.hook("new"), replace=True)
        await app.publish("go", id="evt-2")
        busy.set()
        await diary.until("new")
    assert diary.lines == [("old", "evt-1"), "new"]


async def test_a_failing_on_dispatch_changes_nothing(make_app, caplog):
    """An `on_dispatch` that raises is shown; the decision stands, and the next one is told nevertheless."""
    told = asyncio.Queue()

    def dispatched(result):
        told.put_nowait(result.outcome)
        raise RuntimeError("no desk")

    async with make_app() as app:
        await hooked(app, flow(), on_dispatch=dispatched)
        for _ in range(2):
            assert (await ended(app, await app.publish("go"))).ok
            assert await asyncio.wait_for(told.get(), LIMIT) == "started"
    assert [record.levelname for record in caplog.records if "hook.failed" in record.getMessage()] == ["ERROR"] * 2


# -- accounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R170")
async def test_the_counts_follow_the_runs(make_app, gate):
    """How many runs are live, and which is the active one, follows start, end, failure and abort exactly."""
    ends = {"n": 0}

    async def work(ctx):
        await gate(ctx)
        if ctx.state["n"] == 1:
            raise RuntimeError("broken")

    async with make_app() as app:
        await hooked(app, flow(work, id="flow"), mode=Exclusive())
        for n in range(3):
            gate.open.clear()
            run_id = run_id_of(await app.publish("go", {"n": n}))
            await gate.reached.get()
            busy = await slot(app)
            assert (busy.live, busy.active_run_id) == (1, run_id)
            if n == 2:
                await app.runtime.abort(run_id)
            gate.open.set()
            await cleaned(app, run_id)
            free = await slot(app)
            assert (free.live, free.closing, free.active_run_id) == (0, 0, None)
            ends["n"] += 1
    assert ends["n"] == 3


# -- how a workflow leaves ---------------------------------------------------------------------------------------------


@pytest.mark.covers("E30")
async def test_deregister_ends_what_runs_and_keeps_what_is_paused(make_app, gate):
    """`deregister` drops what waits, lets what runs end for a while, aborts the rest; paused runs live again later."""
    told = []

    async def work(ctx):
        if ctx.state["n"]:
            await gate(ctx)

    stages = [Stage("work", steps=[work], router=lambda view: pause("end")), Stage("end")]
    workflow = Workflow("flow", on="go", stages=stages)
    async with make_app() as app:
        hooks = {"on_complete": lambda result: told.append(result.metadata.run_id)}
        await hooked(app, workflow, mode=Transient(concurrency=1), **hooks)
        sleeps = await paused(app, await app.publish("go", {"n": 0}))
        runs, waits = [run_id_of(await app.publish("go", {"n": n})) for n in (1, 2)]
        await gate.reached.get()
        await app.runtime.deregister("flow", grace_seconds=0)
        statuses = [(await app.runtime.get(run_id)).status for run_id in (sleeps, runs, waits)]
        assert (statuses, told) == (["paused", "aborted", "aborted"], [runs])
        await hooked(app, workflow, **hooks)
        assert (await app.runtime.resume(sleeps)).ok
    assert told == [runs, sleeps]


async def test_deregister_may_end_paused_runs_too(make_app):
    """With `abort_paused=True` paused runs end aborted, and the hooks hear of it before `deregister` returns."""
    told = []
    stages = [Stage("ask", router=pause()), Stage("end")]
    async with make_app() as app:
        await hooked(app, Workflow("flow", on="go", stages=stages), on_complete=lambda r: told.append(r.error.code))
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.deregister("flow", abort_paused=True)
        assert (told, (await app.runtime.get(run_id)).status) == (["ABORTED"], "aborted")


async def test_what_waits_is_kept_when_a_workflow_is_replaced(make_app, gate):
    """`register(…, replace=True)` loses nothing: what ran, waits or comes meanwhile goes on under the new one."""
    ran = []
    async with make_app() as app:
        await hooked(app, flow(gate), mode=Serialized())
        runs = [run_id_of(await app.publish("go", {"n": n})) for n in range(3)]
        await gate.reached.get()
        await app.runtime.register(flow(keep(ran, lambda ctx: ctx.state["n"])), mode=Serialized(), replace=True)
        for run_id in runs:
            assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert ran == [0, 1, 2]


async def test_a_stopped_runtime_tells_those_who_wait(make_app, gate):
    """`stop` tells whoever waits for an unended run STOPPED, takes no calls, and leaves the run to the next node."""
    async with make_app() as app:
        await hooked(app, flow(gate))
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        waiting = asyncio.ensure_future(app.runtime.wait(run_id))
        await asyncio.sleep(0)
        await app.runtime.stop(grace_seconds=0)
        with pytest.raises(Exception, match="stopped") as caught:
            await asyncio.wait_for(waiting, LIMIT)
        assert caught.value.code == "STOPPED"
        from piecework import Event

        assert (await app.runtime.invoke("flow", "default", Event("go"))).error.code == "STOPPED"
    async with make_app(flow(nothing)) as app:
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
