"""Promises about what is left when a process of ours dies: nothing. As root and as an ordinary user, in both modes."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from piecework.process import linux
from piecework.process.child import readable

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
HERE = Path(__file__).parent


class Driver:
    """A node in a process of its own, of which the test sees every process."""

    def __init__(self, user, mode, *, within=()):
        command = [*within, interpreter(everybodys=user is not None), str(HERE / "node_driver.py"), mode]
        options = {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environ, **options
        )
        self.namespaces = mode == "namespaces"
        self.pidfds = {}

    async def said(self):
        return json.loads(await asyncio.to_thread(self.process.stdout.readline))

    async def answer(self):
        answer = await self.said()
        for pid in [answer.get("zygote"), answer.get("keeper"), *answer.get("under", ())]:
            if pid is not None and pid not in self.pidfds:
                self.pidfds[pid] = os.pidfd_open(pid)
        return answer

    def tell(self, *words):
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()

    async def ask(self, *words):
        self.tell(*words)
        return await self.answer()

    async def worker(self, space):
        """A worker with what it has started: what of it has to die, and who keeps it."""
        answer = await self.ask("start", space)
        assert len(answer["under"]) == 3  # the worker, a program in a session of its own, a daemon
        return answer

    async def gone(self, *pids):
        """Waits until all of these processes have ended."""
        async with asyncio.timeout(20):
            for pid in pids:
                await readable(self.pidfds[pid])

    def left(self):
        """Which of all processes that were ever told of have not ended."""
        return {pid for pid, pidfd in self.pidfds.items() if not _ended(pidfd)}

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        for pidfd in self.pidfds.values():
            if not _ended(pidfd):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def _ended(pidfd):
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def interpreter(*, everybodys):
    """A Python like this one; one that every user of the machine may start, if need be."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        if not everybodys or (Path(path).exists() and _open_to_all(Path(path).resolve())):
            return path
    return pytest.skip(f"no {version} that every user may start")


def _open_to_all(path):
    return all(place.stat().st_mode & stat.S_IXOTH for place in (path, *path.parents))


@pytest.fixture(params=[(None, "namespaces"), (None, "session"), ("nobody", "namespaces"), ("nobody", "session")])
async def driver(request):
    user, mode = request.param
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root may become somebody else")
    driver = Driver(user, mode)
    try:
        told = await driver.answer()
        if mode == "namespaces" and told["mode"] == "session":
            pytest.skip("this machine gives no PID namespaces")
        assert (told["mode"] == "session") == (mode == "session")
        yield driver
    finally:
        driver.close()


@pytest.mark.covers("N420", "N421", "N422", "N423", "N424", "N425", "N426")
async def test_nothing_survives(driver):
    """Whoever dies of worker, keeper, zygote and node, or is stopped: what a worker has started is gone too."""
    one, two, three = [await driver.worker(space) for space in ("one", "two", "three")]
    os.kill(one["worker"], signal.SIGKILL)
    await driver.gone(*one["under"], one["keeper"])
    os.kill(two["keeper"], signal.SIGKILL)
    await driver.gone(*two["under"], two["keeper"])
    assert driver.left() == {three["zygote"], three["keeper"], *three["under"]}  # neighbours notice nothing
    os.kill(three["zygote"], signal.SIGKILL)
    await driver.gone(*three["under"], three["keeper"], three["zygote"])

    stopped = await driver.worker("four")
    await driver.ask("lease")
    os.kill(driver.process.pid, signal.SIGSTOP)
    await driver.gone(*stopped["under"], stopped["keeper"])
    os.kill(driver.process.pid, signal.SIGCONT)
    await driver.ask("release")

    if driver.namespaces:
        both = await driver.worker("five")
        os.kill(both["zygote"], signal.SIGSTOP)  # it does not hear of the keeper's end
        os.kill(both["keeper"], signal.SIGKILL)
        os.kill(both["zygote"], signal.SIGKILL)
        await driver.gone(*both["under"], both["keeper"], both["zygote"])

    killed = await driver.worker("six")
    driver.process.kill()
    await driver.gone(*killed["under"], killed["keeper"], killed["zygote"])
    assert not driver.left()


@pytest.mark.parametrize("mode", ["namespaces", "session"])
async def test_a_node_that_is_the_first_process_reaps(mode):
    """A node that is the first process of a container collects the keepers of a zygote that has died."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or linux.namespaces() == "session":
        pytest.skip("no such container can be made here")
    driver = Driver(None, mode, within=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    try:
        assert (await driver.said())["mode"] == (linux.namespaces() if mode == "namespaces" else "session")
        driver.tell("start", "one")
        await driver.said()
        driver.tell("orphan", "one")
        assert await driver.said() == {"pid": 1, "children": []}
    finally:
        driver.close()
