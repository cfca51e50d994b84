"""What the benchmarks of the store share: fresh stores of each engine, rows by the thousand, pairs and their report.

Ratios are what counts. A bar is judged by the median of alternated pairs in one process tree, and met when the better
known end of its interval meets it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import math
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.store.contract import Insert, Lock
from piecework.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from piecework.store.contract import Decide, Request, Script, Store
    from piecework.store.records import Record
    from piecework.store.sqlite_crowd import Crowd

TESTS = Path(__file__).resolve().parent.parent / "tests"
_ROWS_AT_ONCE = 5_000


class Bench:
    """One benchmark's run: its options, its engines, its report.

    Args:
        description: What it measures; the first line is its title.
        pairs: How many pairs it takes where nothing else is said.
        engines: On which engines where nothing else is said, with commas.
        options: More options, by flag, each with its default.
        quick: What `--quick` takes instead, by flag: a look while developing, too small to judge by.
        durable: Whether the PostgreSQL server waits for the disk.

    Attributes:
        databases: Fresh PostgreSQL databases by `fresh()`, once there is a server.
    """

    def __init__(
        self,
        description: str,
        *,
        pairs: int = 11,
        engines: str = "sqlite,postgres",
        options: dict[str, int] | None = None,
        quick: dict[str, int] | None = None,
        durable: bool = False,
    ) -> None:
        self._durable = durable
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--pairs", type=int, default=pairs, help="alternated pairs")
        parser.add_argument("--engines", default=engines, help="which engines, with commas")
        parser.add_argument("--json", type=Path, help="a file for the report")
        for flag, default in (options or {}).items():
            parser.add_argument(flag, type=int, default=default)
        parser.add_argument("--quick", action="store_true", help="a look while developing, too small to judge by")
        if parser.parse_known_args()[0].quick:
            parser.set_defaults(
                **{
                    flag.removeprefix("--").replace("-", "_"): value
                    for flag, value in (quick or {"--pairs": 3}).items()
                }
            )
        self.options = parser.parse_args()
        self.title = description.splitlines()[0]
        self._stack = contextlib.ExitStack()
        self.databases: Any = None
        self._results: list[dict[str, Any]] = []

    def run(self, measure: Callable[[Bench, str], Any]) -> None:
        """Runs a coroutine function on each engine that there is, then reports."""
        print(self.title)
        for name, what in _machine().items():
            print(f"  {name:10} {what}")
        with self._stack:
            for engine in self.options.engines.split(","):
                if engine == "postgres" and (why := self._no_server()):
                    print(f"\n{engine}: no server ({why})")
                    continue
                asyncio.run(measure(self, engine))
        if self.options.json is not None:
            report = {"benchmark": self.title, **_machine(), "results": self._results}
            self.options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")

    def _no_server(self) -> str | None:
        """Starts a server for all that follows; tells why there is none."""
        if self.databases is None:
            sys.path.insert(0, str(TESTS))
            try:
                servers = importlib.import_module("postgres_server")
                importlib.import_module("piecework.store.postgres")
                self.databases = servers.databases(durable=self._durable)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is printed and the other engine goes on
                return str(error)
            self._stack.callback(self.databases.close)
        return None

    @contextlib.asynccontextmanager
    async def fresh(self, engine: str, *, crowd: Crowd | None = None) -> AsyncIterator[Store]:
        """An empty open store; on SQLite `crowd` may stand in for the one that picks the form of its statements."""
        if engine == "sqlite":
            with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
                store: Any = SqliteStore(Path(folder) / "state.db")
                store._crowd = crowd or store._crowd  # noqa: SLF001 - nobody but a benchmark wants to say so
                await store.open()
                try:
                    yield store
                finally:
                    await store.close()
            return
        url = self.databases.fresh()
        store = importlib.import_module("piecework.store.postgres").PostgresStore(url)
        await store.open()
        store.database = url
        try:
            yield store
        finally:
            await store.close()
            self.databases.drop(url)

    def report(
        self,
        name: str,
        ratios: Sequence[float],
        *,
        bar: float | None,
        at_most: bool = False,
        sound: bool = True,
        **figures: object,
    ) -> None:
        """Prints a ratio with its spread, and whether it meets its bar.

        Args:
            name: What was compared, the engine too.
            ratios: One of each pair.
            bar: What is asked of it; None where nothing is.
            at_most: Whether the ratio has to stay below the bar, not above it.
            sound: Whether all else was as it has to be; if not, the bar is not met.
            figures: What else there is to say.
        """
        low, high = interval(ratios)
        met = bar is None or (sound and (high <= bar if at_most else low >= bar))
        result: dict[str, object] = {
            "name": name,
            "median": round(statistics.median(ratios), 3),
            "interval": [round(low, 3), round(high, 3)],
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "pairs": len(ratios),
            **({} if bar is None else {"bar": f"{'at most' if at_most else 'at least'} {bar:g}", "met": met}),
            **figures,
        }
        self._results.append(result)
        print(f"\n{name}")
        for key, value in result.items():
            if key != "name":
                print(f"  {key:10} {value}")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 % certainty, by order alone; of less than six values it is the whole spread."""
    ordered = sorted(values)
    beyond, certain = 0, 0.0
    while (certain := certain + math.comb(len(ordered), beyond) / 2 ** len(ordered)) <= 0.025:
        beyond += 1
    outermost = max(beyond - 1, 0)
    return ordered[outermost], ordered[-1 - outermost]


def recorded(verb: Callable[..., Script], groups: list[list[Request]]) -> Callable[..., Script]:
    """The verb, noting each batch's requests. Make one and use it: only what is the same verb shares a batch."""

    def watched(items: Sequence[Any], decide: Decide, now: int) -> Script:
        script = verb(items, decide, now)
        answer: Any = None
        requests: list[Request] = []
        try:
            while True:
                requests.append(script.send(answer))
                answer = yield requests[-1]
        except StopIteration as done:
            groups.append(requests)
            outcomes: list[Any] = done.value
            return outcomes

    return watched


async def rows(store: Store, record: type[Record], *keys: tuple[object, ...]) -> list[Any]:
    """The rows of some keys."""

    def look(items: Sequence[Any], _decide: Decide, _now: int) -> Script:
        found = yield Lock(record, keys)
        return [found] * len(items)

    found: list[Any] = await store.run(look, None, _nothing, 0)
    return found


async def seed(store: Store, records: Iterable[Record]) -> None:
    """Puts rows into a store as they are, many at a time. Rows of one class have to come together."""

    def insert(items: Sequence[list[Record]], _decide: Decide, _now: int) -> Script:
        for chunk in items:
            yield Insert(chunk)
        return [None] * len(items)

    for chunk in _chunks(records):
        await store.run(insert, chunk, _nothing, 0)


def _nothing(*_: object) -> None:
    """The fold of a verb that decides nothing."""


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for record in records:
        if chunk and (len(chunk) == _ROWS_AT_ONCE or type(record) is not type(chunk[0])):
            yield chunk
            chunk = []
        chunk.append(record)
    if chunk:
        yield chunk


def _machine() -> dict[str, str]:
    return {
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}, {os.cpu_count()} cores",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
    }
