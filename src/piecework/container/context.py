"""What a factory sees while it makes a service."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, overload

from piecework.container.reactive import select as reading
from piecework.container.streaming import Stream
from piecework.errors import ClosedError, InvalidScopeError, InvalidStateError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from piecework.container.artifact import Made
    from piecework.container.container import Container, Resolution
    from piecework.container.place import Place
    from piecework.container.registry import Key
    from piecework.container.state import State

T = TypeVar("T")


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

    __slots__ = ("_made",)

    def __init__(self, made: Made) -> None:
        self._made = made

    @overload
    async def require(self, key: type[T], params: Any = None) -> T: ...
    @overload
    async def require(self, key: str, params: Any = None) -> Any: ...
    async def require(self, key: Key, params: Any = None) -> Any:
        """Gives another service; what this one needs is closed after it, and a change of it makes this one stale.

        Args:
            key: Its name or its type.
            params: Which one of a family.

        Raises:
            NotFoundError: Nobody registered it; the message names the services that led here.
            InvalidScopeError: It does not live as long as the service being made.
            CycleError: It needs the service being made; the message draws the circle.
        """
        return await self._home.require_for(key, self._made, params)

    async def resolve(self, key: Key, params: Any = None) -> Resolution:
        """Gives another service as a `Resolution`, whose `error` tells why its factory failed.

        Raises:
            NotFoundError: Nobody registered it.
            InvalidScopeError: It does not live as long as the service being made.
        """
        return await self._home.resolve_for(key, self._made, params)

    async def use(self, fn: Callable[[Dependencies], Any]) -> Any:
        """Calls `fn` with an object that has `resolve`, `require` and `select`; awaits what it returns."""
        result = fn(Dependencies(self.resolve, self.require, self.select))
        return await result if inspect.isawaitable(result) else result

    def select(self, fn: Callable[[Any], Any]) -> Any:
        """Reads the state, and has the service made anew when what was selected is another value.

        Args:
            fn: Gets a read-only view of the state; any pure function.

        Returns:
            What it selected, as plain values.

        Raises:
            InvalidScopeError: No state is within reach of the service.
        """
        state = self._state("select from")
        if self._made.is_transient:
            return reading(fn, state.data).value
        found = reading(fn, state.data)
        self._made.readings = [*(self._made.readings or ()), found]
        return found.value

    def state(self) -> dict[str, Any]:
        """A copy of the state. Reading it this way does not make the service react: `select` does.

        Raises:
            InvalidScopeError: No state is within reach of the service.
        """
        return self._state("read").get()

    def stream(self, values: AsyncIterable[Any]) -> Stream:
        """Has the service become each of `values` in turn, without being made anew.

        Args:
            values: Goes on until the service is let go, which also closes it. When it raises, the service is stale.

        Returns:
            Awaited, the first value: `return await ctx.stream(values)`. Not awaited, the factory returns what the
            service is until the first value arrives.

        Raises:
            InvalidStateError: There is a stream already, or the service is transient.
        """
        made = self._made
        if made.stream is not None or made.is_transient or made.order:
            raise InvalidStateError(
                f"service {made.artifact.name!r} can have one stream, begun in its factory, and none when transient",
                name=made.artifact.name,
            )
        made.stream = Stream(made, values)
        made.closers.append(made.stream.end)
        return made.stream

    def on_cleanup(self, fn: Callable[[], Any]) -> None:
        """Has `fn` called, and awaited if it is async, when the service is closed or its build fails.

        Raises:
            ClosedError: The service was built and closed already.
        """
        made = self._made
        if made.closed:
            self._home.check_open()
            raise ClosedError(f"service {made.artifact.name!r} was closed already: nothing would call {fn!r:.80}")
        made.closers.append(fn)
        if made.order:
            self._home.graph.stack.setdefault(made)

    @property
    def params(self) -> Any:
        """What the service was asked for with, or None."""
        return self._made.artifact.params

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
        return self._home.workspace

    @property
    def current(self) -> Any:
        """The instance that the one being made will replace, or None."""
        made = self._made.artifact.made
        return None if made is None or made is self._made else made.instance

    @property
    def _home(self) -> Container:
        return self._made.artifact.home

    def _state(self, verb: str) -> State:
        state = self._home.state
        if state is None:
            name, level = self._made.artifact.name, self._home.level
            raise InvalidScopeError(
                f"service {name!r} cannot {verb} a state: none is within reach of scope {level}. Give it scope 'run' "
                "or 'transient' in a workflow, give its container a state, or pass the value at the call",
                name=name,
            )
        return state

    def _of_run(self, wanted: str) -> Place:
        container = self._home.of_run()
        if container is None:
            name = self._made.artifact.name
            raise InvalidScopeError(
                f"service {name!r} lives in scope {self._home.level}, which has no {wanted}: "
                "give it scope 'run' or 'transient'",
                name=name,
            )
        return container
