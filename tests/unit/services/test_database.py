from __future__ import annotations

import asyncio
import copy
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from piecework.errors import (
    ClosedError,
    DatabaseError,
    DuplicateKeyError,
    InvalidStateError,
    NotFoundError,
    PieceworkError,
    ValidationError,
)
from piecework.services.database import Database
from piecework.services.tables import WorkspaceDatabase

ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"


async def test_an_inserted_row_comes_back_as_it_is_stored(db):
    """insert answers the row as stored: made keys and defaults are in it."""
    row = await db.users.insert(name="Ada")
    assert row.as_dict() == {
        "id": 1, "name": "Ada", "email": None, "role": "reader", "born_at": None, "settings": None
    }  # fmt: skip


async def test_where_matches_by_equality(db):
    """Every condition of a where has to hold, and chained ones too."""
    await db.users.insert(name="Ada", role="admin")
    await db.users.insert(name="Bob", role="admin")
    await db.users.insert(name="Bob")
    found = await db.users.where(role="admin").where(name="Bob").all()
    assert [row.id for row in found] == [2]


async def test_a_query_is_not_changed_by_narrowing_it(db):
    """A collection is immutable: where makes another one."""
    await db.users.insert(name="Ada")
    everybody = db.users
    everybody.where(name="nobody")
    assert await everybody.count() == 1


async def test_none_is_null(db):
    """None asks for NULL."""
    await db.users.insert(name="Ada", email="ada@example.org")
    await db.users.insert(name="Bob")
    assert [row.name for row in await db.users.where(email=None).all()] == ["Bob"]


@pytest.mark.parametrize(
    ("emails", "names"), [(["a"], ["Ada"]), (("a", None), ["Ada", "Cy"]), ({None}, ["Cy"]), ([], [])]
)
async def test_a_list_is_any_of_its_values(db, emails, names):
    """A list is any of its values, None among them is NULL, and an empty list is no row at all."""
    for name, email in (("Ada", "a"), ("Bob", "b"), ("Cy", None)):
        await db.users.insert(name=name, email=email)
    assert [row.name for row in await db.users.where(email=emails).all()] == names


async def test_rows_come_in_the_order_of_the_primary_key(db):
    """first and all go by the primary key, whatever the order of insertion."""
    for key in (3, 1, 2):
        await db.users.insert(id=key, name=f"n{key}")
    assert [row.id for row in await db.users.all()] == [1, 2, 3]
    assert (await db.users.first()).id == 1


async def test_first_of_nothing_is_none(db):
    """first answers None when no row matches."""
    assert await db.users.where(id=7).first() is None


async def test_update_tells_how_many_rows_it_changed(db):
    """update changes the rows of its collection, no others, and counts them."""
    for name in ("Ada", "Bob", "Cy"):
        await db.users.insert(name=name)
    assert await db.users.where(name=["Ada", "Bob"]).update(role="admin", email=None) == 2
    assert [row.role for row in await db.users.all()] == ["admin", "admin", "reader"]


async def test_delete_tells_how_many_rows_it_removed(db):
    """delete removes the rows of its collection, no others, and counts them."""
    for name in ("Ada", "Bob"):
        await db.users.insert(name=name)
    assert await db.users.where(name="Ada").delete() == 1
    assert [row.name for row in await db.users.all()] == ["Bob"]


async def test_insert_missing_leaves_the_row_that_is_there_alone(db):
    """insert_missing answers None and changes nothing when a row with the same unique key is there."""
    assert (await db.users.insert_missing(name="Ada", email="a")).name == "Ada"
    assert await db.users.insert_missing(name="Eve", email="a") is None
    assert [row.name for row in await db.users.all()] == ["Ada"]


async def test_insert_missing_does_not_hide_other_constraints(db):
    """insert_missing overlooks taken keys only: a NOT NULL that does not hold is told."""
    with pytest.raises(ValidationError, match=r"users\.name"):
        await db.users.insert_missing(email="a")


async def test_a_taken_key_is_a_duplicate(db):
    """A unique key that is taken is told with table and column, and nothing is written."""
    await db.users.insert(name="Ada", email="a")
    with pytest.raises(DuplicateKeyError, match=r"insert users: .*users\.email") as caught:
        await db.users.insert(name="Eve", email="a")
    assert caught.value.table == "users"
    assert await db.users.count() == 1


async def test_an_unknown_table_is_told_with_near_names(db):
    """A table that is not there is told with those whose names are near."""
    with pytest.raises(NotFoundError, match="no table 'usres': did you mean 'users'"):
        await db.usres.all()


@pytest.mark.parametrize(
    "use",
    [
        lambda users: users.where(nmae="Ada").first(),
        lambda users: users.insert(nmae="Ada"),
        lambda users: users.update(nmae="Ada"),
    ],
)
async def test_an_unknown_column_is_told_with_near_names(db, use):
    """A column that is not there is told with those whose names are near."""
    with pytest.raises(NotFoundError, match="no column of users 'nmae': did you mean 'name'"):
        await use(db.users)


async def test_tables_and_columns_made_since_are_found(db, tmp_path):
    """A table or a column that another process made since the tables were read is found."""
    await db.users.count()
    with sqlite3.connect(tmp_path / "app.db") as other:
        other.execute("create table posts (id integer primary key, title text)")
        other.execute("alter table users add column nick text")
    other.close()
    assert await db.posts.count() == 0
    assert await db.users.where(nick="x").count() == 0


async def test_tables_changed_by_run_are_read_anew(db):
    """A column that run() takes away is not asked for any more."""
    await db.users.count()
    await db.run("alter table users drop column role")
    assert "role" not in (await db.users.insert(name="Ada")).as_dict()


async def test_a_row_tells_its_columns(db):
    """A column that a row does not have is an AttributeError with those whose names are near."""
    row = await db.users.insert(name="Ada")
    assert (row["name"], repr(row)[:22]) == ("Ada", "<users id=1 name='Ada'")
    assert copy.copy(row).name == "Ada"
    with pytest.raises(AttributeError, match="users has no column 'emial': did you mean email"):
        _ = row.emial


async def test_moments_are_aware_and_utc(db):
    """A moment is stored as UTC and comes back aware, whatever zone it was given in."""
    paris = timezone(timedelta(hours=2))
    row = await db.users.insert(name="Ada", born_at=datetime(2026, 1, 1, 2, tzinfo=paris))
    assert row.born_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert row.born_at.tzinfo is UTC
    assert (await db.users.where(born_at=row.born_at).count()) == 1


async def test_a_moment_without_a_zone_is_refused(db):
    """A datetime without a time zone is refused: nobody knows which moment it is."""
    with pytest.raises(ValidationError, match="no time zone"):
        await db.users.insert(name="Ada", born_at=datetime(2026, 1, 1))  # noqa: DTZ001 - the case under test


async def test_json_columns_hold_values(db):
    """A column of type JSON takes and brings values, and None is NULL there too."""
    await db.users.insert(name="Ada", settings={"tags": [1, None]})
    await db.users.insert(name="Bob", settings=None)
    assert [row.settings for row in await db.users.all()] == [{"tags": [1, None]}, None]
    assert await db.users.where(settings=None).count() == 1


@pytest.mark.parametrize("name", [object(), 2**70, "\ud800"])
async def test_a_value_that_does_not_fit_is_refused(db, name):
    """A value that the database cannot hold is a ValidationError that names the table."""
    with pytest.raises(ValidationError, match="insert users: "):
        await db.users.insert(name=name)


async def test_run_takes_sql_as_it_is(db):
    """run() takes SQL with named parameters, commits it, and answers its rows."""
    assert await db.run("insert into users (name) values (:name)", name="Ada") == []
    (row,) = await db.run("select name, length(name) as size from users where name = :name", name="Ada")
    assert (row.name, row.size) == ("Ada", 3)


@pytest.mark.parametrize(("sql", "params"), [("select :a", {}), ("select 1", {"b": 1}), ("select 1; select 2", {})])
async def test_run_refuses_what_is_no_single_statement(db, sql, params):
    """run() says which parameter is missing or too many, and refuses a second statement."""
    with pytest.raises(ValidationError):
        await db.run(sql, **params)


async def test_a_statement_of_sql_that_is_wrong_is_told(db):
    """An error in SQL names the statement, as data too."""
    with pytest.raises(PieceworkError, match="selct") as caught:
        await db.run("selct 1")
    assert (caught.value.verb, caught.value.table) == ("run", "selct 1")


async def test_no_statement_leaves_a_transaction_open(db):
    """A BEGIN by hand is refused and rolled back, so that the connection's next user is not inside it."""
    with pytest.raises(InvalidStateError, match="rolled back"):
        await db.run("begin immediate")
    await db.users.insert(name="Ada")


async def test_foreign_keys_are_checked(db):
    """A row that refers to none is refused."""
    await db.run("create table posts (id integer primary key, user_id integer references users (id))")
    with pytest.raises(ValidationError, match="FOREIGN KEY"):
        await db.posts.insert(user_id=7)


async def test_tables_whose_names_are_methods_are_reached_by_name(db):
    """table() reaches every table, those too that a method hides."""
    await db.run("create table run (id integer primary key)")
    assert (await db.table("run").insert()).id == 1


async def test_inserting_into_a_query_is_refused(db):
    """insert on a narrowed collection is refused: its conditions would be forgotten."""
    with pytest.raises(InvalidStateError, match="where name='Ada'"):
        await db.users.where(name="Ada").insert(email="a")


async def test_concurrent_statements_share_the_pool(database, db):
    """More statements at once than connections wait their turn, and every lease ends with its statement."""
    await asyncio.gather(*(db.users.insert(name=f"n{i}") for i in range(50)))
    assert await db.users.count() == 50
    assert database.leased == 0


async def test_a_write_of_another_process_is_waited_for(db, tmp_path):
    """A statement waits while another process writes, and goes on when it is done."""
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    other.execute("begin immediate")
    waiting = asyncio.create_task(db.users.insert(name="Ada"))
    assert await db.users.count() == 0
    other.execute("commit")
    other.close()
    assert (await waiting).name == "Ada"


async def test_a_database_that_stays_locked_is_told(db, tmp_path, monkeypatch):
    """A writer that never ends is told with the table, the statement and what to do."""
    monkeypatch.setattr("piecework.services.sqlite.BUSY_TIMEOUT_SECONDS", 0)
    impatient = Database(f"sqlite:///{tmp_path / 'app.db'}")
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(DatabaseError, match=r"insert users: .*locked.*keep transactions short"):
        await WorkspaceDatabase(impatient, closed=lambda: False).users.insert(name="Ada")
    other.close()
    await impatient.close()


async def test_a_cancelled_statement_is_stopped_before_its_caller_goes(database, db):
    """Cancelling the caller interrupts the statement; when the caller has gone nothing of it runs."""
    endless = asyncio.create_task(db.run(ENDLESS))
    while database.leased == 0:
        await asyncio.sleep(0)
    endless.cancel()
    await asyncio.wait([endless])
    assert endless.cancelled()
    assert database.leased == 0
    await db.users.insert(name="Ada")


async def test_a_hung_statement_holds_its_lease_but_not_its_caller(database):
    """A caller that is cancelled twice goes at once; the connection is lent again only when the statement has ended."""
    started, released = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        released.wait()

    await database.schema()
    hung = asyncio.create_task(database.pool.run(lambda session: session.do(hang), holder="test"))
    while not started.is_set():
        await asyncio.sleep(0)
    for _ in range(2):
        hung.cancel()
        await asyncio.sleep(0)
    assert (await asyncio.wait([hung]))[0] == {hung}
    assert database.leased == 1
    released.set()
    await database.close()
    assert database.leased == 0


async def test_a_closed_workspace_has_no_database(database, db):
    """A query that is used after its workspace has closed is refused, and the error names the workspace."""
    closed = False
    users = WorkspaceDatabase(database, closed=lambda: closed, workspace_id="w7").users
    assert await users.count() == 0
    closed = True
    with pytest.raises(ClosedError, match="w7"):
        await users.count()


async def test_a_closed_database_refuses(database, db):
    """close() waits for what is under way, may be called again, and refuses what comes after."""
    await db.users.count()
    under_way = asyncio.create_task(db.users.insert(name="Ada"))
    while database.leased == 0:
        await asyncio.sleep(0)
    await asyncio.gather(database.close(), database.close())
    assert (await under_way).name == "Ada"
    with pytest.raises(ClosedError):
        await db.users.count()


async def test_a_database_that_cannot_be_opened_is_told(tmp_path):
    """A file that cannot be opened, or is no database, is told with its path, and no connection is kept."""
    (tmp_path / "text").write_text("no database " * 100)
    for path in (tmp_path / "nowhere" / "a.db", tmp_path / "text"):
        database = Database(f"sqlite:///{path}")
        with pytest.raises(DatabaseError, match=path.name):
            await database.schema()
        assert database.leased == 0
        await database.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://u:geheim@h/d", "sqlite:///a?mode=ro"])
def test_a_database_url_of_another_kind_is_refused(url):
    """A URL that is no SQLite file is refused, and a password in it is not repeated."""
    with pytest.raises(ValidationError) as caught:
        Database(url)
    assert "geheim" not in str(caught.value)


def test_sqlalchemy_is_imported_on_first_use_only():
    """Importing what ws.database is made of does not import SQLAlchemy."""
    code = "import sys, piecework.services.rows, piecework.services.database; print('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_hung_statement_does_not_hold_up_the_exit(tmp_path):
    """The interpreter exits while a statement hangs."""
    code = f"""
import asyncio, os, threading
from piecework.services.database import Database
async def main():
    database = Database("sqlite:///{tmp_path / "a.db"}")
    started = threading.Event()
    def hang():
        started.set()
        threading.Event().wait()
    hung = asyncio.create_task(database.pool.run(lambda session: session.do(hang), holder="test"))
    while not started.is_set():
        await asyncio.sleep(0)
    for _ in range(2):
        hung.cancel()
        await asyncio.sleep(0)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=True).stderr == b""
