"""SQLite keeps every promise of a store, and some of its own."""

from __future__ import annotations

import pytest

from piecework.store.sqlite import SqliteStore
from piecework.testing.contracts import StoreContract


class TestSqlite(StoreContract):
    """The contract, on SQLite."""

    @pytest.fixture
    async def store(self, tmp_path):
        store = SqliteStore(tmp_path / "state.db")
        await store.open()
        yield store
        await store.close()
