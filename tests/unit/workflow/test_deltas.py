"""Promises about what a timeline tells of a run's state."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from piecework.workflow.deltas import changed_places, encoded_delta, state_after

KEYS = st.sampled_from(["a", "b", "c", "a.b", ""])
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0]), st.text(max_size=2))
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=3))
)
STATES = st.lists(st.dictionaries(KEYS, VALUES, max_size=4), min_size=1, max_size=12)


def told(states, every):
    """The deltas of a run that had one state after the other."""
    before = None
    for number, state in enumerate(states):
        yield encoded_delta(before, state, whole=number % every == every - 1)
        before = state


@given(STATES, st.integers(1, 5))
def test_the_state_at_any_entry_is_made_again(states, every):
    """From the nearest whole state and the deltas behind it comes exactly what was committed, key types included."""
    deltas = list(told(states, every))
    for number, state in enumerate(states, start=1):
        made = state_after(deltas[:number])
        assert msgspec.json.encode(made, order="sorted") == msgspec.json.encode(state, order="sorted")


@given(STATES)
def test_what_lies_before_a_whole_state_is_not_looked_at(states):
    """An entry with the whole state needs none of those before it."""
    whole = encoded_delta({}, states[-1], whole=True)
    assert state_after([b"not looked at", None, whole, None]) == states[-1]


def test_an_unchanged_state_is_nothing_to_tell():
    """A stage that changes nothing adds nothing to its entry; 1 and True are two values."""
    assert encoded_delta({"a": {"b": [1]}}, {"a": {"b": [1]}}) is None
    assert encoded_delta({"a": [1]}, {"a": [True]}) is not None


def test_the_places_that_changed_are_told_without_values():
    """Places are told as dotted paths, what is gone too, and the runtime's own are left out."""
    delta = encoded_delta({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 2}, "d": 3, "e": {}, "__meta__": 1})
    assert changed_places(delta) == ["a.b", "a.c", "e"]
    assert changed_places(encoded_delta(None, {"a": {"b": 1}, "c": []})) == ["a.b", "c"]
    assert changed_places(encoded_delta({"a": 1}, {"a": 1}, whole=True)) == []


def test_only_so_many_places_are_told():
    """A long list of places ends with how many more there are."""
    delta = encoded_delta({}, {f"k{n:03}": n for n in range(60)})
    assert changed_places(delta)[-2:] == ["k049", "and 10 more"]
