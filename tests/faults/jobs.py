"""A node for tests that kill it: a job that runs by the clock every second, and a place where the process kills itself.

    python jobs.py FOLDER PLACE

The first time that the place is reached the process is gone. Each run leaves a line in FOLDER/steps. The process ends
when it has seen three runs end, and tells the scheduled runs in its last line, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from piecework import App, Settings
from piecework.run.node import Node

folder, place = Path(sys.argv[1]), sys.argv[2]
marker = folder / "killed"
app = App("ticking", store=os.environ["STORE_OF_THE_TEST"], settings=Settings(lease_seconds=1, heartbeat_seconds=0.2))
seen: list[str] = []
enough = asyncio.Event()


def reached(here: str) -> None:
    """Ends this process if it is to end here."""
    if here == place and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@app.job("tick", schedule="* * * * * *", overlap=os.environ.get("OVERLAP_OF_THE_TEST", "skip"))
async def tick(ws):
    with (folder / "steps").open("a") as file:
        file.write(f"tick {ws.key}\n")
    reached("in tick")
    seen.append(ws.run_id)
    if len(set(seen)) == 3:
        enough.set()


def watch_commits() -> None:
    """Makes the moments before and after each commit of the node places to be killed at."""
    commit = Node.commit

    async def watched(self, verb, item, decide):
        name = type(item).__name__
        reached(f"before commit {name}")
        answer = await commit(self, verb, item, decide)
        reached(f"after commit {name}")
        return answer

    Node.commit = watched


async def main() -> None:
    """Lets the clock tick for a while."""
    async with app:
        reached("when open")
        await enough.wait()
        runs = await app.runtime.list_all_runs(kind="job")
        told = [[run.key, run.status, run.run_id] for run in runs]
        sys.stdout.write(json.dumps({"runs": told, "seen": seen}) + "\n")


watch_commits()
asyncio.run(main())
