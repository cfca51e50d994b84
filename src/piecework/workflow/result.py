"""What a run came to, as a value: ok or not, never an exception in disguise."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import piecework.errors
from piecework.errors import ExecutionFailedError, PieceworkError
from piecework.run.lifecycle import Status

if TYPE_CHECKING:
    from piecework.run.info import RunInfo


@dataclass(frozen=True, slots=True)
class RunValue:
    """How a run stands.

    Attributes:
        status: completed or paused.
        state: The run's data.
        waiting_for: The event types that a paused run waits for.
        delivered: What became of a signal: "live", or "stored" until the run goes on; None for everything else.
    """

    status: str
    state: dict[str, Any]
    waiting_for: list[str] | None = None
    delivered: str | None = None


@dataclass(frozen=True, slots=True)
class RunMetadata:
    """Which run it was.

    Attributes:
        run_id: Its id.
        status: completed, paused, failed or aborted.
    """

    run_id: str
    status: str


class Result:
    """The outcome of `invoke`, `resume` or `wait`. A failed one that nobody looks at warns when it is dropped.

    Args:
        value: When it is ok.
        error: When it is not.
        metadata: None when there never was a run.
    """

    __slots__ = ("_error", "_looked_at", "_metadata", "_value")

    def __init__(
        self, *, value: RunValue | None = None, error: PieceworkError | None = None, metadata: RunMetadata | None = None
    ) -> None:
        self._value = value
        self._error = error
        self._metadata = metadata
        self._looked_at = error is None

    @property
    def ok(self) -> bool:
        """Whether the run completed or paused."""
        self._looked_at = True
        return self._error is None

    @property
    def value(self) -> RunValue | None:
        """How the run stands; None when it is not ok."""
        return self._value

    @property
    def error(self) -> PieceworkError | None:
        """What went wrong; None when it is ok."""
        self._looked_at = True
        return self._error

    @property
    def metadata(self) -> RunMetadata | None:
        """Which run it was; None when there never was one."""
        return self._metadata

    def unwrap(self) -> RunValue:
        """The value, or its error raised.

        Raises:
            PieceworkError: The run failed or was aborted, or could not be started or resumed.
        """
        self._looked_at = True
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value

    def __repr__(self) -> str:
        if self._error is not None:
            return f"Result(error={self._error.code}: {self._error.message})"
        return f"Result({self._value!r})"

    def __del__(self) -> None:
        if not self._looked_at and not sys.is_finalizing():
            warnings.warn(
                f"nobody looked at a failed {self!r}: check .ok or call .unwrap()", ResourceWarning, stacklevel=2
            )


def result_of(info: RunInfo, state: dict[str, Any]) -> Result:
    """How a run stands, or what it came to."""
    metadata = RunMetadata(info.run_id, info.status)
    if info.error is not None and info.status in {Status.FAILED, Status.ABORTED}:
        return Result(error=error_from(info.error), metadata=metadata)
    return Result(value=RunValue(info.status, state, info.waiting_for), metadata=metadata)


def error_from(stored: dict[str, Any]) -> PieceworkError:
    """The error that was stored with a run, as an exception of the class that has its code."""
    code = stored.get("code")
    for cls in vars(piecework.errors).values():
        if isinstance(cls, type) and issubclass(cls, PieceworkError) and cls.code == code:
            return cls(stored.get("message", ""), type=stored.get("type"))
    return ExecutionFailedError(stored.get("message", ""), type=stored.get("type"))
