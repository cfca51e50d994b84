"""Where workers come from: the zygote, started again when it has ended, and a controller for each worker.

When the code has changed another zygote takes over. The workers of the old one finish what they have; it goes when the
last of them is gone.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from piecework.clock import SystemClock
from piecework.errors import PieceworkError, describe
from piecework.process.launch import Zygote
from piecework.process.limits import Limits, report
from piecework.space.controller import Controller, State, WorkerDied
from piecework.space.watching import CodeWatch
from piecework.telemetry import logs, signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.process import protocol
    from piecework.process.address import Address
    from piecework.process.lease import Lease

_log = logs.get_logger("piecework.worker")


class WorkerSupply:
    """Makes the controllers of an app's workers.

    Args:
        address: Where the zygote imports the app from.
        settings: Deadlines of workers.
        make_init: What a space's worker is told first.
        lease: When workers end without another word of the node.
        answer: Answers what a worker asks: op, args and its space.
        on_log: Takes what a worker's user code says beside its results, with its space.
        clock: Says since when a worker is blocked.

    Attributes:
        on_new_code: Called when the next workers have the code as it is now, and no more as it was.
    """

    def __init__(
        self,
        address: Address,
        settings: Settings,
        *,
        make_init: Callable[[str], protocol.Init],
        lease: Lease,
        answer: Callable[[str, dict[str, Any], str], Awaitable[Any]],
        on_log: Callable[[protocol.Log | protocol.Progress | protocol.Late, str], None],
        clock: Clock | None = None,
    ) -> None:
        self.on_new_code: Callable[[], None] = _nobody
        self._address = address
        self._settings = settings
        self._make_init = make_init
        self._lease = lease
        self._answer = answer
        self._on_log = on_log
        self._clock = SystemClock() if clock is None else clock
        self._lock = asyncio.Lock()
        self._files: tuple[str, ...] = ()
        self._zygote = self._make_zygote()
        self._made: WeakKeyDictionary[Zygote, WeakSet[Controller]] = WeakKeyDictionary()
        self._leaving: dict[Zygote, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Starts the zygote, which imports the app.

        Raises:
            AppImportError: The app cannot be imported over there.
        """
        await self._begin(self._zygote)

    async def stop(self) -> None:
        """Ends the zygotes and what is left of their workers."""
        async with self._lock:
            await self.stop_drained()
            await self._zygote.stop()

    async def controller(self, space: str, *, on_over: Callable[[WorkerDied | None], None]) -> Controller:
        """Makes the controller of a space's next worker; starts another zygote when the last one has ended.

        Args:
            space: The tenant.
            on_over: See `Controller`.

        Raises:
            AppImportError: Another zygote was needed, and cannot import the app.
        """
        async with self._lock:
            if not self._zygote.alive:
                signals.emit(signals.NODE_TROUBLE, level="error", what="the zygote has ended; another one starts")
                await self._zygote.stop()
                another = self._make_zygote()
                await self._begin(another)
                self._zygote = another
                self.on_new_code()
        controller = Controller(
            self._zygote,
            space,
            self._make_init(space),
            self._settings,
            on_ask=lambda op, args, _run_id: self._answer(op, args, space),
            on_log=partial(self._logged, space),
            on_over=on_over,
            clock=self._clock,
        )
        self._made.setdefault(self._zygote, WeakSet()).add(controller)
        return controller

    async def reload(self) -> None:
        """Has another zygote import the app as it is now; workers of the old one finish what they have.

        Raises:
            AppImportError: The app cannot be imported as it is now: the old zygote stays.
        """
        async with self._lock:
            another = self._make_zygote()
            await self._begin(another)
            old, self._zygote = self._zygote, another
            for controller in list(self._made.get(old, ())):
                controller.retire()
            self._leaving[old] = asyncio.create_task(self._see_out(old), name="piecework-old-zygote")
        signals.emit(signals.ZYGOTE_REPLACED, pid=self._zygote.pid)
        self.on_new_code()

    async def reload_on_change(self, every_seconds: float) -> None:
        """Calls `reload` whenever a file of the app's own code has changed; a file that cannot be imported is told.

        Args:
            every_seconds: How often the files are looked at.
        """
        watch = CodeWatch(lambda: self._files)  # here and now: what changes from the call on is seen
        while True:
            await asyncio.sleep(every_seconds)
            changed = await asyncio.to_thread(watch.changed)
            if not changed:
                continue
            try:
                await self.reload()
            except PieceworkError as error:
                what = f"reading {', '.join(sorted(changed))} again; the code from before stays"
                signals.emit(signals.NODE_TROUBLE, level="error", what=what, error=error.message)

    async def stop_drained(self) -> None:
        """Ends the workers that only finish what they have, and the zygotes that they came from."""
        leaving = dict(self._leaving)
        controllers = [controller for zygote in leaving for controller in list(self._made.get(zygote, ()))]
        controllers += [one for one in list(self._made.get(self._zygote, ())) if one.state is State.DRAINING]
        for failed in await asyncio.gather(*(one.stop() for one in controllers), return_exceptions=True):
            if isinstance(failed, Exception):
                self._in_trouble("ending a worker of the code from before", failed)
        await asyncio.gather(*leaving.values(), return_exceptions=True)

    async def _begin(self, zygote: Zygote) -> None:
        try:
            await zygote.start()
        finally:  # also where one of them cannot be imported: once it is mended it has changed
            self._files = tuple(dict.fromkeys((*self._files, *zygote.files)))

    async def _see_out(self, old: Zygote) -> None:
        drains = (controller.drain() for controller in list(self._made.get(old, ())))
        try:
            for failed in await asyncio.gather(*drains, return_exceptions=True):
                if isinstance(failed, Exception):
                    self._in_trouble("ending a worker of the code from before", failed)
            await old.stop()
        except Exception as error:  # noqa: BLE001 - nobody waits for this but the end: shown
            self._in_trouble("ending the zygote of the code from before", error)
        finally:
            del self._leaving[old]

    def _in_trouble(self, what: str, error: Exception) -> None:
        signals.emit(signals.NODE_TROUBLE, level="error", what=what, error=describe(error))

    def _logged(self, space: str, said: protocol.Log | protocol.Progress | protocol.Late) -> None:
        self._on_log(said, space)

    def limits(self, space: str) -> dict[str, str]:
        """How each limit of a space is enforced here."""
        init = self._make_init(space)
        store = None if init.store_file is None else f"sqlite:///{init.store_file}"
        told = report(self._settings, mode=self._zygote.mode, store=store, database=init.database)
        return told if init.folder is None else told | {"folder": init.folder}

    def _make_zygote(self) -> Zygote:
        paths = [entry or str(Path.cwd()) for entry in sys.path]
        return Zygote(
            self._address.target,
            paths=paths,
            main_path=self._address.main_path,
            lease=self._lease,
            on_output=_show_output,
            limits=Limits.of(self._settings),
            spare=True,
        )


def _show_output(line: str, space: str | None) -> None:
    """What a worker prints goes to the node's log, line by line."""
    # The zygote was started for some run, and would put what was bound there on every line.
    Context().run(_log.info, line, space=space)


def _nobody() -> None:
    """Nobody waits for other code."""
