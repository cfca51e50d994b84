"""Grouped commits on SQLite with one thread of the process that only computes, against one statement a row.

`sqlite3` gives the interpreter up at every step of a statement, so beside such a thread each row waits for a switch
interval. The other contender is the same driver kept to one statement a row, at Python's own switch interval. They
take turns, commit by commit. The ratios are ours by the other's, in the time that a commit takes.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace
from store_common import Bench

from piecework.run import folds
from piecework.store.items import Continue, NewEntry
from piecework.store.sqlite_crowd import Crowd
from piecework.store.verbs.runs import commit_stage
from piecework.testing.verbs import Verbs, stage_end, transient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.store.contract import Store
    from piecework.store.records import Run

BAR = 1 / 3
DEFAULT_SECONDS = 0.005
SHORT_SECONDS = 0.0005
SAID = NewEntry(type="stage:completed", path="work", payload=b'{"ms":1}')


class Never(Crowd):
    """Never finds anybody competing for the interpreter."""

    @property
    def crowded(self) -> bool:
        return False


class Line:
    """A store with some runs whose stages end together, one group at a time.

    Args:
        store: Open.
        interval: The switch interval while it commits, in seconds.
    """

    def __init__(self, store: Store, interval: float) -> None:
        self._verbs = Verbs(store)
        self._interval = interval
        self._runs: list[Run] = []
        self._visit = 0

    async def start(self, items: int) -> None:
        """Gets the runs going."""
        for _ in range(items):
            await self._verbs.start(transient(concurrency=items))
        self._runs = [entry.run for entry in await self._verbs.claim(limit=items)]
        assert len(self._runs) == items

    async def commit(self) -> float:
        """The seconds that a group's commit takes."""
        ends = [
            replace(stage_end(run, Continue(stage="next"), visit=self._visit), entries=(SAID,)) for run in self._runs
        ]
        self._visit += 1
        sys.setswitchinterval(self._interval)
        begun = time.perf_counter()
        await asyncio.gather(*(self._verbs.do(commit_stage, end, folds.decide_commit_stage) for end in ends))
        passed = time.perf_counter() - begun
        sys.setswitchinterval(DEFAULT_SECONDS)
        return passed


@contextmanager
def busy_thread() -> Iterator[None]:
    """A thread that computes and never waits."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(500))

    thread = threading.Thread(target=compute, name="busy")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def measure(bench: Bench, engine: str) -> None:
    """Takes turns between the three, first in quiet and then beside the thread."""
    commits = bench.options.commits
    async with (
        bench.fresh(engine) as ours,
        bench.fresh(engine) as brisk,
        bench.fresh(engine, crowd=Never()) as row_by_row,
    ):
        lines = [Line(ours, DEFAULT_SECONDS), Line(brisk, SHORT_SECONDS), Line(row_by_row, DEFAULT_SECONDS)]
        for line in lines:
            await line.start(bench.options.items)
        quiet = [[await line.commit() for line in lines] for _ in range(commits)]
        with busy_thread():
            busy = [[await line.commit() for line in lines] for _ in range(commits)]
    for place, what in ((0, "at Python's switch interval"), (1, "at a switch interval of 0.5 ms")):
        bench.report(
            f"{engine}: {bench.options.items} stages a commit beside a busy thread, ours {what} by a statement a row",
            [times[place] / times[2] for times in busy],
            bar=BAR,
            at_most=True,
            quiet_ratio=round(statistics.median(times[place] / times[2] for times in quiet), 2),
            busy_by_quiet=round(
                statistics.median(times[place] for times in busy) / statistics.median(times[place] for times in quiet),
                1,
            ),
            row_by_row_busy_by_quiet=round(
                statistics.median(times[2] for times in busy) / statistics.median(times[2] for times in quiet), 1
            ),
        )


if __name__ == "__main__":
    Bench(__doc__ or "", engines="sqlite", options={"--commits": 200, "--items": 20}).run(measure)
