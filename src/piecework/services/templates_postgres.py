"""Clean copies of a PostgreSQL database: the server copies a template database, which this process made.

The databases of a process have names of their own, and one session holds an advisory lock as long as it lives: whose
lock is free has been killed, and the next process drops what is left of it. SQLAlchemy has no words for most of this,
so it is the one file here that speaks SQL.
"""

from __future__ import annotations

import asyncio
import secrets
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from piecework.errors import DatabaseError
from piecework.services.finishing import finished
from piecework.services.postgres import PostgresBackend, PostgresSession
from piecework.services.schema_postgres import define, definitions
from piecework.services.templates import migrated

if TYPE_CHECKING:
    import asyncpg

    from piecework.services.templates import Migrate

_PREFIX = "piecework_data"


_templates: dict[tuple[str, Any], str] = {}
"""The templates of this process, by server and by what they were made of: apps come and go in the tests of one."""


class PostgresTemplates:
    """What clean copies of one database are made from; see `templates.Templates`.

    Args:
        url: Of the database.
        migrate: What makes the tables; None: those of the database.
    """

    def __init__(self, url: str, migrate: Migrate) -> None:
        self.url = url
        self._migrate = migrate
        self.backend = PostgresBackend(url)
        self._turn = asyncio.Lock()
        self._admin: asyncpg.Connection[Any] | None = None
        self._family = ""
        self._numbers = count(1)
        self._template = ""
        self._made_of: Any = None
        self._server = urlsplit(url).netloc

    def copy(self) -> PostgresCopy:
        """A database that is made at its first use."""
        return PostgresCopy(self, f"{_PREFIX}_{secrets.token_hex(8)}")

    async def create(self) -> str:
        """Copies the template; gives the name of the copy.

        Raises:
            DatabaseError: The server cannot be reached, or its role may not create databases.
        """
        async with self._turn:
            try:
                admin = await self._connected()
                await self._renew(admin)
                return await self._new(admin, self._template)
            except DatabaseError:
                raise
            except Exception as error:
                raise DatabaseError(
                    f"no clean copy of the database {self.backend.url} could be made: {error}. The role has to be "
                    "allowed to: ALTER ROLE … CREATEDB; data='rollback' needs no such right"
                ) from error

    async def drop(self, name: str) -> None:
        """Drops a copy, whoever is connected still."""
        async with self._turn:
            await (await self._connected()).execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def close(self) -> None:
        """Drops what is left, and ends the session."""
        async with self._turn:
            admin, self._admin = self._admin, None
            if admin is None:
                return
            for key, name in list(_templates.items()):
                if name.startswith(self._family):
                    del _templates[key]
            try:
                await self._drop_family(admin, self._family)
            finally:
                await admin.close()

    async def _connected(self) -> asyncpg.Connection[Any]:
        if self._admin is None or self._admin.is_closed():
            admin = await self.backend.open()
            try:
                oid = await admin.fetchval("SELECT oid FROM pg_database WHERE datname = current_database()")
                token = secrets.randbits(31)
                await admin.execute("SELECT pg_advisory_lock($1, $2)", *_key(token))
                self._family = f"{_PREFIX}_{oid}_{token}_"
                await self._sweep(admin, f"{_PREFIX}_{oid}_")
            except BaseException:
                admin.terminate()
                raise
            self._admin, self._template, self._made_of = admin, "", None
        return self._admin

    async def _renew(self, admin: asyncpg.Connection[Any]) -> None:
        """Makes the template, unless it is that of the tables as they are now."""
        made_of: Any = self._migrate or await definitions(admin)
        if self._template and made_of == self._made_of:
            return
        key = self._migrate or tuple(made_of)
        if (self._server, key) in _templates:
            self._template, self._made_of = _templates[self._server, key], made_of
            return
        name = await self._new(admin, "template0")
        if self._migrate:
            await migrated(self._migrate, address(self.url, name))
        else:
            await self._define(made_of, name)
        self._template, self._made_of = name, made_of
        _templates[self._server, key] = name

    async def _define(self, texts: list[str], name: str) -> None:
        connection = await PostgresBackend(address(self.url, name)).open()
        try:
            await define(connection, texts)
        finally:
            await connection.close()

    async def _new(self, admin: asyncpg.Connection[Any], template: str) -> str:
        name = f"{self._family}{next(self._numbers)}"
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    async def _sweep(self, admin: asyncpg.Connection[Any], prefix: str) -> None:
        """Drops the databases of processes that were killed."""
        names = await admin.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix)
        for token in {row[0].removeprefix(prefix).partition("_")[0] for row in names}:
            if token.isdigit() and await admin.fetchval("SELECT pg_try_advisory_lock($1, $2)", *_key(int(token))):
                if f"{prefix}{token}_" != self._family:
                    await self._drop_family(admin, f"{prefix}{token}_")
                await admin.execute("SELECT pg_advisory_unlock($1, $2)", *_key(int(token)))

    async def _drop_family(self, admin: asyncpg.Connection[Any], family: str) -> None:
        for row in await admin.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", family):
            await admin.execute(f'DROP DATABASE IF EXISTS "{row[0]}" WITH (FORCE)')


class PostgresCopy:
    """Opens sessions of a clean copy; the first one makes it; see `templates.Copy`.

    Args:
        templates: What it is a copy of.
    """

    dialect = "postgresql"
    one_writer = False

    def __init__(self, templates: PostgresTemplates, label: str) -> None:
        self._templates = templates
        self._copying = asyncio.Lock()
        self._name = ""
        self._backend: PostgresBackend | None = None
        self.url = f"postgresql:{label} (a clean copy that nobody has used yet)"

    @property
    def address(self) -> str:
        """The URL; there is one when it was made."""
        return address(self._templates.url, self._name)

    async def connect(self) -> PostgresSession:
        """Opens one more session."""
        await self.make()
        assert self._backend is not None, "make() gives it"
        return await self._backend.connect()

    async def make(self) -> None:
        """Copies it, if nobody did yet."""
        async with self._copying:
            if self._backend is None:
                self._name = await self._templates.create()
                self._backend = PostgresBackend(self.address)
                self.url = self._backend.url

    async def known(self) -> None:
        """Nothing: they are read."""

    def kind_of(self, error: Exception) -> tuple[str, str]:
        """What an error of the driver means, and what to do about it."""
        return self._templates.backend.kind_of(error)

    async def drop(self) -> None:
        """Removes it; again is nothing."""
        if self._backend is not None:
            self._backend = None
            await finished(self._templates.drop(self._name))


def address(url: str, name: str) -> str:
    """The address of another database of the same server.

    Args:
        url: Of one.
        name: Of the other.
    """
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _key(token: int) -> tuple[int, int]:
    return 0x70776B64, token  # "pwkd": not among the keys of `ws.database.lock`, which are one number of 64 bits
