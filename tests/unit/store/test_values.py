"""Promises about what may be stored."""

from __future__ import annotations

import enum
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import ValidationError
from piecework.store.values import check_identifier, decode, encode, encode_mapping

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


class Colour(enum.StrEnum):
    RED = "red"


@given(JSON)
def test_what_is_read_back_is_what_was_given(value):
    """Every JSON value comes back equal and of the same types."""
    read = decode(encode(value))
    assert read == value
    assert repr(read) == repr(value)


def test_tuples_come_back_as_lists():
    """Tuples are written as lists, at any depth."""
    assert decode(encode({"a": (1, (2,))})) == {"a": [1, [2]]}


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (float("nan"), "payload", "nan"),
        ({"a": [1, float("inf")]}, "payload.a[1]", "inf"),
        ({"a": {"b": 2**63}}, "payload.a.b", "beyond 64 bits"),
        ([-(2**63) - 1], "payload[0]", "beyond 64 bits"),
        ({1: "x"}, "payload", "the key 1"),
        ({"a": {None: 1}}, "payload.a", "the key None"),
        ({"a": "\ud800"}, "payload.a", "lone surrogate"),
        ({"\ud800": 1}, "payload", "lone surrogate"),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, "payload.at", "datetime.datetime"),
        ({"b": b"bytes"}, "payload.b", "bytes"),
        ({"s": {1, 2}}, "payload.s", "set"),
        ({"d": Decimal(1)}, "payload.d", "Decimal"),
        ({"e": Colour.RED}, "payload.e", "Colour"),
        ({"o": OrderedDict()}, "payload.o", "OrderedDict"),
        ({"f": len}, "payload.f", "builtin_function"),
        ({"x": object()}, "payload.x", "object"),
    ],
)
def test_what_is_not_json_is_refused_with_its_path(value, path, words):
    """Nothing is turned into something else quietly: it is refused, and the error says where it stands."""
    with pytest.raises(ValidationError, match=words) as caught:
        encode(value, what="payload")
    assert caught.value.path == path


def test_the_edges_of_integers_are_allowed():
    """64 bits are allowed to their last."""
    assert decode(encode([2**63 - 1, -(2**63)])) == [2**63 - 1, -(2**63)]


def test_a_value_that_contains_itself():
    """A value without an end is refused."""
    endless: dict[str, object] = {}
    endless["self"] = endless
    with pytest.raises(ValidationError, match="contains itself"):
        encode(endless)


def test_a_value_that_is_too_large():
    """The limit is on the encoded form; what is just small enough passes."""
    assert encode("x" * 98, limit_bytes=100)
    with pytest.raises(ValidationError, match="101 bytes, more than the 100"):
        encode("x" * 99, limit_bytes=100)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_mapping_is_a_mapping(value):
    """Where a mapping is wanted nothing else passes."""
    with pytest.raises(ValidationError, match="not a mapping"):
        encode_mapping(value, what="the patch")


def test_nothing_stays_nothing():
    """What was never written reads as None."""
    assert decode(None) is None


@pytest.mark.parametrize("value", ["", None, 3, b"a", "a\x00b", "\ud800", "x" * 513, "é" * 257])
def test_a_bad_identifier(value):
    """Ids are non-empty text of at most 512 bytes without NUL and surrogates; the error names which id it was."""
    with pytest.raises(ValidationError, match="run_id"):
        check_identifier(value, "run_id")


@pytest.mark.parametrize("value", ["a", "x" * 512, "é" * 256, "\U0001f4a5", "a b\n'\"", Colour.RED])
def test_a_good_identifier(value):
    """Any other text is an id, as it is."""
    assert check_identifier(value, "run_id") == value
