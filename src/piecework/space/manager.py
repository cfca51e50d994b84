"""Which spaces have a worker: started when a run needs one, kept while it has runs, let go when it has long been idle.

At most `space_workers_limit` live at once: the least recently used idle one makes room. A space whose last piece is
gone or paused keeps none. After `stop` none is ever started.

Which integrations the workers' code has is another matter than which the node's has, once there was a reload: what
theirs lacks waits until it has it again. The word of one space's worker is good for that space alone.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from piecework.errors import StoppedError, describe
from piecework.process.limits import report
from piecework.space.controller import UnknownIntegration
from piecework.space.tenant import SpaceManager
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.process import protocol
    from piecework.space.supply import WorkerSupply

_TROUBLE_PAUSE_SECONDS = 1.0
_LACKING_SECONDS = 60.0
"""After how long code that lacked an integration is asked again: each worker may import it for itself."""
_LACKING_PAUSE_SECONDS = 10.0
"""After how long at most an update comes back whose space's code lacks it: another node may have it."""


class Spaces:
    """All spaces of a node.

    Args:
        supply: Where workers come from; None in an app without pieces.
        settings: Limits and times.
        clock: Tells how long a worker has been idle.

    Attributes:
        is_wanted: Answers whether a space has a piece that is to be updated.
        on_new_code: Called when workers have other code from now on.
    """

    def __init__(self, supply: WorkerSupply | None, settings: Settings, clock: Clock) -> None:
        self.is_wanted: Callable[[str], Awaitable[bool]] = _always
        self.on_new_code: Callable[[], None] = _nobody
        self._supply = supply
        self._settings = settings
        self._clock = clock
        self._managers: dict[str, SpaceManager] = {}
        self._changed = asyncio.Event()
        self._doubted = asyncio.Event()
        self._room = asyncio.Event()
        self._janitor: asyncio.Task[None] | None = None
        self._stopped = False
        self._lacking: dict[str, dict[str, float]] = {}
        self._reloads = 0
        if supply is not None:
            supply.on_new_code = self._has_new_code

    def managers(self) -> list[SpaceManager]:
        """The spaces that were used so far."""
        return list(self._managers.values())

    def manager(self, space: str) -> SpaceManager | None:
        """What is known here of a space; None where it was not used so far."""
        return self._managers.get(space)

    def lacks(self, integration: str) -> bool:
        """Whether the workers of several spaces were found to lack an integration, a short while ago: all will."""
        oldest = self._clock.monotonic() - _LACKING_SECONDS
        return sum(since > oldest for since in self._lacking.get(integration, {}).values()) > 1

    def limits(self, space: str) -> dict[str, str]:
        """How each limit of a space is enforced here; where no worker comes from here, how it would be."""
        if self._supply is not None:
            return self._supply.limits(space)
        return report(self._settings, mode="")

    async def begin(self) -> None:
        """Gets ready to start workers, and begins to let idle ones go; a second call does nothing.

        Raises:
            AppImportError: The app cannot be imported in another process.
        """
        if self._janitor is not None or self._stopped:
            return
        if self._supply is not None:
            await self._supply.start()
        self._janitor = asyncio.create_task(self._let_idle_ones_go(), name="piecework-spaces")

    async def run(self, space: str, run: protocol.Run, timeout_seconds: float) -> protocol.Result:
        """Carries out one update in a space's worker.

        Raises:
            StoppedError: The node is stopping; or the space gets no worker for so many `again_seconds`; or the code of
                its worker has no definition of the run.
            WorkerDied: The worker ended under the run.
        """
        self._refuse_lacking(space, run)
        reloads = self._reloads
        async with self._using(space, run.run_id) as manager:
            try:
                return await manager.run(run, timeout_seconds)
            except UnknownIntegration as error:
                if reloads == self._reloads:
                    self._note_lacking(space, run.integration, error)
                raise

    def broken(self, space: str, run_id: str) -> str | None:
        """Why a run was given back that does not execute here: its space is broken. None where that is not so."""
        manager = self._managers.get(space)
        return manager.reason if manager is not None and manager.broken and manager.puts_off(run_id) else None

    def probe(self, space: str) -> list[str]:
        """Lets the next run of a space try for a worker at once; answers the runs that were put off."""
        manager = self._managers.get(space)
        return [] if manager is None else manager.probe()

    def doubt(self, space: str) -> None:
        """Says that a space may have no piece any more that is to be updated: then its worker goes at once."""
        if (manager := self._managers.get(space)) is not None:
            manager.doubted = True
            self._changed.set()
            self._doubted.set()

    async def reload(self) -> None:
        """Has new workers made of the code as it is now; those at work finish what they have, and take nothing new.

        Raises:
            AppImportError: The app cannot be imported as it is now: all stays as it was.
        """
        if self._supply is not None and not self._stopped:
            await self._supply.reload()

    async def reload_on_change(self, every_seconds: float = 1.0) -> None:
        """Calls `reload` whenever a file of the app's own code has changed, until it is cancelled.

        Args:
            every_seconds: How often the files are looked at.
        """
        if self._supply is not None:
            await self._supply.reload_on_change(every_seconds)

    async def stop(self) -> None:
        """Ends every worker and returns when nothing of them runs; what failed in between is raised at the end.

        Raises:
            ExceptionGroup: Workers could not be ended in order.
        """
        self._stopped = True
        self._tell_room()
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.gather(self._janitor, return_exceptions=True)
        results = await asyncio.gather(*(manager.stop() for manager in self.managers()), return_exceptions=True)
        if self._supply is not None:
            await self._supply.stop_drained()
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise ExceptionGroup("workers could not be stopped", failures)

    async def end(self) -> None:
        """Ends what workers come from; the last thing to do."""
        if self._supply is not None:
            await self._supply.stop()

    @asynccontextmanager
    async def _using(self, space: str, run_id: str) -> AsyncIterator[SpaceManager]:
        self._still_open(space)
        assert self._supply is not None, "an app without pieces has no runs of them"
        manager = self._managers.get(space)
        if manager is None:
            made: list[SpaceManager] = []
            manager = SpaceManager(
                space, self._supply, self._settings, self._clock, on_change=lambda: self._has_changed(made[0])
            )
            made.append(manager)
            self._managers[space] = manager
        manager.callers += 1
        try:
            manager.admit(run_id)
            await self._take_place(manager)
            try:
                yield manager
            finally:
                manager.users -= 1
                manager.idle_since = self._clock.monotonic()
        finally:
            manager.callers -= 1
            self._has_changed(manager)

    async def _take_place(self, manager: SpaceManager) -> None:
        """Waits until the space has a worker, or may start one: the least recently used idle one makes room."""
        while True:
            self._still_open(manager.space)
            room = self._room
            others = [m for m in self._managers.values() if m is not manager and m.occupied]
            if manager.occupied or len(others) < self._settings.space_workers_limit:
                manager.users += 1
                return
            idle = [other for other in others if other.idle]
            if idle:
                await min(idle, key=lambda m: m.idle_since).hibernate("its place was wanted")
            else:
                await room.wait()

    def _refuse_lacking(self, space: str, run: protocol.Run) -> None:
        """Gives an update back whose space's worker was found to lack its definition, without asking it again."""
        passed = self._clock.monotonic() - self._lacking.get(run.integration, {}).get(space, float("-inf"))
        if passed < _LACKING_SECONDS:
            raise StoppedError(
                f"piece {run.piece_id!r} of space {space!r} waits for its definition: its worker's code lacks it",
                space=space,
                again_seconds=min(max(1.0, passed), _LACKING_PAUSE_SECONDS),
            )

    def _note_lacking(self, space: str, integration: str, error: UnknownIntegration) -> None:
        what = f"updating pieces of {integration!r}, which the code of the workers lacks: they wait until it has it"
        signals.emit(signals.NODE_TROUBLE, level="warning", what=what, error=error.message)
        self._lacking.setdefault(integration, {})[space] = self._clock.monotonic()

    def _has_new_code(self) -> None:
        self._reloads += 1
        self._lacking.clear()
        self.on_new_code()

    def _still_open(self, space: str) -> None:
        if self._stopped:
            raise StoppedError(f"the node is stopping: space {space!r} takes no more runs", space=space)

    def _has_changed(self, manager: SpaceManager) -> None:
        if manager.forgettable and self._managers.get(manager.space) is manager:
            del self._managers[manager.space]
        if manager.doubted and not manager.users:
            self._doubted.set()
        self._changed.set()
        self._tell_room()

    def _tell_room(self) -> None:
        room, self._room = self._room, asyncio.Event()
        room.set()

    async def _let_idle_ones_go(self) -> None:
        while True:
            self._changed.clear()
            self._doubted.clear()
            try:
                await self._end_unwanted()
                left = await self._end_idle()
            except Exception as error:  # noqa: BLE001 - shown, and tried again
                what = "letting workers go that nobody needs"
                signals.emit(signals.NODE_TROUBLE, level="error", what=what, error=describe(error))
                await self._clock.sleep(_TROUBLE_PAUSE_SECONDS)
                continue
            if left is not None:
                await self._doubted_within(max(0.05, left))
            else:
                await self._changed.wait()

    async def _end_unwanted(self) -> None:
        for manager in [manager for manager in self.managers() if manager.doubted and not manager.users]:
            manager.doubted = False  # before the question: a doubt that comes up meanwhile counts
            try:
                if manager.idle and not await self.is_wanted(manager.space):
                    await manager.hibernate("it has no piece that is to be updated")
            except Exception:
                manager.doubted = True
                raise

    async def _end_idle(self) -> float | None:
        """Ends the workers that were idle for long; answers in how many seconds another one may be, if there is one."""
        limit, now = self._settings.space_idle_seconds, self._clock.monotonic()
        for manager in [manager for manager in self.managers() if manager.idle]:
            if now - manager.idle_since >= limit and manager.idle:
                await manager.hibernate("idle")
        left = [limit - (now - manager.idle_since) for manager in self.managers() if manager.idle]
        return min(left, default=None)

    async def _doubted_within(self, seconds: float) -> None:
        """Waits that long, or until somebody doubts that a space is wanted."""
        doubted = asyncio.ensure_future(self._doubted.wait())
        slept = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({doubted, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (doubted, slept):
                task.cancel()
            await asyncio.gather(doubted, slept, return_exceptions=True)


async def _always(_space: str) -> bool:
    """Where nobody looks, every space is for something."""
    return True


def _nobody() -> None:
    """Nobody waits for other code."""
