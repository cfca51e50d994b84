"""How late updates begin while another space misbehaves, by how late they begin in quiet.

Ten pieces in five spaces are updated twice a second. How late an update begins is what lies between the due time that
the commit before promised and its first line. In turns a window in quiet and one beside a space that does one of these
all the time: crash, exit, compute, ignore SIGTERM, fill memory, start processes, block its loop. The bar is whichever
is larger: 1.5 times the 99th percentile in quiet (2 times beside one that computes, on two cores), or one percent of
the interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec
from spaces_app import app
from store_common import Bench

from piecework import Settings
from piecework.clock import SECOND
from piecework.errors import PieceworkError
from piecework.process import linux
from piecework.run.node import Node
from piecework.store.items import FinishPiece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SPACES, PIECES, INTERVAL = 5, 2, 0.5
CASES = {
    "segfault": ("crashes", 1.5),
    "exits": ("exits", 1.5),
    "computes": ("computes", 2.0),
    "deaf": ("computes and ignores SIGTERM", 2.0),
    "hoards": ("fills memory", 1.5),
    "forks": ("starts processes", 1.5),
    "blocks": ("blocks its loop", 1.5),
}


class Lags:
    """How late each update of a neighbour began; listens to the commits that end updates."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._due: dict[str, int] = {}

    def listen(self) -> None:
        """Looks at every commit of this process from here on."""
        commit = Node.commit

        async def watched(node: Node, verb: Any, item: Any, decide: Any) -> Any:
            answer = await commit(node, verb, item, decide)
            if isinstance(item, FinishPiece):
                self._note(item, answer.next_run_at)
            return answer

        Node.commit = watched  # type: ignore[method-assign,assignment]  # nobody but a benchmark wants to hear of them

    def _note(self, item: FinishPiece, next_run_at: int | None) -> None:
        due = self._due.pop(item.run_id, None)
        told = {} if item.result is None else msgspec.json.decode(item.result)
        if due is not None and "began" in told:
            self.seconds.append(told["began"] - due / SECOND)
        if next_run_at is not None:
            self._due[item.next_run_id] = next_run_at

    async def window(self, seconds: float) -> list[float]:
        """Those of so many seconds from now."""
        self.seconds = []
        await asyncio.sleep(seconds)
        return self.seconds


@contextlib.asynccontextmanager
async def misbehaving(name: str, seconds: float) -> AsyncIterator[None]:
    """One piece of another space is updated again and again meanwhile."""
    config = {"seconds": 1.0}

    async def again() -> None:
        while time.perf_counter() < end:
            with contextlib.suppress(PieceworkError):  # the space may have been taken out of use by then
                await app.pieces.register(space="bad", piece_id=name, integration=name, config=config)
                await asyncio.wait_for(app.pieces.run_now("bad", name, wait=True), max(0.1, end - time.perf_counter()))

    end = time.perf_counter() + seconds
    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, round(0.99 * len(values)))]


async def measure(bench: Bench, _engine: str) -> None:
    """All cases, one after the other, each beside windows in quiet."""
    lags = Lags()
    lags.listen()
    with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
        settings = Settings(space_grace_seconds=0.5)
        app.configure(store=f"sqlite:///{Path(folder) / 'state.db'}", settings=settings)
        async with app:
            for space in range(SPACES):
                for piece in range(PIECES):
                    given = {"space": f"neighbour-{space}", "piece_id": f"p{piece}", "integration": "neighbour"}
                    await app.pieces.register(**given, every_seconds=INTERVAL)  # type: ignore[arg-type]
            await lags.window(3)  # workers start
            for name, (words, factor) in CASES.items():
                await measure_case(bench, lags, name, words, factor)


async def measure_case(bench: Bench, lags: Lags, name: str, words: str, factor: float) -> None:
    """One way to misbehave."""
    quiet, beside, ratios = [], [], []
    seconds: int = bench.options.seconds
    for _ in range(bench.options.pairs):
        quiet.append(await lags.window(seconds))
        async with misbehaving(name, seconds + 1.5):
            await asyncio.sleep(0.5)
            beside.append(await lags.window(seconds))
        await asyncio.sleep(1.5)  # what is left of it ends
        ratios.append(p99(beside[-1]) / p99(quiet[-1]))
    calm, late = list(chain(*quiet)), list(chain(*beside))
    bench.report(
        f"99th percentile of lateness beside a space that {words}, by quiet",
        ratios,
        bar=max(factor, 0.01 * INTERVAL / median(map(p99, quiet))),
        at_most=True,
        updates=len(late),
        ms_quiet=f"p50 {median(calm) * 1e3:.2f}, p99 {p99(calm) * 1e3:.2f}",
        ms_beside=f"p50 {median(late) * 1e3:.2f}, p99 {p99(late) * 1e3:.2f}",
        of_the_interval=f"{p99(late) / INTERVAL:.1%}",
    )


if __name__ == "__main__":
    assert linux.can_run_workers(), "spaces need pidfds"
    Bench(
        __doc__ or "",
        engines="sqlite",
        pairs=3,
        options={"--seconds": 8},
        quick={"--pairs": 1, "--seconds": 3},
    ).run(measure)
