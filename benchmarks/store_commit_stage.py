"""Grouped `commit_stage` of fifty callers, against a raw loop that writes the same rows in the same groups.

Each pair: our callers end the three stages of some runs each on a fresh store, and what they wrote is noted. Then a
bare `sqlite3` or `asyncpg` connection writes just that on another fresh store, from rows that are ready, with the same
statements (`executemany` or `unnest`), a transaction a group. The ratio is ours by raw, in stages a second.
"""

from __future__ import annotations

import asyncio
import importlib
import statistics
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import astuple, replace
from store_common import Bench, recorded

from piecework.run import folds
from piecework.store import statements
from piecework.store.contract import Delete, Insert, Put, Update
from piecework.store.items import CommitStage, Continue, NewEntry
from piecework.store.sqlite import SqliteStore
from piecework.store.verbs.runs import commit_stage
from piecework.testing.verbs import NOW, Verbs, stage_end, transient

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    import asyncpg

    from piecework.store.contract import Request, Store
    from piecework.store.records import Run

CALLERS = 50
STAGES = 3
BAR = 0.5
SAID = NewEntry(type="stage:completed", path="work", payload=b'{"ms":1}')
STATE = b'{"order":{"id":"o-1","lines":[1,2,3],"total":"12.50"},"one":1,"two":2}'


async def started(store: Store, each: int) -> list[list[Run]]:
    """Runs that are ours and in mid-flight, in lots of one for each caller, the same on every fresh store."""
    verbs = Verbs(store)
    room = transient(concurrency=CALLERS * each)
    names = [f"run-{number:05}" for number in range(CALLERS * each)]
    for start in range(0, len(names), CALLERS):
        await asyncio.gather(*(verbs.start(room, run_id=name) for name in names[start : start + CALLERS]))
    claimed: dict[str, Run] = {}
    while len(claimed) < len(names):
        claimed |= {entry.run.run_id: entry.run for entry in await verbs.claim(limit=CALLERS)}
    return [[claimed[name] for name in names[start : start + CALLERS]] for start in range(0, len(names), CALLERS)]


async def ours(store: Store, runs: Sequence[Run]) -> tuple[float, list[list[Request]]]:
    """The seconds that it takes to end the stages of a run for each caller, and what was asked of the engine."""
    groups: list[list[Request]] = []
    verb = recorded(commit_stage, groups)

    async def work(ends: list[CommitStage]) -> None:
        for end in ends:
            assert (await store.run(verb, end, folds.decide_commit_stage, NOW)).outcome == "continued"

    ready = [[_end(run, visit) for visit in range(STAGES)] for run in runs]
    begun = time.perf_counter()
    await asyncio.gather(*map(work, ready))
    return time.perf_counter() - begun, groups


def _end(run: Run, visit: int) -> CommitStage:
    return replace(stage_end(run, Continue(stage="next"), visit=visit, state=STATE), entries=(SAID,))


def in_sqlite(request: Request) -> tuple[str, list[Any]] | None:
    """A write as `executemany` takes it."""
    match request:
        case Update(records, columns):
            record = type(records[0])
            return statements.update(record, columns), list(map(statements.update_order(record, columns), records))
        case Insert(records):
            return statements.insert(type(records[0])), [astuple(one) for one in records]
        case Put(records):
            return statements.put(type(records[0])), [astuple(one) for one in records]
        case Delete(record, keys):
            return statements.delete(record), list(keys)
    return None


async def raw_sqlite(connection: sqlite3.Connection, groups: list[list[Request]]) -> float:
    """The seconds of a bare loop."""
    ready = [[write for request in group if (write := in_sqlite(request))] for group in groups]
    begun = time.perf_counter()
    for group in ready:
        connection.execute("BEGIN IMMEDIATE")
        for text, rows in group:
            connection.executemany(text, rows)
        connection.execute("COMMIT")
    return time.perf_counter() - begun


def in_postgres(request: Request) -> tuple[str, list[Any]] | None:
    """A write as `unnest` takes it."""
    sql: Any = importlib.import_module("piecework.store.postgres_sql")
    match request:
        case Update(records, columns):
            return sql.update(type(records[0]), columns), sql.as_json(records)
        case Insert(records):
            return sql.insert(type(records[0])), sql.as_json(records)
        case Put(records):
            return sql.put(type(records[0])), sql.as_json(records)
        case Delete(record, keys):
            return sql.delete(record), sql.key_arrays(keys)
    return None


async def raw_postgres(connection: asyncpg.Connection, groups: list[list[Request]]) -> float:
    """The seconds of a bare loop."""
    ready = [[write for request in group if (write := in_postgres(request))] for group in groups]
    begun = time.perf_counter()
    for group in ready:
        await connection.execute("BEGIN")
        for text, arrays in group:
            await connection.execute(text, *arrays)
        await connection.execute("COMMIT")
    return time.perf_counter() - begun


@asynccontextmanager
async def bare(store: Any) -> AsyncIterator[Callable[[list[list[Request]]], Coroutine[Any, Any, float]]]:
    """The raw loop, on a connection of its own to a store's tables."""
    if isinstance(store, SqliteStore):
        connection = store._connect_writer()  # noqa: SLF001 - one that is set up as the store's own
        yield partial(raw_sqlite, connection)
        connection.close()
        return
    import asyncpg

    other = await asyncpg.connect(store.database, server_settings={"search_path": "piecework"})
    yield partial(raw_postgres, other)
    await other.close()


async def measure(bench: Bench, engine: str) -> None:
    """Takes the pairs of one engine. Inside a pair the two take turns too: a busy moment of the machine hits both."""
    pairs: list[tuple[float, float]] = []
    groups = 0
    each = bench.options.runs
    for _ in range(bench.options.pairs):
        mine, theirs = 0.0, 0.0
        async with bench.fresh(engine) as store, bench.fresh(engine) as other, bare(other) as raw:
            await started(other, each)
            for runs in await started(store, each):
                seconds, asked = await ours(store, runs)
                mine += seconds
                theirs += await raw(asked)
                groups += len(asked)
        pairs.append((mine, theirs))
    stages = CALLERS * each * STAGES
    bench.report(
        f"{engine}: commit_stage, ours by raw",
        [bare / mine for mine, bare in pairs],
        bar=BAR,
        stages_per_second=round(stages / statistics.median(mine for mine, _ in pairs)),
        raw_stages_per_second=round(stages / statistics.median(bare for _, bare in pairs)),
        items_per_group=round(stages * len(pairs) / groups, 1),
    )


if __name__ == "__main__":
    Bench(__doc__ or "", options={"--runs": 40}).run(measure)
