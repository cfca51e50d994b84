"""Structured log lines: every line names the run, the piece and the space it belongs to.

Lines go to the standard library's loggers below "piecework", as a `Line` that keeps its fields: a host's own logging
decides what is shown and how. Only our own programs call `configure`, and only they pay for importing structlog.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

logging.getLogger("piecework").addHandler(logging.NullHandler())
_bound: ContextVar[dict[str, Any]] = ContextVar("piecework_log_fields", default={})  # noqa: B039 - never changed in place


class Line:
    """What happened and the fields that belong to it: the `msg` of our log records.

    Attributes:
        event: What happened.
        fields: By name.
    """

    __slots__ = ("event", "fields")

    def __init__(self, event: str, fields: dict[str, Any]) -> None:
        self.event = event
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={value!r}" for name, value in self.fields.items())])


class Logger:
    """Writes structured lines.

    Args:
        name: Of the standard library's logger.
        fields: On every line.
    """

    __slots__ = ("_fields", "_logger")

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self._logger = logging.getLogger(name)
        self._fields = fields

    def bind(self, **fields: Any) -> Logger:
        """A logger with more fields on every line."""
        return Logger(self._logger.name, self._fields | fields)

    def log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        """Writes a line with a level of the `logging` module, if that level is wanted."""
        if self._logger.isEnabledFor(level):
            self._logger.log(level, Line(event, _bound.get() | self._fields | fields), stacklevel=3)

    def debug(self, event: str, **fields: Any) -> None:
        """Writes a line for those who look closely."""
        self.log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Writes a line."""
        self.log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Writes a line about something that may become trouble."""
        self.log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Writes a line about trouble."""
        self.log(logging.ERROR, event, fields)


def get_logger(name: str = "piecework", **fields: Any) -> Logger:
    """Makes a logger whose lines carry `fields` and whatever `bind` put around the caller."""
    return Logger(name, fields)


@contextmanager
def bind(**fields: Any) -> Iterator[None]:
    """Puts `fields` on every log line of the code within, the tasks that it starts included; None is left out."""
    before = _bound.get()
    _bound.set(before | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        # Not a token's reset: a generator may be closed in another context than the one that it began in.
        _bound.set(before)


def bound() -> dict[str, Any]:
    """What `bind` put around the caller; not to be changed."""
    return _bound.get()


def carry(context: Context) -> Context:
    """Puts what `bind` put around the caller into another context, for a task that outlives the caller."""
    context.run(_bound.set, _bound.get())
    return context


def configure(*, level: str = "info", json: bool = False) -> None:
    """Sends log lines to standard error, for people or as JSON. For programs of our own; a library never calls it.

    Args:
        level: The least weight that is shown.
        json: One JSON object a line instead of text.
    """
    import structlog

    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                _spread,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ]
        )
    )
    root = logging.getLogger("piecework")
    root.setLevel(level.upper())
    root.propagate = False
    root.handlers[:] = [handler]


def _spread(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Puts a line's fields where structlog's renderers look for them."""
    line = event["_record"].msg
    if isinstance(line, Line):
        event.update(line.fields)
        event["event"] = line.event
    return event
