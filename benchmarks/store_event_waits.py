"""Taking in one event for which one run waits, while 500, 5,000 and 50,000 others wait for other values of its field.

The stores are filled by copying the rows of one run that was paused by the verbs. Then they take turns, event by event:
each wakes one run. The ratio is the time beside many by the time beside the fewest.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from store_common import Bench, rows, seed

from piecework.store.records import Entry, Run, RunValue, Slot
from piecework.testing.verbs import Verbs, slot, waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.store.contract import Store
    from piecework.store.records import Record

SIZES = (500, 5_000, 50_000)
BAR = 1.5


async def fill(store: Store, number: int) -> None:
    """Has so many runs wait, each for an order of its own."""
    verbs = Verbs(store)
    run = await verbs.paused(slot("order-0"), "order.paid", order=0)
    (place,) = await rows(store, Slot, ("order-0",))
    timeline = await verbs.timeline(run.run_id)
    values: list[RunValue] = await store.read("values_of_runs", {"run_ids": [run.run_id]}, RunValue)
    await seed(store, copies(run, place, timeline, values, number))


def copies(run: Run, place: Slot, timeline: list[Entry], values: list[RunValue], number: int) -> Iterator[Record]:
    """The rows of all runs but the first."""
    for key in range(1, number):
        yield replace(
            place,
            slot_key=f"order-{key}",
            active_run_id=f"run-{key:06}" if place.active_run_id else None,
        )
    for key in range(1, number):
        yield replace(run, run_id=f"run-{key:06}", slot_key=f"order-{key}", key_value=f"order-{key}")
    for value in values:
        for key in range(1, number):
            yield replace(value, run_id=f"run-{key:06}")
    for key in range(1, number):
        for entry in timeline:
            yield replace(entry, run_id=f"run-{key:06}")
    for key in range(1, number):
        yield from waits(f"run-{key:06}", "order.paid", order=key)


async def measure(bench: Bench, engine: str) -> None:
    """Fills the stores, then has them take turns."""
    async with AsyncExitStack() as stack:
        stores: list[Any] = []
        for size in SIZES:
            store = await stack.enter_async_context(bench.fresh(engine))
            await fill(store, size)
            stores.append(Verbs(store))
        times: list[list[float]] = []
        for order in range(bench.options.pairs):
            row = [0.0] * len(stores)
            for turn in range(len(stores)):
                place = (order + turn) % len(stores)
                begun = time.perf_counter()
                outcome = await stores[place].publish("order.paid", order=order + 1)
                row[place] = time.perf_counter() - begun
                assert outcome == ["resumed"], outcome
            times.append(row)
    for place, size in enumerate(SIZES[1:], 1):
        bench.report(
            f"{engine}: an event beside {size} waiting runs by one beside {SIZES[0]}",
            [row[place] / row[0] for row in times],
            bar=BAR,
            at_most=True,
            milliseconds=round(statistics.median(row[place] for row in times) * 1000, 2),
            milliseconds_of_the_smallest=round(statistics.median(row[0] for row in times) * 1000, 2),
        )


if __name__ == "__main__":
    Bench(__doc__ or "", pairs=200).run(measure)
