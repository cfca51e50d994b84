"""Promises about the program as a whole: exit codes, help, and what works without a node."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys

import pytest

import piecework as package
from piecework.run.link_server import LinkServer
from piecework.store.lockfile import LockFile


def test_the_version(run):
    """`--version` prints it."""
    assert run("--version").out == f"piecework {package.__version__}\n"


def test_the_package_is_the_command(tmp_path):
    """`python -m piecework` is the command, with its exit codes."""
    asked = [sys.executable, "-m", "piecework", "runs", "list", "--store", "nonsense:"]
    told = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr.startswith("piecework: ")


def test_help_names_the_commands(run):
    """`--help` lists all commands."""
    out = run("--help").out
    assert all(name in out for name in ("serve", "demo", "doctor", "events", "runs", "pieces"))


def test_help_of_a_command(run):
    """Each command tells its options."""
    assert "--every-seconds" in run("pieces", "add", "--help").out


def test_the_demo_is_there(run):
    """`demo` is one of the commands."""
    assert "newsroom" in run("demo", "--help").out


def test_without_a_node(run, tmp_path):
    """A command that needs a node says how to start one."""
    answer = run("runs", "list", "--store", f"sqlite:///{tmp_path}/store.db")
    assert answer.code == 1
    assert "piecework serve MODULE:APP" in answer.err


def test_the_store_of_an_app(run, tmp_path, monkeypatch):
    """Where nothing names a store, it is the named app's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner.py").write_text("from piecework import App\napp = App('x', store='sqlite:///mine.db')\n")
    monkeypatch.setenv("PIECEWORK_APP", "owner:app")
    assert f"{tmp_path}/mine.db" in run("runs", "list").err


def test_the_store_of_a_pyproject(run, tmp_path, monkeypatch):
    """`[tool.piecework] store` in the working folder names the store."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.piecework]\nstore = "sqlite:///ours.db"\n')
    assert f"{tmp_path}/ours.db" in run("runs", "list").err


def found(answer):
    return {item["name"]: item for item in answer.json["items"]}


def test_doctor_needs_no_node(run, tmp_path):
    """`doctor` tells about the machine when nothing is running, and fails for nothing."""
    answer = run("doctor", "--store", f"sqlite:///{tmp_path}/store.db", "--json")
    items = found(answer)
    assert answer.code == 0
    assert {"python", "platform", "sqlite", "workers", "extra mail", "store", "node"} <= set(items)
    assert "no node runs" in items["node"]["detail"]
    assert items["node"]["status"] == "warning"


def test_doctor_prints_a_table(run, tmp_path):
    """`doctor` prints a line for each thing it looked at."""
    out = run("doctor", "--store", f"sqlite:///{tmp_path}/store.db").out
    assert "subreaper" in out


@pytest.mark.covers("N428")
def test_doctor_names_what_an_import_leaves_behind(run, tmp_path):
    """`doctor --app` names what importing the app leaves behind and workers cannot share."""
    items = found(run("doctor", "--store", f"sqlite:///{tmp_path}/store.db", "--app", "careless:app", "--json"))
    assert "thread 'poller' in threading.Event.wait" in items["app import"]["detail"]


def test_doctor_tries_the_app(run, tmp_path):
    """`doctor --app` says whether the app can be imported; one that cannot is a failure."""
    store = ("--store", f"sqlite:///{tmp_path}/store.db", "--json")
    good, bad = run("doctor", "--app", "shop:app", *store), run("doctor", "--app", "broken:app", *store)
    assert (good.code, found(good)["app"]["status"]) == (0, "ok")
    assert (bad.code, found(bad)["app"]["status"]) == (1, "failed")


def test_doctor_looks_at_the_store(run, tmp_path):
    """`doctor` fails for a database of something else, and does not touch it."""
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    before = (tmp_path / "other.db").read_bytes()
    answer = run("doctor", "--store", f"sqlite:///{tmp_path}/other.db", "--json")
    assert (answer.code, found(answer)["store"]["status"]) == (1, "failed")
    assert (tmp_path / "other.db").read_bytes() == before


class Silent:
    """A node that takes questions and never answers."""

    def __init__(self, store):
        self.store = store
        self.lock = LockFile(store)
        self.asked = asyncio.Event()
        self.server = LinkServer(self.answer, beside=store)

    async def answer(self, op, args):
        self.asked.set()
        await asyncio.Event().wait()

    async def __aenter__(self):
        self.lock.acquire()
        self.lock.describe(socket=str(await self.server.start()))
        return self

    async def __aexit__(self, *_):
        await self.server.stop(grace_seconds=0)
        self.lock.release()


@pytest.fixture
async def silent(tmp_path):
    async with Silent(tmp_path / "store.db") as silent:
        yield silent


@pytest.fixture
def start(silent, command):
    """Starts a command line in a process of its own."""

    async def start(*words):
        return await asyncio.create_subprocess_exec(
            *command, *words, "--store", f"sqlite:///{silent.store}", stderr=asyncio.subprocess.PIPE
        )

    return start


async def test_ctrl_c_ends_a_command(silent, start):
    """Ctrl-C ends a waiting command with exit code 130 and without a traceback."""
    process = await start("runs", "list")
    await silent.asked.wait()
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_a_lost_publish_can_be_repeated(silent, start):
    """When the node goes away under a publish, the line has the id with which repeating it is harmless."""
    process = await start("events", "publish", "order.placed")
    await silent.asked.wait()
    for peer in list(silent.server._peers):
        peer.cut()
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"with --id" in err
    assert err.count(b"\n") == 1
