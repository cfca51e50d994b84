"""Connections to a SQLite file, each with a thread of its own.

A daemon thread per connection is a faster hop than an executor, and a statement that hangs can hold up neither the
loop nor the interpreter's exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import InvalidStateError
from piecework.services.session import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import sqlalchemy as sa

T = TypeVar("T")

INTERRUPT_AGAIN_SECONDS = 0.05
"""An interrupt that comes before its statement has begun is lost, so it is repeated."""

BUSY_TIMEOUT_SECONDS = 10
"""How long a statement waits for a writer of another process."""

_TAINTS = re.compile(r"\s*(pragma|attach|detach|create\s+temp)", re.IGNORECASE)


class SqliteBackend:
    """Opens sessions of one file; see `session.Backend`.

    Args:
        path: The file; the first session makes a new one, and switches it to WAL.
    """

    dialect = "sqlite"
    one_writer = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._engine: sa.Engine | None = None
        self._opening = asyncio.Lock()

    async def connect(self) -> Connection:
        """Opens one more session.

        Raises:
            sqlalchemy.exc.OperationalError: The file cannot be opened.
        """
        # One at a time: the first one switches the file to WAL, which no second one may disturb.
        async with self._opening:
            connection = Connection(self._connect, self.tables)
            try:
                await connection.open()
            except BaseException:
                connection.abandon()
                raise
        return connection

    def kind_of(self, error: Exception) -> tuple[str, str]:
        """What an error of the driver means, and what to do about it."""
        name = getattr(error, "sqlite_errorname", "")
        if isinstance(error, OSError):  # of the files of locks, beside it
            return "trouble", "does its folder exist, and may this process write there?"
        if name in {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_ROWID"}:
            return "duplicate", ""
        if not name or name.startswith(("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH")):
            return "invalid", ""  # no name: the statement never reached SQLite, because a value did not fit
        if name.startswith("SQLITE_BUSY"):
            return "trouble", "another writer holds it for longer than a statement waits; keep transactions short"
        if name == "SQLITE_CANTOPEN":
            return "trouble", "does its folder exist, and may this process write there?"
        return "trouble", "nothing of the statement was written"

    def tables(self, connection: sa.Connection) -> list[sa.Table]:
        """Reads which tables there are; for the thread of a connection."""
        from piecework.services import schema

        return schema.reflect(connection)

    def _connect(self) -> sa.Connection:
        # In the thread of the connection: importing SQLAlchemy takes too long for the loop. One engine for all of
        # them, because it keeps what it compiled.
        from piecework.services import schema

        if self._engine is None:
            self._engine = schema.engine_of(self.path, BUSY_TIMEOUT_SECONDS)
        return self._engine.connect()


class Connection:
    """One connection in a thread of its own; see `session.Session`.

    Args:
        connect: Opens it; called in the thread.
        reflect: Reads which tables there are; called in the thread.
    """

    def __init__(
        self, connect: Callable[[], sa.Connection], reflect: Callable[[sa.Connection], list[sa.Table]]
    ) -> None:
        self._connect = connect
        self._tables = reflect
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._connection: sa.Connection | None = None
        self._raw: Any = None
        self._unopened: BaseException | None = None
        self._depth = 0
        self._tainted = False
        self._pending: asyncio.Future[Any] | None = None
        self._stops = False
        self._thread = threading.Thread(target=self._serve, name="piecework-database", daemon=True)
        self._thread.start()

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is."""
        idle = self._pending is None or self._pending.done()
        return idle and not self._depth and not self._tainted and self._raw is not None and not self._raw.in_transaction

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more: its settings were changed by hand, or it is closed."""
        return self._tainted or self._raw is None

    @property
    def failed(self) -> str:
        """SQLite undoes the whole transaction when a writing statement of it is interrupted."""
        return "all" if self._depth and not self._raw.in_transaction else ""

    async def open(self) -> None:
        """Opens the file, which is made when it is not there.

        Raises:
            sqlalchemy.exc.OperationalError: The file cannot be opened.
        """
        await self.call(self._open)

    def open_soon(self) -> None:
        """Opens the file before anything else is done; what goes wrong fails the first statement."""

        def opening() -> None:
            try:
                self._open()
            except BaseException as error:  # noqa: BLE001 - raised to who asks first
                self._unopened = error

        self._inbox.put(opening)

    async def execute(self, statement: sa.Executable, params: Mapping[str, Any] | None = None) -> Answer:
        """Runs one statement; it commits by itself where no transaction was begun."""
        text = getattr(statement, "text", None)
        if text is not None and _TAINTS.match(text):
            self._tainted = True
        return await self.do(lambda: self._execute(statement, params))

    async def begin(self) -> None:
        """Begins a transaction that may write at once, or inside of one a savepoint."""
        await self.do(self._begin)

    async def commit(self) -> None:
        """Ends what was begun last and keeps it."""
        await self.do(lambda: self._end(keep=True), stops=False)

    async def rollback(self) -> None:
        """Ends what was begun last and undoes it."""
        await self.do(lambda: self._end(keep=False), stops=False)

    async def reflect(self) -> list[sa.Table]:
        """Reads which tables there are."""
        return await self.do(self._reflect)

    async def settle(self) -> None:
        """Waits for what its last caller left behind and undoes it."""
        if self._pending is not None:
            await self._until_done(self._pending, stops=self._stops)
        await self.do(self._undo, stops=False)

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

    async def do(self, work: Callable[[], T], *, stops: bool = True) -> T:
        """Runs `work` in the thread; a caller that is cancelled waits for its end.

        Args:
            work: What to do there.
            stops: Whether a cancel interrupts the statement, which then fails.
        """
        answer = self._pending = self.call(work)
        self._stops = stops
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_look)
            await self._until_done(answer, stops=stops)  # a second cancel leaves at once
            raise

    async def _until_done(self, answer: asyncio.Future[Any], *, stops: bool) -> None:
        while not answer.done():
            if stops and self._raw is not None:
                self._raw.interrupt()  # of no effect on a statement that has not begun
            await asyncio.wait([answer], timeout=INTERRUPT_AGAIN_SECONDS)

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

    @property
    def _opened(self) -> sa.Connection:
        if self._unopened is not None:
            raise self._unopened
        assert self._connection is not None, "open() comes first"
        return self._connection

    def _serve(self) -> None:
        while (job := self._inbox.get()) is not None:
            job()
            del job  # an idle thread must not keep the last statement's values alive

    # -- in the thread

    def _open(self) -> None:
        self._connection = self._connect()
        self._raw = self._connection.connection.dbapi_connection

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection, self._raw = self._connection, None, None
            connection.close()

    def _execute(self, statement: sa.Executable, params: Mapping[str, Any] | None) -> Answer:
        connection = self._opened
        try:
            result = connection.execute(statement, params)
            if result.returns_rows:
                answer = Answer(tuple(result.keys()), [tuple(row) for row in result.all()], result.rowcount)
            else:
                answer = Answer((), [], result.rowcount)
            if self._raw.in_transaction != bool(self._depth):
                raise InvalidStateError(
                    "the statement left a transaction open, or ended one, which was rolled back: "
                    "use `async with ws.database.transaction()`"
                )
        except BaseException:
            if not self._depth:
                connection.rollback()
            raise
        if not self._depth:
            connection.commit()
        return answer

    def _begin(self) -> None:
        if not self._opened.in_transaction():
            self._opened.begin()  # else SQLAlchemy rolls ours back when a value does not fit, before it begins its own
        name = f"piecework_{self._depth}"
        self._raw.execute(f"SAVEPOINT {name}" if self._depth else "BEGIN IMMEDIATE")
        self._depth += 1

    def _end(self, *, keep: bool) -> None:
        depth = self._depth - 1
        if not self._raw.in_transaction:
            self._depth = depth
            if keep:
                raise InvalidStateError("the transaction is gone: a statement of it was interrupted or ended it")
            return
        if not depth:
            self._raw.execute("COMMIT" if keep else "ROLLBACK")
        else:
            if not keep:
                self._raw.execute(f"ROLLBACK TO piecework_{depth}")
            self._raw.execute(f"RELEASE piecework_{depth}")
        self._depth = depth

    def _undo(self) -> None:
        self._depth = 0
        if self._raw is not None and self._raw.in_transaction:
            self._raw.execute("ROLLBACK")
        if self._connection is not None:
            self._connection.rollback()

    def _reflect(self) -> list[sa.Table]:
        try:
            return self._tables(self._opened)
        finally:
            if not self._depth:
                self._opened.rollback()


def _post(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
        loop.call_soon_threadsafe(settle, *args)


def _look(answer: asyncio.Future[Any]) -> None:
    """Sees what a statement came to whose caller has gone: else the loop complains that nobody did."""
    if not answer.cancelled():
        answer.exception()


def _succeed(answer: asyncio.Future[T], value: T) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
