from __future__ import annotations

import pytest

from piecework import Service, Settings, SingletonLoop, Stage, Workflow, jump, pause, terminate
from piecework.errors import NotFoundError, StoreFullError, ValidationError

from .flows import ended, flow, keep, nothing, paused, run_id_of


def rounds(count, states):
    """A workflow that goes round, changes its state each time and pauses every fourth time; its router looks on."""

    async def change(ctx):
        n = len(states)
        return {"n": n, "deep": {f"k{n % 3}": {"v": [n]}, "same": 1}, "flat": n % 2 or {"x": n}}

    def onward(view):
        states.append(view.state)
        if len(states) == count:
            return terminate
        return pause(then="only") if len(states) % 4 == 0 else jump("only")

    return Workflow("flow", on="go", stages=[Stage("only", steps=[change], router=onward)])


@pytest.mark.parametrize("count", [1, 3, 25])
async def test_the_state_at_every_commit_can_be_had_again(make_app, count):
    """The data at any entry of a timeline is what was committed with it, over resumes and a restart of the app."""
    states: list = []
    async with make_app(rounds(count, states)) as app:
        run_id = run_id_of(await app.publish("go", {"brought": True}))
        await app.runtime.wait(run_id, until="paused", timeout_seconds=20)
    async with make_app(rounds(count, states)) as app:
        resumes = 0
        while (await app.runtime.wait(run_id, until="paused", timeout_seconds=20)).unwrap().status == "paused":
            await app.runtime.resume(run_id, {"resumed": (resumes := resumes + 1)})
        told = await app.runtime.timeline(run_id)
        ends = [entry.seq for entry in told if entry.type == "stage:completed"]
        assert [await app.runtime.seek(run_id, seq) for seq in ends] == states
        assert await app.runtime.seek(run_id, told[-1].seq) == await app.runtime.state(run_id) == states[-1]
        assert await app.runtime.seek(run_id, 1) == {}
        assert [entry.seq for entry in told] == list(range(1, len(told) + 1))


async def test_an_entry_says_which_places_of_the_state_it_changed(make_app):
    """A stage's entry and a resume's name the places that changed, a resume with source store."""

    async def count(ctx):
        return {"a": {"b": 1, "c": [1]}}

    stages = [Stage("one", steps=[count], router=pause()), Stage("two")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go", {"n": 1}))
        (await app.runtime.resume(run_id, {"a": {"b": 2}, "who": "Ada"})).unwrap()
        told = [(e.source, e.type, e.changed) for e in await app.runtime.timeline(run_id) if e.changed]
    assert told == [
        ("pipeline", "stage:completed", ["a.b", "a.c", "n"]),
        ("store", "state:resumed", ["a.b", "who"]),
    ]


async def test_a_failed_runs_data_stays_as_it_was_committed(make_app):
    """What a resume brought to a run that then failed was never committed, and no entry says otherwise."""

    async def fail(ctx):
        raise ValueError(ctx.state["who"])

    stages = [Stage("one", router=pause()), Stage("two", steps=[fail])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        assert (await app.runtime.resume(run_id, {"who": "Ada"})).error is not None
        told = await app.runtime.timeline(run_id)
        assert told[-1].type == "run:failed"
        assert await app.runtime.seek(run_id, told[-1].seq) == await app.runtime.state(run_id)
        assert "who" not in await app.runtime.state(run_id)


async def test_an_entry_that_is_not_there_has_no_state(make_app):
    """A number that no entry has is NOT_FOUND, and the message says how many there are."""
    async with make_app(Workflow("flow", on="go", stages=[Stage("only", steps=[nothing])])) as app:
        receipt = await app.publish("go")
        (await ended(app, receipt)).unwrap()
        count = len(await app.runtime.timeline(run_id_of(receipt)))
        for seq in (0, -1, count + 1):
            with pytest.raises(NotFoundError, match=f"1 to {count}"):
                await app.runtime.seek(run_id_of(receipt), seq)


async def test_services_of_a_run_stand_in_its_timeline(make_app):
    """What happens to a service that is made for each run is told with source container, why a build failed too."""

    async def made():
        yield "session"

    def broken():
        raise ValueError("no such host")

    async def use(ctx):
        await ctx.require("session")
        with pytest.raises(ValueError, match="no such host"):
            await ctx.require("broken")

    services = [Service("session", made, scope="run"), Service("broken", broken, scope="run")]
    async with make_app(flow(use, services=services)) as app:
        receipt = await app.publish("go")
        (await ended(app, receipt)).unwrap()
    async with make_app() as app:
        told = await app.runtime.timeline(run_id_of(receipt))
    lines = [(entry.type, entry.path) for entry in told if entry.source == "container"]
    assert lines == [
        ("build:start", "session"),
        ("build:complete", "session"),
        ("build:start", "broken"),
        ("build:error", "broken"),
        ("artifact:disposed", "session"),
    ]
    assert "no such host" in str([entry.payload for entry in told if entry.type == "build:error"])
    assert [entry.type for entry in told][-2:] == ["run:completed", "artifact:disposed"]


async def test_a_run_without_services_of_its_own_is_not_looked_at(make_app):
    """Where a workflow makes nothing for each run nothing is told of services."""
    seen = []
    async with make_app(flow(keep(seen, lambda ctx: ctx.require("__env__")))) as app:
        receipt = await app.publish("go")
        (await ended(app, receipt)).unwrap()
        assert seen
        assert "container" not in {entry.source for entry in await app.runtime.timeline(run_id_of(receipt))}


async def test_secrets_stand_in_no_timeline_and_no_log_line(make_app, caplog):
    """Variables and what is called a secret are replaced in log lines, progress and failures; the state keeps them."""

    async def leak(ctx):
        ctx.logger.info("with hush-app and hush-flow", password="open", deep={"api_key": "k", "n": 1}, tokens=3)
        ctx.logger.bind(token="t").warning("more", iban="DE00")
        ctx.progress(0.5, "asked hush-app")
        return {"password": "kept", "why": "hush-app"}

    async def fail(ctx):
        raise ValueError("cannot reach hush-flow")

    workflow = Workflow(
        "flow", on="go", stages=[Stage("one", steps=[leak]), Stage("two", steps=[fail])], env={"B": "hush-flow"}
    )
    options = {"env": {"A": "hush-app"}, "settings": Settings(redacted_names=("iban",))}
    with caplog.at_level("INFO", logger="piecework"):
        async with make_app(workflow, **options) as app:
            receipt = await app.publish("go")
            result = await ended(app, receipt)
            told = await app.runtime.timeline(run_id_of(receipt))
            state = await app.runtime.state(run_id_of(receipt))
            info = await app.runtime.get(run_id_of(receipt))
    assert info.progress.message == "asked [redacted]"
    lines = [entry.payload for entry in told if entry.type.startswith("log.")]
    assert lines[0]["message"] == "with [redacted] and [redacted]"
    assert {k: v for k, v in lines[0]["fields"].items() if k not in {"run_id", "workflow_id"}} == {
        "password": "[redacted]",
        "deep": {"api_key": "[redacted]", "n": 1},
        "tokens": 3,
    }
    assert (lines[1]["fields"]["token"], lines[1]["fields"]["iban"]) == ("[redacted]", "[redacted]")
    assert "cannot reach [redacted]" in str(result.error)
    for text in (str(told), caplog.text):
        assert "hush" not in text
        assert "DE00" not in text
    assert (state["password"], state["why"]) == ("kept", "hush-app")


class Trouble:
    """Has an app's store refuse log lines until it is told otherwise."""

    def __init__(self, app, monkeypatch):
        self.there, real = True, app.node.timelines._commit

        async def commit(verb, item, decide):
            if self.there:
                raise StoreFullError("the disk is full")
            return await real(verb, item, decide)

        monkeypatch.setattr(app.node.timelines, "_commit", commit)


@pytest.mark.covers("E55")
async def test_a_run_goes_on_without_its_log_lines(make_app, gate, monkeypatch):
    """A run whose lines cannot be written goes on; when they can be again an entry says how many are missing."""

    async def say(ctx):
        ctx.logger.info(ctx.stage_id)

    stages = [Stage("one", steps=[say]), Stage("two", steps=[gate]), Stage("three", steps=[say])]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        trouble = Trouble(app, monkeypatch)
        receipt = await app.publish("go")
        await gate.reached.get()
        trouble.there = False
        gate.open.set()
        (await ended(app, receipt)).unwrap()
        told = [entry for entry in await app.runtime.timeline(run_id_of(receipt)) if entry.type[:4] in {"time", "log."}]
        assert [(entry.type, entry.payload.get("lines")) for entry in told] == [("timeline:gap", 1), ("log.info", None)]
        assert app.node.timelines.lost == 1


@pytest.mark.covers("E55")
async def test_with_strict_timelines_a_run_fails_without_its_log_lines(make_app, monkeypatch):
    """With `strict_timeline` a run whose lines cannot be written fails with TIMELINE_GAP, its stage uncommitted."""

    async def say(ctx):
        ctx.logger.info("hello")

    async with make_app(flow(say), settings=Settings(strict_timeline=True)) as app:
        Trouble(app, monkeypatch)
        result = await ended(app, await app.publish("go"))
    assert result.error.code == "TIMELINE_GAP"


async def test_secrets_stand_in_no_failure_of_a_job(make_app):
    """The failure of a job is told without the variables that the app was given; a job has no earlier states."""

    async def leak(ws):
        raise ValueError("cannot reach hush-app")

    app = make_app(env={"A": "hush-app"})
    job = app.job("leak")(leak)
    async with app:
        run_id = await job.enqueue()
        result = await app.runtime.wait(run_id, timeout_seconds=20)
        told = await app.runtime.timeline(run_id)
        with pytest.raises(ValidationError, match="of kind job"):
            await app.runtime.seek(run_id, 1)
    assert "cannot reach [redacted]" in str(result.error)
    assert "hush-app" not in str(told)


async def test_a_signal_stands_in_the_timeline_where_it_was_read(make_app, gate):
    """A signal stands in the timeline twice: when it was sent, without its words, and with what it changed."""
    mode = SingletonLoop(on_busy="signal")
    stages = [Stage("one", steps=[gate]), Stage("two")]
    async with make_app(Workflow("flow", on="go", stages=stages), mode=mode) as app:
        receipt = await app.publish("go", {"n": 1})
        await gate.reached.get()
        await app.publish("go", {"n": 2, "password": "hush"})
        gate.open.set()
        (await ended(app, receipt)).unwrap()
        told = [entry for entry in await app.runtime.timeline(run_id_of(receipt)) if entry.source == "store"]
        assert [(entry.type, entry.changed) for entry in told] == [
            ("run:signalled", []),
            ("state:signalled", ["n", "password"]),
        ]
        assert "hush" not in str(told)
        assert (await app.runtime.seek(run_id_of(receipt), told[1].seq))["n"] == 2
