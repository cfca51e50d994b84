"""SQLite: one writer thread with group commit, readers on connections of their own.

What arrives while a commit is under way shares the next one: with synchronous=FULL a commit costs much more than the
rows in it. A group that fails is rolled back and its items run again one by one, so that only the guilty one fails.
Nothing is acknowledged before its commit.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import astuple

from piecework.errors import ClosedError, PieceworkError, StoreError, StoreFullError, ValidationError
from piecework.store import statements
from piecework.store.contract import (
    Delete,
    DeleteWhere,
    Failure,
    Insert,
    InsertMissing,
    Lock,
    Put,
    Read,
    StartAgain,
    Update,
)
from piecework.store.lockfile import LockFile
from piecework.store.migrate import inspect_sqlite, migrate_sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from piecework.store.contract import Decide, Request, Script, Verb
    from piecework.store.records import Record

_GROUP_LIMIT = 500
_KEYS_AT_ONCE = 256
_READERS = 2
_STOP = object()


@dataclass(slots=True)
class _Job:
    verb: Verb
    item: Any
    decide: Decide
    now: int
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    then: Callable[[Any], None] | None = None
    outcome: Any = None


class SqliteStore:
    """A store in one file.

    Args:
        path: The file; its folder is made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = LockFile(path)
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._reader = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
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
        self._writer = threading.Thread(target=self._write, args=(connection,), name="piecework-store", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="piecework-reader")

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
            self._jobs.put(_STOP)
            self._writer.join()
        if self._readers is not None:
            self._readers.shutdown()
        for connection in self._reader_connections:
            connection.close()

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
        job = _Job(verb, item, decide, now, loop.create_future(), loop, then)
        self._jobs.put(job)
        # A caller that is cancelled leaves, but what it submitted is decided all the same.
        return await asyncio.shield(job.future)

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query on a connection for readers.

        Raises:
            ClosedError: The store has been closed.
            StoreError: The query failed.
        """
        if self._closed or self._readers is None:
            raise ClosedError(f"the store {self.path} is not open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, name, params, into)

    def _read(self, name: str, params: dict[str, Any], into: type[Record] | None) -> list[Any]:
        connection: sqlite3.Connection | None = getattr(self._reader, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
            self._reader.connection = connection
            self._reader_connections.append(connection)
        try:
            return _select(connection, Read(name, params, into))
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=10
        )

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
            raise _translate(error, self.path) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self, connection: sqlite3.Connection) -> None:
        """The writer thread: takes what has arrived, commits it together, answers."""
        try:
            while True:
                group, stop = self._next_group()
                if group:
                    self._commit(connection, group)
                    _answer(group)
                if stop:
                    return
        finally:
            connection.close()

    def _next_group(self) -> tuple[list[_Job], bool]:
        first = self._jobs.get()
        if first is _STOP:
            return [], True
        group = [first]
        while len(group) < _GROUP_LIMIT:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is _STOP:
                return group, True
            group.append(job)
        return group, False

    def _commit(self, connection: sqlite3.Connection, group: list[_Job]) -> None:
        try:
            self._transact(connection, group)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to an item and is given to its caller
            # SQLite rolls back by itself on a full disk or an I/O error, so the state is looked at, not assumed.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(group) > 1:
                for job in group:
                    self._commit(connection, [job])
            else:
                group[0].outcome = Failure(_translate(error, self.path))

    def _transact(self, connection: sqlite3.Connection, group: list[_Job]) -> None:
        batches: dict[tuple[Verb, Decide], list[_Job]] = {}
        for job in group:
            batches.setdefault((job.verb, job.decide), []).append(job)
        connection.execute("BEGIN IMMEDIATE")
        for (verb, decide), jobs in batches.items():
            script = verb([job.item for job in jobs], decide, max(job.now for job in jobs))
            for job, outcome in zip(jobs, _drive(connection, script), strict=True):
                job.outcome = outcome
        connection.execute("COMMIT")


def _drive(connection: sqlite3.Connection, script: Script) -> list[Any]:
    """Carries out a verb's requests one after the other."""
    answer: Any = None
    try:
        while True:
            answer = _carry_out(connection, script.send(answer))
    except StopIteration as done:
        outcomes: list[Any] = done.value
        return outcomes


def _carry_out(connection: sqlite3.Connection, request: Request) -> Any:
    match request:
        case Lock():
            return _lock(connection, request)
        case Read():
            return _select(connection, request)
        case Insert(records):
            connection.executemany(statements.insert(type(records[0])), map(astuple, records))
        case Put(records):
            connection.executemany(statements.put(type(records[0])), map(astuple, records))
        case Update(records):
            _update(connection, records)
        case Delete(record, keys):
            connection.executemany(statements.delete(record), keys)
        case DeleteWhere(name, params):
            flat, sizes = statements.spread(params)
            connection.execute(statements.named_for(name, None, sizes), flat)
        case InsertMissing(records, unique):
            return _insert_missing(connection, records, unique)
        case StartAgain():
            # Nobody else writes while the writer thread does: what was peeked at cannot have changed.
            raise StoreError("a verb asked to start again, which a single writer never needs")
    return None


def _lock(connection: sqlite3.Connection, request: Lock) -> list[Record]:
    """A single writer needs no lock: this is the read that goes with it."""
    keys = sorted(set(request.keys), key=repr)
    found: list[Record] = []
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        part = keys[start : start + _KEYS_AT_ONCE]
        part += [part[-1]] * ((1 << (len(part) - 1).bit_length()) - len(part))
        text = statements.by_keys(request.record, len(part))
        rows = connection.execute(text, [value for key in part for value in key])
        found += [request.record(*row) for row in rows]
    return found


def _select(connection: sqlite3.Connection, request: Read) -> list[Any]:
    flat, sizes = statements.spread(request.params)
    rows = connection.execute(statements.named_for(request.name, request.into, sizes), flat).fetchall()
    return rows if request.into is None else [request.into(*row) for row in rows]


def _update(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    record = type(records[0])
    order = itemgetter(*statements.update_order(record))
    cursor = connection.executemany(statements.update(record), [order(astuple(r)) for r in records])
    if cursor.rowcount != len(records):
        raise StoreError(f"{len(records) - cursor.rowcount} of {len(records)} rows of {record.table} are gone")


def _insert_missing(connection: sqlite3.Connection, records: Iterable[Record], unique: str) -> list[Record]:
    inserted: list[Record] = []
    for record in records:
        rows = connection.execute(statements.insert_missing(type(record), unique), astuple(record)).fetchall()
        inserted += [type(record)(*row) for row in rows]
    return inserted


def _answer(group: list[_Job]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in group:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, jobs)
        except RuntimeError:  # the loop has closed: nobody waits there any more, and what was decided is durable
            continue


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.then is not None and not isinstance(job.outcome, Failure):
            job.then(job.outcome)
        if job.future.done():
            continue
        if isinstance(job.outcome, Failure):
            job.future.set_exception(job.outcome.error)
            job.future.exception()  # marks it as seen: a caller that was cancelled does not wait for it any more
        else:
            job.future.set_result(job.outcome)


def _translate(error: BaseException, path: Path) -> BaseException:
    if isinstance(error, PieceworkError):
        return error
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StoreFullError(f"the disk under {path} is full: make room, nothing was lost", path=str(path))
        return StoreError(f"the store {path} failed: {error}", path=str(path))
    return error


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///…` address names.

    Raises:
        ValidationError: It is not such an address.
    """
    prefix = "sqlite:///"
    if not url.startswith(prefix) or not url[len(prefix) :]:
        raise ValidationError(f"{url!r} is not a store: use sqlite:///FILE (three slashes, four for an absolute path)")
    return Path(url[len(prefix) :])
