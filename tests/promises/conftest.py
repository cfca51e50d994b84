"""What the promises are kept with: real apps over real files, opened and closed by each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from piecework import App, Settings
from piecework.process import linux
from piecework.store.opening import store_for
from piecework.testing.clock import VirtualClock
from piecework.testing.contracts import check_invariants

from .flows import Gate
from .mail_server import MailServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from piecework import Runtime, Workflow


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of an application's database of the test's own."""
    return f"sqlite:///{tmp_path / 'app.db'}"


@pytest.fixture
def clock() -> VirtualClock:
    """Time that moves only when the test says so; an app gets it by `clock=`."""
    return VirtualClock()


@pytest.fixture
async def make_app(store: str) -> AsyncIterator[Callable[..., App]]:
    """Makes apps over the test's store: one after the other they are one application that is restarted.

    When the test is over, what stands in the store must not contradict itself.
    """

    def make(*workflows: Workflow, mode: Any = None, **options: Any) -> App:
        app = App("promises", **{"store": store, "settings": Settings(), **options})
        for workflow in workflows:
            app.workflow(workflow, mode=mode)
        return app

    yield make
    left = store_for(store)
    await left.open()
    try:
        await check_invariants(left)
    finally:
        await left.close()


@pytest.fixture
async def app(make_app: Callable[..., App]) -> AsyncIterator[App]:
    """An open app that has nothing in it."""
    async with make_app() as app:
        yield app


@pytest.fixture
def runtime(app: App) -> Runtime:
    """The runtime of the open app."""
    return app.runtime


@pytest.fixture(autouse=True)
def _no_process_left(request: pytest.FixtureRequest) -> Any:
    """Whatever a test starts has ended with it; the server is the session's."""
    if "postgres" in request.node.name:
        request.getfixturevalue("postgres_databases")
    before = linux.children(os.getpid())
    yield
    assert linux.children(os.getpid()) <= before


@pytest.fixture
def gate() -> Gate:
    """A step that waits to be let go."""
    return Gate()


@pytest.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    """A real mail server on a free port that takes everything until it is told otherwise."""
    server = MailServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def database_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of an application's database of the test's own, on either engine."""
    return f"sqlite:///{tmp_path / 'app.db'}" if engine == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def users_app(engine: str, database_url: str, tmp_path: Path) -> AsyncIterator[App]:
    """An open app with a database of users and their subscriptions, of three connections."""
    app = App(
        "users",
        store=f"sqlite:///{tmp_path / 'users-state.db'}",
        database=database_url,
        settings=Settings(database_pool_size=3),
    )
    key = "integer primary key" if engine == "sqlite" else "serial primary key"
    async with app:
        async with app.workspace() as ws:
            await ws.database.run(
                f"create table users (id {key}, name text not null, email text unique, role text, age integer)"
            )
            await ws.database.run(
                f"create table subscriptions (id {key}, user_id integer not null references users (id), tier text,"
                " ended boolean)"
            )
        yield app


@pytest.fixture
async def db(users_app: App) -> AsyncIterator[Any]:
    """The database of an open workspace of that app."""
    async with users_app.workspace() as ws:
        yield ws.database
