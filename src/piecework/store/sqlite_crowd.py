"""Tells whether others compete for the interpreter, by how long the store's threads wait to get it back.

`sqlite3` gives the interpreter up at every step of a statement. Beside a thread that computes, each step then waits for
a whole switch interval, so that the number of steps is all that counts; where nobody competes a step costs nothing and
many small ones are the cheapest. What is compared is the time that passed with the time that the thread computed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

_CROWDED_NS = 20_000
_QUIET_NS = 5_000
_CAP_NS = 100_000
_WEIGHT = 0.25


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the last transactions told.

    Attributes:
        per_step: How long a step waited, in nanoseconds, recent ones weighing more.
        crowded: Whether it is worth while to take few, large steps.
    """

    per_step: float = 0.0
    crowded: bool = False


def observe(before: Waiting, waited: int, steps: int) -> Waiting:
    """Learns from one transaction.

    The two bounds lie apart, so that the answer does not flicker: a step saved is worth about ten microseconds of
    computing. A long wait counts as a moderate one: a single one (the machine was busy, a page came from the disk) must
    not decide, and the end of a crowd must be noticed soon.

    Args:
        before: What was known.
        waited: Time that passed and was not computed in, in nanoseconds.
        steps: How often the interpreter was given up meanwhile.
    """
    if steps <= 0:
        return before
    sample = min(max(waited, 0) / steps, _CAP_NS)
    per_step = before.per_step + (sample - before.per_step) * _WEIGHT
    return Waiting(per_step, per_step > (_QUIET_NS if before.crowded else _CROWDED_NS))


class Crowd:
    """What is known at the moment; threads of one store share it. A lost update does no harm."""

    def __init__(self) -> None:
        self.waiting = Waiting()

    @property
    def crowded(self) -> bool:
        """Whether few, large steps are the cheaper form now."""
        return self.waiting.crowded

    def observe(self, watch: Watch, steps: int) -> None:
        """Learns from what a thread did since its watch was started."""
        self.waiting = observe(self.waiting, watch.waited(), steps)


class Watch:
    """Started at once; tells how long this thread has waited since."""

    __slots__ = ("_computed", "_passed")

    def __init__(self) -> None:
        self._passed = time.perf_counter_ns()
        self._computed = time.thread_time_ns()

    def waited(self) -> int:
        """Nanoseconds that passed without this thread computing."""
        return time.perf_counter_ns() - self._passed - (time.thread_time_ns() - self._computed)
