"""One strict check at the door: what may be stored, told with the path of the first thing that may not.

Plain JSON encoders are lenient where it hurts later: NaN becomes null, a datetime becomes a string. Here everything
that is not JSON is refused, so what is read back is what was given (tuples come back as lists).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

IDENTIFIER_LIMIT_BYTES = 512
DEPTH_LIMIT = 256
"""How deep values may be nested: far from what an interpreter's stack carries, here and wherever it is read."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_BOUND = 2**63
_PLAIN = frozenset({str, bool, type(None)})
"""Kinds of which every value may be stored; floats may be infinite, so they are looked at one by one."""


def encode(value: Any, *, what: str = "value", limit_bytes: int = 16_777_216) -> bytes:
    """Turns a JSON value into the bytes that are stored.

    Args:
        value: None, bool, int within ±2⁶³, finite float, str, list, tuple or str-keyed dict, nested
            up to 256 deep.
        what: Names the value in the error.
        limit_bytes: The largest encoded form.

    Raises:
        ValidationError: Something is not JSON, has a lone surrogate or is too large; `path` says where.
    """
    try:
        if not _is_plain(value, 0):
            _check(value, what, 0)
        data = _encoder.encode(value)
    except UnicodeEncodeError:
        _check(value, what, 0)  # says where
        raise
    except RecursionError:
        raise ValidationError(f"{what} is nested more than {DEPTH_LIMIT} deep, or contains itself", path=what) from None
    if len(data) > limit_bytes:
        raise ValidationError(
            f"{what} takes {len(data)} bytes, more than the {limit_bytes} that are allowed: "
            "keep large data elsewhere and store a reference",
            path=what,
        )
    return data


def decode(data: bytes | None) -> Any:
    """Turns stored bytes back into a value; None stays None."""
    return None if data is None else _decoder.decode(data)


def is_json(value: Any) -> bool:
    """Tells whether `encode` would take a value, whose texts are UTF-8 already, whatever its size."""
    if _is_plain(value, 0):
        return True
    try:
        _check(value, "", 0)
    except (ValidationError, RecursionError):
        return False
    return True


def encode_mapping(value: Any, *, what: str, limit_bytes: int = 16_777_216) -> bytes:
    """Like `encode`, for a value that has to be a mapping.

    Raises:
        ValidationError: It is not a mapping, or not JSON.
    """
    if not isinstance(value, dict):
        raise ValidationError(f"{what} is a {type(value).__name__}, not a mapping: return or pass a dict", path=what)
    return encode(value, what=what, limit_bytes=limit_bytes)


def check_identifier(value: Any, what: str) -> str:
    """Checks an id, type, key or name that becomes a column.

    Raises:
        ValidationError: It is not a non-empty str, or has NUL, a lone surrogate, or over 512 bytes.
    """
    if not isinstance(value, str) or not value:
        raise ValidationError(f"{what} has to be a non-empty text, not {value!r:.80}", path=what)
    _check_text(value, what)
    if "\x00" in value or len(value.encode()) > IDENTIFIER_LIMIT_BYTES:
        raise ValidationError(f"{what} {value[:40]!r} has a NUL or more than {IDENTIFIER_LIMIT_BYTES} bytes", path=what)
    return value


def check_limit(value: Any, what: str = "limit") -> int:
    """Checks how many somebody wants at most.

    Raises:
        ValidationError: It is no whole number from 1 that a store can count to.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _BOUND:
        raise ValidationError(f"{what} has to be a whole number from 1, within 64 bits, not {value!r:.80}", path=what)
    return value


def check_params(params: Mapping[str, Any]) -> None:
    """Checks what a query is about: values that no engine can hold are told by their name, not by the engine.

    Raises:
        ValidationError: A text has a lone surrogate or NUL, an integer has more than 64 bits.
    """
    for what, value in params.items():
        for one in value if isinstance(value, list | tuple | set | frozenset) else (value,):
            if isinstance(one, str):
                if not one.isascii():
                    _check_text(one, what)
                if "\x00" in one:
                    raise ValidationError(
                        f"{what} {one[:40]!r} has a NUL, which no store can hold: leave it out", path=what
                    )
            elif isinstance(one, int) and not -_BOUND <= one < _BOUND:
                raise ValidationError(f"{what} is an integer beyond 64 bits: give a smaller one", path=what)


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is JSON, but for lone surrogates, which the encoder finds; where not, `_check` says why.

    Nearly every value is: to look without keeping the path in mind costs a third.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        return kind in _PLAIN or (kind is int and -_BOUND <= value < _BOUND)
    if depth >= DEPTH_LIMIT:
        return False
    for item in items:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is int:
            if not -_BOUND <= item < _BOUND:
                return False
        elif not _is_plain(item, depth + 1):
            return False
    return True


def _check(value: Any, path: str, depth: int) -> None:
    kind = type(value)
    if depth > DEPTH_LIMIT:
        raise RecursionError
    if kind is str:
        _check_text(value, path)
    elif value is None or kind is bool:
        return
    elif kind is int:
        if not -_BOUND <= value < _BOUND:
            raise ValidationError(f"{path} is an integer beyond 64 bits: store it as text", path=path)
    elif kind is float:
        if not math.isfinite(value):
            raise ValidationError(f"{path} is {value}, which JSON has no word for", path=path)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValidationError(f"{path} has the key {key!r:.80}, which is not a text", path=path)
            _check_text(key, path)
            _check(item, f"{path}.{key}", depth + 1)
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
    else:
        raise ValidationError(
            f"{path} is a {kind.__module__}.{kind.__qualname__}, which is not JSON: convert it first", path=path
        )


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError(f"{path} has a lone surrogate, which UTF-8 cannot carry", path=path) from None
