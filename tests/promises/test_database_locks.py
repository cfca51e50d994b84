# ruff: noqa: SIM117 - what raises is the end of a transaction or of a lock, which has a body
from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE

import pytest

from piecework.errors import DatabaseError, DeadlockError, TimeoutExceededError, ValidationError
from piecework.services import advisory
from piecework.services.database import Database
from piecework.services.postgres import PostgresSession
from piecework.services.tables import WorkspaceDatabase

HOLDER = """
import asyncio, sys
from piecework.services.database import Database
from piecework.services.tables import WorkspaceDatabase
async def main():
    database = Database(sys.argv[1])
    db = WorkspaceDatabase(database, closed=lambda: False, workspace_id="elsewhere")
    async with db.lock("digest"):
        print("held", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await database.close()
asyncio.run(main())
"""


class Rooms:
    """Counts who is inside at once."""

    def __init__(self):
        self.inside = 0
        self.most = 0
        self.order = []

    async def visit(self, db, name, label=None, turns=5):
        """Goes in under a lock, stays for some turns of the loop, and goes out."""
        async with db.lock(name):
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(label)
            for _ in range(turns):
                await asyncio.sleep(0)
            self.inside -= 1


@pytest.fixture
def rooms():
    """A place that is to be visited by one at a time."""
    return Rooms()


@pytest.mark.covers("W38", "W13", "W71")
async def test_a_lock_here_and_one_in_a_child_exclude_each_other(users_app, rooms):
    """A lock in the current workspace and the same in a new one, awaited together, both come, one after the other."""
    async with users_app.workspace() as ws:

        async def child(ws):
            await rooms.visit(ws.database, "default")

        await asyncio.gather(rooms.visit(ws.database, "default"), ws.run_in_new_workspace(child))
    assert (rooms.most, len(rooms.order)) == (1, 2)


@pytest.mark.covers("W39")
async def test_tasks_of_one_workspace_exclude_each_other_in_order(db, rooms):
    """A lock has one holder among the tasks of a workspace, and those who wait come in the order of asking."""
    await asyncio.gather(*(rooms.visit(db, "digest", number) for number in range(8)))
    assert (rooms.most, rooms.order) == (1, list(range(8)))


@pytest.mark.covers("W40")
async def test_a_holder_takes_its_lock_again_at_once(db):
    """The task that holds a lock takes it again in the same workspace, and it is free after the outermost end."""
    async with db.lock("digest"):
        async with db.lock("digest"):
            pass
        assert list(db.access.database.locks.held) == ["digest"]
    assert db.access.database.locks.held == {}


@pytest.mark.covers("W41")
async def test_a_holder_that_awaits_a_child_that_locks_is_told(users_app):
    """Who holds a lock and awaits a child that wants it gets DEADLOCK at once, with the names of both."""

    async def child(ws):
        async with ws.database.lock("digest"):
            raise AssertionError

    async with users_app.workspace() as ws:
        async with ws.database.lock("digest"):
            with pytest.raises(DeadlockError) as caught:
                await ws.run_in_new_workspace(child)
        assert ws.id in caught.value.holder
        assert caught.value.waiter not in caught.value.holder
        assert caught.value.holder in str(caught.value)
        assert caught.value.waiter in str(caught.value)
        async with ws.database.lock("digest"):
            pass


async def test_locks_in_a_circle_are_refused(db):
    """Two tasks that each want what the other holds do not wait for ever: the second is refused, the first goes on."""
    both = asyncio.Barrier(2)

    async def take(first, second):
        async with db.lock(first):
            await both.wait()
            async with db.lock(second):
                return "done"

    ended = await asyncio.gather(take("a", "b"), take("b", "a"), return_exceptions=True)
    assert sorted(map(type, ended), key=str) == [DeadlockError, str]


@pytest.mark.covers("W42")
async def test_a_spawned_child_waits_for_the_lock(users_app):
    """A child that nobody awaits waits for the lock and has it when the parent lets go."""
    order = []

    async def child(ws):
        async with ws.database.lock("digest"):
            order.append("child")

    async with users_app.workspace() as ws:
        async with ws.database.lock("digest"):
            handle = ws.spawn_in_new_workspace(child)
            await asyncio.sleep(0)
            order.append("parent")
        await handle.result()
    assert order == ["parent", "child"]


@pytest.mark.covers("W91")
async def test_a_lock_keeps_nobody_from_reading_or_writing(users_app):
    """While one workspace holds a lock, others read, write and take locks of other names."""

    async def other(ws):
        await ws.database.users.insert(name="Ada")
        async with ws.database.lock("other"):
            return await ws.database.users.count()

    async with users_app.workspace() as ws:
        async with ws.database.lock("digest"):
            assert await ws.run_in_new_workspace(other) == 1
            assert ws.database.status.leased == 0


async def test_a_lock_that_does_not_come_is_told(db):
    """The error of a lock that does not come in time names the lock and its holder; later it can be had."""
    inside, done = asyncio.Event(), asyncio.Event()

    async def hold():
        async with db.lock("digest"):
            inside.set()
            await done.wait()

    task = asyncio.create_task(hold(), name="the holder")
    await inside.wait()
    with pytest.raises(TimeoutExceededError, match=r"lock 'digest' .*held by .*the holder") as caught:
        async with db.lock("digest", timeout_seconds=0.01):
            raise AssertionError
    assert caught.value.lock == "digest"
    done.set()
    await task
    async with db.lock("digest"):
        pass


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_a_cancel_at_any_moment_leaves_no_lock_behind(db, turns):
    """Wherever the cancel comes, the lock can be had afterwards, by whoever waits."""
    tasks = [asyncio.create_task(Rooms().visit(db, "digest")) for _ in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert tasks[2].exception() is None
    async with db.lock("digest", timeout_seconds=10):
        pass
    assert db.access.database.locks.held == {}


@pytest.mark.parametrize(
    ("name", "seconds"), [("", 1), (7, 1), ("x" * 201, 1), ("x", 0), ("x", -1), ("x", float("nan"))]
)
async def test_a_lock_that_makes_no_sense_is_refused(db, name, seconds):
    """The name of a lock is a text, and its time is positive."""
    with pytest.raises(ValidationError):
        db.lock(name, timeout_seconds=seconds)


async def test_any_text_names_a_lock(db):
    """Whatever is in a name, it is the name of a lock and nothing else."""
    for name in ("../../etc/passwd", "a/b", "x'; drop table users; --", "\x00", "ü\ud800"):
        async with db.lock(name):
            pass
    assert await db.users.count() == 0


@pytest.mark.covers("W115")
@pytest.mark.parametrize("ends", ["lets go", "is killed"])
async def test_processes_exclude_each_other(database_url, ends):
    """A lock excludes other processes, whose error names the holder; it is free when that one lets go or is killed."""
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, database_url, stdin=PIPE, stdout=PIPE)
    database = Database(database_url)
    db = WorkspaceDatabase(database, closed=lambda: False, workspace_id="here")
    try:
        assert await holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutExceededError, match=r"held by .*(elsewhere|pid)"):
            async with db.lock("digest", timeout_seconds=0.05):
                raise AssertionError
        if ends == "is killed":
            holder.send_signal(signal.SIGKILL)
        else:
            holder.stdin.write(b"\n")
        async with db.lock("digest", timeout_seconds=20):
            pass
    finally:
        if holder.returncode is None and ends == "is killed":
            holder.kill()
        await holder.communicate()
        await database.close()
    assert holder.returncode == (-signal.SIGKILL if ends == "is killed" else 0)


@pytest.mark.engines("sqlite")
async def test_no_file_is_left_of_a_lock(db, tmp_path):
    """The file of a lock goes when the lock does."""
    async with db.lock("digest"):
        assert len(list((tmp_path / "app.db-locks").iterdir())) == 1
    assert list((tmp_path / "app.db-locks").iterdir()) == []


@pytest.mark.covers("W39")
async def test_who_gives_a_lock_back_may_ask_for_it_again_at_once(db, rooms):
    """Who asks before the next in turn has woken waits in turn."""
    async with db.lock("digest"):
        waiting = asyncio.ensure_future(rooms.visit(db, "digest", "waits"))
        await asyncio.sleep(0)
    await rooms.visit(db, "digest", "again")
    await waiting
    assert (rooms.order, rooms.most) == (["waits", "again"], 1)


@pytest.mark.covers("W115")
@pytest.mark.parametrize("url", ["sqlite:///{}/nowhere/app.db", "postgresql://nobody@127.0.0.1:1/app"])
async def test_a_lock_where_there_is_no_database_is_told(tmp_path, url):
    """A lock of a database that cannot be reached fails as a statement does, in our words."""
    database = Database(url.format(tmp_path))
    db = WorkspaceDatabase(database, closed=lambda: False, workspace_id="here")
    with pytest.raises(DatabaseError, match="lock 'digest'"):
        async with db.lock("digest"):
            pass
    await database.close()


@pytest.mark.engines("postgres")
@pytest.mark.covers("W115")
async def test_a_server_that_says_nothing_holds_nobody_for_ever(postgres_url, monkeypatch):
    """Where the server does not answer any more, taking a lock and giving one back come to an end, and say so."""
    monkeypatch.setattr(advisory, "ANSWER_SECONDS", 0.1)
    database = Database(postgres_url)
    db = WorkspaceDatabase(database, closed=lambda: False, workspace_id="here")

    async def nothing(session, statement, params=None):
        gone = asyncio.Event()
        session._connection.add_termination_listener(lambda _: gone.set())
        await gone.wait()
        raise ConnectionError("the connection was cut")

    with pytest.raises(DatabaseError, match="was lost while it was held"):
        async with db.lock("digest"):
            monkeypatch.setattr(PostgresSession, "execute", nothing)
    with pytest.raises(DatabaseError, match="lock 'digest'"):
        async with db.lock("digest"):
            pass
    monkeypatch.undo()
    async with db.lock("digest"):
        pass
    await database.close()
