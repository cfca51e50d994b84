"""What a container tells and shows of itself: its events, what it exports and restores, and its graph."""

from __future__ import annotations

import asyncio
import json

import pytest

from piecework.container.container import Container
from piecework.errors import DuplicateKeyError, ValidationError
from piecework.testing.clock import VirtualClock

from .parts import Thing, closing, failing, never, told

# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R160")
async def test_registering_is_told_once():
    """`artifact:registered` fires once for each service that is registered, with its key."""
    async with Container() as c:
        registered = told(c, "artifact:registered")
        c.register("a", Thing)
        with pytest.raises(DuplicateKeyError):
            c.register("a", Thing)
        c.register("b", Thing)
    assert [(event.event, event.key) for event in registered] == [
        ("artifact:registered", "a"),
        ("artifact:registered", "b"),
    ]


@pytest.mark.covers("R155")
async def test_the_start_of_a_build_is_told_once():
    """`build:start` fires once for each attempt, with the key and the number of the attempt."""
    factory, _ = failing(2)
    clock = VirtualClock()
    async with Container(clock=clock) as c:
        started = told(c, "build:start")
        c.register("fails", factory, retries=1)
        c.register("user", lambda ctx: ctx.params, param_key=str)
        asking = asyncio.ensure_future(c.resolve("fails"))
        await clock.until_asleep()
        await clock.advance(10)
        assert not (await asking).ok
        for _ in range(2):
            await c.require("fails")
            await c.require("user", 7)
    assert [(event.event, event.key, event.param, event.attempt) for event in started] == [
        ("build:start", "fails", None, 1),
        ("build:start", "fails", None, 2),
        ("build:start", "fails", None, 1),
        ("build:start", "user", "7", 1),
    ]


@pytest.mark.covers("R156")
async def test_the_end_of_a_build_is_told_once():
    """`build:complete` fires once for each build, with the key, the version and how long it took."""
    clock, arrived, gate = VirtualClock(), asyncio.Event(), asyncio.Event()

    async def slow():
        arrived.set()
        await gate.wait()

    async with Container(clock=clock) as c:
        completed = told(c, "build:complete")
        c.register("slow", slow)
        asking = [asyncio.ensure_future(c.require("slow")) for _ in range(2)]
        await arrived.wait()
        await clock.advance(2)
        gate.set()
        await asyncio.gather(*asking)
        await c.invalidate("slow", rebuild=True)
    assert [(event.event, event.key, event.version) for event in completed] == [
        ("build:complete", "slow", 1),
        ("build:complete", "slow", 2),
    ]
    assert [event.duration_seconds for event in completed] == [event.duration for event in completed] == [2, 0]


@pytest.mark.covers("R157")
async def test_the_failure_of_a_build_is_told_once():
    """`build:error` fires once for each attempt that fails, with the key and the error."""
    factory, _ = failing(3)
    clock = VirtualClock()
    async with Container(clock=clock) as c:
        failed, completed = told(c, "build:error"), told(c, "build:complete")
        c.register("fails", factory)
        c.register("again", factory, retries=1)
        await c.resolve("fails")
        asking = asyncio.ensure_future(c.resolve("again"))
        await clock.until_asleep()
        await clock.advance(10)
        await asking
    assert [(event.key, event.attempt, str(event.error)) for event in failed] == [
        ("fails", 1, "attempt 1"),
        ("again", 1, "attempt 2"),
        ("again", 2, "attempt 3"),
    ]
    assert completed == []


@pytest.mark.covers("R158")
async def test_an_invalidation_is_told_once():
    """`artifact:invalidated` fires once for each service that goes, the dependents first, with its key."""
    async with Container() as c:
        invalidated = told(c, "artifact:invalidated")
        c.register("base", Thing)
        c.register("user", closing([], "user", "base"), param_key=str)
        await c.require("user", 7)
        await c.invalidate("base")
        await c.invalidate("base")
    assert [(event.event, event.key, event.param) for event in invalidated[:2]] == [
        ("artifact:invalidated", "user", "7"),
        ("artifact:invalidated", "base", None),
    ]
    assert len(invalidated) == 2


@pytest.mark.covers("R159")
async def test_the_end_of_an_instance_is_told_once():
    """`artifact:disposed` fires once for each instance that the container lets go, with its key."""
    state = Container.State({"n": 1})
    async with Container(state=state) as c:
        disposed = told(c, "artifact:disposed")
        c.register("follows", lambda ctx: ctx.select(lambda data: data["n"]))
        c.register("user", lambda ctx: ctx.params, param_key=str, param_limit=1)
        await c.require("follows")
        for params in (1, 2):
            await c.require("user", params)
        assert [(event.event, event.key, event.param) for event in disposed] == [("artifact:disposed", "user", "1")]
        await state.set({"n": 2})
        await c.require("follows")
        assert [event.key for event in disposed] == ["user", "follows"]
    assert sorted(event.key for event in disposed) == ["follows", "follows", "user", "user"]


@pytest.mark.covers("R161")
async def test_a_streams_value_is_told_once():
    """`stream:emit` fires once for each further value of a stream, with the key and the value."""
    feed, arrived = asyncio.Queue(), asyncio.Event()

    async def values():
        while True:
            yield await feed.get()

    async with Container() as c:
        emitted = told(c, "stream:emit")
        c.on("stream:emit", lambda event: event.value == "last" and arrived.set())
        c.register("price", lambda ctx: ctx.stream(values()))
        for value in ("first", "second", "last"):
            feed.put_nowait(value)
        assert await c.require("price") == "first"
        await arrived.wait()
    assert [(event.event, event.key, event.value) for event in emitted] == [
        ("stream:emit", "price", "second"),
        ("stream:emit", "price", "last"),
    ]


@pytest.mark.covers("R162")
async def test_the_end_of_a_container_is_told_once():
    """`container:dispose` fires once, after all else, without a key."""
    order = []
    c = Container()
    for event in ("artifact:disposed", "container:dispose"):
        c.on(event, lambda event: order.append((event.event, event.key)))
    c.register("thing", Thing)
    await c.require("thing")
    await asyncio.gather(c.dispose(), c.dispose())
    await c.dispose()
    assert order == [("artifact:disposed", "thing"), ("container:dispose", None)]


async def test_subscribers_harm_nobody(caplog):
    """A subscriber that raises stops neither the build nor the next subscriber: it is told in a warning."""
    async with Container() as c:
        c.on("build:complete", lambda event: 1 / 0)
        completed = told(c, "build:complete")
        c.register("thing", Thing)
        assert isinstance(await c.require("thing"), Thing)
    assert len(completed) == 1
    assert ("WARNING", True) in [(record.levelname, "ZeroDivisionError" in caplog.text) for record in caplog.records]


async def test_subscribers_can_leave():
    """What `on` gives back ends the subscription; an unknown event is refused with the names there are."""
    async with Container() as c:
        seen = []
        off = c.on("build:start", seen.append)
        c.register("thing", Thing, scope="transient")
        await c.require("thing")
        off()
        await c.require("thing")
        assert len(seen) == 1
        with pytest.raises(ValidationError, match="build:start"):
            c.on("build:begin", seen.append)
        with pytest.raises(ValidationError):
            c.on("build:start", never)


# -- keeping and showing ---------------------------------------------------------------------------------------------


def as_is(value):
    """What is JSON already."""
    return value


@pytest.mark.covers("R163")
async def test_only_what_is_fresh_is_exported():
    """`export` has the built singletons that can be serialized: none that is transient, stale, failed or not built."""
    state = Container.State({"n": 1})
    factory, _ = failing(1)
    async with Container(state=state) as c:
        c.register("stale", lambda ctx: ctx.select(lambda data: data["n"]), serialize=as_is)
        c.register("fresh", lambda: "fresh", serialize=as_is)
        c.register("transient", lambda: "transient", scope="transient")
        c.register("failed", factory, serialize=as_is)
        c.register("unbuilt", lambda: "unbuilt", serialize=as_is)
        for key in ("stale", "transient", "failed", "fresh"):
            await c.resolve(key)
        assert [told["key"] for told in c.export()["artifacts"]] == ["fresh", "stale"]
        await state.set({"n": 2})
        assert c.export() == {"version": 1, "artifacts": [{"key": "fresh", "value": "fresh"}]}


@pytest.mark.covers("R164")
async def test_a_container_from_a_state_is_empty_and_works():
    """`from_` with a state alone gives an empty container that works, on that state."""
    state = Container.State({"n": 7})
    async with Container.from_(state) as c:
        assert c.debug_info() == {}
        c.register("n", lambda ctx: ctx.select(lambda data: data["n"]))
        assert await c.require("n") == 7


def keeps(calls):
    """Templates of one service and of a family that can be exported, and restored."""

    def make(name):
        def factory(ctx):
            calls.append(name)
            return {"made": name, "params": ctx.params}

        return factory

    both = {"serialize": json.dumps, "deserialize": json.loads}
    return [
        {"key": "one", "factory": make("one"), **both},
        {"key": "user", "factory": make("user"), "param_key": lambda params: params["id"], **both},
    ]


async def exported():
    """What a container exports in which one service and two of a family were built, by way of JSON."""
    async with Container.from_(templates=keeps([])) as c:
        await c.require("one")
        for name in ("bob", "ann"):
            await c.require("user", {"id": name})
        return json.loads(json.dumps(c.export()))


@pytest.mark.covers("R165")
async def test_what_was_exported_is_restored_without_building():
    """`from_` with a bundle gives what was exported, families too, without calling a factory."""
    calls = []
    bundle = await exported()
    assert [(told["key"], told.get("param")) for told in bundle["artifacts"]] == [
        ("one", None),
        ("user", "ann"),
        ("user", "bob"),
    ]
    async with Container.from_(bundle=bundle, templates=keeps(calls)) as c:
        restored = await c.resolve("one")
        assert (restored.ok, restored.version, restored.instance["made"]) == (True, 1, "one")
        assert (await c.require("user", {"id": "ann"}))["params"] == {"id": "ann"}
        assert calls == []
        assert c.export() == bundle
        await c.require("user", {"id": "eve"})
        assert calls == ["user"]


@pytest.mark.covers("R165")
async def test_what_is_restored_is_not_built_eagerly():
    """A service with `lazy=False` that stands in the bundle is restored, and its factory is not called."""
    calls = []
    bundle = await exported()
    async with Container.from_(bundle=bundle, templates=[{**keeps(calls)[0], "lazy": False}, keeps(calls)[1]]) as c:
        await c.ready()
        assert (await c.require("one"))["made"] == "one"
    assert calls == []


async def test_what_cannot_be_restored_is_built(caplog):
    """A blob that cannot be read and a key that nobody registered are told in warnings; the factory is used."""
    calls = []
    bundle = await exported()
    bundle["artifacts"][0]["value"] = "{no JSON"
    bundle["artifacts"].append({"key": "gone", "value": "1"})
    async with Container.from_(bundle=bundle, templates=keeps(calls)) as c:
        assert (await c.require("one"))["made"] == "one"
        assert (await c.require("user", {"id": "ann"}))["made"] == "user"
    assert calls == ["one"]
    warnings = " ".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert ("one" in warnings, "gone" in warnings) == (True, True)


@pytest.mark.covers("R166")
async def test_templates_are_registered_in_order():
    """`from_` registers its templates in order: a later one may replace an earlier one, and a bad one is refused."""
    templates = [{"key": "thing", "factory": lambda: "first"}, {"key": "other", "factory": lambda: "other"}]
    async with Container.from_(templates=[*templates, {**templates[0], "factory": lambda: 2, "replace": True}]) as c:
        assert [await c.require("thing"), await c.require("other")] == [2, "other"]
    with pytest.raises(DuplicateKeyError, match="'thing'"):
        Container.from_(templates=[*templates, templates[0]])


@pytest.mark.covers("R167")
async def test_debug_info_shows_the_graph():
    """`debug_info` has status, dependencies and dependents of every service, as JSON."""
    async with Container(state=Container.State({"user": {"name": "ann"}})) as c:
        c.register("base", lambda ctx: ctx.select(lambda data: data["user"]["name"]))
        c.register("middle", closing([], "middle", "base"))
        c.register("top", closing([], "top", "middle", "base"))
        c.register("idle", Thing, scope="transient")
        await c.require("top")
        info = c.debug_info()
        assert json.loads(json.dumps(info)) == info
    graph = {key: (told["status"], told["dependencies"], told["dependents"]) for key, told in info.items()}
    assert {key: (status, sorted(one), sorted(two)) for key, (status, one, two) in graph.items()} == {
        "base": ("ready", [], ["middle", "top"]),
        "middle": ("ready", ["base"], ["top"]),
        "top": ("ready", ["base", "middle"], []),
        "idle": ("idle", [], []),
    }
    assert [(told["scope"], told["version"]) for key, told in sorted(info.items())] == [
        ("singleton", 1),
        ("transient", 0),
        ("singleton", 1),
        ("singleton", 1),
    ]
    assert (info["base"]["state_paths"], info["top"]["state_paths"]) == (["user.name"], [])


@pytest.mark.covers("R167")
async def test_debug_info_shows_what_came_as_a_parameter():
    """`debug_info` shows a dependency that came as a parameter like one that was asked for."""
    async with Container() as c:
        c.register("base", Thing)
        c.register("middle", lambda base: [base])
        c.register("top", lambda middle, base: [middle, base])
        assert c.has("top")
        await c.require("top")
        info = c.debug_info()
    assert {key: (sorted(told["dependencies"]), sorted(told["dependents"])) for key, told in info.items()} == {
        "base": ([], ["middle", "top"]),
        "middle": (["base"], ["top"]),
        "top": (["base", "middle"], []),
    }


@pytest.mark.covers("R167")
async def test_debug_info_shows_what_becomes_of_a_service():
    """`debug_info` says of a service that it is idle, building, ready, stale or failed."""
    state = Container.State({"n": 1})
    arrived, gate, factory = asyncio.Event(), asyncio.Event(), failing(1)[0]

    async def make(ctx):
        n = ctx.select(lambda data: data["n"])
        arrived.set()
        await gate.wait()
        return n

    async with Container(state=state) as c:
        c.register("thing", make)
        c.register("fails", factory)
        statuses = []

        def look(key="thing"):
            statuses.append(c.debug_info()[key]["status"])

        look()
        asking = asyncio.ensure_future(c.require("thing"))
        await arrived.wait()
        look()
        gate.set()
        await asking
        look()
        await state.set({"n": 2})
        look()
        await c.resolve("fails")
        look("fails")
    assert statuses == ["idle", "building", "ready", "stale", "error"]


async def test_a_watch_follows_its_service_through_eviction_and_replacement():
    """Who watches a service is told of it also after it was evicted from its family, or registered anew."""
    told = []
    async with Container() as c:
        c.register("user", lambda ctx: ctx.params, param_key=lambda name: name, param_limit=1)
        c.register("plain", lambda: 1)
        watch, plain = c.watch("user", "ann"), c.watch("plain")
        watch.subscribe(lambda change: told.append((change.key, change.event)))
        plain.subscribe(lambda change: told.append((change.key, change.event)))
        for name in ("ann", "ben", "ann"):
            await c.require("user", name)
        await c.require("plain")
        c.register("plain", lambda: 2, replace=True)
        await c.require("plain")
        assert (watch.get(), plain.get()) == ("ann", 2)
    assert told == [
        ("user", "built"),
        ("user", "built"),
        ("plain", "built"),
        ("plain", "invalidated"),
        ("plain", "built"),
    ]


async def test_a_bundle_does_not_exceed_the_limit_of_a_family():
    """Of a family at most `param_limit` are restored: the last ones."""
    options = {"key": "user", "factory": lambda ctx: ctx.params, "param_key": str, "serialize": str, "deserialize": str}
    async with Container.from_(templates=[options]) as c:
        for number in range(5):
            await c.require("user", number)
        bundle = c.export()
    async with Container.from_(bundle=bundle, templates=[{**options, "param_limit": 2}]) as c:
        assert [entry["param"] for entry in c.export()["artifacts"]] == ["3", "4"]
