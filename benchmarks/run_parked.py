"""Parked runs, few and many: what resuming one costs, and what one costs in memory while it waits.

Runs are parked for an event each, in two apps of one process. Then they take turns: of each app 250 runs are woken
and run to their ends. The ratio is the time beside many by the time beside few. Memory is what the interpreter has
allocated more (`tracemalloc`, collected before) once the runs are parked and their windows are over, for each of them.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from runs_common import CONCURRENT, database, one, opened, start, three
from store_common import Bench

from piecework import Stage, WaitFor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from piecework import App

SLOWER_AT_MOST = 1.3
BYTES_AT_MOST = 200
_WINDOW_SECONDS = 0.05
_CHUNK = 250


def awaited(view: Any) -> WaitFor:
    """What each run waits for."""
    return WaitFor("news", about=view.state["number"])


STAGES = (Stage("one", steps=[one], wait=awaited), Stage("three", steps=[three]))


async def park(app: App, numbers: Iterable[int]) -> dict[int, str]:
    """Starts runs and waits until each is paused."""
    left = iter(numbers)
    parked: dict[int, str] = {}

    async def caller() -> None:
        for number in left:
            parked[number] = await start(app, number)
            await app.runtime.wait(parked[number], until="paused")

    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return parked


async def wake(app: App, parked: dict[int, str]) -> float:
    """The seconds that it takes to wake runs, an event each, and to run them to their ends."""
    left = iter(parked.items())

    async def caller() -> None:
        for number, run_id in left:
            await app.publish("news", {"about": number})
            assert (await app.runtime.wait(run_id)).unwrap().state["three"] == 3

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return time.perf_counter() - begun


async def memory(app: App, first: int, number: int) -> float:
    """Bytes that a parked run holds on to, beyond what the app held before."""
    await park(app, range(first, first + 1000))  # what is allocated once is there
    await asyncio.sleep(4 * _WINDOW_SECONDS)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await park(app, range(first + 1000, first + 1000 + number))
        await asyncio.sleep(4 * _WINDOW_SECONDS)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / number


async def measure(bench: Bench, engine: str) -> None:
    """Parks few and many, then takes the pairs."""
    options = bench.options
    async with AsyncExitStack() as stack:
        apps: list[App] = []
        waiting: list[dict[int, str]] = []
        for number in (options.few, options.many):
            url = await stack.enter_async_context(database(bench, engine))
            app = await stack.enter_async_context(opened(url, STAGES, pause_window_seconds=_WINDOW_SECONDS))
            apps.append(app)
            waiting.append(await park(app, range(number)))
        taken: list[tuple[float, float]] = []
        fresh = options.many
        for _ in range(options.pairs):
            some = []
            for app, parked in zip(apps, waiting, strict=True):
                mine = {number: parked.pop(number) for number in list(parked)[:_CHUNK]}
                some.append(await wake(app, mine))
                parked.update(await park(app, range(fresh, fresh + _CHUNK)))  # as many as before
                fresh += _CHUNK
            taken.append((some[0], some[1]))
        bytes_each = await memory(apps[0], fresh, options.traced)
    bench.report(
        f"{engine}: a run woken beside {options.many} parked ones, by one beside {options.few}",
        [many / few for few, many in taken],
        bar=SLOWER_AT_MOST,
        at_most=True,
        woken_per_second=round(_CHUNK / statistics.median(many for _, many in taken)),
    )
    bench.report(f"{engine}: bytes that a parked run holds on to", [bytes_each], bar=BYTES_AT_MOST, at_most=True)


if __name__ == "__main__":
    Bench(
        __doc__ or "",
        durable=True,
        options={"--few": 500, "--many": 50_000, "--traced": 5000},
        quick={"--many": 3000, "--traced": 1000, "--pairs": 5},
    ).run(measure)
