"""Promises about the statuses of a run."""

from __future__ import annotations

import itertools

import pytest

from piecework.errors import InvalidStateError
from piecework.run.lifecycle import ENDED, MOVES, Status, check_move

ALLOWED = {
    ("queued", "running"),
    ("queued", "aborted"),
    ("running", "running"),
    ("running", "queued"),
    ("running", "paused"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "aborted"),
    ("paused", "running"),
    ("paused", "aborted"),
}
EVERY = [(str(one), str(other)) for one, other in itertools.product(Status, Status)]


@pytest.mark.parametrize(("status", "to"), sorted(ALLOWED))
def test_a_move_that_is_allowed(status, to):
    """The moves of the table are allowed."""
    assert check_move("r-1", status, Status(to)) == to


@pytest.mark.parametrize(("status", "to"), [move for move in EVERY if move not in ALLOWED])
def test_a_move_that_is_not(status, to):
    """Every other move is refused with the run's id and its status."""
    with pytest.raises(InvalidStateError, match=f"run r-1 .*{status}.*{to}") as caught:
        check_move("r-1", status, Status(to))
    assert (caught.value.run_id, caught.value.status) == ("r-1", status)


def test_the_table_knows_every_status():
    """Each status has its moves, and an ended run has none."""
    assert set(MOVES) == set(Status)
    assert {status for status, moves in MOVES.items() if not moves} == ENDED
