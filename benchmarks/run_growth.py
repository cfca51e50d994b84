"""What a three-step run costs beside 500, 8,000 and 64,000 runs that have ended in the same database.

The three databases are filled by running the runs. Then they take turns, 250 runs each. The ratio is the time in a
large one by the time in the smallest; listing the latest fifty runs is compared in the same way.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from runs_common import database, opened, run_all
from store_common import Bench

if TYPE_CHECKING:
    from piecework import App

SLOWER_AT_MOST = 1.3
LISTED_AT_MOST = 1.5
_CHUNK = 250


async def listed(app: App) -> float:
    """The seconds that the latest fifty runs take, of the better half of ten looks."""
    taken = []
    for _ in range(10):
        begun = time.perf_counter()
        assert len(await app.runtime.list_all_runs(limit=50)) == 50
        taken.append(time.perf_counter() - begun)
    return statistics.median(sorted(taken)[:5])


async def measure(bench: Bench, engine: str) -> None:
    """Fills the databases, then takes the pairs."""
    sizes = sorted({500, min(8000, bench.options.most), bench.options.most})
    async with AsyncExitStack() as stack:
        apps: list[App] = []
        for size in sizes:
            url = await stack.enter_async_context(database(bench, engine))
            apps.append(await stack.enter_async_context(opened(url)))
            await run_all(apps[-1], range(size))
        ran: list[list[float]] = []
        looked: list[list[float]] = []
        for pair in range(bench.options.pairs):
            numbers = range(pair * _CHUNK, (pair + 1) * _CHUNK)
            ran.append([await run_all(app, numbers) for app in apps])
            looked.append([await listed(app) for app in apps])
    for place, size in enumerate(sizes[1:], 1):
        bench.report(
            f"{engine}: a run beside {size} ended ones, by one beside {sizes[0]}",
            [some[place] / some[0] for some in ran],
            bar=SLOWER_AT_MOST,
            at_most=True,
        )
        bench.report(
            f"{engine}: the latest fifty of {size}, by those of {sizes[0]}",
            [some[place] / some[0] for some in looked],
            bar=LISTED_AT_MOST,
            at_most=True,
            list_ms=round(statistics.median(some[place] for some in looked) * 1000, 2),
        )


if __name__ == "__main__":
    Bench(__doc__ or "", durable=True, options={"--most": 64_000}, quick={"--most": 2000, "--pairs": 5}).run(measure)
