"""Promises about whose routes hold: the newest version's, however its name is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.run.folds_nodes import decide_routes, is_newer
from piecework.store.items import RegisterRoutes
from piecework.store.records import RouteRow, WorkflowRow

VERSIONS = st.none() | st.from_regex(r"[0-9a-z.\-]{0,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ("1", None),
        ("2", "1"),
        ("10", "9"),
        ("1.10", "1.9"),
        ("1.0.1", "1.0"),
        ("2026-11-02", "2026-10-31"),
        ("v2", "v1"),
        ("v10", "v9"),
        ("b", "a"),
        ("1.0-rc2", "1.0-rc1"),
        ("2²", "2"),
    ],
)
def test_newer(newer, older):
    """Numbers inside a version are compared as numbers; having one is newer than having none."""
    assert is_newer(newer, older)
    assert not is_newer(older, newer)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_newer_is_an_order(one, two, three):
    """No version is newer than itself, no two are newer than each other, and what is newer than newer is newer."""
    assert not is_newer(one, one)
    assert not (is_newer(one, two) and is_newer(two, one))
    if is_newer(one, two) and is_newer(two, three):
        assert is_newer(one, three)


def test_a_route_remembers_since_when():
    """A type that stays registered keeps its moment; one that is left out is gone, a new one begins now."""
    workflow, stored = WorkflowRow("w", "1", 5), [RouteRow("a", "w", "1", 5), RouteRow("b", "w", "1", 5)]
    asked = RegisterRoutes(workflow_id="w", version="2", event_types=("c", "a", "c"))
    after, routes = decide_routes((asked, workflow, stored), None, 9)
    assert (after.version, routes) == ("2", [RouteRow("a", "w", "2", 5), RouteRow("c", "w", "2", 9)])


def test_nothing_to_change_is_what_stands():
    """A registration that says the same again is answered with the very rows that stand, so nothing is written."""
    workflow, stored = WorkflowRow("w", "1", 5), [RouteRow("a", "w", "1", 5)]
    same = RegisterRoutes(workflow_id="w", version="1", event_types=("a",))
    older = RegisterRoutes(workflow_id="w", version=None, event_types=("b",))
    for asked in (same, older):
        after, routes = decide_routes((asked, workflow, stored), None, 9)
        assert after == workflow
        assert routes is stored


def test_fingerprints_have_no_order():
    """Where nobody named a version, the last to register holds: a fingerprint is neither newer nor older."""
    for one, two in (("#b", "#a"), ("#a", "2"), ("2", "#a")):
        assert not is_newer(one, two)
    workflow, stored = WorkflowRow("w", "#ffff", 5), [RouteRow("a", "w", "#ffff", 5)]
    asked = RegisterRoutes(workflow_id="w", version="#0000", event_types=("a",))
    after, _ = decide_routes((asked, workflow, stored), None, 9)
    assert after.version == "#0000"
