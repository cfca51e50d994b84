"""Whose file it is: one node at a time, and nothing is touched that is not ours."""

from __future__ import annotations

import asyncio
import os
import sqlite3

import pytest

from contracts.processes import HOLD, REFUSED
from piecework.errors import ClosedError, SchemaVersionError, StoreError, StoreFormatError, StoreLockedError
from piecework.store.lockfile import read_note
from piecework.store.migrate import APPLICATION_ID, migrations
from piecework.store.sqlite import SqliteStore, sqlite_path
from piecework.testing.verbs import Verbs, slot


async def opened(path):
    store = SqliteStore(path)
    await store.open()
    return store


async def test_a_second_node_of_this_process_is_refused(tmp_path):
    """One process cannot be a store's node twice; the error names it."""
    store = await opened(tmp_path / "state.db")
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} is the node"):
        await SqliteStore(tmp_path / "state.db").open()
    await store.close()


@pytest.mark.parametrize("alias", ["./state.db", "inner/../state.db", "link.db"])
async def test_a_second_name_of_the_file_is_the_same_file(tmp_path, monkeypatch, alias):
    """However the file is spelled, it has one node."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "state.db")
    store = await opened(tmp_path / "state.db")
    with pytest.raises(StoreLockedError):
        await SqliteStore(tmp_path / alias if alias == "link.db" else type(tmp_path)(alias)).open()
    await store.close()


async def test_another_process_is_refused_with_our_pid(tmp_path, process):
    """A second process is told which one is the node, and can open the store once that has let go."""
    store = await opened(tmp_path / "state.db")
    other = process(REFUSED, tmp_path / "state.db")
    assert other.line() == f"STORE_LOCKED {os.getpid()}"
    await store.close()
    assert process(REFUSED, tmp_path / "state.db").line() == "opened"


async def test_a_store_that_another_process_holds(tmp_path, process):
    """A store of another process is refused with that one's pid, and free as soon as it closes."""
    holder = process(HOLD, tmp_path / "state.db")
    assert holder.line() == "holding"
    with pytest.raises(StoreLockedError, match=f"process {holder.pid}") as caught:
        await SqliteStore(tmp_path / "state.db").open()
    assert caught.value.pid == holder.pid
    holder.go_on()
    assert holder.line() == "released"
    await (await opened(tmp_path / "state.db")).close()


async def test_a_killed_node_blocks_nobody(tmp_path, process):
    """A node that was killed leaves no lock behind."""
    holder = process(HOLD, tmp_path / "state.db")
    assert holder.line() == "holding"
    assert read_note(tmp_path / "state.db")["pid"] == holder.pid
    holder.kill()
    assert read_note(tmp_path / "state.db") == {}
    await (await opened(tmp_path / "state.db")).close()


async def test_the_note_says_who_the_node_is(tmp_path):
    """While a node has the store, its note tells pid and whatever the node added; afterwards it is empty."""
    store = await opened(tmp_path / "state.db")
    store.lock.describe(socket="/somewhere")
    assert (read_note(store.path)["pid"], read_note(store.path)["socket"]) == (os.getpid(), "/somewhere")
    await store.close()
    assert read_note(store.path) == {}


def test_a_note_that_cannot_be_read(tmp_path):
    """Rubbish in the lock file counts as no note."""
    (tmp_path / "state.db.lock").write_bytes(b"\xff{")
    assert read_note(tmp_path / "state.db") == {}


async def test_the_folder_is_made(tmp_path):
    """A store may be opened in a folder that is not there yet."""
    await (await opened(tmp_path / "a" / "b" / "state.db")).close()
    assert (tmp_path / "a" / "b" / "state.db").is_file()


async def test_a_folder_that_cannot_be_made(tmp_path):
    """A place that is no place is told with its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"state\.db cannot be opened"):
        await SqliteStore(tmp_path / "file" / "state.db").open()


@pytest.mark.parametrize(
    "content", [b"this is no database at all, only text" * 100, b"SQLite format 3\x00" + b"\xff" * 9000]
)
async def test_a_file_that_is_no_database(tmp_path, content):
    """A file that is no database is refused and stays as it is."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StoreFormatError, match=r"notes\.txt is not a store"):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
async def test_a_database_of_somebody_else(tmp_path, journal):
    """A database with other tables is refused by their names and stays as it is, byte for byte."""
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
    connection.execute("CREATE TABLE customers (id INTEGER)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreFormatError, match="customers"):
        await SqliteStore(path).open()
    assert path.read_bytes() == before


async def test_a_store_of_a_newer_version(tmp_path):
    """A store with a newer schema is refused with both numbers and stays as it is; the lock is let go."""
    path = tmp_path / "state.db"
    await (await opened(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError, match=f"version 999.* up to {migrations()[-1][0]}"):
        await SqliteStore(path).open()
    assert path.read_bytes() == before
    assert read_note(path) == {}


async def test_an_empty_file_becomes_a_store(tmp_path):
    """An empty file, as mktemp leaves it, is a new store."""
    (tmp_path / "state.db").write_bytes(b"")
    store = await opened(tmp_path / "state.db")
    await Verbs(store).start(slot())
    await store.close()
    connection = sqlite3.connect(tmp_path / "state.db")
    marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    connection.close()
    assert marks == [APPLICATION_ID, migrations()[-1][0]]


async def test_an_interrupted_migration_leaves_a_new_file(tmp_path, monkeypatch):
    """A migration that fails half way leaves nothing; the next start begins anew."""
    text = migrations()[0][1]
    monkeypatch.setattr("piecework.store.migrate.migrations", lambda: ((1, text + "\nCREATE TABLE runs (id TEXT);\n"),))
    with pytest.raises(StoreError, match="already exists"):
        await SqliteStore(tmp_path / "state.db").open()
    monkeypatch.undo()
    await (await opened(tmp_path / "state.db")).close()


async def test_what_was_stored_is_there_after_a_restart(tmp_path):
    """A store that is closed and opened again has all that it had."""
    store = await opened(tmp_path / "state.db")
    run_id = (await Verbs(store).start(slot())).run_id
    await store.close()
    store = await opened(tmp_path / "state.db")
    assert (await Verbs(store).run(run_id)).status == "queued"
    await store.close()


async def test_a_closed_store_says_so(tmp_path):
    """Closing twice is harmless; whatever is asked of a closed store is refused."""
    store = await opened(tmp_path / "state.db")
    await store.close()
    await store.close()
    with pytest.raises(ClosedError):
        await Verbs(store).start(slot())
    with pytest.raises(ClosedError):
        await store.read("list_pieces", {"space": None})
    with pytest.raises(ClosedError):
        await store.open()


async def test_a_store_that_was_never_opened(tmp_path):
    """Before it is opened a store takes nothing, and can be closed."""
    store = SqliteStore(tmp_path / "state.db")
    with pytest.raises(ClosedError):
        await Verbs(store).start(slot())
    await store.close()


async def test_close_finishes_what_was_submitted(tmp_path):
    """What was submitted before the close is decided and answered."""
    store = await opened(tmp_path / "state.db")
    verbs = Verbs(store)
    asked = [asyncio.ensure_future(verbs.start(slot())) for _ in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert sorted(answer.outcome for answer in await asyncio.gather(*asked)) == ["queued"] * 19 + ["started"]


@pytest.mark.parametrize("url", ["sqlite://state.db", "sqlite:///", "postgresql://host/db", "state.db", ""])
def test_an_address_that_names_no_file(url):
    """An address that is no SQLite file's is refused with the form that is expected."""
    with pytest.raises(ValueError, match="sqlite:///FILE"):
        sqlite_path(url)


def test_addresses():
    """Three slashes are a relative path, four an absolute one."""
    assert (str(sqlite_path("sqlite:///a/b.db")), str(sqlite_path("sqlite:////a/b.db"))) == ("a/b.db", "/a/b.db")
