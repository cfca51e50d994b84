"""History goes when its time has come: ended runs, events, ids for duplicates, empty slots, in small batches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from piecework.clock import SECOND
from piecework.errors import ClosedError, describe
from piecework.run.folds_nodes import no_decision
from piecework.store.items import Retain
from piecework.store.verbs.retention import forget_events, forget_ids, forget_nodes, forget_runs, forget_slots
from piecework.telemetry import signals

if TYPE_CHECKING:
    from piecework.clock import Clock
    from piecework.store.contract import Store, Verb

_FIRST_SECONDS = 60.0
_EVERY_SECONDS = 600.0
_AT_ONCE = 500


class Retention:
    """Looks now and then whether there is history to forget, on a node.

    Args:
        store: Open.
        clock: Tells the time.
        retention_seconds: How long ended runs and their events are kept.
        dedup_seconds: How long a second event of one id is known to be a duplicate.
    """

    def __init__(self, store: Store, clock: Clock, *, retention_seconds: float, dedup_seconds: float) -> None:
        self._store = store
        self._clock = clock
        self._retention = round(retention_seconds * SECOND)
        self._dedup = round(dedup_seconds * SECOND)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._run(), name="piecework-retention")

    async def stop(self) -> None:
        """Looks no more. Stopping twice, or before the start, is harmless."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def forget(self) -> int:
        """Forgets everything whose time has come; answers how many rows were looked at.

        Raises:
            StoreError: The store failed; the rest goes at the next look.
        """
        now = self._clock.now()
        count = 0
        for verb, age in (
            (forget_ids, self._dedup),
            (forget_runs, self._retention),
            (forget_events, max(self._retention, self._dedup)),
            (forget_slots, self._retention),
            (forget_nodes, self._retention),
        ):
            count += await self._forget(verb, Retain(before=now - age, limit=_AT_ONCE))
        return count

    async def _forget(self, verb: Verb, item: Retain) -> int:
        count = 0
        while True:
            found: int = await self._store.run(verb, item, no_decision, self._clock.now())
            count += found
            if found < item.limit:
                return count

    async def _run(self) -> None:
        seconds = _FIRST_SECONDS
        while True:
            await self._clock.sleep(seconds)
            seconds = _EVERY_SECONDS
            try:
                await self.forget()
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - shown, and tried again
                signals.emit(signals.NODE_TROUBLE, level="error", what="forgetting history", error=describe(error))
