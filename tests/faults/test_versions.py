"""A workflow is replaced by a newer version under load, by nodes in processes of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from piecework import App
from piecework.store.opening import store_for
from piecework.testing.contracts import check_invariants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
AT_ONCE, PHASE = 10, 60
PATIENCE_SECONDS = 20


class Node:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def stop(self) -> None:
        """Ends it in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.communicate()
        assert self._process.returncode == 0, "the node ended badly: see its standard error"


@asynccontextmanager
async def node(store: str, version: str) -> AsyncIterator[Node]:
    """A node of a version, once it is ready; it has ended when the block has."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(HERE / "versioned_node.py"), store, version),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield Node(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


class Load:
    """Events without end from a client, until somebody stops it; what was accepted is counted."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._stopping = False
        self.accepted: list[int] = []
        self._more = asyncio.Condition()

    async def run(self) -> None:
        while not self._stopping:
            numbers = range(len(self.accepted), len(self.accepted) + AT_ONCE)
            await asyncio.gather(*(self._app.publish("go", {"n": n}, id=f"go-{n}") for n in numbers))
            self.accepted += numbers
            await self._app.publish("yes")
            async with self._more:
                self._more.notify_all()

    async def phase(self) -> None:
        """Waits until some more events have been accepted."""
        wanted = len(self.accepted) + PHASE
        async with self._more:
            await self._more.wait_for(lambda: len(self.accepted) >= wanted)

    def stop(self) -> None:
        self._stopping = True


async def all_ended(app: Any, count: int) -> Counter[tuple[str, str]]:
    """The runs by trigger and status, once there is one of the first trigger for each event and all have ended."""
    while True:
        runs = await app.runtime.list_all_runs()
        firsts = [run for run in runs if run.trigger_id == "default"]
        if len(firsts) >= count and all(run.ended_at for run in runs):
            return Counter((run.trigger_id, run.status) for run in runs)
        await app.publish("yes")


@pytest.mark.covers("N231")
async def test_a_rolling_replacement_loses_nothing(store: str, engine: str) -> None:
    """While nodes of an old and a new version overlap under load, every accepted event's run completes.

    On a file, which has one node at a time, the new one follows the old.
    """
    app = App("versions", store=store, env={})
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        node(store, "1") as old,
        app.open(role="client") as client,
        asyncio.TaskGroup() as group,
    ):
        load = Load(client)
        group.create_task(load.run())
        await load.phase()
        if engine == "sqlite":
            await old.stop()
        async with node(store, "2") as new:
            await load.phase()
            if engine == "postgres":
                await old.stop()
                await load.phase()
            load.stop()
            told = await all_ended(client, len(load.accepted))
            await new.stop()
    assert {status for _, status in told} == {"completed"}
    assert told["default", "completed"] == len(load.accepted)
    assert told["extra", "completed"] >= PHASE
    left = store_for(store)
    await left.open()
    try:
        await check_invariants(left)
    finally:
        await left.close()
