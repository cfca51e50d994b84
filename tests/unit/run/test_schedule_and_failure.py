"""Promises about when something is tried next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.clock import SECOND
from piecework.run.failure import job_delay, step_delay
from piecework.run.schedule import JITTER, is_missed, later, next_occurrence, next_run

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
SPREAD = st.floats(0, 1)
EVERY = st.integers(SECOND, 100 * HOUR)


@given(EVERY, SPREAD)
def test_the_next_run_is_an_interval_away(every, spread):
    """A piece is due an interval after its last update ended, at most a tenth of it later."""
    delay = next_run(1000, every, spread) - 1000
    assert every <= delay <= every * (1 + JITTER) + 1


@pytest.mark.parametrize(("attempt", "most"), [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10.0), (1000, 10.0)])
def test_a_step_waits_a_little(attempt, most):
    """A failed step is tried again after a tenth of a second, doubling to ten seconds; half of it by chance."""
    assert (step_delay(attempt, 0), step_delay(attempt, 1)) == (most / 2, most)


def every_minute(moment):
    """A schedule that is met at each full minute."""
    return (moment // MINUTE + 1) * MINUTE


# The time that was carried out, when that began, and now, in minutes; what follows by each of the two rules.
NEXT = [
    ("once", "skip", 0, 0.1, 0.2, 1),
    ("once", "skip", 0, 0.1, 3.5, 4),
    ("once", "queue", 0, 0.1, 3.5, 1),
    ("once", "allow", 0, 0.1, 0.1, 1),
    ("once", "skip", 0, 7.5, 7.6, 8),
    ("once", "queue", 0, 7.5, 9.5, 8),
    ("skip", "skip", 0, 7.5, 7.6, 8),
    ("all", "skip", 0, 7.5, 7.6, 1),
    ("all", "queue", 0, 7.5, 9.5, 1),
    ("all", "skip", 7, 7.5, 9.5, 10),
    ("all", "queue", 7, 7.5, 9.5, 8),
    ("all", "allow", 7, 7.5, 7.5, 8),
]


@pytest.mark.parametrize(("missed", "overlap", "occurrence", "began", "now", "expected"), NEXT)
def test_what_follows_a_time(missed, overlap, occurrence, began, now, expected):
    """Times at which nobody was there, and those at which the run before still worked, have a rule each."""
    found = next_occurrence(
        occurrence * MINUTE,
        round(began * MINUTE),
        round(now * MINUTE),
        every_minute,
        missed=missed,
        overlap=overlap,
    )
    assert found == expected * MINUTE


@given(
    st.integers(0, 1000),
    st.integers(0, HOUR),
    st.integers(0, HOUR),
    st.sampled_from(["once", "skip", "all"]),
    st.sampled_from(["skip", "queue", "allow"]),
)
def test_a_schedule_goes_on(occurrence, late, long, missed, overlap):
    """What follows a time is a later time of the schedule, and the times never stop."""
    moment = occurrence * MINUTE
    found = next_occurrence(moment, moment + late, moment + late + long, every_minute, missed=missed, overlap=overlap)
    assert found > moment
    assert found % MINUTE == 0
    if overlap == "skip" and missed != "all":
        assert found > moment + late + long


def test_a_schedule_may_end():
    """Where no time follows, none is made up."""
    assert next_occurrence(0, 0, 0, lambda _: None, missed="once", overlap="skip") is None
    assert later(5, lambda _: None, jitter=1, spread=1) == 5


@pytest.mark.parametrize(
    ("missed", "late", "expected"), [("skip", 61, True), ("skip", 59, False), ("once", 999, False)]
)
def test_too_late(missed, late, expected):
    """Only by the rule "skip" does a time go by, and only when it is more than a minute late."""
    assert is_missed(0, late * SECOND, missed) is expected


@given(st.floats(0, 1), SPREAD)
def test_chance_stays_before_the_next_time(jitter, spread):
    """A time is never earlier for its share of chance, and never later than the next."""
    assert MINUTE <= later(MINUTE, every_minute, jitter=jitter, spread=spread) <= 2 * MINUTE


@given(st.integers(1, 100), SPREAD)
def test_a_failed_job_waits_longer_each_time(failures, spread):
    """A wait is at least half of its doubling, and at most ten minutes."""
    full = min(600, 0.5 * 2 ** (failures - 1))
    assert full / 2 <= job_delay(failures, spread) <= full
