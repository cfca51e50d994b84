"""What a factory read of the state: a function is called with a view that notes each path it looks at. Pure.

Mappings are noted key by key, lists as a whole: a patch replaces them whole. So a change elsewhere asks nothing of
the function, and a change of what it looked at calls it again, to compare what it selects.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from piecework.errors import InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Path: TypeAlias = tuple[str, ...]
_ABSENT: Final = object()


class Notes:
    """Where a function looked.

    Attributes:
        read: Paths whose value it took, with all beneath.
        listed: Mappings whose keys it listed or counted.
        entered: Paths where it saw that there is a mapping, and no more.
    """

    __slots__ = ("entered", "listed", "read")

    def __init__(self) -> None:
        self.read: set[Path] = set()
        self.listed: set[Path] = set()
        self.entered: set[Path] = set()


class View(Mapping[str, Any]):
    """A mapping of the state that can be read and not written; it notes what is read."""

    __slots__ = ("_data", "_notes", "_path")

    def __init__(self, data: Mapping[str, Any], path: Path, notes: Notes) -> None:
        self._data = data
        self._path = path
        self._notes = notes

    def __getitem__(self, key: str) -> Any:
        path = (*self._path, key)
        value = self._data.get(key, _ABSENT)
        if isinstance(value, dict):
            self._notes.entered.add(path)
            return View(value, path, self._notes)
        self._notes.read.add(path)
        if value is _ABSENT:
            raise KeyError(key)
        return copy.deepcopy(value) if isinstance(value, list) else value

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            hash(key)  # what cannot be a key of a dict is refused as a dict refuses it
            return False
        found = self._data.get(key, _ABSENT)
        notes = self._notes.entered if isinstance(found, dict) else self._notes.read
        notes.add((*self._path, key))
        return found is not _ABSENT

    def __iter__(self) -> Iterator[str]:
        self._notes.listed.add(self._path)
        return iter(self._data)

    def __len__(self) -> int:
        self._notes.listed.add(self._path)
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.copy() == plain(other)

    __hash__ = None  # type: ignore[assignment]  # as a dict has none

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = self.copy() | plain(other)
        return merged

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = plain(other) | self.copy()
        return merged

    def __repr__(self) -> str:
        return repr(self.copy())

    def copy(self) -> dict[str, Any]:
        """All of it as a plain dict."""
        self._notes.read.add(self._path)
        return copy.deepcopy(dict(self._data))

    def __setitem__(self, key: str, value: Any) -> NoReturn:
        raise _read_only(key)

    def __delitem__(self, key: str) -> NoReturn:
        raise _read_only(key)


class Reading:
    """A function of the state, what it selected, and where it looked.

    Attributes:
        value: What it selected: plain values, a copy.
    """

    __slots__ = ("_fn", "_notes", "_state", "value")

    def __init__(self, fn: Callable[[Any], Any], state: dict[str, Any]) -> None:
        self._fn = fn
        self._state = state
        self._notes = Notes()
        self.value = plain(fn(View(state, (), self._notes)))

    @property
    def paths(self) -> set[Path]:
        """The paths that what it selected depends on, each with all beneath it."""
        notes = self._notes
        deeper = {path[:length] for path in notes.read | notes.listed | notes.entered for length in range(len(path))}
        return notes.read | notes.listed | (notes.entered - deeper)

    def changed(self, state: dict[str, Any]) -> bool:
        """Tells whether the function selects another value from `state`; asked only where it looked."""
        if state is self._state or not self._touched(state):
            return False
        try:
            return bool(plain(self._fn(View(state, (), Notes()))) != self.value)
        except Exception:  # noqa: BLE001 - raised again, where it is seen, by whoever builds the service anew
            return True

    def _touched(self, state: dict[str, Any]) -> bool:
        notes, seen = self._notes, self._state
        return (
            any(_at(state, path) != _at(seen, path) for path in notes.read)
            or any(_keys(state, path) != _keys(seen, path) for path in notes.listed)
            or any(not isinstance(_at(state, path), dict) for path in notes.entered)
        )


def select(fn: Callable[[Any], Any], state: dict[str, Any]) -> Reading:
    """Calls a function with a view of the state and keeps what it selected and where it looked.

    Args:
        fn: Any pure function of a mapping.
        state: JSON values.
    """
    return Reading(fn, state)


def plain(value: Any) -> Any:
    """Turns views into dicts, at any depth of lists, tuples and mappings."""
    if isinstance(value, View):
        return value.copy()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in {list, tuple, set}:
        return type(value)(plain(item) for item in value)
    return value


def _at(state: Any, path: Path) -> Any:
    for key in path:
        state = state.get(key, _ABSENT) if isinstance(state, dict) else _ABSENT
    return state


def _keys(state: dict[str, Any], path: Path) -> Any:
    found = _at(state, path)
    return list(found) if isinstance(found, dict) else found


def _read_only(key: str) -> InvalidStateError:
    return InvalidStateError(
        f"a selected state is read-only, so {key!r} cannot be changed in it: return a patch from a step, or use "
        "State.set",
        key=key,
    )
