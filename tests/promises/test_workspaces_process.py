from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from piecework import Settings
from piecework.errors import CrashedError, InvalidStateError, RemoteError, TimeoutExceededError, ValidationError
from workers_seen import under_zygotes, who

from .apps import calls

pytestmark = [pytest.mark.engines("sqlite")]


@pytest.fixture
async def app(store, tmp_path):
    """The open app of `apps/calls.py`."""
    calls.app.configure(store=store, settings=Settings(space_grace_seconds=0.2))
    async with calls.app as app:
        yield app


async def there(path):
    """What another process writes to a file, as soon as it is there."""
    while not path.exists():
        await asyncio.sleep(0.01)
    return path.read_text()


@pytest.mark.covers("W70")
async def test_a_function_runs_in_a_process_of_its_own(app):
    """`isolation="process"` calls a function in a fresh process, with JSON values in and out; services are its own."""
    options = app.workspace(isolation="process", space="acme", user={"id": 7}, params={"n": [1]})
    first, second = await asyncio.gather(options.run(calls.tell), options.run(calls.tell))
    assert len({who(), first["process"], second["process"]}) == 3
    assert first["place"] == first["process"]
    assert {k: first[k] for k in ("space", "user", "params", "site")} == {
        "space": "acme",
        "user": {"id": 7},
        "params": {"n": [1]},
        "site": "News",
    }
    assert await options.run(calls.add, 1, b=2) == 3
    assert await options.run(calls.nothing) is None
    assert await options.map(calls.add, [3, 1, 2], limit=2) == [3, 1, 2]
    assert await options.spawn(calls.add, 4).result() == 4


async def test_what_it_publishes_is_published(app):
    """What a function publishes in a process of its own is durable like any other event."""
    assert await app.workspace(isolation="process").run(calls.announce, 7) == "told-7"
    assert (await app.publish("told", {"number": 7}, id="told-7")).event_id == "told-7"


async def test_it_may_wait_for_jobs_and_notify(app):
    """A function in a process of its own gets what a job returned, and what it has people told is kept."""
    new = app.workspace(isolation="process")
    assert await new.run(calls.wait_for_a_job, 4) == 8
    assert await new.run(calls.notify, "ada@example.org")


async def test_its_errors_are_told(app):
    """What a function raises over there comes back as RemoteError with its type and its traceback."""
    with pytest.raises(RemoteError, match="by nothing") as caught:
        await app.workspace(isolation="process").run(calls.fail, "by nothing")
    assert caught.value.type == "ZeroDivisionError"
    assert "in fail" in caught.value.trace


@pytest.mark.parametrize(("fn", "how"), [(calls.die, "SIGKILL"), (calls.leave, "status 3")])
async def test_the_end_of_its_process_is_an_error(app, fn, how):
    """A process that is killed, or exits, is an error that says how it ended; the app goes on."""
    with pytest.raises(CrashedError, match=how):
        await app.workspace(isolation="process").run(fn)
    assert await app.workspace(isolation="process").run(calls.add, 1) == 1


async def test_time_is_up_for_all_that_it_started(app, tmp_path):
    """A call whose time is up is killed together with the programs that it started."""
    await app.workspace(isolation="process").run(calls.add, 1)  # the zygote is there: the time is the call's own
    call = app.workspace(isolation="process", timeout_seconds=2).run(calls.hang, str(tmp_path / "pids"))
    task = asyncio.ensure_future(call)
    await there(tmp_path / "pids")
    with pytest.raises(TimeoutExceededError, match="hang"):
        await task
    assert not under_zygotes()


async def test_cancelling_the_caller_kills_it(app, tmp_path):
    """Cancelling who awaits a call kills it, and all that it started."""
    task = asyncio.ensure_future(app.workspace(isolation="process").run(calls.hang, str(tmp_path / "pids")))
    await there(tmp_path / "pids")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not under_zygotes()
    assert app.workspaces.open == 0


@pytest.mark.covers("W70")
async def test_a_cancelled_one_cleans_up(app, tmp_path):
    """A call that is cancelled and can hear it closes its services before its process ends."""
    options = app.workspace(isolation="process", params={"log": str(tmp_path / "log")})
    task = asyncio.ensure_future(options.run(calls.wait_for_cancel, begun=str(tmp_path / "begun")))
    await there(tmp_path / "begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Path(tmp_path / "log").read_text() == "closed"


async def test_what_cannot_be_called_there_is_refused(app):
    """Nested functions, lambdas, arguments and results that are no JSON values are refused, with the way out."""
    options = app.workspace(isolation="process")
    for fn in (lambda: 1, "text".upper):
        with pytest.raises(ValidationError, match="top of a module"):
            await options.run(fn)
    with pytest.raises(ValidationError, match="not JSON"):
        await options.run(calls.add, object())
    with pytest.raises(ValidationError, match=r"result of no_json.*not JSON"):
        await options.run(calls.no_json)
    with pytest.raises(InvalidStateError, match="runs a function"):
        async with options:
            pass
    with pytest.raises(RemoteError, match="process of its own") as caught:
        await options.run(calls.nested)
    assert caught.value.remote_code == "INVALID_STATE"


async def test_the_end_of_the_app_ends_them(store, tmp_path):
    """When the app ends, calls that nobody awaits are stopped, and nothing of them is left."""
    calls.app.configure(store=store, settings=Settings(close_timeout_seconds=0.05, space_grace_seconds=0.1))
    async with calls.app as app:
        app.workspace(isolation="process").spawn(calls.hang, str(tmp_path / "pids"))
        await there(tmp_path / "pids")
    assert not under_zygotes()
