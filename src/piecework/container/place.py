"""Where a container stands: what it looks in, who looks in it, and which recipes it has of its own."""

# ruff: noqa: SLF001 - a container reads the private parts of its parents: they are one chain

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

from piecework.clock import SystemClock
from piecework.container.plan import Plans
from piecework.container.registry import Registry
from piecework.container.scope import Scope
from piecework.errors import ClosedError, CycleError, DisposedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator

    from piecework.clock import Clock
    from piecework.container.container import Container
    from piecework.container.graph import Graph
    from piecework.container.registry import Recipe
    from piecework.container.state import State

_identity = id


class Place:
    """A container's place in its chain; its arguments are those of `Container`."""

    # What most containers never change is kept with the class: opening one is to cost next to nothing.
    workspace: Any = None
    watched: bool = False
    quick: bool = True
    id: str | None = None
    run_id: str | None = None
    close_timeout_seconds: float = 10.0
    _closed: bool = False
    _graph: Graph | None = None
    _registry: Registry | None = None
    _plans: Plans | None = None
    _owns_plans: bool = False
    _state: State | None = None
    _clock: Clock | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _children: dict[int, weakref.ref[Place]] | None = None

    def __init__(
        self,
        name: str = "container",
        *,
        id: str | None = None,  # noqa: A002 - the word of the field
        state: State | None = None,
        level: Scope = Scope.APP,
        registry: Registry | None = None,
        parents: Iterable[Container] = (),
        clock: Clock | None = None,
        close_timeout_seconds: float = 10.0,
        run_id: str | None = None,
    ) -> None:
        self.name = name
        self.level = level
        self.instances: dict[Recipe, Any] = {}
        self.parents = parents if type(parents) is tuple else tuple(parents)
        if id is not None:
            self.id = id
        if run_id is not None:
            self.run_id = run_id
        if state is not None:
            self._state = state
        if clock is not None:
            self._clock = clock
        if close_timeout_seconds != 10.0:
            self.close_timeout_seconds = close_timeout_seconds
        if registry is None and len(self.parents) == 1:
            (parent,) = self.parents
            if parent._owns_plans and parent._plans is not None:
                self._plans = parent._plans.below(level)
        else:
            self._registry = registry
            self._own_plans()
        if level is not Scope.TRANSIENT:
            for parent in self.parents:
                if parent._children is None:
                    parent._begin_children()
                parent._children[_identity(self)] = weakref.ref(self)  # type: ignore[index]  # it has them now

    def __repr__(self) -> str:
        return f"<{self.title}{' (closed)' if self._closed else ''}>"

    @property
    def title(self) -> str:
        """What it is and which one, for messages."""
        return f"{self.name} {self.id}" if self.id else self.name

    @property
    def closed(self) -> bool:
        """True from the moment that closing begins."""
        return self._closed

    @property
    def state(self) -> State | None:
        """What factories here select from: its own, of a fork that of what it is a fork of; or None."""
        if self._state is None and self.level is Scope.TRANSIENT and self.parents:
            return self.parents[0].state
        return self._state

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that builds services here, or in its first parent; None where none is known."""
        if self._loop is None and self.parents:
            return self.parents[0].loop
        return self._loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sets the event loop that builds services here."""
        self._loop = loop

    @property
    def clock(self) -> Clock:
        """What pauses are measured with."""
        if self._clock is None:
            self._clock = self.parents[0].clock if self.parents else SystemClock()
        return self._clock

    @property
    def registry(self) -> Registry:
        """The recipes of its own."""
        if self._registry is None:
            self._registry = Registry()
            if self.level is Scope.TRANSIENT:
                self._hook()
            if self._owns_plans and self._plans is not None:
                self._plans.registry = self._registry
                self._registry.plans.add(self._plans)
            else:
                self._own_plans()
        return self._registry

    def of_run(self) -> Place | None:
        """The container of the run it belongs to: itself, or a fork's parent; None above runs."""
        if self.level is Scope.RUN:
            return self
        if self.level is not Scope.TRANSIENT:
            return None
        return next((found for parent in self.parents if (found := parent.of_run()) is not None), None)

    def extend(self, parent: Container) -> None:
        """Adds a container to look in, after the parents there are.

        Raises:
            CycleError: That container looks here itself.
            ClosedError: One of the two is closed.
        """
        self.check_open()
        parent.check_open()
        if parent._reaches(self):
            raise CycleError(
                f"{parent!r} looks in {self!r} already: it cannot be its parent too", path=[self.title, parent.title]
            )
        self.parents = (*self.parents, parent)
        if self._owns_plans and self._plans is not None:
            self._plans.hang_on(parent._own_plans())
        else:
            self._own_plans()
        parent._adopt(self)

    def names(self) -> set[str]:
        """The names of all services that can be asked for here."""
        own = self._registry.names() if self._registry is not None else set()
        return own.union(*(parent.names() for parent in self.parents))

    def check_open(self) -> None:
        """Refuses any use once closing has begun.

        Raises:
            ClosedError: The message says which container.
        """
        if self._closed:
            raise ClosedError(f"{self.title} is closed: open a new one", id=self.id)

    @property
    def plans(self) -> Plans:
        """Where keys lead from here."""
        if self._plans is not None:
            return self._plans
        self.check_open()
        parent = self.parents[0]
        if parent.closed:
            raise DisposedError(f"{self.title} is below {parent.title}, which is closed: open a new one", id=parent.id)
        # Its parent may come to have recipes of its own at any time, so what it shares is looked up each time.
        return parent.plans.below(self.level)

    def observe(self) -> None:
        """From now on everything here is built the long way, which keeps records: somebody looks, or has changed it."""
        self.watched = True
        self.quick = False

    def waited_for(self) -> bool:
        """Whether an instance further up was replaced and waits for what still uses it."""
        for parent in self.parents:
            if (parent._graph is not None and parent._graph.retired) or (parent.parents and parent.waited_for()):
                return True
        return False

    def sweep(self) -> None:
        """Looks, here and further up, for instances that were replaced and that nothing alive was made from."""
        graph = self._graph
        if graph is not None and graph.retired:
            graph.sweep()
        for parent in self.parents:
            parent.sweep()

    def up(self, way: tuple[int, ...]) -> Container:
        """The container that a way through parents leads to."""
        owner = cast("Container", self)
        for index in way:
            owner = owner.parents[index]
        return owner

    @property
    def is_used(self) -> bool:
        """Whether containers look in this one whose closers have not all ended."""
        return self._children is not None and any(self.children(closing=True))

    def children(self, *, closing: bool = False) -> Iterator[Any]:
        """The open containers that look in this one.

        Args:
            closing: Also those whose closers have not ended yet.
        """
        for key, reference in tuple((self._children or {}).items()):
            child = reference()
            if child is not None and (closing or not child.closed):
                yield child
            elif child is None and self._children is not None and self._children.get(key) is reference:
                del self._children[key]

    def _own_plans(self) -> Plans:
        """Plans of its own: it has recipes of its own, several parents, or others look in it."""
        if not self._owns_plans or self._plans is None:
            above = tuple(parent._own_plans() for parent in self.parents)
            self._plans = Plans(self.level, self._registry, above)
            self._plans.owner = weakref.ref(self)
            self._owns_plans = True
        return self._plans

    def _hook(self) -> None:
        for parent in self.parents:
            parent._adopt(self)

    def _adopt(self, child: Place) -> None:
        if self._children is None:
            self._begin_children()
        assert self._children is not None
        self._children[id(child)] = weakref.ref(child)

    def _begin_children(self) -> None:
        self._children = {}
        if self.level is Scope.TRANSIENT:
            self._hook()  # those above find them through it

    def _reaches(self, other: Place) -> bool:
        return self is other or any(parent._reaches(other) for parent in self.parents)
