from __future__ import annotations

import asyncio
import contextlib
from uuid import uuid4

import pytest

from piecework import App, Service, Settings, Stage, Step, Workflow, pause
from piecework.container.container import Container
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


# -- services that read the run's state ------------------------------------------------------------------------------


class Profile:
    """What a service makes of a user's name."""

    def __init__(self, name):
        self.name = name


def profile(log=None):
    """A factory that follows the user in the run's state, and says when what it made is closed."""

    def make(ctx):
        made = Profile(ctx.select(lambda state: state["user"]))
        if log is not None:
            ctx.on_cleanup(lambda: log.append(made.name))
        return made

    return make


@pytest.mark.covers("R89")
async def test_a_factory_reads_state_and_services_and_says_what_to_clean_up(make_app):
    """A factory gets the run's state, selects from it, uses other services, and registers its clean-up."""
    seen, log = [], []

    async def full(ctx):
        ctx.on_cleanup(lambda: log.append("closed"))
        thing = await ctx.use(lambda deps: deps.require("thing"))
        return ctx.state()["n"], ctx.select(lambda state: state["n"] + 1), thing, ctx.run_id

    services = [Service("full", full, scope="run"), Service("thing", Thing, scope="run")]
    async with make_app(flow(keep(seen, of("full", "thing")), services=services)) as app:
        run_id = run_id_of(await app.publish("go", {"n": 7}))
        (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap()
    (full, thing) = seen[0]
    assert full == (7, 8, thing, run_id)
    assert log == ["closed"]


@pytest.mark.covers("R103", "R120")
@pytest.mark.parametrize("scope", ["run", "transient"])
async def test_a_service_selects_from_its_own_run(make_app, scope):
    """A factory of scope run or transient selects from the state of the run that asks, also beside another run."""
    seen, meeting = {}, asyncio.Barrier(2)

    async def step(ctx):
        await meeting.wait()
        seen[ctx.state["user"]] = (await ctx.require("profile")).name
        await meeting.wait()

    async with make_app(flow(step, services=[Service("profile", profile(), scope=scope)])) as app:
        for receipt in [await app.publish("go", {"user": name}) for name in ("ann", "bob")]:
            (await ended(app, receipt)).unwrap()
    assert seen == {"ann": "ann", "bob": "bob"}


def two_stages(first, second, *services):
    """A workflow of two stages of one step each."""
    return Workflow("flow", on="go", stages=[Stage("a", steps=[first]), Stage("b", steps=[second])], services=services)


@pytest.mark.covers("R104")
async def test_a_service_follows_the_runs_state(make_app):
    """After a commit that changes what it selected who asks next gets a new instance; then the old one is closed."""
    seen, log = [], []

    async def first(ctx):
        seen.append(await ctx.require("profile"))
        return {"user": "bob"}

    async def second(ctx):
        assert log == []
        seen.append(await ctx.require("profile"))
        seen.append(await ctx.require("profile"))
        seen.append(list(log))

    async with make_app(two_stages(first, second, Service("profile", profile(log), scope="run"))) as app:
        await run(app, user="ann")
    assert [made.name for made in seen[:3]] == ["ann", "bob", "bob"]
    assert seen[1] is seen[2]
    assert (seen[3], log) == (["ann"], ["ann", "bob"])


@pytest.mark.covers("R104")
async def test_what_was_made_from_a_service_that_follows_is_made_anew_too(make_app):
    """What was built from a service whose selected value changed is built anew as well, and closed before it."""
    seen, log = [], []

    async def letter(ctx):
        to = (await ctx.require("profile")).name
        ctx.on_cleanup(lambda: log.append(f"letter to {to}"))
        return f"to {to}"

    async def first(ctx):
        seen.append(await ctx.require("letter"))
        return {"user": "bob"}

    services = [Service("profile", profile(log), scope="run"), Service("letter", letter, scope="run")]
    async with make_app(two_stages(first, keep(seen, of("letter")), *services)) as app:
        await run(app, user="ann")
    assert seen == ["to ann", ["to bob"]]
    assert log == ["letter to ann", "ann", "letter to bob", "bob"]


@pytest.mark.covers("R104", "E47")
async def test_a_step_keeps_the_service_that_it_got(make_app):
    """A step that is under way keeps its instance, open, whatever it or the step beside it is going to commit."""
    seen, log, meeting = [], [], asyncio.Barrier(2)

    async def changes(ctx):
        await ctx.require("profile")
        await meeting.wait()
        return {"user": "bob"}

    async def keeps(ctx):
        mine = await ctx.require("profile")
        await meeting.wait()
        seen.extend([mine, await ctx.require("profile"), list(log)])

    workflow = flow(changes, keeps, services=[Service("profile", profile(log), scope="run")])
    async with make_app(workflow) as app:
        await run(app, user="ann")
    assert seen[0] is seen[1]
    assert (seen[2], log) == ([], ["ann"])


@pytest.mark.covers("E48")
async def test_a_service_that_cannot_be_made_anew_is_tried_again(make_app):
    """When a service cannot be made anew in mid-run, who asks gets the error, and who asks next has it tried again."""
    seen, trouble = [], [OSError("down")]

    def make(ctx):
        user = ctx.select(lambda state: state["user"])
        if user == "bob" and trouble:
            raise trouble.pop()
        return Profile(user)

    async def first(ctx):
        await ctx.require("profile")
        return {"user": "bob"}

    async def second(ctx):
        with pytest.raises(OSError, match="down"):
            await ctx.require("profile")
        seen.append((await ctx.require("profile")).name)

    async with make_app(two_stages(first, second, Service("profile", make, scope="run"))) as app:
        await run(app, user="ann")
    assert seen == ["bob"]


@pytest.mark.covers("E49")
async def test_a_factory_that_hangs_ends_with_its_run(make_app):
    """A build that hangs when its run ends is cancelled, and what it opened is closed."""
    log = []

    async def hangs(ctx):
        ctx.on_cleanup(lambda: log.append("closed"))
        await asyncio.Event().wait()

    async def asks(ctx):
        await ctx.require("hangs")

    step = Step(asks, timeout_seconds=0.01)
    async with make_app(flow(step, services=[Service("hangs", hangs, scope="run")])) as app:
        run_id = run_id_of(await app.publish("go"))
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).error.code == "TIMEOUT"
    assert log == ["closed"]


@pytest.mark.covers("R104")
async def test_a_service_does_not_follow_what_it_did_not_select(make_app):
    """A commit of other data, or of the same value, leaves a service as it is."""
    seen = []

    async def first(ctx):
        seen.append(await ctx.require("profile"))
        return {"user": "ann", "other": {"n": 2}}

    service = Service("profile", profile(), scope="run")
    async with make_app(two_stages(first, keep(seen, of("profile")), service)) as app:
        await run(app, user="ann", other={"n": 1})
    assert seen[0] is seen[1][0]


@pytest.mark.covers("R104")
async def test_a_service_follows_what_a_resume_brings(make_app):
    """A patch that a paused run is resumed with is followed like a commit."""
    seen = []
    workflow = Workflow(
        "flow",
        on="go",
        stages=[
            Stage("a", steps=[keep(seen, of("profile"))], router=pause()),
            Stage("b", steps=[keep(seen, of("profile"))]),
        ],
        services=[Service("profile", profile(), scope="run")],
    )
    async with make_app(workflow) as app:
        run_id = run_id_of(await app.publish("go", {"user": "ann"}))
        (await app.runtime.wait(run_id, until="paused", timeout_seconds=20)).unwrap()
        assert (await app.runtime.resume(run_id, {"user": "bob"})).ok
    assert [made.name for (made,) in seen] == ["ann", "bob"]


@pytest.mark.covers("R105", "R120")
async def test_configuration_profile_and_request_id(make_app):
    """A workflow has a configuration for all its runs, a profile for each run, and a new id at each request."""
    seen, loads = [], []

    async def user_profile(ctx):
        return Profile(await ctx.use(lambda deps: deps.select(lambda state: state["user_id"])))

    services = [
        Service("config", lambda: loads.append(1) or {"site": "News"}, scope="workflow"),
        Service("user_profile", user_profile, scope="run"),
        Service("request_id", lambda: str(uuid4()), scope="transient"),
    ]
    names = ("config", "user_profile", "user_profile", "request_id", "request_id")
    async with make_app(flow(keep(seen, of(*names)), services=services)) as app:
        for user_id in ("u1", "u2"):
            await run(app, user_id=user_id)
    (config, one, same, first, second), (config_again, other, *more) = seen
    assert (config is config_again, loads) == (True, [1])
    assert (one is same, one.name, other.name) == (True, "u1", "u2")
    assert len({first, second, *more[1:]}) == 4


@pytest.mark.covers("R123")
async def test_a_factory_that_selects_needs_no_run(make_app):
    """A factory that takes all it needs from its context makes the same in a run and in a container of a test's own."""
    seen = []

    async def greeting(ctx):
        return f"{await ctx.require('word')} {ctx.select(lambda state: state['user'])}"

    services = [Service("word", lambda: "hello"), Service("greeting", greeting, scope="run")]
    async with make_app(flow(keep(seen, of("greeting")), services=services)) as app:
        await run(app, user="ann")
    async with Container(state=Container.State({"user": "ann"})) as c:
        c.register("word", lambda: "hello")
        c.register("greeting", greeting)
        assert [[await c.require("greeting")]] == seen == [["hello ann"]]


TOUCHES = {
    "run_id": lambda ctx: ctx.run_id,
    "select": lambda ctx: ctx.select(lambda state: state["n"]),
    "state": lambda ctx: ctx.state()["n"],
}


@pytest.mark.covers("R126")
@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("scope", ["app", "workflow"])
async def test_a_shared_service_that_touches_a_run_is_told_what_to_do(make_app, scope, touch):
    """A factory of the app or of a workflow that touches a run's data is refused: name it, and give it scope run."""
    services = [Service("leaks", TOUCHES[touch])]
    of_app, of_flow = (services, []) if scope == "app" else ([], services)
    async with make_app(flow(keep([], of("leaks")), services=of_flow), services=of_app) as app:
        error = (await ended(app, await app.publish("go", {"n": 1}))).error
    assert (error.code, "'leaks'" in error.message, "scope 'run'" in error.message) == ("INVALID_SCOPE", True, True)


@pytest.mark.covers("R127")
async def test_what_a_run_puts_into_a_shared_service_is_there_for_the_next(make_app):
    """What a run puts into a service of the app or of its workflow the next run finds; one of scope run is empty."""
    seen = []

    async def step(ctx):
        for name in ("apps", "flows", "runs"):
            basket = await ctx.require(name)
            basket.append(ctx.state["user"])
            seen.append((name, list(basket)))

    services = [Service("flows", list), Service("runs", list, scope="run")]
    async with make_app(flow(step, services=services), services=[Service("apps", list)]) as app:
        for name in ("ann", "bob"):
            await run(app, user=name)
    assert seen[3:] == [("apps", ["ann", "bob"]), ("flows", ["ann", "bob"]), ("runs", ["bob"])]


# -- the tree of containers ------------------------------------------------------------------------------------------


def containers_of(ctx):
    """The containers of a step's run and of its workflow."""
    of_run = ctx.workspace.root.container
    return of_run, of_run.parents[0]


def asking(seen, *names):
    """A step that asks for services and keeps the containers that it sees, with what they show."""

    async def step(ctx):
        for name in names:
            await ctx.require(name)
        of_run, of_flow = containers_of(ctx)
        seen.append((of_run, of_flow, of_run.debug_info(), of_flow.debug_info()))

    return step


@pytest.mark.covers("R93", "R132")
async def test_containers_are_a_tree(make_app):
    """A run's container is below its workflow's, which is below the app's; each workflow has one of its own."""
    seen = []
    step = asking(seen, "apps", "flows", "__env__", "__pause_service__")
    workflows = [flow(step, id=name, on=name, services=[Service("flows", Thing)]) for name in ("one", "two")]
    async with make_app(*workflows, services=[Service("apps", Thing)]) as app:
        for name in ("one", "two", "two"):
            await run(app, name)
        flows = [of_flow for _, of_flow, _, _ in seen]
        assert (flows[0] is flows[1], flows[1] is flows[2]) == (False, True)
        assert [of_flow.parents for of_flow in flows] == [(app.container,)] * 3
        assert len({id(of_run) for of_run, *_ in seen}) == 3
        assert {"apps", "__env__"} <= app.container.names()
        assert flows[0].peek("flows") is not flows[1].peek("flows")
        assert flows[0].peek("apps") is flows[1].peek("apps") is app.container.peek("apps")


@pytest.mark.covers("R96", "R102")
async def test_what_a_run_needs_lives_in_its_container(make_app):
    """A service of scope run or transient is in its run's container, and in neither the workflow's nor the app's."""
    seen = []
    step = asking(seen, "runs", "temps", "flows")
    services = [
        Service("runs", Thing, scope="run"),
        Service("temps", Thing, scope="transient"),
        Service("flows", Thing),
    ]
    async with make_app(flow(step, services=services)) as app:
        await run(app)
        ((_, _, of_run, of_flow),) = seen
        assert (of_run["runs"]["status"], of_run["runs"]["scope"]) == ("ready", "run")
        assert (of_flow["flows"]["status"], of_flow["flows"]["scope"]) == ("ready", "workflow")
        for info in (of_flow, app.container.debug_info()):
            assert {"runs", "temps"}.isdisjoint(info)


@pytest.mark.covers("R135")
@pytest.mark.parametrize("name", ["runs", "temps"])
async def test_a_runs_services_are_unknown_above_it(make_app, name):
    """A service of scope run or transient is NOT_FOUND in its workflow's container and in the app's."""
    seen = []
    services = [Service("runs", Thing, scope="run"), Service("temps", Thing, scope="transient")]
    async with make_app(flow(asking(seen, name), services=services)) as app:
        await run(app)
        ((_, of_flow, _, _),) = seen
        for container in (of_flow, app.container):
            with pytest.raises(NotFoundError, match=name) as caught:
                await container.require(name)
            assert caught.value.code == "NOT_FOUND"
