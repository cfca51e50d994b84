"""SQLite: one writer thread with group commit, readers on connections of their own.

Read `sqlite_writer` for how a group is committed and what happens when it fails, `sqlite_requests` for the two forms in
which a verb's requests reach the file, `sqlite_crowd` for how one of them is chosen.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, StoreError, ValidationError
from piecework.store.contract import Read, nobody
from piecework.store.job import Job
from piecework.store.lock_beat import LockHeartbeat
from piecework.store.lockfile import LockFile
from piecework.store.migrate import inspect_sqlite, migrate_sqlite
from piecework.store.sqlite_crowd import Crowd
from piecework.store.sqlite_readers import Readers
from piecework.store.sqlite_writer import Writer, translate
from piecework.store.values import check_params

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.store.contract import Decide, Verb
    from piecework.store.records import Record

_BUSY_SECONDS = 10


class SqliteStore:
    """A store in one file.

    Args:
        path: The file; its folder is made when it is missing.

    Attributes:
        shared: False: one process has the file, the lock proves every other one dead.
        clock_offset: 0: the file has no clock of its own.
    """

    shared = False
    clock_offset = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = LockFile(path)
        self._crowd = Crowd()
        self._writer: Writer | None = None
        self._readers: Readers | None = None
        self._closed = False
        self._closing: asyncio.Future[None] | None = None

    @property
    def url(self) -> str:
        """Where the store is."""
        return f"sqlite:///{self.path}"

    async def open(self) -> None:
        """Takes the lock, checks the file, brings its schema up to date and starts the threads.

        Raises:
            StoreLockedError: Another process is the node of this file.
            StoreFormatError: The file is not a store of ours; it was not touched.
            SchemaVersionError: The file is newer than this version.
        """
        if self._closed or self._writer is not None:
            raise ClosedError(f"the store {self.path} was opened before: make a new one")
        if self.path.is_dir():
            raise StoreError(f"the store {self.path} is a directory: name a file in it", path=str(self.path))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}", path=str(self.path)) from error
        try:
            connection = await asyncio.to_thread(self._prepare)
        except BaseException:
            self.lock.release()
            raise
        self._writer = Writer(self.path, connection, self._connect_writer, self._crowd)
        self._readers = Readers(self._connect, self._crowd)

    async def close(self) -> None:
        """Finishes what was submitted, closes the file and releases the lock."""
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.get_running_loop().run_in_executor(None, self._close)
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait({self._closing})
            except asyncio.CancelledError as error:  # a file half closed could not be opened again
                cancelled = error
        self.lock.release()
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.finish()
        if self._readers is not None:
            self._readers.close()
        if self._writer is not None:  # the last: whoever closes last writes the log back into the file
            self._writer.close()

    async def run(
        self, verb: Verb, item: Any, decide: Decide, now: int, then: Callable[[Any], None] | None = None
    ) -> Any:
        """Submits one item of a verb and returns its outcome once it is durable.

        `then` is called with the outcome as soon as there is one, also when the caller has been cancelled meanwhile.

        Raises:
            ClosedError: The store has been closed.
            StoreError: It could not be written; nothing of the item was.
            PieceworkError: What the decision raised for this item.
        """
        if self._closed or self._writer is None:
            raise ClosedError(f"the store {self.path} is not open")
        loop = asyncio.get_running_loop()
        job = Job(verb, item, decide, now, loop.create_future(), then)
        self._writer.submit(job)
        # A caller that is cancelled takes its future along, but what it submitted is decided all the same.
        return await job.future

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query on a connection for readers.

        Raises:
            ClosedError: The store has been closed.
            ValidationError: A parameter is nothing that a store can hold.
            StoreError: The query failed.
        """
        if self._closed or self._readers is None:
            raise ClosedError(f"the store {self.path} is not open")
        check_params(params)
        try:
            return await self._readers.submit(Read(name, params, into))
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def heartbeat(
        self,
        beat: Callable[[], tuple[Verb, Any, Decide]],
        *,
        every_seconds: float,
        stall_seconds: float,
        on_held: Callable[[float], None] = nobody,
    ) -> LockHeartbeat:
        """Nothing for the store, for who has the lock has the lease; `on_held` hears that the loop moves."""
        del beat
        return LockHeartbeat(every_seconds=every_seconds, stall_seconds=stall_seconds, on_held=on_held)

    def listen(self, hear: Callable[[frozenset[str]], None]) -> None:
        """Never calls `hear`: no other process has anything to tell."""

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=_BUSY_SECONDS
        )

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> sqlite3.Connection:
        try:
            connection = self._connect()
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} cannot be opened: {error}", path=str(self.path)) from error
        try:
            version = inspect_sqlite(connection, str(self.path))
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("PRAGMA synchronous = FULL")
            migrate_sqlite(connection, version)
        except sqlite3.Error as error:
            connection.close()
            raise translate(error, self.path) from error
        except BaseException:
            connection.close()
            raise
        return connection


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///…` address names.

    Raises:
        ValidationError: It is not such an address.
    """
    prefix = "sqlite:///"
    if not url.startswith(prefix) or not url[len(prefix) :]:
        raise ValidationError(f"{url!r} is not a store: use sqlite:///FILE (three slashes, four for an absolute path)")
    return Path(url[len(prefix) :])
