"""Services that follow what they read: how they are replaced, what they take with them, streams and watchers."""

from __future__ import annotations

import asyncio

import pytest

from piecework.container.container import Container
from piecework.container.scope import Scope
from piecework.container.state import DELETE
from piecework.errors import InvalidScopeError, UnstableError

from .parts import Thing


class Log(list):
    """What happened, in order."""

    def __init__(self):
        super().__init__()
        self.changed = asyncio.Event()

    def append(self, entry):
        """Adds what happened."""
        super().append(entry)
        self.changed.set()

    async def until(self, entry):
        """Waits for something to happen."""
        while entry not in self:
            self.changed.clear()
            await self.changed.wait()


def follows(log, *path):
    """A factory that follows one value of the state, and says what is opened and closed."""

    def make(ctx):
        value = ctx.select(lambda data: at(data, *path))
        log.append(f"open {value}")
        ctx.on_cleanup(lambda: log.append(f"close {value}"))
        return value

    return make


def at(data, *path):
    """What stands at a path."""
    for key in path:
        data = data[key]
    return data


def from_base(log, key="base"):
    """A factory of what is built from another service."""

    async def make(ctx):
        value = await ctx.require(key)
        log.append(f"open top of {value}")
        ctx.on_cleanup(lambda: log.append(f"close top of {value}"))
        return f"top of {value}"

    return make


def gated():
    """A factory that follows `n`; each of its builds says what it read and waits for its turn."""
    arrived, turns = asyncio.Queue(), asyncio.Queue()

    async def make(ctx):
        n = ctx.select(lambda data: data["n"])
        arrived.put_nowait(n)
        await turns.get()
        return n

    return make, arrived, turns


# -- replacing -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("N78")
async def test_the_old_instance_stays_until_the_new_one_is_ready():
    """What has become stale stays until a new instance is ready, which takes its place; then the old one is closed."""
    state, log = Container.State({"n": 1}), Log()
    arrived, gate, before = asyncio.Event(), asyncio.Event(), []

    async def make(ctx):
        n = ctx.select(lambda data: data["n"])
        ctx.on_cleanup(lambda: log.append(f"close {n}"))
        before.append(ctx.current)
        if n == 2:
            arrived.set()
            await gate.wait()
        return n

    async with Container(state=state) as c:
        c.register("n", make)
        assert await c.require("n") == 1
        await state.set({"n": 2})
        assert (c.peek("n"), c.debug_info()["n"]["status"]) == (1, "stale")
        asking = asyncio.ensure_future(c.resolve("n"))
        await arrived.wait()
        assert (c.peek("n"), log) == (1, [])
        gate.set()
        resolution = await asking
        assert (resolution.instance, resolution.version, c.peek("n"), before) == (2, 2, 2, [None, 1])
        await log.until("close 1")
        assert log == ["close 1"]


@pytest.mark.covers("N78")
async def test_a_rebuild_that_fails_leaves_the_old_instance():
    """When a rebuild fails, who asks gets the error, the old instance stays, and the next one who asks tries again."""
    state, log, trouble = Container.State({"n": 1}), Log(), []

    def make(ctx):
        if trouble:
            raise OSError("down")
        return follows(log, "n")(ctx)

    async with Container(state=state) as c:
        c.register("n", make)
        await c.require("n")
        await state.set({"n": 2})
        trouble.append(1)
        with pytest.raises(OSError, match="down"):
            await c.require("n")
        assert (c.peek("n"), log) == (1, ["open 1"])
        trouble.clear()
        assert await c.require("n") == 2
        await log.until("close 1")


@pytest.mark.covers("N78")
async def test_what_was_built_from_the_old_instance_is_closed_before_it():
    """An instance that was replaced is closed only after all that was built from it."""
    state, log = Container.State({"n": 1}), Log()
    async with Container(state=state) as c:
        c.register("base", follows(log, "n"))
        c.register("top", from_base(log))
        await c.require("top")
        await state.set({"n": 2})
        await c.require("base")
        assert "close 1" not in log
        assert await c.require("top") == "top of 2"
        await log.until("close 1")
        assert log.index("close top of 1") < log.index("close 1")
        assert "close 2" not in log


@pytest.mark.covers("N79")
async def test_what_is_exclusive_is_closed_before_it_is_built_anew():
    """With `exclusive=True` the old instance, after what was built from it, is closed before the new one is built."""
    state, log = Container.State({"n": 1}), Log()
    async with Container(state=state) as c:
        c.register("port", follows(log, "n"), exclusive=True)
        c.register("top", from_base(log, "port"))
        await c.require("top")
        await state.set({"n": 2})
        assert await c.require("port") == 2
        assert log == ["open 1", "open top of 1", "close top of 1", "close 1", "open 2"]
        assert await c.require("top") == "top of 2"


@pytest.mark.covers("N80")
async def test_a_commit_is_one_rebuild():
    """However many values that a service read change, in one commit or several, it is rebuilt once when asked for."""
    state, built = Container.State({"a": 1, "b": {"c": 1, "d": 1}}), []

    def make(ctx):
        a, b = ctx.select(lambda data: data["a"]), ctx.select(lambda data: data["b"])
        built.append((a, b["c"], b["d"]))
        return Thing()

    async with Container(state=state) as c:
        c.register("thing", make)
        invalidated = []
        c.on("artifact:invalidated", lambda event: invalidated.append(event.key))
        first = await c.require("thing")
        await state.set({"a": 2, "b": {"c": 2, "d": 2}})
        second = await c.require("thing")
        assert second is await c.require("thing") is not first
        for n in (3, 4):
            await state.set({"a": n})
        await c.require("thing")
    assert built == [(1, 1, 1), (2, 2, 2), (4, 2, 2)]
    assert invalidated == ["thing", "thing"]


@pytest.mark.covers("N80")
async def test_what_is_stale_already_is_not_told_again():
    """A service that two commits make stale, each by another one that it was built from, is invalidated once."""
    state, log = Container.State({"a": 1, "b": 1}), Log()

    async def top(ctx):
        return [await ctx.require("a"), await ctx.require("b")]

    async with Container(state=state) as c:
        c.register("a", follows(log, "a"))
        c.register("b", follows(log, "b"))
        c.register("top", top)
        invalidated = []
        c.on("artifact:invalidated", lambda event: invalidated.append(event.key))
        assert await c.require("top") == [1, 1]
        for key in ("a", "b"):
            await state.set({key: 2})
        assert invalidated == ["top", "a", "b"]
        assert await c.require("top") == [2, 2]


@pytest.mark.covers("N80")
@pytest.mark.parametrize(
    "patch",
    [
        {"other": 2},
        {"user": {"age": 8}},
        {"user": {"name": "ann"}},
        {"user": {"tags": ["a", "b"]}},
        {"items": [3, 4]},
        {},
    ],
    ids=["another key", "a key beside it", "an equal value", "an equal list", "another way to it", "nothing"],
)
async def test_what_does_not_change_what_is_selected_rebuilds_nothing(patch):
    """A service is rebuilt only when a selected value is another one: not for other paths, nor for an equal value."""
    state = Container.State(
        {"other": 1, "user": {"name": "ann", "age": 7, "tags": ["a", "b"]}, "items": [1, 2]},
    )

    def make(ctx):
        ctx.select(lambda data: [data["user"]["name"], data["user"]["tags"], len(data["items"]) > 1])
        return Thing()

    async with Container(state=state) as c:
        invalidated = []
        c.on("artifact:invalidated", invalidated.append)
        c.register("thing", make)
        first = await c.require("thing")
        await state.set(patch)
        assert await c.require("thing") is first
        assert invalidated == []
        await state.set({"user": {"name": "bob"}})
        assert await c.require("thing") is not first


@pytest.mark.covers("N80")
async def test_transients_do_not_follow():
    """A transient service reads the state when it is made, and is never invalidated."""
    state = Container.State({"n": 1})
    async with Container(state=state) as c:
        invalidated = []
        c.on("artifact:invalidated", invalidated.append)
        c.register("n", lambda ctx: ctx.select(lambda data: data["n"]), scope="transient")
        assert await c.require("n") == 1
        await state.set({"n": 2})
        assert (await c.require("n"), invalidated) == (2, [])


@pytest.mark.covers("N81")
async def test_a_build_whose_reading_changes_is_begun_anew():
    """When what a build has read changes before it ends, its result is discarded and closed, and it begins anew."""
    state, log = Container.State({"n": 1}), Log()
    factory, arrived, turns = gated()

    async def make(ctx):
        n = await factory(ctx)
        ctx.on_cleanup(lambda: log.append(f"close {n}"))
        return n

    async with Container(state=state) as c:
        c.register("n", make)
        asking = asyncio.ensure_future(c.resolve("n"))
        assert await arrived.get() == 1
        await state.set({"n": 2})
        for _ in range(2):
            turns.put_nowait(None)
        resolution = await asking
        assert (resolution.instance, resolution.version, log) == (2, 1, ["close 1"])
    assert log == ["close 1", "close 2"]


@pytest.mark.covers("N81")
async def test_a_build_that_finds_no_rest_is_given_up():
    """A service whose reading changed during five builds in a row fails with UNSTABLE; the next asker tries again."""
    state = Container.State({"n": 0})
    factory, arrived, turns = gated()
    async with Container(state=state) as c:
        c.register("n", factory)
        asking = asyncio.ensure_future(c.require("n"))
        for n in range(5):
            assert await arrived.get() == n
            await state.set({"n": n + 1})
            turns.put_nowait(None)
        with pytest.raises(UnstableError, match="'n'") as caught:
            await asking
        assert (caught.value.code, arrived.empty()) == ("UNSTABLE", True)
        turns.put_nowait(None)
        assert await c.require("n") == 5


# -- taking along ----------------------------------------------------------------------------------------------------


@pytest.mark.covers("N82")
async def test_a_change_goes_through_to_dependents_in_child_containers():
    """What was built from a service that changes is rebuilt too, also in the containers below; nothing else is."""
    state, log = Container.State({"n": 1}), Log()
    async with Container("app", state=state) as app, Container("run", level=Scope.RUN, parents=[app]) as run:
        app.register("base", follows(log, "n"))
        run.register("top", from_base(log))
        run.register("tip", from_base(log, "top"))
        run.register("other", Thing)
        invalidated = []
        for container in (app, run):
            container.on("artifact:invalidated", lambda event: invalidated.append(event.key))
        assert await run.require("tip") == "top of top of 1"
        other = await run.require("other")
        await state.set({"n": 2})
        assert sorted(invalidated) == ["base", "tip", "top"]
        assert await run.require("tip") == "top of top of 2"
        assert await run.require("other") is other


@pytest.mark.covers("N82")
@pytest.mark.parametrize("looked", [False, True], ids=["asked for at once", "looked for before"])
async def test_a_change_goes_through_parameters_and_transients(looked):
    """What got a service as a parameter, or by way of a transient one, is rebuilt with it, in child containers too."""
    state = Container.State({"n": 1})
    async with Container("app", state=state) as app, Container("run", level=Scope.RUN, parents=[app]) as run:
        app.register("base", lambda ctx: ctx.select(lambda data: data["n"]))
        app.register("pair", lambda base: ("pair", base))
        run.register("passing", lambda pair: ("passing", pair), scope="transient")
        run.register("top", lambda passing: ("top", passing))
        run.register("other", Thing)
        # What was looked for before is made without any record; what was made of what is then found out later.
        assert not looked or (run.has("top") and app.has("pair") and app.has("base"))
        other = await run.require("other")
        assert await run.require("top") == ("top", ("passing", ("pair", 1)))
        await state.set({"n": 2})
        assert await run.require("top") == ("top", ("passing", ("pair", 2)))
        assert await run.require("other") is other


@pytest.mark.covers("N82")
async def test_invalidating_closes_dependents_in_child_containers_first():
    """What is invalidated in a container closes what was built from it in the containers below first."""
    log = Log()
    async with Container("app") as app:
        app.register("base", lambda ctx: ctx.on_cleanup(lambda: log.append("close base")) or "base")
        children = [Container("run", level=Scope.RUN, parents=[app]) for _ in range(2)]
        for child in children:
            child.register("top", from_base(log))
            await child.require("top")
        log.clear()
        await app.invalidate("base")
        assert log == ["close top of base"] * 2 + ["close base"]
        assert [child.peek("top") for child in children] == [None, None]
        for child in children:
            assert await child.require("top") == "top of base"
            await child.dispose()


@pytest.mark.covers("N82")
async def test_a_child_that_is_closed_is_forgotten():
    """A container that was closed takes no part in what changes above it."""
    state, log = Container.State({"n": 1}), Log()
    async with Container("app", state=state) as app:
        app.register("base", follows(log, "n"))
        async with Container("run", level=Scope.RUN, parents=[app]) as run:
            run.register("top", from_base(log))
            await run.require("top")
        assert app.debug_info()["base"]["dependents"] == []
        await state.set({"n": 2})
        assert await app.require("base") == 2
        await log.until("close 1")
        assert log.count("close top of 1") == 1


@pytest.mark.covers("N82")
async def test_what_cannot_reach_a_state_cannot_follow():
    """Without a state within reach `select` is refused with INVALID_SCOPE."""
    async with Container() as c:
        c.register("n", lambda ctx: ctx.select(lambda data: data["n"]))
        with pytest.raises(InvalidScopeError, match="'n'"):
            await c.require("n")


# -- the state -------------------------------------------------------------------------------------------------------


async def test_a_state_is_merged_and_copied():
    """`set` merges mappings at every depth, replaces lists whole, takes keys out; `get` copies; listeners may leave."""
    state = Container.State({"user": {"name": "ann", "tags": ["a"]}})
    changes = []
    unsubscribe = state.subscribe(lambda *_: changes.append(1))
    state.get()["user"]["tags"].append("not kept")
    await state.set({"user": {"name": DELETE, "tags": ["b"], "age": 7}, "n": 1})
    assert state.get() == {"user": {"tags": ["b"], "age": 7}, "n": 1}
    await state.set({"n": 1})
    assert len(changes) == 1
    unsubscribe()
    await state.set({"n": 2})
    assert len(changes) == 1


async def test_who_listens_to_a_state_harms_nobody(caplog):
    """A subscriber that raises stops neither the commit nor the others, nor what follows the state; it is told."""
    state, seen = Container.State({"n": 1}), []
    state.subscribe(lambda: 1 / 0)
    state.subscribe(lambda: seen.append(state.get()["n"]))
    async with Container(state=state) as c:
        c.register("n", lambda ctx: ctx.select(lambda data: data["n"]))
        await c.require("n")
        await state.set({"n": 2})
        assert (seen, await c.require("n")) == ([2], 2)
    assert "ZeroDivisionError" in caplog.text


async def test_what_is_read_of_a_state_cannot_be_written():
    """A selecting function reads the state; it cannot change it, and what it gives is a plain value."""
    state = Container.State({"user": {"name": "ann"}, "items": [1, 2]})

    def writes(data):
        data["n"] = 1

    async with Container(state=state) as c:
        c.register("plain", lambda ctx: ctx.select(lambda data: {**data["user"], "items": data["items"]}))
        c.register("all", lambda ctx: ctx.select(lambda data: data))
        c.register("writes", lambda ctx: ctx.select(writes))
        assert await c.require("plain") == {"name": "ann", "items": [1, 2]}
        whole = await c.require("all")
        assert (type(whole), type(whole["user"]), whole) == (dict, dict, state.get())
        whole["user"]["name"] = "not kept"
        with pytest.raises(Exception, match=r"item assignment|read-only|cannot"):
            await c.require("writes")
    assert state.get() == {"user": {"name": "ann"}, "items": [1, 2]}


# -- streams ---------------------------------------------------------------------------------------------------------


class Feed:
    """An async iterator that a test feeds; it tells when it was closed."""

    def __init__(self, log):
        self.log = log
        self.values = asyncio.Queue()

    async def __call__(self):
        try:
            while True:
                value = await self.values.get()
                if isinstance(value, Exception):
                    raise value
                yield value
        finally:
            self.log.append("closed")


async def fed(c, feed, value):
    """Feeds a value and waits until the container has it."""
    told = asyncio.Event()
    off = c.on("stream:emit", lambda event: told.set())
    feed.values.put_nowait(value)
    await told.wait()
    off()


@pytest.mark.covers("N85")
async def test_a_stream_gives_the_service_one_value_after_the_other():
    """The first value of a stream is the instance, each further one takes its place, without another build."""
    log = Log()
    feed = Feed(log)
    built = []

    async def price(ctx):
        built.append(1)
        return await ctx.stream(feed())

    async with Container() as c:
        c.register("price", price)
        feed.values.put_nowait(10)
        first = await c.resolve("price")
        await fed(c, feed, 11)
        second = await c.resolve("price")
        assert [(one.instance, one.version) for one in (first, second)] == [(10, 1), (11, 2)]
        assert (built, log) == ([1], [])
    assert log == ["closed"]


@pytest.mark.covers("N85")
async def test_a_stream_may_begin_with_a_value_of_its_own():
    """A factory may give an initial instance and let the stream bring the others."""
    feed = Feed(Log())

    def price(ctx):
        ctx.stream(feed())
        return "initial"

    async with Container() as c:
        c.register("price", price)
        assert await c.require("price") == "initial"
        await fed(c, feed, 11)
        assert (c.peek("price"), await c.require("price")) == (11, 11)


@pytest.mark.covers("N85")
async def test_a_streams_value_makes_dependents_stale():
    """What was built from a stream's value is built anew after the next one."""
    log = Log()
    feed = Feed(log)

    async def price(ctx):
        return await ctx.stream(feed())

    async with Container() as c:
        c.register("price", price)
        c.register("top", from_base(log, "price"))
        feed.values.put_nowait(10)
        assert await c.require("top") == "top of 10"
        await fed(c, feed, 11)
        assert c.debug_info()["top"]["status"] == "stale"
        assert await c.require("top") == "top of 11"
        await log.until("close top of 10")


@pytest.mark.covers("N85")
async def test_a_stream_that_is_invalidated_is_left():
    """`invalidate` ends the stream: its iterator is closed, and the next build has one of its own."""
    log = Log()
    feed = Feed(log)

    async def price(ctx):
        return await ctx.stream(feed())

    async with Container() as c:
        c.register("price", price)
        feed.values.put_nowait(10)
        await c.require("price")
        await c.invalidate("price")
        assert (log, c.peek("price")) == (["closed"], None)
        feed.values.put_nowait(12)
        assert await c.require("price") == 12


@pytest.mark.covers("N85")
async def test_a_stream_that_breaks_is_told_and_built_anew():
    """An iterator that raises is a `build:error` and the watchers' "error"; who asks next gets a new build."""
    log = Log()
    feed = Feed(log)

    async def price(ctx):
        return await ctx.stream(feed())

    async with Container() as c:
        c.register("price", price, lazy=True)
        c.on("build:error", lambda event: log.append(f"{event.key}: {event.error}"))
        feed.values.put_nowait(10)
        await c.require("price")
        feed.values.put_nowait(OSError("broken"))
        await log.until("price: broken")
        feed.values.put_nowait(12)
        assert await c.require("price") == 12


@pytest.mark.covers("N85", "N86")
async def test_watchers_hear_of_a_stream():
    """Who watches a stream is told of each value, and of its end by an error."""
    feed, seen = Feed(Log()), Log()

    async def price(ctx):
        return await ctx.stream(feed())

    async with Container() as c:
        c.register("price", price)
        watched = c.watch("price")
        unsubscribe = watched.subscribe(lambda change: seen.append((change.event, change.instance, watched.get())))
        feed.values.put_nowait(10)
        await c.require("price")
        await fed(c, feed, 11)
        await seen.until(("stream", 11, 11))
        failures = Log()
        watched.subscribe(lambda change: failures.append((change.event, str(change.error))))
        unsubscribe()
        feed.values.put_nowait(OSError("broken"))
        await failures.until(("error", "broken"))
    assert seen == [("built", 10, 10), ("stream", 11, 11)]


# -- watching --------------------------------------------------------------------------------------------------------


@pytest.mark.covers("N86")
async def test_what_is_watched_is_rebuilt_at_once():
    """A service that somebody watches is rebuilt right after the commit; `ready` waits for that; others are not."""
    state, built = Container.State({"n": 1}), []

    def make(key):
        async def factory(ctx):
            n = ctx.select(lambda data: data["n"])
            await asyncio.sleep(0)
            built.append((key, n))
            return n

        return factory

    async with Container(state=state) as c:
        for key in ("watched", "eager", "idle"):
            c.register(key, make(key), lazy=key != "eager")
        seen = []
        unsubscribe = c.watch("watched").subscribe(lambda change: seen.append((change.event, change.version)))
        await c.ready()
        for key in ("watched", "idle"):
            await c.require(key)
        built.clear()
        await state.set({"n": 2})
        await c.ready()
        assert sorted(built) == [("eager", 2), ("watched", 2)]
        assert [c.peek(key) for key in ("watched", "eager", "idle")] == [2, 2, 1]
        assert [event for event, _ in seen] == ["built", "invalidated", "rebuilt"]
        assert seen[-1] == ("rebuilt", 2)
        unsubscribe()
        built.clear()
        await state.set({"n": 3})
        await c.ready()
        assert built == [("eager", 3)]


@pytest.mark.covers("N86")
async def test_what_is_watched_recovers():
    """When a rebuild of a watched service fails its watchers are told, `ready` too, and the next commit heals it."""
    state, seen = Container.State({"n": 1}), []

    def make(ctx):
        n = ctx.select(lambda data: data["n"])
        if n == 2:
            raise OSError("down")
        return n

    async with Container(state=state) as c:
        c.register("n", make)
        c.watch("n").subscribe(lambda change: seen.append((change.event, change.error and str(change.error))))
        await c.require("n")
        await state.set({"n": 2})
        with pytest.raises(OSError, match="down"):
            await c.ready()
        assert (seen, c.peek("n")) == ([("built", None), ("invalidated", None), ("error", "down")], 1)
        await state.set({"n": 3})
        await c.ready()
        assert (seen[-1], c.peek("n")) == (("rebuilt", None), 3)


@pytest.mark.covers("N86")
async def test_ready_waits_for_what_is_rebuilt():
    """`ready` waits until what is watched has been rebuilt; until then the old instance is there."""
    state = Container.State({"n": 1})
    factory, arrived, turns = gated()
    async with Container(state=state) as c:
        c.register("n", factory)
        watched = c.watch("n")
        watched.subscribe(lambda change: None)
        turns.put_nowait(None)
        await c.require("n")
        await state.set({"n": 2})
        getting_ready = asyncio.ensure_future(c.ready())
        assert [await arrived.get(), await arrived.get()] == [1, 2]
        await asyncio.sleep(0)
        assert (getting_ready.done(), watched.get()) == (False, 1)
        turns.put_nowait(None)
        await getting_ready
        assert watched.get() == 2


@pytest.mark.covers("N86")
async def test_a_chain_that_is_watched_is_rebuilt_at_once():
    """When what a watched service was built from changes, both are rebuilt at once, each one once."""
    state, log = Container.State({"n": 1}), Log()
    async with Container(state=state) as c:
        c.register("base", follows(log, "n"))
        c.register("top", from_base(log))
        watched = c.watch("top")
        watched.subscribe(lambda change: None)
        await c.require("top")
        await state.set({"n": 2})
        await c.ready()
        assert watched.get() == "top of 2"
    assert [log.count(entry) for entry in ("open 2", "open top of 2", "close 1", "close top of 1")] == [1, 1, 1, 1]
