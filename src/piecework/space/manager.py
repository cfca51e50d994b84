"""Which spaces have a worker: started when a run needs one, kept while it has runs, let go when it has long been idle.

A worker serves one space. At most `space_workers_limit` live at once: the least recently used idle one makes room.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from piecework.errors import ClosedError, CrashedError, StoppedError
from piecework.space.controller import WorkerDied
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.process import protocol
    from piecework.space.controller import Controller
    from piecework.space.supply import WorkerSupply


class Gate:
    """Lets several pass together, or one alone; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._inside = 0
        self._wanting_alone = 0
        self._alone = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def passing(self, *, alone: bool) -> AsyncIterator[None]:
        """Waits for its turn and passes; `alone` means with nobody else inside."""
        async with self._changed:
            self._wanting_alone += alone
            try:
                await self._changed.wait_for(self._free_for_one if alone else self._free_for_several)
            finally:
                self._wanting_alone -= alone
                self._changed.notify_all()  # who gave up waiting may have stood in others' way
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            # Not under the condition's lock: leaving must not wait, also when cancelled; nothing else runs in between.
            self._inside -= 1
            self._alone = False
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _free_for_one(self) -> bool:
        return self._inside == 0

    def _free_for_several(self) -> bool:
        return not self._alone and not self._wanting_alone


class SpaceManager:
    """One space: its worker while it has one, and how many updates may be under way in it."""

    def __init__(
        self,
        space: str,
        supply: WorkerSupply,
        settings: Settings,
    ) -> None:
        self.space = space
        self.controller: Controller | None = None
        self.users = 0
        self.idle_since = 0.0
        self.restarts = -1
        self._supply = supply
        self._places = asyncio.Semaphore(settings.space_concurrency)
        self._starting = asyncio.Lock()
        self._gate = Gate()

    @property
    def occupied(self) -> bool:
        """Whether it has a worker, or is about to."""
        return self.users > 0 or self.controller is not None

    @property
    def idle(self) -> bool:
        """Whether there is a worker and nobody uses it."""
        return self.users == 0 and self.controller is not None

    async def run(self, run: protocol.Run, timeout_seconds: float) -> protocol.Result:
        """Carries out one update in the space's worker; starts the worker when there is none.

        When the worker dies under several updates, each of them runs again, alone and uncharged: the one that does it
        again is charged, its neighbours are not.
        """
        try:
            return await self._run(run, timeout_seconds, alone=False)
        except WorkerDied as death:
            if not death.suspect:
                raise
        return await self._run(run, timeout_seconds, alone=True)

    async def _run(self, run: protocol.Run, timeout_seconds: float, *, alone: bool) -> protocol.Result:
        async with self._places, self._gate.passing(alone=alone):
            controller = await self._ready()
            try:
                return await controller.run(run, timeout_seconds)
            except ClosedError as error:  # it had died before it was handed the run
                await controller.dead()
                raise StoppedError(f"the worker of space {self.space!r} had ended", space=self.space) from error

    async def hibernate(self, reason: str, *, even_if_used: bool = False) -> None:
        """Ends the worker, unless somebody began to use it meanwhile; the next run starts another."""
        async with self._starting:
            if self.users and not even_if_used:
                return
            controller, self.controller = self.controller, None
            if controller is not None:
                await controller.stop()
                signals.emit(signals.SPACE_HIBERNATED, level="debug", space=self.space, reason=reason)

    async def _ready(self) -> Controller:
        async with self._starting:
            if self.controller is not None and self.controller.alive:
                return self.controller
            if self.controller is not None:
                await self.controller.stop()
                self.controller = None
            controller = await self._supply.controller(self.space)
            try:
                await controller.start()
            except WorkerDied as death:
                if not death.suspect:  # it was stopped, or its zygote had ended: nobody's failure
                    raise
                raise CrashedError(f"no worker could be started: {death.message}", space=self.space) from death
            self.controller = controller
            self.restarts += 1
            return controller


class Spaces:
    """All spaces of a node.

    Args:
        supply: Where workers come from; None in an app without pieces.
        settings: Limits and times.
        clock: Tells how long a worker has been idle.
    """

    def __init__(self, supply: WorkerSupply | None, settings: Settings, clock: Clock) -> None:
        self._supply = supply
        self._settings = settings
        self._clock = clock
        self._managers: dict[str, SpaceManager] = {}
        self._changed = asyncio.Event()
        self._room = asyncio.Condition()
        self._janitor: asyncio.Task[None] | None = None
        self._stopped = False

    def managers(self) -> list[SpaceManager]:
        """The spaces that were used so far."""
        return list(self._managers.values())

    async def begin(self) -> None:
        """Gets ready to start workers, and begins to let idle ones go.

        Raises:
            AppImportError: The app cannot be imported in another process.
        """
        if self._supply is not None:
            await self._supply.start()
        self._janitor = asyncio.create_task(self._let_idle_ones_go(), name="piecework-spaces")

    async def run(self, space: str, run: protocol.Run, timeout_seconds: float) -> protocol.Result:
        """Carries out one update in a space's worker.

        Raises:
            StoppedError: The node is stopping.
            WorkerDied: The worker ended under the run.
            PieceworkError: The worker could not be started; the message says why.
        """
        async with self._using(space) as manager:
            return await manager.run(run, timeout_seconds)

    async def stop(self) -> None:
        """Ends every worker and returns when nothing of them runs."""
        self._stopped = True
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.gather(self._janitor, return_exceptions=True)
        results = await asyncio.gather(
            *(manager.hibernate("the node stops", even_if_used=True) for manager in self.managers()),
            return_exceptions=True,
        )
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise ExceptionGroup("workers could not be stopped", failures)

    async def end(self) -> None:
        """Ends what workers come from; the last thing to do."""
        if self._supply is not None:
            await self._supply.stop()

    @asynccontextmanager
    async def _using(self, space: str) -> AsyncIterator[SpaceManager]:
        if self._stopped:
            raise StoppedError(f"the node is stopping: space {space!r} takes no more runs", space=space)
        assert self._supply is not None, "an app without pieces has no runs of them"
        manager = self._managers.get(space)
        if manager is None:
            manager = self._managers[space] = SpaceManager(space, self._supply, self._settings)
        await self._take_place(manager)
        try:
            yield manager
        finally:
            manager.users -= 1
            manager.idle_since = self._clock.monotonic()
            self._changed.set()
            async with self._room:
                self._room.notify_all()

    async def _take_place(self, manager: SpaceManager) -> None:
        """Waits until the space has a worker, or may start one: the least recently used idle one makes room.

        A worker is ended outside of the lock, so that other spaces come and go meanwhile.
        """
        while True:
            async with self._room:
                others = [m for m in self._managers.values() if m is not manager and m.occupied]
                if manager.occupied or len(others) < self._settings.space_workers_limit:
                    manager.users += 1
                    return
                idle = [other for other in others if other.idle]
                if not idle:
                    await self._room.wait()
                    continue
            await min(idle, key=lambda m: m.idle_since).hibernate("its place was wanted")

    async def _let_idle_ones_go(self) -> None:
        limit = self._settings.space_idle_seconds
        while True:
            self._changed.clear()
            now = self._clock.monotonic()
            idle = [manager for manager in self.managers() if manager.idle]
            for manager in idle:
                if now - manager.idle_since >= limit and manager.idle:
                    await manager.hibernate("idle")
            left = [limit - (now - manager.idle_since) for manager in self.managers() if manager.idle]
            if not left:
                await self._changed.wait()
                continue
            await self._clock.sleep(max(0.05, min(left)))
