"""Nodes, zygotes, keepers and workers killed at random while pieces run, and what the store says of it afterwards.

`PIECEWORK_SOAK=200` (`make soak`) kills so many on each engine, at other moments each time, instead of a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise

import pytest
from test_node_killed import HERE, MARK, _marked

from piecework import App, Settings
from piecework.process import linux
from piecework.process.child import readable
from piecework.store.opening import store_for
from piecework.testing.contracts import check_invariants

SOAK = int(os.environ.get("PIECEWORK_SOAK", "0"))
KILLS = SOAK or 4
PIECES = 6
PATIENCE_SECONDS = 120 if SOAK else 20

pytestmark = [
    pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds"),
    pytest.mark.timeout(0 if SOAK else 90),
]


class Soak:
    """The node under test, started anew after each of its deaths, and what its updates tell."""

    def __init__(self, folder, store, rng):
        self.folder = folder
        self.store = store
        self.rng = rng
        self.lines = []
        self._process = None
        self._pipe = folder / "pipe"
        os.mkfifo(self._pipe)
        self._reading = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)  # with a writer, it never ends
        self._rest = b""

    async def start(self):
        env = {**os.environ, MARK: str(self.folder), "PIECEWORK_ENV": "test", "STORE_OF_THE_TEST": self.store}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "soak_node.py"), str(self.folder), stdin=subprocess.PIPE, env=env
        )

    async def hear(self, number):
        """Waits for so many more lines of updates."""
        wanted = len(self.lines) + number
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.lines) < wanted:
                await readable(self._reading)
                self._read()

    def _read(self):
        *lines, self._rest = (self._rest + os.read(self._reading, 65536)).split(b"\n")
        self.lines += [line.decode().split() for line in lines]

    async def kill_one(self):
        """Kills a node, a zygote, a keeper or a worker, and what is to start a node again does."""
        kind = self.rng.choice(("node", "zygote", "keeper", "worker"))
        pid = self._find(kind)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if kind == "node":
            await self._process.wait()
            await self.start()
        return True

    def _find(self, kind):
        """Looks down from our own child; what it finds is there until its parent, which we do not stop, reaps it."""
        found = {self._process.pid}
        for _ in range(("node", "zygote", "keeper", "worker").index(kind)):
            found = set().union(*map(linux.children, found))
        return self.rng.choice(sorted(found)) if found else None

    async def stop(self):
        """Ends the node in order."""
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            status = await self._process.wait()
        with contextlib.suppress(BlockingIOError):
            while True:
                self._read()
        return status

    async def nothing_left(self):
        """Ends the node if it runs, and waits until nothing that was started does."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        os.close(self._reading)
        for pid in _marked(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    async with asyncio.timeout(10):
                        await readable(pidfd)
                finally:
                    os.close(pidfd)
        assert _marked(str(self.folder)) == []


@pytest.fixture
async def soak(tmp_path, store):
    seed = random.randrange(2**32) if SOAK else 8
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    soak = Soak(tmp_path, store, random.Random(seed))
    await soak.start()
    yield soak
    await soak.nothing_left()


async def look(store):
    """The pieces, and the updates of each from the first to the last, as a node that runs none of them sees them."""
    async with App("look", store=store, settings=Settings(piece_history_limit=100_000)) as app:
        pieces = await app.pieces.list()
        return [(piece, (await app.pieces.runs(piece.space, piece.piece_id, limit=100_000))[::-1]) for piece in pieces]


def check_piece(piece, updates, told):
    ended = sorted((update for update in updates if update.ended_at), key=lambda update: update.ended_at)
    assert all(one.ended_at <= other.started_at for one, other in pairwise(ended)), "two updates overlap"
    counts = [update.result["count"] for update in ended if update.outcome == "success"]
    assert counts == list(range(1, len(counts) + 1)), "an outcome is lost or doubled"
    failures = 0
    for update in ended:
        failures = {"failed": failures + 1, "retry_after": failures}.get(update.outcome, 0)
    assert piece.consecutive_failures == failures
    assert [update.status for update in updates if not update.ended_at] in (["queued"], ["running"])
    ids = {update.run_id for update in updates}
    assert {run_id for _, run_id, _ in told} <= ids, "an update ran that the store does not know"
    finished = {run_id for word, run_id, _ in told if word == "end"}
    assert {update.run_id for update in ended if update.outcome != "failed"} <= finished


@pytest.mark.covers("A16", "N485")
async def test_random_kills(soak):
    """Whoever is killed, updates of one piece never overlap, no outcome is lost or doubled, and nothing is left."""
    await soak.hear(2 * PIECES)
    killed = 0
    while killed < KILLS:
        killed += await soak.kill_one()
        await soak.hear(soak.rng.choice((0, 1, 2, 5, 2 * PIECES)))
    await soak.hear(2 * PIECES)
    assert await soak.stop() == 0
    assert "overlap" not in {word for word, *_ in soak.lines}
    told = defaultdict(list)
    for word, piece, run_id, attempt in soak.lines:
        told[piece].append((word, run_id, attempt))
    pieces = await look(soak.store)
    assert len(pieces) == PIECES
    for piece, updates in pieces:
        check_piece(piece, updates, told[f"{piece.space}/{piece.piece_id}"])
    store = store_for(soak.store)
    await store.open()
    try:
        await check_invariants(store)
    finally:
        await store.close()
