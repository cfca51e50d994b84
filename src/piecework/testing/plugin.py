"""The pytest plugin: an app of your own in each test, on a store and a database that nobody else has.

It comes with the package, by entry point. Async tests and fixtures run by anyio's plugin; a test that asks for one of
the fixtures here needs no marker for that, and runs on asyncio. Which app it is, the ini file says (`piecework_app =
"shop.app:app"`), or PIECEWORK_APP, or a fixture `app` of your own that returns an `App` which is not open: it is opened
for each test, with empty tables like those of its database, and its mails go to `app.mail.messages`.
"""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest

from piecework.app import App
from piecework.errors import AppImportError
from piecework.importing import app_name, load_app
from piecework.testing.clock import VirtualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from piecework.services.templates import Copy, Templates
    from piecework.workspace.workspace import Workspace

_OPENED = "_piecework_opened"
_EXTRA = "tests with an app of Piecework need anyio's plugin: pip install piecework[testing]"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what the ini file may say."""
    parser.addini("piecework_app", "MODULE:ATTRIBUTE of the piecework app that the fixture `app` opens", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Adds the marker."""
    config.addinivalue_line(
        "markers",
        "workspace(data='shared', overrides={}, **options): what the fixture `workspace` is opened with; `overrides` "
        "stand for services by name, `config`, `environment` and `__env__` among them",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Has the tests of an app run on asyncio, and once: it knows no other loop."""
    if not {_OPENED, "piecework_app"} & set(metafunc.fixturenames):
        return
    if not metafunc.config.pluginmanager.has_plugin("anyio"):
        raise pytest.UsageError(_EXTRA)
    given = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize") if mark.args)
    if not any("anyio_backend" in str(names) for names in given):
        backend = pytest.param("asyncio", id=pytest.HIDDEN_PARAM)
        metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", [backend], indirect=True))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Has an app opened that a fixture of the user's returns, before anybody else gets it."""
    names = getattr(item, "fixturenames", [])
    is_async = isinstance(item, pytest.Function) and iscoroutinefunction(item.function)
    if is_async and "app" in names and "anyio_backend" in names and _OPENED not in names:
        names.insert(0, _OPENED)


@pytest.fixture(scope="session")
def piecework_templates() -> Iterator[_Templates]:
    """What the tests' databases are copied from, made once in this process."""
    templates = _Templates()
    yield templates
    templates.close()


@pytest.fixture
def piecework_app(request: pytest.FixtureRequest) -> App:
    """The app that the ini file or PIECEWORK_APP names, not open."""
    name = str(request.config.getini("piecework_app")) or app_name()
    if not name:
        raise AppImportError(
            "no app to test: say piecework_app = 'MODULE:ATTRIBUTE' in pytest's ini file, set PIECEWORK_APP, or write "
            "a fixture `app` that returns an App which is not open"
        )
    return load_app(name)


@pytest.fixture
async def app(
    anyio_backend: Any,  # noqa: ARG001 - what makes anyio run it
    piecework_app: App,
    piecework_templates: _Templates,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[App]:
    """The app, opened as a node on a store and a database of the test's own; mails are in `app.mail.messages`.

    Where the test asks for `clock` too, that is the app's.
    """
    folder = tmp_path_factory.mktemp("piecework")
    async with opened(piecework_app, piecework_templates, folder, _clock_of(request)) as found:
        yield found


@pytest.fixture(name=_OPENED)
async def _opened_app(
    anyio_backend: Any,  # noqa: ARG001 - what makes anyio run it
    app: Any,
    piecework_templates: _Templates,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Any]:
    """The fixture `app`, opened if it is an app of ours that is not open."""
    if not isinstance(app, App) or app.is_open:
        yield app
        return
    folder = tmp_path_factory.mktemp("piecework")
    async with opened(app, piecework_templates, folder, _clock_of(request)):
        yield app


@pytest.fixture
async def workspace(_piecework_opened: App, request: pytest.FixtureRequest) -> AsyncIterator[Workspace]:
    """An open workspace of `app`, as `@pytest.mark.workspace(…)` says; without it, one that shares the test's data."""
    async with _as_marked(_piecework_opened, request) as ws:
        yield ws


@pytest.fixture
async def clean_workspace(_piecework_opened: App, request: pytest.FixtureRequest) -> AsyncIterator[Workspace]:
    """Like `workspace`, with data="clean": empty tables that no other workspace sees, not even those opened inside."""
    async with _as_marked(_piecework_opened, request, data="clean") as ws:
        yield ws


@pytest.fixture
def clock() -> VirtualClock:
    """Time that moves only by `await clock.advance(seconds)`; the test's app goes by it."""
    return VirtualClock()


@asynccontextmanager
async def opened(
    app: App, templates: _Templates, folder: Path, clock: VirtualClock | None = None
) -> AsyncIterator[App]:
    """Opens an app as a node, on a store and a database of its own that are gone afterwards.

    Args:
        app: Not open.
        templates: What its database is copied from.
        folder: For the store.
        clock: Instead of the app's own.
    """
    copy = templates.copy(app)
    try:
        url = None if copy is None else copy.address
        with app.elsewhere(store=f"sqlite:///{folder / 'store.db'}", database=url, clock=clock):
            async with app:
                yield app
    finally:
        templates.drop(copy)


class _Templates:
    """Templates on a loop of their own: they live longer than the loop of a test."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._portal: Any = None
        self._of: dict[Any, Templates] = {}

    def copy(self, app: App) -> Copy | None:
        """Makes a copy of the app's database, without rows; None where it has none."""
        key = app.made_of
        if key not in self._of:
            templates = app.make_templates()
            if templates is None:
                return None
            self._of[key] = templates
        return self._call(self._made, self._of[key])  # type: ignore[no-any-return]  # what _made gives

    def drop(self, copy: Copy | None) -> None:
        """Removes a copy."""
        if copy is not None:
            self._call(copy.drop)

    def close(self) -> None:
        """Removes what is left."""
        with self._stack:  # its thread ends whatever happens: pytest would wait for it
            for templates in self._of.values():
                self._call(templates.close)

    async def _made(self, templates: Templates) -> Copy:
        copy = templates.copy()
        await copy.make()
        return copy

    def _call(self, fn: Any, *args: Any) -> Any:
        if self._portal is None:
            from anyio.from_thread import start_blocking_portal

            self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        return self._portal.call(fn, *args)


@asynccontextmanager
async def _as_marked(app: App, request: pytest.FixtureRequest, **options: Any) -> AsyncIterator[Workspace]:
    marks = reversed(list(request.node.iter_markers("workspace")))
    given = {name: value for mark in marks for name, value in mark.kwargs.items()} | options
    overrides = given.pop("overrides", {})
    async with app.workspace(**given) as ws:
        with ExitStack() as stack:
            for name, value in overrides.items():
                stack.enter_context(ws.override(name, value))
            yield ws


def _clock_of(request: pytest.FixtureRequest) -> VirtualClock | None:
    if "clock" not in request.fixturenames:
        return None
    found = request.getfixturevalue("clock")
    return found if isinstance(found, VirtualClock) else None
