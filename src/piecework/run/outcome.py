"""What a piece update may return, and what becomes of it: small frozen verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from piecework.errors import ValidationError


@dataclass(frozen=True, slots=True)
class Success:
    """The work is done.

    Attributes:
        data: JSON values worth keeping in the history, or None.
    """

    name: ClassVar[str] = "success"
    data: Any = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """There was nothing to do; counts as a success.

    Attributes:
        reason: Why, in a few words.
    """

    name: ClassVar[str] = "skipped"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Not now: come back later. No failure.

    Attributes:
        seconds: How much later; less than a second counts as one.

    Raises:
        ValidationError: It is negative or not a number.
    """

    name: ClassVar[str] = "retry_after"
    seconds: float

    def __post_init__(self) -> None:
        _check_seconds("RetryAfter", self.seconds)


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed.

    Attributes:
        error: What happened, in a sentence.
        permanent: True when trying again cannot help: the piece stops until it is enabled again.
        retry_after_seconds: How long to wait at least before the next attempt, where the failure says so.
        code: A stable code for programs.
        type: The exception's qualified name where there was one.
        trace: Its traceback as text where there was one.

    Raises:
        ValidationError: `retry_after_seconds` is negative or not a number.
    """

    name: ClassVar[str] = "failed"
    error: str
    permanent: bool = False
    code: str = "EXECUTION_FAILED"
    type: str = ""
    trace: str = ""
    retry_after_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.retry_after_seconds is not None:
            _check_seconds("Failed: retry_after_seconds", self.retry_after_seconds)


def _check_seconds(what: str, seconds: Any) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValidationError(f"{what} needs a number of seconds from 0, not {seconds!r}")


Outcome = Success | Skipped | RetryAfter | Failed
