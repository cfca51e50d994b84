from __future__ import annotations

import pytest

from piecework.store.sqlite import SqliteStore
from piecework.testing.invariants import check_invariants
from piecework.testing.verbs import Verbs


@pytest.fixture
async def store(sqlite_store_path):
    store = SqliteStore(sqlite_store_path)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def verbs(store):
    yield Verbs(store)
    await check_invariants(store)
