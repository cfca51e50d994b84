from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import threading

import pytest

import piecework.blocking
from piecework import App, current_workspace
from piecework.errors import ClosedError, InvalidStateError, TimeoutExceededError
from piecework.workspace.opening import NewWorkspace
from piecework.workspace.workspace import Workspace

pytestmark = pytest.mark.engines("sqlite")


@pytest.fixture
def plain(store, database):
    """An app that is not open, with a service that has to be awaited; `plain.log` has what was closed."""
    app = App("plain", store=store, database=database)
    app.log = []

    @app.service(scope="run")
    async def desk():
        yield "desk"
        app.log.append("desk")

    return app


@pytest.fixture
def opened(plain):
    """The same, open, for synchronous callers."""
    with piecework.blocking.open(plain) as app:
        yield app


@pytest.mark.covers("W117")
def test_the_app_can_be_used_without_await(opened, plain):
    """`with piecework.blocking.open(app)` gives the app to plain code: the same calls without `await`."""
    assert opened.publish("told", {"n": 1}, id="told-1").event_id == "told-1"
    with opened.workspace(params={"n": 1}) as ws:
        assert (ws.params, ws.require("desk")) == ({"n": 1}, "desk")
        ws.database.run("create table notes (id integer primary key, n integer)")
        row = ws.database.notes.insert(n=3)
        assert (row.n, ws.database.notes.count()) == (3, 1)
        assert [found.n for found in ws.database.notes.where(n=3).all()] == [3]
    assert plain.log == ["desk"]
    with pytest.raises(ClosedError, match=ws.id):
        ws.require("desk")
    assert opened.runtime.list_all_runs() == []


def test_threads_that_have_ended_leave_nothing(opened):
    """A server may use a thread for each request: what served one is gone from the app's loop when it has ended."""

    async def tasks():
        return len([task for task in asyncio.all_tasks() if task.get_name() == "piecework-blocking"])

    before = opened.run_in_new_workspace(tasks)
    for _ in range(5):
        thread = threading.Thread(target=lambda: opened.settings)
        thread.start()
        thread.join()
    assert opened.run_in_new_workspace(tasks) == before


@pytest.mark.covers("W117")
def test_functions_get_workspaces_of_the_same_kind(opened):
    """Plain functions that are given to a blocking app get a workspace without `await`; async ones the usual one."""

    def child(ws, n, desk):
        return n, desk, ws.run_in_new_workspace(lambda ws: ws.id) != ws.id, type(ws.publish("told")).__name__

    async def asynchronous(ws):
        return await ws.require("desk")

    assert opened.run_in_new_workspace(child, 1) == (1, "desk", True, "Receipt")
    assert opened.map_in_workspaces(child, [1, 2])[1][0] == 2
    assert opened.spawn_in_new_workspace(child, 3).result()[0] == 3
    assert opened.workspace(space="acme").run(lambda ws: ws.space) == "acme"
    assert opened.run_in_new_workspace(asynchronous) == "desk"


@pytest.mark.covers("W117")
def test_what_a_thread_does_is_one_task(opened, plain):
    """What a thread calls is one task: what it enters holds for its later calls, and other threads are apart."""

    async def here():
        return asyncio.current_task(), current_workspace().id

    def look(ws):
        return ws.run_in_new_workspace(here)

    with opened.workspace(timeout_seconds=3600) as ws:
        first = opened._portal.call(here)
        assert first == opened._portal.call(here)
        assert first[1] == ws.id
        other = []
        thread = threading.Thread(target=lambda: other.append(opened.run_in_new_workspace(here)))
        thread.start()
        thread.join()
        assert other[0][0] is not first[0]
    with pytest.raises(TimeoutExceededError), opened.workspace(timeout_seconds=0.01) as ws:
        opened._portal.call(asyncio.Event().wait)


@pytest.mark.covers("W117")
@pytest.mark.parametrize("kind", [App, Workspace, NewWorkspace])
def test_names_and_signatures_are_the_same(opened, kind):
    """Every public method of an app and a workspace is there for plain callers, with the same name and signature."""
    with opened.workspace() as ws:
        blocking = {App: opened, Workspace: ws, NewWorkspace: opened.workspace()}[kind]
        names = [name for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
        assert len(names) >= 3
        for name in names:
            theirs = inspect.signature(getattr(blocking._target, name))
            assert inspect.signature(getattr(blocking, name)) == theirs
        assert set(dir(blocking)) == set(dir(blocking._target))


@pytest.mark.covers("W117")
def test_misuse_is_refused(plain):
    """Use after the end, and use on the app's own loop, are refused."""
    with piecework.blocking.open(plain) as app:

        async def on_the_loop():
            return app.publish("told")

        with pytest.raises(InvalidStateError, match="own event loop"):
            app.run_in_new_workspace(on_the_loop)
    with pytest.raises(ClosedError):
        app.publish("told")
    assert not [thread for thread in threading.enumerate() if thread.name == "piecework-blocking"]


@pytest.mark.covers("W117")
def test_a_thread_that_asks_while_the_app_is_closed_is_told(plain):
    """A thread that goes on using the app while another one closes it is refused, and never waits for ever."""
    told, started = [], threading.Event()

    def use(app):
        try:
            while True:
                started.set()
                assert app.name == "plain"
        except ClosedError as error:
            told.append(error)

    with piecework.blocking.open(plain) as app:
        threads = [threading.Thread(target=use, args=(app,), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
    for thread in threads:
        thread.join(20)
    assert len(told) == 4


PROGRAM = """
import asyncio, sys
import piecework.blocking
from piecework import App

app = App("script", store=sys.argv[1])

@app.service(scope="run")
async def desk():
    yield 1
    print("desk closed", flush=True)

async def waits(ws, desk):
    print("begun", flush=True)
    await asyncio.Event().wait()

try:
    with piecework.blocking.open(app) as blocking:
        blocking.run_in_new_workspace(waits)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.covers("W117")
def test_ctrl_c_closes_everything(store, tmp_path):
    """Ctrl-C cancels the call that is under way, closes its workspace and the app, and is raised then."""
    (tmp_path / "script.py").write_text(PROGRAM)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline() == "begun\n"
            program.send_signal(signal.SIGINT)
            assert program.communicate(timeout=20)[0] == "desk closed\ninterrupted\n"
        finally:
            program.kill()
    assert program.returncode == 0
