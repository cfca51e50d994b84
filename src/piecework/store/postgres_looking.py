"""A look at a store on PostgreSQL: one read-only transaction, whose snapshot is the moment that is looked at."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from piecework.errors import NotFoundError
from piecework.store import postgres_sql
from piecework.store.looking import Look
from piecework.store.postgres_link import Address, Link, translate
from piecework.store.postgres_schema import inspect_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from piecework.store.postgres_schema import Place

_CLOSE_SECONDS = 2


class PostgresLook(Look):
    """A look at a schema.

    Args:
        connection: Inside a transaction that can only read, and sees one moment.
        place: The schema.
        version: Of it.
    """

    engine = "postgresql"

    def __init__(self, connection: asyncpg.Connection[Any], place: Place, version: int) -> None:
        self.url = place.url
        self.engine_version = connection.get_settings().server_version
        self.version = version
        self._connection = connection
        self._place = place

    async def read(self, name: str, params: dict[str, Any]) -> list[Any]:
        """Runs a named query.

        Raises:
            StoreError: The query failed.
        """
        absent, given = postgres_sql.bound(params)
        text, order = postgres_sql.query(name, None, absent)
        try:
            rows = await self._connection.fetch(text, *(given[key] for key in order))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise translate(error, self.url) from error
        return [tuple(row) for row in rows]

    async def size(self) -> tuple[int, int | None]:
        """Bytes of the schema's tables and indexes; the log is the whole server's."""
        rows = await self.read("info_size", {})
        return int(rows[0][0]), None

    def dump_command(self, destination: Path) -> list[str]:
        """The words of the command that copies the store; it asks for the password, or finds it where it looks."""
        parts = urlsplit(self.url)
        options = [(name, value) for name, value in parse_qsl(parts.query) if name != "schema"]
        database = parts._replace(query=urlencode(options)).geturl()
        schema = self._place.schema if self._place.schema.islower() else self._place.quoted
        return [
            "pg_dump",
            f"--schema={schema}",
            "--format=custom",
            f"--file={destination}",
            f"--dbname={database}",
        ]


@asynccontextmanager
async def looking_at_postgres(url: str) -> AsyncIterator[PostgresLook]:
    """Opens a look at a store that is there.

    Args:
        url: `postgresql://…[?schema=NAME]`.

    Raises:
        ValidationError: This is no such address.
        NotFoundError: There is no store.
        StoreFormatError: The schema is somebody else's.
        SchemaVersionError: It is newer than this Piecework.
        StoreError: The role may not read it, or the server refuses it.
        StoreUnavailableError: It cannot be reached.
    """
    address = Address.parse(url)
    connection = await Link(address).first()
    try:
        look = await _begin(connection, address.place)
        yield look
    finally:
        await hang_up(connection)


async def hang_up(connection: asyncpg.Connection[Any]) -> None:
    """Ends a connection; what it had not committed is given up. One that was lost is no trouble any more."""
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        await connection.close(timeout=_CLOSE_SECONDS)


async def _begin(connection: asyncpg.Connection[Any], place: Place) -> PostgresLook:
    try:
        await connection.transaction(isolation="repeatable_read", readonly=True).start()
        version = await inspect_postgres(connection, place)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translate(error, place.url) from error
    if version == 0:
        raise NotFoundError(
            f"there is no store in schema {place.schema!r} of {place.url}: `piecework serve` or "
            "`piecework store migrate` makes it",
            url=place.url,
        )
    return PostgresLook(connection, place, version)
