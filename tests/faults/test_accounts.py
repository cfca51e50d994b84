"""Promises about what an update started, kept with real workers and real processes."""

from __future__ import annotations

import asyncio
import os
import re

import pytest
from test_workers import Node, a_run, runs

from piecework.config import Settings
from piecework.process import linux
from piecework.process.protocol import Init, Late, Log, Progress
from piecework.space.controller import Controller, UnknownIntegration

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
GRACE = 0.5


class Heard(list):
    """What workers say beside results; `of` waits until there is so much of one kind."""

    def __init__(self):
        super().__init__()
        self._more = asyncio.Event()

    def append(self, said):
        super().append(said)
        self._more.set()

    async def of(self, kind, count=1):
        while len(found := [said for said in self if isinstance(said, kind)]) < count:
            self._more.clear()
            await self._more.wait()
        return found


@pytest.fixture
async def worker():
    """A node with one ready worker over the pieces of `accounts_app`."""
    before = linux.children(os.getpid())
    node = Node()
    node.logs = Heard()
    node.zygote = node.make_zygote("accounts_app:app")
    await node.zygote.start()
    settings = {"space_grace_seconds": GRACE}
    init = Init(space="acme", settings=settings)
    controller = Controller(node.zygote, "acme", init, Settings(**settings), node.on_ask, node.logs.append)
    controller.node = node
    await controller.start()
    yield controller
    pids = [controller.pid, controller.keeper_pid]
    await controller.stop()
    await node.zygote.stop()
    assert not [pid for pid in pids if runs(pid)]
    assert linux.children(os.getpid()) <= before


async def outcome(worker, integration, run_id="r1", **config):
    """What a run came to."""
    return (await worker.run(a_run(integration, run_id, config=config), 60)).outcome


HOWS = ["popen", "in a thread", "asyncio", "system", "spawn", "fork", "multiprocessing", "daemon"]


@pytest.mark.covers("N450")
async def test_processes_are_awaited(worker, tmp_path):
    """An update is over when the processes that it started are, however it started them, daemons included."""
    for number, how in enumerate(HOWS):
        fifo, done = tmp_path / f"fifo-{number}", tmp_path / f"done-{number}"
        os.mkfifo(fifo)
        config = {"how": how, "fifo": str(fifo), "done": str(done)}
        running = asyncio.ensure_future(outcome(worker, "program", f"r{number}", **config))
        await outcome(worker, "short-programs", f"other-{number}")
        assert not running.done(), how
        await asyncio.to_thread(fifo.write_text, "")
        assert ((await running)["name"], done.exists()) == ("success", True), how


@pytest.mark.covers("N451")
async def test_strict_process(worker):
    """Under strict accounting a process that is left behind fails the update, names its line, and is gone."""
    verdict = await outcome(worker, "strict-program")
    assert "accounts_app.py:" in verdict["error"]
    assert "in strict_program" in verdict["error"]
    await worker.node.told.get()
    assert {pid for pid in linux.descendants(worker.keeper_pid) if runs(pid)} == {worker.pid}


@pytest.mark.covers("N452")
async def test_cancelled_process(worker):
    """A cancelled update's processes are terminated, and killed when they ignore that; its worker serves on."""
    running = asyncio.ensure_future(outcome(worker, "deaf-program"))
    await worker.node.told.get()
    assert linux.descendants(worker.keeper_pid) > {worker.pid}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert linux.descendants(worker.keeper_pid) == {worker.pid}
    assert (worker.alive, (await outcome(worker, "short-programs", "r2"))["data"]) == (True, [0, 0, 0])


@pytest.mark.covers("N529")
@pytest.mark.parametrize(
    ("integration", "told"),
    [
        ("leaves-a-program", r"was not over: the process \d+ \(sleep 3600\), started at .*accounts_app.py:\d+"),
        ("deaf-program", r"was not over: the process \d+ \(.*\), started at .* in deaf_program"),
        ("strict-stubborn", r"was not over: the task strict_stubborn.* started at .* in strict_stubborn"),
    ],
)
async def test_what_runs_into_the_timeout_is_named(worker, integration, told):
    """A TIMEOUT names what the update had started and was not over: command, pid and line; also under strict."""
    verdict = (await worker.run(a_run(integration), 0.5)).outcome
    assert verdict["code"] == "TIMEOUT"
    assert re.search(told, verdict["error"], re.DOTALL), verdict["error"]


@pytest.mark.covers("N453")
async def test_abandoned_generator(worker):
    """An async generator that an update abandons is closed before the update is over, and fails it where it fails."""
    assert (await outcome(worker, "abandons"))["name"] == "success"
    assert worker.node.told.get_nowait() == "closed"
    verdict = await outcome(worker, "abandons", "r2", fail=True)
    assert "while closing" in verdict["error"]
    assert "in rows" in verdict["error"]


@pytest.mark.covers("P41")
@pytest.mark.parametrize("integration", ["stray", "stray-thread"])
async def test_stray_callback(worker, integration):
    """A callback of an update that fails, or a task that a thread of it starts, fails that update and nothing else."""
    verdict = await outcome(worker, integration)
    assert verdict["name"] == "failed"
    assert "failed with ValueError" in verdict["error"]
    assert worker.alive


@pytest.mark.covers("N455")
async def test_late_failure(worker):
    """What fails when its update has ended is told of that update, and not of the one that runs meanwhile."""
    assert (await outcome(worker, "leaves-its-context", "early"))["name"] == "success"
    assert (await outcome(worker, "goes-on-for-another", "other"))["name"] == "success"
    late = await worker.node.logs.of(Late, 2)
    assert {said.run_id for said in late} == {"early"}
    assert sorted("late task" in said.error["message"] for said in late) == [False, True]
    (warned,) = await worker.node.logs.of(Log)
    assert (warned.run_id, "started after the update had ended" in warned.message) == ("early", True)


async def test_forgotten_in_a_circle(worker):
    """A coroutine that is forgotten in a circle of references is found at the end of its update."""
    neighbour = asyncio.ensure_future(outcome(worker, "forever", "neighbour"))
    assert await worker.node.told.get() == "began"
    assert "'told' was never awaited" in (await outcome(worker, "forgets-in-a-circle"))["error"]
    neighbour.cancel()
    with pytest.raises(asyncio.CancelledError):
        await neighbour


@pytest.mark.covers("N457")
async def test_thread_left_behind(worker):
    """A thread that an update leaves behind is told in its log, with the line that started it."""
    assert (await outcome(worker, "leaves-a-thread"))["name"] == "success"
    (line,) = await worker.node.logs.of(Log)
    assert (line.level, "'poller'" in line.message, "in leaves_a_thread" in line.message) == ("warning", True, True)


@pytest.mark.covers("P42")
async def test_dispatch(worker):
    """An update may be async, plain or return an awaitable; whatever it raises is told by its type and its words."""
    assert [(await outcome(worker, kind, kind))["name"] for kind in ("plain", "sync", "returns-coroutine")] == [
        "success",
        "skipped",
        "success",
    ]
    assert (await outcome(worker, "raises-without-words", "r2"))["error"].startswith("LookupError")
    assert "SystemExit: enough" in (await outcome(worker, "exits-politely", "r3"))["error"]
    assert worker.alive


@pytest.mark.covers("P44")
async def test_unknown_integration(worker):
    """A run of an integration that its worker does not know is given back; piece, space and near names are told."""
    with pytest.raises(UnknownIntegration, match=r"'p1' of space 'acme' .* did you mean 'stray'"):
        await outcome(worker, "strai")
    assert (await outcome(worker, "short-programs", "r2"))["name"] == "success"


@pytest.mark.covers("N459")
async def test_printed_lines(worker):
    """What an update prints, in a thread too, is told line by line with its run."""
    await outcome(worker, "prints", words=["a", "b\nc\n", "d"])
    lines = [(line.message, line.run_id, line.source, line.level) for line in await worker.node.logs.of(Log, 3)]
    assert lines == [(text, "r1", "print", "info") for text in ("ab", "c", "d")]


async def test_progress(worker):
    """What an update says of its progress is told at once, from a thread too."""
    await outcome(worker, "tells-progress")
    (said,) = await worker.node.logs.of(Progress)
    assert (said.run_id, said.fraction, said.message) == ("r1", 0.5, "half")
