"""SQLite keeps every promise of a store, its verbs asking for their locks in one order."""

from __future__ import annotations

import pytest

from contracts.lock_order import Watched
from piecework.store.sqlite import SqliteStore
from piecework.testing.contracts import StoreContract


class TestSqlite(StoreContract):
    """The contract, on SQLite, and the order of locks."""

    @pytest.fixture
    async def store(self, sqlite_store_path):
        store = SqliteStore(sqlite_store_path)
        await store.open()
        yield Watched(store)
        await store.close()
