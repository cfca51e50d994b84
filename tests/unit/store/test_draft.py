"""Promises about what a decision may see and change."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from piecework.errors import ConflictError
from piecework.store.contract import Delete, Failure, Insert, Put, Update
from piecework.store.draft import Draft
from piecework.store.records import TABLES, Entry, Run, RunValue, Slot


def a_slot(key="a", **counts):
    return Slot(key, "w", "serialized", "", 1, 1, 1, **counts)


@pytest.fixture
def draft():
    draft = Draft()
    draft.load(Slot, [("a",), ("missing",)], [a_slot()])
    return draft


def test_a_key_that_was_not_loaded(draft):
    """Touching what the verb forgot to load is an error, never a silent insert."""
    with pytest.raises(LookupError, match=r"Slot .*other.* was not loaded"):
        draft.find(Slot, "other")
    with pytest.raises(LookupError, match="was not loaded"):
        draft.put(a_slot("other"))


def test_a_key_that_is_not_there(draft):
    """A key that was asked for and not found is known to be missing, and may be filled."""
    assert draft.find(Slot, "missing") is None
    with pytest.raises(LookupError, match="there is no Slot"):
        draft.get(Slot, "missing")
    draft.put(a_slot("missing"))
    assert list(draft.write()) == [Insert([a_slot("missing")])]


def test_what_was_put_is_what_is_found(draft):
    """The second of two decisions sees what the first did."""
    draft.put(a_slot(live=1))
    assert draft.get(Slot, "a").live == 1
    assert draft.all(Slot) == [a_slot(live=1)]


def test_one_row_a_key_is_written(draft):
    """However often a row is replaced, it is written once."""
    draft.put(a_slot(live=1))
    draft.put(a_slot(live=2))
    assert list(draft.write()) == [Update([a_slot(live=2)])]


def a_run(run_id="r", **changed):
    return replace(
        Run(run_id, "workflow", "w", "t", "p", "a", 0, None, "main", "running", "one", None, None), **changed
    )


def test_only_what_changes_often_is_written_by_itself(draft):
    """Where rows differ in columns that change together often only those are written, else all that a row has."""
    draft.load(Run, [("r",), ("s",)], [a_run(), a_run("s")])
    draft.put(a_run(visit=1, stage="two"))
    draft.put(a_run("s", decision=3))
    (written,) = draft.write()
    assert written == Update([a_run(visit=1, stage="two"), a_run("s", decision=3)], written.columns)
    assert {"visit", "stage", "decision"} <= set(written.columns) <= set(Run.__struct_fields__) - {"run_id", "space"}
    draft.put(a_run("s", decision=3, space="other"))
    assert [request.columns for request in draft.write()] == [None]


@pytest.mark.parametrize("record", [record for record in TABLES if record.together])
def test_columns_that_change_together(record):
    """They are columns of their table, none of its key."""
    for columns in record.together:
        assert set(columns) <= set(record.__struct_fields__) - set(record.key)


def test_what_did_not_change_is_not_written(draft):
    """A row that is put back as it was costs nothing."""
    draft.put(draft.get(Slot, "a"))
    assert list(draft.write()) == []


def test_loading_again_keeps_what_is_known(draft):
    """A row that was changed is not undone by loading it once more."""
    draft.put(a_slot(live=1))
    draft.load(Slot, [("a",)], [a_slot()])
    assert draft.get(Slot, "a").live == 1


def test_a_removed_row_is_gone(draft):
    """A removed row is not found and is deleted; one that was never there is no error."""
    draft.remove(Slot, "a")
    draft.remove(Slot, "missing")
    assert (draft.find(Slot, "a"), draft.all(Slot)) == (None, [])
    assert list(draft.write()) == [Delete(Slot, [("a",)])]


def test_a_fresh_row_needs_no_loading(draft):
    """A row with a fresh id is inserted."""
    draft.add(a_slot("fresh"))
    assert draft.get(Slot, "fresh") == a_slot("fresh")
    assert list(draft.write()) == [Insert([a_slot("fresh")])]


def test_a_value_that_is_removed_and_written_again(draft):
    """Deletions come before what grows, so a value may be replaced in one batch."""
    draft.remove(RunValue, "r", "patch")
    draft.append(RunValue("r", "patch", b"{}"))
    assert [type(request) for request in draft.write()] == [Delete, Put]


def test_tables_are_written_in_one_order():
    """Whatever the order of the decisions, tables are written in theirs."""
    draft = Draft()
    draft.append(Entry("r", 1, 0, 0, 0, "pipeline", "run:started", "", None))
    draft.add(RunValue("r", "args", b"{}"))
    draft.add(a_slot())
    assert [type(request.records[0]) for request in draft.write()] == [Slot, RunValue, Entry]


def test_each_of_a_queue_is_answered_once(draft):
    """Who waits in a slot is answered in order, once; then nobody, as for a slot that has no queue."""
    draft.queues["a"] = ["q1", "q2"]
    assert [draft.next_in_queue(key) for key in ("a", "b", "a", "a")] == ["q1", None, "q2", None]


def test_a_row_that_comes_and_goes_is_not_written(draft):
    """A row that was added and removed in one batch leaves no trace, nor does one that is known to be missing."""
    draft.add(a_slot("fresh"))
    draft.remove(Slot, "fresh")
    draft.remove(Slot, "missing")
    assert (list(draft.changed(Slot)), list(draft.write())) == ([], [])


def test_what_belongs_to_a_run_is_found_by_it(draft):
    """Rows of a run are found as they stand now: added ones too, removed ones no more."""
    values = [RunValue("r", name, b"{}") for name in ("args", "state")]
    draft.load(RunValue, [], values)
    draft.remove(RunValue, "r", "args")
    draft.add(RunValue("r", "patch", b"{}"))
    draft.add(RunValue("other", "args", b"{}"))
    assert [row.name for row in draft.of_run(RunValue, "r")] == ["state", "patch"]
    assert draft.of_run(RunValue, "nobody") == []


def test_a_decision_that_blows_up_is_no_refusal(draft):
    """What is not a refusal, but a fault of ours, ends the whole batch."""

    def decide(_draft, _item, _now):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        draft.fold([1], decide, 0)


@pytest.mark.parametrize("error", [ConflictError("no"), LookupError("no"), ValueError("no"), TypeError("no")])
def test_a_decision_that_raises_leaves_nothing_behind(draft, error):
    """What one item did is undone when its decision raises; those before and behind it stand."""

    def decide(draft, item, _now):
        slot = draft.get(Slot, "a")
        draft.put(replace(slot, live=slot.live + 1))
        draft.add(a_slot(item))
        draft.append(RunValue(item, "args", b"{}"))
        started.append(draft.next_in_queue("a"))
        if item == "bad":
            draft.remove(Slot, "one")
            raise error
        return slot.live

    started = []
    draft.queues["a"] = ["q1", "q2", "q3"]
    outcomes = draft.fold(["one", "bad", "two"], decide, 0)
    assert outcomes == [0, Failure(error), 1]
    assert (started, draft.next_in_queue("a")) == (["q1", "q2", "q2"], "q3")
    assert list(draft.write()) == [
        Update([a_slot(live=2)]),
        Insert([a_slot("one"), a_slot("two")]),
        Put([RunValue("one", "args", b"{}"), RunValue("two", "args", b"{}")]),
    ]
