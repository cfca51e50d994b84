"""An event goes along with a transaction of the user's own, through a connection of any of the libraries."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from importlib.util import find_spec

import asyncpg
import psycopg
import pytest
import sqlalchemy

from piecework.errors import InvalidStateError, StoreError, ValidationError
from piecework.store.inbox import put_into_inbox
from piecework.store.postgres_schema import Place, migrate_postgres
from piecework.store.records import Inbox

NOW = 1_767_225_600_000_000
EVENT = Inbox(None, "evt-1", "invoice.paid", "acme", b'{"id":7}', NOW)
COLUMNS = "event_id, type, space, payload, published_at"
needs_greenlet = pytest.mark.skipif(find_spec("greenlet") is None, reason="SQLAlchemy's asyncio part needs greenlet")


class Asyncpg:
    """Transactions of asyncpg's."""

    def __init__(self, connection):
        self.connection = connection

    async def begin(self):
        self.transaction = self.connection.transaction()
        await self.transaction.start()

    async def commit(self):
        await self.transaction.commit()

    async def rollback(self):
        await self.transaction.rollback()

    async def execute(self, text):
        await self.connection.execute(text)


class Psycopg:
    """Transactions of psycopg's, which begin with the first statement."""

    def __init__(self, connection):
        self.connection = connection

    async def begin(self):
        await self.connection.execute("SELECT 1")

    async def commit(self):
        await self.connection.commit()

    async def rollback(self):
        await self.connection.rollback()

    async def execute(self, text):
        await self.connection.execute(text)


class Alchemy:
    """Transactions of a connection's or a session's of SQLAlchemy's."""

    def __init__(self, connection):
        self.connection = connection

    async def begin(self):
        await self.connection.begin()

    async def commit(self):
        await self.connection.commit()

    async def rollback(self):
        await self.connection.rollback()

    async def execute(self, text):
        await self.connection.execute(sqlalchemy.text(text))


@asynccontextmanager
async def by_asyncpg(url):
    connection = await asyncpg.connect(url)
    try:
        yield Asyncpg(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def by_asyncpg_pool(url):
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        yield Asyncpg(connection)


@asynccontextmanager
async def by_psycopg(url):
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield Psycopg(connection)


def engine(url, driver, **options):
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"), **options)


def by_alchemy_connection(driver):
    @asynccontextmanager
    async def by_alchemy(url):
        made = engine(url, driver)
        try:
            async with made.connect() as connection:
                yield Alchemy(connection)
        finally:
            await made.dispose()

    return by_alchemy


def by_alchemy_session(driver):
    @asynccontextmanager
    async def by_alchemy(url):
        from sqlalchemy.ext.asyncio import AsyncSession

        made = engine(url, driver)
        try:
            async with AsyncSession(made) as session:
                yield Alchemy(session)
        finally:
            await made.dispose()

    return by_alchemy


KINDS = [
    pytest.param(by_asyncpg, id="asyncpg"),
    pytest.param(by_asyncpg_pool, id="asyncpg-pool"),
    pytest.param(by_psycopg, id="psycopg"),
    *(
        pytest.param(make(driver), id=f"sqlalchemy-{driver}-{name}", marks=needs_greenlet)
        for driver in ("asyncpg", "psycopg")
        for name, make in (("connection", by_alchemy_connection), ("session", by_alchemy_session))
    ),
]


@asynccontextmanager
async def made(url, schema="piecework"):
    """A connection of somebody who looks on, to a database in which there is a store."""
    connection = await asyncpg.connect(url, server_settings={"search_path": f'"{schema}"'})
    try:
        await migrate_postgres(connection, Place(schema, url))
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def onlooker(postgres_url):
    async with made(postgres_url) as connection:
        yield connection


@pytest.fixture(params=KINDS)
async def user(request, postgres_url, onlooker):
    """Somebody with a connection to the store's database."""
    async with request.param(postgres_url) as user:
        yield user


async def rows(onlooker):
    return [tuple(row) for row in await onlooker.fetch(f"SELECT {COLUMNS} FROM event_inbox ORDER BY inbox_seq")]


async def told(onlooker, url, channel="piecework"):
    """What the nodes are told before they are told the next thing."""
    heard, last = [], asyncio.get_running_loop().create_future()

    def hear(_connection, _pid, _channel, payload):
        if payload == "last":
            last.set_result(None)
        else:
            heard.append(payload)

    await onlooker.add_listener(channel, hear)

    async def so_far():
        await onlooker.execute("SELECT pg_notify($1, 'last')", channel)
        await last
        await onlooker.remove_listener(channel, hear)
        return heard

    return so_far


async def test_an_event_appears_with_the_commit(user, onlooker, postgres_url):
    """The row is there, and the nodes are told, when the user's transaction has committed, and not before."""
    so_far = await told(onlooker, postgres_url)
    await user.begin()
    await put_into_inbox(user.connection, EVENT)
    assert await rows(onlooker) == []
    await user.commit()
    assert await rows(onlooker) == [("evt-1", "invoice.paid", "acme", b'{"id":7}', NOW)]
    assert await so_far() == ["inbox"]


async def test_an_event_goes_with_the_rollback(user, onlooker, postgres_url):
    """A transaction that is rolled back leaves nothing, and nobody is told."""
    so_far = await told(onlooker, postgres_url)
    await user.begin()
    await put_into_inbox(user.connection, EVENT)
    await user.rollback()
    assert await rows(onlooker) == []
    assert await so_far() == []


async def test_events_keep_their_order(user, onlooker):
    """Several events of one transaction are numbered in the order in which they were put; a space may be missing."""
    await user.begin()
    for number in range(3):
        await put_into_inbox(user.connection, Inbox(None, f"evt-{number}", "x", None, b"{}", NOW))
    await user.commit()
    assert [row[:3] for row in await rows(onlooker)] == [(f"evt-{number}", "x", None) for number in range(3)]


async def test_outside_of_a_transaction(user, onlooker):
    """Without a transaction there is nothing that the event could go along with: nothing is sent."""
    with pytest.raises(InvalidStateError, match="not inside a transaction"):
        await put_into_inbox(user.connection, EVENT)
    assert await rows(onlooker) == []


async def test_a_transaction_that_has_failed(user, onlooker):
    """A transaction in which a statement failed takes no event."""
    await user.begin()
    with pytest.raises(Exception, match="division by zero"):
        await user.execute("SELECT 1/0")
    with pytest.raises(InvalidStateError, match="roll it back"):
        await put_into_inbox(user.connection, EVENT)
    await user.rollback()
    assert await rows(onlooker) == []


async def test_two_transactions_never_wait_for_each_other(user, onlooker, postgres_url):
    """The same event id, for the same slot, in two open transactions: both go through, in either order."""
    async with by_asyncpg(postgres_url) as other:
        await user.begin()
        await other.begin()
        await put_into_inbox(user.connection, EVENT)
        await put_into_inbox(other.connection, EVENT)
        await put_into_inbox(user.connection, EVENT)
        await other.commit()
        assert len(await rows(onlooker)) == 1
        await user.commit()
    assert len(await rows(onlooker)) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_a_database_without_a_store(kind, postgres_url):
    """Where there is no store, the message says how to make one."""
    async with kind(postgres_url) as user:
        await user.begin()
        with pytest.raises(StoreError, match=r"no store in schema 'piecework'.*piecework store migrate"):
            await put_into_inbox(user.connection, EVENT)
        await user.rollback()


@pytest.fixture
async def stranger(postgres_url, onlooker):
    """The address of a role that may nothing but log in."""
    role = f"stranger_{os.getpid()}"
    await onlooker.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    scheme, _, rest = postgres_url.partition("//")
    yield role, f"{scheme}//{role}:secret@{rest.rpartition('@')[2]}"
    await onlooker.execute(f"DROP OWNED BY {role}")
    await onlooker.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_role_that_may_not(kind, stranger):
    """A role without the right is told how to get it."""
    async with kind(stranger[1]) as user:
        await user.begin()
        with pytest.raises(StoreError, match="--grant"):
            await put_into_inbox(user.connection, EVENT)
        await user.rollback()


async def test_another_schema(postgres_url):
    """A store in a schema of another name has its own inbox, and its own channel."""
    async with made(postgres_url, "Other") as onlooker, by_asyncpg(postgres_url) as user:
        so_far = await told(onlooker, postgres_url, "Other")
        await user.begin()
        await put_into_inbox(user.connection, EVENT, schema="Other")
        await user.commit()
        assert len(await rows(onlooker)) == 1
        assert await so_far() == ["inbox"]


async def test_a_schema_that_is_no_word():
    """A name that would need quoting is refused."""
    with pytest.raises(ValidationError, match="schema"):
        await put_into_inbox(object(), EVENT, schema='x"; DROP TABLE y; --')


async def test_a_pooled_connection_that_was_given_back(postgres_url):
    """A connection that its pool has taken back is refused."""
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            pass
        with pytest.raises(InvalidStateError, match="cannot be used any more"):
            await put_into_inbox(connection, EVENT)


async def test_psycopg_with_autocommit(postgres_url, onlooker):
    """With autocommit, a psycopg connection is inside a transaction only where one was begun."""
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        with pytest.raises(InvalidStateError, match="not inside a transaction"):
            await put_into_inbox(connection, EVENT)
        async with connection.transaction():
            await put_into_inbox(connection, EVENT)
    assert len(await rows(onlooker)) == 1


async def test_psycopg_with_cursors_of_its_own(postgres_url, onlooker):
    """Whatever kinds of cursors and rows a psycopg connection makes, an event goes along with it."""
    options = {"cursor_factory": psycopg.AsyncRawCursor, "row_factory": psycopg.rows.class_row(Inbox)}
    async with await psycopg.AsyncConnection.connect(postgres_url, **options) as connection, connection.transaction():
        await put_into_inbox(connection, EVENT)
    assert len(await rows(onlooker)) == 1


@needs_greenlet
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_sqlalchemy_with_autocommit(driver, postgres_url, onlooker):
    """SQLAlchemy's transactions are none where every statement commits by itself."""
    made = engine(postgres_url, driver, isolation_level="AUTOCOMMIT")
    try:
        async with made.begin() as connection:
            with pytest.raises(InvalidStateError, match="AUTOCOMMIT"):
                await put_into_inbox(connection, EVENT)
    finally:
        await made.dispose()
    assert await rows(onlooker) == []


@needs_greenlet
async def test_sqlalchemy_connections_that_are_not_open(postgres_url):
    """A connection that was not entered, and one that was closed, are refused."""
    made = engine(postgres_url, "asyncpg")
    try:
        with pytest.raises(InvalidStateError, match="not open"):
            await put_into_inbox(made.connect(), EVENT)
        async with made.begin() as connection:
            pass
        with pytest.raises(InvalidStateError, match="not inside a transaction"):
            await put_into_inbox(connection, EVENT)
    finally:
        await made.dispose()


@needs_greenlet
async def test_a_sqlalchemy_session_that_has_failed(postgres_url, onlooker):
    """A session whose flush has failed is refused until it is rolled back."""
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import registry

    table = sqlalchemy.Table(
        "spaces",
        sqlalchemy.MetaData(),
        sqlalchemy.Column("space", sqlalchemy.Text, primary_key=True),
        schema="piecework",
    )
    mapped = type("Mapped", (), {})
    registry().map_imperatively(mapped, table)
    made = engine(postgres_url, "asyncpg")
    try:
        async with AsyncSession(made) as session:
            broken = mapped()
            broken.space = "acme"  # its weight is missing
            session.add(broken)
            with pytest.raises(sqlalchemy.exc.SQLAlchemyError):
                await session.flush()
            with pytest.raises(InvalidStateError, match="rolled back"):
                await put_into_inbox(session, EVENT)
    finally:
        await made.dispose()


def test_sqlalchemy_and_another_database():
    """An asynchronous connection to anything but PostgreSQL is refused."""
    engine = sqlalchemy.create_engine("sqlite://")

    class AsyncConnection:  # SQLAlchemy's own needs a driver that is not installed here
        __module__ = "sqlalchemy.ext.asyncio.engine"
        dialect = engine.dialect

        def in_transaction(self):
            return True

    with pytest.raises(ValidationError, match="one to sqlite"):
        asyncio.run(put_into_inbox(AsyncConnection(), EVENT))


async def test_connections_that_are_not_asynchronous(postgres_url):
    """A synchronous connection, or anything else, is refused with the names of the kinds."""
    engine = sqlalchemy.create_engine("sqlite://")
    with psycopg.connect(postgres_url) as synchronous, engine.connect() as alchemy:
        for connection in (synchronous, alchemy, object(), None, "postgresql://"):
            with pytest.raises(ValidationError, match=r"asyncpg Connection, .*AsyncSession, or a psycopg"):
                await put_into_inbox(connection, EVENT)
    engine.dispose()


def test_no_library_is_imported():
    """What the caller does not use is not imported."""
    program = (
        "import asyncio, sys\n"
        "from piecework.errors import ValidationError\n"
        "from piecework.store.inbox import put_into_inbox\n"
        "try: asyncio.run(put_into_inbox(object(), None))\n"
        "except ValidationError: print(sorted({'asyncpg', 'psycopg', 'sqlalchemy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
