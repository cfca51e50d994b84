"""Small verbs of the tests' own, and eyes on what a PostgreSQL store does."""

from __future__ import annotations

import asyncio
import contextlib
import time

import asyncpg

from piecework.store.contract import Lock, Put, StartAgain, Tell
from piecework.store.postgres import PostgresStore
from piecework.store.postgres_link import Link
from piecework.store.records import RunValue, Space

GATE = [("gate",)]
_PATIENCE_SECONDS = 20


class Keep:
    """A verb that keeps its items, behind a gate that a test can lock.

    Attributes:
        batches: The items of each attempt.
        again: How often it asks to start again first.
    """

    def __init__(self):
        self.batches = []
        self.again = 0

    def __call__(self, items, decide, now):
        self.batches.append(list(items))
        yield Lock(Space, GATE)
        if self.again:
            self.again -= 1
            yield StartAgain()
        outcomes = [decide(None, item, now) for item in items]
        yield Put([RunValue("kept", item, str(now).encode()) for item in items])
        yield Tell([f"run:{item}" for item in items])
        return outcomes


def echo(_draft, item, _now):
    """Decides nothing."""
    return item


def make_gate(_items, _decide, _now):
    """Makes the row that is the gate."""
    yield Put([Space("gate", None)])
    return [None]


async def opened(url, **options):
    """An open store with a gate in it."""
    store = PostgresStore(url, **options)
    await store.open()
    await store.run(make_gate, None, echo, 0)
    return store


async def kept(store):
    """The items that are durable."""
    rows = await store.read("values_of_runs", {"run_ids": ["kept"]}, RunValue)
    return {row.name for row in rows}


async def outside(store):
    """A connection beside the store's, which sees its tables."""
    return await store.link.connect()


@contextlib.asynccontextmanager
async def gate_locked(store):
    """Holds up whoever comes to the gate."""
    connection = await outside(store)
    try:
        async with connection.transaction():
            await connection.fetch("SELECT FROM spaces WHERE space = 'gate' FOR UPDATE")
            yield
    finally:
        await connection.close()


async def until_waiting(store, number=1):
    """Waits until so many sessions wait for a lock; answers their pids."""
    connection = await outside(store)
    try:
        return await until(
            lambda: connection.fetch("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), number
        )
    finally:
        await connection.close()


async def until(look, number=1):
    """Looks until it sees so many; what is waited for is another process."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(seen := [row[0] for row in await look()]) < number:
        assert time.monotonic() < deadline, f"{seen} instead of {number}"
        await asyncio.sleep(0.01)
    return seen


async def soon(what):
    """Waits for something that comes through another process; a test that waits in vain fails and can clean up."""
    return await asyncio.wait_for(what, _PATIENCE_SECONDS)


async def submitted(calls):
    """Starts calls and lets them get as far as the store."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


def watch(monkeypatch):
    """Answers a list that every statement is added to, on connections that are made from now on."""
    seen = []
    connect = Link.connect

    async def watched(self):
        connection = await connect(self)
        connection.add_query_logger(lambda query: seen.append(query.query))
        return connection

    monkeypatch.setattr(Link, "connect", watched)
    return seen


async def admin(url):
    """A plain connection, as a person makes it."""
    return await asyncpg.connect(url)
