"""Connections to a SQLite file, each with a thread of its own, and the pool that lends them for one statement.

A daemon thread per connection is a faster hop than an executor, and a statement that hangs can hold up neither the
loop nor the interpreter's exit. A lease ends when its statement ends, not when the caller stops waiting: a cancelled
caller interrupts the statement and waits for the thread's answer, so that nothing is written after it has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import ClosedError, InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import sqlalchemy as sa

    from piecework.services.schema import Schema

T = TypeVar("T")

INTERRUPT_AGAIN_SECONDS = 0.05
"""An interrupt that comes before its statement has begun is lost, so it is repeated."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement brought.

    Attributes:
        columns: Names of the columns, in order; empty for a statement without rows.
        rows: The values of each row.
        count: How many rows were changed; -1 where the engine does not tell.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    count: int


class Connection:
    """One connection in a thread of its own; runs one statement at a time, each its own transaction.

    Args:
        connect: Opens it; called in the thread.
    """

    def __init__(self, connect: Callable[[], sa.Connection]) -> None:
        self._connect = connect
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._connection: sa.Connection | None = None
        self._raw: Any = None
        self._thread = threading.Thread(target=self._serve, name="piecework-database", daemon=True)
        self._thread.start()

    async def open(self) -> None:
        """Opens the file, which is made when it is not there.

        Raises:
            sqlalchemy.exc.OperationalError: The file cannot be opened.
        """
        await self.call(self._open)

    def execute(self, statement: sa.Executable) -> asyncio.Future[Answer]:
        """Starts a statement and commits it; the future brings its rows."""
        return self.call(lambda: _execute(self._opened, self._raw, statement))

    def reflect(self) -> asyncio.Future[Schema]:
        """Starts to read which tables there are."""
        return self.call(lambda: _reflect(self._opened))

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Runs `work` in the thread, after what was asked before; the future is settled on the caller's loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                value = work()
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller, who gets it here
                _post(loop, _fail, answer, error)
            else:
                _post(loop, _succeed, answer, value)

        self._inbox.put(job)
        return answer

    def interrupt(self) -> None:
        """Asks the statement under way to stop; it then fails and nothing of it is written."""
        if self._raw is not None:
            self._raw.interrupt()

    async def close(self) -> None:
        """Closes the connection and ends its thread, after what was asked before."""
        try:
            await self.call(self._close)
        finally:
            self._inbox.put(None)
        # The thread has answered and has only to return: this wait is as short as a function's end.
        self._thread.join()

    def abandon(self) -> None:
        """Like `close`, for a caller that cannot wait."""
        self._inbox.put(self._close)
        self._inbox.put(None)

    @property
    def _opened(self) -> sa.Connection:
        assert self._connection is not None, "open() comes first"
        return self._connection

    def _serve(self) -> None:
        while (job := self._inbox.get()) is not None:
            job()
            del job  # an idle thread must not keep the last statement's values alive

    def _open(self) -> None:
        self._connection = self._connect()
        self._raw = self._connection.connection.dbapi_connection

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection, self._raw = self._connection, None, None
            connection.close()


class Pool:
    """Lends connections, at most `size` at once; opens them on demand and keeps them.

    Args:
        path: The database file.
        size: The most connections there ever are; further callers wait their turn.
    """

    def __init__(self, path: Path, *, size: int) -> None:
        self._path = path
        self._size = size
        self._engine: sa.Engine | None = None
        self._permits = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._opening = asyncio.Lock()
        self._closing = asyncio.Lock()
        self._closed = False
        self.leased = 0

    async def run(self, start: Callable[[Connection], asyncio.Future[T]]) -> T:
        """Leases a connection for what `start` starts on it, until that has ended.

        Raises:
            ClosedError: The pool was closed.
        """
        connection = await self._lease()
        answer = start(connection)
        answer.add_done_callback(lambda ended: self._release(connection, ended))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # A second cancel leaves at once; the lease still ends with the statement.
            while not answer.done():
                connection.interrupt()
                await asyncio.wait([answer], timeout=INTERRUPT_AGAIN_SECONDS)
            raise

    async def close(self) -> None:
        """Waits for the statements under way, closes every connection and ends the threads; again is nothing."""
        self._closed = True
        async with self._closing:
            taken = 0
            try:
                for _ in range(self._size):
                    await self._permits.acquire()
                    taken += 1
                while self._idle:
                    await self._idle.pop().close()
            finally:
                for _ in range(taken):
                    self._permits.release()

    async def _lease(self) -> Connection:
        await self._permits.acquire()
        try:
            if self._closed:
                raise ClosedError(f"the database {self._path} was closed: its app has stopped", path=str(self._path))
            connection = self._idle.pop() if self._idle else await self._open()
        except BaseException:
            self._permits.release()
            raise
        self.leased += 1
        return connection

    async def _open(self) -> Connection:
        # One at a time: the first one switches the file to WAL, which no second one may disturb.
        async with self._opening:
            connection = Connection(self._connect)
            try:
                await connection.open()
            except BaseException:
                connection.abandon()
                raise
        return connection

    def _connect(self) -> sa.Connection:
        # In the thread of the connection: importing SQLAlchemy takes too long for the loop. One engine for all of
        # them, because it keeps what it compiled.
        from piecework.services import schema

        if self._engine is None:
            self._engine = schema.engine_of(self._path)
        return self._engine.connect()

    def _release(self, connection: Connection, ended: asyncio.Future[Any]) -> None:
        if not ended.cancelled():
            ended.exception()  # seen: when its caller was cancelled nobody else looks at it
        self._idle.append(connection)
        self.leased -= 1
        self._permits.release()


def _execute(connection: sa.Connection, raw: Any, statement: sa.Executable) -> Answer:
    try:
        result = connection.execute(statement)
        if result.returns_rows:
            columns = tuple(result.keys())
            answer = Answer(columns, [tuple(row) for row in result.all()], result.rowcount)
        else:
            answer = Answer((), [], result.rowcount)
        if raw.in_transaction:
            raise InvalidStateError(
                "the statement left a transaction open, which was rolled back: one statement is one transaction here"
            )
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
    return answer


def _reflect(connection: sa.Connection) -> Schema:
    from piecework.services import schema

    try:
        return schema.reflect(connection)
    finally:
        connection.rollback()


def _post(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
        loop.call_soon_threadsafe(settle, *args)


def _succeed(answer: asyncio.Future[T], value: T) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
