"""Where workers come from: the zygote, started again when it has ended, and a controller for each worker."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.process.launch import Zygote
from piecework.space.controller import Controller
from piecework.telemetry import logs, signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
        on_log: Takes each log line of a worker's user code, with its space.
    """

    def __init__(
        self,
        address: Address,
        settings: Settings,
        *,
        make_init: Callable[[str], protocol.Init],
        lease: Lease,
        answer: Callable[[str, dict[str, Any], str], Awaitable[Any]],
        on_log: Callable[[protocol.Log, str], None],
    ) -> None:
        self._address = address
        self._settings = settings
        self._make_init = make_init
        self._lease = lease
        self._answer = answer
        self._on_log = on_log
        self._lock = asyncio.Lock()
        self._zygote = self._make_zygote()

    async def start(self) -> None:
        """Starts the zygote, which imports the app.

        Raises:
            AppImportError: The app cannot be imported over there.
        """
        await self._zygote.start()

    async def stop(self) -> None:
        """Ends the zygote and what is left of its workers."""
        async with self._lock:
            await self._zygote.stop()

    async def controller(self, space: str) -> Controller:
        """Makes the controller of a space's next worker; starts another zygote when the last one has ended."""
        async with self._lock:
            if not self._zygote.alive:
                signals.emit(signals.NODE_TROUBLE, level="error", what="the zygote has ended; another one starts")
                await self._zygote.stop()
                another = self._make_zygote()
                await another.start()
                self._zygote = another
        return Controller(
            self._zygote,
            space,
            self._make_init(space),
            self._settings,
            on_ask=lambda op, args, _run_id: self._answer(op, args, space),
            on_log=partial(self._logged, space),
        )

    def _logged(self, space: str, line: protocol.Log) -> None:
        self._on_log(line, space)

    def _make_zygote(self) -> Zygote:
        paths = [entry or str(Path.cwd()) for entry in sys.path]
        return Zygote(
            self._address.target,
            paths=paths,
            main_path=self._address.main_path,
            lease=self._lease,
            on_output=_show_output,
        )


def _show_output(line: str, space: str | None) -> None:
    """What a worker prints goes to the node's log, line by line."""
    _log.info(line, space=space)
