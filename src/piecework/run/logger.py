"""The logger that a run's code is given: each line goes to the process's log and to the run's timeline.

Lines are collected and committed in batches beside the run's own commits, so a log never holds up a decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, StoreError, clean_text
from piecework.run.folds import decide_append
from piecework.run.parts import encode
from piecework.store.items import Append, NewEntry
from piecework.store.values import encode as encode_strictly
from piecework.store.verbs.runs import append
from piecework.telemetry import logs, signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logs.get_logger("piecework.user")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LogBook:
    """Collects the log lines of one segment of a run and writes them to its timeline.

    Args:
        commit: Submits a write of the run.
        run_id: The run.
        epoch: Its epoch; lines of a superseded one are refused by the store.
        decision: The number of the run's latest decision.
        attempt: The run's attempt.
    """

    def __init__(
        self, commit: Callable[..., Awaitable[Any]], run_id: str, epoch: int, decision: int, attempt: int
    ) -> None:
        self._commit = commit
        self._run_id = run_id
        self._epoch = epoch
        self._decision = decision
        self._attempt = attempt
        self._ordinal = 1
        self._lines: list[NewEntry] = []
        self._flushing: asyncio.Task[None] | None = None
        self._thread = threading.get_ident()
        self._loop = asyncio.get_running_loop()

    def decided(self, decision: int, attempt: int) -> None:
        """Says that later lines follow a later decision; flush first."""
        self._decision, self._attempt, self._ordinal = decision, attempt, 1

    def follow(self, epoch: int, decision: int, attempt: int) -> None:
        """Says that later lines are of a later claim of the same run; flush first."""
        self._epoch = epoch
        self.decided(decision, attempt)

    def write(self, level: str, message: str, fields: dict[str, Any], path: str) -> None:
        """Takes a line in, from any thread; it is committed soon, at the latest with `flush`."""
        payload = encode({"message": clean_text(message), "fields": _json_fields(fields)})
        self._lines.append(NewEntry(source="logger", type=f"log.{level}", path=path, payload=payload))
        if threading.get_ident() == self._thread:
            self._begin_to_write()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has closed: a synchronous step outlived its node
                self._loop.call_soon_threadsafe(self._begin_to_write)

    async def flush(self) -> None:
        """Waits until every line so far is durable. A timeline that cannot be written never fails the run."""
        while self._lines or self._flushing is not None:
            self._begin_to_write()
            if self._flushing is not None:
                await self._flushing

    def _begin_to_write(self) -> None:
        if self._flushing is None and self._lines:
            self._flushing = asyncio.ensure_future(self._write_out())

    async def _write_out(self) -> None:
        try:
            while self._lines:
                lines, self._lines = tuple(self._lines), []
                item = Append(
                    run_id=self._run_id,
                    epoch=self._epoch,
                    decision=self._decision,
                    attempt=self._attempt,
                    first=self._ordinal,
                    entries=lines,
                )
                self._ordinal += len(lines)
                await self._commit(append, item, decide_append)
        except (StoreError, ClosedError) as error:
            signals.emit(signals.NODE_TROUBLE, level="warning", what="writing log lines", error=error.message)
        finally:
            self._flushing = None


class RunLogger:
    """What user code logs with.

    Args:
        book: Where timeline lines go; None writes to the process's log only.
        path: Of the step, as the timeline shows it.
        **fields: On every line.
    """

    # Positional only, here and below: a field may have any name, "path" and "message" among them.
    def __init__(self, book: LogBook | None, path: str = "", /, **fields: Any) -> None:
        self._book = book
        self._path = path
        self._fields = fields

    def bind(self, **fields: Any) -> RunLogger:
        """A logger with more fields on every line."""
        return RunLogger(self._book, self._path, **(self._fields | fields))

    def debug(self, message: str, /, **fields: Any) -> None:
        """Logs for those who look closely."""
        self._write("debug", message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """Logs what happened."""
        self._write("info", message, fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        """Logs what somebody should know."""
        self._write("warning", message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        """Logs what went wrong."""
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        fields = self._fields | fields
        _log.log(_LEVELS[level], str(message), fields)
        if self._book is not None:
            self._book.write(level, str(message), fields, self._path)


def _json_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as JSON values: what is not JSON is shown as text."""
    shown: dict[str, Any] = {}
    for key, value in fields.items():
        try:
            encode_strictly(value)
            shown[str(key)] = value
        except ValueError:
            shown[str(key)] = clean_text(repr(value), 200)
    return shown
