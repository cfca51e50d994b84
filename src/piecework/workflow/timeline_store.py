"""Timelines in a place of their own: what a runtime that has a `TimelineStore` records beside its runs."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from piecework.errors import PieceworkError, describe
from piecework.ids import new_id
from piecework.run.folds_nodes import no_decision
from piecework.run.info import TimelineEntry, timeline_entry
from piecework.store.items import KeepEntries
from piecework.store.opening import store_for
from piecework.store.records import Entry
from piecework.store.verbs.timeline import keep_entries
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.run.news import News
    from piecework.store.contract import Store


class TimelineStore:
    """Keeps copies of timelines. Whoever opens it closes it.

    Args:
        url: `sqlite:///FILE` or `postgresql://…`, of a store that no app uses.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = store_for(url)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def for_test(cls, name: str | None = None) -> Self:
        """A store in a folder that goes with it, when it is closed; two of one name do not see each other's."""
        folder = tempfile.TemporaryDirectory(prefix="piecework-timeline-")
        file = hashlib.sha256((name or new_id()).encode()).hexdigest()[:16]
        made = cls(f"sqlite:///{Path(folder.name) / file}.db")
        made._folder = folder
        return made

    async def open(self) -> None:
        """Opens it.

        Raises:
            StoreError: It cannot be opened.
        """
        await self._store.open()

    async def close(self) -> None:
        """Closes it; one for a test is gone then. Closing twice is harmless."""
        store, folder = self._store, self._folder
        self._folder = None
        await store.close()
        if folder is not None:
            await asyncio.to_thread(folder.cleanup)

    async def __aenter__(self) -> Self:
        """As it is: open."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes it."""
        await self.close()

    async def record(self, rows: Sequence[Entry]) -> None:
        """Keeps entries; those that are there already are replaced.

        Raises:
            StoreError: They could not be written.
        """
        await self._store.run(keep_entries, KeepEntries(rows=tuple(rows)), no_decision, 0)

    async def timeline(self, run_id: str) -> list[TimelineEntry]:
        """What was recorded of a run, oldest first; nothing of an unknown one."""
        rows = await self._store.read("timeline_of", {"run_id": run_id}, Entry)
        return [timeline_entry(row, seq) for seq, row in enumerate(rows, start=1)]


class Recorder:
    """Copies the timeline of each run that pauses or ends; a copy that fails is shown and fails nothing.

    Args:
        source: Where the runs are.
        target: Where their timelines are to be.
        news: Tells of the runs.
    """

    def __init__(self, source: Store, target: TimelineStore, news: News) -> None:
        self._source = source
        self._target = target
        self._told: asyncio.Queue[str | None] = asyncio.Queue()
        self._deaf = news.listen(lambda run_id, _: self._told.put_nowait(run_id))
        self._task = asyncio.create_task(self._copy(), name="timeline recorder")

    async def stop(self) -> None:
        """Records what it has heard of, and ends."""
        self._deaf()
        self._told.put_nowait(None)
        await self._task

    async def _copy(self) -> None:
        while (run_id := await self._told.get()) is not None:
            try:
                await self._target.record(await self._source.read("timeline_of", {"run_id": run_id}, Entry))
            except PieceworkError as error:
                signals.emit(signals.NODE_TROUBLE, level="error", what=f"recording run {run_id}", error=describe(error))
