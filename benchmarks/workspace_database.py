"""One query through ws.database beside SQLAlchemy's async engine, which does the same: on SQLite and on PostgreSQL.

Both read one row by its key, and then twenty rows by a list and an order, each time on a connection out of a pool. They
take turns (A B, B A, …), each for some milliseconds. What counts is the ratio of the time that ours took to the time
that SQLAlchemy's engine (aiosqlite, asyncpg) took in the same round, and the bar is that ours is no slower. Of
PostgreSQL a server is started, where there is one.
`python benchmarks/workspace_database.py [--rounds 15] [--milliseconds 100] [--json FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from piecework.services.database import Database
from piecework.services.tables import WorkspaceDatabase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BAR = 1.0
ROWS = 1000
SOME = list(range(1, 21))

USERS = sa.Table(
    "users",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text),
)


async def main() -> int:
    """Measures, prints a table, and fails when a bar is not met."""
    options = _options()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "app.db")
        results |= await measure(f"sqlite:///{path}", f"sqlite+aiosqlite:///{path}", "sqlite", options)
        results |= await _on_postgres(options)
    print(f"{'query':<28}{'ours µs':>10}{'theirs µs':>11}{'ratio':>8}")
    for name, found in results.items():
        print(f"{name:<28}{found['ours'] * 1e6:>10.0f}{found['theirs'] * 1e6:>11.0f}{found['ratio']:>8.2f}")
    if options.json:
        await asyncio.to_thread(Path(options.json).write_text, json.dumps(results, indent=2), "utf-8")
    missed = [name for name, found in results.items() if found["ratio"] > BAR]
    print(f"bar {BAR:g}: {'missed by ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


async def measure(url: str, theirs: str, engine_name: str, options: Any) -> dict[str, dict[str, float]]:
    """Fills a database and measures both queries on it."""
    database = Database(url)
    engine = create_async_engine(theirs)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(USERS.metadata.create_all)
            await connection.execute(USERS.insert(), [{"name": f"n{i}", "role": "reader"} for i in range(ROWS)])
        ours = WorkspaceDatabase(database, closed=lambda: False)
        pairs: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]] = {
            "one row": (lambda: _our_one(ours), lambda: _their_one(engine)),
            "twenty rows": (lambda: _our_some(ours), lambda: _their_some(engine)),
        }
        found = {}
        for name, (mine, peer) in pairs.items():
            assert len(await mine()) == len(await peer())
            found[f"{engine_name}: {name}"] = await _compare(mine, peer, options)
        return found
    finally:
        await database.close()
        await engine.dispose()


async def _compare(
    ours: Callable[[], Awaitable[Any]], theirs: Callable[[], Awaitable[Any]], options: Any
) -> dict[str, float]:
    mine: list[float] = []
    peers: list[float] = []
    for number in range(options.rounds):
        pair = ((ours, mine), (theirs, peers))
        for work, times in pair if number % 2 else reversed(pair):
            times.append(await _seconds(work, options.milliseconds / 1000))
    ratios = [one / other for one, other in zip(mine, peers, strict=True)]
    return {"ours": statistics.median(mine), "theirs": statistics.median(peers), "ratio": statistics.median(ratios)}


async def _seconds(work: Callable[[], Awaitable[Any]], least: float) -> float:
    begun, times = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < least:
        await work()
        times += 1
    return passed / times


async def _our_one(db: WorkspaceDatabase) -> Any:
    return await db.users.where(id=7).all()


async def _our_some(db: WorkspaceDatabase) -> Any:
    return await db.users.where(id__in=SOME, role="reader").order_by("name").all()


async def _their_one(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(sa.select(USERS).where(USERS.c.id == 7).order_by(USERS.c.id))).all()


async def _their_some(engine: AsyncEngine) -> Any:
    query = sa.select(USERS).where(USERS.c.id.in_(SOME), USERS.c.role == "reader").order_by(USERS.c.name, USERS.c.id)
    async with engine.connect() as connection:
        return (await connection.execute(query)).all()


async def _on_postgres(options: Any) -> dict[str, dict[str, float]]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import postgres_server  # type: ignore[import-not-found]  # the tests are on nobody's path

    try:
        server = postgres_server.databases()
    except postgres_server.ServerUnavailableError as error:
        print(f"PostgreSQL is not measured: {error}")
        return {}
    try:
        url = server.fresh()
        return await measure(url, url.replace("postgresql://", "postgresql+asyncpg://"), "postgresql", options)
    finally:
        server.close()


def _options() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--milliseconds", type=float, default=100)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
