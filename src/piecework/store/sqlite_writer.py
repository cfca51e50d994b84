"""The one thread that writes: takes what has arrived, commits it together, answers.

With synchronous=FULL a commit costs much more than the rows in it, so what arrives while one is under way shares the
next. A group that fails is rolled back and its items run again one by one, so that only the guilty one fails. Nothing
is acknowledged before its commit, and the thread outlives every failure: its callers are told instead.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any

from piecework.errors import StoreError, StoreFullError
from piecework.store.contract import Failure
from piecework.store.sqlite_crowd import Watch
from piecework.store.sqlite_requests import Hands

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from piecework.store.contract import Decide, Verb
    from piecework.store.job import Job
    from piecework.store.sqlite_crowd import Crowd

_GROUP_LIMIT = 500
_STOP = object()


class Writer:
    """A thread with the connection that writes.

    Args:
        path: The file, for messages.
        connection: Ready to write. It is the writer's from now on.
        connect: Makes another such connection, for when one cannot be used any more.
        crowd: Says which form of a request is the cheaper one, and learns from each group.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, connect: Callable[[], sqlite3.Connection], crowd: Crowd
    ) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = connection
        self._connect = connect
        self._crowd = crowd
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="piecework-store", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes an item; its future is resolved on its loop once the outcome is durable."""
        self._jobs.put(job)

    def finish(self) -> None:
        """Blocks until all that was submitted is answered and the thread has ended. The connection stays open."""
        self._jobs.put(_STOP)
        self._thread.join()

    def close(self) -> None:
        """Closes the connection, after `finish`."""
        if self._connection is not None:
            self._connection.close()

    def _work(self) -> None:
        stop = False
        while not stop:
            group, stop = self._next_group()
            if group:
                self._commit(group)
                _answer(group)

    def _next_group(self) -> tuple[list[Job], bool]:
        group: list[Job] = []
        job = self._jobs.get()
        while job is not _STOP:
            group.append(job)
            if len(group) == _GROUP_LIMIT:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[Job]) -> None:
        """Decides a group in one transaction; one that fails is taken apart."""
        try:
            connection = self._begin()
        except BaseException as error:  # noqa: BLE001 - no item is to blame; to try each would wait for the lock anew
            _fail(group, translate(error, self._path))
            return
        try:
            self._decide(connection, group)
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to an item and its caller is told
            self._roll_back(connection)
            if len(group) == 1:
                _fail(group, translate(error, self._path))
                return
            for job in group:
                self._commit([job])

    def _begin(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        # SQLite rolls back by itself on a full disk or an I/O error, so the state is looked at, not assumed.
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # the failure that led here is told; a connection that cannot even do this is replaced
            self._connection = None
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _decide(self, connection: sqlite3.Connection, group: list[Job]) -> None:
        batches: dict[tuple[Verb, Decide], list[Job]] = {}
        for job in group:
            batches.setdefault((job.verb, job.decide), []).append(job)
        watch = Watch()
        hands = Hands(connection, at_once=self._crowd.crowded)
        for (verb, decide), jobs in batches.items():
            script = verb([job.item for job in jobs], decide, max(job.now for job in jobs))
            for job, outcome in zip(jobs, hands.drive(script), strict=True):
                job.outcome = outcome
        self._crowd.observe(watch, hands.steps)


def _fail(group: list[Job], error: BaseException) -> None:
    for job in group:
        job.outcome = Failure(error)


def _answer(group: list[Job]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in group:
        by_loop.setdefault(job.future.get_loop(), []).append(job)
    for loop, jobs in by_loop.items():
        # A loop that has closed: nobody waits there any more, and what was decided is durable.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, jobs)


def _resolve(jobs: list[Job]) -> None:
    for job in jobs:
        job.resolve()


def translate(error: BaseException, path: Path) -> Exception:
    """What a caller is told: our own errors as they are, SQLite's with the file and what to do.

    What would end the caller's loop or look like its own cancellation is wrapped: it came from another thread's work.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            told: StoreError = StoreFullError(
                f"the disk under {path} is full: make room, nothing was lost", path=str(path)
            )
        elif code == sqlite3.SQLITE_IOERR:
            told = StoreError(f"the store {path} failed: {error}; look at its disk, nothing was lost", path=str(path))
        elif code == sqlite3.SQLITE_BUSY:
            told = StoreError(
                f"the store {path} is locked by another program: let it end its transaction", path=str(path)
            )
        else:
            told = StoreError(f"the store {path} failed: {error}", path=str(path))
    elif isinstance(error, StopIteration | CancelledError) or not isinstance(error, Exception):
        told = StoreError(f"a decision of the store {path} ended with {error!r}", path=str(path))
    else:
        return error
    told.__cause__ = error
    return told
