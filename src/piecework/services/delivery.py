"""What follows an attempt to deliver a mail: pure, from what is known of the attempts to the next move.

A mail can be refused, and then it certainly was not taken; or its outcome is unknown: the process died between the
committed attempt and the answer, or the server's answer was lost. Refusals are tried again freely. An unknown outcome
is tried once more, with the same Message-ID, so that at most two copies ever arrive; a second unknown one ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from piecework.errors import MailRefused, MailUnknown

Result = Literal["sent", "refused", "permanent", "unknown"]
"""How an attempt went: taken; refused for now; refused for good; nobody knows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next move.

    Attributes:
        verdict: The mail is done, waits for another attempt, or has failed.
        seconds: How long a retry waits; None for the others.
        code: Of the failure, MAIL_REFUSED or DELIVERY_UNKNOWN; None for the others.
    """

    verdict: Literal["done", "retry", "failed"]
    seconds: float | None = None
    code: str | None = None


def after_attempt(result: Result, *, refusals: int, unknowns: int, retry_seconds: tuple[float, ...]) -> Decision:
    """Decides what follows an attempt.

    Args:
        result: How the attempt went; "unknown" also for one that was committed and never ended.
        refusals: How many attempts were refused for now so far, this one included.
        unknowns: How many attempts had an unknown outcome so far, this one included.
        retry_seconds: The waits after the first refusal, the second, and so on; after the last one it has failed.

    A mail that fails with an unknown attempt behind it may have arrived: its code is DELIVERY_UNKNOWN, whatever the
    last attempt said.
    """
    match result:
        case "sent":
            return Decision("done")
        case "permanent":
            return _failed(unknowns)
        case "refused":
            assert refusals >= 1, "this refusal counts"
            if refusals > len(retry_seconds):
                return _failed(unknowns)
            return Decision("retry", seconds=retry_seconds[refusals - 1])
        case "unknown":
            assert unknowns >= 1, "this attempt counts"
            if unknowns > 1:
                return _failed(unknowns)
            return Decision("retry", seconds=retry_seconds[0] if retry_seconds else 0)
        case _:
            assert_never(result)


def _failed(unknowns: int) -> Decision:
    return Decision("failed", code=(MailUnknown if unknowns else MailRefused).code)
