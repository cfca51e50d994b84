from __future__ import annotations

import asyncio
import contextlib

import pytest

from piecework import App, Service, Settings, Workflow
from piecework.errors import DuplicateKeyError, NotFoundError, ValidationError

from .flows import Gate, ended, flow, keep, run_id_of


class Thing:
    """Something that a service is."""


def of(*names):
    """What a step reads to see services."""

    async def read(ctx):
        return [await ctx.require(name) for name in names]

    return read


async def run(app, event="go", **payload):
    result = await ended(app, await app.publish(event, payload))
    result.unwrap()
    return result


@pytest.mark.covers("R11", "R86", "R87")
async def test_the_apps_services_are_in_every_run(make_app):
    """A service given to the app is in every run, from the first on, and is the same instance in all of them."""
    seen = []
    async with make_app(flow(keep(seen, of("thing"))), services=[Service("thing", Thing)]) as app:
        await run(app)
        await run(app)
    assert isinstance(seen[0][0], Thing)
    assert seen[0][0] is seen[1][0]


@pytest.mark.covers("R85")
async def test_the_apps_services_are_in_every_workflow(make_app):
    """A service of the app is in the runs of every workflow."""
    seen = []
    workflows = [flow(keep(seen, of("thing")), id=name, on=name) for name in ("one", "two")]
    async with make_app(*workflows, services=[Service("thing", Thing)]) as app:
        await run(app, "one")
        await run(app, "two")
    assert seen[0][0] is seen[1][0]


@pytest.mark.covers("R18")
async def test_a_workflows_services_are_its_own(make_app):
    """A service that a workflow declares is in its runs and nowhere else: NOT_FOUND in others and in the app."""
    step = keep([], of("mine"))
    one = flow(step, id="one", on="one", services=[Service("mine", Thing)])
    async with make_app(one, flow(step, id="two", on="two")) as app:
        await run(app, "one")
        other = await ended(app, await app.publish("two"))
        assert (other.error.code, "mine" in other.error.message) == ("NOT_FOUND", True)
        async with app.workspace() as ws:
            with pytest.raises(NotFoundError, match="mine"):
                await ws.require("mine")


@pytest.mark.covers("R88")
async def test_a_factory_may_use_a_context_or_none(make_app):
    """A factory takes nothing, or a context that offers `use`, `require`, `resolve`, `select` and `on_cleanup`."""
    seen = []

    def full(ctx):
        return [callable(getattr(ctx, name)) for name in ("use", "require", "resolve", "select", "on_cleanup")]

    services = [Service("plain", Thing), Service("full", full)]
    async with make_app(flow(keep(seen, of("plain", "full"))), services=services) as app:
        await run(app)
    assert seen[0][1] == [True] * 5


@pytest.mark.covers("R90")
async def test_services_may_need_each_other(make_app):
    """A factory gets another service by `ctx.use` or `ctx.require`; both have the same instance."""
    seen = []

    async def upper(ctx):
        return ["upper", await ctx.use(lambda deps: deps.require("lower")), await ctx.require("lower")]

    services = [Service("lower", Thing), Service("upper", upper)]
    async with make_app(flow(keep(seen, of("upper", "lower"))), services=services) as app:
        await run(app)
    upper_one, lower_one = seen[0]
    assert upper_one[1] is upper_one[2] is lower_one


@pytest.mark.covers("R91")
def test_a_service_of_the_app_has_no_scope(store):
    """A service in the app's list that carries a scope is refused: it lives as long as the app either way."""
    with pytest.raises(ValidationError, match="scope"):
        App("x", store=store, services=[Service("thing", Thing, scope="run")])


@pytest.mark.covers("R92", "R94", "R121")
async def test_scope_workflow_is_one_for_all_runs(make_app):
    """A service of scope workflow is built once and is the same instance in every run while it is registered."""
    seen, built = [], []
    services = [Service("thing", lambda: built.append(1) or Thing(), scope="workflow")]
    async with make_app(flow(keep(seen, of("thing")), services=services)) as app:
        for _ in range(3):
            await run(app)
    assert len({id(things[0]) for things in seen}) == len(built) == 1


@pytest.mark.covers("R34", "R138")
async def test_deregistering_closes_the_workflows_services(make_app):
    """Deregistering a workflow closes the services that live as long as it: their clean-up has run."""
    log = []

    def thing(ctx):
        ctx.on_cleanup(lambda: log.append("closed"))
        return Thing()

    async with make_app(flow(keep([], of("thing")), services=[Service("thing", thing)])) as app:
        await run(app)
        assert log == []
        await app.runtime.deregister("flow")
        assert log == ["closed"]


@pytest.mark.covers("R95")
async def test_scope_run_is_one_for_a_run(make_app):
    """A service of scope run is one instance for all steps of a run."""
    seen = []
    steps = [keep(seen, of("thing")), keep(seen, of("thing"))]
    steps[1].__name__ = "other"
    async with make_app(flow(*steps, services=[Service("thing", Thing, scope="run")])) as app:
        await run(app)
    assert seen[0][0] is seen[1][0]


@pytest.mark.covers("R97")
async def test_scope_run_differs_between_runs(make_app):
    """Two runs at the same time have different instances of a service of scope run."""
    seen, meeting = [], asyncio.Barrier(2)

    async def step(ctx):
        await meeting.wait()
        seen.append(await ctx.require("thing"))
        await meeting.wait()

    async with make_app(flow(step, services=[Service("thing", Thing, scope="run")])) as app:
        for receipt in [await app.publish("go") for _ in range(2)]:
            await ended(app, receipt)
    assert seen[0] is not seen[1]


@pytest.mark.covers("R98", "R99")
async def test_scope_transient_is_new_each_time(make_app):
    """A service of scope transient is another instance each time it is asked for; all are closed with the run."""
    seen, closed = [], []

    def thing(ctx):
        made = Thing()
        ctx.on_cleanup(lambda: closed.append(made))
        return made

    service = Service("thing", thing, scope="transient")
    async with make_app(flow(keep(seen, of("thing", "thing")), services=[service])) as app:
        await run(app)
        first, second = seen[0]
        assert first is not second
        assert set(closed) == {first, second}


@pytest.mark.covers("R100")
async def test_the_scope_of_a_workflows_service_is_workflow(make_app):
    """A workflow's service without a scope lives as long as the workflow is registered."""
    seen = []
    async with make_app(flow(keep(seen, of("thing")), services=[Service("thing", Thing)])) as app:
        await run(app)
        await run(app)
    assert seen[0][0] is seen[1][0]


@pytest.mark.covers("R101")
async def test_a_workflow_service_cannot_read_a_runs_state(make_app):
    """A factory of scope workflow that selects from a run's state fails with INVALID_SCOPE."""
    service = Service("thing", lambda ctx: ctx.select(lambda state: state["n"]))
    async with make_app(flow(keep([], of("thing")), services=[service])) as app:
        assert (await ended(app, await app.publish("go", {"n": 1}))).error.code == "INVALID_SCOPE"


@pytest.mark.covers("R124")
@pytest.mark.parametrize("outcome", ["completed", "failed", "aborted"])
async def test_a_runs_services_are_closed_at_its_end(make_app, outcome):
    """Clean-ups of a run's services have run when the run has ended: completed, failed or aborted."""
    log, gate, closed = [], Gate(), asyncio.Event()

    async def thing():
        yield Thing()
        log.append("closed")
        closed.set()

    async def step(ctx):
        await ctx.require("thing")
        await gate(ctx)
        if outcome == "failed":
            raise RuntimeError

    async with make_app(flow(step, services=[Service("thing", thing, scope="run")])) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        assert log == []
        if outcome == "aborted":
            await app.runtime.abort(run_id)
        gate.open.set()
        with contextlib.suppress(Exception):
            (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap()
        await asyncio.wait_for(closed.wait(), 20)
        assert (await app.runtime.get(run_id)).status == outcome
    assert log == ["closed"]


@pytest.mark.covers("R106", "R125")
@pytest.mark.parametrize("scope", ["app", "workflow", "run"])
async def test_the_pause_service_cannot_be_redefined(app, scope):
    """Nobody may define a service `__pause_service__`: DUPLICATE_KEY with the id."""
    with pytest.raises(DuplicateKeyError, match="__pause_service__") as caught:
        await _define(app, "__pause_service__", scope)
    assert caught.value.code == "DUPLICATE_KEY"


@pytest.mark.covers("R107", "R125")
@pytest.mark.parametrize("scope", ["app", "workflow", "run"])
async def test_the_env_service_cannot_be_redefined(app, scope):
    """Nobody may define a service `__env__`: DUPLICATE_KEY with the id."""
    with pytest.raises(DuplicateKeyError, match="__env__") as caught:
        await _define(app, "__env__", scope)
    assert caught.value.code == "DUPLICATE_KEY"


async def _define(app, name, scope):
    if scope == "app":
        App("x", services=[Service(name, Thing)])
    else:
        await app.runtime.register(flow(services=[Service(name, Thing, scope=scope)]))


@pytest.mark.covers("R108")
def test_two_services_of_one_id_are_refused(store):
    """Two services of one id, or a reserved one, are refused with DUPLICATE_KEY when the app is made."""
    for services in ([Service("a", Thing), Service("a", Thing)], [Service("__env__", Thing)]):
        with pytest.raises(DuplicateKeyError):
            App("x", store=store, services=services)


@pytest.mark.covers("R109")
async def test_a_refused_workflow_is_not_half_registered(app):
    """A workflow whose services are refused is not registered at all: no trigger of it sees an event."""
    with pytest.raises(DuplicateKeyError):
        await app.runtime.register(flow(services=[Service("fine", Thing), Service("__env__", Thing)]))
    assert not app.runtime.has_workflow("flow")
    assert (await app.publish("go")).dispatched == []


def env_of(*names):
    """What a step reads to see variables."""

    async def read(ctx):
        env = await ctx.require("__env__")
        return [env.get(name) for name in names]

    return read


@pytest.mark.covers("R110", "R115", "R13", "R19", "R111", "R114", "R122", "R136")
async def test_env_is_the_workflows_layer_over_the_apps(make_app):
    """A step reads variables with `require("__env__").get(…)`: its workflow's layer first, then the app's."""
    seen = []
    one = flow(keep(seen, env_of("A", "B")), id="one", on="one", env={"A": "workflow"})
    two = flow(keep(seen, env_of("A", "B")), id="two", on="two")
    async with make_app(one, two, env={"A": "app", "B": "app"}) as app:
        await run(app, "one")
        await run(app, "two")
    assert seen == [["workflow", "app"], ["app", "app"]]


@pytest.mark.covers("R112", "R116", "R119", "R129")
async def test_a_given_env_hides_the_process_environment(make_app, monkeypatch):
    """With `env=` given, variables are read from it alone: the process environment is hidden, what is unset is None."""
    monkeypatch.setenv("PROMISE", "process")
    seen = []
    workflow = flow(keep(seen, env_of("W", "A", "PROMISE", "HOME")), env={"W": "workflow"})
    async with make_app(workflow, env={"W": "app", "A": "app"}) as app:
        await run(app)
    async with make_app(workflow, env={}) as app:
        await run(app)
    assert seen == [["workflow", "app", None, None], ["workflow", None, None, None]]


@pytest.mark.covers("R12", "R113")
async def test_the_default_env_is_the_process_environment(make_app, monkeypatch):
    """Without `env=` variables are read from the process environment."""
    monkeypatch.setenv("PROMISE", "process")
    seen = []
    async with make_app(flow(keep(seen, env_of("PROMISE")))) as app:
        await run(app)
    assert seen == [["process"]]


@pytest.mark.covers("R137")
async def test_env_answers_outside_of_runs(make_app):
    """Outside of any run `__env__` answers with the app's layer."""
    async with make_app(env={"A": "app"}) as app, app.workspace() as ws:
        assert (await ws.require("__env__")).get("A") == "app"


@pytest.mark.covers("R117", "R128")
async def test_env_is_read_by_get_alone(make_app):
    """The env service is no mapping and has no attributes: using it so raises with a hint to `.get()`."""
    async with make_app(env={"A": "1"}) as app, app.workspace() as ws:
        env = await ws.require("__env__")
        with pytest.raises(AttributeError, match=r"get\('A'\)"):
            _ = env.A
        with pytest.raises(TypeError, match=r"get\('A'\)"):
            _ = env["A"]


@pytest.mark.covers("R118")
async def test_env_cannot_be_changed(make_app):
    """Assigning to the env service or deleting from it raises, and changes nothing."""
    async with make_app(env={"A": "1"}) as app, app.workspace() as ws:
        env = await ws.require("__env__")

        def assign():
            env.A = "2"

        def assign_item():
            env["A"] = "2"

        def delete():
            del env.A

        def delete_item():
            del env["A"]

        for change in (assign, assign_item, delete, delete_item):
            with pytest.raises(Exception, match="read-only"):
                change()
        assert env.get("A") == "1"


@pytest.mark.covers("R130", "R131")
async def test_use_offers_resolve_require_and_select(make_app):
    """`ctx.use` hands its function exactly `resolve`, `require` and `select`, and answers what it gives."""
    seen = []

    async def look(ctx):
        seen.append(await ctx.use(lambda deps: sorted(name for name in dir(deps) if not name.startswith("_"))))
        seen.append(await ctx.use(lambda deps: deps.require("thing")))
        seen.append(await ctx.use(lambda deps: deps.select(lambda state: state["n"])))

    async with make_app(flow(look), services=[Service("thing", Thing)]) as app:
        await run(app, n=7)
    assert seen[0] == ["require", "resolve", "select"]
    assert isinstance(seen[1], Thing)
    assert seen[2] == 7


@pytest.mark.covers("R133", "R134")
async def test_a_step_finds_services_of_all_levels(make_app):
    """A step resolves services of its run, then of its workflow, then of the app, and the built-in ones."""
    seen = []
    services = [Service("flows", Thing), Service("runs", Thing, scope="run"), Service("shadowed", lambda: "workflow")]
    names = ["apps", "flows", "runs", "shadowed", "__env__", "__pause_service__"]
    workflow = flow(keep(seen, of(*names)), services=services)
    async with make_app(workflow, services=[Service("apps", Thing), Service("shadowed", lambda: "app")]) as app:
        await run(app)
    assert seen[0][3] == "workflow"
    assert all(thing is not None for thing in seen[0])


@pytest.mark.covers("R47")
async def test_a_resumed_run_has_all_its_services(make_app):
    """A run that is resumed after a restart resolves app, workflow, run and transient services and `__env__` again."""
    from piecework import Stage, pause

    seen = []
    names = ("apps", "flows", "runs", "temps", "__env__")
    workflow = Workflow(
        "flow",
        on="go",
        stages=[Stage("a", router=pause()), Stage("b", steps=[keep(seen, of(*names))])],
        services=[
            Service("flows", Thing),
            Service("runs", Thing, scope="run"),
            Service("temps", Thing, scope="transient"),
        ],
    )
    async with make_app(workflow, services=[Service("apps", Thing)]) as app:
        run_id = run_id_of(await app.publish("go"))
        await app.runtime.wait(run_id, until="paused")
    async with make_app(workflow, services=[Service("apps", Thing)]) as app:
        assert (await app.runtime.resume(run_id)).ok
    assert len(seen[0]) == 5


@pytest.mark.covers("E50")
async def test_services_that_need_each_other_in_a_circle_are_told(make_app):
    """Services that need each other in a circle fail with CYCLE and the circle, at once: no deadlock."""

    async def a(ctx):
        return await ctx.require("b")

    async def b(ctx):
        return await ctx.require("a")

    services = [Service("a", a, scope="run"), Service("b", b, scope="run")]
    async with make_app(flow(keep([], of("a")), services=services)) as app:
        error = (await ended(app, await app.publish("go"))).error
        assert error.code == "CYCLE"
        assert "a -> b -> a" in error.message


@pytest.mark.covers("E51")
async def test_a_shared_service_is_built_once_for_all_who_ask_at_once(make_app):
    """Two runs that ask for a workflow's service at the same time share one build; a failed one is tried again."""
    built, seen, meeting = [], [], asyncio.Barrier(2)

    async def thing():
        built.append(1)
        await asyncio.wait_for(both_ask.wait(), 20)
        if len(built) == 1:
            raise RuntimeError("the first build")
        return Thing()

    both_ask = asyncio.Event()

    async def step(ctx):
        if ctx.state["meet"]:
            await meeting.wait()
            asking = asyncio.ensure_future(ctx.require("thing"))
            await meeting.wait()
            both_ask.set()
            seen.append(await asking)
        else:
            seen.append(await ctx.require("thing"))

    async with make_app(flow(step, services=[Service("thing", thing)])) as app:
        receipts = [await app.publish("go", {"meet": True}) for _ in range(2)]
        results = [await ended(app, receipt) for receipt in receipts]
        assert ["the first build" in result.error.message for result in results] == [True, True]
        assert built == [1]
        await run(app, meet=False)
    assert isinstance(seen[0], Thing)


@pytest.mark.covers("N19")
async def test_a_service_that_fails_to_close_changes_no_outcome(make_app, caplog):
    """A service whose clean-up raises changes neither the run's outcome nor the clean-up of the others; it is shown."""
    log = []

    def good(ctx):
        ctx.on_cleanup(lambda: log.append("good closed"))
        return Thing()

    def bad(ctx):
        def fail():
            raise RuntimeError("cannot close")

        ctx.on_cleanup(fail)
        return Thing()

    services = [Service("good", good, scope="run"), Service("bad", bad, scope="run")]
    async with make_app(flow(keep([], of("good", "bad")), services=services), settings=Settings()) as app:
        assert (await run(app)).value.status == "completed"
    assert log == ["good closed"]
    assert "cannot close" in caplog.text
