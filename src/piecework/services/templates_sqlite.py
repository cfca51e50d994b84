"""Clean copies of a SQLite file: the template's bytes, written into files of a folder that ends with the process.

What a killed process left behind is removed by the next one that needs such a folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

from piecework.services.sqlite import BUSY_TIMEOUT_SECONDS, Connection, SqliteBackend
from piecework.services.templates import migrated

if TYPE_CHECKING:
    import sqlalchemy as sa

    from piecework.services.templates import Migrate

_PREFIX = "piecework-data-"
_SQLITE = "sqlite:///"
VERSIONS = "alembic_version"
"""A table whose rows belong to the definition of the others."""


@dataclass
class Template:
    """What copies are made of.

    Attributes:
        image: The bytes of the file.
        version: What SQLite counts up when tables are changed.
        tables: The tables in it, once somebody has read them.
    """

    image: bytes
    version: int
    tables: list[sa.Table] | None = None


class SqliteTemplates:
    """What clean copies of one file are made from; see `templates.Templates`.

    Args:
        url: Of the file.
        migrate: What makes the tables; None: those of the file.
    """

    def __init__(self, url: str, migrate: Migrate) -> None:
        self._source = Path(url.removeprefix(_SQLITE))
        self._migrate = migrate
        self._making = asyncio.Lock()
        self._folder: Path | None = None
        self._numbers = count(1)
        self._template: Template | None = None
        self._seen: Any = None
        self._stamp: Any = None

    def copy(self) -> SqliteCopy:
        """A database that is made at its first use."""
        return SqliteCopy(self, self._own_folder() / f"{next(self._numbers)}.db")

    async def template(self) -> Template:
        """What a copy is made of now."""
        async with self._making:
            stamp = _stamp_of(self._source)
            if self._template is None or self._stamp != stamp:
                seen = self._migrate or await asyncio.to_thread(_version_of, self._source)
                if self._template is None or self._seen != seen:
                    self._template, self._seen = await self._find(), seen
                self._stamp = stamp
            return self._template

    async def close(self) -> None:
        """Removes what is left."""
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            finalize(self, _remove, self._folder, os.getpid())
            _sweep()
        return self._folder

    async def _find(self) -> Template:
        texts = [] if self._migrate else await asyncio.to_thread(definitions, self._source)
        made_of = self._migrate or tuple(texts)
        if made_of not in _found:
            path = self._own_folder() / f"template-{next(self._numbers)}.db"
            if self._migrate:
                await migrated(self._migrate, f"{_SQLITE}{path}")
            template = await asyncio.to_thread(_filled, path, texts)
            if len(_found) >= _KEPT:
                _found.clear()
            _found[made_of] = template
        return _found[made_of]


class SqliteCopy(SqliteBackend):
    """Opens sessions of a clean copy; the first one makes it; see `templates.Copy`.

    Args:
        templates: What it is a copy of.
        path: Where it will be.
    """

    def __init__(self, templates: SqliteTemplates, path: Path) -> None:
        super().__init__(path)
        self._templates = templates
        self._copying = asyncio.Lock()
        self._made: Template | None = None
        self._used = False

    @property
    def address(self) -> str:
        """The URL."""
        return self.url

    async def connect(self) -> Connection:
        """Opens one more session."""
        await self.make()
        self._used = True
        # It is in WAL mode already, so nobody has to be the first; and its first statement need not wait for a turn.
        connection = Connection(self._connect, self.tables)
        connection.open_soon()
        return connection

    async def make(self) -> None:
        """Copies it, if nobody did yet."""
        async with self._copying:
            if self._made is None:
                template = await self._templates.template()
                # A write into the cache of the system: shorter than the way to a thread and back.
                self.path.write_bytes(template.image)
                self._made = template

    async def known(self) -> list[sa.Table] | None:
        """The tables as long as nobody can have changed them, once somebody has read them."""
        await self.make()
        return None if self._used or self._made is None else self._made.tables

    def _connect(self) -> sa.Connection:
        from piecework.services import schema

        # One engine for all copies: it knows the driver and keeps what it compiled.
        return schema.connect_fleeting(self.path, BUSY_TIMEOUT_SECONDS)

    def tables(self, connection: sa.Connection) -> list[sa.Table]:
        """Reads which tables there are: those of the template, as long as nobody has changed them."""
        assert self._made is not None, "a connection makes it"
        version = connection.exec_driver_sql("PRAGMA schema_version").scalar()
        if self._made.version != version:
            return super().tables(connection)
        if self._made.tables is None:
            self._made.tables = super().tables(connection)
        return self._made.tables

    async def drop(self) -> None:
        """Removes it; again is nothing."""
        if self._made is not None:
            self._made = None
            self._remove()  # a few names that nobody has open: shorter than the way to a thread and back

    def _remove(self) -> None:
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        locks = Path(f"{self.path}-locks")
        if locks.is_dir():
            shutil.rmtree(locks, ignore_errors=True)


Definition = tuple[str, tuple[Any, ...]]
"""A statement and its values."""


def definitions(path: Path) -> list[Definition]:
    """Reads what makes the tables, indexes, views and triggers of a file; equal lists mean equal tables.

    The rows of `alembic_version` come along: they tell of which version the tables are.

    Args:
        path: The file; it is only read, and need not be there.
    """
    if not path.exists():
        return []
    with contextlib.closing(_reading(path)) as source:
        # The shadows of a virtual table are made with it; what has no text is made with its table.
        shadows = {row[0] for row in source.execute("SELECT name FROM pragma_table_list WHERE type = 'shadow'")}
        named = source.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            " ORDER BY CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 ELSE 2 END, rowid"
        ).fetchall()
        made: list[Definition] = [(text, ()) for name, text in named if name not in shadows]
        if any(name == VERSIONS for name, _ in named):
            rows = source.execute(f"SELECT * FROM {VERSIONS}").fetchall()  # noqa: S608 - the name is a constant
            made += [(f"INSERT INTO {VERSIONS} VALUES ({', '.join('?' * len(row))})", row) for row in rows]  # noqa: S608 - as above
    return made


def _filled(path: Path, texts: list[Definition]) -> Template:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as template:
        template.execute("BEGIN")
        for text, values in texts:
            template.execute(text, values)
        template.execute("COMMIT")
        # In this order: a file that is in WAL mode is copied whole only when nothing stands in the log.
        for pragma in ("journal_mode=WAL", "wal_checkpoint(TRUNCATE)"):
            template.execute(f"PRAGMA {pragma}").fetchall()
        version = template.execute("PRAGMA schema_version").fetchone()[0]
    image = path.read_bytes()
    path.unlink()
    return Template(image, version)


def _reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)


_found: dict[Any, Template] = {}
"""The templates of this process, by what they were made of: apps come and go in the tests of one."""

_KEPT = 8


def _stamp_of(path: Path) -> tuple[Any, ...]:
    """What is another one when a file was written: a look that is short enough for the loop."""
    found: list[Any] = []
    for end in ("", "-wal"):
        with contextlib.suppress(OSError):
            stat = Path(f"{path}{end}").stat()
            found.append((end, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _version_of(path: Path) -> tuple[Any, ...]:
    """What is another one when the tables of a file are."""
    if not path.exists():
        return ()
    with contextlib.closing(_reading(path)) as source:
        return path.stat().st_ino, source.execute("PRAGMA schema_version").fetchone()


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has it too, and it is not the child's
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Removes the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
