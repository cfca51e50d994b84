"""Promises about when something is tried next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.clock import SECOND
from piecework.run.failure import backoff, step_delay
from piecework.run.schedule import JITTER, next_run

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
SPREAD = st.floats(0, 1)
EVERY = st.integers(SECOND, 100 * HOUR)


@given(EVERY, SPREAD)
def test_the_next_run_is_an_interval_away(every, spread):
    """A piece is due an interval after its last update ended, at most a tenth of it later."""
    delay = next_run(1000, every, spread) - 1000
    assert every <= delay <= every * (1 + JITTER) + 1


@given(EVERY, st.integers(1, 200), SPREAD)
def test_backoff_is_bounded(every, failures, spread):
    """A wait after failures is never shorter than half an interval, never longer than an hour or the interval."""
    assert every / 2 - 1 <= backoff(every, failures, spread) <= max(HOUR, every)


@given(EVERY, st.integers(1, 60))
def test_backoff_never_gets_shorter(every, failures):
    """One more failure never means a shorter wait."""
    assert backoff(every, failures, 1) <= backoff(every, failures + 1, 1)


@pytest.mark.parametrize(
    ("every", "failures", "least", "most"),
    [
        (MINUTE, 1, MINUTE, 2 * MINUTE),
        (MINUTE, 2, 2 * MINUTE, 4 * MINUTE),
        (MINUTE, 3, 4 * MINUTE, 8 * MINUTE),
        (MINUTE, 10, HOUR / 2, HOUR),
        (10 * MINUTE, 1, 5 * MINUTE, 10 * MINUTE),
        (24 * HOUR, 1, 12 * HOUR, 24 * HOUR),
        (SECOND, 1, SECOND, 2 * SECOND),
    ],
)
def test_backoff_doubles(every, failures, least, most):
    """Waits double with each failure; half of each is by chance."""
    assert (backoff(every, failures, 0), backoff(every, failures, 1)) == (least, most)


@pytest.mark.parametrize(("attempt", "most"), [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10.0), (1000, 10.0)])
def test_a_step_waits_a_little(attempt, most):
    """A failed step is tried again after a tenth of a second, doubling to ten seconds; half of it by chance."""
    assert (step_delay(attempt, 0), step_delay(attempt, 1)) == (most / 2, most)
