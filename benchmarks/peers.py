"""Durable three-step runs, fifty at a time, by DBOS as it is shipped, on SQLite and on one PostgreSQL server.

The two take turns; each turn is a fresh process and a fresh database. DBOS lives in an environment of its own, which
`make bench-peers` makes; `PIECEWORK_PEERS` names its interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from runs_common import database
from store_common import Bench

BARS = {"sqlite": 40, "postgres": 15}
HERE = Path(__file__).resolve().parent
THEIRS = str(Path(os.environ.get("PIECEWORK_PEERS") or HERE / ".work" / "peers" / "bin" / "python").absolute())
_PATIENCE_SECONDS = 600


def said(interpreter: str, script: str, url: str, runs: int) -> dict[str, Any]:
    """What a contender's process printed."""
    done = subprocess.run(
        [interpreter, str(HERE / script), url, str(runs)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_SECONDS,
        cwd=HERE,
    )
    if done.returncode:
        raise SystemExit(f"{script} failed: {done.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


async def measure(bench: Bench, engine: str) -> None:
    """Takes the pairs of one engine."""
    mine: list[float] = []
    theirs: list[float] = []
    peer = ""
    for _ in range(bench.options.pairs):
        async with database(bench, engine) as url:
            told = await asyncio.to_thread(said, sys.executable, "peers_ours.py", url, bench.options.runs)
            mine.append(told["rate"])
        async with database(bench, engine) as url:
            told = await asyncio.to_thread(said, THEIRS, "peers_dbos.py", url, bench.options.peer_runs)
            theirs.append(told["rate"])
            peer = told["peer"]
    bench.report(
        f"{engine}: three-step runs, ours by {peer}",
        [own / other for own, other in zip(mine, theirs, strict=True)],
        bar=BARS[engine],
        runs_per_second=round(statistics.median(mine), 1),
        peer_runs_per_second=round(statistics.median(theirs), 1),
    )


if __name__ == "__main__":
    Bench(
        __doc__ or "",
        pairs=7,
        options={"--runs": 2000, "--peer-runs": 200},
        quick={"--runs": 500, "--peer-runs": 60, "--pairs": 2},
        durable=True,
    ).run(measure)
