from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import piecework
from piecework import App, Service, Settings, Stage, Workflow, pause
from piecework.errors import (
    ClosedError,
    DuplicateKeyError,
    InvalidStateError,
    SchemaVersionError,
    StoreError,
    StoreFormatError,
    StoreLockedError,
    ValidationError,
)

from .flows import ended, flow


async def opened(app):
    async with app:
        pass


@pytest.mark.covers("N29")
@pytest.mark.parametrize("kind", ["text", "other database", "newer store"])
async def test_a_file_that_is_not_our_store_is_left_alone(tmp_path, kind):
    """A file that is no store, somebody else's database, or newer than this version is refused and left untouched."""
    path = tmp_path / "file.db"
    if kind == "text":
        path.write_text("a letter to somebody, and not a database at all\n" * 100)
    elif kind == "other database":
        with sqlite3.connect(path) as connection:
            connection.execute("create table customers (id integer)")
        connection.close()
    else:
        await opened(App("x", store=f"sqlite:///{path}"))
        with sqlite3.connect(path) as connection:
            connection.execute("pragma user_version = 999")
        connection.close()
    before = path.read_bytes()
    with pytest.raises((StoreFormatError, SchemaVersionError), match=str(path)):
        await opened(App("x", store=f"sqlite:///{path}"))
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*-wal"))


@pytest.mark.parametrize("url", ["state.db", "sqlite://", "sqlite:///", "mysql://x"])
async def test_what_is_no_store_address_is_refused(url):
    """An address that names no store is refused with VALIDATION_ERROR and the right form."""
    with pytest.raises(ValidationError, match="sqlite:///"):
        await opened(App("x", store=url))


async def test_a_store_that_cannot_be_opened_says_so(tmp_path):
    """A store whose folder cannot be made is refused with STORE_ERROR and its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/state\.db"):
        await opened(App("x", store=f"sqlite:///{tmp_path}/file/state.db"))


async def test_the_folder_of_a_store_is_made(tmp_path):
    """The folder of a store that is not there yet is made."""
    await opened(App("x", store=f"sqlite:///{tmp_path}/a/b/state.db"))
    assert (tmp_path / "a/b/state.db").exists()


@pytest.mark.covers("N28")
@pytest.mark.engines("sqlite")
async def test_one_app_at_a_time_has_a_store(make_app):
    """While an app has a store, another one of the same process is refused; when it has closed, it is not."""
    async with make_app() as app:
        with pytest.raises(StoreLockedError, match=str(app.store.path)):
            await opened(make_app())
    await opened(make_app())


@pytest.mark.covers("N40")
async def test_an_app_can_be_opened_again_but_not_twice(make_app):
    """An open app cannot be opened a second time; a closed one can, and works."""
    app = make_app(flow())
    for _ in range(2):
        async with app:
            with pytest.raises(InvalidStateError, match="open already"):
                await opened(app)
            assert (await ended(app, await app.publish("go"))).ok


@pytest.mark.covers("N41")
async def test_closing_leaves_no_task_behind(make_app):
    """When an app has closed, none of its tasks is left, and its services are closed."""
    log = []

    def thing(ctx):
        ctx.on_cleanup(lambda: log.append("closed"))
        return object()

    before = asyncio.all_tasks()
    async with make_app(flow(), services=[Service("thing", thing, lazy=False)]) as app:
        await ended(app, await app.publish("go"))
        assert log == []
    assert log == ["closed"]
    assert asyncio.all_tasks() == before


@pytest.mark.covers("N42")
async def test_an_app_that_fails_to_open_leaves_nothing_open(make_app):
    """When opening fails, what was opened is closed again: the store can be opened by the next one."""

    def broken():
        raise RuntimeError("no such host")

    with pytest.raises(RuntimeError, match="no such host"):
        await opened(make_app(services=[Service("broken", broken, lazy=False)]))
    await opened(make_app())


async def test_an_open_app_cannot_be_configured(app):
    """`configure` and `workflow` on an open app are refused, and say what to do instead."""
    with pytest.raises(InvalidStateError):
        app.configure(mail="console:")
    with pytest.raises(InvalidStateError, match=r"runtime\.register"):
        app.workflow(flow())


def test_names_are_declared_once(store):
    """Two workflows, services or pieces of one name are refused where the second is declared."""
    app = App("x", store=store)
    app.workflow(flow())
    app.piece("feed")(lambda piece: None)
    app.service(scope="run", name="clock")(lambda: 1)
    for again in (
        lambda: app.workflow(flow()),
        lambda: app.piece("feed")(lambda piece: None),
        lambda: app.service(scope="app", name="clock")(lambda: 1),
        lambda: app.service(scope="run", name="database")(lambda: 1),
    ):
        with pytest.raises(DuplicateKeyError):
            again()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda app: App(""),
        lambda app: app.piece("x", every_seconds=0),
        lambda app: app.piece("x", timeout_seconds=-1),
        lambda app: app.piece("x", accounting="none"),
        lambda app: app.service(scope="process", name="x")(lambda: 1),
    ],
)
def test_declarations_are_checked_where_they_are_made(store, wrong):
    """A declaration that cannot work is refused where it is made."""
    with pytest.raises(ValidationError):
        wrong(App("x", store=store))


@pytest.mark.covers("N43")
async def test_settings_come_from_the_environment(monkeypatch, tmp_path, store):
    """A setting is read from `PIECEWORK_<FIELD>` where none is given; one that is no number is refused by its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIECEWORK_CRASH_LIMIT", "7")
    async with App("x", store=store) as app:
        assert app.settings.crash_limit == 7
    async with App("x", store=store, settings=Settings(crash_limit=2)) as app:
        assert app.settings.crash_limit == 2
    monkeypatch.setenv("PIECEWORK_CRASH_LIMIT", "many")
    with pytest.raises(ValidationError, match="PIECEWORK_CRASH_LIMIT"):
        await opened(App("x", store=store))


@pytest.mark.covers("E20")
async def test_state_that_cannot_be_stored_fails_the_run(make_app):
    """A run whose state cannot be committed, because it is too large, fails: it is neither paused nor completed."""

    async def grows(ctx):
        return {"text": "x" * 600}

    async def grows_more(ctx):
        return {"more": "x" * 600}

    workflow = Workflow("flow", on="go", stages=[Stage("a", steps=[grows, grows_more], router=pause()), Stage("b")])
    async with make_app(workflow, settings=Settings(payload_limit_bytes=1000)) as app:
        result = await ended(app, await app.publish("go"))
        assert result.error.code == "VALIDATION_ERROR"
        assert (await app.runtime.get(result.metadata.run_id)).status == "failed"


async def test_what_was_closed_is_as_what_was_never_opened(make_app):
    """An app that was closed opens no workspace and has no parts; opened again, it has them again."""
    app = make_app()
    for _ in range(2):
        async with app:
            assert await app.run_in_new_workspace(lambda ws: ws.closed) is False
        for use in (app.workspace, lambda: app.settings, lambda: app.supervisor, lambda: app.container):
            with pytest.raises(ClosedError, match="is not open"):
                use()


@pytest.mark.covers("N39")
def test_importing_it_opens_nothing(tmp_path):
    """Importing piecework makes no file, starts no thread, and loads no optional part."""
    code = (
        "import sys, threading, piecework\n"
        "from piecework import App, Workflow, Stage\n"
        "App('x')\n"
        "heavy = {'sqlalchemy', 'aiosmtplib', 'cyclopts', 'rich', 'httpx2', 'feedparser', 'aiosmtpd'}\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split("\n")[0] == "[] 1"
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_is_there():
    """Every name in `piecework.__all__` can be had, and has a docstring."""
    for name in piecework.__all__:
        value = getattr(piecework, name)
        assert value.__doc__ or not callable(value), name
    assert Path(piecework.__file__).with_name("py.typed").exists()
