"""Frames for tests that break them: good ones of every message, what can go wrong with them, and a plain reader.

The reader shares no line with `piecework.process.protocol`: it takes a stream apart by hand, and looks at each frame
with the form of its message beside it. What the two make of the same bytes has to be the same.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from msgspec import inspect

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

SECRET = "s3cr3t-hunter2"
"""Stands wherever a text may stand: it may be in no error."""
LIMIT_BYTES = 2_000
_HEADER = struct.Struct(">I")
_pack = msgspec.msgpack.encode


def framed(body: bytes) -> bytes:
    """A body with its length before it."""
    return _HEADER.pack(len(body)) + body


@dataclass(frozen=True)
class Read:
    """What came of a stream: the messages as plain mappings without what was left out, and whether it ended well."""

    messages: list[dict[str, Any]]
    well: bool


class Direction:
    """The messages that may come over a connection in one direction.

    Args:
        types: Their union.
        others: The union of the other direction's.
        limit_bytes: The longest frame.
    """

    def __init__(self, types: Any, others: Any, limit_bytes: int = LIMIT_BYTES) -> None:
        self.types = types
        self._limit_bytes = limit_bytes
        self._forms: dict[str, inspect.StructType] = {}
        for kind in get_args(types):
            form = inspect.type_info(kind)
            assert isinstance(form, inspect.StructType)
            self._forms[str(form.tag)] = form
        self._others = [form for form in map(inspect.type_info, get_args(others)) if form.tag not in self._forms]

    def good(self, rng: random.Random) -> dict[str, Any]:
        """A message as it may come, with its type."""
        return _message(rng.choice(list(self._forms.values())), rng)

    def broken(self, rng: random.Random) -> bytes:
        """A stream of one to three frames with something wrong, mostly."""
        bodies = [_pack(self.good(rng)) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.5:
            at = rng.randrange(len(bodies))
            bodies[at] = rng.choice(_BODIES)(self, rng, bodies[at])
        stream = b"".join(map(framed, bodies))
        return stream if rng.random() < 0.2 else rng.choice(_STREAMS)(rng, stream, bodies)

    def surely_broken(self, rng: random.Random) -> bytes:
        """Like `broken`, surely, and with nothing before what is broken that ends the connection in order."""
        while True:
            stream = self.broken(rng)
            read = self.read(stream)
            if not read.well and all(message["type"] != "stop" for message in read.messages):
                return stream

    def read(self, stream: bytes) -> Read:
        """Reads a stream that ends after these bytes, plainly."""
        messages: list[dict[str, Any]] = []
        while len(stream) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(stream)
            body = stream[_HEADER.size : _HEADER.size + length]
            if not 0 < length <= self._limit_bytes or len(body) < length:
                return Read(messages, well=False)
            message = self._read_one(body)
            if message is None:
                return Read(messages, well=False)
            messages.append(message)
            stream = stream[_HEADER.size + length :]
        return Read(messages, well=not stream)

    def _read_one(self, body: bytes) -> dict[str, Any] | None:
        try:
            message = msgspec.msgpack.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        form = self._forms.get(message.get("type")) if _has_type(message) else None
        if form is None:
            return None
        fields = {field.encode_name: field for field in form.fields}
        given = {name: value for name, value in message.items() if name != "type"}
        if not given.keys() <= fields.keys():
            return None
        if any(field.required and name not in given for name, field in fields.items()):
            return None
        if not all(_fits(fields[name].type, value) for name, value in given.items()):
            return None
        for name, value in given.items():
            given[name] = float(value) if isinstance(fields[name].type, inspect.FloatType) else value
        return {"type": form.tag} | {name: _default(field) for name, field in fields.items()} | given

    @property
    def tags(self) -> set[str]:
        """The types of its messages."""
        return set(self._forms)

    def other(self, rng: random.Random) -> dict[str, Any]:
        """A good message of the other direction."""
        return _message(rng.choice(self._others), rng)


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same, types included."""
    return _pack(one, order="deterministic") == _pack(other, order="deterministic")


def _has_type(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("type"), str)


def _default(field: inspect.Field) -> Any:
    if field.required:
        return None
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _fits(form: inspect.Type, value: Any) -> bool:
    match form:
        case inspect.UnionType():
            return any(_fits(one, value) for one in form.types)
        case inspect.DictType():
            return type(value) is dict and all(
                _fits(form.key_type, key) and _fits(form.value_type, item) for key, item in value.items()
            )
        case inspect.IntType():
            return type(value) is int
        case inspect.FloatType():
            return type(value) in {int, float} and (form.ge is None or form.ge <= value <= form.le)
        case inspect.LiteralType():
            return type(value) is str and value in form.values
        case inspect.AnyType():
            return _is_json(value, 0)
        case _:
            return type(value) is _PLAIN[type(form)]


_PLAIN: dict[type, type] = {
    inspect.StrType: str,
    inspect.BoolType: bool,
    inspect.BytesType: bytes,
    inspect.NoneType: type(None),
}


def _is_json(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth < 255 and all(type(key) is str and _is_json(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return depth < 255 and all(_is_json(item, depth + 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _message(form: inspect.StructType, rng: random.Random) -> dict[str, Any]:
    given = {
        field.encode_name: _value(field.type, rng) for field in form.fields if field.required or rng.random() < 0.5
    }
    return {"type": form.tag} | given


def _value(form: inspect.Type, rng: random.Random) -> Any:
    match form:
        case inspect.UnionType():
            return _value(rng.choice(form.types), rng)
        case inspect.DictType():
            return {SECRET: _value(form.value_type, rng), "other": _value(form.value_type, rng)}
        case inspect.IntType():
            return rng.choice((0, 1, rng.getrandbits(32), -1))
        case inspect.FloatType():
            return rng.choice((0.5, 600.0, 3) if form.le is None else (form.ge, 0.5, form.le))
        case inspect.LiteralType():
            return rng.choice(form.values)
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.BytesType():
            return SECRET.encode()
        case inspect.NoneType():
            return None
        case inspect.AnyType():
            return rng.choice((None, True, 7, 2.5, SECRET, [SECRET, 1], {SECRET: {"deep": [SECRET]}}))
        case _:
            return rng.choice((SECRET, "r1", ""))


def _ill(rng: random.Random) -> Any:
    """Something that is no JSON, or of no type that a field has."""
    ext = msgspec.msgpack.Ext
    return rng.choice((math.nan, math.inf, b"\xff" + SECRET.encode(), ext(5, SECRET.encode()), {7: SECRET}, 2**63))


def _is_none_of_ours(_: Direction, rng: random.Random, _body: bytes) -> bytes:
    return _pack(rng.choice(({"type": SECRET}, {"typ": SECRET}, [SECRET], SECRET, 7, None, {"type": [SECRET]}, {})))


def _lacks_a_field(_: Direction, rng: random.Random, body: bytes) -> bytes:
    message = msgspec.msgpack.decode(body)
    del message[rng.choice(list(message))]
    return _pack(message)


def _has_one_more(_: Direction, _rng: random.Random, body: bytes) -> bytes:
    return _pack(msgspec.msgpack.decode(body) | {SECRET: SECRET})


def _has_the_wrong_type(_: Direction, rng: random.Random, body: bytes) -> bytes:
    message = msgspec.msgpack.decode(body)
    message[rng.choice(list(message))] = rng.choice((SECRET, 7, 1.5, None, True, [SECRET], {SECRET: 1}, _ill(rng)))
    return _pack(message)


def _is_no_json(_: Direction, rng: random.Random, body: bytes) -> bytes:
    message = msgspec.msgpack.decode(body)
    for name, value in message.items():
        if isinstance(value, dict):
            message[name] = value | {SECRET: rng.choice((_ill(rng), [_ill(rng)]))}
    return _pack(message)


def _is_deep(_: Direction, rng: random.Random, body: bytes) -> bytes:
    value: Any = SECRET
    for _deeper in range(rng.choice((200, 260, 900))):
        value = [value]
    message = msgspec.msgpack.decode(body)
    for name, one in message.items():
        if isinstance(one, dict):
            message[name] = {SECRET: value}
    return _pack(message)


def _claims_much(_: Direction, rng: random.Random, body: bytes) -> bytes:
    # An array, a map, bytes, a text and an extension of four thousand million each.
    return body[:-1] + rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")) + b"\xff\xff\xff\xff"


def _is_of_the_other_side(direction: Direction, rng: random.Random, _body: bytes) -> bytes:
    return _pack(direction.other(rng))


def _has_bits_flipped(_: Direction, rng: random.Random, body: bytes) -> bytes:
    flipped = bytearray(body)
    for _time in range(rng.randint(1, 4)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


_BODIES: tuple[Callable[[Direction, random.Random, bytes], bytes], ...] = (
    _is_none_of_ours,
    _lacks_a_field,
    _has_one_more,
    _has_the_wrong_type,
    _is_no_json,
    _is_deep,
    _claims_much,
    _is_of_the_other_side,
    _has_bits_flipped,
)


def _is_cut(rng: random.Random, stream: bytes, _bodies: list[bytes]) -> bytes:
    return stream[: rng.randrange(len(stream))]


def _is_beheaded(rng: random.Random, stream: bytes, _bodies: list[bytes]) -> bytes:
    return stream[rng.randrange(len(stream)) :]


def _lies_about_its_length(rng: random.Random, stream: bytes, bodies: list[bytes]) -> bytes:
    (length,) = _HEADER.unpack_from(stream)
    lie = rng.choice((0, 1, length - 1, length + 1, LIMIT_BYTES, LIMIT_BYTES + 1, 2**32 - 1, length + len(bodies[-1])))
    return _HEADER.pack(lie) + stream[_HEADER.size :]


def _comes_twice(rng: random.Random, _stream: bytes, bodies: list[bytes]) -> bytes:
    return b"".join(map(framed, [*bodies, rng.choice(bodies)]))


def _is_shuffled(rng: random.Random, _stream: bytes, bodies: list[bytes]) -> bytes:
    return b"".join(map(framed, rng.sample(bodies, len(bodies))))


def _is_noise(rng: random.Random, _stream: bytes, _bodies: list[bytes]) -> bytes:
    return rng.randbytes(rng.randint(0, 60))


def _has_noise_within(rng: random.Random, stream: bytes, _bodies: list[bytes]) -> bytes:
    at = rng.randrange(len(stream))
    return stream[:at] + rng.randbytes(rng.randint(1, 5)) + stream[at + rng.randint(0, 5) :]


def _is_oversized(rng: random.Random, stream: bytes, _bodies: list[bytes]) -> bytes:
    return stream + framed(_pack({"type": "log", "level": SECRET, "message": "x" * rng.randint(1_900, 2_100)}))


def _has_flips_anywhere(rng: random.Random, stream: bytes, _bodies: list[bytes]) -> bytes:
    flipped = bytearray(stream)
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


_STREAMS: tuple[Callable[[random.Random, bytes, list[bytes]], bytes], ...] = (
    _is_cut,
    _is_beheaded,
    _lies_about_its_length,
    _comes_twice,
    _is_shuffled,
    _is_noise,
    _has_noise_within,
    _is_oversized,
    _has_flips_anywhere,
)
