"""Durable three-step runs, fifty at a time, by a raw loop that group-commits the same rows.

The contenders take turns in one process tree. On SQLite a bare asyncio loop whose commits one thread writes stands
beside them as a second floor, and what each computed (all threads) is compared too: on a busy machine that says more.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from runs_common import Raw, database, opened, parts_of, rows_of, run_all
from store_common import Bench

if TYPE_CHECKING:
    from collections.abc import Awaitable

BAR = 0.25


async def timed(work: Awaitable[float]) -> tuple[float, float]:
    """The seconds that passed, as told, and those that were computed."""
    begun = time.process_time()
    passed = await work
    return passed, time.process_time() - begun


async def measure(bench: Bench, engine: str) -> None:
    """Takes the pairs of one engine."""
    runs = bench.options.runs
    ours, raw, threaded = [], [], []
    for _ in range(bench.options.pairs):
        async with database(bench, engine) as url:
            async with opened(url) as app:
                await run_all(app, range(50))
                ours.append(await timed(run_all(app, range(50, 50 + runs))))
            parts = parts_of(await rows_of(url), runs + 50)[:runs]
        async with Raw.on(bench, engine) as floor:
            raw.append(await timed(floor.group_commit(parts)))
        if engine == "sqlite":
            async with Raw.on(bench, engine) as floor:
                threaded.append(await timed(floor.with_a_thread(parts)))
    figures = {
        "runs_per_second": round(runs / statistics.median(passed for passed, _ in ours)),
        "raw_runs_per_second": round(runs / statistics.median(passed for passed, _ in raw)),
    }
    if threaded:
        figures["threaded_by_raw"] = _median(raw, threaded, 0)
        figures["ours_by_threaded"] = _median(threaded, ours, 0)
        figures["ours_by_raw_computed"] = _median(raw, ours, 1)
        figures["computed_us_a_run"] = round(statistics.median(computed for _, computed in ours) / runs * 1e6)
    ratios = [floor[0] / mine[0] for floor, mine in zip(raw, ours, strict=True)]
    bench.report(
        f"{engine}: {runs} three-step runs, ours by raw", ratios, bar=BAR if engine == "sqlite" else None, **figures
    )


def _median(ones: list[tuple[float, float]], others: list[tuple[float, float]], which: int) -> float:
    return round(statistics.median(a[which] / b[which] for a, b in zip(ones, others, strict=True)), 3)


if __name__ == "__main__":
    Bench(__doc__ or "", durable=True, options={"--runs": 1000}, quick={"--runs": 300, "--pairs": 3}).run(measure)
