"""Promises of `piecework store`: it needs no node, minds none that is there, and touches nothing that is not ours."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import sqlite3
import subprocess
from pathlib import Path

import psycopg
import pytest

import postgres_server
from piecework.errors import StoreError
from piecework.store.inbox import put_into_inbox
from piecework.store.looking import looking_at
from piecework.store.opening import store_for
from piecework.store.records import Inbox


@pytest.fixture
def store(run, engine_url):
    """The address of a store, just made."""
    assert run("store", "migrate", engine_url).code == 0
    return engine_url


@pytest.fixture
def refused(run):
    """Carries out a command line and expects that it fails with one line: its words."""

    def refused(*words, code=1):
        answer = run(*words)
        assert (answer.code, answer.out) == (code, "")
        assert answer.err.startswith("piecework: ")
        assert answer.err.count("\n") == 1
        return answer.err

    return refused


def execute(url, statement):
    """Carries out raw SQL on a store."""
    if url.startswith("sqlite:"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute(statement)
        connection.close()
        return
    with psycopg.connect(url, autocommit=True, options="-c search_path=piecework") as connection:
        connection.execute(statement)


def plant(url):
    """Plants a contradiction: a signal to a run that is not there."""
    value = "x'7b7d'" if url.startswith("sqlite:") else "'{}'"
    execute(url, f"INSERT INTO signals (run_id, number, patch, sent_at) VALUES ('nobody', 1, {value}, 1)")


def test_migrate_makes_a_store(run, engine_url):
    """`store migrate` makes a store; the second time there is nothing to do."""
    assert "made, schema version 1" in run("store", "migrate", engine_url).out
    assert "the newest there is" in run("store", "migrate", engine_url).out
    again = run("store", "migrate", engine_url, "--json").json
    assert again == {"from_version": 1, "schema_version": 1, "granted": None}


def test_the_store_may_be_named_otherwise(run, engine_url, monkeypatch):
    """The address may also come from --store, before or behind the command, or from PIECEWORK_STORE."""
    assert run("--store", engine_url, "store", "migrate").code == 0
    assert run("store", "check", "--store", engine_url).code == 0
    monkeypatch.setenv("PIECEWORK_STORE", engine_url)
    assert run("store", "info").code == 0


def test_info_tells_what_is_in_a_store(run, store):
    """`store info` tells engine, schema, size, rows and nodes."""
    execute(store, "INSERT INTO spaces (space, next_due, weight) VALUES ('acme', NULL, 1)")
    told = run("store", "info", store, "--json").json
    assert told["engine"] == ("sqlite" if store.startswith("sqlite:") else "postgresql")
    assert (told["schema_version"], told["newest_schema_version"]) == (1, 1)
    assert told["size_bytes"] > 0
    assert told["tables"]["spaces"] == 1
    assert told["tables"]["runs"] == 0
    assert (told["runs"], told["oldest_open_run"], told["nodes"], told["node_pid"]) == ([], None, [], None)
    out = run("store", "info", store).out
    assert "version 1" in next(line for line in out.splitlines() if line.startswith("schema"))
    assert "no runs" in out


def test_info_shows_no_password(run, store):
    """The address is shown without what is secret in it."""
    secret = store.replace("postgres@", "postgres:geheim@")
    for words in (("store", "info", secret), ("store", "info", secret, "--json")):
        answer = run(*words)
        assert answer.code == 0
        assert "geheim" not in answer.out + answer.err


@pytest.mark.parametrize("command", ["info", "check"])
def test_there_is_no_store(refused, engine_url, command):
    """Where there is no store, none is made, and the line says how."""
    assert "piecework store migrate" in refused("store", command, engine_url)
    if engine_url.startswith("sqlite:"):
        assert not Path(engine_url.removeprefix("sqlite:///")).exists()


def test_check_finds_nothing(run, store):
    """`store check` of a sound store says so and exits 0."""
    answer = run("store", "check", store)
    assert (answer.code, answer.out) == (0, "no contradiction found\n")
    assert run("store", "check", store, "--json").json == {"items": [], "next_cursor": None}


def test_check_lists_what_it_finds(run, store):
    """`store check` lists contradictions by their rule and exits 1."""
    plant(store)
    answer = run("store", "check", store)
    assert answer.code == 1
    assert "signal_without_run" in answer.out
    assert "run nobody" in answer.out
    told = run("store", "check", store, "--json")
    assert (told.code, told.json["items"][0]["rule"]) == (1, "signal_without_run")


@pytest.fixture
def role(postgres_url):
    """A role of its own in the server of this test."""
    name = f"Publisher {os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE ROLE "{name}" LOGIN')
        yield name
        connection.execute(f'DROP OWNED BY "{name}"')
        connection.execute(f'DROP ROLE "{name}"')


async def publish(url, role):
    """Publishes inside a transaction of a role, and answers whether it may also look."""
    async with await psycopg.AsyncConnection.connect(url, user=role) as connection:
        async with connection.transaction():
            await put_into_inbox(connection, Inbox(None, "evt-1", "x", None, b"{}", 1))
        try:
            await connection.execute("SELECT * FROM piecework.event_inbox")
        except psycopg.errors.InsufficientPrivilege:
            return False
        return True


def test_a_role_may_publish_and_no_more(run, postgres_url, role):
    """`store migrate --grant` makes a store and lets a role put events into it, not even look at them."""
    answer = run("store", "migrate", postgres_url, "--grant", role)
    assert answer.code == 0, answer.err
    assert f"role {role} may publish" in answer.out
    assert asyncio.run(publish(postgres_url, role)) is False
    assert run("store", "info", postgres_url, "--json").json["tables"]["event_inbox"] == 1


def test_a_role_may_not_publish_by_itself(run, postgres_url, role):
    """Without the grant it may not, and is told how."""
    run("store", "migrate", postgres_url)
    with pytest.raises(StoreError, match="--grant"):
        asyncio.run(publish(postgres_url, role))


def test_a_role_that_cannot_be_allowed(refused, postgres_url, role, tmp_path):
    """A role that is not there, and a file, which has none."""
    assert "no role 'nobody-here'" in refused("store", "migrate", postgres_url, "--grant", "nobody-here")
    assert "knows no roles" in refused("store", "migrate", f"sqlite:///{tmp_path}/s.db", "--grant", role)
    assert not (tmp_path / "s.db").exists()


def test_a_role_that_may_not_allow_others(run, refused, postgres_url, role):
    """Who does not own the store cannot let others publish."""
    run("store", "migrate", postgres_url)
    execute(postgres_url, f'GRANT USAGE ON SCHEMA piecework TO "{role}"')
    execute(postgres_url, f'GRANT SELECT ON ALL TABLES IN SCHEMA piecework TO "{role}"')
    other = postgres_url.replace("postgres@", f"{role.replace(' ', '%20')}@")
    assert "use the role that owns the store" in refused("store", "migrate", other, "--grant", role)


def names(folder):
    """What is in a folder, but for the files that SQLite itself keeps beside a database."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm")))


class Untouched:
    """A database of somebody else's, and whether it is as it was."""

    def __init__(self, url):
        self.url = url
        self.before = self.now()

    def now(self):
        if self.url.startswith("sqlite:"):
            return hashlib.sha256(Path(self.url.removeprefix("sqlite:///")).read_bytes()).hexdigest()
        with psycopg.connect(self.url) as connection:
            query = (
                "SELECT (SELECT array_agg(relname::text || relacl::text ORDER BY 1) FROM pg_class "
                "WHERE relnamespace = 'piecework'::regnamespace), (SELECT nspacl::text FROM pg_namespace "
                "WHERE nspname = 'piecework'), (SELECT array_agg(t::text) FROM piecework.notes t)"
            )
            return connection.execute(query).fetchone()


@pytest.fixture
def foreign(engine_url):
    """A database of something else where a store is expected."""
    if engine_url.startswith("sqlite:"):
        execute(engine_url, "CREATE TABLE notes (text)")
    else:
        with psycopg.connect(engine_url, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA piecework")
            connection.execute("CREATE TABLE piecework.notes AS SELECT 'mine' AS text")
    return Untouched(engine_url)


@pytest.mark.parametrize(
    "words",
    [("info",), ("check",), ("migrate",), ("migrate", "--grant", "postgres"), ("backup", "copy.db")],
    ids=" ".join,
)
def test_what_is_not_ours_is_left_alone(refused, foreign, tmp_path, monkeypatch, words):
    """A database of something else is refused by every command, and is as it was."""
    monkeypatch.chdir(tmp_path)
    if words[-1] == "postgres" and foreign.url.startswith("sqlite:"):
        words = words[:-2]
    before = names(tmp_path)
    assert "left alone" in refused("store", *words, "--store", foreign.url)
    assert foreign.now() == foreign.before
    assert names(tmp_path) == before


@pytest.mark.parametrize("command", ["info", "check", "migrate"])
def test_a_newer_store_is_left_alone(refused, store, command):
    """A store of a newer Piecework is refused, with both versions in the line."""
    execute(
        store, "PRAGMA user_version = 99" if store.startswith("sqlite:") else "UPDATE schema_version SET version = 99"
    )
    said = refused("store", command, store)
    assert "schema version 99" in said
    assert "up to 1" in said


def test_an_older_store_is_not_checked(run, refused, store, monkeypatch):
    """A store of an older schema is told about as far as it can be, and not checked before it is upgraded."""
    monkeypatch.setattr("piecework.store.looking.migrations", lambda: ((1, ""), (2, "")))
    assert "the newest is 2: migrate it" in run("store", "info", store).out
    assert "upgrade it, `piecework store migrate`" in refused("store", "check", store)


@pytest.mark.parametrize("command", ["info", "check", "migrate"])
def test_what_cannot_be_reached(refused, tmp_path, command):
    """A server that is not there and a file that is no database are one clear line."""
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at" * 50)
    assert "is not a store" in refused("store", command, f"sqlite:///{tmp_path}/notes.txt")
    assert "cannot be reached" in refused("store", command, "postgresql://nobody:geheim@127.0.0.1:1/none")
    assert "geheim" not in refused("store", command, "postgresql://nobody:geheim@127.0.0.1:1/none")
    assert refused("store", command, "mysql://localhost/x")


@pytest.fixture
def file(run, tmp_path):
    """A store in a file, with a row of its own."""
    url = f"sqlite:///{tmp_path}/state.db"
    assert run("store", "migrate", url).code == 0
    execute(url, "INSERT INTO spaces (space, next_due, weight) VALUES ('acme', NULL, 7)")
    return url


def spaces(path):
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT space, weight FROM spaces").fetchall()
    finally:
        connection.close()


def test_a_backup_is_a_store(run, file, tmp_path):
    """`store backup` makes a file that has everything, is sound, and is a store; nothing else is left."""
    answer = run("store", "backup", str(tmp_path / "copy.db"), "--store", file, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["size_bytes"] == (tmp_path / "copy.db").stat().st_size
    assert spaces(tmp_path / "copy.db") == [("acme", 7)]
    copied = f"sqlite:///{tmp_path}/copy.db"
    assert run("store", "check", copied).code == 0
    assert "the newest there is" in run("store", "migrate", copied).out
    assert not [name for name in names(tmp_path) if "unfinished" in name]


@pytest.mark.parametrize("there", ["file", "link", "folder"])
def test_a_backup_replaces_nothing(refused, file, tmp_path, there):
    """What is there already stays as it is, also a link that leads nowhere."""
    copy = tmp_path / "copy.db"
    if there == "file":
        copy.write_text("mine")
    elif there == "link":
        copy.symlink_to(tmp_path / "nowhere")
    else:
        copy.mkdir()
    before = names(tmp_path)
    assert "is there already" in refused("store", "backup", str(copy), "--store", file)
    assert names(tmp_path) == before
    assert there != "file" or copy.read_text() == "mine"


def test_a_backup_into_no_folder(refused, file, tmp_path):
    """A folder that is not there is not made."""
    assert "there is no folder" in refused("store", "backup", str(tmp_path / "away" / "copy.db"), "--store", file)


def test_a_backup_of_a_damaged_store(refused, file, tmp_path):
    """A copy that would be damaged is not kept."""
    path = file.removeprefix("sqlite:///")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'next_due INTEGER,', 'next_due INTEGER NOT NULL,')")
    connection.commit()
    connection.close()
    assert "damaged" in refused("store", "backup", str(tmp_path / "copy.db"), "--store", file)
    assert not [name for name in names(tmp_path) if "copy" in name]


def test_a_backup_of_postgres_is_its_own_tools(run, postgres_url, tmp_path):
    """On PostgreSQL the command is told that does it, without the password; it works."""
    run("store", "migrate", postgres_url)
    secret = postgres_url.replace("postgres@", "postgres:geheim@")
    answer = run("store", "backup", str(tmp_path / "copy.dump"), "--store", secret)
    assert answer.code == 2
    assert "geheim" not in answer.out + answer.err
    words = shlex.split(answer.out)
    assert words[0] == "pg_dump"
    tool = postgres_server.binaries() / "bin" / "pg_dump"
    subprocess.run([tool, *words[1:]], check=True)
    listed = subprocess.check_output([tool.with_name("pg_restore"), "-l", tmp_path / "copy.dump"], text=True)
    assert "TABLE piecework event_inbox" in listed


def test_beside_a_node(run, node, tmp_path):
    """All of it works while a node has the store, and the node does not mind."""
    url = node.store
    assert run("events", "publish", "order.placed", "--payload", '{"id": 1}', "--store", url).code == 0
    told = run("store", "info", url, "--json").json
    assert told["node_pid"] == node.process.pid
    assert told["tables"]["events"] == 1
    assert told["oldest_open_run"]["workflow_id"] in {"order", "double"}
    assert "the newest there is" in run("store", "migrate", url).out
    assert run("store", "check", url).out == "no contradiction found\n"
    assert run("store", "backup", str(tmp_path / "copy.db"), "--store", url).code == 0
    assert run("store", "check", f"sqlite:///{tmp_path}/copy.db").code == 0
    assert run("events", "publish", "order.placed", "--payload", '{"id": 2}', "--store", url).code == 0


async def test_a_look_is_of_one_moment(engine_url):
    """What is written while a store is looked at is not seen: the reads agree with each other."""
    opened = store_for(engine_url)
    await opened.open()
    await opened.close()
    async with looking_at(engine_url) as look:
        before = await look.read("info_tables", {})
        await asyncio.to_thread(plant, engine_url)
        assert await look.read("info_tables", {}) == before
    async with looking_at(engine_url) as look:
        assert await look.read("info_tables", {}) != before


async def test_a_look_cannot_write(engine_url):
    """Whatever is asked of a look, it changes nothing."""
    opened = store_for(engine_url)
    await opened.open()
    await opened.close()
    async with looking_at(engine_url) as look:
        with pytest.raises(StoreError, match=r"read-?only"):
            await look.read("delete_signals", {"run_ids": ["r-1"]})
