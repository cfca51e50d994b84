from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from piecework.container.container import Container
from piecework.container.parameters import Use
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope
from piecework.errors import (
    ClosedError,
    CycleError,
    DuplicateKeyError,
    InvalidScopeError,
    InvalidStateError,
    NotFoundError,
    TimeoutExceededError,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from piecework.container.context import FactoryContext


class Thing:
    pass


def chain(*recipes: Recipe) -> tuple[Container, Container, Container]:
    """An app, a workflow and a run, all recipes declared on the app."""
    app = Container("app", level=Scope.APP, registry=Registry(recipes))
    workflow = Container("workflow", level=Scope.WORKFLOW, parents=[app])
    return app, workflow, Container("run", level=Scope.RUN, parents=[workflow, app], run_id="r1")


def returns(log: list[str]) -> Callable[..., Any]:
    return Thing


def is_async(log: list[str]) -> Callable[..., Any]:
    async def make(ctx: FactoryContext) -> Thing:
        ctx.on_cleanup(lambda: log.append("closed"))
        return Thing()

    return make


def is_generator(log: list[str]) -> Callable[..., Any]:
    def make() -> Iterator[Thing]:
        yield Thing()
        log.append("closed")

    return make


def is_async_generator(log: list[str]) -> Callable[..., Any]:
    async def make(ctx: FactoryContext) -> AsyncIterator[Thing]:
        yield Thing()
        log.append("closed")

    return make


def is_manager(log: list[str]) -> Callable[..., Any]:
    return contextlib.contextmanager(is_generator(log))


def is_async_manager(log: list[str]) -> Callable[..., Any]:
    return contextlib.asynccontextmanager(is_async_generator(log))


def returns_awaitable(log: list[str]) -> Callable[..., Any]:
    inner = is_async(log)
    return lambda context: inner(context)  # noqa: PLW0108 - a plain function that returns a coroutine


CLEANED = [is_async, is_generator, is_async_generator, is_manager, is_async_manager, returns_awaitable]


@pytest.mark.parametrize("kind", [returns, *CLEANED])
async def test_every_kind_of_factory_makes_one_instance(kind: Callable[[list[str]], Any]) -> None:
    """Plain, async, generator and async-generator factories and context managers all work."""
    async with Container() as c:
        c.register("thing", kind([]))
        thing = await c.require("thing")
        assert isinstance(thing, Thing)
        assert await c.require("thing") is thing


@pytest.mark.parametrize("kind", CLEANED)
async def test_what_comes_after_yield_is_clean_up(kind: Callable[[list[str]], Any]) -> None:
    """What follows `yield`, and what `on_cleanup` was given, runs when the container closes."""
    log: list[str] = []
    async with Container() as c:
        c.register("thing", kind(log))
        await c.require("thing")
        assert log == []
    assert log == ["closed"]


async def test_the_error_of_the_body_is_not_thrown_into_factories() -> None:
    """A factory's clean-up runs the same way whether or not the body failed."""
    seen: list[str] = []

    async def make() -> AsyncIterator[Thing]:
        try:
            yield Thing()
        except ValueError:
            seen.append("error")
        seen.append("closed")

    with pytest.raises(ValueError, match="body"):  # noqa: PT012 - the whole block is what fails
        async with Container() as c:
            c.register("thing", make)
            await c.require("thing")
            raise ValueError("body")
    assert seen == ["closed"]


async def test_a_context_manager_that_was_not_made_by_a_decorator_is_left_alone() -> None:
    """An object that happens to be a context manager is the service itself and is not entered."""
    async with Container() as c:
        c.register("lock", asyncio.Lock)
        assert not (await c.require("lock")).locked()


async def test_a_factory_that_yields_twice_is_reported() -> None:
    """A second `yield` is an error of the clean-up, and the generator is closed."""

    def make() -> Iterator[int]:
        yield 1
        yield 2

    c = Container()
    c.register("thing", make)
    await c.require("thing")
    with pytest.raises(ExceptionGroup) as caught:
        await c.dispose()
    assert "yields a second time" in str(caught.value.exceptions[0])


async def test_parameters_are_filled_by_use_then_type_then_name() -> None:
    """A factory gets services as parameters: by `Use`, by type, by name; defaults stay."""
    c = Container()
    c.register("thing", lambda: "a thing")
    c.register(Thing, Thing)
    c.register("other", lambda: "other")

    def make(ctx: FactoryContext, a: Annotated[str, Use("other")], b: Thing, thing: object, limit: int = 3) -> Any:
        return a, b, thing, limit

    c.register("all", make)
    a, b, thing, limit = await c.require("all")
    assert (a, limit) == ("other", 3)
    assert b is await c.require(Thing)
    assert thing is await c.require("thing")


async def test_concurrent_callers_share_one_build() -> None:
    """Whoever asks while a service is being built gets the same instance."""
    built: list[Thing] = []
    gate = asyncio.Event()

    async def make() -> Thing:
        built.append(Thing())
        await gate.wait()
        return built[-1]

    async with Container() as c:
        c.register("thing", make)
        callers = [asyncio.ensure_future(c.require("thing")) for _ in range(10)]
        await asyncio.sleep(0)
        gate.set()
        assert set(await asyncio.gather(*callers)) == set(built)
    assert len(built) == 1


async def test_a_build_outlives_the_cancelled_first_caller() -> None:
    """Who is cancelled stops waiting; the build goes on for the others."""
    gate, begun = asyncio.Event(), asyncio.Event()

    async def make() -> Thing:
        begun.set()
        await gate.wait()
        return Thing()

    async with Container() as c:
        c.register("thing", make)
        first = asyncio.ensure_future(c.require("thing"))
        await begun.wait()
        second = asyncio.ensure_future(c.require("thing"))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert isinstance(await second, Thing)


async def test_a_failure_reaches_every_waiter_and_is_forgotten() -> None:
    """All who wait get what the factory raised; the next caller tries again."""
    tries: list[int] = []

    async def make() -> str:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise OSError("down")
        return "up"

    async with Container() as c:
        c.register("thing", make)
        got = await asyncio.gather(c.require("thing"), c.require("thing"), return_exceptions=True)
        assert [type(item) for item in got] == [OSError, OSError]
        assert await c.require("thing") == "up"


async def test_a_failed_build_closes_what_it_opened() -> None:
    """What a failing factory registered with `on_cleanup` runs at once."""
    log: list[str] = []

    async def make(ctx: FactoryContext) -> None:
        ctx.on_cleanup(lambda: log.append("closed"))
        raise OSError("down")

    async with Container() as c:
        c.register("thing", make)
        with pytest.raises(OSError, match="down") as caught:
            await c.require("thing")
        assert log == ["closed"]
    assert "while building service 'thing'" in caught.value.__notes__


async def test_resolve_tells_the_failure_as_a_value() -> None:
    """`resolve` returns ok, instance, error and version; it raises only for an unknown name."""
    async with Container() as c:
        c.register("good", Thing)
        c.register("bad", lambda: 1 / 0)
        good, bad = await c.resolve("good"), await c.resolve("bad")
        assert (good.ok, good.version, good.error) == (True, 1, None)
        assert (bad.ok, bad.instance, type(bad.error)) == (False, None, ZeroDivisionError)
        with pytest.raises(NotFoundError):
            await c.resolve("unknown")


async def test_a_build_that_takes_too_long_is_stopped_and_cleaned_up() -> None:
    """`timeout_seconds` ends a build with TIMEOUT, and runs its clean-ups."""
    log: list[str] = []

    async def make(ctx: FactoryContext) -> None:
        ctx.on_cleanup(lambda: log.append("closed"))
        await asyncio.Event().wait()

    async with Container() as c:
        c.register("slow", make, timeout_seconds=0.01)
        with pytest.raises(TimeoutExceededError, match="'slow'"):
            await c.require("slow")
    assert log == ["closed"]


async def test_a_transient_service_is_made_at_each_call_and_closed_with_the_container() -> None:
    """A transient service gives a new instance each time; all of them are closed at the end."""
    log: list[str] = []
    async with Container() as c:
        c.register("thing", is_generator(log), scope="transient")
        assert await c.require("thing") is not await c.require("thing")
    assert log == ["closed", "closed"]


async def test_none_is_an_instance_too() -> None:
    """A service that is None or false is built once like any other."""
    built: list[int] = []
    async with Container() as c:
        c.register("nothing", lambda: built.append(1))
        assert await c.require("nothing") is None
        assert await c.require("nothing") is None
    assert len(built) == 1


async def test_an_unknown_service_is_refused_with_near_names_and_the_chain() -> None:
    """An unknown name fails with the nearest names, and with the services that led to it."""
    async with Container() as c:
        c.register("database", Thing)

        async def reports(ctx: FactoryContext) -> Any:
            return await ctx.require("databse")

        c.register("reports", reports)
        with pytest.raises(NotFoundError, match=r"did you mean 'database'\?.*reports -> databse"):
            await c.require("reports")


async def test_own_recipes_come_first_then_parents_in_order() -> None:
    """A name is looked for in the container itself, then in its parents as they were added."""
    first, second = Container(), Container()
    for parent, name in ((first, "first"), (second, "second")):
        parent.register("both", lambda name=name: name)
        parent.register("own", lambda name=name: name)
    second.register("last", lambda: "second")
    child = Container(parents=[first])
    child.extend(second)
    child.register("own", lambda: "child")
    assert [await child.require(key) for key in ("own", "both", "last")] == ["child", "first", "second"]


async def test_a_parent_that_looks_here_is_refused() -> None:
    """Containers cannot be each other's parents."""
    parent = Container()
    child = Container(parents=[parent])
    with pytest.raises(CycleError):
        parent.extend(child)
    with pytest.raises(CycleError):
        parent.extend(parent)


async def test_peek_never_builds() -> None:
    """`peek` gives None before a build and the instance after, also from a parent."""
    parent = Container()
    parent.register("thing", Thing)
    child = Container(parents=[parent])
    assert child.peek("thing") is None
    assert child.peek("unknown") is None
    thing = await child.require("thing")
    assert child.peek("thing") is thing


def test_registering_twice_is_refused_unless_replaced() -> None:
    """A taken name is DUPLICATE_KEY without replace=True; unregister takes it out."""
    c = Container()
    c.register("thing", Thing)
    with pytest.raises(DuplicateKeyError):
        c.register("thing", Thing)
    unregister = c.register("thing", Thing, replace=True)
    unregister()
    assert not c.has("thing")


def test_register_knows_two_scopes() -> None:
    """`register` takes singleton or transient and nothing else."""
    with pytest.raises(ValidationError, match="'singleton' or 'transient'"):
        Container().register("thing", Thing, scope="run")


def asks(*names: str) -> Callable[..., Any]:
    async def make(ctx: FactoryContext) -> Any:
        return [await ctx.require(name) for name in names]

    return make


async def test_a_circle_is_drawn() -> None:
    """Services that need each other in a circle fail with the circle drawn."""
    async with Container() as c:
        c.register("a", asks("b"))
        c.register("b", asks("a"))
        with pytest.raises(CycleError, match="a -> b -> a"):
            await c.require("a")


async def test_a_service_that_needs_itself_is_refused() -> None:
    """A circle of one is found, for a transient service too."""
    async with Container() as c:
        c.register("a", asks("a"))
        c.register("t", asks("t"), scope="transient")
        with pytest.raises(CycleError, match="a -> a"):
            await c.require("a")
        with pytest.raises(CycleError, match="t -> t"):
            await c.require("t")


async def test_a_circle_that_two_callers_close_does_not_hang() -> None:
    """Builds begun by different callers that would wait for each other fail instead."""
    both = asyncio.Barrier(2)

    def meets(other: str) -> Callable[..., Any]:
        async def make(ctx: FactoryContext) -> Any:
            await both.wait()
            return await ctx.require(other)

        return make

    async with Container() as c:
        c.register("a", meets("b"))
        c.register("b", meets("a"))
        got = await asyncio.gather(c.require("a"), c.require("b"), return_exceptions=True)
    assert [type(item) for item in got] == [CycleError, CycleError]


async def test_a_shared_dependency_is_no_circle() -> None:
    """Two services may need the same third one, and concurrently."""

    async def top(ctx: FactoryContext) -> Any:
        return await asyncio.gather(ctx.require("left"), ctx.require("right"))

    async with Container() as c:
        c.register("bottom", asks())
        c.register("left", asks("bottom"))
        c.register("right", asks("bottom"))
        c.register("top", top)
        assert await c.require("top") == [[[]], [[]]]


async def test_an_instance_lives_in_the_container_of_its_scope() -> None:
    """App, workflow and run services live as long as the app, the workflow and the run."""
    app, workflow, run = chain(*(Recipe(str(scope), Thing, scope) for scope in list(Scope)[:3]))
    other = Container("run", level=Scope.RUN, parents=[workflow, app])
    for name in ("app", "workflow"):
        assert await run.require(name) is await other.require(name)
    assert await run.require("run") is not await other.require("run")
    assert app.peek("app") is run.peek("app")
    assert workflow.peek("app") is run.peek("app")


async def test_a_fork_shares_the_services_of_its_run() -> None:
    """A container of level transient holds only what was made for it."""
    log: list[str] = []
    _, _, run = chain(Recipe("run", Thing, Scope.RUN), Recipe("t", is_generator(log), Scope.TRANSIENT))
    async with Container("fork", level=Scope.TRANSIENT, parents=[run]) as fork:
        assert await fork.require("run") is await run.require("run")
        await fork.require("t")
    assert log == ["closed"]
    assert not run.closed


async def test_a_wider_service_cannot_need_a_narrower_one() -> None:
    """An app's service that asks for a run's is refused with INVALID_SCOPE and the chain."""
    _, _, run = chain(Recipe("wide", asks("narrow"), Scope.APP), Recipe("narrow", Thing, Scope.RUN))
    with pytest.raises(InvalidScopeError, match="wide -> narrow"):
        await run.require("wide")


async def test_a_workflow_service_is_refused_outside_of_workflows() -> None:
    """Without a workflow in reach its services are refused, and the message says where to ask."""
    app, _, _ = chain(Recipe("w", Thing, Scope.WORKFLOW))
    with pytest.raises(NotFoundError, match="in a step of a workflow"):
        await Container("run", level=Scope.RUN, parents=[app]).require("w")


async def test_run_services_are_unknown_above_the_workflow_that_declares_them() -> None:
    """What a workflow declares cannot be found from the app."""
    app = Container("app")
    Container("workflow", level=Scope.WORKFLOW, parents=[app], registry=Registry([Recipe("r", Thing, Scope.RUN)]))
    with pytest.raises(NotFoundError):
        await app.require("r")


async def test_run_id_and_workspace_are_for_runs() -> None:
    """`ctx.run_id` and `ctx.workspace` exist in run and transient scope, else INVALID_SCOPE."""
    _, _, run = chain(
        Recipe("id", lambda ctx: ctx.run_id, Scope.RUN),
        Recipe("ws", lambda ctx: ctx.workspace, Scope.TRANSIENT),
        Recipe("wide_id", lambda ctx: ctx.run_id, Scope.APP),
        Recipe("wide_ws", lambda ctx: ctx.workspace, Scope.WORKFLOW),
    )
    run.workspace = "the workspace"
    assert await run.require("id") == "r1"
    assert await run.require("ws") == "the workspace"
    for name in ("wide_id", "wide_ws"):
        with pytest.raises(InvalidScopeError):
            await run.require(name)


async def test_use_offers_resolve_require_and_select() -> None:
    """`ctx.use` calls with an object that can resolve, require and select; select has no state here."""

    async def make(ctx: FactoryContext) -> Any:
        with pytest.raises(InvalidScopeError, match="scope 'run'"):
            await ctx.use(lambda deps: deps.select(lambda state: state.user))
        assert (await ctx.use(lambda deps: deps.resolve("thing"))).ok
        return await ctx.use(lambda deps: deps.require("thing"))

    async with Container() as c:
        c.register("thing", Thing)
        c.register("user", make)
        assert await c.require("user") is await c.require("thing")


async def test_shared_services_are_built_in_clean_variables() -> None:
    """A service wider than its asker does not see the asker's context variables; its own does."""
    variable = contextvars.ContextVar("variable", default="clean")
    _, _, run = chain(
        Recipe("wide", variable.get, Scope.APP),
        Recipe("own", variable.get, Scope.RUN),
        Recipe("wide_async", asks(), Scope.APP),
    )
    variable.set("mine")
    assert await run.require("wide") == "clean"
    assert await run.require("own") == "mine"


async def test_require_now_builds_what_is_synchronous() -> None:
    """A synchronous factory with synchronous dependencies is had without await."""
    async with Container() as c:
        c.register(Thing, Thing)

        def make(thing: Thing) -> tuple[Thing]:
            return (thing,)

        c.register("pair", make)
        assert c.require_now("pair") == (c.require_now(Thing),)
        assert await c.require("pair") is c.require_now("pair")


@pytest.mark.parametrize("kind", [is_async, is_async_generator, is_async_manager, returns_awaitable])
async def test_require_now_says_what_to_await(kind: Callable[[list[str]], Any]) -> None:
    """A service that is made asynchronously is refused with the line to write; once built it is given."""
    async with Container() as c:
        c.register("thing", kind([]))
        with pytest.raises(InvalidStateError, match=r"await ws\.require\('thing'\)"):
            c.require_now("thing")
        assert await c.require("thing") is c.require_now("thing")


async def test_require_now_finds_circles() -> None:
    """A circle of synchronous factories is drawn too."""
    async with Container() as c:
        c.register("a", lambda b: b)
        c.register("b", lambda a: a)
        with pytest.raises(CycleError, match="a -> b -> a"):
            c.require_now("a")


def closes(log: list[str], name: str, needs: str | None = None) -> Callable[..., Any]:
    async def make(ctx: FactoryContext) -> AsyncIterator[str]:
        if needs is not None:
            await ctx.require(needs)
        yield name
        log.append(name)

    return make


async def test_services_are_closed_in_reverse_dependents_first() -> None:
    """What a service needs is closed after it, also when both were asked for at once."""
    log: list[str] = []
    async with Container() as c:
        c.register("database", closes(log, "database"))
        c.register("mail", closes(log, "mail", needs="database"))
        await asyncio.gather(c.require("mail"), c.require("database"))
    assert log == ["mail", "database"]


async def test_every_closer_runs_and_every_failure_is_told() -> None:
    """One failing closer stops no other; all failures come in one group."""
    log: list[str] = []

    def fails(error: Exception) -> Callable[..., Any]:
        def make(ctx: FactoryContext) -> None:
            def close() -> None:
                raise error

            ctx.on_cleanup(close)

        return make

    c = Container()
    c.register("first", closes(log, "first"))
    c.register("bad", fails(ValueError("bad")))
    c.register("worse", fails(OSError("worse")))
    c.register("last", closes(log, "last"))
    for name in ("first", "bad", "worse", "last"):
        await c.require(name)
    with pytest.raises(ExceptionGroup, match="container close") as caught:
        await c.dispose()
    assert log == ["last", "first"]
    assert [str(error) for error in caught.value.exceptions] == ["worse", "bad"]
    assert caught.value.exceptions[0].__notes__ == ["while closing service 'worse'"]


async def test_a_single_failure_is_a_group_too() -> None:
    """One failing closer raises an ExceptionGroup of one."""
    c = Container()
    c.register("bad", lambda ctx: ctx.on_cleanup(lambda: 1 / 0))
    await c.require("bad")
    with pytest.raises(ExceptionGroup) as caught:
        await c.dispose()
    assert len(caught.value.exceptions) == 1


async def test_the_error_of_the_body_wins_over_those_of_closing() -> None:
    """A failing body raises its own error, with what failed while closing noted on it."""
    with pytest.raises(ValueError, match="body") as caught:  # noqa: PT012 - the whole block is what fails
        async with Container() as c:
            c.register("bad", lambda ctx: ctx.on_cleanup(lambda: 1 / 0))
            await c.require("bad")
            raise ValueError("body")
    assert any("ZeroDivisionError" in note for note in caught.value.__notes__)


async def test_a_closer_that_takes_too_long_is_reported_and_the_rest_goes_on() -> None:
    """A closer has `close_timeout_seconds`; then it is cancelled, reported, and the next one runs."""
    log: list[str] = []
    c = Container(close_timeout_seconds=0.01)
    c.register("good", closes(log, "good"))
    c.register("slow", lambda ctx: ctx.on_cleanup(asyncio.Event().wait))
    await c.require("good")
    await c.require("slow")
    with pytest.raises(ExceptionGroup) as caught:
        await c.dispose()
    assert log == ["good"]
    assert isinstance(caught.value.exceptions[0], TimeoutExceededError)


async def test_disposing_twice_closes_once() -> None:
    """A second dispose does nothing, a concurrent one waits for the first."""
    log: list[str] = []
    c = Container()
    c.register("thing", closes(log, "thing"))
    await c.require("thing")
    await asyncio.gather(c.dispose(), c.dispose())
    await c.dispose()
    assert log == ["thing"]


async def test_closing_goes_on_through_any_number_of_cancels() -> None:
    """Cancelling whoever disposes cuts no closer short; the cancellation is raised at the end."""
    begun, gate = asyncio.Event(), asyncio.Event()
    log: list[str] = []

    async def make() -> AsyncIterator[None]:
        yield
        begun.set()
        await gate.wait()
        log.append("closed")

    c = Container()
    c.register("thing", make)
    await c.require("thing")
    disposing = asyncio.ensure_future(c.dispose())
    await begun.wait()
    for _ in range(3):
        disposing.cancel()
        await asyncio.sleep(0)
    assert not disposing.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await disposing
    assert log == ["closed"]


async def test_a_build_under_way_is_cancelled_and_cleaned_up() -> None:
    """Closing cancels a build that hangs, runs its clean-ups, and tells its waiters that it is closed."""
    log: list[str] = []
    begun = asyncio.Event()

    async def make(ctx: FactoryContext) -> None:
        ctx.on_cleanup(lambda: log.append("closed"))
        begun.set()
        await asyncio.Event().wait()

    c = Container()
    c.register("hangs", make)
    waiter = asyncio.ensure_future(c.require("hangs"))
    await begun.wait()
    await c.dispose()
    assert log == ["closed"]
    with pytest.raises(ClosedError):
        await waiter


async def test_a_closer_may_dispose_its_own_container() -> None:
    """A closer that closes its container does not wait for itself."""
    c = Container(close_timeout_seconds=5)
    c.register("thing", lambda ctx: ctx.on_cleanup(c.dispose))
    await c.require("thing")
    await c.dispose()


async def test_use_after_closing_is_refused() -> None:
    """A closed container refuses require, require_now, register and being entered."""
    c = Container("run", id="r7")
    c.register("thing", Thing)
    child = Container(parents=[c])
    await c.require("thing")
    await c.dispose()
    for use in (c, child):
        with pytest.raises(ClosedError, match=r"run r7.* is closed"):
            await use.require("thing")
    with pytest.raises(ClosedError):
        c.require_now("thing")
    with pytest.raises(ClosedError):
        c.register("other", Thing)
    with pytest.raises(ClosedError):
        await c.__aenter__()


async def test_nothing_to_close_needs_no_task() -> None:
    """Closing a container without closers starts no task."""
    c = Container()
    c.register("thing", Thing)
    await c.require("thing")
    before = asyncio.all_tasks()
    closing = c.dispose()
    with pytest.raises(StopIteration):
        closing.send(None)
    assert asyncio.all_tasks() == before


async def test_ready_builds_what_is_not_lazy() -> None:
    """A service declared with lazy=False is built by `ready`, others are not."""
    c = Container()
    c.register("eager", Thing, lazy=False)
    c.register("lazy", Thing)
    await c.ready()
    assert c.peek("eager") is not None
    assert c.peek("lazy") is None


async def test_threads_share_what_the_loop_builds() -> None:
    """Threads that ask for a service by `require_now` at once get one instance, asynchronous ones too."""
    built: list[str] = []

    async def later() -> AsyncIterator[Thing]:
        built.append("later")
        await asyncio.sleep(0)
        yield Thing()

    def slowly() -> Iterator[Thing]:
        built.append("slowly")
        yield Thing()

    async with Container() as c:
        c.register("later", later)
        c.register("slowly", slowly)
        await c.ready()
        asks = [asyncio.to_thread(c.require_now, name) for name in ("later", "slowly") * 4]
        found = await asyncio.gather(*asks)
        assert len({id(thing) for thing in found}) == 2
    assert sorted(built) == ["later", "slowly"]


async def test_a_factory_that_needs_itself_past_its_context_is_refused() -> None:
    """A factory that asks the container for what needs the factory makes no second instance: it is a circle."""
    async with Container() as c:
        made: list[int] = []

        async def one() -> Thing:
            made.append(1)
            if len(made) == 1:
                await c.require("other")
            return Thing()

        async def other() -> Thing:
            if len(made) < 2:
                await c.require("one")
            return Thing()

        c.register("one", one)
        c.register("other", other)
        with pytest.raises(CycleError, match="one"):
            await c.require("one")


async def test_what_is_begun_at_once_sees_its_own_variables() -> None:
    """Two builds begun in one turn of the loop see each its asker's variables, also when these are equal."""
    var: contextvars.ContextVar[list[int]] = contextvars.ContextVar("var")
    seen: list[bool] = []

    async def make() -> Thing:
        mine = var.get()
        await asyncio.sleep(0)
        seen.append(var.get() is mine)
        return Thing()

    async def none() -> None:
        return None

    async def ask(value: list[int]) -> None:
        var.set(value)
        async with Container() as c:
            c.register("none", none)
            c.register("thing", make)
            await c.require("none")
            await c.require("thing")
            seen.append(var.get() is value)

    await asyncio.gather(*(asyncio.create_task(ask([])) for _ in range(5)))
    assert seen == [True] * 10


async def test_what_was_made_before_the_recipes_changed_knows_what_it_was_made_from() -> None:
    """A service that was made before a recipe went is closed before what it was made from, also then."""
    log: list[str] = []

    def dep() -> Iterator[Thing]:
        yield Thing()
        log.append("dep")

    def top(dep: Thing) -> Iterator[Thing]:
        yield Thing()
        log.append("top")

    async with Container() as c:
        unregister = c.register("dep", dep)
        c.register("top", top)
        assert c.has("top")
        await c.require("top")
        unregister()
        await c.ready()
        assert log == []
    assert log == ["top", "dep"]


async def test_what_a_fork_made_is_closed_before_what_it_was_made_from() -> None:
    """A transient service of a fork is closed with the run's service that it was made from, and first."""
    log: list[str] = []

    def tx(db: Thing) -> Iterator[Thing]:
        yield Thing()
        log.append("tx")

    run = Container("run", level=Scope.RUN)
    run.register("db", lambda ctx: ctx.on_cleanup(lambda: log.append("db")))
    run.register("tx", tx, scope="transient")
    async with run, Container("fork", level=Scope.TRANSIENT, parents=[run]) as fork:
        await fork.require("db")
        assert fork.has("tx")
        await fork.require("tx")
        await run.invalidate("db")
        assert log == ["tx", "db"]


async def test_an_exclusive_service_is_never_there_twice() -> None:
    """Who asks for an exclusive service while the old one is being closed waits until it is."""
    alive: list[int] = []
    gate = asyncio.Event()

    async def port() -> AsyncIterator[int]:
        alive.append(1)
        assert len(alive) == 1
        yield 1
        await gate.wait()
        alive.pop()

    async with Container() as c:
        c.register("port", port, exclusive=True)
        await c.require("port")
        closing = asyncio.create_task(c.invalidate("port"))
        asking = asyncio.create_task(c.require("port"))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(closing, asking)


async def test_scopes_that_were_closed_are_forgotten() -> None:
    """A container keeps no named scope that is closed."""
    async with Container() as c:
        first = c.scope("one")
        await first.dispose()
        assert first not in (c._scopes or {}).values()
        assert c.scope("one") is not first


async def test_a_closer_that_closes_the_container_above_does_not_hang() -> None:
    """A closer that waits for the container which waits for it is cut off at its limit, and the rest goes on."""
    c = Container(close_timeout_seconds=0.05)

    async def closes() -> AsyncIterator[Thing]:
        yield Thing()
        await asyncio.sleep(0)
        await c.dispose()

    scope = c.scope("below")
    scope.register("thing", closes)
    await scope.require("thing")
    with pytest.raises(ExceptionGroup):
        await c.dispose()


async def test_a_cascade_reaches_past_an_empty_container() -> None:
    """What a run made from the app's service goes with it, also when the workflow between the two holds nothing."""
    log: list[str] = []

    def base() -> Iterator[Thing]:
        yield Thing()
        log.append("base")

    def top(base: Thing) -> Iterator[Thing]:
        yield Thing()
        log.append("top")

    app = Container("app", registry=Registry([Recipe("base", base, Scope.APP), Recipe("top", top, Scope.RUN)]))
    workflow = Container("workflow", level=Scope.WORKFLOW, parents=[app])
    async with app, workflow, Container("run", level=Scope.RUN, parents=[workflow]) as run:
        await run.require("top")
        await app.invalidate("base")
        assert log == ["top", "base"]
