"""An event put into the store by somebody else's transaction: it is published when that one commits, or never.

The caller's connection inserts one row and tells the nodes, both inside the caller's transaction; nothing is committed
here. The row shares no unique column with anything, so two such transactions never wait for each other: duplicates are
found later, when a node accepts the event in a transaction of its own.

Which library a connection is of is read off its class: none of them is imported unless the caller has done so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

from piecework.errors import InvalidStateError, StoreError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from piecework.store.records import Inbox

_KINDS = "an asyncpg Connection, a SQLAlchemy AsyncConnection or AsyncSession, or a psycopg AsyncConnection"
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_COLUMNS = ("event_id", "type", "space", "payload", "published_at", "hops")
_NO_TABLE = {"42P01", "3F000"}
_NO_RIGHT = {"42501"}
_FAILED = {"25P02"}


async def put_into_inbox(connection: Any, row: Inbox, *, schema: str = "piecework") -> None:
    """Inserts an event through a connection of the caller's, inside the caller's transaction, and tells the nodes.

    What else goes wrong with the connection (it is lost, the transaction could not be serialized) is raised as the
    driver's own error, as by any other statement of that transaction.

    Args:
        connection: An asyncpg Connection (a pool's too), a SQLAlchemy AsyncConnection or AsyncSession on PostgreSQL, or
            a psycopg AsyncConnection; to the database that the store is in.
        row: The event; its number is given by the store.
        schema: Where in the database the store is; also the channel on which its nodes listen.

    Raises:
        ValidationError: The connection is of no such kind, or not to PostgreSQL; or the schema's name is no plain word.
        InvalidStateError: It is not inside a transaction, or inside one that has failed; nothing was sent.
        StoreError: The store is not in this database, or the connection's role may not insert there. PostgreSQL has
            ended the transaction then: it can only be rolled back.
    """
    if not _PLAIN.fullmatch(schema):
        raise ValidationError(
            f"{schema!r} cannot be a store's schema: a word of letters, digits and _ is needed, at most 63 long",
            schema=schema,
        )
    put = _putter(connection)
    values = (row.event_id, row.type, row.space, row.payload, row.published_at, row.hops, schema)
    try:
        await put(connection, schema, values)
    except Exception as error:
        _explain(error, row, schema)
        raise


def _putter(connection: Any) -> Callable[[Any, str, Sequence[Any]], Awaitable[None]]:
    kinds = {
        ("asyncpg", "Connection"): _with_asyncpg,
        ("asyncpg", "PoolConnectionProxy"): _with_asyncpg,
        ("sqlalchemy", "AsyncConnection"): _with_sqlalchemy,
        ("sqlalchemy", "AsyncSession"): _with_session,
        ("psycopg", "AsyncConnection"): _with_psycopg,
    }
    for cls in type(connection).__mro__:
        put = kinds.get((cls.__module__.partition(".")[0], cls.__name__))
        if put is not None:
            return put
    kind = type(connection)
    raise ValidationError(f"connection has to be {_KINDS}, not a {kind.__module__}.{kind.__qualname__}")


async def _with_asyncpg(connection: Any, schema: str, values: Sequence[Any]) -> None:
    from asyncpg import InterfaceError

    try:
        inside = connection.is_in_transaction()
    except InterfaceError as error:
        raise InvalidStateError(f"the connection cannot be used any more: {error}") from error
    if not inside:
        _refuse("asyncpg connection", "async with connection.transaction()")
    await connection.execute(_text(schema, [f"${number}" for number in range(1, len(values) + 1)]), *values)


async def _with_session(session: Any, schema: str, values: Sequence[Any]) -> None:
    from sqlalchemy.exc import InvalidRequestError

    if not session.in_transaction():
        _refuse("SQLAlchemy session", "async with session.begin()")
    try:
        connection = await session.connection()
    except InvalidRequestError as error:  # a flush of it has failed before
        raise InvalidStateError(f"the SQLAlchemy session cannot be used: {error}") from error
    await _with_sqlalchemy(connection, schema, values)


async def _with_sqlalchemy(connection: Any, schema: str, values: Sequence[Any]) -> None:
    from sqlalchemy import BigInteger, LargeBinary, Text, bindparam, text
    from sqlalchemy.exc import InvalidRequestError

    try:
        inside = connection.in_transaction()
    except InvalidRequestError as error:  # made by `engine.connect()`, and not entered
        raise InvalidStateError(f"the SQLAlchemy connection is not open: {error}") from error
    if connection.dialect.name != "postgresql":
        raise ValidationError(
            f"connection is one to {connection.dialect.name}; events go along with a transaction of PostgreSQL only: "
            "on other databases publish from a workspace, inside its own transaction"
        )
    if not inside:
        _refuse("SQLAlchemy connection", "async with connection.begin()")
    raw = (await connection.get_raw_connection()).dbapi_connection
    if raw.autocommit:
        _refuse("SQLAlchemy connection", "another isolation_level than AUTOCOMMIT")
    names = (*_COLUMNS, "channel")
    kinds: Sequence[Any] = (Text, Text, Text, LargeBinary, BigInteger, BigInteger, Text)
    binds = [bindparam(name, type_=kind) for name, kind in zip(names, kinds, strict=True)]
    statement = text(_text(schema, [f":{name}" for name in names])).bindparams(*binds)
    await connection.execute(statement, dict(zip(names, values, strict=True)))


async def _with_psycopg(connection: Any, schema: str, values: Sequence[Any]) -> None:
    from psycopg import AsyncCursor
    from psycopg.pq import TransactionStatus
    from psycopg.rows import tuple_row

    status = connection.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise InvalidStateError("the transaction of the psycopg connection has failed: roll it back and begin another")
    if status != TransactionStatus.INTRANS:
        # Also without autocommit, where psycopg would begin one: nobody may have meant to commit it.
        _refuse("psycopg connection", "async with connection.transaction()")
    # Its own kinds of cursors and rows are the caller's business.
    async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(_text(schema, ["%s"] * len(values)), values)


def _text(schema: str, marks: Sequence[str]) -> str:
    """One statement that inserts and tells: it is one round trip, and either both happen or neither."""
    return (
        f'WITH put AS (INSERT INTO "{schema}".event_inbox ({", ".join(_COLUMNS)}) VALUES ({", ".join(marks[:-1])})) '  # noqa: S608 - a plain word, checked above
        f"SELECT pg_notify({marks[-1]}, 'inbox')"
    )


def _refuse(what: str, how: str) -> NoReturn:
    raise InvalidStateError(
        f"the {what} is not inside a transaction, so there is nothing that the event could go along with: use {how}, "
        "or publish without connection="
    )


def _explain(error: Exception, row: Inbox, schema: str) -> None:
    """Raises our own error where the driver's is about the inbox, or about the state of the transaction."""
    state = _sqlstate(error)
    what = f"event {row.event_id!r} cannot be published inside this transaction"
    if state in _NO_TABLE:
        raise StoreError(
            f"{what}: its database has no store in schema {schema!r}. Use a connection to the store's own database, or "
            "make one there: `piecework store migrate`",
            event_id=row.event_id,
            schema=schema,
        ) from error
    if state in _NO_RIGHT:
        raise StoreError(
            f"{what}: its role may not insert into {schema}.event_inbox. Allow it: "
            "`piecework store migrate --grant ROLE`",
            event_id=row.event_id,
            schema=schema,
        ) from error
    if state in _FAILED:
        raise InvalidStateError(
            f"{what}, which has failed before: roll it back and begin another", event_id=row.event_id
        ) from error


def _sqlstate(error: BaseException | None) -> str | None:
    """The five characters by which PostgreSQL names an error, from any of the libraries' exceptions."""
    while error is not None:
        state = getattr(error, "sqlstate", None)
        if isinstance(state, str):
            return state
        error = getattr(error, "orig", None) or error.__cause__
    return None
