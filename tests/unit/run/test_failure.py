"""Promises about what follows failures of a piece: how long it waits, and when it is out of order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework import Backoff, ThreeStrikes
from piecework.clock import SECOND
from piecework.errors import ValidationError
from piecework.run.failure import Observed, after_failure

MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
SPREAD = st.floats(0, 1)
EVERY = st.integers(0, 100 * HOUR)
POLICIES = st.one_of(
    st.just(ThreeStrikes()),
    st.builds(
        Backoff,
        first_seconds=st.none() | st.floats(0.001, 10**6),
        cap_seconds=st.floats(0.001, 10**6),
        failures_limit=st.integers(1, 50),
        probe_seconds=st.floats(0.001, 10**6),
    ),
)


def after(policy, failures, *, every=MINUTE, permanent=False, retry_after=None, spread=1.0):
    return after_failure(
        policy, "no", every=every, failures=failures, permanent=permanent, retry_after=retry_after, spread=spread
    )


@pytest.mark.parametrize(
    ("every", "policy", "failures", "ceiling"),
    [
        (MINUTE, Backoff(), 1, MINUTE),
        (MINUTE, Backoff(), 2, 2 * MINUTE),
        (MINUTE, Backoff(), 7, HOUR),
        (10 * MINUTE, Backoff(), 2, 20 * MINUTE),
        (DAY, Backoff(), 1, HOUR),
        (5 * SECOND, Backoff(), 3, 20 * SECOND),
        (0, Backoff(), 1, MINUTE),  # events alone wake it
        (DAY, Backoff(first_seconds=60), 3, 4 * MINUTE),
        (MINUTE, Backoff(cap_seconds=90), 5, 90 * SECOND),
    ],
)
def test_the_ceiling_of_a_pause_doubles(every, policy, failures, ceiling):
    """A pause is anything up to a ceiling, a second at least; that begins with the interval and doubles to the cap."""
    pauses = [after(policy, failures, every=every, spread=spread).delay for spread in (0, 0.5, 1)]
    assert pauses == [SECOND, ceiling / 2, ceiling]


@pytest.mark.parametrize("failures", [8, 9, 1000])
def test_after_many_failures_it_is_half_open(failures):
    """From the limit on there is one update for each probe, whatever chance says."""
    assert after(Backoff(), 7).observed == Observed.BACKOFF
    probes = [after(Backoff(), failures, spread=spread) for spread in (0, 1)]
    assert {(probe.observed, probe.delay) for probe in probes} == {(Observed.HALF_OPEN, HOUR)}


@pytest.mark.parametrize(
    ("failures", "observed", "delay", "status"),
    [
        (1, Observed.BACKOFF, 2 * MINUTE, "no"),
        (2, Observed.BACKOFF, 3 * MINUTE, "no"),
        (3, Observed.BROKEN, None, "Disabled: no"),
        (4, Observed.BROKEN, None, "Disabled: no"),
    ],
)
def test_three_strikes(failures, observed, delay, status):
    """Under the three-strikes policy pauses grow by an interval, without chance, and the third failure disables."""
    found = {after(ThreeStrikes(), failures, spread=spread) for spread in (0, 0.3, 1)}
    assert [(one.observed, one.delay, one.status) for one in found] == [(observed, delay, status)]


@given(POLICIES, EVERY, st.integers(1, 10**6), st.none() | st.integers(0, DAY), SPREAD)
def test_there_is_a_next_update_unless_it_is_broken(policy, every, failures, asked, spread):
    """A transient failure has a pause, no shorter than what was asked for; only strikes break a piece by themselves."""
    found = after(policy, failures, every=every, retry_after=asked, spread=spread)
    assert (found.delay is None) == (found.observed is Observed.BROKEN)
    if found.delay is None:
        assert isinstance(policy, ThreeStrikes)
        return
    assert found.delay >= max(1, asked or 0)
    if isinstance(policy, Backoff):
        longest = max(policy.cap_seconds, policy.probe_seconds) * SECOND + 1
        assert found.delay <= max(longest, asked or 0)


@given(POLICIES, EVERY, st.integers(1, 100), SPREAD)
def test_a_permanent_failure_is_the_last(policy, every, failures, spread):
    """A permanent failure stops a piece at once, whatever its policy and however few failures there were."""
    found = after(policy, failures, every=every, permanent=True, retry_after=5, spread=spread)
    assert (found.observed, found.delay) == (Observed.BROKEN, None)


@pytest.mark.parametrize(
    "given",
    [
        {"first_seconds": 0},
        {"cap_seconds": -1},
        {"probe_seconds": None},
        {"failures_limit": 0},
        {"failures_limit": 1.5},
    ],
)
def test_a_policy_that_is_none(given):
    """Numbers that make no sense are refused where the policy is made."""
    with pytest.raises(ValidationError, match=f"Backoff: {next(iter(given))}"):
        Backoff(**given)
