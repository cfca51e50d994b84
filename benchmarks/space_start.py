"""Starting a worker, by three bare forks of a process with the same modules, and by multiprocessing's spawn.

A worker is a chain of processes that a zygote forks, so three forks one out of the other, the last of which answers,
are the floor: they do nothing else. Then what it costs to have an update carried out, by the same bytes there and back
between two bare processes, and the memory that a live space takes beside the zygote.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from store_common import Bench

from piecework import Settings
from piecework.process import linux
from piecework.process.launch import Zygote
from piecework.process.protocol import Init, Run
from piecework.space.controller import Controller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).resolve().parent
MEBIBYTE = 1024 * 1024
FORKS_BAR, SPAWN_BAR, MEMORY_BAR = 3.0, 15.0, 8.0

FORKS = """
import gc, os, sys
sys.path[:0] = [sys.argv[1]]
import spaces_app, piecework.process.zygote, piecework.space.worker
there, back = int(sys.argv[2]), int(sys.argv[3])
gc.collect(); gc.freeze()
def chain(left):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    elif left:
        chain(left - 1)
        os._exit(0)
    else:
        os.write(back, b"x")
        os._exit(0)
while os.read(there, 1):
    chain(2)
"""


class Forks:
    """A process with the modules of a zygote, that forks three times when asked."""

    def __init__(self) -> None:
        there, self._asking = os.pipe()
        self._hearing, back = os.pipe()
        command = [sys.executable, "-c", FORKS, str(HERE), str(there), str(back)]
        self._process = subprocess.Popen(command, pass_fds=(there, back))
        os.close(there)
        os.close(back)
        self.once()

    def once(self) -> float:
        """Seconds until the last of three has answered."""
        began = time.perf_counter()
        os.write(self._asking, b"x")
        os.read(self._hearing, 1)
        return time.perf_counter() - began

    def close(self) -> None:
        """Ends the process."""
        os.close(self._asking)
        self._process.wait()
        os.close(self._hearing)


class Node:
    """A zygote of the benchmarks' application, and workers of it."""

    def __init__(self, *, spare: bool) -> None:
        paths = [str(HERE), *sys.path]
        self.zygote = Zygote("spaces_app:app", paths=paths, on_output=lambda _line, _space: None, spare=spare)

    async def worker(self, space: str = "acme") -> Controller:
        """A worker that is ready."""
        made = Controller(self.zygote, space, Init(space=space), Settings(), _nothing, lambda _line: None)
        await made.start()
        return made


@contextlib.asynccontextmanager
async def node(*, spare: bool = False) -> AsyncIterator[Node]:
    """A node whose zygote runs, and keeps a worker ready where it is to."""
    node = Node(spare=spare)
    await node.zygote.start()
    try:
        yield node
    finally:
        await node.zygote.stop()


async def _nothing(*_: Any) -> None:
    """What is asked has no answer."""


def spawn() -> float:
    """Seconds until a spawned process has imported the application."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    import spaces_app  # late: only what is spawned needs it

    began = time.perf_counter()
    process = context.Process(target=spaces_app.arrived, args=(theirs,))
    process.start()
    ours.recv()
    seconds = time.perf_counter() - began
    process.join()
    return seconds


def echo() -> tuple[int, socket.socket]:
    """A bare process that sends back what it gets; its pid and our end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    ours.close()
    while data := theirs.recv(65536):
        theirs.sendall(data)
    os._exit(0)


def shared_bytes(*pids: int | None) -> int:
    """The proportional share of memory of these processes."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


async def measure_start(bench: Bench, node: Node) -> None:
    """Alternates: a worker from nothing, one where others are at work, three forks; a spawn for every few."""
    forks = Forks()
    first, ours, bare, spawned = [], [], [], []
    async with spared() as (busy, at_work):
        try:
            for number in range(bench.options.workers + 2):
                first.append(await _timed(node))
                while busy.zygote.spare is None:  # noqa: ASYNC110 - it is made in the background, and nobody tells
                    await asyncio.sleep(0.01)
                ours.append(await _timed(busy))
                bare.append(forks.once())
                if number % 5 == 0:
                    spawned.append(await asyncio.to_thread(spawn))
        finally:
            forks.close()
            await at_work.stop()
    told: dict[str, Any] = {"worker_ms": _ms(ours), "forks_ms": _ms(bare), "spawn_ms": _ms(spawned)}
    pairs = [one / other for one, other in zip(ours[2:], bare[2:], strict=True)]
    bench.report("a worker ready, others at work, by three bare forks", pairs, bar=FORKS_BAR, at_most=True, **told)
    pairs = [one / other for one, other in zip(first[2:], bare[2:], strict=True)]
    told = {"worker_ms": _ms(first)}
    bench.report("a worker ready, the first of all, by three bare forks", pairs, bar=FORKS_BAR, at_most=True, **told)
    for name, times in (("others at work", ours), ("the first of all", first)):
        bench.report(
            f"a spawned process, by a worker ready, {name}", [one / median(times) for one in spawned], bar=SPAWN_BAR
        )


@contextlib.asynccontextmanager
async def spared() -> AsyncIterator[tuple[Node, Controller]]:
    """A node that keeps a worker ready, since one is at work."""
    async with node(spare=True) as busy:
        yield busy, await busy.worker("at-work")


async def _timed(node: Node) -> float:
    began = time.perf_counter()
    worker = await node.worker()
    seconds = time.perf_counter() - began
    await worker.stop()
    return seconds


async def measure_round_trip(bench: Bench, node: Node) -> None:
    """Alternates batches: updates that do nothing, and as many bytes there and back."""
    pid, sock = echo()
    worker = await node.worker()
    trips = bench.options.trips
    ours, bare = [], []
    try:
        for pair in range(bench.options.pairs):
            began = time.perf_counter()
            for number in range(trips):
                await worker.run(_run(f"{pair}-{number}"), 60)
            ours.append((time.perf_counter() - began) / trips)
            began = time.perf_counter()
            for _ in range(trips):
                sock.sendall(b"x" * 200)
                sock.recv(65536)
            bare.append((time.perf_counter() - began) / trips)
    finally:
        sock.close()
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it has seen the end of its socket
        await worker.stop()
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    bench.report("an update there and back, by its bytes", ratios, bar=None, update_ms=_ms(ours), bytes_ms=_ms(bare))


async def measure_memory(bench: Bench, node: Node) -> None:
    """Twenty live spaces: what their processes hold, and what the zygote holds then."""
    alone = shared_bytes(node.zygote.pid)
    workers = []
    for number in range(bench.options.spaces):
        workers.append(await node.worker(f"space-{number}"))
        await workers[-1].run(_run("r"), 60)
    live = [shared_bytes(worker.pid, worker.keeper_pid) for worker in workers]
    zygote = shared_bytes(node.zygote.pid)
    # What the zygote shares now is counted in part with its children: only what is there more than before is theirs.
    each = (sum(live) + zygote - alone) / len(workers) / MEBIBYTE
    for worker in workers:
        await worker.stop()
    told: dict[str, Any] = {"worker_and_keeper": round(median(live) / MEBIBYTE, 2)}
    told |= {"zygote_alone": round(alone / MEBIBYTE, 1)}
    bench.report("memory of a live space over the zygote, MiB", [each], bar=MEMORY_BAR, at_most=True, **told)


def _run(run_id: str) -> Run:
    given: dict[str, Any] = {"epoch": 1, "attempt": 1, "piece_id": "p", "integration": "echo"}
    return Run(run_id=run_id, deadline_seconds=60.0, idempotency_key=run_id, **given)


def _ms(seconds: list[float]) -> str:
    return f"{median(seconds) * 1e3:.2f} (from {min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f})"


async def measure(bench: Bench, _engine: str) -> None:
    """All of it, with one zygote."""
    async with node() as one:
        await measure_start(bench, one)
        await measure_round_trip(bench, one)
        await measure_memory(bench, one)


if __name__ == "__main__":
    assert linux.can_run_workers(), "spaces need pidfds"
    sys.path.insert(0, str(HERE))
    Bench(
        __doc__ or "",
        engines="sqlite",
        options={"--workers": 40, "--trips": 200, "--spaces": 20},
        quick={"--pairs": 3, "--workers": 10, "--trips": 50, "--spaces": 5},
    ).run(measure)
