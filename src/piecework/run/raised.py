"""What an exception of an update comes to: whether trying again can help, and when. Pure.

Only what certainly stays wrong is permanent: what the code asks for in vain (an unknown name, a value that is not
acceptable), what is forbidden, what is gone. All else may pass: a timeout, a connection, a server that has trouble, a
mistake in code that will be deployed anew. An exception may say so itself: by `permanent`, `retry_after`, an HTTP
status (`status_code`, or its `response`'s) and the header Retry-After.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from piecework.errors import NotFoundError, PieceworkError, ValidationError, describe, trace_of
from piecework.run.outcome import Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PERMANENT: Final = (ValidationError, NotFoundError, PermissionError)
_STATUSES: Final[Mapping[int, str]] = {401: "FORBIDDEN", 403: "FORBIDDEN", 410: "GONE"}
"""HTTP statuses that do not pass by themselves, unless they say when, with the code that they get."""


def failed_by(error: BaseException, now: datetime) -> Failed:
    """Tells what an exception that ended an update comes to.

    Args:
        error: Of a group all have to be permanent for it to be.
        now: An aware datetime, for moments that the error names.
    """
    told = describe(error)
    message = told["message"] if isinstance(error, PieceworkError) else f"{type(error).__name__}: {told['message']}"
    wait = max((seconds for one in _leaves(error) if (seconds := _wait(one, now)) is not None), default=None)
    code = told["code"] if isinstance(getattr(error, "code", None), str) else _code(error) or told["code"]
    return Failed(
        message,
        permanent=wait is None and all(_is_permanent(one) for one in _leaves(error)),
        code=code,
        type=told["type"],
        trace=trace_of(error),
        retry_after_seconds=wait,
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _is_permanent(error: BaseException) -> bool:
    said = _attribute(error, "permanent")
    if isinstance(said, bool):
        return said
    return isinstance(error, _PERMANENT) or _status(error) in _STATUSES


def _code(error: BaseException) -> str | None:
    """The code that all of an error's parts agree on, where they have one."""
    codes = {
        "FORBIDDEN" if isinstance(one, PermissionError) else _STATUSES.get(_status(one) or 0) for one in _leaves(error)
    }
    return codes.pop() if len(codes) == 1 else None


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, by any of the usual names."""
    response = _attribute(error, "response")
    for owner, name in ((error, "status_code"), (error, "status"), (response, "status_code"), (response, "status")):
        value = _attribute(owner, name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _wait(error: BaseException, now: datetime) -> float | None:
    """How many seconds an error asks to be waited for."""
    said = _attribute(error, "retry_after")
    for owner in (error, _attribute(error, "response")):
        if said is None:
            said = _header(_attribute(owner, "headers"))
    seconds = _seconds(said, now)
    return None if seconds is None or not math.isfinite(seconds) else max(0.0, seconds)


def _header(headers: Any) -> Any:
    try:
        return None if headers is None else headers.get("Retry-After", headers.get("retry-after"))
    except Exception:  # noqa: BLE001 - somebody else's object: what it cannot tell is not known
        return None


def _seconds(said: Any, now: datetime) -> float | None:
    match said:
        case bool():
            return None
        case int() | float():
            return float(said)
        case timedelta():
            return said.total_seconds()
        case datetime() if said.tzinfo is not None:
            return (said - now).total_seconds()
        case str():
            return _in_header(said.strip(), now)
        case _:
            return None


def _in_header(text: str, now: datetime) -> float | None:
    """Seconds, or a moment as HTTP writes it."""
    if text.isascii() and text.isdigit():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (moment - now).total_seconds() if moment.tzinfo is not None else None


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001 - as above: httpx, for one, raises where an error has no request
        return None
