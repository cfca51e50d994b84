"""The services of paused runs, kept alive for a while: whoever comes back soon finds them as they were.

A run that pauses gives its task and its workspace's place back. Its own services, where it has any, stay open for the
window, so many runs at most; those that paused first go first. After that nothing of a parked run is in memory: it is
rows, and its services are made anew from its checkpoint. Which of the two it is is decided in one step of the event
loop: services are handed to the run that goes on or closed, once, never both.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from piecework.container.registry import RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from piecework.clock import Clock
    from piecework.container.state import State
    from piecework.run.logger import LogBook
    from piecework.workflow.flight import Flight
    from piecework.workspace.opening import Opening
    from piecework.workspace.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What there is of a paused run: good for the next claim of it, and for no other."""

    run_id: str
    workflow_id: str
    epoch: int
    until: float
    window_seconds: float | None
    opening: Opening
    shown: State
    book: LogBook


class HotRuns:
    """Keeps the workspaces of paused runs that have services of their own.

    Args:
        clock: Tells when a window is over.
        window_seconds: How long, unless a run asked for another time.
        limit: Of how many runs at once.
    """

    def __init__(self, clock: Clock, *, window_seconds: float, limit: int) -> None:
        self._clock = clock
        self._window_seconds = window_seconds
        self._limit = limit
        self._kept: dict[str, _Kept] = {}
        self._closing: dict[asyncio.Task[None], _Kept] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._next = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def room(self, flight: Flight, opening: Opening, is_current: Callable[[], bool]) -> HotRoom:
        """The workspace of a flight, for `async with`: the one that was kept for its run, or a fresh one.

        Args:
            flight: The run that executes here.
            opening: Of a fresh workspace.
            is_current: Whether no other flight of the run has begun since.
        """
        return HotRoom(self, flight, opening, is_current)

    def keep(self, flight: Flight, opening: Opening) -> bool:
        """Keeps the workspace of a run that has just paused; False where it is not worth it and has to be closed."""
        seconds = self._window_seconds if flight.window_seconds is None else flight.window_seconds
        ws = opening.workspace
        if not (seconds and self._limit) or ws is None or not _has_services(ws) or not opening.set_aside():
            return False
        run = flight.run
        kept = _Kept(
            run_id=run.run_id,
            workflow_id=run.workflow_id,
            epoch=run.epoch,
            until=self._clock.monotonic() + seconds,
            window_seconds=flight.window_seconds,
            opening=opening,
            shown=flight.shown,
            book=flight.book,
        )
        self.let_go(run.run_id)
        self._kept[run.run_id] = kept
        while len(self._kept) > self._limit:
            self.let_go(next(iter(self._kept)))
        self._watch(kept.until)
        return True

    async def take(self, run_id: str, epoch: int) -> _Kept | None:
        """Hands out what is kept of a run, if nobody has had the run since; else closes it, and waits for that.

        Args:
            run_id: The run.
            epoch: Of the claim that goes on with it.
        """
        kept = self._kept.get(run_id)
        if kept is not None and kept.epoch + 1 == epoch and kept.until > self._clock.monotonic():
            del self._kept[run_id]
            return kept
        await self.drop_run(run_id)
        return None

    def let_go(self, run_id: str) -> None:
        """Begins to close what is kept of a run."""
        kept = self._kept.pop(run_id, None)
        if kept is not None:
            task = asyncio.create_task(_close(kept), name=f"cool-{run_id}")
            self._closing[task] = kept
            task.add_done_callback(lambda done: self._closing.pop(done, None))

    async def drop_run(self, run_id: str) -> None:
        """Closes what is kept of a run; returns when its services are closed."""
        self.let_go(run_id)
        await self._closed([task for task, kept in self._closing.items() if kept.run_id == run_id])

    async def drop_workflow(self, workflow_id: str) -> None:
        """Closes what is kept of a workflow's runs; returns when their services are closed."""
        for kept in [kept for kept in self._kept.values() if kept.workflow_id == workflow_id]:
            self.let_go(kept.run_id)
        await self._closed([task for task, kept in self._closing.items() if kept.workflow_id == workflow_id])
        if not self._kept and self._sweeper is not None:
            sweeper, self._sweeper = self._sweeper, None
            sweeper.cancel()
            await asyncio.wait({sweeper})

    async def _closed(self, tasks: list[asyncio.Task[None]]) -> None:
        if tasks:
            await asyncio.wait(tasks)

    def _watch(self, until: float) -> None:
        """Sees to it that somebody looks at the clock no later than then."""
        if self._sweeper is not None and not self._sweeper.done():
            if self._next <= until:
                return
            self._sweeper.cancel()
        self._next = until
        self._sweeper = asyncio.create_task(self._sweep(), name="hot-runs")

    async def _sweep(self) -> None:
        """Closes what is over, as long as anything is kept."""
        while self._kept:
            self._next = min(kept.until for kept in self._kept.values())
            await self._clock.sleep(self._next - self._clock.monotonic())
            now = self._clock.monotonic()
            for kept in [kept for kept in self._kept.values() if kept.until <= now]:
                self.let_go(kept.run_id)


class HotRoom:
    """A flight's workspace: made or found again on the way in, closed or kept on the way out."""

    __slots__ = ("_flight", "_hot", "_is_current", "_opening")

    def __init__(self, hot: HotRuns, flight: Flight, opening: Opening, is_current: Callable[[], bool]) -> None:
        self._hot = hot
        self._flight = flight
        self._opening = opening
        self._is_current = is_current

    async def __aenter__(self) -> Workspace:
        flight = self._flight
        kept = await self._hot.take(flight.run.run_id, flight.run.epoch)
        if kept is None:
            return await self._opening.__aenter__()
        try:
            ws = await kept.opening.take_up()
        except BaseException:
            await kept.opening.close_aside()
            raise
        self._opening = kept.opening
        kept.shown.commit(flight.state)
        kept.book.follow(flight.run.epoch, flight.run.decision, flight.run.attempt)
        flight.shown, flight.book, flight.window_seconds = kept.shown, kept.book, kept.window_seconds
        return ws

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        parked = exc_type is None and self._flight.parked and self._is_current() and not self._flight.ended_at_rest
        if not (parked and self._hot.keep(self._flight, self._opening)):
            await self._opening.__aexit__(exc_type, error, trace)


def _has_services(ws: Workspace) -> bool:
    """Whether the run has anything of its own that would have to be made anew."""
    if ws._container is None:  # noqa: SLF001 - asking for the container would make one
        return False
    told = ws.container.debug_info()
    return any(info["status"] not in _NOTHING for name, info in told.items() if name not in RESERVED)


_NOTHING = frozenset({"idle", "error", "disposed"})


async def _close(kept: _Kept) -> None:
    """Closes a paused run's services; what fails there has been shown by the workspace, and fails nobody else."""
    with contextlib.suppress(ExceptionGroup):
        await kept.opening.close_aside()
