"""The container: one live scope (an app, a workflow, a run) and the services that live in it.

Recipes are found in the container's own registry first, then in its parents, in order. An instance lives in the
container of its recipe's scope on that way, and is closed with it. Opening one costs a few fields: a run that uses
no service pays for none.
"""

# ruff: noqa: SLF001 - a container reads the private parts of its parents: they are one chain

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from piecework.container.artifact import Artifact
from piecework.container.building import build, build_now
from piecework.container.closing import close_all, note_failures, outlast
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope, home, is_wider, refusal
from piecework.errors import (
    ClosedError,
    CycleError,
    InvalidScopeError,
    NotFoundError,
    TimeoutExceededError,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from piecework.container.artifact import Build
    from piecework.container.closing import Closers
    from piecework.container.registry import Key

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of asking for a service.

    Attributes:
        ok: True when there is an instance.
        instance: The service, or None.
        error: Why its factory failed, or None.
        version: How often it has been built in its container.
    """

    ok: bool
    instance: Any = None
    error: Exception | None = None
    version: int = 0


class Container:
    """Services by name and by type: built once, shared by concurrent askers, closed in reverse.

    Args:
        name: What it is, in errors.
        id: Which one it is, in errors.
        level: How long it lives: app, workflow or run. A fork is one of level transient: only what was made for it
            lives there.
        registry: Its own recipes; None until the first `register`.
        parents: Where it looks for what it does not know, in order.
        close_timeout_seconds: How long one closer may take.
        run_id: The run it belongs to, or None.
    """

    __slots__ = (
        "__weakref__",
        "_artifacts",
        "_closed",
        "_closing",
        "_parents",
        "_registry",
        "_stack",
        "builds",
        "close_failures",
        "close_timeout_seconds",
        "id",
        "level",
        "name",
        "run_id",
        "workspace",
    )

    def __init__(
        self,
        name: str = "container",
        *,
        id: str | None = None,  # noqa: A002 - the word of the field
        level: Scope = Scope.APP,
        registry: Registry | None = None,
        parents: Iterable[Container] = (),
        close_timeout_seconds: float = 10.0,
        run_id: str | None = None,
    ) -> None:
        self.name = name
        self.id = id
        self.level = level
        self.run_id = run_id
        self.workspace: Any = None
        self.close_failures: tuple[BaseException, ...] = ()
        self._registry = registry
        self._parents = tuple(parents)
        self.close_timeout_seconds = close_timeout_seconds
        self._artifacts: dict[Recipe, Artifact] | None = None
        self.builds: set[Build] = set()
        self._stack: list[Closers] | None = None
        self._closing: asyncio.Task[list[BaseException]] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<{self._title()}{' (closed)' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """True from the moment that closing begins."""
        return self._closed

    @property
    def registry(self) -> Registry:
        """The recipes of its own."""
        if self._registry is None:
            self._registry = Registry()
        return self._registry

    @property
    def parents(self) -> tuple[Container, ...]:
        """Where it looks for what it does not know, in order."""
        return self._parents

    def of_run(self) -> Container | None:
        """The container of the run it belongs to: itself, or a fork's parent; None above runs."""
        if self.level is Scope.RUN:
            return self
        if self.level is not Scope.TRANSIENT:
            return None
        return next((found for parent in self._parents if (found := parent.of_run()) is not None), None)

    def register(
        self,
        key: Key,
        factory: Callable[..., Any],
        *,
        scope: str = "singleton",
        lazy: bool = True,
        timeout_seconds: float | None = None,
        replace: bool = False,
    ) -> Callable[[], None]:
        """Adds a recipe of this container's own.

        Args:
            key: A name, or the type that the service has.
            factory: Takes nothing, one context, or services as parameters.
            scope: "singleton" keeps one instance in this container; "transient" makes one at each call.
            lazy: False builds it in `ready`.
            timeout_seconds: How long one build may take; None means without limit.
            replace: Take the place of an earlier recipe. What that one built is closed with the container.

        Returns:
            A function that takes the recipe out again.

        Raises:
            DuplicateKeyError: The name is taken or reserved.
            ValidationError: The scope is neither of the two.
            ClosedError: The container is closed.
        """
        self.check_open()
        if scope not in {"singleton", "transient"}:
            raise ValidationError(f"scope {scope!r} of {key!r}: choose 'singleton' or 'transient'", key=key)
        recipe = Recipe(
            key if isinstance(key, str) else f"{key.__module__}.{key.__qualname__}",
            factory,
            Scope.TRANSIENT if scope == "transient" else None,
            provides=None if isinstance(key, str) else key,
            lazy=lazy,
            timeout_seconds=timeout_seconds,
        )
        return self.registry.add(recipe, replace=replace)

    def extend(self, parent: Container) -> None:
        """Adds a container to look in, after the parents there are.

        Raises:
            CycleError: That container looks here itself.
        """
        if parent._reaches(self):
            raise CycleError(f"{parent!r} looks in {self!r} already: it cannot be its parent too")
        self._parents = (*self._parents, parent)

    def has(self, key: Key) -> bool:
        """Tells whether there is a recipe for a name or a type, here or in a parent."""
        return self._find(key) is not None

    def names(self) -> set[str]:
        """The names of all services that can be asked for here."""
        own = self._registry.names() if self._registry else set()
        return own.union(*(parent.names() for parent in self._parents))

    @overload
    async def require(self, key: type[T]) -> T: ...
    @overload
    async def require(self, key: str) -> Any: ...
    async def require(self, key: Key) -> Any:
        """Gives a service, and builds it first if need be; concurrent callers share one build.

        Args:
            key: Its name or its type.

        Raises:
            NotFoundError: Nobody registered it; the message has the nearest names.
            InvalidScopeError: It lives shorter than this container.
            CycleError: Services need each other in a circle; the message draws it.
            TimeoutExceededError: Its build took longer than it may.
            ClosedError: The container that it lives in is closed.
            Exception: Whatever its factory raised; the next call tries again.
        """
        return await self.require_for(key, None)

    async def resolve(self, key: Key) -> Resolution:
        """Gives a service as a `Resolution`, whose `error` tells why its factory failed.

        Raises:
            NotFoundError: Nobody registered it.
            ClosedError: The container that it lives in is closed.
        """
        return await self.resolve_for(key, None)

    def peek(self, key: Key) -> Any:
        """Gives a service that is built already, without ever building; else None."""
        found = self._find(key)
        if found is None:
            return None
        index = home(found[0].scope, [container.level for container in found[1]])
        artifacts = None if index is None else found[1][index]._artifacts
        artifact = artifacts.get(found[0]) if artifacts else None
        return artifact.instance if artifact is not None and artifact.ready else None

    @overload
    def require_now(self, key: type[T]) -> T: ...
    @overload
    def require_now(self, key: str) -> Any: ...
    def require_now(self, key: Key) -> Any:
        """Gives a service without waiting: one that is built, or whose factory and all it needs are synchronous.

        Raises:
            InvalidStateError: It has to be awaited; the message says how.
            NotFoundError: Nobody registered it; the message has the nearest names.
        """
        return self.require_now_for(key, None)

    async def ready(self) -> None:
        """Builds the services of its own that were declared with `lazy=False`.

        Raises:
            Exception: Whatever the first failing factory raised.
        """
        for recipe in self.registry:
            if not recipe.lazy and recipe.scope in {None, self.level}:
                await self.require(recipe.name)

    async def dispose(self) -> None:
        """Closes all that lives here, the last built first; every closer runs, and none is cut short by a cancel.

        A second call, also a concurrent one, waits for the first to end and does nothing else.

        Raises:
            ExceptionGroup: What failed, after all closers ran; also for a single failure.
        """
        await self.finish(None)

    async def finish(self, error: BaseException | None) -> None:
        """Closes like `dispose`, after a body that ended with `error`.

        Args:
            error: It wins: what fails while closing is written onto it as notes. None raises that as a group.

        Raises:
            ExceptionGroup: What failed, when the body did not.
            asyncio.CancelledError: The caller was cancelled meanwhile; it wins over all, after the last closer.
        """
        if self._closed:
            await self._join()
            return
        self._closed = True
        if not self.builds and not any(closers.callbacks for closers in self._stack or ()):
            self._artifacts = self._stack = None
            return
        self._closing = asyncio.create_task(self._close(), name=f"close {self.name}")
        cancelled = await outlast(self._closing)
        self.close_failures = tuple(self._closing.result())
        winner = cancelled or error
        if winner is not None:
            note_failures(winner, self.close_failures)
        if cancelled is not None:
            raise cancelled
        if self.close_failures and error is None:
            raise BaseExceptionGroup(f"{self.name} close", self.close_failures)

    async def __aenter__(self) -> Self:
        self.check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.finish(error)

    async def _join(self) -> None:
        # A closer that closes its own container would wait for itself.
        if self._closing is None or self._closing is asyncio.current_task():
            return
        cancelled = await outlast(self._closing)
        if cancelled is not None:
            raise cancelled

    async def _close(self) -> list[BaseException]:
        tasks = {build.task: build.name for build in self.builds if build.task is not None}
        for task in tasks:
            task.cancel()
        stuck: set[asyncio.Task[None]] = set()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=self.close_timeout_seconds)
        failures: list[BaseException] = [
            TimeoutExceededError(
                f"the factory of service {tasks[task]!r} went on for {self.close_timeout_seconds:g} s after it had "
                "been cancelled: let it pass CancelledError on",
                name=tasks[task],
            )
            for task in stuck
        ]
        failures += await close_all(self._stack or [], self.close_timeout_seconds)
        self._artifacts = self._stack = None
        return failures

    async def require_for(self, key: Key, asker: Build | None) -> Any:
        """Does what `require` does, on behalf of the factory that asks."""
        return (await self._obtain(*self._locate(key, asker), asker)).instance

    async def resolve_for(self, key: Key, asker: Build | None) -> Resolution:
        """Does what `resolve` does, on behalf of the factory that asks."""
        recipe, owner = self._locate(key, asker)
        try:
            artifact = await self._obtain(recipe, owner, asker)
        except Exception as error:  # noqa: BLE001 - handed to the caller, who asked for it as a value
            return Resolution(ok=False, error=error)
        return Resolution(ok=True, instance=artifact.instance, version=artifact.version)

    def require_now_for(self, key: Key, asker: Build | None) -> Any:
        """Does what `require_now` does, on behalf of the factory that asks."""
        recipe, owner = self._locate(key, asker)
        artifact = owner._artifact(recipe)
        if not artifact.ready:
            build_now(artifact, owner, asker, apart=is_wider(owner.level, self.level))
        return artifact.instance

    def keep(self, build: Build, *, late: bool = False) -> None:
        """Keeps what a build opened, to close it in reverse: a service completes after all it needs."""
        if not build.closers.callbacks and not late:
            return
        if self._stack is None:
            self._stack = []
        self._stack.append(build.closers)

    def check_open(self) -> None:
        """Refuses any use once closing has begun.

        Raises:
            ClosedError: The message says which container.
        """
        if self._closed:
            raise ClosedError(f"{self._title()} is closed: open a new one", id=self.id)

    async def _obtain(self, recipe: Recipe, owner: Container, asker: Build | None) -> Artifact:
        artifact = owner._artifact(recipe)
        if artifact.ready:
            return artifact
        return await build(artifact, owner, asker, apart=is_wider(owner.level, self.level))

    def _artifact(self, recipe: Recipe) -> Artifact:
        if recipe.scope is Scope.TRANSIENT:
            return Artifact(recipe)
        if self._artifacts is None:
            self._artifacts = {}
        artifact = self._artifacts.get(recipe)
        if artifact is None:
            artifact = self._artifacts[recipe] = Artifact(recipe)
        return artifact

    def _locate(self, key: Key, asker: Build | None) -> tuple[Recipe, Container]:
        """Finds the recipe and the container that its instance lives in; both have to be open."""
        self.check_open()
        found = self._find(key)
        if found is None:
            raise self._unknown(key, asker)
        recipe, way = found
        index = home(recipe.scope, [container.level for container in way])
        if index is None:
            assert recipe.scope is not None
            chain = asker.chain() if asker else []
            raise InvalidScopeError(refusal(recipe.name, recipe.scope, self.level, chain), name=recipe.name)
        way[index].check_open()
        return recipe, way[index]

    def _find(self, key: Key) -> tuple[Recipe, tuple[Container, ...]] | None:
        """Finds the nearest recipe, and the containers on the way to it, this one first."""
        if self._registry is not None and (recipe := self._registry.get(key)) is not None:
            return recipe, (self,)
        for parent in self._parents:
            found = parent._find(key)
            if found is not None:
                return found[0], (self, *found[1])
        return None

    def _unknown(self, key: Key, asker: Build | None) -> NotFoundError:
        name = key if isinstance(key, str) else key.__qualname__
        hint = f"Needed by {' -> '.join([*asker.chain(), name])}" if asker else ""
        return NotFoundError.among("service", name, self.names(), hint=hint)

    def _reaches(self, other: Container) -> bool:
        return self is other or any(parent._reaches(other) for parent in self._parents)

    def _title(self) -> str:
        return f"{self.name} {self.id}" if self.id else self.name
