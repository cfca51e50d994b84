"""The heartbeat of a node: a thread with a loop and a connection of its own; a briefly blocked loop loses nothing.

A loop that stands still for long is another matter: its node does nothing for its runs any more, so the thread stops
renewing and says so; others may take over. It goes on when the loop does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from piecework.clock import boottime
from piecework.errors import ClosedError
from piecework.store.contract import Failure, nobody
from piecework.store.postgres_commit import LostError, pause_seconds, transact
from piecework.store.postgres_link import translate
from piecework.store.postgres_pool import close
from piecework.telemetry.signals import NODE_TROUBLE, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import asyncpg

    from piecework.store.contract import Decide, Verb
    from piecework.store.postgres import PostgresStore

_TICK_SECONDS = 1.0


class Heartbeat:
    """Runs a verb every few seconds, for as long as the loop that started it moves.

    Args:
        store: An open one; its loop is the one that is watched.
        beat: Makes the verb that renews, its item and its decision; called in the thread. The verb's moment is the
            corrected clock's.
        every_seconds: Between the beginnings of two renewals.
        stall_seconds: How long the loop may stand still before the thread stops renewing.
        on_stall: Called in the thread, once each time the loop stands still, with the seconds that it has.
        on_held: Called in the thread after each renewal that went through, with the moment before it began, in seconds
            of CLOCK_BOOTTIME.
        on_renewed: Called on the loop with the outcome of each renewal; a `Failure` where the decision was refused.
    """

    def __init__(
        self,
        store: PostgresStore,
        beat: Callable[[], tuple[Verb, Any, Decide]],
        *,
        every_seconds: float = 3,
        stall_seconds: float = 60,
        on_stall: Callable[[float], None] | None = None,
        on_held: Callable[[float], None] = nobody,
        on_renewed: Callable[[Any], None] | None = None,
    ) -> None:
        self._store = store
        self._beat = beat
        self._every_seconds = every_seconds
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._on_held = on_held
        self._on_renewed = on_renewed
        self._thread: threading.Thread | None = None
        self._watched: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._ticked = time.monotonic()
        self._first: asyncio.Future[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._stopping = threading.Event()

    async def start(self) -> None:
        """Starts the thread and waits for the first renewal.

        Raises:
            ClosedError: It was started before.
            Exception: What made the first renewal fail; the thread has ended then.
        """
        if self._thread is not None:
            raise ClosedError("the heartbeat was started before: make a new one")
        self._watched = asyncio.get_running_loop()
        self._first = self._watched.create_future()
        self._ticked = time.monotonic()
        self._ticker = self._watched.create_task(self._tick(), name="piecework-tick")
        self._thread = threading.Thread(target=self._run, name="piecework-heartbeat", daemon=True)
        self._thread.start()
        try:
            await asyncio.shield(self._first)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the thread, in mid-renewal if need be, and waits until it has gone. Stopping twice is harmless."""
        if self._thread is None:
            return
        self._stopping.set()
        own, beating = self._own, self._beating
        if own is not None and beating is not None:
            with contextlib.suppress(RuntimeError):  # the thread's loop has closed already
                own.call_soon_threadsafe(beating.cancel)
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except asyncio.CancelledError as error:  # a thread left behind would go on renewing
                cancelled = error
        self._thread.join()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait({self._ticker})
        if cancelled is not None:
            raise cancelled

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(min(_TICK_SECONDS, self._stall_seconds / 4))

    def _run(self) -> None:
        """The thread: a loop of its own until it is stopped."""
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._beat_on())
        except Exception as error:  # noqa: BLE001 - a fault of ours, and the lease will expire: say so
            emit(NODE_TROUBLE, level="error", what="heartbeat", error=str(error) or repr(error))
            self._tell_first(error)
        finally:
            self._on_loop(self._ended.set)

    async def _beat_on(self) -> None:
        self._own, self._beating = asyncio.get_running_loop(), asyncio.current_task()
        connection: asyncpg.Connection[Any] | None = None
        stalled, failed = False, 0
        try:
            while not self._stopping.is_set():
                began, quiet = time.monotonic(), time.monotonic() - self._ticked
                if quiet >= self._stall_seconds:
                    if not stalled:
                        self._say_stalled(quiet)
                    stalled = True
                else:
                    stalled = False
                    connection, renewed = await self._renew(connection)
                    failed = 0 if renewed else failed + 1
                left = began + self._every_seconds - time.monotonic()
                await asyncio.sleep(min(left, pause_seconds(failed, self._every_seconds)) if failed else max(0, left))
        finally:
            if connection is not None:
                await close(connection)

    async def _renew(self, connection: asyncpg.Connection[Any] | None) -> tuple[asyncpg.Connection[Any] | None, bool]:
        """Renews once; answers the connection to go on with, and whether it went well."""
        link = self._store.link
        began = boottime()
        try:
            async with asyncio.timeout(link.connect_seconds + link.lock_seconds):
                if connection is None:
                    connection = await link.connect()
                verb, item, decide = self._beat()
                now = self._store.clock.now() + self._store.clock_offset
                (outcome,), told = await transact(connection, verb, [item], decide, now)
        except Exception as error:  # noqa: BLE001 - the next renewal may go through; the lease is long enough for some
            emit(NODE_TROUBLE, level="warning", what="heartbeat", error=str(error) or repr(error))
            self._tell_first(translate(error.__cause__ or error, self._store.url))
            if connection is not None and (isinstance(error, LostError | TimeoutError) or connection.is_closed()):
                connection.terminate()
                connection = None
            return connection, False
        except BaseException:
            if connection is not None:
                connection.terminate()
            raise
        if not isinstance(outcome, Failure):
            self._on_held(began)
        self._on_loop(self._pass_on, outcome, told)
        return connection, True

    def _pass_on(self, outcome: Any, told: Iterable[str]) -> None:
        """On the loop: tells what a renewal brought."""
        self._store.tell(told)
        if self._first is not None and not self._first.done():
            if isinstance(outcome, Failure):
                self._first.set_exception(outcome.error)
            else:
                self._first.set_result(None)
        if self._on_renewed is not None:
            self._on_renewed(outcome)

    def _tell_first(self, error: BaseException) -> None:
        def fail() -> None:
            if self._first is not None and not self._first.done():
                self._first.set_exception(error)

        self._on_loop(fail)

    def _say_stalled(self, quiet: float) -> None:
        what = f"the loop has stood still for {quiet:.0f} seconds: the node is not renewed until it moves"
        emit(NODE_TROUBLE, level="error", what="heartbeat", error=what)
        if self._on_stall is not None:
            try:
                self._on_stall(quiet)
            except Exception as error:  # noqa: BLE001 - the heart beats on
                emit(NODE_TROUBLE, level="error", what="heartbeat", error=str(error) or repr(error))

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._watched is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits there any more
                self._watched.call_soon_threadsafe(call, *arguments)
