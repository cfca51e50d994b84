"""What `@app.job` makes of a function: the same function, and the ways to have it run durably, with its own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from piecework.services.declared_job import JobDefinition
    from piecework.workspace.workspace import Workspace

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Queue(Protocol):
    """What queues jobs: the app."""

    async def queue_job(
        self, definition: JobDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], options: JobOptions
    ) -> str:
        """Makes a run durable and answers its id."""
        ...

    def refuse_running_here(self, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of the current workspace."""
        ...

    async def job_value(self, run_id: str) -> Any:
        """Waits for the end of a job's run and gives what it returned, or raises what it failed with."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a job is queued.

    Attributes:
        delay_seconds: How much later it may begin.
        dedup: While a job of this name and key is queued or running, it stands for further ones.
        space: The tenant; None means the workspace's that it is queued in, else "default".
    """

    delay_seconds: float | None = None
    dedup: str | None = None
    space: str | None = None


class Job(Generic[P, R_co]):
    """A declared job; calling it calls its function, in the caller's own way and nothing else.

    Args:
        queue: The app.
        definition: What was declared.
        options: How it is queued.
    """

    def __init__(self, queue: Queue, definition: JobDefinition, options: JobOptions | None = None) -> None:
        self._queue = queue
        self._definition = definition
        self._options = options or JobOptions()
        self.__wrapped__ = definition.fn
        self.__name__ = getattr(definition.fn, "__name__", definition.name)
        self.__doc__ = getattr(definition.fn, "__doc__", None)

    def __repr__(self) -> str:
        return f"<job {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls its function, and nothing else."""
        return self._definition.fn(*args, **kwargs)

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return self._definition.name

    @property
    def definition(self) -> JobDefinition:
        """What was declared."""
        return self._definition

    def options(
        self, *, delay_seconds: float | None = None, dedup: str | None = None, space: str | None = None
    ) -> Job[P, R_co]:
        """The same job, to be queued in another way; see `JobOptions`. What is not given stays."""
        before = self._options
        options = JobOptions(
            delay_seconds=before.delay_seconds if delay_seconds is None else delay_seconds,
            dedup=before.dedup if dedup is None else dedup,
            space=before.space if space is None else space,
        )
        return Job(self._queue, self._definition, options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Queues it and returns the run's id when that is durable; a node runs it.

        Inside a workspace it has its space and overrides, and work that is done again queues it once. Inside an open
        transaction of `ws.database` it goes along with the commit, and vanishes with a rollback.

        Raises:
            ValidationError: The arguments are not acceptable; nothing was queued.
            NoNodeError: This is a client of a file's node, and there is none.
        """
        return await self._queue.queue_job(self._definition, args, kwargs, self._options)

    async def run(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Queues it, waits for its end and gives what it returned. Who is cancelled here stops waiting; it goes on.

        Raises:
            ValidationError: The arguments are not acceptable; nothing was queued.
            InvalidStateError: A transaction of `ws.database` is open here: the job would begin with its commit.
            PieceworkError: It failed or was aborted: its own error, or EXECUTION_FAILED with its words.
        """
        self._queue.refuse_running_here(self.name)
        run_id = await self._queue.queue_job(self._definition, args, kwargs, self._options)
        value: R_co = await self._queue.job_value(run_id)
        return value


class DeclareJob(Protocol):
    """Makes a Job of a function; its types are the function's own where the workspace is its first parameter."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Workspace, P], Awaitable[R]]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Workspace, P], R]) -> Job[P, R]: ...
    @overload
    def __call__(self, fn: Callable[..., Any]) -> Job[..., Any]: ...
    def __call__(self, fn: Callable[..., Any]) -> Job[..., Any]:
        """Declares it."""
        ...
