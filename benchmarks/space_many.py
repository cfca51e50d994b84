"""A thousand registered spaces with twenty workers at a time, and what one more idle space costs its node.

Each space has one piece, due now. All are updated, one worker after the other taking the place of one that is done, by
twenty spaces that have a worker already and are updated as often. Before that: what the node holds and how many
processes it has beside a tenth of the spaces and beside all of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

from spaces_app import app
from store_common import Bench

from piecework import Settings
from piecework.process import linux

if TYPE_CHECKING:
    from collections.abc import Iterable

LIVE = 20
IN_A_ROW = 180
BYTES_BAR = 512.0


async def register(spaces: Iterable[str], integration: str) -> None:
    """One piece in each of them."""
    for space in spaces:
        await app.pieces.register(space=space, piece_id="p", integration=integration)


async def all_have_run(number: int) -> None:
    """Waits until so many pieces have been updated."""
    while sum(piece.last_success_at is not None for piece in await app.pieces.list()) < number:  # noqa: ASYNC110 - a look now and then costs least
        await asyncio.sleep(0.05)


async def update(spaces: list[str]) -> float:
    """Seconds for one update of each of these spaces, as many at a time as may live."""
    places = asyncio.Semaphore(LIVE)

    async def once(space: str) -> None:
        async with places:
            assert (await app.pieces.run_now(space, "p", wait=True)).outcome == "success"

    began = time.perf_counter()
    await asyncio.gather(*map(once, spaces))
    return time.perf_counter() - began


async def held() -> int:
    """Bytes that this process holds on to, as far as they were taken since `tracemalloc` was started.

    Without the interpreter's table of names: a path's parts are put there and taken out again, and the whole table is
    charged to the line that happens to make it larger.
    """
    await asyncio.sleep(0.2)  # the loop keeps what its last callback was handed
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, pathlib.__file__)])
    return sum(trace.size for trace in snapshot.traces)


async def measure(bench: Bench, _engine: str) -> None:
    """All of it, in one app."""
    number: int = bench.options.spaces
    names = [f"space-{index}" for index in range(number)]
    with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
        settings = Settings(space_workers_limit=LIVE, space_idle_seconds=3600)
        app.configure(store=f"sqlite:///{Path(folder) / 'state.db'}", settings=settings)
        async with app:
            tracemalloc.start()
            small = number // 10
            await register(names[:small], "quiet")
            await all_have_run(small)
            before = await held()
            began = time.perf_counter()
            await register(names[small:], "quiet")
            await all_have_run(number)
            seconds = time.perf_counter() - began
            each = (await held() - before) / (number - small)
            tracemalloc.stop()
            # The zygote, and a keeper and a worker for each that lives and for the one that is kept ready.
            processes = len(linux.descendants(os.getpid()))
            bench.report(
                f"bytes that a node holds for an idle space, of {number}",
                [each],
                bar=BYTES_BAR,
                at_most=True,
                sound=processes <= 2 * LIVE + 3,
                processes=processes,
                first_updates_per_second=round((number - small) / seconds, 1),
            )
            ratios, passing, staying = [], [], []
            live, others = names[:LIVE], names[LIVE:]
            for _ in range(bench.options.pairs):
                await update(live)  # each has its worker from here on
                staying.append(await update(live * (IN_A_ROW // LIVE)) / IN_A_ROW)
                passing.append(await update(others[:IN_A_ROW]) / IN_A_ROW)
                ratios.append(passing[-1] / staying[-1])
            bench.report(
                "an update whose space has to get a worker first, by one whose space has one",
                ratios,
                bar=None,
                ms_with_a_start=round(min(passing) * 1e3, 2),
                ms_without=round(min(staying) * 1e3, 2),
            )


if __name__ == "__main__":
    assert linux.can_run_workers(), "spaces need pidfds"
    Bench(
        __doc__ or "",
        engines="sqlite",
        pairs=3,
        options={"--spaces": 1000},
        quick={"--pairs": 1, "--spaces": 200},
    ).run(measure)
