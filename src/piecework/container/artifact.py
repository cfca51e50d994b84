"""What a container keeps of a service: the `Artifact`, each instance with its history (`Made`), a build under way."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from piecework.container.scope import Scope
from piecework.errors import CycleError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from piecework.container.container import Container
    from piecework.container.reactive import Reading
    from piecework.container.registry import Recipe
    from piecework.container.streaming import Stream
    from piecework.container.watching import Change

_order = count(1)


class Artifact:
    """A service in the container that it lives in; of a family, one for each parameter.

    Attributes:
        recipe: How it is made.
        home: The container that it lives in.
        param: What names it in its family, or None.
        params: What it was asked for with, or None.
        made: Its newest instance; None when there is none.
        fresh: True when that instance may be given away: nothing that it was made from has changed.
        version: How often it has been made.
        error: Why its last build failed, or None.
        build: The build under way that all askers share, or None.
        gone: That its recipe was taken out: who waits for it is the last to get it.
    """

    # Thousands come and go with their runs: what most of them never change is kept with the class.
    param: str | None = None
    params: Any = None
    made: Made | None = None
    fresh: bool = False
    version: int = 0
    error: Exception | None = None
    build: Build | None = None
    gone: bool = False

    def __init__(self, recipe: Recipe, home: Container, param: str | None = None, params: Any = None) -> None:
        self.recipe = recipe
        self.home = home
        if param is not None:
            self.param = param
        if params is not None:
            self.params = params

    @property
    def name(self) -> str:
        """The service's name, of a family with its parameter."""
        return self.recipe.name if self.param is None else f"{self.recipe.name}:{self.param}"

    @property
    def status(self) -> str:
        """One of idle, building, ready, stale, error and disposed."""
        if self.home.closed:
            return "disposed"
        if self.build is not None:
            return "building"
        if self.fresh:
            return "ready"
        if self.error is not None:
            return "error"
        return "stale" if self.version else "idle"

    @property
    def is_awaited(self) -> bool:
        """Whether it is being built, or was and has not reached all who wait for it."""
        return self.build is not None or (self.made is not None and bool(self.made.waiters))

    @property
    def watchers(self) -> list[Callable[[Change], Any]]:
        """Who is told of its changes; they watch what the name means now."""
        watchers = self.home.graph.watchers.get((self.recipe.name, self.param))
        if not watchers or self.gone:
            return []
        if self.recipe.scope is Scope.TRANSIENT and not self.home.closed:
            plan = self.home.plans.look(self.recipe.name)
            return watchers if plan is not None and plan.recipe is self.recipe else []
        return watchers

    @property
    def wanted(self) -> bool:
        """Whether somebody counts on its being there: it is watched, or was declared with `lazy=False`."""
        return not self.gone and (bool(self.watchers) or not self.recipe.lazy)

    @property
    def reacts(self) -> bool:
        """Whether its newest instance selected something of the state."""
        return self.made is not None and bool(self.made.readings)


class Made:
    """One instance of a service, while it is made and after: what it was made from, and what closes it.

    Attributes:
        artifact: Whose.
        build: The build that made it; None for one that was restored or made the quick way.
        instance: The service itself, once it is made.
        order: Its place in the order in which instances were completed; 0 before.
        uses: What it was made from.
        readings: What it selected of the state.
        closers: What has to run when it is let go, the last first: functions, and async generators to be ended.
        stream: What publishes further values of it, or None.
        wired: False while what its parameters name is not noted in `uses` yet.
        spoiled: That something it uses was taken away while it was made.
        closed: That its closers have begun to run.
        waiters: Who waited for it and has not been given it yet.
    """

    instance: Any = None
    order: int = 0
    readings: list[Reading] | None = None
    stream: Stream | None = None
    wired: bool = True
    spoiled: bool = False
    closed: bool = False
    waiters: list[asyncio.Future[None]] | tuple[asyncio.Future[None], ...] = ()

    def __init__(self, artifact: Artifact, build: Build | None) -> None:
        self.artifact = artifact
        self.build = build
        self.uses: list[Made] = []
        self.closers: list[Any] = []

    def complete(self, instance: Any) -> None:
        """Takes the instance and its place in the order of completion: after all it was made from."""
        self.instance = instance
        self.order = next(_order)

    @property
    def is_transient(self) -> bool:
        """Whether whoever asked has it alone."""
        return self.artifact.recipe.scope is Scope.TRANSIENT

    @property
    def is_given(self) -> bool:
        """Whether it is what those who ask are given now."""
        artifact = self.artifact
        return artifact.fresh and artifact.made is self and not (artifact.gone or artifact.home.closed)

    def settled(self) -> bool:
        """Tells whether all that it read and used is still so."""
        if self.spoiled:
            return False
        if self.readings:
            state = self.artifact.home.state
            if state is None or any(reading.changed(state.data) for reading in self.readings):
                return False
        return not self.uses or all(used.settled() if used.is_transient else used.is_given for used in self.uses)

    def stands_on(self, others: set[Made]) -> bool:
        """Tells whether it was made from one of `others`, at any remove."""
        return any(used in others or used.stands_on(others) for used in self.uses)


class Build:
    """The making of a service that all askers share, over all its attempts.

    Attributes:
        artifact: Of which service.
        asker: What is being made that asked for this one first, or None.
        attempt: Which one is under way, from 1.
        began: When, in seconds of a clock that never runs backwards; None where nobody listens.
        made: What the attempt makes.
        waits: The builds that it waits for now.
        task: Where it goes on, when it needs the event loop.
        runner: The task that runs its factory now, or None.
        error: Why it failed, or None.
        ended: True when it is over, whatever it came to.
        waiters: Who waits for it.
    """

    attempt: int = 1
    began: float | None = None
    task: asyncio.Task[None] | None = None
    runner: asyncio.Task[Any] | None = None
    error: Exception | None = None
    ended: bool = False
    waits: list[Build] | tuple[Build, ...] = ()
    waiters: list[asyncio.Future[None]] | tuple[asyncio.Future[None], ...] = ()

    def __init__(self, artifact: Artifact, asker: Made | None) -> None:
        self.artifact = artifact
        self.asker = asker
        self.made = Made(artifact, self)

    @property
    def recipe(self) -> Recipe:
        """How the service is made."""
        return self.artifact.recipe

    @property
    def name(self) -> str:
        """The name of the service that is being made."""
        return self.artifact.name

    def askers(self) -> Iterator[Build]:
        """Walks from this build outwards to the one that was asked for directly."""
        build: Build | None = self
        while build is not None:
            yield build
            build = None if build.asker is None else build.asker.build

    def chain(self) -> list[str]:
        """Names the services that led here, the outermost first, this one last."""
        return [build.name for build in self.askers()][::-1]

    def refuse_itself(self) -> None:
        """Refuses a build that one of the same service led to: it would go on without end.

        Raises:
            CycleError: The message draws the circle.
        """
        if self.asker is None:
            return
        names = [self.name]
        for build in self.askers():
            if build is self:
                continue
            names.append(build.name)
            # Transient ones are never the same artifact twice; their recipe and home are.
            if build.recipe is self.recipe and build.artifact.param == self.artifact.param:
                raise _circle(names[::-1])

    def refuse_circle(self, asker: Build) -> None:
        """Refuses that `asker` waits for this build when this one waits for it, also when others began the two.

        Raises:
            CycleError: The message draws the circle.
        """
        way = self._way_to(asker, set())
        if way is not None:
            raise _circle([*way, self.name])

    def _way_to(self, other: Build, seen: set[Build]) -> list[str] | None:
        if self is other:
            return [self.name]
        seen.add(self)
        for waited in self.waits:
            way = None if waited in seen else waited._way_to(other, seen)  # noqa: SLF001 - another of its own kind
            if way is not None:
                return [self.name, *way]
        return None


def _circle(names: list[str]) -> CycleError:
    return CycleError(
        f"services need each other in a circle: {' -> '.join(names)}. Let one of them ask later, at its first use",
        path=names,
    )
