"""The heartbeat of a node whose store has a lock: nothing is written, but somebody else still wants to hear it.

The lock tells other processes that the node lives, also while it was stopped; what the node has started is to end then
all the same. So a thread says that it lives, for as long as the loop moves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from piecework.clock import boottime
from piecework.telemetry.signals import NODE_TROUBLE, emit

if TYPE_CHECKING:
    from collections.abc import Callable

_TICK_SECONDS = 1.0


class LockHeartbeat:
    """Says every few seconds that the node lives, for as long as the loop that started it moves.

    Args:
        every_seconds: How often.
        stall_seconds: How long the loop may stand still before nothing is said any more.
        on_held: Called in the thread with the moment, in seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, *, every_seconds: float, stall_seconds: float, on_held: Callable[[float], None]) -> None:
        self._every_seconds = every_seconds
        self._stall_seconds = stall_seconds
        self._on_held = on_held
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._ticked = 0.0

    async def start(self) -> None:
        """Says it, and from now on again and again."""
        self._ticked = time.monotonic()
        self._on_held(boottime())
        self._ticker = asyncio.create_task(self._tick(), name="piecework-tick")
        self._thread = threading.Thread(target=self._run, name="piecework-heartbeat", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Says it no more. Stopping twice is harmless."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()  # it only ever waits for this
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait({self._ticker})

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(min(_TICK_SECONDS, self._stall_seconds / 4))

    def _run(self) -> None:
        stalled = False
        while not self._stopping.wait(self._every_seconds):
            quiet = time.monotonic() - self._ticked
            if quiet < self._stall_seconds:
                stalled = False
                self._on_held(boottime())
            elif not stalled:
                stalled = True
                what = f"the loop has stood still for {quiet:.0f} seconds: what it has started is ended"
                emit(NODE_TROUBLE, level="error", what="heartbeat", error=what)
