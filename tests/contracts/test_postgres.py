"""PostgreSQL keeps every promise of a store."""

from __future__ import annotations

import pytest

from piecework.store.postgres import PostgresStore
from piecework.testing.contracts import StoreContract


class TestPostgres(StoreContract):
    """The contract, on PostgreSQL."""

    @pytest.fixture
    async def store(self, postgres_store_url):
        store = PostgresStore(postgres_store_url)
        await store.open()
        yield store
        await store.close()
