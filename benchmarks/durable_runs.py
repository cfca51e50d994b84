"""Durable three-step runs with 50 at a time, against a raw sqlite3 loop that writes the same rows in as many commits.

Both contenders take turns in one process tree (A B A B …); what counts is the ratio of their medians.
`python benchmarks/durable_runs.py [--runs 500] [--pairs 5] [--json FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from piecework import App, Settings, Stage, Transient, Workflow

CONCURRENT = 50


async def one(_ctx: Any) -> dict[str, Any]:
    return {"one": 1}


async def two(_ctx: Any) -> dict[str, Any]:
    return {"two": 2}


async def three(_ctx: Any) -> dict[str, Any]:
    return {"three": 3}


async def ours(runs: int, folder: Path) -> float:
    """Runs per second, from the first publish to the end of the last run."""
    app = App("bench", store=f"sqlite:///{folder}/ours.db", settings=Settings())
    stages = [Stage("one", steps=[one]), Stage("two", steps=[two]), Stage("three", steps=[three])]
    app.workflow(Workflow("bench", on="go", stages=stages), mode=Transient(concurrency=runs))
    async with app:
        room = asyncio.Semaphore(CONCURRENT)

        async def one_run(number: int) -> None:
            async with room:
                receipt = await app.publish("go", {"number": number})
                dispatched = receipt.dispatched or []
                result = await app.runtime.wait(str(dispatched[0].run_id))
                assert result.unwrap().state["three"] == 3

        begun = time.perf_counter()
        await asyncio.gather(*(one_run(number) for number in range(runs)))
        return runs / (time.perf_counter() - begun)


def counted(path: Path) -> tuple[dict[str, list[tuple[Any, ...]]], dict[str, str]]:
    """The rows that our run left, by table, and how each table is made."""
    connection = sqlite3.connect(path)
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL"))
    tables.pop("sqlite_sequence", None)
    rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    indexes = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index'") if row[0]]
    connection.close()
    return rows, tables | {f"index {i}": sql for i, sql in enumerate(indexes)}


def floor(runs: int, source: Path, folder: Path) -> float:
    """The same final rows written by hand: a group of 50 runs a commit, six commits a group, one thread."""
    rows, schema = counted(source)
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    for statement in schema.values():
        connection.execute(statement)
    groups = max(1, runs // CONCURRENT)
    begun = time.perf_counter()
    for group in range(groups):
        parts = {name: some[group::groups] for name, some in rows.items()}
        run_ids = [(row[0],) for row in parts["runs"]]
        for commit in range(6):
            connection.execute("BEGIN IMMEDIATE")
            for name, some in parts.items():
                if name == "runs":
                    if commit == 0:
                        marks = ",".join("?" * len(some[0]))
                        connection.executemany(f"INSERT INTO runs VALUES ({marks})", some)
                    else:  # a decision rewrites the run's row
                        connection.executemany(
                            "UPDATE runs SET decision = decision + 1, visit = visit + 1 WHERE run_id = ?", run_ids
                        )
                elif share := some[commit::6]:
                    marks = ",".join("?" * len(share[0]))
                    connection.executemany(f"INSERT INTO {name} VALUES ({marks})", share)
            connection.execute("COMMIT")
    rate = runs / (time.perf_counter() - begun)
    connection.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs: list[tuple[float, float]] = []
    for _ in range(options.pairs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mine = asyncio.run(ours(options.runs, folder))
            pairs.append((mine, floor(options.runs, folder / "ours.db", folder)))
    ratios = sorted(mine / raw for mine, raw in pairs)
    report = {
        "workload": f"{options.runs} durable three-step runs, {CONCURRENT} at a time",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{platform.machine()} {platform.system()}",
        "runs_per_second": round(statistics.median(mine for mine, _ in pairs), 1),
        "floor_runs_per_second": round(statistics.median(raw for _, raw in pairs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(ratios[0], 3),
        "ratio_highest": round(ratios[-1], 3),
        "pairs": options.pairs,
    }
    for name, value in report.items():
        print(f"{name:24} {value}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    sys.exit(0)


if __name__ == "__main__":
    main()
