"""What became of a run's state from one entry of its timeline to the next, and the state at any of them. Pure.

A delta says what was set, as a patch that `merge` takes, and which places are gone. Every so often an entry has the
whole state as well: from the nearest of those before it and the deltas that follow the state at an entry is made again,
equal to what was committed there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from piecework.container.state import merge

if TYPE_CHECKING:
    from collections.abc import Sequence

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_Path: TypeAlias = tuple[str, ...]
SNAPSHOT_EVERY = 10
"""Every so many stages an entry carries the whole state."""
_SHOWN = 50


def encoded_delta(before: dict[str, Any] | None, after: dict[str, Any], *, whole: bool = False) -> bytes | None:
    """What leads from one state to another; None where nothing changed and the whole is not asked for.

    Args:
        before: The state as the timeline tells it so far; None: not at all, then the whole state is kept.
        after: The state that is committed with the entry.
        whole: Also keep the whole of it.
    """
    if before is None:
        return _encode({"all": after})
    set_: dict[str, Any] = {}
    gone: list[_Path] = []
    _compare(before, after, (), set_, gone)
    delta: dict[str, Any] = {}
    if set_:
        delta["set"] = set_
    if gone:
        delta["gone"] = gone
    if whole:
        delta |= {"set": set_, "all": after}
    return _encode(delta) if delta else None


def state_after(deltas: Sequence[bytes | None]) -> dict[str, Any]:
    """The state behind the last of some entries, given what each of them from the first on has for a delta."""
    state: dict[str, Any] = {}
    for delta in reversed(_since_snapshot(deltas)):
        if "all" in delta:
            state = delta["all"]
            continue
        for path in delta.get("gone", ()):
            state = _without(state, path)
        state = merge(state, delta.get("set", {}))
    return state


def changed_places(delta: bytes | None) -> list[str]:
    """The places of the state that an entry changed, as dotted paths, without the runtime's own; no values."""
    if delta is None:
        return []
    told = _decode(delta)
    written = told["all"] if "set" not in told and "gone" not in told else told.get("set", {})
    places = [*_places(written), *(".".join(path) for path in told.get("gone", ()))]
    places = sorted(place for place in places if not place.startswith("__"))
    return places if len(places) <= _SHOWN else [*places[:_SHOWN], f"and {len(places) - _SHOWN} more"]


def _since_snapshot(deltas: Sequence[bytes | None]) -> list[dict[str, Any]]:
    """The deltas back to the nearest whole state, the latest first."""
    found: list[dict[str, Any]] = []
    for delta in reversed(deltas):
        if delta is not None:
            found.append(_decode(delta))
            if "all" in found[-1]:
                break
    return found


def _compare(
    before: dict[str, Any], after: dict[str, Any], path: _Path, set_: dict[str, Any], gone: list[_Path]
) -> None:
    for key, value in after.items():
        if key not in before:
            set_[key] = value
            continue
        old = before[key]
        if old is value:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            inner: dict[str, Any] = {}
            _compare(old, value, (*path, key), inner, gone)
            if inner:
                set_[key] = inner
        elif not _same(old, value):
            set_[key] = value
    gone += [(*path, key) for key in before if key not in after]


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: for Python, 1 equals 1.0 and True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _without(state: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """A state without one place."""
    left = dict(state)
    if len(path) == 1:
        left.pop(path[0], None)
    else:
        left[path[0]] = _without(left[path[0]], path[1:])
    return left


def _places(patch: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in patch.items():
        found += _places(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found
