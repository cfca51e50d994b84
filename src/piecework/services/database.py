"""The application's own database: one `Database` per process, shared by every workspace in it.

What users see is `tables.WorkspaceDatabase`; here are the pool, the tables and the words for what goes wrong.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from piecework.errors import DatabaseError, DuplicateKeyError, PieceworkError, ValidationError
from piecework.services.lockfiles import LockFiles
from piecework.services.locks import Locks
from piecework.services.pool import Pool, PoolStatus
from piecework.services.relations import Schema
from piecework.services.sqlite import SqliteBackend
from piecework.services.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import sqlalchemy as sa

    from piecework.services.outbox import Outbox
    from piecework.services.pool import Lease
    from piecework.services.session import Answer, Backend, Session

_PREFIX = "sqlite:///"


class Database:
    """The application's database: opened on first use, closed with the app. A statement leases a connection.

    Args:
        url: `sqlite:///` and the path of a file, relative to the working folder or absolute; or
            `postgresql://[user[:password]@]host[:port]/database`.
        pool_size: The most connections at once; further statements wait their turn.
        wait_seconds: How long they wait.

    Attributes:
        backend: Opens them.
        fleeting: Whether what is written into it is gone soon: in a workspace whose data is not shared.
        pool: The connections.
        locks: What `ws.database.lock` takes.
        writing: Whose turn it is to write, where only one can.
        outbox: Where transactions write what goes to the store with their commit; None where no app opened it.

    Raises:
        ValidationError: The URL is of another kind, or the pool has no place.
        MissingExtraError: It is of PostgreSQL, and asyncpg is not installed.
    """

    fleeting = False
    _first: Callable[[], Awaitable[Schema | None]] | None = None

    def __init__(self, url: str, *, pool_size: int = 10, wait_seconds: float = 30) -> None:
        if pool_size < 1:
            raise ValidationError(f"a pool of {pool_size} connections can do nothing: give at least 1")
        self._set_up(_backend_of(url), pool_size, wait_seconds)
        self.outbox: Outbox | None = None
        self._declared: dict[str, sa.Table] = {}
        self._schema: Schema | None = None
        self._reflecting = asyncio.Lock()

    def _set_up(self, backend: Backend, size: int, wait_seconds: float, locks: Locks | None = None) -> None:
        self.backend = backend
        self.pool = Pool(backend, size=size, wait_seconds=wait_seconds)
        self.locks = locks or Locks(_external(backend))
        self.writing = Writing() if backend.one_writer else None
        self._wait_seconds = wait_seconds

    def over(
        self,
        backend: Backend,
        *,
        size: int,
        locks: Locks | None = None,
        first: Callable[[], Awaitable[Schema | None]] | None = None,
    ) -> Database:
        """A database of the same tables, by other connections: what a workspace has whose data is not shared.

        Args:
            backend: Opens them.
            size: The most of them.
            locks: What `lock` takes; None means locks of its own.
            first: Gives its tables the first time, or None where they have to be read.
        """
        other = object.__new__(Database)
        other._set_up(backend, size, self._wait_seconds, locks)
        other.outbox = None if self.outbox is None else self.outbox.without_rows()
        other._declared = dict(self._declared)
        other._schema = None
        other._first = first
        other._reflecting = asyncio.Lock()
        other.fleeting = True
        return other

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        return self.backend.url

    @property
    def dialect(self) -> str:
        """Which engine it is of: `sqlite` or `postgresql`."""
        return self.backend.dialect

    @property
    def leased(self) -> int:
        """How many connections are in use now."""
        return self.pool.status.leased

    @property
    def status(self) -> PoolStatus:
        """What the pool is doing now."""
        return self.pool.status

    async def execute(
        self,
        statement: sa.Executable,
        params: dict[str, Any] | None = None,
        *,
        verb: str,
        table: str = "",
        holder: str = "a statement",
        held: Sequence[Lease] = (),
    ) -> Answer:
        """Runs one statement and commits it.

        Args:
            statement: What SQLAlchemy compiles.
            params: Its parameters.
            verb: What it does, for errors ("insert").
            table: The table it is about, for errors.
            holder: Who does it, for errors.
            held: The leases that the caller has already.

        Raises:
            DuplicateKeyError: A unique key is taken.
            ValidationError: A value or a constraint does not hold; nothing was written.
            PoolExhaustedError: No connection came free.
            DatabaseError: The database cannot do it now: locked, full, damaged, or no such file.
            ClosedError: The database was closed.
        """
        try:
            return await self.pool.run(lambda session: session.execute(statement, params), holder=holder, held=held)
        except Exception as error:  # noqa: BLE001 - explain() raises it again, in our words
            self.explain(error, verb, table)

    async def connect(self) -> Session:
        """Opens one more session, outside of the pool; it is the caller's to close.

        Raises:
            Exception: The driver's; `explain` tells what it means.
        """
        return await self.backend.connect()

    @property
    def known(self) -> Schema | None:
        """The tables as they were read last; None where they have to be read."""
        return self._schema

    async def schema(self, *, than: Schema | None = None) -> Schema:
        """The tables as they are.

        Args:
            than: What was seen to lack something: they are read again, unless somebody else did meanwhile.

        Raises:
            DatabaseError: The database cannot be opened or read.
            ClosedError: The database was closed.
        """
        if self._schema is not None and self._schema is not than:
            return self._schema
        if self._first is not None:
            first, self._first = self._first, None
            self._schema = await first()
            if self._schema is not None:
                return self._schema
        async with self._reflecting:
            if self._schema is None or self._schema is than:
                self._schema = await self.read()
        return self._schema

    def declare(self, tables: Sequence[sa.Table]) -> None:
        """Makes tables known as they are declared; their types win over those that are read."""
        from piecework.services import schema

        for table in tables:
            self._declared[table.name] = schema.mirror(table)
        self.forget_tables()

    def declares(self, name: str) -> bool:
        """Whether a table of that name was declared."""
        return name in self._declared

    def forget_tables(self) -> None:
        """Has the tables read again at their next use: their definition may have changed."""
        self._schema = None

    async def close(self) -> None:
        """Waits for the statements under way, then closes every connection; closing again does nothing."""
        await self.locks.close()
        await self.pool.close()

    def explain(self, error: Exception, verb: str, table: str) -> NoReturn:
        """Raises what an error of the driver means; what is ours already is raised as it is.

        Raises:
            PieceworkError: Of the kind that it is.
        """
        cause: Any = getattr(error, "orig", None) or error
        if isinstance(cause, PieceworkError):
            raise cause
        kind, advice = self.backend.kind_of(cause)
        what = f"{verb} {table}".strip()
        said = f"{what}: {' '.join(str(cause).split(' (Background', 1)[0].split())}".rstrip(
            "."
        )  # SQLAlchemy adds a link of its own
        data = {"verb": verb, "table": table}
        if kind == "duplicate":
            raise DuplicateKeyError(
                f"{said}. Use insert_missing() to leave the row that is there alone", **data
            ) from error
        if kind == "invalid":
            raise ValidationError(f"{said}. Nothing was written", **data) from error
        raise DatabaseError(f"{said}: {advice} (database {self.url})", **data) from error

    async def read(self, session: Session | None = None) -> Schema:
        """Reads which tables there are.

        Args:
            session: What to read them by; None means any.

        Raises:
            DatabaseError: They cannot be read.
        """
        read: Callable[[Session], Awaitable[list[sa.Table]]] = lambda session: session.reflect()  # noqa: E731 - typed
        try:
            tables = await (
                self.pool.run(read, holder="the reading of the tables") if session is None else read(session)
            )
        except Exception as error:  # noqa: BLE001 - explain() raises it again, in our words
            self.explain(error, "read the tables", "")
        return self.schema_of(tables)

    def schema_of(self, tables: Sequence[sa.Table]) -> Schema:
        """Tables that were read, with those that were declared in place of theirs."""
        return Schema({**{table.name: table for table in tables}, **self._declared})


def _backend_of(url: str) -> Backend:
    if url.startswith(("postgresql:", "postgres:")):
        from piecework.services.postgres import PostgresBackend

        return PostgresBackend(url)
    name = url.removeprefix(_PREFIX)
    if not url.startswith(_PREFIX) or name in {"", ":memory:"} or "?" in name:
        kind = url.split(":", 1)[0]
        raise ValidationError(
            f"the database URL ({kind}:…) has to be {_PREFIX}PATH with the path of a file and nothing after it, or "
            "postgresql://…: a database in memory would be another one for each connection"
        )
    return SqliteBackend(Path(name).absolute())


def _external(backend: Backend) -> Any:
    if isinstance(backend, SqliteBackend):
        return LockFiles(backend.path)
    from piecework.services.advisory import AdvisoryLocks

    return AdvisoryLocks(backend)
