"""The application's own database: one `Database` per process, shared by every workspace in it.

What users see is `rows.WorkspaceDatabase`; here are the pool, the tables and the words for what goes wrong.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import DatabaseError, DuplicateKeyError, NotFoundError, PieceworkError, ValidationError
from piecework.services.pool import Connection, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import sqlalchemy as sa

    from piecework.services.pool import Answer
    from piecework.services.schema import Schema

T = TypeVar("T")
_PREFIX = "sqlite:///"


class Database:
    """The application's database: opened on first use, closed with the app. A statement leases a connection.

    Args:
        url: `sqlite:///` and the path of a file, relative to the working folder or absolute.
        pool_size: The most connections at once; further statements wait their turn.

    Raises:
        ValidationError: The URL is of another kind, or the pool has no place.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        if pool_size < 1:
            raise ValidationError(f"a pool of {pool_size} connections can do nothing: give at least 1")
        self.path = _path_of(url)
        self._pool = Pool(self.path, size=pool_size)
        self._schema: Schema = {}
        self._reflecting = asyncio.Lock()
        self._opened = False

    @property
    def leased(self) -> int:
        """How many connections are in use now."""
        return self._pool.leased

    async def open(self) -> None:
        """Opens a first connection, which imports SQLAlchemy off the loop; whoever builds a statement awaits this.

        Raises:
            DatabaseError: The file cannot be opened.
            ClosedError: The database was closed.
        """
        if not self._opened:
            await self._run(lambda connection: connection.call(_nothing), "open the database", "")
            self._opened = True

    async def execute(self, statement: sa.Executable, *, verb: str, table: str = "") -> Answer:
        """Runs one statement and commits it.

        Args:
            statement: What SQLAlchemy compiles.
            verb: What it does, for errors ("insert").
            table: The table it is about, for errors.

        Raises:
            DuplicateKeyError: A unique key is taken.
            ValidationError: A value or a constraint does not hold; nothing was written.
            DatabaseError: The database cannot do it now: locked, full, damaged, or no such file.
            ClosedError: The database was closed.
        """
        return await self._run(lambda connection: connection.execute(statement), verb, table)

    async def table(self, name: str, columns: Iterable[str] = ()) -> sa.Table:
        """Finds a table as it is now; one that is unknown may have been created since, so it is looked for anew.

        Args:
            name: Of the table.
            columns: Names that it should have; a missing one makes it read the tables again, no more.

        Raises:
            NotFoundError: There is no such table; the message has the nearest names.
        """
        if not self._knows(name, columns):
            await self._reflect(name, columns)
        table = self._schema.get(name)
        if table is None:
            raise NotFoundError.among("table", name, self._schema)
        return table

    def forget_tables(self) -> None:
        """Has the tables read again at their next use: their definition may have changed."""
        self._schema = {}

    async def close(self) -> None:
        """Waits for the statements under way, then closes every connection; closing again does nothing."""
        await self._pool.close()

    def _knows(self, name: str, columns: Iterable[str]) -> bool:
        table = self._schema.get(name)
        return table is not None and all(column in table.c for column in columns)

    async def _reflect(self, name: str, columns: Iterable[str]) -> None:
        seen = self._schema
        async with self._reflecting:
            # Whoever waited here while somebody else read the tables may find what it looks for.
            if self._schema is seen or not self._knows(name, columns):
                self._schema = await self._run(Connection.reflect, "read the tables", "")

    async def _run(self, start: Callable[[Connection], asyncio.Future[T]], verb: str, table: str) -> T:
        try:
            return await self._pool.run(start)
        except (PieceworkError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise _explain(error, f"{verb} {table}".strip(), self.path, verb=verb, table=table) from error


def _nothing() -> None:
    """What a first lease has to do: to have been made is enough."""


def _path_of(url: str) -> Path:
    name = url.removeprefix(_PREFIX)
    if not url.startswith(_PREFIX) or name in {"", ":memory:"} or "?" in name:
        kind = url.split(":", 1)[0]
        raise ValidationError(
            f"the database URL ({kind}:…) has to be {_PREFIX}PATH with the path of a file, and nothing after it: "
            "a database in memory would be another one for each connection"
        )
    return Path(name).absolute()


def _explain(error: Exception, what: str, path: Path, **data: Any) -> PieceworkError:
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, PieceworkError):
        return cause
    name = getattr(cause, "sqlite_errorname", "")
    said = f"{what}: {str(cause).split(' (Background', 1)[0]}".rstrip(".")  # SQLAlchemy adds a link of its own
    if name in {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_ROWID"}:
        return DuplicateKeyError(f"{said}. Use insert_missing() to leave the row that is there alone", **data)
    if not name or name.startswith(("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH")):
        # No name: the statement never reached SQLite, because a value or a parameter did not fit.
        return ValidationError(f"{said}. Nothing was written", **data)
    if name.startswith("SQLITE_BUSY"):
        advice = "another writer holds it for longer than a statement waits; keep transactions short"
    elif name == "SQLITE_CANTOPEN":
        advice = "does its folder exist, and may this process write there?"
    else:
        advice = "nothing of the statement was written"
    return DatabaseError(f"{said}: {advice} (database {path})", **data)
