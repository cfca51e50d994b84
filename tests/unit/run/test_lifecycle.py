"""Promises about the statuses of a run."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import InvalidStateError
from piecework.run.lifecycle import ENDED, MOVES, Status, check_move, has_ended, standing

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
    with pytest.raises(InvalidStateError, match=rf"run r-1 .*\b{status}\b.* become {to}") as caught:
        check_move("r-1", status, Status(to))
    assert (caught.value.run_id, caught.value.status) == ("r-1", status)


def test_the_table_knows_every_status():
    """Each status has its moves, and an ended run has none."""
    assert set(MOVES) == set(Status)
    assert {Status.COMPLETED, Status.FAILED, Status.ABORTED} == ENDED
    assert {status for status, moves in MOVES.items() if not moves} == ENDED


@given(st.lists(st.sampled_from(list(Status)), max_size=30))
def test_an_ended_run_never_moves(wishes):
    """Whatever is asked of a run in whatever order: it ends once at most, and stays what it ended as."""
    status, ends = Status.QUEUED, []
    for wish in wishes:
        try:
            status = check_move("r-1", status, wish)
        except InvalidStateError:
            continue
        ends += [status] if has_ended(status) else []
    assert ends == ([status] if has_ended(status) else [])


@pytest.mark.parametrize("status", [status for status in Status if status not in ENDED])
def test_every_run_can_end(status):
    """From wherever a run stands it can be aborted."""
    assert check_move("r-1", status, Status.ABORTED) is Status.ABORTED


@pytest.mark.parametrize(
    ("status", "over", "words"),
    [
        ("queued", False, "is queued"),
        ("running", False, "is running"),
        ("paused", False, "is paused"),
        ("completed", True, "has ended (completed)"),
        ("failed", True, "has ended (failed)"),
        ("aborted", True, "has ended (aborted)"),
    ],
)
def test_a_status_in_words(status, over, words):
    """A status can be told in a sentence, straight from the row."""
    assert (has_ended(status), standing(status)) == (over, words)


def test_a_status_that_there_is_not():
    """A word that is no status is an error, not a run that goes on."""
    with pytest.raises(ValueError, match="succeeded"):
        has_ended("succeeded")
