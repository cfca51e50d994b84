"""The runs of one workflow that have not ended: those that run, and those that are paused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from piecework.errors import NotFoundError, ValidationError
from piecework.run.lifecycle import Status

if TYPE_CHECKING:
    from piecework.run.info import RunInfo

T = TypeVar("T")
_KIND = "workflow"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a listing.

    Attributes:
        items: In order.
        next_cursor: What the next part is asked for with; None where this is the last.
    """

    items: list[T]
    next_cursor: str | None = None


class RunDoor(Protocol):
    """What is asked for runs: a runtime, or what a client has instead."""

    async def list_all_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        space: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> list[RunInfo]:
        """See `Runtime.list_all_runs`."""
        ...

    async def count_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        space: str | None = None,
        kind: str | None = None,
    ) -> int:
        """See `Runtime.count_runs`."""
        ...

    async def watch(self, workflow_id: str, run_id: str) -> RunInfo | None:
        """See `Runtime.watch`."""
        ...


class PipelineRegistry:
    """The live and the paused runs of one workflow, as the store has them: `runtime.registry(workflow_id)`.

    Args:
        door: Asked for runs.
        workflow_id: Whose.
    """

    def __init__(self, door: RunDoor, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self._door = door

    async def live(self) -> list[RunInfo]:
        """The runs that are running now, on whatever node, the newest first."""
        return await self._door.list_all_runs(status=Status.RUNNING, workflow=self.workflow_id, kind=_KIND)

    async def paused(self, *, limit: int | None = None, cursor: str | None = None) -> Page[RunInfo]:
        """The paused runs, the newest first.

        Args:
            limit: At most so many; None means all.
            cursor: The `next_cursor` of the part before.

        Raises:
            ValidationError: The limit is below one.
            NotFoundError: The cursor is no run.
        """
        if limit is not None and limit < 1:
            raise ValidationError(f"limit has to be at least 1, not {limit}")
        wanted = None if limit is None else limit + 1
        found = await self._door.list_all_runs(
            status=Status.PAUSED, workflow=self.workflow_id, kind=_KIND, limit=wanted, cursor=cursor
        )
        if limit is None or len(found) <= limit:
            return Page(found)
        return Page(found[:limit], found[limit - 1].run_id)

    async def get(self, run_id: str) -> RunInfo:
        """One run that has not ended.

        Raises:
            NotFoundError: The workflow has no such run, or it has ended: `runtime.get` tells of that one.
        """
        info = await self._door.watch(self.workflow_id, run_id)
        if info is None or info.ended_at is not None:
            why = "there is none" if info is None else f"it is {info.status}: runtime.get(run_id) tells of ended runs"
            raise NotFoundError(
                f"workflow {self.workflow_id!r} has no live or paused run {run_id!r}: {why}", run_id=run_id
            )
        return info

    async def count(self) -> int:
        """How many are running or paused."""
        running = await self._door.count_runs(status=Status.RUNNING, workflow=self.workflow_id, kind=_KIND)
        return running + await self._door.count_runs(status=Status.PAUSED, workflow=self.workflow_id, kind=_KIND)
