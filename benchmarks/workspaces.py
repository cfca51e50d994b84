"""What an empty workspace costs, beside the cheapest scope of the libraries that only inject dependencies.

All are opened and closed in one process, alternated, so that the machine's load is everybody's. The bar is a ratio:
at most three times the cheapest of them as it comes; one that is told to do with fewer scopes than it has is shown
beside. A thousand at once are opened, held together and closed, and told per one.

Then what a test costs that wants empty tables: a workspace with data="clean" that counts the rows of one of forty
tables, beside the same with a transaction that is rolled back, and beside making those forty tables anew, as a tool for
migrations does, each in a transaction of its own that is noted in a table of versions. The bar is a fiftieth.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from container_peers import OURS, Graph, contenders

from piecework import App, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

BAR = 3.0
CLEAN_BAR = 50.0
TABLES = 40
TESTS = 60
IN_A_ROW = 10
ROUNDS = 15
TIMES = 4000
AT_ONCE = 1000


async def one_by_one(enter: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    """Microseconds of this thread for each, one after the other: what others do meanwhile does not count."""
    began = time.thread_time()
    for _ in range(TIMES):
        async with enter():
            pass
    return (time.thread_time() - began) / TIMES * 1e6


async def at_once(enter: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    """Microseconds for each of a thousand that are open together."""
    meeting = asyncio.Barrier(AT_ONCE)

    async def hold() -> None:
        async with enter():
            await meeting.wait()

    began = time.thread_time()
    await asyncio.gather(*(hold() for _ in range(AT_ONCE)))
    return (time.thread_time() - began) / AT_ONCE * 1e6


async def measure() -> bool:
    """Prints the table; True when the bar is kept."""
    with tempfile.TemporaryDirectory() as folder:
        app = App("benchmark", store=f"sqlite:///{folder}/store.db", settings=Settings(workspaces_limit=AT_ONCE))
        async with app:
            peers = {peer.name: peer.enter for peer in contenders(Graph()) if peer.name != OURS and not peer.beside}
            entries: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {"workspace": app.workspace, **peers}
            best = dict.fromkeys(entries, float("inf"))
            for _ in range(ROUNDS):
                for name, enter in entries.items():
                    best[name] = min(best[name], await one_by_one(enter))
            together = {name: min([await at_once(enter) for _ in range(3)]) for name, enter in entries.items()}
    cheapest = min((name for name in peers if ", " not in name), key=best.__getitem__)
    print(f"{'microseconds for each':24} {'one by one':>12} {f'{AT_ONCE} at once':>14}")
    for name in sorted(entries, key=best.__getitem__):
        print(f"{name:24} {best[name]:12.2f} {together[name]:14.2f}")
    ratio = best["workspace"] / best[cheapest]
    print(f"an empty workspace costs {ratio:.2f} times the cheapest scope ({cheapest}); at most {BAR:g}")
    return ratio <= BAR


def forty_tables() -> sa.MetaData:
    """Tables as applications have them: five columns, an index, a unique key and a reference."""
    metadata = sa.MetaData()
    for number in range(TABLES):
        other = sa.Column("other_id", sa.ForeignKey(f"table_{number - 1}.id") if number else sa.Integer)
        sa.Table(
            f"table_{number}",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.Text, nullable=False, index=True),
            sa.Column("email", sa.Text, unique=True),
            sa.Column("created_at", sa.DateTime),
            other,
        )
    return metadata


def migrate(metadata: sa.MetaData, path: Path) -> None:
    """Makes the tables one after the other, each in a transaction that notes its version."""
    engine = sa.create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("create table versions (number integer)"))
            connection.execute(sa.text("insert into versions values (0)"))
        for number, table in enumerate(metadata.sorted_tables):
            with engine.begin() as connection:
                connection.execute(sa.schema.CreateTable(table))
                for index in table.indexes:
                    connection.execute(sa.schema.CreateIndex(index))
                connection.execute(sa.text("update versions set number = :number"), {"number": number})
    finally:
        engine.dispose()


async def measure_clean() -> bool:
    """Prints what empty tables cost; True when the bar is kept."""
    metadata = forty_tables()
    with tempfile.TemporaryDirectory() as folder:
        store, database = f"sqlite:///{folder}/store.db", f"sqlite:///{folder}/app.db"
        migrate(metadata, Path(folder) / "app.db")
        async with App("benchmark", store=store, database=database) as app:

            async def count(data: str) -> None:
                async with app.workspace(data=data) as ws:
                    await ws.database.table_0.count()

            async def anew(number: int) -> None:
                await asyncio.to_thread(migrate, metadata, Path(folder) / f"{number}.db")

            took: dict[str, list[float]] = {"migrated": [], "clean": [], "rollback": []}
            await count("clean")  # the first makes the template
            for number in range(0, TESTS, IN_A_ROW):
                for name, times in took.items():
                    # In a row, as a suite does one or the other: what waits for the disk would charge its neighbour.
                    for one in range(IN_A_ROW):
                        began = time.perf_counter()
                        await (anew(number + one) if name == "migrated" else count(name))
                        times.append((time.perf_counter() - began) * 1e3)
    print(f"\n{'milliseconds for a test':24} {'median':>12} {'best':>14}")
    for name, times in took.items():
        print(f"{name:24} {median(times):12.2f} {min(times):14.2f}")
    ratio = median(took["migrated"]) / median(took["clean"])
    print(f"a clean workspace is {ratio:.0f} times cheaper than migrating {TABLES} tables; at least {CLEAN_BAR:g}")
    return ratio >= CLEAN_BAR


if __name__ == "__main__":
    kept = [asyncio.run(measure()), asyncio.run(measure_clean())]
    sys.exit(0 if all(kept) else 1)
