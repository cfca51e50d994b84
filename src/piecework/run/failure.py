"""What follows a failure: how long to wait, and when to stop trying. Pure.

A piece's failures are followed by its policy: `Backoff`, unless its integration names another. Its pauses are in
microseconds; chance comes in as a number between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from typing import Any

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
"""What counts as the interval of a piece that has none."""

_DOUBLINGS: Final = 40
_LONGEST_SECONDS: Final = 100 * 365.25 * 86400


class Observed(StrEnum):
    """What a piece is; what people want of it is another matter.

    Queued and running are read off its update, and are no verdict; waiting is what no time makes due; the others are
    what its updates came to.
    """

    IDLE = "idle"
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    BACKOFF = "backoff"
    HALF_OPEN = "half-open"
    BROKEN = "broken"

    @property
    def out_of_order(self) -> bool:
        """Whether it has failed for good or for so long that somebody should hear of it."""
        return self in {Observed.HALF_OPEN, Observed.BROKEN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Tries again after growing pauses, and never gives up what may pass by itself.

    The pause after a failure is anything up to a ceiling, by chance, so that a thousand pieces that failed together do
    not come back together. The ceiling doubles with each failure in a row. After `failures_limit` of them the piece is
    *half-open*: one update each `probe_seconds` looks whether it works again. A permanent failure stops it at once.
    What an update asks for (`Failed(retry_after_seconds=…)`, a server's Retry-After) is waited for at least.

    Attributes:
        first_seconds: The first ceiling; the piece's interval when None.
        cap_seconds: The highest one.
        failures_limit: After how many failures in a row it is half-open.
        probe_seconds: From one update to the next then.

    Raises:
        ValidationError: A duration is not positive, or the limit is no number from 1.
    """

    first_seconds: float | None = None
    cap_seconds: float = 3600
    failures_limit: int = 8
    probe_seconds: float = 3600

    def __post_init__(self) -> None:
        for name in ("cap_seconds", "probe_seconds"):
            _check_seconds(name, getattr(self, name))
        if self.first_seconds is not None:
            _check_seconds("first_seconds", self.first_seconds)
        limit: Any = self.failures_limit
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValidationError(f"Backoff: failures_limit has to be a whole number from 1, not {limit!r}")


def _check_seconds(name: str, seconds: Any) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_SECONDS:
        raise ValidationError(
            f"Backoff: {name} has to be a positive number of seconds, a hundred years at most, not {seconds!r}"
        )


@dataclass(frozen=True, slots=True)
class ThreeStrikes:
    """The three-strikes policy: the pause grows by an interval with each failure, the third in a row ends them.

    The piece is disabled then: its status is `Disabled: ` and what failed; it stays so until somebody enables it again.
    """


FailurePolicy: TypeAlias = Backoff | ThreeStrikes

USUAL: Final = Backoff()
"""The policy of an integration that names none."""

_STRIKES: Final = 3


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What follows a failure.

    Attributes:
        observed: What the piece is now.
        delay: From now to its next update, in microseconds; None: there is none until somebody enables it.
        status: What is said of it.
    """

    observed: Observed
    delay: int | None
    status: str


def after_failure(
    policy: FailurePolicy,
    error: str,
    *,
    every: int,
    failures: int,
    permanent: bool,
    retry_after: int | None,
    spread: float,
) -> Aftermath:
    """What becomes of a piece whose update has failed.

    Args:
        policy: Its integration's.
        error: What failed, in words.
        every: Its interval; 0 where it has none.
        failures: How many failures in a row there have been, this one included.
        permanent: Whether trying again cannot help.
        retry_after: What the failure itself asks to be waited for, at least.
        spread: A random number from 0 to 1.
    """
    usual = every if every > 0 else _MINUTE
    asked = 0 if retry_after is None else retry_after
    match policy:
        case ThreeStrikes():
            if permanent or failures >= _STRIKES:
                return Aftermath(Observed.BROKEN, None, f"Disabled: {error}")
            return Aftermath(Observed.BACKOFF, max(asked, usual * (failures + 1)), error)
        case Backoff():
            if permanent:
                return Aftermath(Observed.BROKEN, None, error)
            if failures >= policy.failures_limit:
                return Aftermath(Observed.HALF_OPEN, max(asked, _micros(policy.probe_seconds)), error)
            return Aftermath(Observed.BACKOFF, max(asked, _pause(policy, usual, failures, spread)), error)


def _pause(policy: Backoff, usual: int, failures: int, spread: float) -> int:
    """Anything up to the ceiling by chance, a second at least where the ceiling is no lower."""
    first = usual if policy.first_seconds is None else _micros(policy.first_seconds)
    ceiling = min(_micros(policy.cap_seconds), first * (1 << min(failures - 1, _DOUBLINGS)))
    return max(min(ceiling, _SECOND), round(ceiling * spread))


def _micros(seconds: float) -> int:
    return round(seconds * _SECOND)


def step_delay(attempt: int, spread: float) -> float:
    """Seconds before a failed step is tried again: doubling from a tenth of a second to ten, half of it by chance.

    Args:
        attempt: Which attempt failed, from 1.
        spread: A random number from 0 to 1.
    """
    full = min(10.0, 0.1 * (1 << min(attempt - 1, 20)))
    return full / 2 + full / 2 * spread


def job_delay(failures: int, spread: float) -> float:
    """Seconds before a failed job is tried again: doubling from half a second to ten minutes, half of it by chance.

    Args:
        failures: How many failures there have been, this one included.
        spread: A random number from 0 to 1.
    """
    full = min(600.0, 0.5 * (1 << min(failures - 1, 20)))
    return full / 2 + full / 2 * spread
