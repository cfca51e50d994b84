"""The threads that read: connections of their own, so that a reader neither waits for the writer nor holds it up."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from piecework.store.sqlite_crowd import Watch
from piecework.store.sqlite_requests import Hands

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from piecework.store.contract import Read
    from piecework.store.sqlite_crowd import Crowd

_READERS = 2


class Readers:
    """Two threads that answer queries.

    Args:
        connect: Makes a connection.
        crowd: Says which form of a query is the cheaper one, and learns from each.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], crowd: Crowd) -> None:
        self._connect = connect
        self._crowd = crowd
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="piecework-reader")
        self._own = threading.local()
        self._open: set[sqlite3.Connection] = set()

    def submit(self, query: Read) -> Future[list[Any]]:
        """Answers a query's rows; the future fails with `sqlite3.Error` if SQLite refused it twice."""
        return self._threads.submit(self._read, query)

    def close(self) -> None:
        """Finishes what was asked, then closes the connections."""
        self._threads.shutdown()
        for connection in list(self._open):
            connection.close()

    def _read(self, query: Read) -> list[Any]:
        """A connection that failed is replaced, and the query tried once more: to read twice is harmless."""
        try:
            return self._select(query)
        except sqlite3.Error:
            self._drop()
        try:
            return self._select(query)
        except sqlite3.Error:
            self._drop()
            raise

    def _select(self, query: Read) -> list[Any]:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._connect()
            self._open.add(connection)
            connection.execute("PRAGMA query_only = ON")
        watch = Watch()
        hands = Hands(connection, at_once=self._crowd.crowded)
        rows = hands.select(query)
        self._crowd.observe(watch, hands.steps)
        return rows

    def _drop(self) -> None:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if connection is not None:
            self._open.discard(connection)
            with contextlib.suppress(sqlite3.Error):
                connection.close()
