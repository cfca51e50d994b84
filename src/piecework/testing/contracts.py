"""The suite that every store has to pass. An engine that passes it is supported.

    from piecework.testing.contracts import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def store(self, tmp_path):
            store = MyStore(tmp_path)
            await store.open()
            yield store
            await store.close()

The tests are asynchronous: run them with anyio's plugin (`anyio_mode = "auto"`). After each of them everything that
stands in the store is looked at: counts, places, owners and waits must not contradict each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from piecework.store.check import check
from piecework.testing.invariants import check_invariants
from piecework.testing.promises_broken import BrokenPromises
from piecework.testing.promises_calls import CallPromises
from piecework.testing.promises_claims import ClaimPromises
from piecework.testing.promises_desired import DesiredPromises
from piecework.testing.promises_events import EventPromises
from piecework.testing.promises_fanout import FanoutPromises
from piecework.testing.promises_late import LatePromises
from piecework.testing.promises_lists import ListPromises
from piecework.testing.promises_modes import ModePromises
from piecework.testing.promises_nodes import NodePromises
from piecework.testing.promises_notifications import NotificationPromises
from piecework.testing.promises_pieces import PiecePromises
from piecework.testing.promises_removed import RemovedPromises
from piecework.testing.promises_retention import RetentionPromises
from piecework.testing.promises_runs import RunPromises
from piecework.testing.promises_spaces import SpacePromises
from piecework.testing.promises_versions import VersionPromises
from piecework.testing.promises_waits import WaitPromises
from piecework.testing.promises_woken import WokenPromises
from piecework.testing.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from piecework.store.contract import Store

_NOT_ASKED = frozenset({"owner_without_node"})
"""Rules of `store check` that do not hold here: most promises speak of owners that never said that they live."""


class StoreContract(
    EventPromises,
    ModePromises,
    LatePromises,
    FanoutPromises,
    ClaimPromises,
    VersionPromises,
    NodePromises,
    SpacePromises,
    RunPromises,
    CallPromises,
    WaitPromises,
    PiecePromises,
    DesiredPromises,
    WokenPromises,
    BrokenPromises,
    RemovedPromises,
    NotificationPromises,
    RetentionPromises,
    ListPromises,
):
    """Every verb's promise, as tests. Subclass it with a fixture `store`: an open one, empty, closed afterwards."""

    @pytest.fixture
    async def store(self) -> Store:
        """The engine under test; a subclass gives its own."""
        raise NotImplementedError("give StoreContract a fixture `store` that yields your open, empty store")

    @pytest.fixture
    async def verbs(self, store: Store) -> AsyncIterator[Verbs]:
        """The store's verbs; afterwards what is stored is looked at."""
        yield Verbs(store)
        await check_invariants(store)
        findings = [found for found in await check(store) if found.rule not in _NOT_ASKED]
        assert findings == []


__all__ = ["StoreContract", "check_invariants"]
