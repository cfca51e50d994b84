"""What a container keeps of a service (`Artifact`), and one attempt to make it (`Build`): records and their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.container.closing import Closers
from piecework.errors import CycleError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from piecework.container.container import Container
    from piecework.container.registry import Recipe


class Artifact:
    """What is kept of a service in the container it lives in.

    Attributes:
        recipe: How it is made.
        instance: The service itself, once `ready`.
        ready: True when there is an instance.
        version: How often it has been built.
        build: The build under way that all askers share, or None.
    """

    __slots__ = ("build", "instance", "ready", "recipe", "version")

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.instance: Any = None
        self.ready = False
        self.version = 0
        self.build: Build | None = None


class Build:
    """One attempt to make a service.

    Attributes:
        artifact: What becomes ready when it succeeds.
        home: The container that the instance will live in.
        asker: The build that asked for this one first, or None.
        waits: The builds that its factory waits for now; several when it asks for services concurrently.
        closers: What has to run when the instance is closed, or when the attempt fails.
        task: Where it runs, when it needs the event loop.
        error: Why it failed, or None.
        waiters: How many wait for it.
    """

    __slots__ = ("artifact", "asker", "closers", "error", "home", "task", "waiters", "waits")

    def __init__(self, artifact: Artifact, home: Container, asker: Build | None) -> None:
        self.artifact = artifact
        self.home = home
        self.asker = asker
        self.waits: list[Build] = []
        self.closers = Closers(artifact.recipe.name)
        self.task: asyncio.Task[None] | None = None
        self.error: Exception | None = None
        self.waiters = 0

    @property
    def recipe(self) -> Recipe:
        """How the service is made."""
        return self.artifact.recipe

    @property
    def name(self) -> str:
        """The name of the service that is being made."""
        return self.artifact.recipe.name

    def askers(self) -> Iterator[Build]:
        """Walks from this build outwards to the one that was asked for directly."""
        build: Build | None = self
        while build is not None:
            yield build
            build = build.asker

    def chain(self) -> list[str]:
        """Names the services that led here, the outermost first, this one last."""
        return [build.name for build in self.askers()][::-1]

    def refuse_itself(self) -> None:
        """Refuses a build that one of the same recipe led to: it would go on without end.

        Raises:
            CycleError: The message draws the circle.
        """
        names = [self.name]
        for build in self.askers():
            if build is self:
                continue
            names.append(build.name)
            if build.recipe is self.recipe:
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
