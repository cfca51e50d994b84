"""What the benchmarks of whole runs share: apps on fresh databases, the rows they left, loops that only write those.

A raw loop is the floor: the same rows in as many commits, written by hand, fifty runs a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import queue
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework import App, Settings, Stage, Transient, Workflow
from piecework.store.records import TABLES, Run
from piecework.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from store_common import Bench

CONCURRENT = 50
COMMITS = 6
_OURS = {"nodes"}
_MANY = 1_000_000

Row = tuple[Any, ...]
Rows = dict[str, list[Row]]


async def one(_ctx: Any) -> dict[str, Any]:
    return {"one": 1}


async def two(_ctx: Any) -> dict[str, Any]:
    return {"two": 2}


async def three(_ctx: Any) -> dict[str, Any]:
    return {"three": 3}


THREE = (Stage("one", steps=[one]), Stage("two", steps=[two]), Stage("three", steps=[three]))
ONE = (Stage("one", steps=[one]),)


@contextlib.asynccontextmanager
async def opened(url: str, stages: Iterable[Stage] = THREE, **settings: Any) -> AsyncIterator[App]:
    """An open app whose event `go` starts a run of these stages; settings that there are not are left out."""
    there = {field.name for field in dataclasses.fields(Settings)}
    known = {name: value for name, value in settings.items() if name in there}
    app = App("bench", store=url, settings=Settings(**known))
    app.workflow(Workflow("bench", on="go", stages=list(stages)), mode=Transient(concurrency=_MANY))
    async with app:
        yield app


async def start(app: App, number: int) -> str:
    """Publishes what starts a run; answers its id."""
    receipt = await app.publish("go", {"number": number})
    return str((receipt.dispatched or [])[0].run_id)


async def run_all(app: App, numbers: Iterable[int], *, ends_with: str = "three") -> float:
    """The seconds that it takes to run so many runs to their ends, fifty at a time."""
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            result = await app.runtime.wait(await start(app, number))
            assert ends_with in result.unwrap().state

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return time.perf_counter() - begun


# -- databases ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def database(bench: Bench, engine: str) -> AsyncIterator[str]:
    """The address of an empty database."""
    if engine == "sqlite":
        with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
            yield f"sqlite:///{folder}/state.db"
        return
    url = bench.databases.fresh()
    try:
        yield url
    finally:
        bench.databases.drop(url)


async def rows_of(url: str) -> Rows:
    """All rows that work left in a database, by table."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(_path(url))) as connection:
            return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in _tables()}
    connection = await _asyncpg(url)
    try:
        return {name: [tuple(row) for row in await connection.fetch(f"SELECT * FROM {name}")] for name in _tables()}
    finally:
        await connection.close()


def parts_of(rows: Rows, runs: int, commits: int = COMMITS) -> list[list[Rows]]:
    """The rows of each run, cut into its commits."""
    return [
        [
            {name: share for name, some in rows.items() if (share := some[run::runs][commit::commits])}
            for commit in range(commits)
        ]
        for run in range(runs)
    ]


class Raw:
    """Writes groups of rows to a database of its own that has the same tables; later commits replace a run's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sqlite: sqlite3.Connection | None = None
        self._postgres: Any = None

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, bench: Bench, engine: str) -> AsyncIterator[Raw]:
        """One on an empty database."""
        async with database(bench, engine) as url:
            if engine == "sqlite":
                store: Any = SqliteStore(_path(url))
            else:
                store = importlib.import_module("piecework.store.postgres").PostgresStore(url)
            await store.open()
            await store.close()
            raw = cls(url)
            await raw._open()
            try:
                yield raw
            finally:
                await raw._close()

    async def _open(self) -> None:
        if not self._url.startswith("sqlite"):
            self._postgres = await _asyncpg(self._url)
            await self._postgres.execute("TRUNCATE " + ", ".join(_tables()))
            return
        self._sqlite = sqlite3.connect(_path(self._url), isolation_level=None, check_same_thread=False)
        self._sqlite.execute("PRAGMA synchronous = FULL")
        for name in _tables():
            self._sqlite.execute(f"DELETE FROM {name}")

    async def _close(self) -> None:
        if self._sqlite is not None:
            self._sqlite.close()
        if self._postgres is not None:
            await self._postgres.close()

    def commit(self, rows: Rows, later: list[Row]) -> None:
        """One commit on SQLite: rows, and a new row for the runs that go on."""
        assert self._sqlite is not None
        self._sqlite.execute("BEGIN IMMEDIATE")
        for name, some in rows.items():
            self._sqlite.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(some[0]))})", some)
        if later:
            self._sqlite.executemany(_LATER.format("?"), later)
        self._sqlite.execute("COMMIT")

    async def commit_anywhere(self, rows: Rows, later: list[Row]) -> None:
        """One commit on either engine."""
        if self._postgres is None:
            self.commit(rows, later)
            return
        async with self._postgres.transaction():
            for name, some in rows.items():
                await self._postgres.copy_records_to_table(name, records=some, schema_name="piecework")
            if later:
                await self._postgres.execute(_LATER.replace("= {}", "= ANY($1)"), [row[0] for row in later])

    async def group_commit(self, runs: list[list[Rows]]) -> float:
        """The seconds of a loop that does fifty runs at a time, a commit for each of their steps."""
        groups = [runs[first : first + CONCURRENT] for first in range(0, len(runs), CONCURRENT)]
        ready = [
            [_joined([run[commit] for run in group]) for commit in range(len(group[0]))] for group in groups if group
        ]
        ids = [[(row[0],) for row in _joined([run[0] for run in group]).get(Run.table, [])] for group in groups]
        begun = time.perf_counter()
        for group, later in zip(ready, ids, strict=True):
            for number, rows in enumerate(group):
                await self.commit_anywhere(rows, later if number else [])
        return time.perf_counter() - begun

    async def with_a_thread(self, runs: list[list[Rows]]) -> float:
        """The seconds of a bare asyncio loop, fifty callers, whose commits one thread writes in groups (SQLite)."""
        loop = asyncio.get_running_loop()
        jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def write() -> None:
            while (job := jobs.get()) is not None:
                group = [job]
                with contextlib.suppress(queue.Empty):
                    while (job := jobs.get_nowait()) is not None:
                        group.append(job)
                self.commit(_joined([rows for rows, _, _ in group]), [row for _, later, _ in group for row in later])
                loop.call_soon_threadsafe(answer, [future for _, _, future in group])

        def answer(futures: list[asyncio.Future[None]]) -> None:
            for future in futures:
                future.set_result(None)

        left = iter(runs)

        async def caller() -> None:
            for run in left:
                ids = [(row[0],) for row in run[0].get(Run.table, [])]
                for number, rows in enumerate(run):
                    future = loop.create_future()
                    jobs.put((rows, ids if number else [], future))
                    await future

        thread = threading.Thread(target=write)
        thread.start()
        begun = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
        seconds = time.perf_counter() - begun
        jobs.put(None)
        thread.join()
        return seconds


_LATER = f"UPDATE {Run.table} SET decision = decision + 1, visit = visit + 1 WHERE run_id = {{}}"


def _joined(parts: list[Rows]) -> Rows:
    joined: Rows = {}
    for part in parts:
        for name, some in part.items():
            joined.setdefault(name, []).extend(some)
    return joined


def _tables() -> list[str]:
    return [cls.table for cls in TABLES if cls.table not in _OURS]


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


async def _asyncpg(url: str) -> Any:
    asyncpg: Any = importlib.import_module("asyncpg")
    return await asyncpg.connect(url, server_settings={"search_path": "piecework"})
