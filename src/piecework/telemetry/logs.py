"""Structured log lines: every line names the run, the piece and the space it belongs to.

Importing this configures nothing: a host's own logging stays as it is. The command line calls `configure`.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

bound = structlog.contextvars.bound_contextvars


def get_logger(name: str = "piecework", **fields: Any) -> structlog.stdlib.BoundLogger:
    """Makes a logger whose lines carry `fields` and whatever `bound` put around the caller."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name, **fields)
    return logger


def bind(**fields: Any) -> AbstractContextManager[None]:
    """Puts `fields` on every log line of the code within, the tasks that it starts included."""
    return bound(**{name: value for name, value in fields.items() if value is not None})


def configure(*, level: str = "info", json: bool = False) -> None:
    """Sends log lines to standard error, for people or as JSON. For programs of our own; a library never calls it.

    Args:
        level: The least weight that is shown.
        json: One JSON object a line instead of text.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, last],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger("piecework")
    root.setLevel(level.upper())
    root.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.handlers[:] = [handler]
