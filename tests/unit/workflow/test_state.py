"""Promises about how a run's data grows."""

from __future__ import annotations

import copy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import ConflictError
from piecework.workflow.state import META, TRIGGER_EVENT, initial_state, merge, merge_all, snapshot

MAPPINGS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 3) | st.none() | st.lists(st.integers(0, 3)), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(0, 3), max_size=3),
    max_leaves=8,
)


def test_a_run_begins_with_its_event():
    """The payload's keys are the state's, and where the run comes from stands beside them."""
    state = initial_state({"id": 7}, workflow_id="w", trigger_id="t", pipeline_id="p", event={"type": "x"})
    assert state == {
        "id": 7,
        META: {"workflow": "w", "trigger": "t", "pipeline": "p"},
        TRIGGER_EVENT: {"type": "x"},
    }


@pytest.mark.parametrize(
    ("state", "patch", "merged"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}, {"a": {"b": {"c": 1, "d": 2}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 2}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
    ],
)
def test_merging(state, patch, merged):
    """Mappings are merged at every depth; everything else is replaced."""
    assert merge(state, patch) == merged


@given(MAPPINGS, MAPPINGS)
def test_merging_changes_nothing_that_it_was_given(state, patch):
    """The state before and the patch are as they were; merging twice is merging once."""
    before, given_patch = copy.deepcopy(state), copy.deepcopy(patch)
    merged = merge(state, patch)
    assert (state, patch) == (before, given_patch)
    assert merge(merged, patch) == merged


def test_patches_of_different_places():
    """Steps of a stage that write to different places do not disturb each other."""
    patches = [("one", {"a": {"x": 1}}), ("two", {"a": {"y": 2}, "b": 3}), ("three", {})]
    assert merge_all({"a": {"z": 0}}, patches) == {"a": {"x": 1, "y": 2, "z": 0}, "b": 3}


def test_the_same_value_twice_is_no_conflict():
    """Two steps may agree."""
    assert merge_all({}, [("one", {"a": [1]}), ("two", {"a": [1]})]) == {"a": [1]}


@pytest.mark.parametrize(
    ("one", "two", "path"),
    [
        ({"a": 1}, {"a": 2}, "a"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
        ({"a": 1}, {"a": {"b": 1}}, "a.b"),
        ({"a": {"b": 1}}, {"a": 1}, "a"),
        ({"a": {"b": {"c": 1}}}, {"a": 1}, "a"),
        ({"a": 1}, {"a": None}, "a"),
        ({"a": [1]}, {"a": [2]}, "a"),
        ({"a": 1}, {"a": True}, "a"),
    ],
)
def test_two_steps_that_disagree(one, two, path):
    """Two steps of a stage that write different values to one place are a conflict that names both and the place."""
    with pytest.raises(ConflictError, match="'first' and 'second'") as caught:
        merge_all({}, [("first", one), ("second", two)])
    assert (caught.value.path, caught.value.steps) == (path, ["first", "second"])


@given(MAPPINGS, st.lists(MAPPINGS, max_size=4))
def test_one_writer_a_place_means_the_order_does_not_matter(state, patches):
    """Where there is no conflict the patches come to the same in any order; a conflict is one in any order."""
    named = [(f"step-{n}", patch) for n, patch in enumerate(patches)]
    assert _outcome(state, named) == _outcome(state, named[::-1])


def _outcome(state, patches):
    try:
        return merge_all(state, patches)
    except ConflictError:
        return "conflict"


def test_a_large_patch_is_merged_in_no_time():
    """A step may return very many values: merging goes through them once."""
    patches = [(name, {f"{name}-{n}": {"v": n} for n in range(20_000)}) for name in ("one", "two")]
    before = time.process_time()
    assert len(merge_all({}, patches)) == 40_000
    assert time.process_time() - before < 5


@given(MAPPINGS)
def test_a_snapshot_is_a_copy(state):
    """A step that changes what it sees changes nothing else."""
    copied = snapshot(state)
    assert copied == state
    copied["new"] = 1
    assert "new" not in state
