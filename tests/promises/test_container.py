"""What a container promises on its own, without any app: rows of its table, its events, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from piecework.container.container import Container
from piecework.container.scope import Scope
from piecework.errors import (
    ClosedError,
    CycleError,
    InvalidScopeError,
    NotFoundError,
    TimeoutExceededError,
    ValidationError,
)
from piecework.testing.clock import VirtualClock

from .parts import Thing, closing, failing, never, told

ROOT = Path(__file__).parents[2]


# -- registering -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("R139")
async def test_a_singleton_is_one_and_a_transient_is_many():
    """Scope singleton gives one instance, scope transient another one at each call."""
    async with Container() as c:
        c.register("one", Thing)
        c.register("many", Thing, scope="transient")
        assert await c.require("one") is await c.require("one")
        assert await c.require("many") is not await c.require("many")
        with pytest.raises(ValidationError, match="singleton"):
            c.register("other", Thing, scope="run")


@pytest.mark.covers("R140")
async def test_a_lazy_factory_waits_for_the_first_who_asks():
    """A factory is not called before somebody asks for its service."""
    factory, attempts = failing(0)
    async with Container() as c:
        c.register("thing", factory)
        await c.ready()
        assert attempts == []
        await c.require("thing")
    assert attempts == [1]


@pytest.mark.covers("R141")
async def test_an_eager_factory_is_called_at_registration():
    """With `lazy=False` the factory is called by `register`."""
    factory, attempts = failing(0)
    async with Container() as c:
        c.register("thing", factory, lazy=False)
        assert attempts == [1]
        await c.ready()
        assert await c.require("thing") == "made"
    assert attempts == [1]


@pytest.mark.covers("R141")
async def test_an_eager_factory_that_fails_fails_the_registration():
    """With `lazy=False` what the factory raises is raised by `register`, and nothing is registered."""
    factory, _ = failing(1)
    async with Container() as c:
        with pytest.raises(OSError, match="attempt 1"):
            c.register("thing", factory, lazy=False)
        assert not c.has("thing")
        c.register("thing", factory, lazy=False)
        assert c.peek("thing") == "made"


@pytest.mark.covers("R141")
async def test_an_eager_factory_that_has_to_be_awaited_is_awaited_by_ready():
    """With `lazy=False` an async factory is begun by `register`; `ready` waits for it and raises its error."""
    gate = asyncio.Event()

    async def opens():
        await gate.wait()
        return "open"

    async def fails():
        await gate.wait()
        raise OSError("down")

    async with Container() as c:
        for key, factory in (("opens", opens), ("fails", fails)):
            c.register(key, factory, lazy=False)
        assert [c.debug_info()[key]["status"] for key in ("opens", "fails")] == ["building", "building"]
        getting_ready = asyncio.ensure_future(c.ready())
        gate.set()
        with pytest.raises(OSError, match="down"):
            await getting_ready
        assert c.peek("opens") == "open"


@pytest.mark.covers("R141")
async def test_an_eager_failure_is_told_once():
    """When `ready` has told that an eager service failed, the next `ready` tries again."""
    factory, attempts = failing(1)

    async def later():
        await asyncio.sleep(0)
        return factory()

    async with Container() as c:
        c.register("thing", later, lazy=False)
        with pytest.raises(OSError, match="attempt 1"):
            await c.ready()
        await c.ready()
        assert (c.peek("thing"), attempts) == ("made", [1, 2])


@pytest.mark.covers("R142")
async def test_a_build_that_takes_too_long_is_a_timeout():
    """A factory that takes longer than `timeout_seconds` yields TIMEOUT, and its clean-ups run."""
    log = []

    async def slow(ctx):
        ctx.on_cleanup(lambda: log.append("closed"))
        await never()

    async with Container() as c:
        c.register("slow", slow, timeout_seconds=0.01)
        resolution = await c.resolve("slow")
        assert (resolution.ok, resolution.error.code, "'slow'" in str(resolution.error)) == (False, "TIMEOUT", True)
        assert log == ["closed"]


@pytest.mark.covers("R142")
async def test_the_limit_of_a_build_includes_what_it_needs():
    """The time that a service's dependencies take counts as its own."""
    async with Container() as c:
        c.register("hangs", never)
        c.register("top", closing([], "top", "hangs"), timeout_seconds=0.01)
        with pytest.raises(TimeoutExceededError, match="'top'"):
            await c.require("top")


@pytest.mark.covers("R143")
async def test_a_build_is_tried_again():
    """With `retries=2` a factory that fails twice and then succeeds gives its service, after three attempts."""
    factory, attempts = failing(2)
    clock = VirtualClock()
    async with Container(clock=clock) as c:
        c.register("thing", factory, retries=2)
        asking = asyncio.ensure_future(c.resolve("thing"))
        await clock.until_asleep()
        await clock.advance(10)
        resolution = await asking
    assert (resolution.ok, resolution.instance, resolution.version) == (True, "made", 1)
    assert attempts == [1, 2, 3]


@pytest.mark.covers("R143")
async def test_an_attempt_is_cleaned_up_before_the_next():
    """What a failed attempt opened is closed before the next one; when all have failed, the last error is raised."""
    log, clock = [], VirtualClock()

    def make(ctx):
        log.append("open")
        ctx.on_cleanup(lambda: log.append("closed"))
        raise OSError(f"{log.count('open')}")

    async with Container(clock=clock) as c:
        c.register("thing", make, retries=1)
        asking = asyncio.ensure_future(c.resolve("thing"))
        await clock.until_asleep()
        assert log == ["open", "closed"]
        await clock.advance(10)
        assert str((await asking).error) == "2"
    assert log == ["open", "closed", "open", "closed"]


@pytest.mark.covers("R143")
@pytest.mark.parametrize("needs", ["unknown", "itself"])
async def test_what_trying_again_cannot_heal_is_tried_once(needs):
    """An unknown name or a circle is an error of the program: it is not tried again."""
    async with Container(clock=VirtualClock()) as c:
        started = told(c, "build:start")
        c.register("itself", closing([], "itself", needs), retries=5)
        with pytest.raises((NotFoundError, CycleError)):
            await c.require("itself")
    assert len(started) == 1


@pytest.mark.covers("R144")
async def test_equal_params_share_an_instance():
    """With `param_key` there is one instance for each key: equal params share it, different ones do not."""
    built = []
    async with Container() as c:
        c.register("user", lambda ctx: built.append(ctx.params) or Thing(), param_key=lambda params: params["id"])
        ann = await c.require("user", {"id": "ann"})
        assert await c.require("user", {"id": "ann"}) is ann
        assert await c.require("user", {"id": "bob"}) is not ann
        assert c.peek("user", {"id": "ann"}) is ann
        assert {"user:ann", "user:bob"} <= set(c.debug_info())
    assert built == [{"id": "ann"}, {"id": "bob"}]


@pytest.mark.covers("R145")
async def test_what_has_no_serializer_is_not_exported():
    """Without a serializer a service is absent from `export`."""
    async with Container() as c:
        c.register("told", lambda: 1, serialize=lambda value: value)
        c.register("untold", lambda: 2)
        assert [await c.require("told"), await c.require("untold")] == [1, 2]
        assert c.export() == {"version": 1, "artifacts": [{"key": "told", "value": 1}]}


async def test_what_is_unregistered_is_closed_when_nothing_needs_it():
    """What an unregistered service built is closed as soon as nothing that was built from it lives, once."""
    log = []
    async with Container() as c:
        unregister = c.register("base", closing(log, "base"))
        c.register("top", closing(log, "top", "base"))
        await c.require("top")
        unregister()
        unregister()
        assert (c.has("base"), log) == (False, [])
        await c.invalidate("top")
        await c.ready()
        assert log == ["top", "base"]
        with pytest.raises(NotFoundError, match="top -> base"):
            await c.require("top")
    assert log == ["top", "base"]


# -- asking ----------------------------------------------------------------------------------------------------------


@pytest.mark.covers("R146")
async def test_a_containers_own_service_comes_first():
    """`resolve` gives the container's own service, whatever its parents have of that name."""
    async with Container() as parent, Container(parents=[parent]) as c:
        parent.register("thing", lambda: "parent's")
        c.register("thing", lambda: "own")
        resolution = await c.resolve("thing")
        assert (resolution.ok, resolution.instance, resolution.error, resolution.version) == (True, "own", None, 1)
        assert (await parent.resolve("thing")).instance == "parent's"


@pytest.mark.covers("R147")
async def test_parents_are_asked_in_order():
    """What a container does not have is taken from its parents, in the order in which they were added."""
    async with Container() as first, Container() as second, Container(parents=[first]) as c:
        c.extend(second)
        for parent, name in ((second, "second"), (first, "first")):
            parent.register("both", lambda name=name: name)
        second.register("last", lambda: "second")
        assert [(await c.resolve(key)).instance for key in ("both", "last")] == ["first", "second"]


@pytest.mark.covers("R148")
async def test_require_gives_the_instance_or_raises():
    """`require` gives the instance itself, and raises for an unknown key and for a failed build."""
    factory, _ = failing(1)
    async with Container() as c:
        c.register(Thing, Thing)
        c.register("fails", factory)
        assert isinstance(await c.require(Thing), Thing)
        with pytest.raises(OSError, match="attempt 1"):
            await c.require("fails")
        with pytest.raises(NotFoundError, match="'fails'"):
            await c.require("failz")
        with pytest.raises(NotFoundError):
            await c.resolve("failz")


@pytest.mark.covers("R149")
async def test_peek_never_builds():
    """`peek` gives None before a build and the instance after, also from a parent, and never calls the factory."""
    factory, attempts = failing(0)
    async with Container() as parent, Container(parents=[parent]) as c:
        parent.register("thing", factory)
        assert [c.peek("thing"), c.peek("unknown"), attempts] == [None, None, []]
        await c.require("thing")
        assert [c.peek("thing"), parent.peek("thing")] == ["made", "made"]
    assert attempts == [1]


@pytest.mark.covers("R150")
async def test_what_is_invalidated_is_built_anew():
    """After `invalidate` the service and what was built from it are closed, dependents first, and built anew."""
    log = []
    async with Container() as c:
        c.register("base", closing(log, "base"))
        c.register("top", closing(log, "top", "base"))
        c.register("other", closing(log, "other"))
        before = [await c.require(key) for key in ("top", "base", "other")]
        await c.invalidate("base")
        assert (log, c.peek("base"), c.peek("top")) == (["top", "base"], None, None)
        after = [await c.require(key) for key in ("top", "base", "other")]
        assert [one is two for one, two in zip(before, after, strict=True)] == [False, False, True]
        assert after[0][1] is after[1]
    assert sorted(log) == ["base", "base", "other", "top", "top"]


@pytest.mark.covers("R150")
@pytest.mark.parametrize("looked", [False, True], ids=["asked for at once", "looked for before"])
async def test_what_came_as_a_parameter_is_known_as_well(looked):
    """What a factory got as a parameter, itself or by way of others, takes it along when it is invalidated."""
    async with Container() as c:
        c.register("base", object)
        c.register("middle", lambda base: [base])
        c.register("passing", lambda middle: [middle], scope="transient")
        c.register("top", lambda passing: [passing])
        c.register(Thing, Thing)
        # What was looked for before is made without any record; what was made of what is then found out later.
        assert not looked or c.has("top")
        before = await c.require("top")
        other = await c.require(Thing)
        await c.invalidate("base")
        after = await c.require("top")
        assert (after is before, after[0][0][0] is before[0][0][0]) == (False, False)
        assert after[0][0][0] is c.peek("base")
        assert await c.require(Thing) is other


@pytest.mark.covers("R150")
async def test_a_build_that_used_what_is_invalidated_is_begun_anew():
    """A build under way that used what is invalidated is discarded, cleaned up and done again."""
    log, arrived, gate = [], asyncio.Queue(), asyncio.Event()

    async def top(ctx):
        base = await ctx.require("base")
        ctx.on_cleanup(lambda: log.append("top closed"))
        arrived.put_nowait(base)
        await gate.wait()
        return base

    async with Container() as c:
        c.register("base", Thing)
        c.register("top", top)
        asking = asyncio.ensure_future(c.require("top"))
        first = await arrived.get()
        await c.invalidate("base")
        gate.set()
        assert await asking is await c.require("base") is not first
        assert log == ["top closed"]


@pytest.mark.covers("R150")
async def test_failing_closers_of_what_is_invalidated_are_all_told():
    """What closers raise comes out of `invalidate` in one group, after all of them ran; the service is built anew."""
    log = []

    def base(ctx):
        ctx.on_cleanup(lambda: log.append("closed"))
        ctx.on_cleanup(lambda: 1 / 0)
        return Thing()

    async with Container() as c:
        c.register("base", base)
        first = await c.require("base")
        with pytest.raises(ExceptionGroup) as caught:
            await c.invalidate("base")
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        assert log == ["closed"]
        assert await c.require("base") is not first
        with pytest.raises(ExceptionGroup):
            await c.invalidate("base")


@pytest.mark.covers("R151")
async def test_what_is_invalidated_by_force_is_rebuilt_at_once():
    """With `rebuild=True` the new instance is there when `invalidate` returns."""
    factory, attempts = failing(0)
    async with Container() as c:
        c.register("thing", factory)
        c.register("idle", closing([], "idle", "thing"))
        await c.require("idle")
        await c.invalidate("thing", rebuild=True)
        assert (attempts, c.peek("thing"), c.peek("idle")) == ([1, 2], "made", None)
        assert (await c.resolve("thing")).version == 2


@pytest.mark.covers("R151")
async def test_dependents_that_somebody_watches_are_rebuilt_too():
    """With `rebuild=True` those dependents are rebuilt as well that are watched or not lazy, and no others."""
    async with Container() as c:
        c.register("base", Thing)
        for key in ("watched", "eager", "idle"):
            c.register(key, closing([], key, "base"), lazy=key != "eager")
        c.watch("watched").subscribe(lambda change: None)
        await c.ready()
        for key in ("watched", "idle"):
            await c.require(key)
        await c.invalidate("base", rebuild=True)
        statuses = {key: told["status"] for key, told in c.debug_info().items()}
        assert (statuses["base"], statuses["watched"], statuses["eager"]) == ("ready", "ready", "ready")
        assert c.peek("idle") is None


@pytest.mark.covers("R152")
async def test_a_container_can_be_extended():
    """After `extend` an unknown key is found in the parent that was added; a circle of parents is refused."""
    async with Container() as parent, Container() as c:
        parent.register("thing", Thing)
        with pytest.raises(NotFoundError):
            await c.require("thing")
        c.extend(parent)
        assert await c.require("thing") is await parent.require("thing")
        for above in (c, parent):
            with pytest.raises(CycleError):
                above.extend(c)


@pytest.mark.covers("R153")
async def test_scopes_of_a_container_have_services_of_their_own():
    """The same key in two scopes does not collide; who disposes one leaves the other; both find what is above."""
    log = []
    async with Container() as c:
        c.register("shared", Thing)
        one, two = c.scope("one"), c.scope("two")
        assert c.scope("one") is one
        for scope, name in ((one, "one"), (two, "two")):
            scope.register("own", closing(log, name))
        assert [await one.require("own"), await two.require("own")] == [["one"], ["two"]]
        assert await one.require("shared") is await two.require("shared")
        with pytest.raises(NotFoundError):
            await c.require("own")
        await one.dispose()
        assert (log, await two.require("own")) == (["one"], ["two"])
        assert c.scope("one") is not one


async def test_scopes_are_closed_with_their_container():
    """What lives in a scope is closed before what lives above it."""
    log = []
    async with Container() as c:
        c.register("base", closing(log, "base"))
        scope = c.scope("one")
        scope.register("top", closing(log, "top", "base"))
        await scope.require("top")
    assert log == ["top", "base"]
    with pytest.raises(ClosedError):
        await scope.require("top")


@pytest.mark.covers("R154")
async def test_a_watcher_is_told_of_every_change():
    """A subscriber of `watch` is told when the service is built, rebuilt, invalidated and fails to be built."""
    factory, attempts = failing(0)
    seen = []

    def make():
        if len(attempts) == 2:
            raise OSError("down")
        return f"{factory()} {len(attempts)}"

    async with Container() as c:
        c.register("thing", make)
        watched = c.watch("thing")
        unsubscribe = watched.subscribe(lambda change: seen.append((change.event, change.ok, watched.get())))
        for _ in range(3):
            await c.resolve("thing")
            await c.invalidate("thing")
        assert watched.get() is None
        unsubscribe()
        attempts.clear()
        await c.require("thing")
        assert watched.get() == "made 1"
    events = [event for event, _, _ in seen]
    assert events[:5] == ["built", "invalidated", "rebuilt", "invalidated", "error"]
    assert set(events[5:]) <= {"invalidated"}
    assert [(ok, value) for event, ok, value in seen if event in {"built", "rebuilt", "error"}] == [
        (True, "made 1"),
        (True, "made 2"),
        (False, None),
    ]


@pytest.mark.covers("R154")
async def test_nobody_watches_what_is_not_there():
    """`watch` of an unknown key is NOT_FOUND."""
    async with Container() as c:
        c.register("thing", Thing)
        with pytest.raises(NotFoundError, match="'thing'"):
            c.watch("thin")


# -- building --------------------------------------------------------------------------------------------------------


@pytest.mark.covers("N83")
async def test_a_thousand_callers_share_one_build():
    """However many ask at once there is one build, and it goes on when the one who asked first is cancelled."""
    built, arrived, gate = [], asyncio.Event(), asyncio.Event()

    async def make():
        built.append(Thing())
        arrived.set()
        await gate.wait()
        return built[-1]

    async with Container() as c:
        c.register("thing", make)
        first = asyncio.ensure_future(c.require("thing"))
        await arrived.wait()
        others = [asyncio.ensure_future(c.require("thing")) for _ in range(1000)]
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert set(await asyncio.gather(*others)) == set(built)
    assert len(built) == 1


@pytest.mark.covers("N83")
async def test_a_failure_is_not_kept():
    """All who wait get the error of a build that fails; who asks next has it tried again."""
    attempts = []

    async def make():
        attempts.append(1)
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise OSError("down")
        return "up"

    async with Container() as c:
        c.register("thing", make)
        got = await asyncio.gather(*[c.require("thing") for _ in range(10)], return_exceptions=True)
        assert ({type(error) for error in got}, len(attempts)) == ({OSError}, 1)
        assert await c.require("thing") == "up"


@pytest.mark.covers("N84")
async def test_a_family_lets_go_of_the_one_that_was_used_least_recently():
    """Of the instances of a `param_key` at most `param_limit` are kept: the one least recently used is closed."""
    log, number = [], count(1)

    def user(ctx):
        ctx.on_cleanup(lambda: log.append(ctx.params))
        return next(number)

    async with Container() as c:
        c.register("user", user, param_key=str, param_limit=2)
        ann, bob = await c.require("user", "ann"), await c.require("user", "bob")
        assert await c.require("user", "ann") == ann
        await c.require("user", "eve")
        assert log == ["bob"]
        assert (await c.require("user", "ann"), c.peek("user", "bob")) == (ann, None)
        assert await c.require("user", "bob") != bob
        assert log == ["bob", "eve"]
    assert sorted(log) == ["ann", "bob", "bob", "eve"]


@pytest.mark.covers("N84")
async def test_a_family_closes_nothing_that_is_still_needed():
    """An instance that had to go is closed only when nothing that was built from it lives any more."""
    log = []

    def user(ctx):
        ctx.on_cleanup(lambda: log.append(f"user {ctx.params}"))
        return ctx.params

    async def top(ctx):
        ctx.on_cleanup(lambda: log.append("top"))
        return await ctx.require("user", "ann")

    async with Container() as c:
        c.register("user", user, param_key=str, param_limit=1)
        c.register("top", top)
        assert await c.require("top") == "ann"
        await c.require("user", "bob")
        assert log == []
        await c.invalidate("top")
        assert log == ["top", "user ann"]


@pytest.mark.covers("N88")
async def test_what_is_shared_is_built_in_variables_of_its_own():
    """A service that outlives whoever asks for it does not see that one's context variables; its own service does."""
    variable = contextvars.ContextVar("variable", default="clean")

    async def later():
        return variable.get()

    async with Container("app") as app, Container("run", level=Scope.RUN, parents=[app]) as run:
        app.register("shared", variable.get)
        app.register("shared_async", later)
        run.register("own", variable.get)
        variable.set("asker's")
        assert [await run.require(key) for key in ("shared", "shared_async", "own")] == ["clean", "clean", "asker's"]


@pytest.mark.covers("N89")
async def test_an_override_stands_in_for_a_service():
    """`override` puts a value in the place of a service, for factories too, until it is taken back; nearest wins."""
    async with Container("app") as app, Container("run", level=Scope.RUN, parents=[app]) as run:
        app.register("thing", lambda: "real")
        run.register("top", closing([], "top", "thing"), scope="transient")
        back = run.override("thing", "fake")
        assert [await run.require("thing"), run.peek("thing"), await run.require("top")] == [
            "fake",
            "fake",
            ["top", "fake"],
        ]
        assert await app.require("thing") == "real"
        back()
        back()
        assert [await run.require("thing"), await run.require("top")] == ["real", ["top", "real"]]
        with pytest.raises(NotFoundError, match="'thing'"):
            run.override("thin", "fake")


@pytest.mark.covers("N89")
async def test_overrides_are_by_type_and_end_where_they_began():
    """A service is overridden by its type as by its name, and overrides inside each other end one by one."""
    async with Container() as c:
        c.register(Thing, Thing)
        real = await c.require(Thing)
        outer = c.override(Thing, "outer")
        inner = c.override(Thing, "inner")
        assert await c.require(Thing) == "inner"
        inner()
        assert await c.require(Thing) == "outer"
        outer()
        assert await c.require(Thing) is real


@pytest.mark.covers("N89")
async def test_an_override_stands_in_for_a_family():
    """A value that overrides a service with a `param_key` is there for all params."""
    async with Container() as c:
        c.register("user", lambda ctx: ctx.params, param_key=str)
        back = c.override("user", "fake")
        assert [await c.require("user", "ann"), await c.require("user", "bob")] == ["fake", "fake"]
        back()
        assert await c.require("user", "ann") == "ann"


@pytest.mark.covers("N89")
async def test_overrides_may_end_in_any_order():
    """An override that ends before one that hides it changes nothing now, and is not there when that one ends."""
    async with Container() as c:
        c.register("thing", lambda: "real")
        first = c.override("thing", "first")
        second = c.override("thing", "second")
        first()
        assert (await c.require("thing"), c.overridden) == ("second", {"thing": "second"})
        second()
        assert (await c.require("thing"), c.overridden) == ("real", None)


TYPED = """
from typing import Any, assert_type

from piecework.container.container import Container, Resolution


class Ledger:
    total: int = 0


async def use(c: Container) -> None:
    assert_type(await c.require(Ledger), Ledger)
    assert_type(await c.require("ledger"), Any)
    assert_type(await c.resolve("ledger"), Resolution)
    assert_type((await c.require(Ledger)).total, int)
    assert_type(c.export(), dict[str, Any])
    (await c.require(Ledger)).totals
"""


@pytest.mark.timeout(120)
def test_what_is_asked_for_by_its_type_is_of_that_type(tmp_path):
    """A type checker knows that what is required by its type is of that type."""
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(tmp_path / "typed.py")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    errors = [line for line in found.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, found.stdout + found.stderr
    assert '"Ledger" has no attribute "totals"' in errors[0]


# -- closing ---------------------------------------------------------------------------------------------------------


@pytest.mark.covers("N87")
async def test_what_needs_others_is_closed_first():
    """At the end what was built from others is closed before them, whatever order they were asked for in."""
    log = []
    async with Container() as c:
        c.register("base", closing(log, "base"))
        c.register("middle", closing(log, "middle", "base"))
        c.register("top", closing(log, "top", "base", "middle"))
        await asyncio.gather(*[c.require(key) for key in ("base", "top", "middle")])
    assert log == ["top", "middle", "base"]


@pytest.mark.covers("N87")
async def test_what_needs_others_is_closed_first_after_rebuilds_too():
    """An instance that was replaced is closed after what was built from it, also when that was never built anew."""
    state, log, number = Container.State({"n": 1}), [], count(1)

    def base(ctx):
        n = ctx.select(lambda data: data["n"])
        ctx.on_cleanup(lambda: log.append(f"base {n}"))
        return n

    async def top(ctx):
        n, mine = await ctx.require("base"), next(number)
        ctx.on_cleanup(lambda: log.append(f"top {mine} of base {n}"))
        return n

    async with Container(state=state) as c:
        c.register("base", base)
        c.register("top", top)
        await c.require("top")
        await state.set({"n": 2})
        await c.require("base")
        assert log == []
    assert log.index("top 1 of base 1") < log.index("base 1")
    assert sorted(log) == ["base 1", "base 2", "top 1 of base 1"]


@pytest.mark.covers("N87")
async def test_a_closer_that_hangs_is_stopped_and_the_others_run():
    """A closer that takes too long is stopped and told as TIMEOUT with the others' errors; all others run."""
    log = []
    c = Container(close_timeout_seconds=0.01)
    c.register("first", closing(log, "first"))
    c.register("hangs", lambda ctx: ctx.on_cleanup(never))
    c.register("fails", lambda ctx: ctx.on_cleanup(lambda: 1 / 0))
    c.register("last", closing(log, "last"))
    for key in ("first", "hangs", "fails", "last"):
        await c.require(key)
    with pytest.raises(ExceptionGroup) as caught:
        await c.dispose()
    assert log == ["last", "first"]
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError, TimeoutExceededError]


async def test_a_wider_service_cannot_hold_a_narrower_one():
    """A factory that asks for what lives shorter than its own service is refused with INVALID_SCOPE or NOT_FOUND."""
    async with Container("app") as app, Container("run", level=Scope.RUN, parents=[app]) as run:
        app.register("wide", closing([], "wide", "narrow"))
        run.register("narrow", Thing)
        with pytest.raises((InvalidScopeError, NotFoundError), match="wide -> narrow"):
            await run.require("wide")
