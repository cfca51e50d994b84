# ruff: noqa: PT012, SIM117 - what raises is the end of a transaction or of a lock, which has a body
from __future__ import annotations

import asyncio
import contextlib

import pytest

from piecework.errors import (
    DatabaseError,
    DeadlockError,
    InvalidStateError,
    NotFoundError,
    PoolExhaustedError,
    TransactionClosedError,
    ValidationError,
)
from piecework.services import transactions
from piecework.services.database import Database
from piecework.services.tables import WorkspaceDatabase


class Oops(Exception):  # noqa: N818 - what a user's code raises
    """What goes wrong in these tests."""


async def count(ws):
    """How many users there are, as another workspace sees it."""
    return await ws.database.users.count()


async def test_a_transaction_is_committed_at_its_end(users_app):
    """What is done inside a transaction is seen by others when it has ended, all of it at once."""
    async with users_app.workspace() as ws:
        async with ws.database.transaction():
            await ws.database.users.insert(name="Ada")
            assert await ws.database.users.count() == 1
            assert await ws.run_in_new_workspace(count) == 0
        assert await ws.run_in_new_workspace(count) == 1


async def freed(db):
    """Waits until every connection is back: what was cut off is undone before its connection is free."""
    while db.status.leased:
        await asyncio.sleep(0)


@pytest.mark.covers("W33")
async def test_an_exception_rolls_back(db):
    """Any exception undoes the transaction and goes on as itself."""
    with pytest.raises(Oops):
        async with db.transaction():
            await db.users.insert(name="Ada")
            raise Oops
    assert await db.users.count() == 0
    assert db.status.leased == 0


async def test_a_transaction_inside_is_a_savepoint(db):
    """A transaction inside another one is undone alone, and kept with the outer one only."""
    async with db.transaction():
        await db.users.insert(name="Ada")
        with pytest.raises(Oops):
            async with db.transaction():
                await db.users.insert(name="Bob")
                raise Oops
        async with db.transaction():
            await db.users.insert(name="Cy")
    with pytest.raises(Oops):
        async with db.transaction():
            async with db.transaction():
                await db.users.insert(name="Dan")
            raise Oops
    assert [row.name for row in await db.users.all()] == ["Ada", "Cy"]


async def test_tasks_started_inside_take_turns_on_its_connection(db):
    """Tasks that are started inside a transaction belong to it, also with transactions of their own."""

    async def insert(number):
        async with db.transaction():
            await db.users.insert(name=str(number))

    with pytest.raises(Oops):
        async with db.transaction():
            await asyncio.gather(*(insert(i) for i in range(10)), *(db.users.count() for _ in range(10)))
            assert db.status.leased == 1
            assert await db.users.count() == 10
            raise Oops
    assert await db.users.count() == 0


async def test_a_task_that_outlives_its_transaction_is_told(db):
    """A task that was started inside a transaction and goes on after it gets TRANSACTION_CLOSED."""
    ended = asyncio.Event()

    async def late():
        await ended.wait()
        with pytest.raises(TransactionClosedError, match="committed"):
            await db.users.insert(name="late")
        with pytest.raises(TransactionClosedError, match="committed"):
            async with db.transaction():
                raise AssertionError
        assert transactions.current(db) is None

    async with db.transaction():
        task = asyncio.create_task(late())
    ended.set()
    await task
    assert await db.users.count() == 0


async def test_siblings_have_transactions_of_their_own(db):
    """A task that was not started inside a transaction is outside of it."""
    inside, seen = asyncio.Event(), asyncio.Event()

    async def sibling():
        await inside.wait()
        found = await db.users.count()
        seen.set()
        return found

    task = asyncio.create_task(sibling())
    async with db.transaction():
        await db.users.insert(name="Ada")
        inside.set()
        await seen.wait()
    assert await task == 0


@pytest.mark.covers("W94")
async def test_the_end_of_a_workspace_undoes_what_is_open(users_app):
    """A transaction that is still open when its workspace ends is rolled back, and its connection is free."""
    opened, closed = asyncio.Event(), asyncio.Event()

    async def never_done(ws):
        with pytest.raises(TransactionClosedError):
            async with ws.database.transaction(), ws.database.transaction():
                await ws.database.users.insert(name="Ada")
                assert transactions.of_workspace(ws.id) is transactions.current(ws.database)
                opened.set()
                await closed.wait()

    async with users_app.workspace() as ws:
        task = asyncio.create_task(never_done(ws))
        await opened.wait()
    closed.set()
    await task
    async with users_app.workspace() as ws:
        assert await ws.database.users.count() == 0
        assert ws.database.status.leased == 0


@pytest.mark.parametrize("ends", ["kept", "undone"])
async def test_after_commit_is_after_the_outermost_commit(db, ends):
    """What waits for the commit is called after the outermost one, in order; a rollback drops it."""
    told = []

    async def slowly():
        told.append(("async", await db.users.count(), transactions.current(db)))

    async def work():
        async with db.transaction():
            async with db.transaction() as inner:
                await db.users.insert(name="Ada")
                assert transactions.current(db) is inner
                inner.after_commit(lambda: told.append("plain"))
                inner.after_commit(slowly)
            with pytest.raises(Oops):
                async with db.transaction() as undone:
                    undone.after_commit(lambda: told.append("never"))
                    raise Oops
            assert told == []
            if ends == "undone":
                raise Oops

    if ends == "kept":
        await work()
        assert told == ["plain", ("async", 1, None)]
    else:
        with pytest.raises(Oops):
            await work()
        assert told == []


async def test_what_fails_after_the_commit_is_raised_and_stops_nobody(db):
    """A failure after the commit is raised as itself, says that the commit stands, and the others are called."""
    told = []

    def fail():
        raise Oops

    with pytest.raises(Oops) as caught:
        async with db.transaction() as transaction:
            await db.users.insert(name="Ada")
            transaction.after_commit(fail)
            transaction.after_commit(lambda: told.append("called"))
    assert told == ["called"]
    assert "was committed" in caught.value.__notes__[0]
    assert await db.users.count() == 1


async def test_after_rollback_is_after_the_rollback_of_it_or_one_around_it(db):
    """What waits for a rollback is called once, after that of its own transaction or of one around it."""
    told = []
    with pytest.raises(Oops):
        async with db.transaction():
            async with db.transaction() as kept:
                kept.after_rollback(lambda: told.append(("kept", transactions.current(db))))
            with pytest.raises(Oops):
                async with db.transaction() as undone:
                    undone.after_rollback(lambda: told.append("undone"))
                    raise Oops
            assert told == ["undone"]
            raise Oops
    assert told == ["undone", ("kept", None)]
    async with db.transaction() as fine:
        fine.after_rollback(lambda: told.append("never"))
    assert len(told) == 2


async def test_what_fails_after_a_rollback_hides_nothing(db):
    """A callback that fails after a rollback is a note on why it was rolled back: the body's error, or the commit's."""

    def fail():
        raise Oops("the callback")

    with pytest.raises(ZeroDivisionError) as caught:
        async with db.transaction() as transaction:
            transaction.after_rollback(fail)
            raise ZeroDivisionError
    assert "Oops: the callback" in caught.value.__notes__[0]
    await db.run(
        "create table links (id integer primary key, next integer references links (id) deferrable initially deferred)"
    )
    with pytest.raises(ValidationError, match="commit") as refused:
        async with db.transaction() as transaction:
            transaction.after_rollback(fail)
            await db.links.insert(id=1, next=7)
    assert "Oops: the callback" in refused.value.__notes__[0]


async def test_what_fails_after_a_rollback_leaves_no_other_transaction_open(users_app):
    """A workspace that is closed rolls back every transaction left open in it, also when a callback of one fails."""
    inside = asyncio.Event()

    def fail():
        raise Oops

    async def outlive(ws):
        async with ws.database.transaction():
            await ws.database.users.insert(name="Ada")
            async with ws.database.transaction() as inner:
                inner.after_rollback(fail)
                inside.set()
                await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        async with users_app.workspace() as ws:
            task = asyncio.ensure_future(outlive(ws))
            await inside.wait()
    assert caught.group_contains(Oops)
    database = await users_app.container.require(Database)
    assert database.pool.status.leased == 0
    assert await users_app.run_in_new_workspace(count) == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("nested", [False, True])
async def test_a_cancel_rolls_back_and_leaves_the_connection_clean(db, nested):
    """Who is cancelled inside a transaction has undone it when it goes, and its connection is as good as new."""
    inside = asyncio.Event()

    async def work():
        async with db.transaction():
            await db.users.insert(name="Ada")
            if nested:
                async with db.transaction():
                    await db.users.insert(name="Bob")
                    inside.set()
                    await asyncio.Event().wait()
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await db.users.count() == 0
    await freed(db)


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_cancel_at_any_moment_leaves_all_or_nothing(db, turns):
    """Wherever in a transaction the cancel comes: all of it is there or nothing, and the connection is free again."""

    async def work():
        async with db.transaction():
            await db.users.insert(name="Ada")
            async with db.transaction():
                await db.users.insert(name="Bob")

    await db.users.count()
    task = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await db.users.count() in {0, 2}
    async with db.transaction():
        await db.users.insert(name="Cy")
    await freed(db)


@pytest.mark.covers("W85")
async def test_nested_workspaces_at_the_limit_of_the_pool_are_refused_at_once(engine, database_url):
    """When transactions hold all connections and wait for more, the last is refused with the chain; others go on."""
    size = 1 if engine == "sqlite" else 2  # of SQLite's transactions only one is open at a time
    database = Database(database_url, pool_size=size)
    inside = asyncio.Barrier(size)

    async def work(number):
        outer, inner = (WorkspaceDatabase(database, closed=lambda: False, workspace_id=f"{w}{number}") for w in "oi")
        async with outer.transaction():
            await inside.wait()
            return await inner.run("select 1 as one")

    ended = await asyncio.gather(*(work(number) for number in range(size)), return_exceptions=True)
    (refused,) = [error for error in ended if isinstance(error, BaseException)]
    assert isinstance(refused, PoolExhaustedError)
    number = ended.index(refused)
    assert refused.chain == [f"transaction of workspace o{number}", f"workspace i{number}"]
    await database.close()
    assert database.leased == 0


async def test_a_connection_that_never_comes_free_is_told(database_url):
    """Who waits for a connection for too long is told who holds them."""
    database = Database(database_url, pool_size=1, wait_seconds=0.01)
    one, two = (WorkspaceDatabase(database, closed=lambda: False, workspace_id=name) for name in ("one", "two"))
    inside, done = asyncio.Event(), asyncio.Event()

    async def hold():
        async with one.transaction():
            inside.set()
            await done.wait()

    holding = asyncio.create_task(hold())
    await inside.wait()
    with pytest.raises(PoolExhaustedError, match="transaction of workspace one"):
        await two.run("select 1")
    done.set()
    await holding
    await database.close()


async def test_a_child_that_writes_inside_the_callers_transaction(users_app, engine):
    """A child that writes inside the caller's transaction is refused at once on SQLite, and done on PostgreSQL."""

    async def write(ws):
        await ws.database.users.insert(name="child")

    async with users_app.workspace() as ws:
        async with ws.database.transaction():
            if engine == "sqlite":
                with pytest.raises(DeadlockError, match=r"workspace .*transaction of workspace"):
                    await ws.run_in_new_workspace(write)
            else:
                await ws.run_in_new_workspace(write)
            await ws.database.users.insert(name="parent")


@pytest.mark.covers("W80")
async def test_a_migration_that_fails_leaves_the_schema_as_it_was(users_app):
    """A migration in a transaction of its own leaves nothing when it fails, and is seen at once when it does not."""

    async def migrate(ws, *, fails):
        async with ws.database.transaction():
            await ws.database.run("create table notes (id integer primary key, body text)")
            if fails:
                raise Oops

    async def notes(ws):
        return await ws.database.notes.count()

    with pytest.raises(Oops):
        await users_app.run_in_new_workspace(migrate, fails=True)
    with pytest.raises(NotFoundError, match="no table 'notes'"):
        await users_app.run_in_new_workspace(notes)
    await users_app.run_in_new_workspace(migrate, fails=False)
    assert await users_app.run_in_new_workspace(notes) == 0


async def test_a_constraint_that_fails_at_the_commit_undoes_everything(db):
    """A constraint that is checked at the commit is told then, and nothing is left."""
    await db.run(
        "create table links (id integer primary key, next integer references links (id) deferrable initially deferred)"
    )
    with pytest.raises(ValidationError, match="commit"):
        async with db.transaction():
            await db.links.insert(id=1, next=7)
    assert await db.links.count() == 0
    await freed(db)


async def test_a_transaction_ended_by_hand_is_told(db):
    """ROLLBACK as a statement of SQL is no way out of a transaction: it is told, and nothing further is written."""
    with pytest.raises((DatabaseError, InvalidStateError), match=r"transaction\(\)"):
        async with db.transaction():
            await db.run("rollback")
    with pytest.raises((DatabaseError, InvalidStateError)):
        async with db.transaction():
            with contextlib.suppress(DatabaseError, InvalidStateError):
                await db.run("rollback")
            await db.users.insert(name="Ada")
    assert await db.users.count() == 0
    await freed(db)


@pytest.mark.covers("W74")
async def test_a_long_statement_holds_nobody_up(users_app, engine):
    """A statement that takes long has a connection of its own: the queries of other workspaces go on meanwhile."""
    endless = {
        "sqlite": "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n",
        "postgres": "select pg_sleep(600)",
    }

    async def heavy(ws):
        await ws.database.run(endless[engine])

    async with users_app.workspace() as ws:
        task = asyncio.create_task(users_app.run_in_new_workspace(heavy))
        while ws.database.status.leased == 0:
            await asyncio.sleep(0)
        assert await asyncio.gather(*(ws.run_in_new_workspace(count) for _ in range(20))) == [0] * 20
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await count(ws) == 0
