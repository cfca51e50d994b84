"""Promises about what a function reads of a state: the same value as over plain data, and nothing overlooked."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from piecework.container.reactive import select
from piecework.errors import InvalidStateError

FUZZ = int(os.environ.get("PIECEWORK_FUZZ", "0"))

pytestmark = pytest.mark.timeout(0 if FUZZ else 60)  # it is a failure that takes long: it is shrunk

profile = settings(
    max_examples=10 * FUZZ or 400,
    derandomize=not FUZZ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

KEYS = ("a", "b", "c")
scalars = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "a", "b"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
states = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
nested = st.dictionaries(st.sampled_from(KEYS), states, min_size=1, max_size=3)


# -- random functions, as text: what fails can be read ---------------------------------------------------------------


def tried(thunk):
    """A value, or the name of what it raised: a function that fails over plain data has to fail over a view too."""
    try:
        return thunk()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return f"!{type(error).__name__}"


def matched(value):
    """What a match statement sees in a value."""
    match value:
        case {"a": 1, "b": found}:
            return ["one", found]
        case {"a": {"b": found}}:
            return ["nested", found]
        case {"b": _, **rest}:
            return ["rest", rest]
        case [first, *_]:
            return ["list", first]
        case {}:
            return "mapping"
        case str() | None:
            return "text"
        case other:
            return ["other", other]


def counted(value):
    """How many scalars there are in a value, found by walking."""
    if isinstance(value, Mapping):
        return sum(counted(value[key]) for key in value)
    return sum(map(counted, value)) if isinstance(value, list) else 1


NAMES = {"t": tried, "matched": matched, "counted": counted, "Mapping": Mapping}
paths = st.builds(
    lambda keys, last: "s" + "".join(f"[{key!r}]" for key in keys) + last,
    st.lists(st.sampled_from(KEYS), max_size=3),
    st.sampled_from(["", "", ".get('a')", ".get('b', 7)", ".get('c', {})"]),
)
UNARY = (
    *("len({x})", "list({x})", "dict({x})", "bool({x})", "not {x}", "{x} is None", "{x}['a']", "{x}.get('b', 5)"),
    *("{x}[0]", "{x}[-1:]", "[*{x}]", "{{**{x}}}", "'a' in {x}", "'b' not in {x}", "{x} + 1", "-{x}", "matched({x})"),
    *("list({x}.keys())", "list({x}.values())", "[list(pair) for pair in {x}.items()]", "sorted({x})", "counted({x})"),
    *("{{key: value for key, value in {x}.items()}}", "{{key: 1 for key in {x}}}", "max({x})", "len({x}.items())"),
    *("sorted({x}.keys() & {{'a', 'z'}})", "[value for value in {x} if value]", "{x} | {{'z': 1}}", "{{'z': 1}} | {x}"),
    *("isinstance({x}, Mapping)", "any({x}.values())", "{{'it': {x}}}", "[{x}, {x}]", "sum({x}.values())"),
    *("next(iter({x}), 0)", "next(iter({x}.values()), 0)", "1 in {x}.values()", "('a', 1) in {x}.items()"),
    *("{x} == {{}}", "{x} == {{'a': 1}}", "{{'a': 1}} != {x}", "dict({x}, a=3)", "dict({x})['a']"),
)
BINARY = ("{x} == {y}", "{x} != {y}", "{x} < {y}", "{x} + {y}", "{x} or {y}", "{x} and {y}", "{x} | {y}", "{x} in {y}")
expressions = st.recursive(
    paths.map(lambda path: f"t(lambda: {path})"),
    lambda inner: (
        st.builds(lambda form, x: f"t(lambda: {form.format(x=x)})", st.sampled_from(UNARY), inner)
        | st.builds(lambda form, x, y: f"t(lambda: {form.format(x=x, y=y)})", st.sampled_from(BINARY), inner, inner)
        | st.builds(lambda x, y, z: f"({x} if {y} else {z})", inner, inner, inner)
    ),
    max_leaves=4,
)


def function(text):
    return eval(f"lambda s: {text}", NAMES)


# -- the properties --------------------------------------------------------------------------------------------------


def changes(one, other, prefix=()):
    """The paths at which two states differ, as deep as they are mappings on both sides."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            path
            for key in one.keys() | other.keys()
            for path in (
                changes(one[key], other[key], (*prefix, key)) if key in one and key in other else {(*prefix, key)}
            )
        }
    return set() if one == other else {prefix}


def meet(read, changed):
    return any(one[: len(two)] == two[: len(one)] for one in read for two in changed)


def edited(state, edits):
    """A state with some places written or removed."""
    state = copy.deepcopy(state)
    for keys, remove, value in edits:
        place = state
        for key in keys[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        if remove:
            place.pop(keys[-1], None)
        else:
            place[keys[-1]] = copy.deepcopy(value)
    return state


edits = st.lists(
    st.tuples(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3), st.booleans(), values), min_size=1, max_size=3
)


def plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and plain(one) for key, one in value.items())
    if isinstance(value, list):
        return type(value) is list and all(map(plain, value))
    return value is None or type(value) in {bool, int, str}


@profile
@given(state=states | nested, text=expressions)
@example(state={"a": {"b": 1}}, text="s")
@example(state={"a": {"b": 1}}, text="[{'it': s['a']}]")
@example(state={"a": {"b": 1}, "b": {"b": 1}}, text="s['a'] == s['b']")
@example(state={"a": {"b": 1}, "b": {"c": 1}}, text="s['a'] | s['b']")
def test_a_function_gives_the_same_over_the_view_as_over_the_state(state, text):
    """Any pure function runs over the view as if it were the state; its value is plain data."""
    fn, before = function(text), copy.deepcopy(state)
    reading = select(fn, state)
    assert reading.value == fn(copy.deepcopy(state))
    assert plain(reading.value)
    assert state == before


@profile
@given(state=states | nested, text=expressions, edits=edits)
@example(state={}, text="s.get('a')", edits=[(["a"], False, 1)])
@example(state={}, text="'a' in s", edits=[(["a"], False, None)])
@example(state={"a": 1}, text="len(s)", edits=[(["b"], False, 1)])
@example(state={"a": {}}, text="bool(s['a'])", edits=[(["a", "b"], False, 1)])
@example(state={"a": {"b": 1}}, text="s['a'] == {'b': 1}", edits=[(["a", "b"], False, 2)])
@example(state={"a": 0, "b": 1}, text="list(s)", edits=[(["a"], True, None)])
@example(state={"a": 0}, text="{key: 1 for key in s}", edits=[(["b"], False, 1)])
@example(state={"a": {}}, text="s['a'] is None", edits=[(["a"], False, None)])
@example(state={"a": {}}, text="isinstance(s['a'], Mapping)", edits=[(["a"], False, 1)])
@example(state={"a": {"b": [1]}}, text="s['a']['b'][0]", edits=[(["a", "b"], False, [2])])
@example(state={"a": {"b": 1}}, text="t(lambda: s['a']['b'])", edits=[(["a"], False, 2)])
def test_no_read_is_overlooked(state, text, edits):
    """Whenever a change of the state changes the value of a function, one of the paths that it read has changed."""
    fn, other = function(text), edited(state, edits)
    reading = select(fn, state)
    if reading.value != fn(copy.deepcopy(other)):
        assert meet(reading.paths, changes(state, other)), f"it read {reading.paths}"


@profile
@given(state=states | nested, text=expressions, edits=edits)
def test_it_has_changed_exactly_when_the_value_is_another(state, text, edits):
    """A reading has changed if and only if the function would give another value now."""
    fn, other = function(text), edited(state, edits)
    reading = select(fn, state)
    assert reading.changed(other) is (fn(copy.deepcopy(other)) != reading.value)
    assert reading.changed(copy.deepcopy(state)) is False


@profile
@given(state=states | nested, edits=edits, text=expressions)
def test_a_reading_keeps_its_value_whatever_becomes_of_the_state(state, edits, text):
    """The value is a copy: neither what is done to it nor what is done to the state touches the other."""
    reading = select(function(text), state)
    value, before = copy.deepcopy(reading.value), copy.deepcopy(state)
    scribble(reading.value)
    assert state == before
    reading = select(function(text), state)
    scribble(state)
    assert reading.value == value


def scribble(value):
    """Writes into every mapping and list of a value."""
    for inner in list(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()):
        scribble(inner)
    if isinstance(value, dict):
        value["scribbled"] = True
    elif isinstance(value, list):
        value.append("scribbled")


@profile
@given(state=nested, first=st.sampled_from(KEYS), second=st.sampled_from(KEYS))
def test_what_is_read_by_its_path_is_recorded_by_its_path(state, first, second):
    """Reading one place beneath another records that place only, so that its neighbours do not matter."""
    assume(second in state.get(first, {}))
    assert set(select(lambda s: s[first][second], state).paths) == {(first, second)}
    assert set(select(lambda s: s[first].get(second), state).paths) == {(first, second)}
    assert set(select(lambda s: {"it": s[first][second]}, state).paths) == {(first, second)}


STATE = {"a": 1, "m": {"x": 1, "y": {"z": 2}}, "l": [{"x": 1}, 2]}


@pytest.mark.parametrize(
    ("fn", "other"),
    [
        (lambda s: s["m"]["x"], {"m": {"x": 1, "y": 5}}),
        (lambda s: "x" in s["m"], {"m": {"x": 1, "y": 5}}),
        (lambda s: s["a"] if s["m"]["x"] else s["l"], {"a": 1, "m": {"x": 1}, "l": [3]}),
        (lambda s: s["m"]["y"]["z"], {"m": {"x": 9, "y": {"z": 2}, "w": 1}}),
        (lambda s: s.get("none", {}).get("deep"), {"none": {"other": 1}}),
    ],
)
def test_what_was_not_read_is_not_recorded(fn, other):
    """A change beside what a function read meets none of the paths that it read."""
    state = {**STATE, **({"none": {}} if "none" in other else {})}
    beside = {**state, **other}
    assert not meet(select(fn, state).paths, changes(state, beside))


def _pops(view):
    view.pop("a")


def _updates(view):
    view.update(a=2)


def _merges(view):
    view |= {"a": 2}
    if view is not None and dict(view) == {"a": 2, **{key: STATE[key] for key in ("m", "l")}}:
        raise TypeError("a new mapping, which is nobody's state")


def _sets(view):
    view["a"] = 2


def _sets_beneath(view):
    view["m"]["y"]["z"] = 3


def _deletes(view):
    del view["a"]


def _clears(view):
    view.clear()


def _defaults(view):
    view.setdefault("new", 1)


def _attribute(view):
    view.a = 2


@pytest.mark.parametrize(
    "write", [_pops, _updates, _merges, _sets, _sets_beneath, _deletes, _clears, _defaults, _attribute]
)
def test_the_view_cannot_be_written_to(write):
    """Every way to write to the state through the view is refused, and the state stays as it was."""
    state = copy.deepcopy(STATE)
    with pytest.raises((TypeError, AttributeError, InvalidStateError)):
        select(write, state)
    assert state == STATE


@pytest.mark.parametrize(
    "write",
    [lambda s: s["l"].append(1), lambda s: s["l"][0].update(x=2), lambda s: dict(s)["m"].update(x=2)],
    ids=["list", "mapping in a list", "mapping in a copy"],
)
def test_what_the_view_hands_out_is_no_way_to_the_state(write):
    """Writing to a list, or to what is in one, is refused or done to a copy."""
    state = copy.deepcopy(STATE)

    def attempt(view):
        try:
            write(view)
        except (AttributeError, TypeError):
            return "refused"
        return "done"

    select(attempt, state)
    assert state == STATE


def test_what_the_function_raises_is_raised():
    """A function that fails over the state fails with the same error."""
    with pytest.raises(KeyError, match="none"):
        select(lambda s: s["none"], STATE)
