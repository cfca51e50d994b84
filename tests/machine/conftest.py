from __future__ import annotations

from itertools import count

import pytest

from piecework.store.sqlite import SqliteStore


class Unsynced(SqliteStore):
    """A file that a power cut could tear: here only programs die, and what they wrote stays with the kernel."""

    def _prepare(self):
        connection = super()._prepare()
        connection.execute("PRAGMA synchronous = OFF")
        return connection


@pytest.fixture
def sqlite(tmp_path):
    """Opens a file: a new one for each clock, which is a history's own."""
    numbers, files = count(), {}

    async def connect(clock):
        if clock not in files:
            files[clock] = tmp_path / f"{next(numbers)}.db"
        store = Unsynced(files[clock])
        await store.open()
        return store

    return connect


@pytest.fixture
def postgres(postgres_url):
    """Opens a schema that has been emptied; a history opens it once."""
    import psycopg

    from piecework.store.postgres import PostgresStore

    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'piecework' AND tablename <> 'schema_version'"
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        async def connect(clock):
            store = PostgresStore(postgres_url, clock=clock)
            await store.open()
            names = [name for (name,) in connection.execute(tables)]
            connection.execute(";".join(f'DELETE FROM piecework."{name}"' for name in names))
            return store

        yield connect
