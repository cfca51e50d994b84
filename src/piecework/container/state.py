"""The state that services may read and react to: JSON values, changed only by patches."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, final

from piecework.errors import describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@final
class _Delete:
    """The type of `DELETE`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "DELETE"

    def __copy__(self) -> _Delete:
        return self

    def __deepcopy__(self, memo: object) -> _Delete:
        return self

    def __reduce__(self) -> str:
        return "DELETE"


DELETE: Final = _Delete()
"""As a value in a patch: takes the key away. In JSON it is `{"__delete__": true}`."""

DELETE_IN_JSON: Final[dict[str, Any]] = {"__delete__": True}
"""What `DELETE` is where a patch has to be JSON: stored, sent, or typed by hand."""


def is_delete(value: object) -> bool:
    """Whether a patch's value takes its key away, in either form."""
    return value is DELETE or value == DELETE_IN_JSON


def in_json(patch: Any, depth: int = 256) -> Any:
    """A patch with each `DELETE` in it as JSON says it; whatever else is wrong with it is left to the check."""
    if patch is DELETE:
        return DELETE_IN_JSON
    if type(patch) is not dict or depth == 0:
        return patch
    return {key: in_json(value, depth - 1) for key, value in patch.items()}


def merge(state: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A new state: mappings are merged key by key at every depth, everything else is replaced."""
    merged = dict(state)
    for key, value in patch.items():
        before = merged.get(key)
        if is_delete(value):
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


class State:
    """Data that a container's factories select from.

    Args:
        initial: What it begins with; it is copied.
    """

    __slots__ = ("_data", "_later", "_subscribers")

    def __init__(self, initial: Mapping[str, Any] | None = None) -> None:
        self._data: dict[str, Any] = copy.deepcopy(dict(initial or {}))
        self._subscribers: list[Callable[[], None]] = []
        self._later: list[Callable[[], None]] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The data itself, for reading only: a commit replaces it and never changes it in place."""
        return self._data

    def get(self) -> dict[str, Any]:
        """A copy of the data."""
        return copy.deepcopy(self._data)

    async def set(self, patch: Mapping[str, Any]) -> None:
        """Commits a patch: mappings are merged at every depth, lists are replaced, `DELETE` takes a key away.

        Who selected a value that is another one now is stale when this returns. A patch that changes nothing tells
        nobody.
        """
        self.commit(merge(self._data, copy.deepcopy(dict(patch))))

    def commit(self, data: dict[str, Any]) -> None:
        """Puts other data in place of the data; one commit, however much of it changed.

        Args:
            data: Nobody may change it afterwards.
        """
        if self._subscribers and data == self._data:
            return
        self._data = data
        if not self._subscribers:
            return
        later: list[Callable[[], None]] = []
        before, self._later = self._later, later
        try:
            _call(tuple(self._subscribers))
        finally:
            self._later = before
        _call(later)

    def afterwards(self, fn: Callable[[], None]) -> None:
        """Has `fn` called when all have been told of the commit under way; at once where none is."""
        if self._later is None:
            fn()
        else:
            self._later.append(fn)

    def subscribe(self, fn: Callable[[], None]) -> Callable[[], None]:
        """Has `fn` called after each commit that changed something.

        Returns:
            A function that ends it.
        """
        self._subscribers.append(fn)

        def unsubscribe() -> None:
            if fn in self._subscribers:
                self._subscribers.remove(fn)

        return unsubscribe


def _call(functions: Iterable[Callable[[], None]]) -> None:
    for fn in functions:
        try:
            fn()
        except Exception as error:  # noqa: BLE001 - who listens takes no part in the commit; told as a warning
            signals.emit(signals.LISTENER_FAILED, level="warning", event_name="commit", error=describe(error))
