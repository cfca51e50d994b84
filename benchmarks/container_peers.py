"""What the benchmark of the container compares: one graph of services, as ours and as each peer would have it written.

An app has one `Config`. Each scope has a `Session` and a `Mailer`, made of the config; a `Repo` of the session, an
`Audit` of the repo, a `Handler` of the repo and the mailer. Each of the five is asked for by its type. The classes
are their own factories; with finalizers session and mailer come from asynchronous generators.

Where a library builds a service of a scope twice when two tasks ask at once, unless told otherwise, it is measured as
it comes and told otherwise: ours always builds once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator  # noqa: TC003 - containers read annotations at run time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import dishka
import svcs
import that_depends
import wireup
from dishka import new_scope
from that_depends import providers
from wireup import Injected

from piecework.container.container import Container
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from contextlib import AbstractAsyncContextManager

OURS = "piecework"


class Config:
    """The app's."""


class Session:
    """A scope's, with a finalizer where there are some."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.open = True


class Mailer:
    """A scope's, with a finalizer where there are some."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.open = True


class Repo:
    """A scope's."""

    def __init__(self, session: Session) -> None:
        self.session = session


class Audit:
    """A scope's."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo


class Handler:
    """A scope's, and the one that needs the most."""

    def __init__(self, repo: Repo, mailer: Mailer) -> None:
        self.repo = repo
        self.mailer = mailer


KEYS: tuple[type[Any], ...] = (Session, Repo, Mailer, Audit, Handler)
WITHOUT: tuple[type[Any], ...] = (Repo, Audit, Handler)


@dataclass(frozen=True, slots=True)
class Graph:
    """How session and mailer are made.

    Attributes:
        finalizers: By asynchronous generators, which have a finalizer each.
        turn: Each finalizer waits for one turn of the event loop.
        slow: Each is made after one turn of the event loop; to see who builds twice.
    """

    finalizers: bool = False
    turn: bool = False
    slow: bool = False

    @property
    def session(self) -> Callable[..., Any]:
        """What makes a session of a config."""

        async def session(config: Config) -> AsyncIterator[Session]:
            if self.slow:
                await asyncio.sleep(0)
            made = Session(config)
            yield made
            made.open = False
            if self.turn:
                await asyncio.sleep(0)

        return session if self.finalizers else Session

    @property
    def mailer(self) -> Callable[..., Any]:
        """What makes a mailer of a config."""

        async def mailer(config: Config) -> AsyncIterator[Mailer]:
            if self.slow:
                await asyncio.sleep(0)
            made = Mailer(config)
            yield made
            made.open = False
            if self.turn:
                await asyncio.sleep(0)

        return mailer if self.finalizers else Mailer


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to have the five services.

    Attributes:
        name: The library, and what it was told.
        scopes: Opens a scope, asks for the five and closes it, as often as it is told.
        enter: Opens one scope.
        ask: What gives a service of an open scope, by its key.
        keys: What the five are asked for by, in the order of `KEYS`.
        beside: Measured only to be told: it does not do what the others do.
    """

    name: str
    scopes: Callable[[int], Awaitable[None]]
    enter: Callable[[], AbstractAsyncContextManager[Any]]
    ask: Callable[[Any], Callable[[Any], Awaitable[Any]]]
    keys: Sequence[Any] = KEYS
    beside: bool = False


def contenders(graph: Graph) -> list[Contender]:
    """All of them, ours first."""
    return [
        ours(graph),
        *_wireup(graph),
        _wireup_safe(graph),
        _dishka(graph, "dishka", dishka.Scope, dishka.Scope.REQUEST),
        _dishka(graph, "dishka, locked", dishka.Scope, dishka.Scope.REQUEST, lock_factory=asyncio.Lock),
        _dishka(graph, "dishka, two scopes", TwoScopes, TwoScopes.REQUEST),
        _svcs(graph),
        _that_depends(graph),
    ]


def recipes(graph: Graph, mailer: Callable[..., Any] | None = None) -> Registry:
    """The graph as ours, with another factory for the mailer if one is given."""
    return Registry(
        [
            Recipe("config", Config, Scope.APP),
            Recipe("session", graph.session, Scope.RUN),
            Recipe("repo", Repo, Scope.RUN),
            Recipe("mailer", mailer or graph.mailer, Scope.RUN),
            Recipe("audit", Audit, Scope.RUN),
            Recipe("handler", Handler, Scope.RUN),
        ]
    )


def ours(graph: Graph, name: str = OURS, app: Container | None = None) -> Contender:
    """As it comes: it builds once. Its app is a new one unless one is given."""
    parents = (app or Container("app", registry=recipes(graph), level=Scope.APP),)

    def enter() -> Container:
        return Container("run", level=Scope.RUN, parents=parents)

    async def scopes(times: int) -> None:
        for _ in range(times):
            async with Container("run", level=Scope.RUN, parents=parents) as scope:
                for key in KEYS:
                    await scope.require(key)

    return Contender(name, scopes, enter, lambda scope: scope.require)


def _wireup_container(graph: Graph, *, safe: bool) -> wireup.AsyncContainer:
    scoped = wireup.injectable(lifetime="scoped")
    services = [wireup.injectable(Config), *map(scoped, (graph.session, graph.mailer, *WITHOUT))]
    return wireup.create_async_container(injectables=services, concurrent_scoped_access=safe)


def _wireup(graph: Graph) -> list[Contender]:
    """As it comes; and, beside, with the five injected into a function instead of asked for."""
    container = _wireup_container(graph, safe=False)

    async def scopes(times: int) -> None:
        for _ in range(times):
            async with container.enter_scope() as scope:
                for key in KEYS:
                    await scope.get(key)

    @wireup.inject_from_container(container)
    async def function(
        session: Injected[Session],
        repo: Injected[Repo],
        mailer: Injected[Mailer],
        audit: Injected[Audit],
        handler: Injected[Handler],
    ) -> None: ...

    async def calls(times: int) -> None:
        for _ in range(times):
            await function()

    return [
        Contender("wireup", scopes, container.enter_scope, lambda scope: scope.get),
        Contender("wireup, injected", calls, container.enter_scope, lambda scope: scope.get, beside=True),
    ]


def _wireup_safe(graph: Graph) -> Contender:
    container = _wireup_container(graph, safe=True)

    async def scopes(times: int) -> None:
        for _ in range(times):
            async with container.enter_scope() as scope:
                for key in KEYS:
                    await scope.get(key)

    return Contender("wireup, locked", scopes, container.enter_scope, lambda scope: scope.get)


class TwoScopes(dishka.BaseScope):
    """No more scopes than there are here: dishka opens the ones in between as well."""

    APP = new_scope("APP")
    REQUEST = new_scope("REQUEST")


def _dishka(graph: Graph, name: str, scopes: Any, scope: Any, **options: Any) -> Contender:
    provider = dishka.Provider()
    provider.provide(Config, scope=scopes.APP)
    factories: tuple[Callable[..., Any], ...] = (graph.session, graph.mailer, *WITHOUT)
    for factory in factories:
        provider.provide(factory, scope=scope)
    container = dishka.make_async_container(provider, scopes=scopes)

    async def opened(times: int) -> None:
        for _ in range(times):
            async with container(**options) as inner:
                for key in KEYS:
                    await inner.get(key)

    return Contender(name, opened, partial(container, **options), lambda inner: inner.get)


def _svcs(graph: Graph) -> Contender:
    """As it comes; it has nothing against building twice. It gives several services at one call."""
    registry = svcs.Registry()
    registry.register_value(Config, Config())
    for key, factory in (_svcs_finalized(graph) if graph.finalizers else _svcs_plain()).items():
        registry.register_factory(key, factory)

    async def scopes(times: int) -> None:
        for _ in range(times):
            async with svcs.Container(registry) as scope:
                await scope.aget(Session, Repo, Mailer, Audit, Handler)

    return Contender("svcs", scopes, partial(svcs.Container, registry), lambda scope: scope.aget)


def _svcs_plain() -> dict[type, Callable[..., Any]]:
    return {
        Session: lambda svcs_container: Session(svcs_container.get(Config)),
        Mailer: lambda svcs_container: Mailer(svcs_container.get(Config)),
        Repo: lambda svcs_container: Repo(svcs_container.get(Session)),
        Audit: lambda svcs_container: Audit(svcs_container.get(Repo)),
        Handler: lambda svcs_container: Handler(svcs_container.get(Repo), svcs_container.get(Mailer)),
    }


def _svcs_finalized(graph: Graph) -> dict[type, Callable[..., Any]]:
    async def session(svcs_container: svcs.Container) -> AsyncIterator[Session]:
        if graph.slow:
            await asyncio.sleep(0)
        made = Session(svcs_container.get(Config))
        yield made
        made.open = False
        if graph.turn:
            await asyncio.sleep(0)

    async def mailer(svcs_container: svcs.Container) -> AsyncIterator[Mailer]:
        if graph.slow:
            await asyncio.sleep(0)
        made = Mailer(svcs_container.get(Config))
        yield made
        made.open = False
        if graph.turn:
            await asyncio.sleep(0)

    async def repo(svcs_container: svcs.Container) -> Repo:
        return Repo(await svcs_container.aget(Session))

    async def audit(svcs_container: svcs.Container) -> Audit:
        return Audit(await svcs_container.aget(Repo))

    async def handler(svcs_container: svcs.Container) -> Handler:
        return Handler(await svcs_container.aget(Repo), await svcs_container.aget(Mailer))

    return {Session: session, Mailer: mailer, Repo: repo, Audit: audit, Handler: handler}


def _that_depends(graph: Graph) -> Contender:
    """As it comes: it builds once. Asked is a provider, not a type; what a scope keeps has to come from a generator."""
    config = providers.Singleton(Config)
    session: Any = providers.ContextResource(graph.session if graph.finalizers else _yields(Session), config)
    mailer: Any = providers.ContextResource(graph.mailer if graph.finalizers else _yields(Mailer), config)
    repo: Any = providers.ContextResource(_yields(Repo), session)
    audit: Any = providers.ContextResource(_yields(Audit), repo)
    handler: Any = providers.ContextResource(_yields(Handler), repo, mailer)
    five = (session, repo, mailer, audit, handler)

    def enter() -> AbstractAsyncContextManager[Any]:
        return that_depends.container_context(*five)

    async def scopes(times: int) -> None:
        for _ in range(times):
            async with that_depends.container_context(*five):
                for provider in five:
                    await provider.resolve()

    return Contender("that-depends", scopes, enter, lambda _: providers.ContextResource.resolve, five)


def _yields(made_by: type[Any]) -> Callable[..., Iterator[Any]]:
    def make(*needed: Any) -> Iterator[Any]:
        yield made_by(*needed)

    return make
