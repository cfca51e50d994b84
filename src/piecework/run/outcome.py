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
        if not isinstance(self.seconds, int | float) or not 0 <= self.seconds < math.inf:
            raise ValidationError(f"RetryAfter needs a number of seconds from 0, not {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed.

    Attributes:
        error: What happened, in a sentence.
        permanent: True when trying again cannot help: the piece stops until it is enabled again.
        code: A stable code for programs.
        type: The exception's qualified name where there was one.
        trace: Its traceback as text where there was one.
    """

    name: ClassVar[str] = "failed"
    error: str
    permanent: bool = False
    code: str = "EXECUTION_FAILED"
    type: str = ""
    trace: str = ""


Outcome = Success | Skipped | RetryAfter | Failed
