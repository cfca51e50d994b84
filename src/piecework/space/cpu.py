"""Whose processor time it is: each run is charged with what was used while its code was running. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class CpuBook:
    """What the runs of one worker have used, as its keeper's meter tells it.

    Attributes:
        limit_seconds: What one run may use; None is no limit.
    """

    limit_seconds: float | None
    _total: float = 0.0
    _ahead: float = 0.0  # what was charged before the total had it: the two are read at different moments
    _sure: dict[str, float] = field(default_factory=dict)
    _unclear: dict[str, float] = field(default_factory=dict)

    def charge(
        self, total_seconds: float, current: str | None, current_seconds: float, in_flight: Sequence[str]
    ) -> list[str]:
        """Charges what was used since the last time; answers which runs are over the limit, or may be.

        One answer is a run that is over it. Several are all that are in flight: one of them is, and nobody can tell
        which.

        Args:
            total_seconds: What all processes of the worker have used so far.
            current: The run whose code was running, where that is known.
            current_seconds: What its process used of that since the last time.
            in_flight: The runs that the worker has.
        """
        used, self._total = max(0.0, total_seconds - self._total), max(total_seconds, self._total)
        for book in (self._sure, self._unclear):
            for run_id in book.keys() - set(in_flight):
                del book[run_id]
        if self.limit_seconds is None or not in_flight:
            return []
        if len(in_flight) == 1:
            current, current_seconds = in_flight[0], used
        if current is not None and current in in_flight:
            self._sure[current] = self._sure.get(current, 0.0) + current_seconds
            used -= current_seconds + self._ahead
            self._ahead = max(0.0, -used)
            if self._sure[current] > self.limit_seconds:
                return [current]
        for run_id in in_flight:
            self._unclear[run_id] = self._unclear.get(run_id, 0.0) + max(0.0, used)
        return list(in_flight) if any(self._unclear[run_id] > self.limit_seconds for run_id in in_flight) else []
