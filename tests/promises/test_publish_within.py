"""An event goes along with a transaction of the application's own, and a node runs what follows."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib.util import find_spec

import asyncpg
import psycopg
import pytest

from piecework import Serialized, Settings
from piecework.errors import ClosedError, InvalidStateError, StoreError, ValidationError
from piecework.process import protocol

from .flows import flow

pytestmark = pytest.mark.engines("postgres")
needs_greenlet = pytest.mark.skipif(find_spec("greenlet") is None, reason="SQLAlchemy's asyncio part needs greenlet")
FILE = pytest.mark.engines("sqlite")


@asynccontextmanager
async def by_asyncpg(url):
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def by_psycopg(url):
    async with await psycopg.AsyncConnection.connect(url) as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def by_alchemy(url):
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def by_session(url):
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with AsyncSession(engine) as session, session.begin():
            yield session
    finally:
        await engine.dispose()


@pytest.fixture(
    params=[
        pytest.param(by_asyncpg, id="asyncpg"),
        pytest.param(by_psycopg, id="psycopg"),
        pytest.param(by_alchemy, id="sqlalchemy-connection", marks=needs_greenlet),
        pytest.param(by_session, id="sqlalchemy-session", marks=needs_greenlet),
    ]
)
def transaction(request, store):
    """Begins a transaction on the store's database: `async with transaction() as connection`."""
    return lambda: request.param(store)


class Ran:
    """A step that tells of each run with what its event carried."""

    def __init__(self):
        self._told = asyncio.Queue()

    async def __call__(self, ctx):
        self._told.put_nowait(ctx.event)

    async def next(self):
        """The event of the next run."""
        return await asyncio.wait_for(self._told.get(), 20)


@pytest.fixture
def ran():
    return Ran()


async def fail_within(transaction, publish):
    """Publishes in a transaction that fails afterwards."""
    async with transaction() as connection:
        receipt = await publish(connection)
        assert receipt.dispatched is None
        raise ZeroDivisionError


@pytest.mark.covers("N62")
async def test_an_event_comes_with_the_commit(make_app, transaction, ran):
    """An event published inside a transaction is nothing before the commit, and a run soon after it."""
    async with make_app(flow(ran)) as app:
        async with transaction() as connection:
            receipt = await app.publish("go", {"n": 1}, id="evt-1", space="acme", connection=connection)
            assert (receipt.event_id, receipt.dispatched) == ("evt-1", None)
            await app.publish("go", {"n": 0})
            assert (await ran.next()).payload == {"n": 0}
            assert len(await app.runtime.list_all_runs()) == 1
        event = await ran.next()
        assert (event.type, event.payload, event.id, event.space) == ("go", {"n": 1}, "evt-1", "acme")


@pytest.mark.covers("N62")
async def test_an_event_goes_with_the_rollback(make_app, transaction, ran):
    """An event published inside a transaction that is rolled back never was."""
    async with make_app(flow(ran)) as app:
        with pytest.raises(ZeroDivisionError):
            await fail_within(transaction, lambda connection: app.publish("go", {"n": 1}, connection=connection))
        async with transaction() as connection:
            await app.publish("go", {"n": 2}, connection=connection)
        assert (await ran.next()).payload == {"n": 2}
        assert len(await app.runtime.list_all_runs()) == 1


@pytest.mark.covers("N63")
async def test_transactions_do_not_wait_for_each_other(make_app, transaction, ran):
    """Two open transactions with the same event id go their own ways: both commit, and there is one run."""
    async with make_app(flow(ran)) as app:
        async with transaction() as one, transaction() as other:
            for connection in (one, other):
                await app.publish("go", {"n": 1}, id="evt-1", connection=connection)
        async with transaction() as connection:
            await app.publish("go", {"n": 2}, connection=connection)
        assert [(await ran.next()).payload["n"] for _ in range(2)] == [1, 2]
        assert len(await app.runtime.list_all_runs()) == 2
        assert {result.outcome for result in (await app.publish("go", id="evt-1")).dispatched} == {"duplicate"}


@pytest.mark.covers("N63")
async def test_transactions_of_one_slot_do_not_wait_for_each_other(make_app, transaction, ran):
    """Two open transactions may publish for one slot of a serialized workflow: its runs come one after the other."""
    async with make_app(flow(ran), mode=Serialized(key=lambda event: "one")) as app:
        async with transaction() as one, transaction() as other:
            for connection, number in ((one, 1), (other, 2)):
                await app.publish("go", {"n": number}, connection=connection)
        assert sorted([(await ran.next()).payload["n"] for _ in range(2)]) == [1, 2]


async def test_a_client_publishes_within_too(make_app, transaction, ran):
    """What a client publishes inside a transaction is run by a node."""
    async with make_app(flow(ran)), make_app().open(role="client") as client:
        async with transaction() as connection:
            await client.publish("go", {"n": 1}, connection=connection)
        assert (await ran.next()).payload == {"n": 1}


async def test_an_event_of_a_transaction_waits_for_a_node(make_app, transaction, ran):
    """What was committed while there was no node is run by the next one."""
    async with make_app(flow(ran)):
        pass
    async with make_app().open(role="client") as client, transaction() as connection:
        await client.publish("go", {"n": 1}, connection=connection)
    async with make_app(flow(ran)):
        assert (await ran.next()).payload == {"n": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": ""},
        {"type": "go\x00"},
        {"type": "go", "id": "\ud800"},
        {"type": "go", "id": "x" * 513},
        {"type": "go", "space": ""},
        {"type": "go", "payload": {"__state": 1}},
        {"type": "go", "payload": {"x": float("inf")}},
        {"type": "go", "payload": {"x": "\udfff"}},
        {"type": "go", "payload": {"x": "y" * 2000}},
        {"type": "go", "payload": "text"},
    ],
)
async def test_an_event_is_checked_as_ever(make_app, store, wrong):
    """What `publish` refuses, it refuses inside a transaction too, in the same words, and the transaction goes on."""
    async with make_app(settings=Settings(payload_limit_bytes=1000)) as app, by_asyncpg(store) as connection:
        refusals = []
        for more in ({}, {"connection": connection}):
            with pytest.raises(ValidationError) as caught:
                await app.publish(**wrong, **more)
            refusals.append((caught.value.message, caught.value.data))
        assert refusals[0] == refusals[1]
        assert await connection.fetchval("SELECT count(*) FROM piecework.event_inbox") == 0


async def test_outside_of_a_transaction_it_is_refused(app, store):
    """A connection that is in no transaction is refused with INVALID_STATE; so is what is no connection at all."""
    connection = await asyncpg.connect(store)
    try:
        with pytest.raises(InvalidStateError, match="not inside a transaction"):
            await app.publish("go", connection=connection)
        with pytest.raises(ValidationError, match="asyncpg Connection"):
            await app.publish("go", connection=object())
    finally:
        await connection.close()
    assert (await app.publish("go")).dispatched == []


async def test_another_database_is_told(app, postgres_databases):
    """A connection to a database in which the store is not is refused with STORE_ERROR and what to do."""
    other = postgres_databases.fresh()
    try:
        with pytest.raises(StoreError, match=r"no store in schema 'piecework'.*store's own database"):
            async with by_asyncpg(other) as connection:
                await app.publish("go", connection=connection)
    finally:
        postgres_databases.drop(other)


async def test_the_store_may_have_a_schema_of_another_name(make_app, store, ran):
    """An event goes to the schema that the store is in."""
    async with make_app(flow(ran), store=f"{store}?schema=shop") as app:
        async with by_asyncpg(store) as connection:
            await app.publish("go", {"n": 1}, connection=connection)
        assert (await ran.next()).payload == {"n": 1}


@FILE
@pytest.mark.parametrize("role", ["node", "client"])
async def test_a_file_has_no_such_transactions(make_app, role):
    """On a store in a file, node or client, it is refused with INVALID_STATE and what to do instead."""
    async with make_app() as app, make_app().open(role="client") as client:
        with pytest.raises(InvalidStateError, match=r"PostgreSQL.*without connection=.*id="):
            await (app if role == "node" else client).publish("go", connection=object())


@FILE
async def test_a_worker_has_no_such_transactions(make_app):
    """In a space's worker it is refused with INVALID_STATE: a worker does not know the store."""
    asked = []

    async def ask(op, args):
        asked.append(op)

    app = make_app()
    async with app.worker_side(protocol.Init(space="acme"), ask):
        with pytest.raises(InvalidStateError, match="worker"):
            await app.publish("go", connection=object())
    assert asked == []


@FILE
async def test_a_closed_app_publishes_nothing(make_app):
    """On an app that is not open it is CLOSED, as every publish."""
    with pytest.raises(ClosedError):
        await make_app().publish("go", connection=object())
