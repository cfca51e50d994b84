"""What becomes of work when the server, a connection or a loop goes in the middle of it."""

from __future__ import annotations

import asyncio
import os
import re
import threading

import pytest

import postgres_server
from contracts.postgres_proxy import Proxy
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
    until_waiting,
)
from piecework.clock import SystemClock
from piecework.errors import ConflictError, StoreError, StoreFullError, StoreUnavailableError
from piecework.store.contract import Failure, Lock, Put
from piecework.store.postgres import PostgresStore
from piecework.store.postgres_beat import Heartbeat
from piecework.store.records import RunValue, Space


@pytest.fixture(scope="module")
def server():
    """A server that may be killed."""
    try:
        server = postgres_server.Server()
    except postgres_server.ServerUnavailableError as error:
        return pytest.skip(str(error))
    yield server
    server.close()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.fixture
async def mortal_url(server):
    """A fresh database on a server that may be killed."""
    connection = await admin(server.url())
    await connection.execute("DROP DATABASE IF EXISTS mortal WITH (FORCE)")
    await connection.execute("CREATE DATABASE mortal")
    await connection.close()
    return server.url("mortal")


@pytest.fixture
async def store(postgres_url):
    store = await opened(postgres_url)
    yield store
    await store.close()


async def cut(store, pids):
    """Ends sessions, as an administrator does."""
    connection = await outside(store)
    for pid in pids:
        await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
    await connection.close()


# Connections


async def test_a_session_that_is_ended_in_mid_verb(store):
    """A verb whose session is ended is run again on another one; its caller notices nothing."""
    keep = Keep()
    async with gate_locked(store):
        (task,) = await submitted([store.run(keep, "a", echo, 0)])
        await cut(store, await until_waiting(store))
        await until_waiting(store)
    assert await task == "a"
    assert keep.batches == [["a"], ["a"]]


async def test_idle_sessions_that_are_ended(store):
    """Connections that went while nobody used them are replaced."""
    await asyncio.gather(*(store.run(Keep(), item, echo, 0) for item in ("a", "b", "c")))
    connection = await outside(store)
    pids = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    await connection.close()
    heard = asyncio.Event()
    store.listen(lambda topics: heard.set() if "*" in topics else None)
    await cut(store, [row["pid"] for row in pids])
    await soon(heard.wait())  # whoever listens looks at everything: something may have been missed
    assert await store.run(Keep(), "d", echo, 0) == "d"
    assert await kept(store) == {"a", "b", "c", "d"}


async def test_more_sessions_than_the_role_may_have(postgres_url):
    """Where no further connection is to be had, work waits for one that there is."""
    connection = await admin(postgres_url)
    role = postgres_server.database_of(postgres_url).replace("piecework", "few")
    await connection.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")
    await connection.execute(f"CREATE SCHEMA piecework AUTHORIZATION {role}")
    try:
        store = await opened(re.sub(r"//[^@]*@", f"//{role}@", postgres_url))
        answers = await asyncio.gather(*(store.run(Keep(), f"i-{n}", echo, 0) for n in range(8)))
        await store.close()
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()
    assert answers == [f"i-{n}" for n in range(8)]


async def test_a_commit_whose_answer_is_lost(postgres_url):
    """Where nobody knows whether a commit came through, the batch is run again and finds its own effect."""
    async with Proxy(postgres_url) as proxy:
        store = await opened(proxy.url)
        keep = Keep()
        proxy.cuts = 1
        assert await store.run(keep, "a", echo, 0) == "a"
        assert keep.batches == [["a"], ["a"]]
        assert await kept(store) == {"a"}
        await store.close()


async def test_a_commit_whose_answer_never_comes(postgres_url):
    """Where the server does not come back in time the caller is told that the outcome is unknown."""
    async with Proxy(postgres_url) as proxy:
        store = await opened(proxy.url, reconnect_seconds=0.3)
        proxy.cuts, proxy.passable = 1, False
        with pytest.raises(
            StoreUnavailableError, match=r"whether it was written is unknown.*again is harmless"
        ) as told:
            await store.run(Keep(), "a", echo, 0)
        assert told.value.unknown
        proxy.passable = True
        assert await kept(store) == {"a"}
        await store.close()


# The server


@pytest.mark.covers("N69")
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_server_that_is_restarted(server, mortal_url, end):
    """What is submitted and asked while the server is away waits for it and is answered."""
    store = await opened(mortal_url)
    await store.run(Keep(), "before", echo, 0)
    heard = asyncio.Event()
    store.listen(lambda topics: heard.set() if "*" in topics else None)
    await asyncio.to_thread(getattr(server, end))
    tasks = await submitted([store.run(Keep(), "meanwhile", echo, 0), kept(store)])
    server.start()
    assert await tasks[0] == "meanwhile"
    assert "before" in await tasks[1]
    await soon(heard.wait())
    assert await kept(store) == {"before", "meanwhile"}
    await store.close()


async def test_a_server_that_stays_away(server, mortal_url):
    """A server that does not come back in time fails what waits for it; when it is back work goes on."""
    store = await opened(mortal_url, reconnect_seconds=0.2)
    await asyncio.to_thread(server.kill)
    try:
        calls = [store.run(Keep(), "a", echo, 0), store.run(Keep(), "b", echo, 0), kept(store)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await PostgresStore(mortal_url).open()
    finally:
        server.start()
    assert [type(answer) for answer in answers] == [StoreUnavailableError] * 3
    assert "nothing was written" in str(answers[0])
    assert await store.run(Keep(), "c", echo, 0) == "c"
    assert await kept(store) == {"c"}
    await store.close()


async def test_closing_while_the_server_is_away(server, mortal_url):
    """A store is closed without its server, once what was submitted has been answered."""
    store = await opened(mortal_url, reconnect_seconds=0.2)
    await asyncio.to_thread(server.kill)
    try:
        (task,) = await submitted([store.run(Keep(), "a", echo, 0)])
        await store.close()
        with pytest.raises(StoreUnavailableError):
            await soon(task)
    finally:
        server.start()


# Others in the way, no room


async def test_a_lock_that_does_not_come(postgres_url):
    """Who holds a lock for too long makes others fail with nothing written; what they want is tried again first."""
    store = await opened(postgres_url, lock_seconds=0.02)
    keep = Keep()
    async with gate_locked(store):
        with pytest.raises(StoreError, match=r"others were in the way.*lock timeout"):
            await store.run(keep, "a", echo, 0)
    assert len(keep.batches) == 10
    assert await store.run(keep, "b", echo, 0) == "b"
    assert await kept(store) == {"b"}
    await store.close()


async def test_one_lock_that_does_not_come_is_not_everybodys(postgres_url):
    """In a batch only the item whose lock does not come fails."""
    store = await opened(postgres_url, lock_seconds=0.02)

    def verb(items, _decide, _now):
        yield Lock(Space, [(item,) for item in items])
        yield Put([RunValue("kept", item, b"") for item in items])
        return list(items)

    async with gate_locked(store):
        calls = [store.run(verb, item, echo, 0) for item in ("a", "gate", "b")]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert (answers[0], type(answers[1]), answers[2]) == ("a", StoreError, "b")
    await store.close()


async def test_a_full_disk(store):
    """A server without room says so; what was acknowledged stays, and room lets it go on."""
    await store.run(Keep(), "a", echo, 0)
    connection = await outside(store)
    await connection.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON run_values EXECUTE FUNCTION full_disk()"
    )
    with pytest.raises(StoreFullError, match="make room"):
        await store.run(Keep(), "b", echo, 0)
    await connection.execute("DROP TRIGGER full_disk ON run_values")
    await connection.close()
    assert await store.run(Keep(), "c", echo, 0) == "c"
    assert await kept(store) == {"a", "c"}


# The heartbeat


class Skewed(SystemClock):
    """A machine whose clock is five minutes ahead."""

    def now(self):
        """The wrong time."""
        return super().now() + 300_000_000


class Lease:
    """A node's lease, as a verb of the tests' own: how often it was renewed, and when last."""

    def __init__(self, loop):
        self._loop = loop
        self._renewed = asyncio.Condition()
        self.times = 0
        self.beats = 0
        self.outcomes = []

    def beat(self):
        """What the heartbeat calls."""
        self.beats += 1
        return self._renew, "node", self.decide

    def decide(self, _draft, item, _now):
        """Renews."""
        return item

    def _renew(self, items, decide, now):
        outcomes = []
        for item in items:
            try:
                outcomes.append(decide(None, item, now))
            except ConflictError as error:
                outcomes.append(Failure(error))
        yield Put([RunValue("leases", "node", str(now).encode())])
        return outcomes

    def renewed(self, outcome):
        """What the heartbeat tells."""
        self.outcomes.append(outcome)
        self.times += 1
        self._loop.create_task(self._notify())

    async def _notify(self):
        async with self._renewed:
            self._renewed.notify_all()

    async def until(self, times):
        """Waits for so many renewals."""
        async with self._renewed:
            await soon(self._renewed.wait_for(lambda: self.times >= times))


@pytest.fixture
async def lease():
    return Lease(asyncio.get_running_loop())


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "piecework-heartbeat"]


async def test_a_heart_beats_in_its_own_thread(store, lease):
    """A started heartbeat has renewed once, goes on by itself, and leaves no thread behind."""
    heartbeat = Heartbeat(store, lease.beat, every_seconds=0.01, on_renewed=lease.renewed)
    await heartbeat.start()
    assert lease.times >= 1
    await lease.until(5)
    await heartbeat.stop()
    await heartbeat.stop()
    assert threads() == []
    assert set(lease.outcomes) == {"node"}


async def test_a_heart_beats_in_the_databases_time(postgres_url, lease):
    """A lease is renewed at the database's moment, however wrong the machine's clock is."""
    store = await opened(postgres_url, clock=Skewed())
    heartbeat = Heartbeat(store, lease.beat, on_renewed=lease.renewed)
    await heartbeat.start()
    await heartbeat.stop()
    (row,) = await store.read("values_of_runs", {"run_ids": ["leases"]}, RunValue)
    connection = await outside(store)
    behind = await connection.fetchval("SELECT extract(epoch FROM now()) * 1000000 - $1::bigint", int(row.data))
    await connection.close()
    await store.close()
    assert abs(behind) < 100_000_000


@pytest.mark.covers("N70")
async def test_a_loop_that_stands_still(store, lease):
    """While the loop stands still for too long nothing is renewed, and it is said once; then the heart beats on."""
    stalled, said = threading.Event(), []

    def on_stall(seconds):
        said.append((seconds, lease.beats))
        stalled.set()

    heartbeat = Heartbeat(
        store, lease.beat, every_seconds=0.01, stall_seconds=0.2, on_stall=on_stall, on_renewed=lease.renewed
    )
    await heartbeat.start()
    assert stalled.wait(20)  # the loop stands here
    beats = lease.beats
    await lease.until(beats + 3)
    await heartbeat.stop()
    assert len(said) == 1
    assert said[0][0] >= 0.2
    assert beats == said[0][1]


async def test_a_heart_survives_its_connection(store, lease):
    """A heartbeat whose session is ended, again and again, goes on over another one."""
    heartbeat = Heartbeat(store, lease.beat, every_seconds=0.01, on_renewed=lease.renewed)
    await heartbeat.start()
    for _ in range(3):
        connection = await outside(store)
        query = "SELECT pid FROM pg_stat_activity WHERE query = 'COMMIT' AND datname = current_database()"
        pids = [row["pid"] for row in await connection.fetch(query)]
        await connection.close()
        await cut(store, pids)
        await lease.until(lease.times + 3)
    await heartbeat.stop()
    assert set(lease.outcomes) == {"node"}


async def test_a_first_renewal_that_fails(store, lease):
    """A heartbeat that cannot renew at its start says why, and has ended."""

    def broken():
        raise ConflictError("not this node")

    with pytest.raises(ConflictError, match="not this node"):
        await Heartbeat(store, broken, every_seconds=0.01).start()
    assert threads() == []


async def test_a_lease_that_is_refused(store, lease):
    """A renewal whose decision is refused is told as what it is."""
    heartbeat = Heartbeat(store, lease.beat, every_seconds=0.01, on_renewed=lease.renewed)
    await heartbeat.start()

    def refuse(_draft, _item, _now):
        raise ConflictError("the lease is somebody else's")

    lease.decide = refuse
    await lease.until(lease.times + 3)
    await heartbeat.stop()
    assert isinstance(lease.outcomes[-1], Failure)
    assert isinstance(lease.outcomes[-1].error, ConflictError)
