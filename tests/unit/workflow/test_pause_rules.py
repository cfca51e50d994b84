"""Promises about which event meets which wait."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import ValidationError
from piecework.store.verbs.probes import BUCKET, bucket, probe, probes_of
from piecework.testing.verbs import event
from piecework.workflow.pause import OPERATORS, Clause, WaitFor, holds, resume_patch, waits_of

NAN = float("nan")
TRUE = [
    ("==", 7, 7),
    ("==", 7, 7.0),
    ("==", "a", "a"),
    ("==", True, True),
    ("==", [1, {"a": 2.0}], [1, {"a": 2}]),
    ("==", 0, -0.0),
    ("!=", 7, 8),
    ("!=", 1, True),
    ("!=", "1", 1),
    ("!=", [1], [1, 2]),
    (">", 2, 1),
    (">", 1.5, 1),
    (">", "b", "a"),
    (">=", 2, 2),
    (">=", "a", "a"),
    ("<", 1, 2),
    ("<", -1, 0.5),
    ("<=", 2, 2.0),
    ("exists", 0, True),
    ("exists", False, True),
    ("exists", "", True),
    ("exists", [], None),
]
FALSE = [
    ("==", 7, 8),
    ("==", 1, True),
    ("==", False, 0),
    ("==", "1", 1),
    ("==", {"a": 1}, {"a": True}),
    ("!=", 7, 7.0),
    ("!=", {"a": [1.0]}, {"a": [1]}),
    (">", 1, 1),
    (">", "2", 1),
    (">", True, 0),
    (">", 1, False),
    (">", [2], [1]),
    (">", NAN, 1),
    ("<", NAN, 1),
    ("<=", NAN, NAN),
    ("<", {}, 1),
    (">=", "a", "b"),
    ("<=", 3, 2),
    ("exists", 0, False),
    ("exists", "x", False),
]


@pytest.mark.parametrize(("op", "actual", "expected"), TRUE)
def test_a_clause_that_is_met(op, actual, expected):
    """int and float compare as numbers, texts as texts, and equality is deep."""
    assert holds({"field": actual}, "field", op, expected) is True
    assert holds({"a": {"b": actual}}, "a.b", op, expected) is True


@pytest.mark.parametrize(("op", "actual", "expected"), FALSE)
def test_a_clause_that_is_not(op, actual, expected):
    """A bool is no number, mixed types have no order, NaN is beyond all order; nothing ever raises."""
    assert holds({"field": actual}, "field", op, expected) is False


@pytest.mark.parametrize("op", sorted(set(OPERATORS.values()) - {"exists"}))
@pytest.mark.parametrize("payload", [{}, {"field": None}, {"field": {"x": 1}}, [], None, "text", 3])
@pytest.mark.parametrize("expected", [0, None, "", "text", False])
def test_a_missing_or_null_field_meets_nothing(op, payload, expected):
    """A field that is missing or null meets no clause: neither equal nor unequal."""
    field = "field.y" if payload == {"field": {"x": 1}} else "field"
    assert holds(payload, field, op, expected) is False


@pytest.mark.parametrize("payload", [{}, {"field": None}, {"other": 1}])
def test_what_is_not_there(payload):
    """`exists=False` is met by a field that is missing or null, and `exists=True` is not."""
    assert holds(payload, "field", "exists", False) is True
    assert holds(payload, "field", "exists", True) is False


@given(st.sampled_from(sorted(set(OPERATORS.values()))), st.data())
def test_a_clause_never_raises(op, data):
    """Whatever is compared with whatever, the answer is yes or no."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=4,
    )
    assert holds({"f": data.draw(anything)}, "f", op, data.draw(anything)) in {True, False}


def clauses_of(wait_for):
    return [(clause.field, clause.op, clause.value) for clause in wait_for.clauses]


def test_clauses_in_words():
    """Two underscores step into a mapping, and name an operator at the end."""
    wait_for = WaitFor("paid", id=7, total__gt=0, address__city="Rome", address__zip__ne=None, note__exists=False)
    assert clauses_of(wait_for) == [
        ("id", "==", 7),
        ("total", ">", 0),
        ("address.city", "==", "Rome"),
        ("address.zip", "!=", None),
        ("note", "exists", False),
    ]


def test_clauses_as_mappings():
    """Conditions may be mappings, with the operators' signs or names; == where none is given."""
    conditions = [
        {"field": "id", "op": "==", "value": 7},
        {"field": "n", "op": "ge", "value": 1},
        {"field": "x", "value": 2},
    ]
    assert clauses_of(WaitFor("paid", conditions=conditions)) == [("id", "==", 7), ("n", ">=", 1), ("x", "==", 2)]


def test_a_field_may_be_called_like_an_operator():
    """A name that is an operator's, alone, is a field."""
    assert clauses_of(WaitFor("paid", gt=3)) == [("gt", "==", 3)]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (WaitFor, "at least one event type"),
        (lambda: WaitFor(""), "event type"),
        (lambda: WaitFor(3), "event type"),
        (lambda: WaitFor("paid", mode="some"), "mode 'some'"),
        (lambda: WaitFor("paid", timeout_seconds=0), "timeout_seconds"),
        (lambda: WaitFor("paid", timeout_seconds=NAN), "timeout_seconds"),
        (lambda: WaitFor("paid", patch={"a": {1}}), r"WaitFor\(patch\)\.a"),
        (lambda: WaitFor("paid", id=NAN), "condition on 'id'"),
        (lambda: WaitFor("paid", id={1}), "condition on 'id'"),
        (lambda: WaitFor("paid", conditions=[{"field": "id", "op": "~", "value": 1}]), "operator '~'; there are"),
        (lambda: WaitFor("paid", conditions=[{"op": "==", "value": 1}]), "needs field, op and value"),
        (lambda: WaitFor("paid", conditions=[("id", "==", 1)]), "needs field, op and value"),
        (lambda: WaitFor("paid", conditions=[{"field": 3, "value": 1}]), "condition field"),
        (lambda: WaitFor("paid", conditions=[{"field": "id", "op": [], "value": 1}]), "needs field, op and value"),
        (lambda: Clause("id", "eq", 1), "unknown operator 'eq'"),
    ],
)
def test_a_wrong_wait_is_refused_when_it_is_built(build, words):
    """Nobody waits for what can never come: a wrong wait is refused at once."""
    with pytest.raises(ValidationError, match=words):
        build()


def test_a_wait_is_found_by_its_first_equality():
    """The first == clause finds a wait; one without any stands in its type's bucket, and so does == None."""
    found = [
        waits_of(wait_for, "r")[0]
        for wait_for in (WaitFor("t", n__gt=1, id=7, x=8), WaitFor("t", n__gt=1), WaitFor("t", id=None), WaitFor("t"))
    ]
    assert [wait.field for wait in found] == ["id", BUCKET, BUCKET, BUCKET]
    assert [wait.probe for wait in found] == [probe("t", "id", 7), *[bucket("t")] * 3]


def test_a_wait_for_several_types_is_one_registration():
    """Each event type is a row; all have one id, one rule and one deadline, and a type named twice is one."""
    rows = waits_of(WaitFor("a", "b", "a", timeout_seconds=2, patch={"p": 1}), "r", max_buffer=3)
    assert [row.event_type for row in rows] == ["a", "b"]
    assert len({(row.wait_id, row.timeout, row.patch, row.max_buffer) for row in rows}) == 1
    assert rows[0].timeout == 2_000_000


def offered(wait, type_, payload, space=None):
    item = event(type_, payload, event_id="e-1", space=space)
    return resume_patch(wait, item.event, payload)


def test_what_a_run_resumes_with():
    """The wait's patch, overlaid by the payload, and the event itself beside it."""
    (wait,) = waits_of(WaitFor("paid", id=7, patch={"by": "mail", "id": 0}), "r")
    assert offered(wait, "paid", {"id": 7}, space="acme") == {
        "by": "mail",
        "id": 7,
        "__resume_event__": {"id": "e-1", "type": "paid", "payload": {"id": 7}, "space": "acme"},
    }


def test_an_event_that_does_not_meet_a_wait():
    """Every clause has to hold, and the type has to be the wait's."""
    (wait,) = waits_of(WaitFor("paid", id=7, total__gt=0), "r")
    assert offered(wait, "lost", {"id": 7, "total": 1}) is None
    assert offered(wait, "paid", {"id": 7, "total": 0}) is None
    assert offered(wait, "paid", {"id": 7}) is None


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.booleans() | st.floats(0, 2) | st.none()), st.data()
)
def test_an_event_finds_every_wait_that_it_meets(payload, data):
    """No wait that an event meets is missed by the index."""
    names = [f"{field}{op}" for field in "abc" for op in ("", "__ne", "__gt", "__exists")]
    clauses = data.draw(st.dictionaries(st.sampled_from(names), st.integers(0, 2) | st.booleans(), max_size=3))
    (wait,) = waits_of(WaitFor("t", **clauses), "r")
    if offered(wait, "t", payload) is not None:
        assert wait.probe in probes_of("t", payload, [wait.field])


def test_clauses_survive_their_storage():
    """What is stored of a wait is what was asked for."""
    (wait,) = waits_of(WaitFor("t", a__b=[1, "x"]), "r")
    assert msgspec.json.decode(wait.clauses) == [["a.b", "==", [1, "x"]]]
