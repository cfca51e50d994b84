"""Promises about what an update may answer."""

from __future__ import annotations

import pytest

from piecework.errors import ProtocolError, ValidationError
from piecework.run.outcome import Failed, RetryAfter, Skipped, Success
from piecework.space.piece import as_outcome, pack_outcome, unpack_outcome


@pytest.mark.parametrize("outcome", [Success({"a": [1]}), Skipped("x"), RetryAfter(1.5), Failed("e", permanent=True)])
def test_round_trip(outcome):
    """A verdict that crosses a process comes out as what it was."""
    assert unpack_outcome(pack_outcome(outcome)) == outcome


def test_none_is_a_success():
    """Returning nothing is a success."""
    assert as_outcome(None) == Success()


@pytest.mark.parametrize("returned", [3, "ok", Success({1}), Failed(ValueError("x"))])
def test_anything_else_fails(returned):
    """Returning what cannot be kept is a failure that says so."""
    assert isinstance(as_outcome(returned), Failed)


@pytest.mark.parametrize("seconds", ["soon", -5, float("inf"), float("nan"), None])
def test_a_time_that_is_none(seconds):
    """RetryAfter refuses what is no time to come, where it is made."""
    with pytest.raises(ValidationError, match="RetryAfter needs a number of seconds"):
        RetryAfter(seconds)


@pytest.mark.parametrize("packed", [{}, {"name": "done"}, {"name": "retry_after"}, {"name": "failed", "error": 3}])
def test_malformed_outcome(packed):
    """What is no outcome is refused by name."""
    with pytest.raises(ProtocolError):
        unpack_outcome(packed)
