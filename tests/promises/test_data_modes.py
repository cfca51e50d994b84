# ruff: noqa: PT012, ISC004 - what raises is the end of a workspace, which has a body; SQL is written in lines
from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from piecework.errors import (
    DatabaseError,
    DuplicateKeyError,
    InvalidStateError,
    NotFoundError,
    PieceworkError,
    ValidationError,
)
from piecework.services.templates import _create_all


async def count(ws):
    """How many users a workspace sees."""
    return await ws.database.users.count()


async def seed(ws):
    """A child with empty tables: what it counts before it adds one of its own."""
    before = await ws.database.users.count()
    await ws.database.users.insert(name="User 2")
    return before


@pytest.mark.covers("W17", "W53", "W54")
async def test_a_clean_child_sees_no_rows(users_app):
    """A workspace with data="clean" has the app's tables without rows; nobody else ever sees what it inserts."""
    async with users_app.workspace() as ws:
        await ws.database.users.insert(name="User 1")
        assert await ws.workspace(data="clean").run(seed) == 0
        assert await ws.database.users.count() == 1
        assert await ws.workspace(data="clean").run(count) == 0


@pytest.mark.covers("W53")
async def test_inside_a_clean_one_each_has_its_own(users_app):
    """What a clean workspace opens with `run_in_new_workspace` has an empty database of its own too."""
    async with users_app.workspace(data="clean") as ws:
        await ws.database.users.insert(name="User 1")
        assert await ws.run_in_new_workspace(seed) == 0
        assert await ws.database.users.count() == 1


@pytest.mark.covers("W56")
async def test_modes_differ_only_by_configuration(users_app):
    """The same script that counts 0 and 1 with data="clean" counts 1 and 2 with data="shared", which is the default."""

    async def script(ws):
        await ws.database.users.insert(name="User 1")
        return await ws.run_in_new_workspace(seed), await ws.database.users.count()

    assert await users_app.workspace(data="clean").run(script) == (0, 1)
    assert await users_app.run_in_new_workspace(script) == (1, 2)


@pytest.mark.covers("W76")
async def test_counters_start_over(users_app):
    """In each clean database the ids begin at one again, whatever was inserted before."""

    async def first_id(ws):
        return (await ws.database.users.insert(name="Ada")).id

    assert await users_app.run_in_new_workspace(first_id) == 1
    assert await users_app.run_in_new_workspace(first_id) == 2
    assert [await users_app.workspace(data="clean").run(first_id) for _ in range(3)] == [1, 1, 1]


class Stop(Exception):  # noqa: N818 - what a user's code raises
    """What ends a workspace in these tests."""


async def left(url):
    """How many databases of clean workspaces are on a server, templates too."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(
            "select count(*) from pg_database where starts_with(datname, 'piecework_data')"
        )
    finally:
        await connection.close()


@pytest.mark.covers("N196")
async def test_a_rollback_is_seen_by_nobody_and_leaves_nothing(users_app, engine):
    """What a workspace with data="rollback" writes, its forks and children see, nobody else, and its end undoes it."""
    async with users_app.workspace() as other:
        await other.database.users.insert(name="real")
        async with users_app.workspace(data="rollback") as ws:
            await ws.database.users.insert(name="User 1")
            async with ws.fork() as fork:
                assert await fork.database.users.count() == 2
            assert await ws.run_in_new_workspace(seed) == 2
            assert await ws.run_in_new_workspace(lambda ws: ws.run_in_new_workspace(count)) == 3
            assert await other.database.users.count() == 1
            assert await ws.workspace(data="shared").run(count) == 1
        assert await other.database.users.count() == 1
        await other.database.users.insert(name="written after it")
        assert other.database.status.leased == 0


@pytest.mark.covers("N196")
async def test_transactions_in_a_rollback_are_savepoints(users_app):
    """In a workspace with data="rollback" transactions are undone alone, and a failed statement breaks nothing."""
    async with users_app.workspace(data="rollback") as ws:
        async with ws.database.transaction():
            await ws.database.users.insert(name="Ada", email="a@b.c")
        with pytest.raises(Stop):
            async with ws.database.transaction():
                await ws.database.users.insert(name="Bob")
                async with ws.database.transaction():
                    await ws.database.users.insert(name="Cid")
                raise Stop
        with pytest.raises(DuplicateKeyError):
            await ws.database.users.insert(name="Dan", email="a@b.c")
        with pytest.raises(NotFoundError):
            await ws.database.users.where(nope=1).all()
        assert [user.name for user in await ws.database.users.all()] == ["Ada"]
    assert await users_app.run_in_new_workspace(count) == 0


@pytest.mark.covers("N196")
async def test_a_cancel_undoes_a_rollback(users_app):
    """A workspace with data="rollback" is undone however it ends: by its end, by an exception, by a cancel."""
    inside = asyncio.Event()

    async def work(ws):
        await ws.database.users.insert(name="Ada")
        inside.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(users_app.workspace(data="rollback").run(work))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(Stop):
        async with users_app.workspace(data="rollback") as ws:
            await seed(ws)
            raise Stop
    assert await users_app.run_in_new_workspace(seed) == 0


@pytest.mark.covers("N197")
@pytest.mark.parametrize("data", ["rollback", "clean"])
async def test_a_spawned_child_keeps_its_data(users_app, data):
    """A child that is spawned keeps its data until it has ended: a rollback waits for it."""
    go_on = asyncio.Event()

    async def later(ws):
        await go_on.wait()
        return await seed(ws)

    async def parent(ws):
        await ws.database.users.insert(name="User 1")
        asyncio.get_running_loop().call_soon(go_on.set)
        return ws.spawn_in_new_workspace(later)

    handle = await users_app.workspace(data=data).run(parent)
    assert await handle.result() == (1 if data == "rollback" else 0)
    assert await users_app.run_in_new_workspace(count) == 0


@pytest.mark.covers("N197")
async def test_a_job_works_on_the_data_that_it_was_queued_with(make_app, database_url, engine):
    """A job that this process runs works on the data of the workspace that queued it, and not on what was undone."""
    go_on = asyncio.Event()
    app = make_app(database=database_url)

    @app.job("count")
    async def counting(ws, wait: bool = False):
        if wait:
            await go_on.wait()
        return await seed(ws)

    async with app:
        async with app.workspace() as ws:
            key = "integer primary key" if engine == "sqlite" else "serial primary key"
            await ws.database.run(f"create table users (id {key}, name text)")
        async with app.workspace(data="rollback") as ws:
            await ws.database.users.insert(name="Ada")
            assert await ws.run_background_job("count") == 1
            late = await ws.enqueue_job("count", wait=True)
        go_on.set()
        with pytest.raises(PieceworkError, match="was rolled back when that was closed"):
            await app.job_value(late)
        assert await app.workspace(data="clean").run(lambda ws: ws.run_background_job("count")) == 0
        assert await app.run_in_new_workspace(count) == 0


async def test_a_process_of_its_own_has_no_part_in_it(users_app):
    """A process of its own is refused where the data is not shared, unless data="shared" says that it is meant."""
    with pytest.raises(ValidationError, match="choose one"):
        users_app.workspace(isolation="process", data="clean")
    with pytest.raises(ValidationError, match="'shared', 'rollback', 'clean'"):
        users_app.workspace(data="nonsense")
    async with users_app.workspace(data="rollback") as ws:
        with pytest.raises(InvalidStateError, match="data='shared'"):
            ws.workspace(isolation="process")
        assert ws.workspace(isolation="process", data="shared")


async def test_an_app_without_a_database_says_so(app, monkeypatch):
    """Without a database data="clean" and "rollback" are refused, and the place for a workspace is given back."""
    monkeypatch.delenv("PIECEWORK_DATABASE", raising=False)
    for data in ("clean", "rollback"):
        with pytest.raises(ValidationError, match="has no database"):
            async with app.workspace(data=data):
                pass
    assert app.workspaces.open == 0


@pytest.mark.covers("W54")
@pytest.mark.engines("postgres")
async def test_a_clean_database_is_dropped_however_its_workspace_ends(users_app, database_url):
    """The database of a clean workspace is gone after its end, an exception and a cancel; the template with the app."""
    assert await users_app.workspace(data="clean").run(seed) == 0
    assert await left(database_url) == 1
    with pytest.raises(Stop):
        async with users_app.workspace(data="clean") as ws:
            await seed(ws)
            assert await left(database_url) == 2
            raise Stop
    assert await left(database_url) == 1
    inside = asyncio.Event()

    async def work(ws):
        await seed(ws)
        inside.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(users_app.workspace(data="clean").run(work))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left(database_url) == 1
    await users_app._close_templates()
    assert await left(database_url) == 0


@pytest.mark.covers("W54")
@pytest.mark.engines("sqlite")
async def test_the_file_of_a_clean_workspace_is_removed(users_app):
    """The file of a clean workspace is gone after its end, with all that stood beside it."""
    with pytest.raises(Stop):
        async with users_app.workspace(data="clean") as ws:
            await seed(ws)
            async with ws.database.lock("one"):
                file = Path(ws.database.url.removeprefix("sqlite:///"))
                assert file.exists()
            raise Stop
    assert list(file.parent.iterdir()) == []
    await users_app._close_templates()
    assert not file.parent.exists()


KILLED = """
import asyncio, os, sys
from piecework import App

async def main():
    async with App("killed", store=f"sqlite:///{sys.argv[2]}/store.db", database=sys.argv[1]) as app:
        async with app.workspace(data="clean") as ws:
            await ws.database.users.insert(name="Ada")
            if sys.argv[3] == "die":
                os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.covers("N198")
async def test_what_a_killed_process_left_is_removed_by_the_next(users_app, engine, database_url, tmp_path):
    """Clean databases of a process that was killed are dropped by the next process that needs one."""
    with tempfile.TemporaryDirectory(prefix="pw-", dir="/tmp") as folder:

        async def process(end):
            command = [sys.executable, "-c", KILLED, database_url, folder, end]
            child = await asyncio.create_subprocess_exec(*command, env={**os.environ, "TMPDIR": folder})
            return await child.wait()

        async def databases():
            files = len(list(Path(folder).glob("piecework-data-*/*.db")))
            return files if engine == "sqlite" else await left(database_url)

        assert await process("die") == -signal.SIGKILL
        assert await databases() > 0
        assert await process("live") == 0
        assert await databases() == 0


@pytest.mark.covers("W80")
async def test_a_migration_that_fails_changes_nothing_for_others(users_app):
    """A migration in a transaction that fails leaves the tables, and its parent's connection, as they were."""

    async def migrate(ws):
        async with ws.database.transaction():
            await ws.database.run("alter table users add column city text")
            await ws.database.run("create table towns (id integer primary key)")
            raise Stop

    async with users_app.workspace() as ws:
        row = await ws.database.users.insert(name="Ada")
        with pytest.raises(Stop):
            await ws.run_in_new_workspace(migrate)
        await row.update(name="Bob")
        assert not hasattr(await ws.database.users.first(), "city")
        with pytest.raises(NotFoundError):
            await ws.database.towns.count()
        assert ws.database.status.leased == 0


@pytest.mark.covers("W80")
async def test_a_migration_is_seen_without_a_restart(users_app):
    """What a migration has made, workspaces that are opened later see at once, clean ones too."""

    async def migrate(ws):
        async with ws.database.transaction():
            await ws.database.run("alter table users add column city text")
            await ws.database.run("create table towns (id integer primary key)")

    async def look(ws):
        row = await ws.database.users.insert(name="Ada", city="London")
        return row.city, await ws.database.towns.count()

    async with users_app.workspace() as ws:
        assert await ws.workspace(data="clean").run(seed) == 0
        await ws.run_in_new_workspace(migrate)
        for data in ("shared", "rollback", "clean"):
            assert await ws.workspace(data=data).run(look) == ("London", 0)


@pytest.mark.engines("sqlite")
async def test_a_clean_copy_has_all_that_a_file_defines(users_app):
    """A clean copy has indexes, views, triggers and full-text tables, and the version that a migration tool noted."""

    async def define(ws):
        for text in (
            "create view names as select name from users",
            "create trigger twice after insert on users when new.name = 'Eve' begin"
            " insert into users (name) values ('Eve too'); end",
            "create virtual table words using fts5(word)",
            "create table alembic_version (version_num text primary key)",
            "insert into alembic_version values ('abc')",
            "create table odd (a text primary key, b integer) without rowid",
        ):
            await ws.database.run(text)

    async def look(ws):
        await ws.database.users.insert(name="Eve")
        await ws.database.run("insert into words values ('hello')")
        names = [row.name for row in await ws.database.run("select name from names order by name")]
        found = await ws.database.run("select word from words where words match 'hello'")
        versions = await ws.database.run("select version_num from alembic_version")
        return names, len(found), versions[0].version_num

    await users_app.run_in_new_workspace(define)
    assert await users_app.workspace(data="clean").run(look) == (["Eve", "Eve too"], 1, "abc")


@pytest.mark.engines("postgres")
async def test_a_clean_copy_has_all_that_a_database_defines(users_app):
    """A clean copy has types, sequences, defaults, keys, views, functions and triggers, and the version noted."""

    async def define(ws):
        for text in (
            "create schema shop",
            "create type mood as enum ('sad', 'glad')",
            "create domain positive as integer check (value > 0)",
            "create sequence numbers start 7",
            "create function plus_one(integer) returns integer language sql as 'select $1 + 1'",
            "create table shop.goods (id integer generated always as identity primary key,"
            " number integer default nextval('numbers'), next integer default plus_one(4), price positive,"
            " mood mood not null default 'glad', total integer generated always as (price * 2) stored,"
            " owner integer references public.users (id), unique (number, price))",
            "create index dear on shop.goods (price) where price > 100",
            "create view glad as select g.number from shop.goods g where g.mood = 'glad'",
            "create view gladder as select number from glad",
            "create function shout() returns trigger language plpgsql as"
            " 'begin new.name = upper(new.name); return new; end'",
            "create trigger loud before insert on users for each row execute function shout()",
            "create table alembic_version (version_num text primary key)",
            "insert into alembic_version values ('abc')",
            "insert into shop.goods (price) values (1)",
        ):
            await ws.database.run(text)

    async def look(ws):
        user = await ws.database.users.insert(name="eve")
        await ws.database.run("insert into shop.goods (price, owner) values (5, 1)")
        (row,) = await ws.database.run("select id, number, next, total, mood::text as mood from shop.goods")
        (glad,) = await ws.database.run("select number from gladder")
        (version,) = await ws.database.run("select version_num from alembic_version")
        return user.name, (row.id, row.number, row.next, row.total, row.mood), glad.number, version.version_num

    await users_app.run_in_new_workspace(define)
    assert await users_app.workspace(data="clean").run(look) == ("EVE", (1, 7, 5, 10, "glad"), 7, "abc")


@pytest.mark.engines("postgres")
async def test_what_cannot_be_copied_is_named(users_app):
    """A database with tables that have no text of their own is refused by their names, with the way out."""
    async with users_app.workspace() as ws:
        await ws.database.run("create table days (day date) partition by range (day)")
        with pytest.raises(DatabaseError, match=r"partitioned table public\.days.*migrate"):
            await ws.workspace(data="clean").run(count)


@pytest.mark.covers("N199")
@pytest.mark.parametrize("form", ["metadata", "plain", "async"])
async def test_an_app_says_what_makes_its_tables(make_app, store, engine, database_url, form):
    """Clean databases are made by `App(migrate=…)` where it is given: MetaData, a plain function or an async one."""
    metadata = sa.MetaData()
    sa.Table("users", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
    made = []

    async def migrate(url):
        made.append(url)
        await _create_all(metadata, url)

    given = {"metadata": metadata, "plain": lambda url: asyncio.run(migrate(url)), "async": migrate}[form]
    async with make_app(database=database_url, migrate=given) as app:
        assert [await app.workspace(data="clean").run(seed) for _ in range(2)] == [0, 0]
        assert len(made) == (0 if form == "metadata" else 1)
        with pytest.raises(NotFoundError):
            await app.run_in_new_workspace(count)


async def test_a_migration_that_cannot_make_the_tables_says_why(make_app, database_url):
    """When what makes the tables fails, the error has its reason and says that the app's own data was not touched."""

    def migrate(url):
        raise Stop("no such column")

    async with make_app(database=database_url, migrate=migrate) as app:
        with pytest.raises(DatabaseError, match=r"no such column.*not touched") as caught:
            await app.workspace(data="clean").run(count)
        assert isinstance(caught.value.__cause__, Stop)
    with pytest.raises(ValidationError, match="migrate"):
        make_app(migrate=3)
