"""Sentences about a piece and what comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from piecework.cli.reports import due, what_happened, what_next
from piecework.cli.telling import duration

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
PIECE = {
    "space": "acme",
    "piece_id": "hn",
    "schedule": "every 60 s",
    "desired": "enabled",
    "desired_reason": None,
    "observed": "idle",
    "next_run_at": None,
    "last_success_at": None,
    "consecutive_failures": 0,
}
RUN = {
    "run_id": "r-1",
    "status": "failed",
    "outcome": "failed",
    "attempt": 1,
    "progress": None,
    "started_at": NOW.isoformat(),
    "ended_at": (NOW + timedelta(seconds=2)).isoformat(),
    "error": {"code": "TIMEOUT", "message": "it took longer than 60 s"},
    "result": None,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"desired": "paused", "desired_reason": "moved house"}, "acme/hn is paused: moved house; to go on: "),
        ({"observed": "broken"}, "acme/hn is out of order until somebody enables it: piecework pieces resume acme hn"),
        ({"observed": "half-open", "next_run_at": "2020-01-01T00:00:00Z"}, "acme/hn has failed too often: "),
        ({"next_run_at": "2020-01-01T00:00:00Z"}, "acme/hn is due now (every 60 s)"),
        ({"observed": "waiting", "schedule": "on feed.changed"}, "acme/hn waits (on feed.changed)"),
    ],
)
def test_what_comes_next(changed, said):
    """Each way in which a piece can stand has a sentence of its own."""
    (sentence,) = what_next(PIECE | changed, [])
    assert sentence.startswith(said)


@pytest.mark.parametrize(
    ("changed", "after", "said"),
    [
        ({}, None, "failed: TIMEOUT: it took longer than 60 s"),
        ({}, RUN | {"started_at": (NOW + timedelta(seconds=62)).isoformat()}, "; run again 1 min later"),
        ({"outcome": "success", "error": None, "result": {"articles": 3}}, None, 'succeeded: {"articles": 3}'),
        ({"outcome": "skipped", "error": None}, None, "had nothing to do: not modified"),
        ({"outcome": None, "status": "aborted", "error": None}, None, "aborted: not modified"),
        ({"ended_at": None, "attempt": 2}, None, "is running, its attempt 2"),
        ({"ended_at": None, "progress": {"fraction": 0.5, "message": None}}, None, "is running: 50%"),
    ],
)
def test_what_happened(changed, after, said):
    """What an update came to is told in words, with why, and what followed it."""
    assert said in what_happened(RUN | changed, "not modified", after, PIECE)


def test_moments_and_durations():
    """What is due is told as people say it, and so is how long something takes."""
    assert due((NOW + timedelta(minutes=3)).isoformat(), now=NOW) == "in 3 min"
    assert due((NOW - timedelta(minutes=3)).isoformat(), now=NOW) == "now"
    assert [duration(n) for n in (0, 0.214, 4.5, 59.7, 90, 9000, 200_000)] == [
        *("0.00 s", "0.21 s", "4.5 s", "1 min", "1.5 min", "2.5 h", "2.3 d"),
    ]
