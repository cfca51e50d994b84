"""A node is killed with SIGKILL at every place that matters, started again, and keeps what it promised."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import SMTP

from piecework import App
from piecework.errors import StoreLockedError
from piecework.process import linux
from piecework.process.child import readable
from piecework.store.opening import store_for
from piecework.testing.contracts import check_invariants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
MARK = "LC_PIECEWORK_TEST"  # an interpreter's own variables are all that a zygote is given; LC_ is among them


class Node:
    """Starts one and the same application again and again in processes of its own.

    Attributes:
        pid: Of the latest one.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.pid = 0
        self._started: list[asyncio.subprocess.Process] = []

    async def run(self, script: str, *args: str) -> dict[str, Any] | int:
        """Runs a script to its end: what it told in its last line, or the signal that it died of."""
        command = [sys.executable, "-W", "error", str(HERE / script), str(self.folder), *args]
        env = {**os.environ, MARK: str(self.folder), "PIECEWORK_ENV": "test"}
        env["STORE_OF_THE_TEST"] = self.store
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=env, cwd=self.folder)
        self._started.append(process)
        self.pid = process.pid
        output, _ = await process.communicate()
        if process.returncode < 0:
            return -process.returncode
        assert process.returncode == 0, "the node ended badly: see its standard error"
        return json.loads(output.splitlines()[-1])

    async def check_store(self) -> None:
        """What stands in the store does not contradict itself."""
        store = store_for(self.store)
        await store.open()
        try:
            await check_invariants(store)
        finally:
            await store.close()

    async def nothing_left(self) -> None:
        """Waits until all that was started, by whomever, has ended; each pid has some seconds."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.wait()
        for pid in _marked(str(self.folder)):
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                async with asyncio.timeout(10):
                    await readable(pidfd)
            finally:
                os.close(pidfd)
        assert _marked(str(self.folder)) == []


def _marked(value: str) -> list[int]:
    """The processes that carry our mark in their environment."""
    found = []
    wanted = f"{MARK}={value}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0") and not _zombie(entry):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def _zombie(entry: Path) -> bool:
    return "\nState:\tZ" in (entry / "status").read_text()


@pytest.fixture
async def node(tmp_path: Path, store: str) -> AsyncIterator[Node]:
    """A node over an empty store; nothing of it is left when the test has ended."""
    node = Node(tmp_path, store)
    yield node
    await node.nothing_left()


def steps(node: Node) -> list[list[str]]:
    return [line.split(" ", 1) for line in (node.folder / "steps").read_text().splitlines()]


# Where it is killed, and which steps are then done twice.
PLACES = {
    "after publish": None,
    "before one": [],
    "in one": ["one"],
    "before commit CommitStage two": ["one"],
    "after commit CommitStage two": [],
    "before two": [],
    "in two": ["two"],
    "before commit CommitStage three": ["two"],
    "after commit CommitStage three": [],
    "while paused": [],
    "after approval": None,
    "before three": [],
    "in three": ["three"],
    "before commit Settle": ["three"],
    "after commit Settle": [],
    "before commit Cleaned": [],
    "after commit Cleaned": [],
}


@pytest.mark.covers("N2", "E15", "E17", "E18")
@pytest.mark.parametrize("place", PLACES)
async def test_a_run_goes_on_where_it_was(node: Node, place: str) -> None:
    """Killed anywhere, a run completes after the next start: what was committed is not done again, what was not is."""
    assert await node.run("letters.py", place) == signal.SIGKILL
    told = await node.run("letters.py", place)
    assert isinstance(told, dict)
    assert (told["ok"], told["runs"]) == (True, 1)
    assert {key: told["state"][key] for key in ("n", "one", "two", "three", "by")} == {
        "n": 1,
        "one": True,
        "two": True,
        "three": True,
        "by": "Bob",
    }
    done = steps(node)
    assert [name for name, _ in dict.fromkeys(map(tuple, done))] == ["one", "two", "three"]
    assert told["timeline"].count("run:completed") == 1
    repeated = PLACES[place]
    if repeated is not None:
        assert Counter(name for name, _ in done) - Counter(["one", "two", "three"]) == Counter(repeated)
    await node.check_store()


@pytest.mark.parametrize("place", ["in two", "after commit CommitStage three", "in three"])
async def test_a_timeline_goes_on_after_a_kill(node: Node, place: str) -> None:
    """Over a kill and a restart one timeline goes on, numbered without a break, and has the state of every stage."""
    assert await node.run("letters.py", place) == signal.SIGKILL
    told = await node.run("letters.py", place)
    assert isinstance(told, dict)
    types = told["timeline"]
    assert told["seqs"] == list(range(1, len(types) + 1))
    assert (types.count("stage:completed"), types.count("run:completed")) == (3, 1)
    assert types.index("run:paused") < types.index("run:resumed") < types.index("state:resumed") < len(types) - 2
    assert told["stages"] == [["one"], ["one", "two"], ["one", "three", "two"]]


@pytest.mark.covers("N3")
async def test_a_run_that_takes_its_process_down_again_and_again_fails(node: Node) -> None:
    """A run that takes its process down `crash_limit` times without progress ends failed, CRASHED, checkpoint kept."""
    for _ in range(3):
        assert await node.run("letters.py", "in three!") == signal.SIGKILL
    told = await node.run("letters.py", "in three!")
    assert isinstance(told, dict)
    assert (told["ok"], told["error"], told["state"]["two"]) == (False, "CRASHED", True)
    names = [name for name, _ in steps(node)]
    assert names == ["one", "two", "three", "three", "three"]
    assert len({key for name, key in steps(node) if name == "three"}) == 1
    await node.check_store()


# Where it is killed, and the attempts that its update is then seen to make.
MOMENTS = {
    "after register": None,
    "in the update": ["1", "2"],
    "before commit FinishPiece": ["1", "2"],
    "after commit FinishPiece": ["1"],
}


@pytest.mark.covers("A16")
@pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
@pytest.mark.parametrize("place", MOMENTS)
async def test_an_update_that_is_cut_off_is_done_again(node: Node, place: str) -> None:
    """A node that is killed around an update takes its worker along; no outcome is lost or counted twice."""
    assert await node.run("killed_piece.py", place) == signal.SIGKILL
    await node.nothing_left()
    told = await node.run("killed_piece.py", place)
    assert isinstance(told, dict)
    assert (told["ok"], told["result"], told["status"], told["failures"]) == (True, {"count": 1}, "Success", 0)
    assert told["runs"] == ["queued", "completed"]
    updates = [line.split() for line in (node.folder / "updates").read_text().splitlines()]
    assert MOMENTS[place] in (None, [attempt for attempt, _ in updates])
    assert len({key for _, key in updates}) == 1
    await node.check_store()


class MailServer:
    """Takes every mail, and kills the node before it can hear of it, as often as it is told to."""

    def __init__(self, node: Node, kills: int) -> None:
        self.node = node
        self.kills = kills
        self.ids: list[str] = []

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        """Accepts a mail."""
        self.ids.append(message_from_bytes(envelope.content)["message-id"])
        if len(self.ids) <= self.kills:
            os.kill(self.node.pid, signal.SIGKILL)
        return "250 taken"


async def serve(rules: MailServer) -> tuple[asyncio.Server, str]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(rules, loop=loop, hostname="mail.test"), "127.0.0.1", 0)
    return server, f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}?from=news@example.org"


@pytest.mark.covers("N26")
async def test_a_mail_in_flight_comes_at_most_twice(node: Node) -> None:
    """A mail that the server took when the node was killed comes once more, with the same Message-ID, and is sent."""
    rules = MailServer(node, kills=1)
    server, url = await serve(rules)
    async with server:
        assert await node.run("letters.py", "nowhere", url) == signal.SIGKILL
        told = await node.run("letters.py", "nowhere", url)
    assert isinstance(told, dict)
    assert (told["ok"], told["mail"]) == (True, "sent")
    assert (len(rules.ids), len(set(rules.ids))) == (2, 1)
    await node.check_store()


@pytest.mark.covers("N27")
async def test_a_mail_whose_fate_is_unknown_twice_is_given_up(node: Node) -> None:
    """A mail that is cut off twice is not sent a third time: it fails with DELIVERY_UNKNOWN."""
    rules = MailServer(node, kills=2)
    server, url = await serve(rules)
    async with server:
        for _ in range(2):
            assert await node.run("letters.py", "nowhere", url) == signal.SIGKILL
        told = await node.run("letters.py", "nowhere", url)
    assert isinstance(told, dict)
    assert (told["ok"], told["mail"]) == (True, "DELIVERY_UNKNOWN")
    assert (len(rules.ids), len(set(rules.ids))) == (2, 1)
    await node.check_store()


@pytest.mark.covers("N28")
@pytest.mark.engines("sqlite")
async def test_one_node_at_a_time(node: Node) -> None:
    """A second node of one store is refused with the first one's pid; when that was killed, the next opens at once."""
    code = (
        "import asyncio, sys\n"
        "from piecework import App\n"
        "async def main():\n"
        "    async with App('x', store=sys.argv[1]):\n"
        "        print('open', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    url = f"sqlite:///{node.folder / 'state.db'}"
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", code, url, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert await first.stdout.readline() == b"open\n"
        with pytest.raises(StoreLockedError, match=str(first.pid)) as caught:
            async with App("y", store=url):
                pass
        assert (caught.value.code, caught.value.pid) == ("STORE_LOCKED", first.pid)
    finally:
        first.kill()
        await first.communicate()
    async with App("y", store=url) as app:
        assert await app.runtime.list_all_runs() == []
