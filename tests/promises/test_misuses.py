"""Every misuse of containers and services that docs/errors.md lists, done for real.

What a misuse is, its code, what the message names and says stand in docs/make_errors.py; here it is done.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from piecework import App, Service, Use
from piecework.container.container import Container
from piecework.container.env import EnvService
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope
from piecework.errors import PieceworkError

from .flows import flow
from .told import check, docs_script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

make_errors = docs_script("make_errors")
ROWS = {row.done: row for row in make_errors.MISUSES}
DONE: dict[str, tuple[Callable[[], Awaitable[Any]], dict[str, Any]]] = {}

pytestmark = pytest.mark.covers("N77")


def misuse(what: str, **data: Any):
    """Says which misuse a function does, and what its error has as attributes."""

    def declare(do: Callable[[], Awaitable[Any]]):
        DONE[what] = (do, data)
        return do

    return declare


@pytest.mark.parametrize("what", ROWS)
async def test_a_misuse_is_told(what):
    """A misuse of containers and services raises its code; the message says which, and what to do."""
    row, (do, data) = ROWS[what], DONE[what]
    with pytest.raises((PieceworkError, AttributeError, TypeError, ExceptionGroup)) as caught:
        await do()
    error = caught.value
    if isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert sorted(data) == sorted(row.names)
    check(error, row.error, row.remedy, **data)


def test_every_misuse_is_done():
    """Each row of the list is done here, and nothing that is not in it."""
    assert set(DONE) == set(ROWS)


# -- what they are done to ---------------------------------------------------------------------------------------


@asynccontextmanager
async def container(**services: Any) -> AsyncIterator[Container]:
    """A container with services."""
    async with Container(id="c1") as made:
        for name, factory in services.items():
            made.register(name, factory)
        yield made


async def disposed() -> Container:
    """A container after its end."""
    made = Container(id="c1")
    made.register("thing", object)
    await made.dispose()
    return made


def of_run(**factories: Any) -> Container:
    """A run's container below a workflow's and an app's; a factory is given with its scope."""
    recipes: dict[Scope, list[Recipe]] = {Scope.APP: [], Scope.WORKFLOW: []}
    for name, (scope, factory) in factories.items():
        recipes[Scope.APP if scope is Scope.APP else Scope.WORKFLOW].append(Recipe(name, factory, scope))
    parents = []
    for level, own in recipes.items():
        parents = [Container(level, level=level, registry=Registry(own), parents=parents)]
    return Container("run", id="r7", level=Scope.RUN, run_id="r7", parents=parents)


def needs(*names: str) -> Callable[[Any], Awaitable[Any]]:
    """A factory that asks for others."""

    async def factory(ctx):
        return [await ctx.require(name) for name in names]

    return factory


class Thing:
    """Something that two services are."""


def make_thing() -> Thing:
    """A service of that type."""
    return Thing()


# -- asking ------------------------------------------------------------------------------------------------------


@misuse("asked for a key that nobody registered", name="databse")
async def _():
    async with container(database=object) as made:
        await made.require("databse")


@misuse("a factory needs a key that nobody registered", name="databse", path=["daily", "reports", "databse"])
async def _():
    async with container(database=object, reports=needs("databse"), daily=needs("reports")) as made:
        await made.require("daily")


@misuse("watched a key that nobody registered", name="databse")
async def _():
    async with container(database=object) as made:
        made.watch("databse")


@misuse("overrode a key that nobody registered", name="databse")
async def _():
    async with container(database=object) as made:
        made.override("databse", object())


@misuse("asked the app for a service of a workflow's runs", name="cart")
async def _():
    run = of_run(cart=(Scope.RUN, object))
    (workflow,) = run.parents
    await workflow.require("cart")


@misuse("asked for a type that two services have", key=Thing)
async def _():
    async with container(one=make_thing, two=make_thing) as made:
        await made.require(Thing)


@misuse("read an asynchronous service as an attribute", name="slow")
async def _():
    async with container(slow=needs()) as made:
        made.require_now("slow")


@misuse("gave params to a service without param_key", name="thing")
async def _():
    async with container(thing=object) as made:
        await made.require("thing", {"tenant": "acme"})


@misuse("param_key gives no text", name="thing")
async def _():
    async with container() as made:
        made.register("thing", lambda ctx: ctx.params, param_key=lambda params: params["tenant"])
        await made.require("thing", {"tenant": 7})


@misuse("asked a container after its end", id="c1")
async def _():
    made = await disposed()
    await made.require("thing")


@misuse("asked a container after its end, for a resolution", id="c1")
async def _():
    made = await disposed()
    await made.resolve("thing")


@misuse("registered after the container's end", id="c1")
async def _():
    (await disposed()).register("other", object)


@misuse("extended a container after its end", id="c1")
async def _():
    (await disposed()).extend(Container("parent"))


@misuse("watched in a container after its end", id="c1")
async def _():
    (await disposed()).watch("thing")


@misuse("asked for a service whose container was closed before", name="thing")
async def _():
    parent = Container("parent")
    parent.register("thing", object)
    async with Container("child", parents=[parent]) as made:
        await parent.dispose()
        await made.require("thing")


@misuse("asked below a container after that one's end", id="c1")
async def _():
    async with Container("child", parents=[await disposed()]) as made:
        await made.require("thing")


@misuse("the container of a service was closed while it was built", name="slow")
async def _():
    begun = asyncio.Event()

    async def slow(ctx):
        begun.set()
        await asyncio.Event().wait()

    parent = Container("parent")
    parent.register("slow", slow)
    async with Container("child", parents=[parent]) as made:
        asking = asyncio.ensure_future(made.require("slow"))
        await begun.wait()
        await parent.dispose()
        await asking


# -- registering -------------------------------------------------------------------------------------------------


@misuse("took a key that is taken", key="thing")
async def _():
    async with container(thing=object) as made:
        made.register("thing", object)


@misuse("took a reserved key", key="__env__")
async def _():
    App("shop", services=[Service("__env__", object)])


@misuse("registered an empty name", name="")
async def _():
    Container().register("", object)


@misuse("registered what cannot be called", name="thing")
async def _():
    Container().register("thing", 7)


@misuse("registered with a scope that there is not", key="thing")
async def _():
    Container().register("thing", object, scope="singelton")


@misuse("gave a scope in the app's list of services", name="thing")
async def _():
    App("shop", services=[Service("thing", object, scope="run")])


@misuse("gave a workflow's service the scope of the app", name="thing")
async def _():
    app = App("shop", store="sqlite:///nowhere.db")
    app.workflow(flow(services=[Service("thing", object, scope="app")]))
    Service("thing", object, scope="app").recipe(Scope.WORKFLOW)


def _bad(what: str, **options: Any) -> None:
    @misuse(f"registered with {what}", name="thing")
    async def _():
        Container().register("thing", object, **options)


_bad("retries=-1", retries=-1)
_bad("timeout_seconds=0", timeout_seconds=0)
_bad("timeout_seconds=nan", timeout_seconds=math.nan)
_bad("param_limit=0", param_key=lambda params: params, param_limit=0)


@misuse("a parameter names a service that lives shorter", name="narrow", path=["wide", "narrow"])
async def _():
    def wide(narrow):
        return narrow

    flow(services=[Service("wide", wide), Service("narrow", object, scope="run")])
    of_run(wide=(Scope.WORKFLOW, wide), narrow=(Scope.RUN, object))


@misuse("`Use` names a service that lives shorter", name="narrow", path=["wide", "narrow"])
async def _():
    def wide(it: Annotated[Any, Use("narrow")]):
        return it

    of_run(wide=(Scope.WORKFLOW, wide), narrow=(Scope.RUN, object))


# -- building ----------------------------------------------------------------------------------------------------


@misuse("a factory asks for a service that lives shorter", name="narrow", path=["wide", "narrow"])
async def _():
    await of_run(wide=(Scope.WORKFLOW, needs("narrow")), narrow=(Scope.RUN, object)).require("wide")


@misuse("a service needs itself", path=["a", "a"])
async def _():
    async with container(a=needs("a")) as made:
        await made.require("a")


@misuse("two services need each other", path=["a", "b", "a"])
async def _():
    async with container(a=needs("b"), b=needs("a")) as made:
        await made.require("a")


@misuse("three services need each other in a circle", path=["a", "b", "c", "a"])
async def _():
    async with container(a=needs("b"), b=needs("c"), c=needs("a")) as made:
        await made.require("a")


@misuse("a transient service needs what needs it, across parent and child", path=["lent", "own", "lent"])
async def _():
    parent = Container("parent")
    parent.register("lent", needs("own"), scope="transient")
    async with Container("child", parents=[parent]) as child:
        child.register("own", needs("lent"))
        await child.require("lent")


@misuse("made a container its own ancestor", path=["parent", "child"])
async def _():
    parent = Container("parent")
    parent.extend(Container("child", parents=[parent]))


@misuse("a factory takes too long", name="slow")
async def _():
    async def slow(ctx):
        await asyncio.Event().wait()

    async with container() as made:
        made.register("slow", slow, timeout_seconds=0.01)
        await made.require("slow")


@misuse("what a factory reads changes while it runs, five times", name="counter")
async def _():
    state = Container.State({"n": 0})

    async def counter(ctx):
        n = ctx.select(lambda view: view["n"])
        await state.set({"n": n + 1})

    async with Container(state=state) as made:
        made.register("counter", counter)
        await made.require("counter")


@misuse("a generator that never yields", name="thing")
async def _():
    def thing():
        return
        yield

    async with container(thing=thing) as made:
        await made.require("thing")


@misuse("a generator that yields twice", name="thing")
async def _():
    def thing():
        yield 1
        yield 2

    async with container(thing=thing) as made:
        await made.require("thing")


@misuse("selected from a state that is not within reach", name="mailer")
async def _():
    async with container(mailer=lambda ctx: ctx.select(lambda view: view["tenant"])) as made:
        await made.require("mailer")


@misuse("read run_id in a service of the app", name="mailer")
async def _():
    async with container(mailer=lambda ctx: ctx.run_id) as made:
        await made.require("mailer")


# -- listening, restoring ----------------------------------------------------------------------------------------


@misuse("listened for an event that there is not", event="build:done")
async def _():
    Container().on("build:done", print)


@misuse("listened with an async function", event="build:start")
async def _():
    async def told(event):
        raise AssertionError(event)

    Container().on("build:start", told)


@misuse("watched with an async function", name="thing")
async def _():
    async def told(event):
        raise AssertionError(event)

    async with container(thing=object) as made:
        made.watch("thing").subscribe(told)


@misuse("restored a bundle of another version", version=2)
async def _():
    Container.from_(bundle={"version": 2, "artifacts": []})


# -- variables ---------------------------------------------------------------------------------------------------


@misuse("read a variable as an attribute")
async def _():
    EnvService({"HOME": "/root"}).HOME  # noqa: B018 - reading it is what is refused


@misuse("read a variable as an item")
async def _():
    EnvService({"HOME": "/root"})["HOME"]


@misuse("set a variable as an attribute", key="HOME")
async def _():
    EnvService().HOME = "/root"


@misuse("set a variable as an item", key="HOME")
async def _():
    EnvService()["HOME"] = "/root"


@misuse("deleted a variable as an attribute", key="HOME")
async def _():
    del EnvService().HOME


@misuse("deleted a variable as an item", key="HOME")
async def _():
    del EnvService()["HOME"]
