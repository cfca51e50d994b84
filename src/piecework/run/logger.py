"""The logger that a run's code is given: each line goes to the process's log and to the run's timeline.

Lines are collected and committed in batches beside the run's own commits, so a log never holds up a decision. Secrets
are taken out before. Lines that cannot be written are counted, and as soon as writing works again an entry says how
many are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

from piecework.errors import (
    ClosedError,
    NotFoundError,
    StaleEpochError,
    StoreError,
    TimelineGapError,
    clean_text,
    describe,
)
from piecework.run.folds import decide_append
from piecework.run.parts import encode
from piecework.store.items import Append, NewEntry
from piecework.store.values import encode as encode_strictly
from piecework.store.verbs.runs import append
from piecework.telemetry import logs, signals
from piecework.telemetry.redaction import PLAIN, Redaction, secret_values

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from piecework.container.watching import Event
    from piecework.store.records import Run

_log = logs.get_logger("piecework.user")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Timelines:
    """What a node writes to the timelines of its runs beside their decisions.

    Args:
        commit: Submits a write of a run.
        redaction: What is taken out of every line.
        strict: Whether a run ends with the loss of lines.

    Attributes:
        redaction: The same.
        strict: The same.
        lost: How many lines could not be written so far.
    """

    def __init__(
        self, commit: Callable[..., Awaitable[Any]], *, redaction: Redaction = PLAIN, strict: bool = False
    ) -> None:
        self._commit = commit
        self.redaction = redaction
        self.strict = strict
        self.lost = 0
        self._missing: dict[str, int] = {}
        self._layers: dict[str, tuple[Mapping[str, str | None], Redaction]] = {}

    def book(self, run: Run, layer: Mapping[str, str | None] | None = None) -> LogBook:
        """The book of one segment of a run; the values of its workflow's `layer` of variables are secret too."""
        redaction = self.redaction_of(run.workflow_id, layer)
        return LogBook(
            self._commit, run.run_id, run.epoch, run.decision, run.attempt, timelines=self, redaction=redaction
        )

    def redaction_of(self, workflow_id: str, layer: Mapping[str, str | None] | None) -> Redaction:
        """What is taken out of the lines about a workflow, given its `layer` of variables."""
        return self._with(workflow_id, layer) if layer else self.redaction

    def miss(self, run_id: str, lines: int, error: Exception) -> None:
        """Counts lines that were not written."""
        self.lost += lines
        self._missing[run_id] = self._missing.get(run_id, 0) + lines
        signals.emit(
            signals.TIMELINE_GAP, level="warning", run_id=run_id, lines=lines, lost=self.lost, error=describe(error)
        )

    def missing(self, run_id: str) -> int:
        """How many lines are missing in a run's timeline without an entry that says so."""
        return self._missing.get(run_id, 0)

    def told(self, run_id: str) -> None:
        """Says that an entry tells of the missing lines, or that nobody will look for them."""
        self._missing.pop(run_id, None)

    def _with(self, workflow_id: str, layer: Mapping[str, str | None]) -> Redaction:
        known = self._layers.get(workflow_id)
        if known is None or known[0] is not layer:
            known = self._layers[workflow_id] = layer, self.redaction.and_values(secret_values(layer, given=True))
        return known[1]


class LogBook:
    """Collects the log lines of one segment of a run and writes them to its timeline.

    Args:
        commit: Submits a write of the run.
        run_id: The run.
        epoch: Its epoch; lines of a superseded one are refused by the store.
        decision: The number of the run's latest decision.
        attempt: The run's attempt.
        timelines: Counts what could not be written; a count of its own when not given.
        redaction: What is taken out of every line; that of the timelines when not given.

    Attributes:
        redaction: The same.
    """

    def __init__(
        self,
        commit: Callable[..., Awaitable[Any]],
        run_id: str,
        epoch: int,
        decision: int,
        attempt: int,
        *,
        timelines: Timelines | None = None,
        redaction: Redaction | None = None,
    ) -> None:
        self._commit = commit
        self._run_id = run_id
        self._epoch = epoch
        self._decision = decision
        self._attempt = attempt
        self._timelines = Timelines(commit) if timelines is None else timelines
        self.redaction = self._timelines.redaction if redaction is None else redaction
        self._lost = False
        self._ordinal = 1
        self._lines: list[NewEntry] = []
        self._progress: tuple[float, str | None] | None = None
        self._taking = threading.Lock()  # lines come from any thread, also while those there are are taken out
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

    def moved_on(self, entries: int) -> None:
        """Says that a commit that answers no number, such as the last one, wrote so many entries; flush first."""
        self._decision += entries
        self._ordinal = 1

    def write(self, level: str, message: str, fields: dict[str, Any], path: str, source: str = "logger") -> None:
        """Takes a line in, from any thread; it is committed soon, at the latest with `flush`."""
        shown = self.redaction.fields(_json_fields(fields))
        payload = encode({"message": self.redaction.text(clean_text(message)), "fields": shown})
        self._add(NewEntry(source=source, type=f"log.{level}", path=path, payload=payload))

    def write_event(self, event: Event) -> None:
        """Takes in what happened to a service of the run."""
        seconds = event.duration_seconds
        told = {
            "attempt": event.attempt,
            "seconds": None if seconds is None else round(seconds, 3),
            "param": event.param,
        }
        payload: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        if event.error is not None:
            payload["error"] = self.redaction.fields(describe(event.error))
        self._add(
            NewEntry(
                source="container", type=event.event, path=event.key or "", payload=encode(payload) if payload else None
            )
        )

    def progress(self, fraction: float, message: str | None, path: str) -> None:
        """Takes in how far a step is, from any thread. Of what one step says in a batch the newest is kept."""
        shown = None if message is None else self.redaction.text(message)
        payload = encode({"fraction": fraction, "message": shown})
        entry = NewEntry(type="step:progress", path=path, payload=payload)
        with self._taking:
            self._progress = (fraction, shown)
            last = self._lines[-1] if self._lines else None
            if last is not None and (last.type, last.path) == (entry.type, path):
                self._lines[-1] = entry
                return
        self._add(entry)

    async def flush(self) -> None:
        """Waits until every line so far is durable. A timeline that cannot be written fails nothing here."""
        # Who waits may be cancelled: what is being written is taken out already, and is written all the same.
        while self._lines or self._flushing is not None:
            self._begin_to_write()
            if self._flushing is not None:
                await asyncio.shield(self._flushing)
        if self._timelines.missing(self._run_id):
            self._flushing = asyncio.ensure_future(self._write_lines())
            await asyncio.shield(self._flushing)

    def check(self) -> None:
        """Ends a run whose lines were lost, where it is to end with that.

        Raises:
            TimelineGapError: Lines of this segment were not written, and `strict_timeline` is on.
        """
        if self._lost and self._timelines.strict:
            raise TimelineGapError(
                f"log lines of run {self._run_id} could not be written to its timeline, and strict_timeline is on",
                run_id=self._run_id,
            )

    def _add(self, line: NewEntry) -> None:
        with self._taking:
            self._lines.append(line)
        if threading.get_ident() == self._thread:
            self._begin_to_write()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has closed: a synchronous step outlived its node
                self._loop.call_soon_threadsafe(self._begin_to_write)

    def _begin_to_write(self) -> None:
        if self._flushing is None and self._lines:
            self._flushing = asyncio.ensure_future(self._write_lines())

    async def _write_lines(self) -> None:
        try:
            await self._write_out()
            while self._lines:
                await self._write_out()
        finally:
            self._flushing = None

    async def _write_out(self) -> None:
        """Commits the lines there are, behind an entry that says how many are missing before them."""
        with self._taking:
            lines, self._lines = tuple(self._lines), []
            progress, self._progress = self._progress, None
        missing = self._timelines.missing(self._run_id)
        gap = (NewEntry(type="timeline:gap", payload=encode({"lines": missing})),) if missing else ()
        item = Append(
            run_id=self._run_id,
            epoch=self._epoch,
            decision=self._decision,
            attempt=self._attempt,
            first=self._ordinal,
            entries=(*gap, *lines),
            progress=progress,
        )
        self._ordinal += len(item.entries)
        try:
            await self._commit(append, item, decide_append)
        except (StaleEpochError, NotFoundError):  # its successor writes now, or nobody: there is no gap to speak of
            self._timelines.told(self._run_id)
        except (StoreError, ClosedError) as error:
            self._lost = self._lost or bool(lines)
            if lines:
                self._timelines.miss(self._run_id, len(lines), error)
        else:
            if missing:
                self._timelines.told(self._run_id)


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
        redaction = PLAIN if self._book is None else self._book.redaction
        _log.log(LEVELS[level], redaction.text(str(message)), redaction.fields(fields))
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
