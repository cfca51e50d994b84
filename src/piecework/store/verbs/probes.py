"""How an event finds the runs that wait for it without looking at all of them.

A wait stores one `==` clause in indexed form: a digest of (event type, field, value). An event is looked up once for
each field that somebody waits on under its type; waits without such a clause stand in their type's bucket. Values are
normalised first: 1 and 1.0 are equal, True is not 1.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKET = ""
"""The field of waits that no single value finds."""

MISSING = object()


def probe(event_type: str, field: str, value: Any) -> str:
    """The digest under which a wait for `field == value` is found."""
    digest = hashlib.sha256(f"{event_type}\x00{field}\x00".encode())
    digest.update(msgspec.json.encode(_normal(value), order="sorted"))
    return digest.hexdigest()[:32]


def bucket(event_type: str) -> str:
    """The digest of waits that have to be looked at for every event of the type."""
    return probe(event_type, BUCKET, None)


def probes_of(event_type: str, payload: dict[str, Any], fields: Iterable[str]) -> list[str]:
    """All digests under which waits may stand that this event matches."""
    found = [bucket(event_type)]
    for field in fields:
        value = value_at(payload, field)
        if field != BUCKET and value is not MISSING and value is not None:
            found.append(probe(event_type, field, value))
    return found


def value_at(payload: Any, path: str) -> Any:
    """What stands at a dotted path, or MISSING."""
    for name in path.split("."):
        if not isinstance(payload, dict) or name not in payload:
            return MISSING
        payload = payload[name]
    return payload


def _normal(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    return value
