"""PostgreSQL: a store that many processes are nodes of, in a schema of its own.

Read `postgres_requests` for how a verb's requests become statements, `postgres_lanes` for what shares a transaction,
`postgres_commit` for what happens when one fails, `postgres_news` for how processes hear of each other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework.clock import SystemClock
from piecework.errors import ClosedError
from piecework.store.contract import Read, nobody
from piecework.store.job import Job
from piecework.store.postgres_beat import Heartbeat
from piecework.store.postgres_commit import Batches, LostError, patiently
from piecework.store.postgres_lanes import Lanes
from piecework.store.postgres_link import Address, Link, is_lost, translate
from piecework.store.postgres_news import News
from piecework.store.postgres_pool import Pool, close
from piecework.store.postgres_requests import select
from piecework.store.postgres_schema import migrate_postgres
from piecework.store.values import check_params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from piecework.clock import Clock
    from piecework.store.contract import Decide, Verb
    from piecework.store.records import Record


class PostgresStore:
    """A store in a PostgreSQL database.

    Args:
        url: `postgresql://USER@HOST/DATABASE[?schema=NAME]`; the schema is `piecework` unless it is named.
        clock: What the node goes by; None means the machine's own. Only that one is corrected by `clock_offset`.
        pool_size: Connections for verbs and readers together; one more listens.
        connect_seconds: How long the making of a connection may take.
        reconnect_seconds: How long the server may be away before what waits for it fails.
        create: Whether a schema that is not there is made; a client leaves that to a node.
        lock_seconds: How long a statement waits for a lock before its transaction is tried again.

    Attributes:
        shared: True: other processes may be nodes of it at the same time.

    Raises:
        ValidationError: The address or a number is not acceptable.
    """

    shared = True

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        pool_size: int = 10,
        connect_seconds: float = 10,
        reconnect_seconds: float = 30,
        lock_seconds: float = 5,
        create: bool = True,
    ) -> None:
        self.link = Link(
            Address.parse(url),
            connect_seconds=connect_seconds,
            lock_seconds=lock_seconds,
            silence_seconds=reconnect_seconds,
        )
        self.clock: Clock = SystemClock() if clock is None else clock
        self._reconnect_seconds = reconnect_seconds
        self._create = create
        self._pool = Pool(self.link, pool_size)
        self._news = News(self.link, self.clock)
        self._lanes = Lanes(self._pool, Batches(self._pool, self.url, self.tell, reconnect_seconds), self.url)
        self._opened = False
        self._closed = False
        self._ready = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the store is, without secrets."""
        return self.link.address.place.url

    @property
    def clock_offset(self) -> int:
        """What has to be added to this machine's clock to get the database's, in microseconds."""
        return self._news.clock_offset

    async def open(self) -> None:
        """Connects, creates the schema or brings it up to date, measures the clock and listens.

        Raises:
            StoreUnavailableError: The server cannot be reached.
            StoreError: The role, its password or the database is wrong, or the role lacks a right; the message says
                which.
            StoreFormatError: The schema is somebody else's; untouched.
            SchemaVersionError: It was written by a newer version; untouched.
            ClosedError: The store was opened before.
        """
        if self._opened:
            raise ClosedError(f"the store {self.url} was opened before: make a new one")
        self._opened = True
        connection = await self.link.first()
        try:
            await migrate_postgres(connection, self.link.address.place, create=self._create)
            await self._news.start(connection)
        except BaseException as error:
            await close(connection)
            if isinstance(error, Exception):
                raise translate(error, self.url) from error
            raise
        self._ready = True

    async def close(self) -> None:
        """Finishes what was submitted, then closes every connection. Closing twice is harmless."""
        if self._closing is None:
            self._opened = self._closed = True
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="piecework-close")
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait({self._closing})
            except asyncio.CancelledError as error:  # what was submitted is finished all the same
                cancelled = error
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    async def _close(self) -> None:
        await self._lanes.drain()
        await self._news.close()
        await self._pool.close()

    async def run(
        self, verb: Verb, item: Any, decide: Decide, now: int, then: Callable[[Any], None] | None = None
    ) -> Any:
        """Submits one item of a verb and returns its outcome once it is durable.

        `then` is called with the outcome as soon as there is one, also when the caller has been cancelled meanwhile.

        Raises:
            ClosedError: The store has been closed.
            StoreError: It could not be written; nothing of the item was.
            StoreUnavailableError: The server went in mid-commit and did not come back in time.
            PieceworkError: What the decision raised for this item.
        """
        self._check_open()
        job = Job(verb, item, decide, now, asyncio.get_running_loop().create_future(), then)
        self._lanes.submit(job)
        # A caller that is cancelled takes its future along, but what it submitted is decided all the same.
        return await job.future

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query outside of any verb, on a connection of the pool.

        Raises:
            ClosedError: The store has been closed.
            ValidationError: A parameter is nothing that a store can hold.
            StoreUnavailableError: The server was away for too long.
            StoreError: The query failed.
        """
        self._check_open()
        check_params(params)
        request = Read(name, params, into)
        async with self._pool.place():
            try:
                return await patiently(lambda: self._select(request), self.url, self._reconnect_seconds)
            except Exception as error:
                told = translate(error, self.url)
                if told is error:
                    raise
                raise told from error

    async def _select(self, request: Read) -> list[Any]:
        try:
            connection = await self._pool.take()
        except Exception as error:
            raise LostError(error, unknown=False) from error
        try:
            return await select(connection, request)
        except Exception as error:
            if not is_lost(error, connection):
                raise
            connection.terminate()
            raise LostError(error, unknown=False) from error
        except asyncio.CancelledError:
            connection.terminate()  # its answer is under way, and would be the next one's
            raise
        finally:
            self._pool.give(connection)

    def listen(self, hear: Callable[[frozenset[str]], None]) -> None:
        """Has `hear` called on the loop with what other processes tell, or with `*` when some of it may be missed."""
        self._news.listen(hear)

    def heartbeat(
        self,
        beat: Callable[[], tuple[Verb, Any, Decide]],
        *,
        every_seconds: float,
        stall_seconds: float,
        on_held: Callable[[float], None] = nobody,
    ) -> Heartbeat:
        """What renews a node's lease from a thread and a connection of its own.

        Args:
            beat: Makes the verb that says so, its item and decision; called in that thread.
            every_seconds: How often.
            stall_seconds: After how long without a turn of this loop it says nothing any more.
            on_held: Called in that thread after each renewal, with the moment before it began, of CLOCK_BOOTTIME.
        """
        return Heartbeat(self, beat, every_seconds=every_seconds, stall_seconds=stall_seconds, on_held=on_held)

    def tell(self, topics: Iterable[str]) -> None:
        """Has topics told to the other processes soon. Belongs to the loop that opened the store."""
        self._news.tell(topics)

    def _check_open(self) -> None:
        if self._closed or not self._ready:
            raise ClosedError(f"the store {self.url} is not open")
