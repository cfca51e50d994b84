"""Promises about how an event finds the runs that wait for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.store.verbs.probes import BUCKET, MISSING, bucket, probe, probes_of, value_at
from piecework.workflow.pause import same

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(
        [2**53, 2**53 + 1, 2**63 - 1, -(2**63), -0.0, 0.5, 1e300, float(2**53), float(2**63), -float(2**63)]
    )
    | st.integers(-3, 3).map(float)
    | st.sampled_from(["", "1", "true", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


@given(VALUES, VALUES)
def test_a_wait_is_found_exactly_by_what_equals_it(one, other):
    """Two values have one digest if and only if a clause would call them equal."""
    assert (probe("t", "f", one) == probe("t", "f", other)) is same(one, other)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (0, -0.0, True),
        (1, "1", False),
        (None, False, False),
        ([1, 2], (1.0, 2), True),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ([], {}, False),
        (2**53, float(2**53), True),
        (2**53 + 1, float(2**53), False),
    ],
)
def test_equal_values_have_one_digest(one, other, equal):
    """1 equals 1.0, True is no number, the order of keys does not matter, at any depth."""
    assert (probe("t", "f", one) == probe("t", "f", other)) is equal
    assert same(one, other) is equal


def test_type_field_and_value_do_not_run_together():
    """What belongs to another type or field has another digest."""
    digests = {probe("ab", "c", "d"), probe("a", "bc", "d"), probe("a", "b", "cd"), probe("ab", "cd", ""), bucket("ab")}
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", {"b": {"c": 1}}),
        ("a.b.c", 1),
        ("n", None),
        ("x", MISSING),
        ("a.x", MISSING),
        ("a.b.c.d", MISSING),
        ("", MISSING),
    ],
)
def test_what_stands_at_a_path(path, found):
    """Dots step into mappings; where there is nothing, or no mapping, nothing is found."""
    assert (
        value_at({"a": {"b": {"c": 1}}, "n": None}, path) is found
        or value_at({"a": {"b": {"c": 1}}, "n": None}, path) == found
    )


def test_an_event_is_looked_up_by_the_fields_it_has():
    """Fields that are missing or null are no reason to look; the bucket always is."""
    found = probes_of("t", {"id": 7, "n": None, "a": {"b": 1}}, [BUCKET, "id", "n", "gone", "a.b"])
    assert found == [bucket("t"), probe("t", "id", 7), probe("t", "a.b", 1)]
