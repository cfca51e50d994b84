"""A look at a store from outside, beside its node: all reads are of one moment, and nothing can be written.

A node keeps its store to itself (a SQLite file) or shares it with others (PostgreSQL); a `Look` is a guest of either,
with a connection and a read-only transaction of its own, that needs no node and hinders none.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from piecework.errors import NotFoundError, StoreError
from piecework.store.migrate import inspect_sqlite, migrations
from piecework.store.opening import store_for
from piecework.store.sqlite import sqlite_path
from piecework.store.statements import named_for, spread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Look(ABC):
    """A store as it stood at one moment.

    Attributes:
        engine: Which database it is, as people call it.
        url: Where it is, without secrets.
        engine_version: Of the database.
        version: Of the schema.
    """

    engine: ClassVar[str]
    url: str
    engine_version: str
    version: int

    @property
    def newest(self) -> int:
        """The newest schema that this Piecework knows."""
        return migrations()[-1][0]

    def require_newest(self) -> None:
        """Refuses a store of an older schema, whose tables are not the ones that are asked about.

        Raises:
            StoreError: It has to be upgraded first.
        """
        if self.version != self.newest:
            raise StoreError(
                f"{self.url} has schema version {self.version}, not {self.newest}: upgrade it, "
                "`piecework store migrate`",
                url=self.url,
                found=self.version,
                known=self.newest,
            )

    @abstractmethod
    async def read(self, name: str, params: dict[str, Any]) -> list[Any]:
        """Runs a named query whose parameters are plain values.

        Raises:
            StoreError: The query failed.
        """

    @abstractmethod
    async def size(self) -> tuple[int, int | None]:
        """Bytes that the store takes, and bytes of its write-ahead log; None where that is not the store's own."""

    def dump_command(self, _destination: Path) -> list[str] | None:
        """The words of the engine's own command that copies the store; None where `back_up` does it."""
        return None


@asynccontextmanager
async def looking_at(url: str) -> AsyncIterator[Look]:
    """Opens a look at a store that is there.

    Args:
        url: `sqlite:///FILE` or `postgresql://…`.

    Raises:
        ValidationError: This is no address of a store.
        MissingExtraError: It is one of an engine that is not installed.
        NotFoundError: There is no store.
        StoreFormatError: What is there is not ours.
        SchemaVersionError: It is newer than this Piecework.
        StoreUnavailableError: It cannot be reached.
    """
    store_for(url)  # refuses what names no store, and what is not installed
    if not url.startswith("sqlite:"):
        from piecework.store.postgres_looking import looking_at_postgres

        async with looking_at_postgres(url) as look:
            yield look
        return
    path = sqlite_path(url).absolute()
    sqlite = await asyncio.to_thread(SqliteLook, path)
    try:
        yield sqlite
    finally:
        await asyncio.to_thread(sqlite.close)


class SqliteLook(Look):
    """A look at a SQLite file.

    Args:
        path: The file.

    Raises:
        NotFoundError: It is not there, or has nothing in it.
        StoreFormatError: It is not ours.
        SchemaVersionError: It is newer than this Piecework.
        StoreError: It cannot be opened.
    """

    engine = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self.engine_version = sqlite3.sqlite_version
        if not path.exists():
            raise NotFoundError(
                f"there is no store {path}: `piecework serve` or `piecework store migrate` makes it", path=str(path)
            )
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            # A guest among the node's own connections: whatever is asked, this one cannot write.
            connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=10,
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        try:
            connection.execute("BEGIN")
            self.version = inspect_sqlite(connection, str(self.path))
        except sqlite3.Error as error:
            connection.close()
            raise self._failed(error) from error
        except BaseException:
            connection.close()
            raise
        if self.version == 0:
            connection.close()
            raise NotFoundError(
                f"{self.path} is empty: `piecework store migrate` makes it a store", path=str(self.path)
            )
        return connection

    def close(self) -> None:
        """Lets go."""
        self._connection.close()

    async def read(self, name: str, params: dict[str, Any]) -> list[Any]:
        """Runs a named query.

        Raises:
            StoreError: The query failed.
        """
        flat, lists = spread(params)
        return await asyncio.to_thread(self._read, named_for(name, None, lists), flat)

    def _read(self, text: str, params: dict[str, Any]) -> list[Any]:
        try:
            return self._connection.execute(text, params).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    async def size(self) -> tuple[int, int | None]:
        """Bytes of the file, and of the log beside it."""
        return _bytes(self.path), _bytes(Path(f"{self.path}-wal"))

    def copy_to(self, target: sqlite3.Connection) -> None:
        """Copies everything as it stands at this moment.

        Raises:
            StoreError: It cannot be read, or not be written there.
        """
        try:
            self._connection.backup(target)
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} cannot be copied: {error}", path=str(self.path)) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"the store {self.path} cannot be read: {error}", path=str(self.path))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the log goes when the last connection does
        return 0
