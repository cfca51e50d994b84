"""How long a durable one-step run takes, one after the other, by a bare commit of the rows that it leaves.

Once alone and once beside a thread that only computes. The two take turns in blocks; p50 and p99 are of all runs.
"""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from runs_common import ONE, Raw, database, opened, parts_of, rows_of, start
from store_common import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runs_common import Rows

    from piecework import App

_BLOCK = 25


@contextmanager
def busy(there: bool) -> Iterator[None]:
    """Beside a thread that computes, or not."""
    ended = threading.Event()

    def compute() -> None:
        number = 0
        while not ended.is_set():
            number = (number * 31 + 7) % 1_000_003

    thread = threading.Thread(target=compute, daemon=True)
    if there:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if there:
            thread.join()


async def runs(app: App, number: int) -> list[float]:
    """The seconds that each of so many runs took."""
    taken = []
    for run in range(number):
        begun = time.perf_counter()
        result = await app.runtime.wait(await start(app, run))
        taken.append(time.perf_counter() - begun)
        assert result.unwrap().state["one"] == 1
    return taken


async def commits(raw: Raw, parts: list[list[Rows]]) -> list[float]:
    """The seconds that each commit took."""
    taken = []
    for (rows,) in parts:
        begun = time.perf_counter()
        await raw.commit_anywhere(rows, [])
        taken.append(time.perf_counter() - begun)
    return taken


async def measure(bench: Bench, engine: str) -> None:
    """Takes blocks in turns, alone and beside a thread."""
    for crowded in (False, True):
        mine: list[list[float]] = []
        bare: list[list[float]] = []
        number = _BLOCK * bench.options.pairs
        async with database(bench, engine) as url, Raw.on(bench, engine) as raw, opened(url, ONE) as app:
            await runs(app, number)
            parts = parts_of(await rows_of(url), number, commits=1)
            with busy(crowded):
                for block in range(bench.options.pairs):
                    mine.append(await runs(app, _BLOCK))
                    bare.append(await commits(raw, parts[block * _BLOCK : (block + 1) * _BLOCK]))
        taken, floor = sorted(chain(*mine)), sorted(chain(*bare))
        bench.report(
            f"{engine}: a one-step run{' beside a computing thread' if crowded else ''}, by one bare commit",
            [statistics.median(a) / statistics.median(b) for a, b in zip(mine, bare, strict=True)],
            bar=None,
            p99_ratio=round(_p99(taken) / _p99(floor), 2),
            p50_ms=round(statistics.median(taken) * 1000, 2),
            p99_ms=round(_p99(taken) * 1000, 2),
            bare_p50_ms=round(statistics.median(floor) * 1000, 2),
            bare_p99_ms=round(_p99(floor) * 1000, 2),
        )


def _p99(taken: list[float]) -> float:
    return taken[min(len(taken) - 1, round(len(taken) * 0.99))]


if __name__ == "__main__":
    Bench(__doc__ or "", durable=True, pairs=12, quick={"--pairs": 3}).run(measure)
