"""Claiming, and listing the latest fifty runs, beside a thousand rows and beside a million.

*Finished*: four claimers take what is due, and a reader lists the latest runs, beside runs that have ended. *Queued*:
four claimers at once take their share of queued runs in 1, 20 and 10,000 spaces. Stores of both sizes take turns; after
each round as many runs are queued anew as were claimed. Whoever claims has to get its full share while there is one.
The ratio is the time beside many rows by the time beside few.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from store_common import Bench, rows, seed

from piecework.store.contract import Put
from piecework.store.records import Run, RunValue, Space
from piecework.testing.verbs import NOW, Verbs, job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from piecework.store.contract import Store
    from piecework.store.records import Record

CLAIMERS = 4
SHARE = 25
SPACES = (1, 20, 10_000)
CLAIM_BAR = 2.0
LIST_BAR = 1.5
LATEST = {
    "status": None, "workflow": None, "space": None, "kind": None, "created_at": None, "run_id": None, "limit": 50,
}  # fmt: skip


class Queue:
    """A store from which four claimers take runs, and which is kept full.

    Args:
        store: Open.
        spaces: How many spaces the queued runs are in.

    Attributes:
        short: How many claims got less than their share, although there was more than enough.
    """

    def __init__(self, store: Store, spaces: int) -> None:
        self.verbs = Verbs(store)
        self._store = store
        self._spaces = spaces
        self._numbers = count()
        self._after = [""] * CLAIMERS
        self.short = 0

    async def finish(self, number: int) -> None:
        """Fills it with copies of a run that has ended and was cleaned up."""
        await self.verbs.enqueue(job("ended"))
        (claimed,) = await self.verbs.claim()
        await self.verbs.settle(claimed.run)
        await self.verbs.cleaned(claimed.run)
        ended = await self.verbs.run("ended")
        values: list[RunValue] = await self._store.read("values_of_runs", {"run_ids": ["ended"]}, RunValue)
        await seed(self._store, ended_copies(ended, values, number))

    async def fill(self, number: int) -> None:
        """Queues so many runs, spread over its spaces, the oldest first."""
        numbers = [next(self._numbers) for _ in range(number)]
        if numbers[0] == 0:
            await self.verbs.enqueue(job("first"))
            await self.verbs.claim()
            names = [f"space-{space:05}" for space in range(self._spaces)]
            await seed(self._store, (Space(name, NOW) for name in names))
        else:  # the last claim may have found a space empty and put its due time off
            names = sorted({f"space-{one % self._spaces:05}" for one in numbers})
            await self._store.run(put_due, names, nothing, NOW)
        (first,) = await rows(self._store, Run, ("first",))
        await seed(self._store, queued_copies(first, numbers, self._spaces))

    async def claim(self) -> float:
        """The seconds that the four take for a full share each."""
        begun = time.perf_counter()
        shares = await asyncio.gather(
            *(self.verbs.claim(f"node-{place}", limit=SHARE, after=self._after[place]) for place in range(CLAIMERS))
        )
        passed = time.perf_counter() - begun
        for place, share in enumerate(shares):
            self.short += len(share) < SHARE
            self._after[place] = share[-1].run.space if share else ""
        claimed = [entry.run.run_id for share in shares for entry in share]
        assert len(set(claimed)) == len(claimed), "two claimers got one run"
        return passed

    async def latest(self) -> float:
        """The seconds that a list of the latest fifty takes."""
        begun = time.perf_counter()
        found = await self._store.read("list_runs", LATEST, Run)
        assert len(found) == LATEST["limit"]
        return time.perf_counter() - begun


def ended_copies(run: Run, values: Sequence[RunValue], number: int) -> Iterator[Record]:
    """Rows of finished runs, a millisecond between them."""
    for one in range(number):
        yield replace(run, run_id=f"ended-{one:07}", created_at=run.created_at - one * 1000)
    for value in values:
        for one in range(number):
            yield replace(value, run_id=f"ended-{one:07}")


def queued_copies(run: Run, numbers: Sequence[int], spaces: int) -> Iterator[Record]:
    """Rows of queued runs; each has become due a microsecond after the one before."""
    like = replace(run, status="queued", epoch=0, attempt=0, owner=None, started_at=None)
    for one in numbers:
        yield replace(
            like, run_id=f"queued-{one:08}", space=f"space-{one % spaces:05}", due_at=NOW - 10_000_000_000 + one
        )


def put_due(items: Sequence[Any], _decide: Any, now: int) -> Any:
    """A verb that makes spaces due."""

    for names in items:
        yield Put([Space(name, now) for name in names])
    return [None] * len(items)


def nothing(*_: object) -> None:
    """The fold of a verb that decides nothing."""


async def beside_finished(bench: Bench, engine: str, sizes: Sequence[int]) -> None:
    """Claims and lists beside finished runs."""
    claims: list[list[float]] = []
    lists: list[list[float]] = []
    async with AsyncExitStack() as stack:
        queues = [Queue(await stack.enter_async_context(bench.fresh(engine)), 1) for _ in sizes]
        for queue, size in zip(queues, sizes, strict=True):
            await queue.finish(size)
            await queue.fill(CLAIMERS * SHARE * 2)
        for turn in range(bench.options.pairs):
            order = queues[:: 1 if turn % 2 else -1]
            times = {queue: (await queue.claim(), await queue.latest()) for queue in order}
            claims.append([times[queue][0] for queue in queues])
            lists.append([times[queue][1] for queue in queues])
            for queue in queues:
                await queue.fill(CLAIMERS * SHARE)
    short = sum(queue.short for queue in queues)
    name = f"{engine}: four claims beside {sizes[1]} finished runs by beside {sizes[0]}"
    report(bench, name, claims, CLAIM_BAR, short)
    report(bench, f"{engine}: the latest fifty of {sizes[1]} runs by of {sizes[0]}", lists, LIST_BAR, 0)


async def beside_queued(bench: Bench, engine: str, sizes: Sequence[int], spaces: int) -> None:
    """Claims from a long queue."""
    claims: list[list[float]] = []
    async with AsyncExitStack() as stack:
        queues = [Queue(await stack.enter_async_context(bench.fresh(engine)), spaces) for _ in sizes]
        for queue, size in zip(queues, sizes, strict=True):
            await queue.fill(max(size, spaces))
        for turn in range(bench.options.pairs):
            order = queues[:: 1 if turn % 2 else -1]
            times = {queue: await queue.claim() for queue in order}
            claims.append([times[queue] for queue in queues])
            for queue in queues:
                await queue.fill(CLAIMERS * SHARE)
    name = f"{engine}: four claims of {sizes[1]} queued runs in {spaces} spaces by of {max(sizes[0], spaces)}"
    report(bench, name, claims, CLAIM_BAR, sum(queue.short for queue in queues))


def report(bench: Bench, name: str, times: Sequence[Sequence[float]], bar: float, short: int) -> None:
    """The growth from the small store to the large one, and how many claims came out short."""
    bench.report(
        name,
        [large / small for small, large in times],
        bar=bar,
        at_most=True,
        sound=not short,
        claims_that_got_too_little=short,
        milliseconds=round(statistics.median(large for _, large in times) * 1000, 2),
        milliseconds_of_the_small=round(statistics.median(small for small, _ in times) * 1000, 2),
    )


async def measure(bench: Bench, engine: str) -> None:
    """All workloads on one engine."""
    sizes = (1000, bench.options.rows)
    await beside_finished(bench, engine, sizes)
    for spaces in SPACES:
        await beside_queued(bench, engine, sizes, spaces)


if __name__ == "__main__":
    Bench(__doc__ or "", pairs=30, options={"--rows": 1_000_000}).run(measure)
