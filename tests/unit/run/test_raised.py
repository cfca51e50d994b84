"""Promises about exceptions: which of them trying again may help, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest

from piecework.errors import MailRefused, NotFoundError, TimeoutExceededError, ValidationError
from piecework.run.raised import failed_by

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class HttpStatusError(Exception):
    """As the common libraries make them: with the response, and with a request that may raise when it is asked for."""

    def __init__(self, status, headers):
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers)

    @property
    def request(self):
        raise RuntimeError("no request was set")

    retry_after = request


def http(status, **headers):
    """What a library for HTTP raises for an answer."""
    return HttpStatusError(status, headers)


def made(**attributes):
    """An exception with attributes of its own."""
    error = RuntimeError("x")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "permanent", "code"),
    [
        (RuntimeError("x"), False, "EXECUTION_FAILED"),
        (TimeoutError(), False, "EXECUTION_FAILED"),
        (ConnectionResetError(), False, "EXECUTION_FAILED"),
        (TimeoutExceededError("late"), False, "TIMEOUT"),
        (FileNotFoundError("x"), False, "EXECUTION_FAILED"),
        (ValueError("x"), False, "EXECUTION_FAILED"),
        (KeyError("x"), False, "EXECUTION_FAILED"),
        (PermissionError("x"), True, "FORBIDDEN"),
        (ValidationError("x"), True, "VALIDATION_ERROR"),
        (NotFoundError("x"), True, "NOT_FOUND"),
        (MailRefused("x", permanent=True), True, "MAIL_REFUSED"),
        (MailRefused("x"), False, "MAIL_REFUSED"),
        (made(permanent=True), True, "EXECUTION_FAILED"),
        (http(401), True, "FORBIDDEN"),
        (http(403), True, "FORBIDDEN"),
        (http(410), True, "GONE"),
        (http(404), False, "EXECUTION_FAILED"),
        (http(429), False, "EXECUTION_FAILED"),
        (http(503), False, "EXECUTION_FAILED"),
        (HTTPError("https://example.org", 410, "Gone", {}, None), True, "GONE"),
        (made(status_code=403), True, "FORBIDDEN"),
        (ExceptionGroup("two", [PermissionError("a"), PermissionError("b")]), True, "FORBIDDEN"),
        (ExceptionGroup("two", [PermissionError("a"), OSError("b")]), False, "EXECUTION_FAILED"),
    ],
    ids=repr,
)
def test_what_trying_again_cannot_help(error, permanent, code):
    """What is forbidden, gone, unknown or not acceptable is permanent; all else may pass, and counts as transient."""
    failed = failed_by(error, NOW)
    assert (failed.permanent, failed.code, failed.retry_after_seconds) == (permanent, code, None)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (made(retry_after=5), 5),
        (made(retry_after="90"), 90),
        (made(retry_after=timedelta(minutes=2)), 120),
        (made(retry_after=NOW + timedelta(hours=1)), 3600),
        (made(retry_after=-5), 0),
        (http(429, **{"Retry-After": "120"}), 120),
        (http(503, **{"Retry-After": "Thu, 01 Jan 2026 00:10:00 GMT"}), 600),
        (http(403, **{"retry-after": "60"}), 60),  # what says when it passes is not permanent
        (HTTPError("https://example.org", 503, "Busy", {"Retry-After": "7"}, None), 7),
        (ExceptionGroup("two", [made(retry_after=5), made(retry_after=9)]), 9),
    ],
    ids=repr,
)
def test_what_says_when(error, seconds):
    """An exception that says when to try again is transient, and its time is kept."""
    failed = failed_by(error, NOW)
    assert (failed.permanent, failed.retry_after_seconds) == (False, seconds)


@pytest.mark.parametrize("said", ["soon", "", None, True, float("nan"), float("inf"), datetime(2026, 1, 2), object()])  # noqa: DTZ001 - that is what is wrong with it
def test_what_says_nothing(said):
    """A time that is none is not looked at; an object that breaks when it is asked neither."""
    assert failed_by(made(retry_after=said), NOW).retry_after_seconds is None
    broken = made(response=SimpleNamespace(headers=5, status_code="403"))
    assert failed_by(broken, NOW).permanent is False
