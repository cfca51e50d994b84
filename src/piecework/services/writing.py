"""Whose turn it is to write to a SQLite file: in the order of asking, without holding a connection or a thread.

SQLite lets one transaction write at a time and has the others try again and again; in one process this queue spares
them that, and knows when somebody waits for itself.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from piecework.errors import DatabaseError, DeadlockError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_SECONDS = 10
"""How long a writer waits for the others of this process."""


class Writing:
    """The turn to write.

    Attributes:
        holder: Who has it, in words; empty when nobody has.
    """

    def __init__(self) -> None:
        self.holder = ""
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[object] | None = None

    async def begin(self, holder: str) -> None:
        """Waits for the turn.

        Raises:
            DeadlockError: The caller's own task has it, in another workspace's transaction.
            DatabaseError: It did not come in time.
        """
        task = asyncio.current_task()
        if self._lock.locked():
            if self._task is task:
                raise DeadlockError(
                    f"{holder} wants to write while it is awaited inside the {self.holder}, which only ends when it "
                    "has ended: write in the transaction itself, or after it",
                    holder=self.holder,
                    waiter=holder,
                )
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._lock.acquire()
            except TimeoutError:
                raise DatabaseError(
                    f"{holder}: the database is locked by the {self.holder}, for longer than a statement waits; keep "
                    "transactions short",
                    holder=self.holder,
                ) from None
        else:
            await self._lock.acquire()
        self.holder, self._task = holder, task

    def end(self) -> None:
        """Gives the turn to the next."""
        self.holder, self._task = "", None
        self._lock.release()

    @asynccontextmanager
    async def turn(self, holder: str) -> AsyncIterator[None]:
        """The turn for the body of a `with`; errors as of `begin`."""
        await self.begin(holder)
        try:
            yield
        finally:
            self.end()
