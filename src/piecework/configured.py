"""What an app is given: where its store, its database and its mails go, and the numbers. Nothing is opened here."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from piecework import process
from piecework.bus.subscriptions import EventBus
from piecework.clock import SystemClock
from piecework.config import Settings, tool_setting
from piecework.declaring import Declarations
from piecework.errors import InvalidStateError
from piecework.process.lease import Lease
from piecework.services.templates import check_migrate, templates_of
from piecework.workspace.modules import check_modules, import_modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AsyncExitStack

    from piecework.clock import Clock
    from piecework.container.registry import Service
    from piecework.services.templates import Migrate, Templates


def default_store() -> str:
    """The store where none is given: PIECEWORK_STORE, else pyproject.toml's, else a file under .piecework/."""
    return os.environ.get("PIECEWORK_STORE") or tool_setting("store") or "sqlite:///.piecework/store.db"


class Configured(Declarations):
    """What an app declares, and what it was given.

    The arguments are those of `App`, and `made_in`: the module that made it, where it is looked for first.
    """

    def __init__(
        self,
        name: str,
        *,
        store: str | None,
        database: str | None,
        migrate: Migrate,
        mail: str | None,
        services: Iterable[Service],
        modules: Iterable[str],
        env: Mapping[str, str | None] | None,
        config: Mapping[str, Any] | None,
        import_path: str | None,
        made_in: str,
        settings: Settings | None,
        clock: Clock | None,
    ) -> None:
        super().__init__(name, services)
        self.config: Mapping[str, Any] = dict(config or {})
        self.clock: Clock = clock or SystemClock()
        self._store_url = None if process.inside() else store
        self._mail_url = None if process.inside() else mail
        self._database_url = database
        self._migrate = check_migrate(migrate)
        self._env = None if env is None else dict(env)
        self._settings = settings
        self._modules = check_modules(modules)
        self.import_path = import_path
        self._made_in = made_in
        self._lease = Lease()
        self.bus = EventBus()
        self._stack: AsyncExitStack | None = None

    def configure(
        self,
        *,
        store: str | None = None,
        database: str | None = None,
        mail: str | None = None,
        env: Mapping[str, str | None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Changes what was given at construction; what is not given stays.

        Raises:
            InvalidStateError: The app is open.
        """
        if self._stack is not None:
            raise InvalidStateError(f"app {self.name!r} is open: configure it before")
        self._store_url = store or self._store_url
        self._database_url = database or self._database_url
        self._mail_url = mail or self._mail_url
        self._env = self._env if env is None else dict(env)
        self._settings = settings or self._settings

    @contextmanager
    def elsewhere(
        self, *, store: str, database: str | None = None, mail: str = "outbox:", clock: Clock | None = None
    ) -> Iterator[Self]:
        """Has the app's next opening use other places, for the body of a `with`; afterwards its own hold again.

        Args:
            store: Instead of its store.
            database: Instead of the application's own data; None leaves that.
            mail: Instead of where mails go.
            clock: Instead of its clock; None leaves that.

        Raises:
            InvalidStateError: The app is open.
        """
        before = self._store_url, self._database_url, self._mail_url, self.clock
        self.configure(store=store, database=database, mail=mail)
        self.clock = clock or self.clock
        try:
            yield self
        finally:
            self._store_url, self._database_url, self._mail_url, self.clock = before

    @property
    def environment(self) -> str:
        """PIECEWORK_ENV, else development."""
        return os.environ.get("PIECEWORK_ENV", "development")

    @property
    def database_url(self) -> str | None:
        """The application's own database, if there is one."""
        return self._database_address()

    @property
    def store_url(self) -> str | None:
        """The store that was given at construction or by `configure`, if one was."""
        return self._store_url

    @property
    def configured_settings(self) -> Settings:
        """The numbers that it would be opened with: those that were given, else what `Settings.load` finds."""
        return self._settings or Settings.load()

    @property
    def made_of(self) -> tuple[Any, ...]:
        """What the tables of its database are known by: the address, and what makes them."""
        return self._database_address(), self._migrate

    def make_templates(self) -> Templates | None:
        """What empty copies of the application's database are made from; None where it has none.

        Whoever calls this closes it. The app need not be open.
        """
        url = self._database_address()
        return None if url is None else templates_of(url, self._migrate)

    def load(self) -> None:
        """Imports the app's modules, so that all that they declare is there; opening does so by itself.

        Raises:
            AppImportError: One cannot be imported.
        """
        import_modules(self._modules, app=self.name)

    @property
    def _variables(self) -> Mapping[str, str | None]:
        """The app's layer of variables."""
        return os.environ if self._env is None else self._env

    def _database_address(self) -> str | None:
        url = self._database_url or os.environ.get("PIECEWORK_DATABASE")
        return None if url is None else absolute(url)


def absolute(url: str) -> str:
    """The address of a store, with a file's path made absolute: who changes the folder later still means this file."""
    prefix = "sqlite:///"
    return f"{prefix}{Path(url[len(prefix) :]).absolute()}" if url.startswith(prefix) and url != prefix else url
