"""A node with a scheduled job is killed with SIGKILL at every place that matters, and keeps the schedule."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from test_node_killed import node, steps  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from test_node_killed import Node

# Where it is killed, how it overlaps, and whether the run that was at work is then done again.
PLACES = [
    ("before commit Enqueue", "skip", False),
    ("after commit Enqueue", "skip", False),
    ("in tick", "skip", True),
    ("in tick", "allow", True),
    ("before commit Settle", "skip", True),
    ("before commit Settle", "allow", True),
    ("after commit Settle", "skip", False),
    ("after commit Cleaned", "skip", False),
]


@pytest.mark.covers("N168")
@pytest.mark.parametrize(("place", "overlap", "twice"), PLACES)
async def test_a_schedule_survives_a_kill(node: Node, place: str, overlap: str, twice: bool, monkeypatch) -> None:  # noqa: F811
    """Killed anywhere, the schedule goes on at the next start, and each of its times has one run."""
    monkeypatch.setenv("OVERLAP_OF_THE_TEST", overlap)
    assert await node.run("jobs.py", place) == signal.SIGKILL
    told = await node.run("jobs.py", place)
    assert isinstance(told, dict)
    assert set(Counter(key for key, _, _ in told["runs"]).values()) == {1}
    assert {status for _, status, _ in told["runs"]} <= {"completed", "running", "queued"}
    assert (max(Counter(key for _, key in steps(node)).values()) > 1) is twice
    await node.check_store()
