"""The pytest plugin, by real runs of pytest inside of pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from piecework.testing.plugin import _Templates

APP = """
import sqlite3
from piecework import App

def migrate(url):
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("create table users (id integer primary key autoincrement, name text unique)")
    database.close()

app = App("shop", database="sqlite:///real.db", migrate=migrate, config={"site": "Shop"})

@app.job("greet")
async def greet(ws, name: str):
    await ws.send_mail(to="a@example.org", subject="Hello", text=name)
    return (await ws.database.users.insert(name=name)).id
"""


@pytest.fixture
def folder():
    """A short one: the socket of a store has to fit into an address; what is left in it is seen."""
    with tempfile.TemporaryDirectory(prefix="pw-", dir="/tmp") as name:
        yield Path(name)


def run(folder, text, *options, app=APP, ini="piecework_app = shop:app", **env):
    """Runs pytest on a file of tests and gives what it printed."""
    (folder / "shop.py").write_text(app)
    (folder / "test_shop.py").write_text(text)
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "piecework.testing", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "TMPDIR": str(folder), **env}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=28, check=False, env=environment)
    return done.stdout + done.stderr


def test_templates_that_cannot_be_removed_hold_nobody_up():
    """Where what is left at the end of a session cannot be removed, that is told, and no thread goes on."""

    class Gone:
        async def close(self):
            raise OSError("the server is gone")

    before = set(threading.enumerate())
    templates = _Templates()
    templates._of["app"] = Gone()
    with pytest.raises(OSError, match="the server is gone"):
        templates.close()
    assert set(threading.enumerate()) == before


@pytest.mark.covers("W55")
def test_a_test_is_a_plain_async_function(folder):
    """With the plugin a test is a plain async function, with a workspace as its fixture, in an app of its own."""
    text = """
from piecework import Workspace, current_workspace

async def test_one(workspace, app):
    assert current_workspace() is workspace
    assert (await workspace.database.users.insert(name="Ada")).id == 1
    assert await app.run_in_new_workspace(count) == 1

async def test_two(app):
    assert await Workspace.run(app, count) == 0
    assert await app.run_background_job("greet", name="Bob") == 1
    sent, = await app.runtime.list_all_runs(workflow="send-mail")
    await app.runtime.wait(sent.run_id)
    assert [mail["to"] for mail in app.mail.messages] == [["a@example.org"]]

async def count(ws):
    return await ws.database.users.count()
"""
    printed = run(folder, text)
    assert "2 passed" in printed, printed
    assert not (folder / "real.db").exists()
    assert not list(folder.glob("piecework-data-*"))


MANY = """
import pytest

@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("data", ["shared", "rollback", "clean"])
async def test_users(app, data, number):
    async with app.workspace(data=data) as ws:
        assert await ws.database.users.count() == 0
        assert (await ws.database.users.insert(name="Ada")).id == 1

@pytest.mark.parametrize("number", range(4))
async def test_workspace(workspace, clean_workspace, number):
    assert (await workspace.database.users.insert(name="Ada")).id == 1
    assert (await clean_workspace.database.users.insert(name="Ada")).id == 1

async def test_a_job(app):
    assert await app.run_background_job("greet", name="Ada") == 1
"""

SHUFFLE = """
import random

def pytest_collection_modifyitems(items):
    random.Random(SEED).shuffle(items)
"""


@pytest.mark.covers("W75", "W76")
@pytest.mark.parametrize("seed", [1, 2])
def test_random_order_and_parallel_workers(folder, seed):
    """Tests do not affect each other: they pass in any order and by parallel workers; ids begin at one in each."""
    (folder / "conftest.py").write_text(SHUFFLE.replace("SEED", str(seed)))
    printed = run(folder, MANY, "-n", "2")
    assert "41 passed" in printed, printed
    assert not list(folder.glob("piecework-data-*"))


@pytest.mark.covers("W78")
def test_the_environment_of_a_test_is_its_own(folder):
    """A marker says what a test's workspace is opened with: data, config, environment and variables of its own."""
    text = """
import pytest
from piecework.container.env import EnvService

def told(ws, env):
    return ws.config["site"], ws.environment, env.get("LIMIT")

env = EnvService({"LIMIT": "3"})
overrides = {"config": {"site": "Test"}, "environment": "test", "__env__": env}

async def seen(ws):
    return ws.config["site"], ws.environment, (await ws.require("__env__")).get("LIMIT")

@pytest.mark.workspace(data="clean", space="acme", overrides=overrides)
class TestMarked:
    async def test_marked(self, workspace, app):
        assert workspace.space == "acme"
        assert await seen(workspace) == await workspace.run_in_new_workspace(seen) == ("Test", "test", "3")
        assert await app.run_in_new_workspace(seen) == ("Shop", "development", None)
        await workspace.database.users.insert(name="Ada")
        assert await app.run_in_new_workspace(lambda ws: ws.database.users.count()) == 0

    @pytest.mark.workspace(space="other")
    async def test_nearer(self, workspace):
        assert workspace.space == "other" and workspace.config["site"] == "Test"

async def test_after(workspace, app, clock):
    assert await seen(workspace) == ("Shop", "development", None)
    assert app.clock is clock
    before = clock.now()
    await clock.advance(60)
    assert app.clock.now() == before + 60_000_000

async def test_real_clock(app):
    from piecework.clock import SystemClock
    assert type(app.clock) is SystemClock
"""
    printed = run(folder, text)
    assert "4 passed" in printed, printed


def test_an_app_of_a_fixture(folder):
    """A fixture `app` that returns an App which is not open is opened, before any other fixture gets it."""
    text = """
import pytest
from piecework import App

@pytest.fixture
def app(tmp_path):
    return App("mine", store=f"sqlite:///{tmp_path}/never.db")

@pytest.fixture
async def receipt(app):
    return await app.publish("a.b")

async def test_app(app, receipt, tmp_path):
    assert receipt.event_id
    assert "never.db" not in app.store.url

async def test_workspace(workspace, app):
    assert workspace.host is app

@pytest.mark.parametrize("app", [3])
async def test_of_others(app):
    assert app == 3
"""
    printed = run(folder, text, ini="anyio_mode = auto")
    assert "3 passed" in printed, printed


def test_no_app_is_told_with_the_ways_to_name_one(folder):
    """Without an app the error of a test names the three ways to give one."""
    printed = run(folder, "async def test_it(workspace): pass", ini="", PIECEWORK_APP="")
    assert "piecework_app = 'MODULE:ATTRIBUTE'" in printed
    assert "PIECEWORK_APP" in printed
    assert "fixture `app`" in printed


def test_the_guide_is_true(folder):
    """The tests of the testing guide pass as they are written, on the app that stands above them."""
    text = (Path(__file__).parents[2] / "docs" / "guides" / "testing.md").read_text("utf-8")
    app, *tests = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    printed = run(folder, "\n".join(tests), app=app)
    assert "6 passed" in printed, printed
