"""What a step, a router and a wait function are given."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from piecework.errors import ValidationError, clean_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.bus.event import Event
    from piecework.container.container import Resolution
    from piecework.run.logger import LogBook, RunLogger
    from piecework.workspace.workspace import Workspace

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StateView:
    """What a router or a wait function sees.

    Attributes:
        state: A copy of the run's data, the stage's own patches included.
        run_id: The run.
        workflow_id: Its workflow.
        event: What started it.
    """

    state: dict[str, Any]
    run_id: str
    workflow_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What `ctx.use` hands to its function."""

    _ctx: StepContext

    @overload
    async def require(self, key: type[T]) -> T: ...
    @overload
    async def require(self, key: str) -> Any: ...
    async def require(self, key: str | type) -> Any:
        """A service by name or type."""
        return await self._ctx.workspace.require(key)

    async def resolve(self, key: str | type) -> Resolution:
        """A service by name or type, or why there is none, as a value."""
        return await self._ctx.workspace.container.resolve(key)

    def select(self, fn: Callable[[dict[str, Any]], Any]) -> Any:
        """What `fn` picks from the run's state as the step sees it."""
        return fn(self._ctx.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What a step's action is given. Services of its workspace are attributes too: `ctx.database`.

    Attributes:
        run_id: The run.
        workflow_id: Its workflow.
        pipeline_id: Its pipeline.
        stage_id: The stage.
        step_id: The step.
        attempt: Of this step, from 1.
        state: A copy of the run's data; changing it changes nothing: return a patch instead.
        event: What started the run.
        workspace: The step's own fork of the run's workspace.
        logger: Its lines stand in the run's timeline too.
        idempotency_key: The same for every attempt of this step at this point of the run, across crashes.
    """

    run_id: str
    workflow_id: str
    pipeline_id: str
    stage_id: str
    step_id: str
    attempt: int
    state: dict[str, Any]
    event: Event
    workspace: Workspace
    logger: RunLogger
    idempotency_key: str
    _aborting: Callable[[], bool] = field(repr=False)
    _book: LogBook = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "workspace":
            raise AttributeError(f"a step's context has no {name!r}")
        return self.workspace.__getattr__(name)

    @property
    def path(self) -> str:
        """Where the step is, as the timeline shows it."""
        return f"{self.stage_id}/{self.step_id}"

    @property
    def cancelled(self) -> bool:
        """Whether the run is being aborted: a long step should look and leave."""
        return self._aborting()

    @overload
    async def require(self, key: type[T]) -> T: ...
    @overload
    async def require(self, key: str) -> Any: ...
    async def require(self, key: str | type) -> Any:
        """A service by name or type.

        Raises:
            NotFoundError: There is none; the message suggests near names.
        """
        return await self.workspace.require(key)

    async def resolve(self, key: str | type) -> Resolution:
        """A service by name or type, or why there is none, as a value."""
        return await self.workspace.container.resolve(key)

    def select(self, fn: Callable[[dict[str, Any]], Any]) -> Any:
        """What `fn` picks from the run's state as the step sees it."""
        return fn(self.state)

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Tells how far the step is: people see it while the run runs, and it stands in the timeline.

        It is committed beside the run's own commits, soon, and holds nothing up: `ctx.progress(0.4, "page 2 of 5")`.

        Args:
            fraction: From 0 to 1.
            message: In words; shortened to 200 characters.

        Raises:
            ValidationError: The fraction is not a number from 0 to 1, or the message is no text.
        """
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if not number or not 0 <= fraction <= 1:
            raise ValidationError(f"progress is a number from 0 to 1, not {fraction!r:.80}: 0.4 is two of five")
        if message is not None and not isinstance(message, str):
            raise ValidationError(f"progress: the message has to be a text, not {message!r:.80}")
        self._book.progress(float(fraction), None if message is None else clean_text(message, 200), self.path)

    async def use(self, fn: Callable[[Dependencies], Any]) -> Any:
        """Calls `fn` with `resolve`, `require` and `select`, and awaits what it returns if that can be awaited."""
        if not callable(fn):
            raise TypeError(f"ctx.use needs a function of one argument, not {fn!r:.80}")
        result = fn(Dependencies(self))
        return await result if inspect.isawaitable(result) else result
