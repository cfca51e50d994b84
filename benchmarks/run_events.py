"""Many small events for one trivial durable handler, until all are handled, by a raw loop that writes the same rows."""

from __future__ import annotations

import asyncio
import statistics
import time

from runs_common import CONCURRENT, ONE, Raw, database, opened, parts_of, rows_of, start
from store_common import Bench

_COMMITS = 4


async def handled(url: str, events: int) -> float:
    """The seconds from the first event to the end of the last run: nobody waits for one to send another."""
    async with opened(url, ONE) as app:
        left = iter(range(events))
        begun = time.perf_counter()

        async def sender() -> list[str]:
            return [await start(app, number) for number in left]

        started = await asyncio.gather(*(sender() for _ in range(CONCURRENT)))
        await asyncio.gather(*(app.runtime.wait(run_id) for some in started for run_id in some))
        return time.perf_counter() - begun


async def measure(bench: Bench, engine: str) -> None:
    """Takes the pairs of one engine."""
    events = bench.options.events
    mine, raw = [], []
    for _ in range(bench.options.pairs):
        async with database(bench, engine) as url:
            mine.append(await handled(url, events))
            parts = parts_of(await rows_of(url), events, _COMMITS)
        async with Raw.on(bench, engine) as floor:
            raw.append(await floor.group_commit(parts))
    bench.report(
        f"{engine}: {events} events to one handler, ours by raw",
        [floor / own for floor, own in zip(raw, mine, strict=True)],
        bar=None,
        events_per_second=round(events / statistics.median(mine)),
        raw_events_per_second=round(events / statistics.median(raw)),
    )


if __name__ == "__main__":
    Bench(__doc__ or "", durable=True, pairs=5, options={"--events": 5000}, quick={"--events": 500, "--pairs": 3}).run(
        measure
    )
