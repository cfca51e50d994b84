"""Connections that are lent: a place first, which may have to be waited for, then a connection for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from piecework.store.postgres_link import Link

_CLOSE_SECONDS = 5


class Pool:
    """At most so many connections of one event loop, made when they are first needed and kept.

    Args:
        link: Makes them.
        size: How many there are at most.

    Raises:
        ValidationError: There would be none.
    """

    def __init__(self, link: Link, size: int) -> None:
        if size < 1:
            raise ValidationError(f"a pool of {size} connections can do nothing: give at least 1")
        self._link = link
        self._size = size
        self._places = asyncio.Semaphore(size)
        self._idle: list[asyncpg.Connection[Any]] = []

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Waits for a place. Who has one may take one connection at a time."""
        async with self._places:
            yield

    async def take(self) -> asyncpg.Connection[Any]:
        """Takes a connection, a new one if all that are idle have gone.

        Raises:
            OSError: The server cannot be reached.
            asyncpg.PostgresError: It refused.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._link.connect()

    def give(self, connection: asyncpg.Connection[Any]) -> None:
        """Gives a connection back; one in the middle of something is ended, its transaction with it."""
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Waits until every place is free, then closes the connections."""
        for _ in range(self._size):
            await self._places.acquire()
        idle, self._idle = self._idle, []
        await asyncio.gather(*map(close, idle))


async def close(connection: asyncpg.Connection[Any]) -> None:
    """Closes a connection, whatever state it and the server are in."""
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except Exception:  # noqa: BLE001 - it goes one way or the other, and nothing of ours depends on which
        connection.terminate()
