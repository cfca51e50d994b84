"""Connections to PostgreSQL: what SQLAlchemy compiled, run by asyncpg as it is.

Between the two stands only a plan for each statement: its text, the order of its values, and what turns values into the
database's and back. SQLAlchemy's own driver is asked for one thing, to read which tables there are.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from piecework.errors import InvalidStateError, MissingExtraError, ValidationError
from piecework.services.session import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    import asyncpg
    import sqlalchemy as sa

T = TypeVar("T")

CONNECT_SECONDS = 10
RECOVER_SECONDS = 5
"""How long a connection may take to be usable after a cancel; then it is cut."""

_BY_HAND = (
    "the statement left a transaction open, or ended one, which was rolled back: "
    "use `async with ws.database.transaction()`"
)
_SCHEMES = ("postgresql", "postgres")
_FLOAT, _NUMERIC = 701, 1700
"""How PostgreSQL numbers its types `double precision` and `numeric`."""


class PostgresBackend:
    """Opens sessions of one database; see `session.Backend`.

    Args:
        url: `postgresql://[user[:password]@]host[:port]/database[?…]`, as asyncpg takes it.

    Raises:
        ValidationError: It is no such address.
        MissingExtraError: asyncpg is not installed.
    """

    dialect = "postgresql"
    one_writer = False

    def __init__(self, url: str) -> None:
        try:
            import asyncpg  # noqa: F401 - only whether it is there
        except ImportError:
            raise MissingExtraError.needs("a database at postgresql://", "postgres") from None
        self._dsn = url
        self.url = _without_password(url)
        self._plans: WeakKeyDictionary[sa.Executable, Plan] = WeakKeyDictionary()
        self._dialect: sa.Dialect | None = None

    async def connect(self) -> PostgresSession:
        """Opens one more session.

        Raises:
            OSError: The server cannot be reached.
            asyncpg.PostgresError: It refuses.
        """
        if self._dialect is None:
            self._dialect = await asyncio.to_thread(_make_dialect)  # importing SQLAlchemy takes too long for the loop
        connection = await self.open()
        try:
            for name in ("json", "jsonb"):
                await connection.set_type_codec(
                    name, schema="pg_catalog", encoder=_as_it_is, decoder=json.loads, format="text"
                )
        except BaseException:
            connection.terminate()
            raise
        return PostgresSession(connection, self)

    def kind_of(self, error: Exception) -> tuple[str, str]:
        """What an error of the driver means, and what to do about it."""
        import asyncpg

        state = getattr(error, "sqlstate", None) or ""
        if state == "23505":
            return "duplicate", ""
        if state.startswith(("22", "23")):
            return "invalid", ""
        if state.startswith(("28", "3D")):
            return "trouble", "look at the user, the password and the database's name in its address"
        if state.startswith("42"):
            return "trouble", "nothing of the statement was written"
        if isinstance(error, OSError | TimeoutError | asyncpg.PostgresConnectionError) or state.startswith(
            ("08", "57")
        ):
            return "trouble", "the server cannot be reached, or ended the connection; see that it runs"
        if isinstance(error, asyncpg.InterfaceError) and "connection" in str(error):
            return "trouble", "the connection was lost; see that the server runs"
        if not state:
            return "invalid", ""  # it never reached the server, because a value did not fit
        return "trouble", "nothing of the statement was written"

    def plan(self, statement: sa.Executable) -> Plan:
        """What asyncpg has to be given for a statement; made once for each."""
        plan = self._plans.get(statement)
        if plan is None:
            assert self._dialect is not None, "connect() comes first"
            plan = self._plans[statement] = Plan(statement, self._dialect)
        return plan

    @property
    def ping(self) -> str:
        """A statement that does nothing."""
        import sqlalchemy as sa

        return str(sa.select(sa.literal_column("1")))

    async def reflect(self, connection: asyncpg.Connection[Any]) -> list[sa.Table]:
        """Reads which tables there are as a connection sees them; it is in the same transaction afterwards."""
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.pool import NullPool

        from piecework.services import schema

        async def lent() -> Any:
            """The connection, for somebody who would close it."""
            return _Lent(connection)

        # In autocommit mode it begins no transaction: the connection may be in one.
        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=lent, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        try:
            async with engine.connect() as reading:
                return await reading.run_sync(schema.reflect)
        finally:
            await engine.dispose()

    async def open(self) -> asyncpg.Connection[Any]:
        """Opens a connection of asyncpg's, as it is.

        Raises:
            ValidationError: The address cannot be used.
            OSError: The server cannot be reached.
            asyncpg.PostgresError: It refuses.
        """
        import asyncpg

        settings = {"application_name": f"piecework pid {os.getpid()}"}
        try:
            return await asyncpg.connect(self._dsn, timeout=CONNECT_SECONDS, server_settings=settings)
        except ValueError as error:
            raise ValidationError(f"the database's address {self.url} cannot be used: {error}") from None


class PostgresSession:
    """One connection of asyncpg; see `session.Session`.

    Args:
        connection: An open one; it is this session's own.
        backend: Whose plans it uses.
    """

    def __init__(self, connection: asyncpg.Connection[Any], backend: PostgresBackend) -> None:
        self._connection = connection
        self._backend = backend
        self._begun: list[Any] = []
        self._recovering: asyncio.Task[None] | None = None
        self._tainted = False
        self.failed = ""

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is."""
        idle = self._recovering is None or self._recovering.done()
        in_transaction = not self.lost and self._connection.is_in_transaction()
        return idle and not self._begun and not self._tainted and not in_transaction and not self.lost

    @property
    def lost(self) -> bool:
        """Whether the connection is closed."""
        return self._connection.is_closed()

    async def execute(self, statement: sa.Executable, params: Mapping[str, Any] | None = None) -> Answer:
        """Runs one statement; it commits by itself where no transaction was begun.

        Inside a transaction whatever may fail for a good reason stands behind a savepoint, so that the transaction goes
        on after a failure, as it does on SQLite.
        """
        plan = self._backend.plan(statement)
        args = plan.arguments(params or {})
        if not self._begun:
            self._tainted = self._tainted or plan.text
            answer = await self._do(self._run(plan, args))
            if plan.text and self._connection.is_in_transaction():
                await self._do(self._connection.reset())
                raise InvalidStateError(_BY_HAND)
            return answer
        if plan.reads:
            try:
                return await self._do(self._run(plan, args))
            except Exception as error:
                # There is no savepoint before what only reads; an error of the server's own has a severity.
                self.failed = "inner" if getattr(error, "severity", None) else ""
                raise
        return await self._do(self._guarded(plan, args))

    async def begin(self) -> None:
        """Begins a transaction, or inside of one a savepoint."""
        transaction = self._connection.transaction()
        await self._do(transaction.start())
        self._begun.append(transaction)

    async def commit(self) -> None:
        """Ends what was begun last and keeps it."""
        await self._do(self._begun.pop().commit())

    async def rollback(self) -> None:
        """Ends what was begun last and undoes it."""
        self.failed = ""
        await self._do(self._begun.pop().rollback())

    async def reflect(self) -> list[sa.Table]:
        """Reads which tables there are."""
        return await self._do(self._backend.reflect(self._connection))

    async def settle(self) -> None:
        """Waits for what its last caller left behind and undoes it; a connection that cannot is cut."""
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
        self._begun.clear()
        self.failed = ""
        self._tainted = False
        try:
            async with asyncio.timeout(RECOVER_SECONDS):
                await self._connection.reset()
        except BaseException:
            self._connection.terminate()
            raise

    async def close(self) -> None:
        """Says goodbye to the server."""
        await self._connection.close(timeout=RECOVER_SECONDS)

    def abandon(self) -> None:
        """Cuts the connection."""
        self._connection.terminate()

    async def _run(self, plan: Plan, args: list[Any]) -> Answer:
        if plan.counts:
            status = await self._connection.execute(plan.sql, *args)
            return Answer((), [], int(status.rsplit(" ", 1)[-1]))
        records = await self._connection.fetch(plan.sql, *args)
        return plan.answer(records)

    async def _guarded(self, plan: Plan, args: list[Any]) -> Answer:
        try:
            async with self._connection.transaction():
                return await self._run(plan, args)
        except Exception:
            if not plan.text or self._connection.is_in_transaction():
                raise
        self.failed = "all"
        raise InvalidStateError(_BY_HAND)

    async def _do(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except asyncio.CancelledError:
            # asyncpg has asked the server to stop; a round trip tells that it has.
            self._recovering = asyncio.create_task(self._recover(), name="piecework-database-recover")
            self.failed = "inner" if self._begun else ""
            await asyncio.shield(self._recovering)
            raise

    async def _recover(self) -> None:
        import asyncpg

        try:
            async with asyncio.timeout(RECOVER_SECONDS):
                await self._connection.fetch(self._backend.ping)
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            self._connection.terminate()
        except asyncpg.PostgresError:
            pass  # it answers: the transaction that it was in takes no more statements


class _Lent:
    """A connection for somebody who would close it, and set it up for their own use."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def set_type_codec(self, *_args: Any, **_options: Any) -> None:
        """Leaves it as it is."""

    async def close(self, **_options: Any) -> None:
        """Leaves it open."""

    def terminate(self) -> None:
        """Leaves it open."""


class Plan:
    """What asyncpg has to be given for a statement of SQLAlchemy's.

    Attributes:
        sql: The text.
        text: Whether it is text of the user's, of which nothing is known.
        reads: Whether it only reads.
        counts: Whether it answers no rows but how many it changed.
    """

    __slots__ = ("_binds", "_columns", "_decoders", "counts", "reads", "sql", "text")

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self.text = hasattr(statement, "text")
        self.reads = bool(statement.is_select)
        columns = [] if self.text else list(statement.exported_columns)
        self.counts = bool(statement.is_dml) and not columns
        self._columns = tuple(column.key or str(column.name) for column in columns)
        decoders = [_decoder(column.type, dialect) for column in columns]
        self._decoders = decoders if any(decoders) else None
        self._binds = [
            (name, compiled.binds[name].value, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or ()
        ]

    def arguments(self, params: Mapping[str, Any]) -> list[Any]:
        """The values in the order of their places."""
        values = ((params.get(name, default), encode) for name, default, encode in self._binds)
        found = [value if encode is None else encode(value) for value, encode in values]
        if any(_has_nul(value) for value in found):
            # The server would say so, too; but to a transaction that it then takes no more statements for.
            raise ValidationError("a text has a NUL character in it, which PostgreSQL cannot store or compare with")
        return found

    def answer(self, records: list[Any]) -> Answer:
        """What the records are."""
        if self.text:
            columns = tuple(records[0].keys()) if records else ()
            return Answer(columns, [tuple(record) for record in records], -1)
        if self._decoders is None:
            return Answer(self._columns, [tuple(record) for record in records], len(records))
        rows = [
            tuple(v if d is None else d(v) for v, d in zip(record, self._decoders, strict=True)) for record in records
        ]
        return Answer(self._columns, rows, len(rows))


def _decoder(kind: Any, dialect: sa.Dialect) -> Any:
    """What turns values of a type into what they are in Python; None for nothing."""
    import sqlalchemy as sa

    inner = kind
    while (deeper := getattr(inner, "impl_instance", None) or getattr(inner, "item_type", None)) is not None:
        inner = deeper
    # Types of numbers ask what the server sends. Theirs that become float may be either, and float() takes both.
    sent = _FLOAT if isinstance(inner, sa.Float) and inner.asdecimal else _NUMERIC
    return kind.dialect_impl(dialect).result_processor(dialect, sent)


def _make_dialect() -> sa.Dialect:
    from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

    return PGDialect_asyncpg(dbapi=PGDialect_asyncpg.import_dbapi())  # type: ignore[no-untyped-call]  # SQLAlchemy's


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    return isinstance(value, list) and any(isinstance(item, str) and "\0" in item for item in value)


def _as_it_is(value: Any) -> Any:
    return value


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ValidationError(f"the database's address cannot be read: {error}") from None
    if parts.scheme not in _SCHEMES:
        raise ValidationError("a PostgreSQL database is named postgresql://USER@HOST/DATABASE")
    user = f"{parts.username}@" if parts.username else ""
    return urlunsplit((parts.scheme, f"{user}{parts.hostname or ''}{port}", parts.path, "", ""))
