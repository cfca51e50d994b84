"""One space: its worker while it has one, who passes to it, and when the next may be started.

Whatever ends a worker, its pieces are not blamed for more than they did: a run that was interrupted, or whose worker
could not be started, is given back with the moment at which it is worth trying again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from piecework.errors import ClosedError, StoppedError, describe
from piecework.space.breaker import Breaker
from piecework.space.controller import State, WorkerDied
from piecework.space.gate import Gate
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.process import protocol
    from piecework.space.controller import Controller
    from piecework.space.supply import WorkerSupply

_PATIENCE_SECONDS = 2.0
"""A shorter pause before a start is waited for here; a run that would have to wait longer is given back until then."""


class SpaceManager:
    """What a node knows of one space.

    Args:
        space: The tenant.
        supply: Where its workers come from.
        settings: Limits and times.
        clock: Tells how long pauses last.
        on_change: Called when another place may be free, or the space's standing has changed.

    Attributes:
        controller: Of its worker, while there is one.
        users: How many runs have it, or wait for it.
        callers: How many runs are on their way to it or have it.
        idle_since: When the last of them left, in monotonic seconds.
        restarts: How many of its workers ended by themselves, or could not be started.
        doubted: Whether there may be no piece any more that it is for.
    """

    def __init__(
        self, space: str, supply: WorkerSupply, settings: Settings, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self.space = space
        self.controller: Controller | None = None
        self.users = 0
        self.callers = 0
        self.idle_since = 0.0
        self.restarts = 0
        self.doubted = False
        self._supply = supply
        self._clock = clock
        self._on_change = on_change
        self._places = asyncio.Semaphore(settings.space_concurrency)
        self._starting = asyncio.Lock()
        self._gate = Gate()
        self._breaker = Breaker(settings.crash_loop_limit, settings.crash_loop_window_seconds)
        self._suspects: set[str] = set()
        self._parked: dict[str, float] = {}
        self._closed = False

    @property
    def occupied(self) -> bool:
        """Whether it has a worker, or is about to."""
        return self.users > 0 or self.controller is not None

    @property
    def idle(self) -> bool:
        """Whether there is a worker and nobody uses it."""
        return self.users == 0 and self.controller is not None

    @property
    def forgettable(self) -> bool:
        """Whether there is nothing to know of it that its rows do not say."""
        return not self.callers and not self.occupied and not self.restarts

    @property
    def broken(self) -> bool:
        """Whether it gets no worker but for a probe now and then."""
        return self._breaker.broken

    @property
    def reason(self) -> str | None:
        """Why it has no worker, while it is broken or the next start is put off."""
        return self._breaker.reason if self.broken or self._waits() else None

    @property
    def observed(self) -> str:
        """How it stands: idle (no worker), starting, running, ready, blocked, stopping, backoff or broken."""
        controller = self.controller
        if self.broken:
            return "broken"
        if controller is None or controller.state is State.DEAD:
            return "backoff" if self._waits() else "idle"
        if controller.blocked_at is not None:
            return "blocked"
        if controller.state in {State.NEW, State.BOOTING, State.STARTING}:
            return "starting"
        if controller.state is State.STOPPING:
            return "stopping"
        return "running" if controller.in_flight else "ready"

    def admit(self, run_id: str) -> None:
        """Turns a run away that would wait too long for a worker; one that comes back early is somebody's wish to know.

        Raises:
            StoppedError: Its `again_seconds` tell when to come back.
        """
        wait = self._waits()
        due = self._parked.pop(run_id, None)
        if due is not None and wait > _PATIENCE_SECONDS and due - self._clock.monotonic() > _PATIENCE_SECONDS / 2:
            self._breaker.probe()
            return
        if wait > _PATIENCE_SECONDS:
            raise self._put_off(run_id)

    def probe(self) -> list[str]:
        """Lets the next run try for a worker at once; answers the runs that were put off."""
        put_off = list(self._parked)
        self._parked.clear()
        self._breaker.probe()
        return put_off

    def puts_off(self, run_id: str) -> bool:
        """Whether a run has been given back because no worker could be had, and has not come again."""
        return run_id in self._parked

    def mend(self) -> list[str]:
        """Forgets that its workers failed; answers the runs that were put off for that."""
        put_off = list(self._parked)
        self._parked.clear()
        self._breaker.close()
        self._on_change()
        return put_off

    async def run(self, run: protocol.Run, timeout_seconds: float) -> protocol.Result:
        """Carries out one update in the space's worker; starts the worker when there is none.

        When the worker dies under several updates, each of them runs again, alone and uncharged: the one that does it
        again is charged, its neighbours are not. So does the one that tries whether a broken space works again.

        Raises:
            WorkerDied: The worker ended under the run; it says whether the run is to blame.
            StoppedError: There is no worker, and none for so many `again_seconds`; or the node stops.
        """
        while True:
            alone = self.broken or run.run_id in self._suspects
            try:
                result = await self._run(run, timeout_seconds, alone=alone)
            except WorkerDied as death:
                if not death.suspect:
                    self._suspects.discard(run.run_id)
                    raise
                self._suspects.add(run.run_id)
            else:
                if result is not None:
                    self._suspects.discard(run.run_id)
                    return result

    async def _run(self, run: protocol.Run, timeout_seconds: float, *, alone: bool) -> protocol.Result | None:
        async with self._places, self._gate.passing(alone=alone):
            self.admit(run.run_id)
            if self.broken and not alone:
                return None  # it broke while this one waited
            controller = await self._ready(run.run_id)
            try:
                result = await controller.run(run, timeout_seconds)
            except ClosedError as error:  # it had died before it was handed the run
                await controller.dead()
                raise StoppedError(f"the worker of space {self.space!r} had ended", space=self.space) from error
            if controller.state in {State.READY, State.DRAINING} and self._breaker.served():
                signals.emit(signals.SPACE_MENDED, space=self.space)
                self.mend()
            return result

    async def hibernate(self, reason: str) -> None:
        """Ends the worker, unless somebody began to use it meanwhile; the next run starts another."""
        async with self._starting:
            if self.users:
                return
            controller, self.controller = self.controller, None
            if controller is not None and controller.state is not State.DRAINING:
                await controller.stop()
                signals.emit(signals.SPACE_HIBERNATED, level="debug", space=self.space, reason=reason)
                self._on_change()

    async def stop(self) -> None:
        """Ends the worker also if it is used or starts, and starts no other; returns when nothing of it runs."""
        self._closed = True
        controller = self.controller
        if controller is not None:
            await controller.stop()
        self.controller = None

    async def _ready(self, run_id: str) -> Controller:
        async with self._starting:
            if self.controller is not None and self.controller.alive:
                return self.controller
            if self.controller is not None and self.controller.state is not State.DRAINING:
                await self.controller.stop()
            self.controller = None
            await self._clock.sleep(self._waits())
            try:
                return await self._start()
            except WorkerDied as death:
                if not death.suspect:  # it was stopped, or its zygote had ended: nobody's failure
                    raise
                raise self._failed(death, run_id) from death
            except StoppedError:
                raise
            except Exception as error:
                raise self._failed(error, run_id) from error

    async def _start(self) -> Controller:
        self._still_open()
        over: list[Controller] = []
        controller = await self._supply.controller(self.space, on_over=lambda death: self._over(over[0], death))
        over.append(controller)
        self._still_open()
        self.controller = controller
        self._on_change()
        try:
            await controller.start()
        except BaseException:
            self.controller = None
            raise
        self._on_change()
        return controller

    def _over(self, controller: Controller, death: WorkerDied | None) -> None:
        """A worker that had been ready has ended."""
        if self.controller is controller:
            self.controller = None
        if death is not None:
            self._count(death.message, charged=death.charged)
        self._on_change()

    def _failed(self, error: Exception, run_id: str) -> StoppedError:
        told = describe(error)["message"]
        self._count(f"no worker could be started: {told}")
        signals.emit(
            signals.SPACE_FAILED, level="error", space=self.space, error=told, again_seconds=round(self._waits(), 1)
        )
        self._on_change()
        return self._put_off(run_id)

    def _count(self, reason: str, *, charged: bool = False) -> None:
        self.restarts += 1
        if self._breaker.failed(self._clock.monotonic(), reason, charged=charged):
            signals.emit(
                signals.SPACE_BROKEN,
                level="error",
                space=self.space,
                error=reason,
                again_seconds=round(self._waits(), 1),
            )

    def _put_off(self, run_id: str) -> StoppedError:
        wait = self._waits()
        self._parked[run_id] = self._clock.monotonic() + wait
        how = "is broken" if self.broken else "gets no worker"
        return StoppedError(
            f"space {self.space!r} {how} for {wait:.1f} s: {self._breaker.reason}. Its pieces are not charged; "
            "`run_now` tries at once, `resume_space` forgets the failures",
            space=self.space,
            again_seconds=wait,
        )

    def _still_open(self) -> None:
        if self._closed:
            raise StoppedError(f"the node is stopping: space {self.space!r} gets no worker", space=self.space)

    def _waits(self) -> float:
        return self._breaker.wait_seconds(self._clock.monotonic())
