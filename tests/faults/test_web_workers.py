"""A web server with several worker processes, one of which is the node: under load, killed, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

HERE = Path(__file__).parent
PATIENCE_SECONDS = 60
CALLERS = 6


class Server:
    """uvicorn with worker processes, and what its clients saw of them."""

    def __init__(self, folder, workers):
        self.folder = folder
        self.workers = workers
        self.pids = set()
        self.acknowledged = set()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    async def __aenter__(self):
        sqlite3.connect(self.folder / "shop.db").execute(
            "CREATE TABLE orders (number INTEGER PRIMARY KEY, handled INTEGER NOT NULL DEFAULT 0)"
        ).connection.close()
        self._log = (self.folder / "log").open("wb")
        command = [sys.executable, "-W", "error", "-m", "uvicorn", "web_app:api", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", str(self.workers), "--log-level", "warning"]
        environment = os.environ | {"WEB_FOLDER": str(self.folder), "PYTHONWARNINGS": "error"}
        self._process = await asyncio.create_subprocess_exec(
            *command,
            cwd=HERE,
            env=environment,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pids.add(self._process.pid)
        return self

    async def __aexit__(self, *_):
        if self._process.returncode is None:  # the test has failed: its workers are of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        self._log.close()

    async def ask(self, method, path):
        """Asks whichever worker takes the connection; again where its process died of it, or is not there yet."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=None) as client:
                        response = await client.request(method, path)
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                assert response.status_code == 200, (response.text, self.said())
                answer = response.json()
                self.pids |= {answer["pid"]} if "pid" in answer else set()
                return answer

    async def place(self, numbers):
        """Places orders one after the other."""
        for number in numbers:
            answer = await self.ask("POST", f"/orders/{number}")
            assert (answer["written"], answer["event_id"]) == ([1], f"order-{number}")
            self.acknowledged.add(number)

    async def roles(self, but=None):
        """Waits until all workers have been met, one of them a node that is not `but`: pid to role."""
        found = {}
        while len(found) < self.workers or "node" not in found.values():
            answer = await self.ask("GET", "/")
            if answer["pid"] != but:
                found[answer["pid"]] = answer["role"]
        return found

    async def all_completed(self):
        """Waits until no run has anything to do, and gives them all."""
        while {"queued", "running"} & set((runs := await self.ask("GET", "/runs")).values()):
            await asyncio.sleep(0.05)
        assert set(runs.values()) == {"completed"}, self.said()
        return runs

    async def end(self, number=signal.SIGTERM):
        self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._process.wait()

    def said(self):
        return (self.folder / "log").read_text()


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def node_of(roles):
    (node,) = [pid for pid, role in roles.items() if role == "node"]
    return node


def alive(pids):
    found = set()
    for pid in pids:
        try:
            os.kill(pid, 0)
            found.add(pid)
        except ProcessLookupError:
            continue
    return found


@pytest.fixture
async def server(tmp_path, request):
    async with asyncio.timeout(PATIENCE_SECONDS), Server(tmp_path, request.param) as server:
        yield server


def all_clean(server):
    """Whether nothing is left of a server that has ended: no process, no socket, and no word of trouble."""
    return not alive(server.pids) and not list(server.folder.glob("*.sock")) and "Traceback" not in server.said()


@pytest.mark.timeout(90)
@pytest.mark.covers("N256")
@pytest.mark.parametrize("server", [4], indirect=True)
async def test_a_server_outlives_its_node(server):
    """Of four workers one is the node. When it is killed under load another one follows in place, and each event that
    was acknowledged has one run: none is lost, and none is there twice."""
    roles = await server.roles()
    assert sorted(roles.values()) == ["client", "client", "client", "node"]
    first = node_of(roles)
    before, behind = range(60), range(60, 120)
    async with asyncio.TaskGroup() as group:
        for caller in range(CALLERS):
            group.create_task(server.place([*before, *behind][caller::CALLERS]))
        while len(server.acknowledged) < len(before):
            await asyncio.sleep(0.01)
        kill(first)
    after = await server.roles(but=first)
    runs = await server.all_completed()
    assert node_of(after) in roles, "one that was there became it"
    assert len(runs) == len(server.acknowledged) == len(before) + len(behind)
    assert await server.ask("GET", "/orders") == {"orders": len(runs), "handled": len(runs)}
    assert await server.end() == 0
    assert all_clean(server), server.said()


@pytest.mark.timeout(90)
@pytest.mark.covers("N258")
@pytest.mark.parametrize("server", [2], indirect=True)
async def test_a_server_ends_and_hands_over_in_order(server):
    """A node that is ended in order hands over to another worker; Ctrl-C closes all, and nothing is left behind."""
    first = node_of(await server.roles())
    await server.place(range(5))
    os.kill(first, signal.SIGTERM)
    await server.place(range(5, 10))
    assert node_of(await server.roles(but=first)) != first
    assert len(await server.all_completed()) == 10
    assert await server.end(signal.SIGINT) == 0
    assert all_clean(server), server.said()
