"""When a space may have its next worker: at once, after a pause, or not before somebody looks. Pure: no clock, no I/O.

A worker that ended by itself, or could not start, is a failure of the space. After each in a row the next start waits
twice as long. Many within a while open the breaker: then one worker is tried now and then, with a single run (a probe),
and only when that run has come back is all as before. A crash that is charged to a run delays the next start too, but
opens no breaker: its piece answers for it, and its neighbours go on.
"""

from __future__ import annotations

from collections import deque

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_FIRST_PROBE_SECONDS = 60.0
_LONGEST_PROBE_SECONDS = 3600.0
_DOUBLINGS = 12


class Breaker:
    """What is known about the failures of one space.

    Args:
        limit: How many failures open it.
        window_seconds: Within how long.
    """

    def __init__(self, limit: int, window_seconds: float) -> None:
        self._limit = max(1, limit)
        self._window = window_seconds
        self._failures: deque[float] = deque()
        self._in_a_row = 0
        self._probes = 0
        self._not_before = 0.0
        self.reason: str | None = None
        self.broken = False

    def failed(self, now: float, reason: str, *, charged: bool = False) -> bool:
        """Notes that a worker ended by itself or could not start.

        Args:
            now: Monotonic seconds.
            reason: What happened.
            charged: True when a run answers for it.

        Returns:
            Whether this has opened the breaker.
        """
        self.reason = reason
        self._in_a_row += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(self._in_a_row - 1, _DOUBLINGS), _LONGEST_PAUSE_SECONDS)
        if not charged:
            self._failures.append(now)
        while self._failures and now - self._failures[0] >= self._window:
            self._failures.popleft()
        before, self.broken = self.broken, self.broken or len(self._failures) >= self._limit
        if self.broken and not charged:  # a probe that a run answers for: the next one need not wait for long
            pause = min(_FIRST_PROBE_SECONDS * 2 ** min(self._probes, _DOUBLINGS), _LONGEST_PROBE_SECONDS)
            self._probes += 1
        self._not_before = now + pause
        return self.broken and not before

    def served(self) -> bool:
        """Notes that a worker has brought a run back; answers whether that has closed the breaker."""
        if self.broken:
            self.close()
            return True
        self._in_a_row, self._not_before = 0, 0.0
        return False

    def close(self) -> None:
        """Forgets every failure: somebody has mended it, or it works."""
        self._failures.clear()
        self._in_a_row = self._probes = 0
        self._not_before = 0.0
        self.reason = None
        self.broken = False

    def probe(self) -> None:
        """Lets the next start be tried at once: somebody wants to know."""
        self._not_before = 0.0

    def wait_seconds(self, now: float) -> float:
        """How long from now until a worker may be started; 0 when it may."""
        return max(0.0, self._not_before - now)
