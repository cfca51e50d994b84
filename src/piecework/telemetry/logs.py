"""Structured log lines: every line names the run, the piece and the space it belongs to.

Lines go to the standard library's loggers below "piecework": a host's own logging decides what is shown. Only our own
programs call `configure`.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Renderer = Callable[[Any, str, Any], Any]

logging.getLogger("piecework").addHandler(logging.NullHandler())
_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
_renderer: Renderer = structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True)


def _render(logger: Any, method: str, fields: Any) -> Any:
    return _renderer(logger, method, fields)


_PROCESSORS: list[Any] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    _stamp,
    structlog.processors.format_exc_info,
    _render,
]


def get_logger(name: str = "piecework", **fields: Any) -> structlog.stdlib.BoundLogger:
    """Makes a logger whose lines carry `fields` and whatever `bind` put around the caller."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=_PROCESSORS,
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
        **fields,
    )
    return logger


def bind(**fields: Any) -> AbstractContextManager[None]:
    """Puts `fields` on every log line of the code within, the tasks that it starts included."""
    return structlog.contextvars.bound_contextvars(
        **{name: value for name, value in fields.items() if value is not None}
    )


def configure(*, level: str = "info", json: bool = False) -> None:
    """Sends log lines to standard error, for people or as JSON. For programs of our own; a library never calls it.

    Args:
        level: The least weight that is shown.
        json: One JSON object a line instead of text.
    """
    global _renderer  # noqa: PLW0603 - how this process shows its lines, set once by its main program
    _renderer = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    root = logging.getLogger("piecework")
    root.setLevel(level.upper())
    root.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.handlers[:] = [handler]
