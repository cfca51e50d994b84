"""Three-step runs by DBOS, fifty at a time, as its documentation says; prints its rate and versions as JSON.

Run by `peers.py` in an environment of its own: `peers_dbos.py URL RUNS`. DBOS wants a newer SQLite than many systems
have (`unixepoch('subsec')`, 3.42), so there the one that comes with `pysqlite3-binary` takes the module's place.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import platform
import sqlite3
import sys
import time
from typing import Any

CONCURRENT = 50
_WARM_UP = 20

if sqlite3.sqlite_version_info < (3, 42):
    newer: Any = importlib.import_module("pysqlite3")
    sys.modules["sqlite3"], sys.modules["sqlite3.dbapi2"] = newer, newer.dbapi2

dbos: Any = importlib.import_module("dbos")
DBOS = dbos.DBOS


@DBOS.step()  # type: ignore[untyped-decorator]  # DBOS is in an environment of its own
async def one(_number: int) -> dict[str, Any]:
    return {"one": 1}


@DBOS.step()  # type: ignore[untyped-decorator]  # as above
async def two(_number: int) -> dict[str, Any]:
    return {"two": 2}


@DBOS.step()  # type: ignore[untyped-decorator]  # as above
async def three(_number: int) -> dict[str, Any]:
    return {"three": 3}


@DBOS.workflow()  # type: ignore[untyped-decorator]  # as above
async def go(number: int) -> dict[str, Any]:
    return {**await one(number), **await two(number), **await three(number)}


async def run_all(numbers: range) -> float:
    """The seconds that it takes to run so many to their ends."""
    left = iter(numbers)

    async def caller() -> None:
        for number in left:
            handle = await DBOS.start_workflow_async(go, number)
            assert (await handle.get_result())["three"] == 3

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))
    return time.perf_counter() - begun


async def measured(runs: int) -> float:
    """Runs per second, once it is warm."""
    DBOS.launch()
    await run_all(range(_WARM_UP))
    return runs / await run_all(range(_WARM_UP, _WARM_UP + runs))


def main() -> None:
    """Measures and prints."""
    url, runs = sys.argv[1], int(sys.argv[2])
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})
    rate = asyncio.run(measured(runs))
    version = importlib.metadata.version("dbos")
    print(json.dumps({"rate": rate, "peer": f"DBOS {version}, Python {platform.python_version()}"}), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main()
