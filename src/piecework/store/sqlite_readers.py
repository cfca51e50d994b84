"""The threads that read: connections of their own, so that a reader neither waits for the writer nor holds it up.

Questions of one kind that wait together are answered together: to wake the loop costs more than a small query.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.store.sqlite_crowd import Watch
from piecework.store.sqlite_requests import Hands

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.store.contract import Read
    from piecework.store.sqlite_crowd import Crowd

_READERS = 2
_TOGETHER = 16
_STOP = object()


@dataclass(slots=True, eq=False)
class _Question:
    query: Read
    future: asyncio.Future[list[Any]]
    rows: list[Any] | None = None
    error: BaseException | None = None

    def resolve(self) -> None:
        """Answers, on the loop of who asked."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.rows or [])
        else:
            self.future.set_exception(self.error)


class Readers:
    """Two threads that answer queries.

    Args:
        connect: Makes a connection.
        crowd: Says which form of a query is the cheaper one, and learns from each.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], crowd: Crowd) -> None:
        self._connect = connect
        self._crowd = crowd
        self._own = threading.local()
        self._open: set[sqlite3.Connection] = set()
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        names = (f"piecework-reader_{number}" for number in range(_READERS))
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def submit(self, query: Read) -> asyncio.Future[list[Any]]:
        """Answers a query's rows on the running loop; it fails with `sqlite3.Error` if SQLite refused twice."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._questions.put(_Question(query, future))
        return future

    def close(self) -> None:
        """Finishes what was asked, then closes the connections."""
        for _ in self._threads:
            self._questions.put(_STOP)
        for thread in self._threads:
            thread.join()
        for connection in list(self._open):
            connection.close()

    def _work(self) -> None:
        following: Any = None
        while following is not _STOP:
            following = self._answer_next(following)

    def _answer_next(self, first: Any) -> Any:
        """Answers a question and those of its kind that wait already; answers the next one, if it was taken out.

        What waits for the next question holds on to none, so that the rows of the last answer are not kept till then.
        """
        first = self._questions.get() if first is None else first
        if first is _STOP:
            return first
        group, following = [first], None
        self._answer(first)
        while len(group) < _TOGETHER:
            try:
                following = self._questions.get_nowait()
            except queue.Empty:
                break
            if following is _STOP or following.query.name != first.query.name:  # it may take long
                break
            self._answer(following)
            group.append(following)
            following = None
        _tell(group)
        return following

    def _answer(self, question: _Question) -> None:
        if question.future.done():  # whoever asked has gone
            return
        try:
            question.rows = self._read(question.query)
        except BaseException as error:  # noqa: BLE001 - whatever it is, who asked is told and the thread goes on
            question.error = error

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


def _tell(group: list[_Question]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Question]] = {}
    for question in group:
        by_loop.setdefault(question.future.get_loop(), []).append(question)
    for loop, questions in by_loop.items():
        with contextlib.suppress(RuntimeError):  # a loop that has closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, questions)


def _resolve(questions: list[_Question]) -> None:
    for question in questions:
        question.resolve()
