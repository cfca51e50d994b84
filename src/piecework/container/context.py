"""What a factory sees while it makes a service."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

from piecework.errors import InvalidScopeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.container.artifact import Build
    from piecework.container.container import Container, Resolution
    from piecework.container.registry import Key


class Dependencies:
    """What the function given to `use` may ask: `resolve`, `require` and `select`, nothing else."""

    __slots__ = ("require", "resolve", "select")

    def __init__(
        self,
        resolve: Callable[[Key], Awaitable[Resolution]],
        require: Callable[[Key], Awaitable[Any]],
        select: Callable[[Callable[[Any], Any]], Any],
    ) -> None:
        self.resolve = resolve
        self.require = require
        self.select = select


class FactoryContext:
    """What a factory may use while it makes a service."""

    __slots__ = ("_build",)

    def __init__(self, build: Build) -> None:
        self._build = build

    async def require(self, key: Key) -> Any:
        """Gives another service; what this one needs is closed after it.

        Args:
            key: Its name or its type.

        Raises:
            NotFoundError: Nobody registered it; the message names the services that led here.
            InvalidScopeError: It does not live as long as the service being made.
            CycleError: It needs the service being made; the message draws the circle.
        """
        return await self._build.home.require_for(key, self._build)

    async def resolve(self, key: Key) -> Resolution:
        """Gives another service as a `Resolution`, whose `error` tells why its factory failed.

        Raises:
            NotFoundError: Nobody registered it.
            InvalidScopeError: It does not live as long as the service being made.
        """
        return await self._build.home.resolve_for(key, self._build)

    async def use(self, fn: Callable[[Dependencies], Any]) -> Any:
        """Calls `fn` with an object that has `resolve`, `require` and `select`; awaits what it returns."""
        result = fn(Dependencies(self.resolve, self.require, self.select))
        return await result if inspect.isawaitable(result) else result

    def select(self, fn: Callable[[Any], Any]) -> NoReturn:
        """Reads the state of the run; there is none within reach of a factory so far.

        Raises:
            InvalidScopeError: Always.
        """
        raise InvalidScopeError(
            f"service {self._build.name!r} cannot select {getattr(fn, '__name__', fn)!r}: no state of a run is within "
            "its reach. Give it scope 'run' or 'transient' in a workflow, or pass the value at the call",
            name=self._build.name,
        )

    def on_cleanup(self, fn: Callable[[], Any]) -> None:
        """Has `fn` called, and awaited if it is async, when the service is closed or its build fails.

        Raises:
            ClosedError: The service was built and closed already.
        """
        build = self._build
        if build.artifact.ready:
            build.home.check_open()
            if not build.closers.callbacks:
                build.home.keep(build, late=True)
        build.closers.callbacks.append(fn)

    @property
    def run_id(self) -> str | None:
        """The run that the service is made for; None in a workspace that has no run.

        Raises:
            InvalidScopeError: The service is shared by runs.
        """
        return self._of_run("run_id").run_id

    @property
    def workspace(self) -> Any:
        """The workspace that asks, for a transient service; the root workspace, for one of scope run.

        Raises:
            InvalidScopeError: The service is shared by workspaces.
        """
        self._of_run("workspace")
        return self._build.home.workspace

    @property
    def current(self) -> Any:
        """The instance that the one being made will replace, or None."""
        artifact = self._build.artifact
        return artifact.instance if artifact.ready else None

    def _of_run(self, wanted: str) -> Container:
        container = self._build.home.of_run()
        if container is None:
            raise InvalidScopeError(
                f"service {self._build.name!r} lives in scope {self._build.home.level}, which has no {wanted}: "
                "give it scope 'run' or 'transient'",
                name=self._build.name,
            )
        return container
