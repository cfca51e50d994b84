from __future__ import annotations

import asyncio

import pytest

from piecework import App, Event, EventBus, Runtime, Service, Settings, Stage, StoreRegistry, Transient, Workflow, pause
from piecework.errors import ClosedError, ConflictError, InvalidStateError, NotFoundError, StoppedError, ValidationError

from .flows import flow, keep, nothing, run_id_of

WAITS = Workflow("flow", on="go", stages=[Stage("ask", router=pause()), Stage("end", steps=[nothing])])


@pytest.fixture
def made(store):
    """Makes a runtime over the test's store, with a bus of its own."""

    def make(**options):
        return Runtime(**{"bus": EventBus(), "store_registry": StoreRegistry(store)} | options)

    return make


async def emitted(bus, name="go", payload=None):
    """The run that an event on a bus started."""
    return run_id_of(await bus.emit(Event(name, payload or {})))


@pytest.mark.covers("R6", "R15")
async def test_the_quick_start_runs(store):
    """The quick start works as written: a bus, a store registry, a runtime, a workflow with a mode and hooks."""
    prepared, completed = [], []
    bus = EventBus()
    runtime = Runtime(bus=bus, store_registry=StoreRegistry(store))

    async def on_prepare(ctx):
        prepared.append(ctx.run_id)

    async def on_complete(result):
        completed.append(result.value.status)

    await runtime.register(flow(), mode=Transient(concurrency=10), on_prepare=on_prepare, on_complete=on_complete)
    run_id = await emitted(bus)
    assert (await runtime.wait(run_id)).ok
    await runtime.stop()
    assert (prepared, completed) == ([run_id], ["completed"])


@pytest.mark.covers("R7", "R8", "R9")
async def test_a_runtime_needs_a_bus_and_a_store_registry(made, store):
    """Without a bus or a store registry there is no runtime; a timeline store, services and env may be left out."""
    for options in ({"bus": EventBus()}, {"store_registry": StoreRegistry(store)}):
        with pytest.raises(TypeError, match="missing"):
            Runtime(**options)
    with pytest.raises(ValidationError, match="needs a bus"):
        Runtime(bus=None, store_registry=StoreRegistry(store))
    for address in ("", "shop.db", "mysql://127.0.0.1/shop"):
        with pytest.raises(ValidationError, match="sqlite:///FILE"):
            StoreRegistry(address)
    async with made() as runtime:
        await runtime.register(flow())
        assert (await runtime.invoke("flow", "default", Event("go"))).ok


async def test_a_runtime_pauses_resumes_and_aborts(made):
    """A runtime by itself invokes, pauses, resumes and aborts as an app's does."""
    async with made() as runtime:
        await runtime.register(WAITS)
        one = await runtime.invoke("flow", "default", Event("go"))
        assert (await runtime.resume(one.metadata.run_id, {"x": 1})).value.state["x"] == 1
        two = await runtime.invoke("flow", "default", Event("go"))
        assert await runtime.abort(two.metadata.run_id)


@pytest.mark.covers("R11", "R12", "R86")
async def test_services_and_env_are_in_all_runs(made, monkeypatch):
    """Services and env that are given to the runtime are there in every run; the process environment else."""
    monkeypatch.setenv("CITY", "Rome")
    seen = []

    async def read(ctx):
        env = await ctx.require("__env__")
        seen.append((await ctx.require("api"), env.get("CITY")))

    for options, expected in (({}, "Rome"), ({"env": {"CITY": "Oslo"}}, "Oslo"), ({"env": {}}, None)):
        async with made(services=[Service("api", factory=lambda: "api")], **options) as runtime:
            await runtime.register(flow(read))
            assert (await runtime.invoke("flow", "default", Event("go"))).ok
        assert seen.pop() == ("api", expected)


@pytest.mark.covers("R10", "R14")
async def test_a_timeline_store_has_what_steps_log(made):
    """With a timeline store every line that a step logs is recorded there with source logger, without user code."""

    async def log(ctx):
        ctx.logger.info("extracted", pages=3)

    for names in (("one", "one"), (None, None)):
        mine, other = [await Runtime.create_test_timeline_store(name) for name in names]
        async with mine, other:
            async with made(timeline_store=mine) as runtime:
                await runtime.register(flow(log))
                run_id = (await runtime.invoke("flow", "default", Event("go"))).metadata.run_id
            logged = [entry for entry in await mine.timeline(run_id) if entry.source == "logger"]
            assert [entry.payload["message"] for entry in logged] == ["extracted"]
            assert await other.timeline(run_id) == []


@pytest.mark.covers("R8")
async def test_the_registry_gives_the_state_of_a_run(made, store):
    """`StoreRegistry.get` gives a run's own state; `set` is a signal, and who subscribed is told."""
    registry, told, seen = StoreRegistry(store), [], []
    workflow = Workflow(
        "flow", on="go", stages=[Stage("ask", router=pause()), Stage("end", steps=[keep(seen, lambda c: c.state["n"])])]
    )
    async with made(store_registry=registry) as runtime:
        await runtime.register(workflow)
        one, two = [(await runtime.invoke("flow", "default", Event("go", {"n": n}))) for n in (1, 2)]
        state = await registry.get(one.metadata.run_id)
        unsubscribe = state.subscribe(lambda: told.append(state.get()["n"]))
        await state.set({"n": 5})
        assert (state.get()["n"], (await registry.get(two.metadata.run_id)).get()["n"], told) == (5, 2, [5])
        registry.clear()
        assert (await registry.get(one.metadata.run_id)).get()["n"] == 5
        unsubscribe()
        assert (await runtime.resume(one.metadata.run_id)).ok
        ended = await registry.get(one.metadata.run_id)
        with pytest.raises(InvalidStateError):
            await ended.set({"n": 6})
        with pytest.raises(NotFoundError):
            await registry.get("nobody")
        registry.release(one.metadata.run_id)
    assert (seen, told) == ([5], [5])
    with pytest.raises(ClosedError):
        await registry.get(one.metadata.run_id)


async def test_the_state_of_a_run_that_executes_is_followed(made, store, gate):
    """The state that the registry gave goes along with the run's commits, also when it is resumed."""
    registry = StoreRegistry(store)

    async def patch(ctx):
        return {"stage": ctx.stage_id}

    stages = [Stage("one", steps=[patch], router=pause()), Stage("two", steps=[patch]), Stage("three", steps=[gate])]
    async with made(store_registry=registry) as runtime:
        await runtime.register(Workflow("flow", on="go", stages=stages))
        run_id = (await runtime.invoke("flow", "default", Event("go"))).metadata.run_id
        state = await registry.get(run_id)
        assert state.get()["stage"] == "one"
        await runtime.resume(run_id, wait=False)
        await gate.reached.get()
        assert state.get()["stage"] == "two"
        gate.open.set()
        assert (await runtime.wait(run_id)).ok


async def test_stop_closes_everything(made, store):
    """`stop` closes the store and takes no more; twice is harmless, and another runtime goes on with the runs."""
    runtime = made()
    await runtime.stop()
    with pytest.raises(StoppedError):
        await runtime.register(WAITS)
    runtime = made()
    await runtime.register(WAITS)
    run_id = (await runtime.invoke("flow", "default", Event("go"))).metadata.run_id
    await runtime.stop()
    await runtime.stop()
    assert (await runtime.invoke("flow", "default", Event("go"))).error.code == "STOPPED"
    with pytest.raises(StoppedError):
        await runtime.register(WAITS)
    async with made() as again:
        await again.register(WAITS)
        assert (await again.resume(run_id)).value.status == "completed"


async def test_what_needs_an_open_runtime_says_so(made):
    """A runtime that nobody has opened says how to open it."""
    with pytest.raises(ClosedError, match="async with runtime"):
        await made().list_all_runs()


async def test_a_bus_belongs_to_one_runtime(made, tmp_path):
    """A bus that belongs to an open runtime is refused by another one."""
    bus = EventBus()
    async with made(bus=bus):
        other = Runtime(bus=bus, store_registry=StoreRegistry(f"sqlite:///{tmp_path / 'other.db'}"))
        with pytest.raises(ConflictError, match="its own EventBus"):
            await other.register(flow())


async def test_an_app_s_runtime_is_a_runtime(make_app):
    """`app.runtime` is a Runtime too; on it `stop` leaves the app open."""
    async with make_app(flow()) as app:
        assert isinstance(app.runtime, Runtime)
        await app.runtime.stop()
        assert isinstance(app, App)
        assert app.is_open


async def test_timelines_are_recorded_though_a_service_fails_to_close(made):
    """A `stop` that raises what a service raised has recorded the timelines all the same, and nothing is left."""

    async def fails():
        yield 1
        raise ValueError("it does not close")

    workflow = flow(services=[Service("fails", fails, scope="workflow", lazy=False)])
    async with await Runtime.create_test_timeline_store() as store:
        runtime = made(timeline_store=store)
        await runtime.register(workflow)
        result = await runtime.invoke("flow", "default", Event("go"))
        with pytest.raises(ExceptionGroup, match="workflows could not be closed"):
            await runtime.stop()
        assert runtime._recorder is None
        assert [entry.type for entry in await store.timeline(result.metadata.run_id)][-1] == "run:completed"


@pytest.mark.parametrize("seconds", [0, 600])
async def test_the_state_of_a_resumed_run_is_followed(made, store, seconds):
    """Who has asked for a paused run's state sees each change, whether the run's services were kept or not."""

    async def first(ctx):
        await ctx.require("mine")

    async def last(ctx):
        return {"n": 2}

    stages = [Stage("ask", steps=[first], router=pause()), Stage("end", steps=[last])]
    workflow = Workflow("flow", on="go", stages=stages, services=[Service("mine", object, scope="run")])
    stores = StoreRegistry(store)
    async with made(store_registry=stores, settings=Settings(pause_window_seconds=seconds)) as runtime:
        await runtime.register(workflow)
        run_id = (await runtime.invoke("flow", "default", Event("go"))).metadata.run_id
        while len(runtime._executor.hot) < bool(seconds):
            await asyncio.sleep(0)
        state = await stores.get(run_id)
        (await runtime.resume(run_id)).unwrap()
        assert state.get()["n"] == 2
