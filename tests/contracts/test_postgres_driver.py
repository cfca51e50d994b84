"""How a verb's requests become statements, what shares a transaction, and whose schema it is."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import asyncpg
import pytest

from contracts.postgres_verbs import (
    Keep,
    admin,
    echo,
    gate_locked,
    kept,
    opened,
    outside,
    soon,
    submitted,
    until,
    until_waiting,
    watch,
)
from piecework.clock import SystemClock
from piecework.errors import (
    ClosedError,
    ConflictError,
    MissingExtraError,
    SchemaVersionError,
    StoreError,
    StoreFormatError,
    StoreUnavailableError,
    ValidationError,
)
from piecework.store import postgres_sql, statements
from piecework.store.contract import Change, Delete, Insert, InsertMissing, Lock, Put, Read, Tell, Update
from piecework.store.migrate import migrations
from piecework.store.opening import store_for
from piecework.store.postgres import PostgresStore
from piecework.store.postgres_news import EVERYTHING, payloads, read
from piecework.store.postgres_requests import StartOverError, Transaction, carry_out
from piecework.store.records import TABLES, EventRow, Run, RunValue, Space
from piecework.store.sqlite import SqliteStore
from piecework.testing.clock import VirtualClock
from postgres_server import database_of

OPEN = """
import asyncio, sys
from piecework.store.postgres import PostgresStore

async def main():
    store = PostgresStore(sys.argv[1])
    await store.open()
    await store.close()
    print("opened", flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def store(postgres_url):
    store = await opened(postgres_url)
    yield store
    await store.close()


@pytest.fixture
async def connection(store):
    connection = await outside(store)
    yield connection
    await connection.close()


@pytest.fixture
async def transaction(connection):
    transaction = Transaction(connection)
    await transaction.begin()
    yield transaction
    await transaction.rollback()


def event(event_id):
    return EventRow(None, event_id, "order.placed", None, b"{}", 0)


def value(name, data=b"1"):
    return RunValue("r", name, data)


VALUES = Read("values_of_runs", {"run_ids": ["r"]}, RunValue)


# Requests


async def test_missing_rows_are_numbered_as_they_came(transaction):
    """The store's numbers follow the order of arrival, although rows are inserted in the order of their ids."""
    await transaction.carry_out(InsertMissing([event("m")], "event_id"))
    rows = await transaction.carry_out(InsertMissing([event(name) for name in "zamqz"], "event_id"))
    assert [row.event_id for row in rows] == ["z", "a", "q"]
    assert [row.seq for row in rows] == sorted(row.seq for row in rows)
    stored = await transaction.carry_out(Read("events_by_id", {"ids": ["z", "a", "q"]}, EventRow))
    assert sorted(rows, key=repr) == sorted(stored, key=repr)


async def test_rows_are_inserted_in_the_order_of_the_locks(transaction, connection):
    """Missing rows are inserted by code point, whatever the language of the database."""
    names = ["é", "a", "Z", "_", "\U0001f4a5", "\uffff"]
    await transaction.carry_out(InsertMissing([Space(name, None) for name in names], "space"))
    rows = await connection.fetch("SELECT space FROM spaces WHERE space <> 'gate' ORDER BY ctid")
    assert [row[0] for row in rows] == sorted(names)


async def test_a_lock_answers_in_the_order_of_the_keys(transaction):
    """Locked rows come in sorted order, each once, and missing ones not at all."""
    await transaction.carry_out(Insert([value(name) for name in ("é", "Z", "a")]))
    keys = [("r", "é"), ("r", "nobody"), ("r", "a"), ("r", "Z"), ("r", "a")]
    assert [row.name for row in await transaction.carry_out(Lock(RunValue, keys))] == ["Z", "a", "é"]


@pytest.mark.parametrize(("share", "rivals"), [(False, 0), (True, 1)])
async def test_a_shared_lock_lets_others_share(store, transaction, share, rivals):
    """A lock keeps everybody else out; a shared one only those who want to change the row."""
    other = await outside(store)
    await transaction.carry_out(Lock(Space, [("gate",)], share=share))
    shared = await other.fetch("SELECT FROM spaces FOR SHARE SKIP LOCKED")
    changing = await other.fetch("SELECT FROM spaces FOR NO KEY UPDATE SKIP LOCKED")
    await other.close()
    assert (len(shared), len(changing)) == (rivals, 0)


async def test_of_two_rows_with_one_key_the_last_stays(transaction):
    """Rows that are put twice in one request are there once, as they were put last."""
    await transaction.carry_out(Put([value("a", b"1"), value("b", b"2"), value("a", b"3")]))
    await transaction.carry_out(Put([value("b", b"4")]))
    assert {row.name: row.data for row in await transaction.carry_out(VALUES)} == {"a": b"3", "b": b"4"}


async def test_only_some_columns_are_replaced(transaction):
    """A write of some columns leaves the others as they are."""
    await transaction.carry_out(Insert([Space("a", 1, 2), Space("b", 3, 4)]))
    await transaction.carry_out(Update([Space("a", 5, 6), Space("b", None, 6)], ("next_due",)))
    assert await transaction.carry_out(Lock(Space, [("a",), ("b",)])) == [Space("a", 5, 2), Space("b", None, 4)]


async def test_a_row_that_is_gone_cannot_be_replaced(transaction):
    """A replacement that finds no row fails, also when it is joined with other writes."""
    await transaction.carry_out(Insert([value("a")]))
    await transaction.carry_out(Update([Space("gate", 5), Space("nowhere", 5)]))
    with pytest.raises(StoreError, match="1 of 2 rows of spaces are gone"):
        await transaction.flush()


async def test_writes_are_sent_together(monkeypatch, postgres_url):
    """Writes to different tables are one statement, sent with the commit."""
    seen = watch(monkeypatch)
    store = await opened(postgres_url)

    def verb(items, _decide, _now):
        yield Insert([value("a"), value("b")])
        yield Update([Space("gate", 7)])
        yield Change("delete_waits", {"run_ids": ["r"]})
        yield Put([event(None)])
        return items

    def forget(items, _decide, _now):
        yield Change("delete_run_values", {"run_ids": ["r"]})
        return items

    await store.run(verb, 1, echo, 0)  # the driver asks for the types of arrays when it first meets them
    await store.run(forget, 1, echo, 0)
    seen.clear()
    await store.run(verb, 1, echo, 0)
    await store.close()
    sent = [text for text in seen if "pg_notify" not in text]
    assert [text.split()[0].rstrip(";") for text in sent] == ["BEGIN", "WITH", "COMMIT"]


async def test_writes_that_may_meet_are_not_joined(transaction):
    """Of writes that may be about one row each sees what the one before it did."""
    await transaction.carry_out(Insert([value("a"), value("b"), value("c")]))
    await transaction.carry_out(Update([value("a", b"2")]))
    await transaction.carry_out(Change("delete_run_values", {"run_ids": ["r"]}))
    await transaction.carry_out(Insert([value("a", b"3")]))
    await transaction.carry_out(Delete(RunValue, [("r", "a")]))
    await transaction.carry_out(Insert([value("a", b"4")]))
    assert [row.data for row in await transaction.carry_out(VALUES)] == [b"4"]


async def test_an_id_that_was_cleared_may_come_again_at_once(transaction):
    """A table with a second unique column is written step by step: an event may take the id of one that goes."""
    (stored,) = await transaction.carry_out(InsertMissing([event("e-1")], "event_id"))
    await transaction.carry_out(Delete(EventRow, [(stored.seq,)]))
    await transaction.carry_out(Insert([event("e-1")]))
    rows = await transaction.carry_out(Read("events_by_id", {"ids": ["e-1"]}, EventRow))
    assert [row.seq > stored.seq for row in rows] == [True]


async def test_requests_without_rows(transaction):
    """A request about nothing does nothing."""
    for request in (Insert([]), Put([]), Update([]), Delete(Run, []), Tell([]), Lock(Run, [])):
        assert not await transaction.carry_out(request)
    assert await transaction.carry_out(InsertMissing([], "space")) == []
    assert await transaction.carry_out(Read("runs_by_id", {"run_ids": []}, Run)) == []
    await transaction.flush()


async def test_a_step_at_a_time(connection):
    """A driver of one's own may carry out each request by itself."""
    await connection.execute("BEGIN")
    await carry_out(connection, Put([value("a")]))
    assert await connection.fetchval("SELECT count(*) FROM run_values") == 1
    await connection.execute("ROLLBACK")


async def test_starting_over_is_told_to_the_driver(transaction):
    """Whoever drives a verb is told when it asks to be run anew."""

    def verb():
        yield Lock(Space, [("gate",)])
        raise StartOverError

    with pytest.raises(StartOverError):
        await transaction.drive(verb())


def _queries():
    folder = Path(statements.__file__).parent / "sql"
    return sorted({file.name.split(".")[0] for file in folder.glob("*.sql") if not file.name.endswith(".sqlite.sql")})


@pytest.mark.parametrize("absent", [False, True], ids=["given", "none"])
async def test_every_named_query_can_be_run(connection, absent):
    """PostgreSQL understands each query, with and without the parameters that may be None."""
    failed = {}
    for name in _queries():
        text = statements.named(name, "postgres")
        alias = re.search(r"\{(\w+)\.columns\}", text)
        of = rf"(?:FROM|JOIN)\s+(\w+)\s+(?:AS\s+)?{alias[1]}\b" if alias else r"(?:FROM|UPDATE|INTO)\s+(\w+)\b"
        table = re.search(of, text)
        record = next((one for one in TABLES if table and one.table == table[1]), None)
        nones = frozenset(re.findall(r"(?<!:):(\w+) IS", text)) if absent else frozenset()
        if "columns}" in text and record is None:  # from a subquery: any table that it mentions
            record = next(one for one in TABLES if one.table in postgres_sql.tables_of(name))
        try:
            await connection.prepare(postgres_sql.query(name, record, nones)[0])
        except asyncpg.PostgresError as error:
            failed[name] = str(error)
    assert failed == {}


async def test_none_and_given_parameters(store):
    """A parameter that may be None narrows a list only when it is given."""
    everything = dict.fromkeys(("status", "workflow", "space", "kind", "created_at", "run_id"))
    assert await store.read("list_runs", everything | {"limit": 5}, Run) == []
    assert (
        await store.read("list_runs", everything | {"kind": "job", "created_at": 1, "run_id": "", "limit": 5}, Run)
        == []
    )


# Batches


async def test_what_arrives_together_shares_a_commit(store):
    """Items that are submitted together are one batch."""
    keep = Keep()
    outcomes = await asyncio.gather(*(store.run(keep, f"i-{n}", echo, n) for n in range(50)))
    assert outcomes == [f"i-{n}" for n in range(50)]
    assert [len(batch) for batch in keep.batches] == [50]


async def test_what_arrives_meanwhile_shares_the_next_commit(store):
    """While a batch is under way the next one gathers, and nothing overtakes."""
    keep = Keep()
    async with gate_locked(store):
        tasks = await submitted([store.run(keep, "first", echo, 0)])
        await until_waiting(store)
        for number in range(20):
            tasks += await submitted([store.run(keep, f"i-{number}", echo, 0)])
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in keep.batches] == [1, 20]


async def test_another_lane_only_beside_a_full_batch(store):
    """What does not fit in a batch sets out beside it, without waiting for it."""
    keep = Keep()
    async with gate_locked(store):
        tasks = await submitted(store.run(keep, f"i-{n}", echo, 0) for n in range(510))
        await until_waiting(store, 2)
        tasks += await submitted([store.run(keep, "late", echo, 0)])
        assert [len(batch) for batch in keep.batches] == [500, 10]
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in keep.batches] == [500, 10, 1]


async def test_only_the_guilty_item_of_a_batch_fails(store):
    """A batch that cannot be committed is tried one by one: the others are decided."""
    keep = Keep()
    calls = [store.run(keep, item, echo, 0) for item in ("a", "nul\x00", "b", "half \ud800", "c")]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [str, StoreError, str, StoreError, str]
    assert await kept(store) == {"a", "b", "c"}


async def test_decisions_of_different_callers_do_not_mix(store):
    """Items that are decided by different functions do not share a batch, even under one verb."""

    def refuse(_draft, _item, _now):
        raise ConflictError("never")

    keep = Keep()
    calls = [store.run(keep, "bad", refuse, 0), store.run(keep, "good", echo, 0)]
    bad, good = await asyncio.gather(*calls, return_exceptions=True)
    assert (type(bad), good) == (ConflictError, "good")
    assert sorted(keep.batches) == [["bad"], ["good"]]


@pytest.mark.parametrize("error", [AssertionError, OSError, asyncio.CancelledError])
async def test_a_decision_that_blows_up_is_told_to_its_caller(store, error):
    """A fault in one decision reaches the one who asked, and the next one is decided."""

    def explode(_draft, _item, _now):
        raise error("our own mistake")

    with pytest.raises((error, StoreError), match="our own mistake") as caught:
        await asyncio.wait_for(store.run(Keep(), "a", explode, 0), 10)
    assert not isinstance(caught.value, asyncio.CancelledError)
    assert await store.run(Keep(), "b", echo, 0) == "b"


async def test_a_caller_that_leaves_is_decided_all_the_same(store):
    """A caller that is cancelled takes nothing back, and what follows the commit is done."""
    followed = asyncio.Event()
    async with gate_locked(store):
        (task,) = await submitted([store.run(Keep(), "a", echo, 0, lambda _: followed.set())])
        await until_waiting(store)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
    await soon(followed.wait())
    assert await kept(store) == {"a"}


async def test_what_looked_stale_is_done_anew(store):
    """A verb that asks to start again is run anew, and its first attempt leaves nothing behind."""
    keep = Keep()
    keep.again = 2
    assert await store.run(keep, "a", echo, 0) == "a"
    assert keep.batches == [["a"]] * 3


async def test_who_starts_again_for_ever_is_told_so(store):
    """A verb that never gets anywhere fails with nothing written."""
    keep = Keep()
    keep.again = 1000
    with pytest.raises(StoreError, match=r"others were in the way.*nothing was written"):
        await store.run(keep, "a", echo, 0)
    assert await kept(store) == set()


async def test_two_that_make_one_row(store):
    """Whoever makes a row that somebody else made first looks again and finds it."""
    attempts = []

    def make(items, _decide, _now):
        there = yield Lock(Space, [("new",)])
        attempts.append(len(there))
        yield Lock(Space, [("gate",)])
        if not there:
            yield Insert([Space("new", None)])
        return list(items)

    async with gate_locked(store):
        (task,) = await submitted([store.run(make, 1, echo, 0)])
        await until_waiting(store)
        other = await outside(store)
        await other.execute("INSERT INTO spaces (space, weight) VALUES ('new', 1)")
        await other.close()
    assert await task == 1
    assert attempts == [0, 1]


async def test_two_that_wait_for_each_other(store):
    """Of two transactions in a ring the one that PostgreSQL ends is run again, and both come through."""

    def crossing(items, _decide, _now):
        for key in items[0]:
            yield Lock(Space, [(key,)])
            met.append(key)
        return list(items)

    def make(items, _decide, _now):
        yield Put([Space("a", None), Space("b", None)])
        return list(items)

    met = []
    await store.run(make, 1, echo, 0)
    rival = await outside(store)
    await rival.execute("BEGIN; SELECT FROM spaces WHERE space = 'b' FOR UPDATE")
    (task,) = await submitted([store.run(crossing, ("a", "b"), echo, 0)])
    await until_waiting(store)
    waiting = asyncio.ensure_future(rival.execute("SELECT FROM spaces WHERE space = 'a' FOR UPDATE"))
    (told,) = await asyncio.gather(waiting, return_exceptions=True)  # one of the two is the victim
    await rival.execute("ROLLBACK")
    await rival.close()
    assert await task == ("a", "b")
    assert isinstance(told, asyncpg.DeadlockDetectedError) or met.count("a") == 2


async def test_a_wrong_number_of_outcomes_commits_nothing(store):
    """A verb that does not answer for each item is refused before anything of it is durable."""

    def short(_items, _decide, _now):
        yield Put([RunValue("kept", "a", b"")])
        return []

    with pytest.raises(StoreError, match="0 outcomes for 1 items"):
        await store.run(short, 1, echo, 0)
    assert await kept(store) == set()


# Opening and closing


async def test_closing_finishes_what_was_submitted(postgres_url):
    """What was submitted before the store is closed is decided, also when the closing is cancelled."""
    store, keep = await opened(postgres_url), Keep()
    async with gate_locked(store):
        (task,) = await submitted([store.run(keep, "a", echo, 0)])
        await until_waiting(store)
        (next_batch,) = await submitted([store.run(keep, "b", echo, 0)])
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (await soon(task), await soon(next_batch)) == ("a", "b")
    await store.close()
    looking = await admin(postgres_url)
    sessions = "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'piecework')"
    await until(lambda: looking.fetch(sessions))
    await looking.close()


async def test_a_closed_store_is_not_used(postgres_url):
    """A store is opened once; before that and after its end nothing can be asked of it."""
    store = PostgresStore(postgres_url)
    with pytest.raises(ClosedError):
        await store.run(Keep(), "a", echo, 0)
    await store.open()
    with pytest.raises(ClosedError, match="opened before"):
        await store.open()
    await store.close()
    await store.close()
    for call in (store.open(), store.read("nodes", {}), store.run(Keep(), "a", echo, 0)):
        with pytest.raises(ClosedError):
            await call


async def test_a_read_that_fails_names_the_store(store):
    """A query that cannot be run is told as the store's failure, and the next one is answered."""
    with pytest.raises(StoreError, match="failed"):
        await store.read("runs_by_id", {"run_ids": [7]}, Run)
    assert await store.read("runs_by_id", {"run_ids": ["a"]}, Run) == []


async def test_an_address_shows_no_password():
    """The password and what else is secret stays out of what is shown; the rest is there."""
    store = PostgresStore("postgresql://me:p%40ss@localhost:1/db?sslmode=disable&password=hidden&schema=mine")
    assert store.url == "postgresql://me@localhost:1/db?sslmode=disable&schema=mine"
    for text in (repr(store.link), repr(store.link.address)):
        assert "p%40ss" not in text
        assert "hidden" not in text


@pytest.mark.parametrize("schema", ["my-schema", 'x"y', "pg_mine", "", "a" * 64, "information_schema", "1st"])
def test_a_schema_has_a_plain_name(schema):
    """A schema's name that would have to be quoted, or is PostgreSQL's own, is refused."""
    with pytest.raises(ValidationError, match="schema"):
        PostgresStore(f"postgresql://localhost/db?schema={schema}")


def test_an_address_names_its_engine(tmp_path):
    """The address says which engine it is; of an unknown kind one is told the kinds, and no password."""
    assert isinstance(store_for(f"sqlite:///{tmp_path}/state.db"), SqliteStore)
    assert isinstance(store_for("postgres://localhost/db"), PostgresStore)
    with pytest.raises(ValidationError, match=r"'mysql'.*sqlite:///.*postgresql://") as refused:
        store_for("mysql://me:secret@localhost/db")
    assert "secret" not in str(refused.value)


def test_without_the_driver_the_extra_is_named(monkeypatch):
    """Where asyncpg is not installed the error says what to install."""
    for name in [name for name in sys.modules if name.startswith("piecework.store.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtraError, match=r"piecework\[postgres\]"):
        store_for("postgresql://localhost/db")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("/piecework_", "/nowhere_"), StoreError, "no such database"),
        (("postgres@", "nobody:secret@"), StoreError, "refuses the role or its password"),
        (("127.0.0.1", "host.invalid"), StoreUnavailableError, "cannot be reached"),
        ((":", ":"), StoreUnavailableError, "cannot be reached"),
    ],
    ids=["database", "role", "host", "port"],
)
async def test_a_server_that_cannot_be_used(postgres_url, change, error, words):
    """A store that cannot be opened says what is wrong and shows no password."""
    url = postgres_url.replace(*change)
    if change == (":", ":"):
        url = re.sub(r":\d+/", ":1/", url)
    with pytest.raises(error, match=words) as refused:
        await PostgresStore(url, connect_seconds=5).open()
    assert type(refused.value) is error
    assert "secret" not in str(refused.value)


# Whose schema it is


async def test_beside_the_tables_of_others(postgres_url):
    """The store's tables stand in a schema of their own, and nobody else's are touched."""
    connection = await admin(postgres_url)
    await connection.execute("CREATE TABLE runs (mine int); INSERT INTO runs VALUES (1)")
    one = await opened(postgres_url)
    two = await opened(f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema=Second_1")
    await one.run(Keep(), "a", echo, 0)
    assert (await kept(one), await kept(two)) == ({"a"}, set())
    assert await connection.fetchval("SELECT sum(mine) FROM public.runs") == 1
    await one.close()
    await two.close()
    await connection.close()


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE TABLE piecework.theirs (id int)",
        "CREATE FUNCTION piecework.f() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE TABLE piecework.schema_version (version bigint)",
        "CREATE TABLE piecework.schema_version (mark text, version bigint)",
        "CREATE TABLE piecework.schema_version AS SELECT 'alembic' AS mark, 1 AS version",
    ],
)
async def test_a_schema_of_somebody_else_is_left_alone(postgres_url, foreign):
    """A schema with things in it and without our mark is refused, and nothing is added to it."""
    connection = await admin(postgres_url)
    await connection.execute(f"CREATE SCHEMA piecework; {foreign}")
    things = "SELECT count(*) FROM pg_class WHERE relnamespace = 'piecework'::regnamespace"
    before = await connection.fetchval(things)
    with pytest.raises(StoreFormatError, match="left alone"):
        await PostgresStore(postgres_url).open()
    assert await connection.fetchval(things) == before
    await connection.close()


async def test_a_newer_schema_is_refused(postgres_url):
    """A store that was written by a newer version is left alone; the message has both numbers."""
    await (await opened(postgres_url)).close()
    connection = await admin(postgres_url)
    await connection.execute("UPDATE piecework.schema_version SET version = 4711")
    with pytest.raises(SchemaVersionError, match=rf"4711.*{migrations()[-1][0]}"):
        await PostgresStore(postgres_url).open()
    assert await connection.fetchval("SELECT version FROM piecework.schema_version") == 4711
    await connection.close()


async def test_a_migration_is_applied_whole_or_not_at_all(postgres_url, monkeypatch):
    """A migration that fails halfway leaves nothing, not even the schema."""
    broken = ((1, "CREATE TABLE half (id INTEGER PRIMARY KEY) STRICT; CREATE TABLE half (id TEXT) STRICT;\n"),)
    monkeypatch.setattr("piecework.store.postgres_schema.migrations", lambda: broken)
    with pytest.raises(StoreError, match="already exists"):
        await PostgresStore(postgres_url).open()
    connection = await admin(postgres_url)
    assert await connection.fetchval("SELECT to_regnamespace('piecework')") is None
    await connection.close()


async def test_the_next_migration_is_added(postgres_url, monkeypatch):
    """An older store gets what is new, and keeps what is in it."""
    store = await opened(postgres_url)
    await store.run(Keep(), "a", echo, 0)
    await store.close()
    number = migrations()[-1][0] + 1
    more = (
        *migrations(),
        (number, "-- postgres: CREATE TABLE more (id bigint);\nCREATE TABLE most (t TEXT) STRICT;\n"),
    )
    monkeypatch.setattr("piecework.store.postgres_schema.migrations", lambda: more)
    store = await opened(postgres_url)
    connection = await outside(store)
    assert await connection.fetchval("SELECT version FROM schema_version") == number
    assert await connection.fetchval("SELECT count(*) FROM more, most") == 0
    assert await kept(store) == {"a"}
    await connection.close()
    await store.close()


async def test_processes_that_open_at_once(postgres_url, process):
    """Of several processes that open a new store one makes the schema and the others find it."""
    children = [process(OPEN, postgres_url) for _ in range(3)]
    assert [await asyncio.to_thread(child.line) for child in children] == ["opened"] * 3


async def test_a_role_that_may_not_create_the_schema(postgres_url):
    """A role without rights is told which one it lacks, before anything is tried."""
    connection = await admin(postgres_url)
    role = database_of(postgres_url).replace("piecework", "limited")
    await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    url = re.sub(r"//[^@]*@", f"//{role}:secret@", postgres_url)
    try:
        with pytest.raises(StoreError, match=rf"role '{role}' may not create the schema 'piecework'"):
            await PostgresStore(url).open()
        await connection.execute("CREATE SCHEMA piecework")
        with pytest.raises(StoreError, match=rf"role '{role}' may not create tables in the schema"):
            await PostgresStore(url).open()
        await (await opened(postgres_url)).close()
        with pytest.raises(StoreError, match=rf"role '{role}' lacks USAGE on schema"):
            await PostgresStore(url).open()
        await connection.execute(f"GRANT USAGE ON SCHEMA piecework TO {role}")
        with pytest.raises(StoreError, match=rf"role '{role}' lacks SELECT on"):
            await PostgresStore(url).open()
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA piecework TO {role}")
        with pytest.raises(StoreError, match=rf"role '{role}' lacks rights in.*\(DELETE\)"):
            await PostgresStore(url).open()
        await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA piecework TO {role}")
        with pytest.raises(StoreError, match=rf"role '{role}' lacks rights in.*events_seq_seq \(USAGE\)"):
            await PostgresStore(url).open()
        await connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA piecework TO {role}")
        await (await opened(url)).close()
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


# News and time


class Skewed(SystemClock):
    """A machine whose clock is five minutes ahead."""

    def now(self):
        return super().now() + 300_000_000


async def test_a_skewed_clock_is_corrected(postgres_url):
    """What the database's clock says is known, however wrong the machine's own is."""
    store = await opened(postgres_url, clock=Skewed())
    straight = await opened(postgres_url)
    difference = store.clock_offset - straight.clock_offset
    await store.close()
    await straight.close()
    assert -301_000_000 < difference < -299_000_000


async def test_a_clock_of_a_tests_own_is_not_corrected(postgres_url):
    """A clock that is not the machine's goes by itself."""
    store = await opened(postgres_url, clock=VirtualClock())
    assert store.clock_offset == 0
    await store.close()


async def heard_by(store, number):
    """Listens; answers what was heard once there were so many topics."""
    heard, enough = [], asyncio.Event()

    def hear(topics):
        heard.extend(topics)
        if len(set(heard)) >= number:
            enough.set()

    store.listen(hear)
    return heard, enough


async def test_other_processes_are_told_after_the_commit(postgres_url, store):
    """What a verb tells reaches the other processes' stores once it is committed, and not its own."""
    other = await opened(postgres_url)
    heard, enough = await heard_by(other, 1)
    own, _ = await heard_by(store, 1)
    async with gate_locked(store):
        (task,) = await submitted([store.run(Keep(), "a", echo, 0)])
        await until_waiting(store)
        assert heard == []
    await soon(task)
    await soon(enough.wait())
    await other.close()
    assert (heard, own) == (["run:a"], [])


async def test_nothing_is_told_of_what_was_rolled_back(postgres_url, store):
    """A transaction that fails tells nobody anything."""
    other = await opened(postgres_url)
    heard, enough = await heard_by(other, 1)
    await asyncio.gather(store.run(Keep(), "nul\x00", echo, 0), return_exceptions=True)
    await store.run(Keep(), "good", echo, 0)
    await soon(enough.wait())
    await other.close()
    assert heard == ["run:good"]


async def test_commits_share_a_message(postgres_url, store):
    """What several commits tell while a message is on its way goes in the next one: never one a row."""
    other = await opened(postgres_url)
    heard, enough = await heard_by(other, 200)
    before = store._news.sent
    for number in range(200):
        store.tell([f"run:{number}"])
    await soon(enough.wait())
    await other.close()
    assert (len(heard), store._news.sent - before) == (200, 1)


async def test_a_transaction_of_somebody_else_tells_of_the_inbox(store):
    """A plain `inbox` on the schema's channel is heard."""
    heard, enough = await heard_by(store, 1)
    connection = await outside(store)
    await connection.execute("NOTIFY piecework, 'inbox'")
    await soon(enough.wait())
    await connection.close()
    assert heard == ["inbox"]


def test_messages_fit():
    """Of more runs than a message takes only that there were some is told; everything else is told in full."""
    topics = ["due", *(f"run:{n:032}" for n in range(1000)), *(f"abort:owner:{n:032}" for n in range(400))]
    messages = payloads("me", topics)
    told = {topic for message in messages for topic in read("you", message)}
    assert all(len(message.encode()) <= 7900 for message in messages)
    assert told == {"run:*", *(topic for topic in topics if not topic.startswith("run:"))}
    assert payloads("me", ["due", "run:é"]) == ['["me","due","run:é"]']


def test_messages_are_read():
    """One's own messages are not heard, those of others are, and what nobody understands may be about anything."""
    (message,) = payloads("me", ["due"])
    assert (read("me", message), read("you", message)) == (frozenset(), {"due"})
    assert (read("me", "inbox"), read("me", "what?"), read("me", '{"a":1}')) == ({"inbox"}, EVERYTHING, EVERYTHING)
