"""What a decision may see and change: the rows that were loaded, replaced one by one, written as a difference.

Records are frozen; `put` replaces. At most one row a key is written, so the second of two items on one slot sees what
the first did. Touching a key that was not loaded is an error, never a silent insert. What one item did is undone when
its decision raises: its neighbours in the batch go on.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import PieceworkError
from piecework.store.contract import Delete, Failure, Insert, Put, Update
from piecework.store.records import TABLES, Record, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from piecework.store.contract import Request

_OF_RUNS = frozenset(cls for cls in TABLES if "run_id" in cls.__struct_fields__ and cls is not Run)
"""The tables whose rows belong to a run."""

R = TypeVar("R", bound=Record)
_Key = tuple[object, ...]
_Rows = dict[_Key, Record | None]


class Draft:
    """The rows of one batch, as loaded and as they shall become.

    Attributes:
        queues: Of each loaded slot the runs that wait in it, in their order, as far as they were loaded.
    """

    def __init__(self) -> None:
        self._before: dict[type[Record], _Rows] = {cls: {} for cls in TABLES}
        self._after: dict[type[Record], _Rows] = {cls: {} for cls in TABLES}
        self._of_run: dict[type[Record], dict[str, dict[_Key, None]]] = {cls: {} for cls in TABLES}
        self._appended: list[Record] = []
        self._journal: list[tuple[type[Record], _Key, Record | None, bool]] = []
        self._places: dict[str, int] = {}
        self.queues: dict[str, list[str]] = {}

    def load(self, cls: type[R], keys: Iterable[_Key], rows: Iterable[R]) -> None:
        """Makes rows known. A key without a row is known to be missing; what was known already stays.

        Args:
            cls: Their class.
            keys: All the keys that were asked for.
            rows: What was found.
        """
        before, indexed = self._before[cls], cls in _OF_RUNS
        for row in rows:
            key = row.identity()
            if before.setdefault(key, row) is row and indexed:
                self._index(cls, key, row)
        for key in keys:
            before.setdefault(key, None)

    def find(self, cls: type[R], *key: object) -> R | None:
        """The row as it stands now, or None when there is none.

        Raises:
            LookupError: The key was never loaded: the verb forgot to.
        """
        after = self._after[cls]
        if key in after:
            return after[key]  # type: ignore[return-value]  # the table holds rows of its class
        before = self._before[cls]
        if key not in before:
            raise LookupError(f"{cls.__name__} {key} was not loaded into the draft")
        return before[key]  # type: ignore[return-value]  # as above

    def get(self, cls: type[R], *key: object) -> R:
        """The row as it stands now.

        Raises:
            LookupError: There is no such row, or it was not loaded.
        """
        row = self.find(cls, *key)
        if row is None:
            raise LookupError(f"there is no {cls.__name__} {key}")
        return row

    def knows(self, cls: type[Record], *key: object) -> bool:
        """Whether a key was loaded or added."""
        return key in self._after[cls] or key in self._before[cls]

    def all(self, cls: type[R]) -> list[R]:
        """Every row of a class that is loaded or was added, as it stands now."""
        rows = (self.find(cls, *key) for key in dict.fromkeys([*self._before[cls], *self._after[cls]]))
        return [row for row in rows if row is not None]

    def of_run(self, cls: type[R], run_id: str) -> list[R]:
        """The rows of a class that belong to one run, as they stand now."""
        rows = (self.find(cls, *key) for key in self._of_run[cls].get(run_id, ()))
        return [row for row in rows if row is not None]

    def put(self, record: Record) -> None:
        """Replaces a loaded row, or fills a key that is known to be missing."""
        cls, key = type(record), record.identity()
        if key not in self._before[cls] and key not in self._after[cls]:
            raise LookupError(f"{cls.__name__} {key} was not loaded into the draft")
        self._set(cls, key, record)

    def add(self, record: Record) -> None:
        """Adds a row whose key cannot exist yet (a fresh id), or replaces what stands there."""
        cls, key = type(record), record.identity()
        self._before[cls].setdefault(key, None)
        self._set(cls, key, record)

    def remove(self, cls: type[Record], *key: object) -> None:
        """Deletes a row; one that is not there is no error."""
        self._set(cls, key, None)

    def append(self, record: Record) -> None:
        """Adds a row to a table that only grows, or replaces one whose key is there."""
        self._appended.append(record)

    def next_in_queue(self, slot_key: str) -> str | None:
        """The run that has waited longest in a slot, as far as the queue was loaded; each is answered once."""
        place = self._places.get(slot_key, 0)
        queue = self.queues.get(slot_key, ())
        if place >= len(queue):
            return None
        self._places[slot_key] = place + 1
        return queue[place]

    def fold(self, items: Sequence[Any], decide: Callable[[Draft, Any, int], Any], now: int) -> list[Any]:
        """Decides the items in order; an item whose decision raises leaves nothing behind and yields a `Failure`."""
        outcomes: list[Any] = []
        for item in items:
            self._journal.clear()
            grown, places = len(self._appended), dict(self._places)
            try:
                outcomes.append(decide(self, item, now))
            except (PieceworkError, LookupError, ValueError, TypeError) as error:
                for cls, key, row, there in reversed(self._journal):
                    if there:
                        self._after[cls][key] = row
                    else:
                        del self._after[cls][key]
                del self._appended[grown:]
                self._places = places
                outcomes.append(Failure(error))
        return outcomes

    def changed(self, cls: type[R]) -> Iterator[tuple[R | None, R | None]]:
        """Rows that differ from what was loaded, each as (before, after)."""
        before = self._before[cls]
        for key, row in self._after[cls].items():
            was = before.get(key)
            if row is not was:
                yield was, row  # type: ignore[misc]  # the table holds rows of its class

    def write(self) -> Generator[Request, Any, None]:
        """Yields the requests that make the difference durable, tables in their fixed order."""
        appended: dict[type[Record], list[Record]] = {}
        for record in self._appended:
            appended.setdefault(type(record), []).append(record)
        for cls in TABLES:
            after = self._after[cls]
            if after:
                yield from self._write_table(cls, after)
            if cls in appended:
                yield Put(appended[cls])

    def _write_table(self, cls: type[Record], after: _Rows) -> Generator[Request, Any, None]:
        before = self._before[cls]
        inserts: list[Record] = []
        updates: list[Record] = []
        replaced: list[Record] = []
        deletes: list[_Key] = []
        for key, row in after.items():
            was = before.get(key)
            if row is None:
                if key not in before or was is not None:
                    deletes.append(key)
            elif was is None:
                inserts.append(row)
            elif row is not was and row != was:
                updates.append(row)
                replaced.append(was)
        if deletes:
            yield Delete(cls, deletes)
        if updates:
            yield Update(updates, _differing(replaced, updates))
        if inserts:
            yield Insert(inserts)

    def _set(self, cls: type[Record], key: _Key, row: Record | None) -> None:
        after = self._after[cls]
        self._journal.append((cls, key, after.get(key), key in after))
        after[key] = row
        if row is not None and cls in _OF_RUNS:
            self._index(cls, key, row)

    def _index(self, cls: type[Record], key: _Key, row: Any) -> None:
        self._of_run[cls].setdefault(row.run_id, {})[key] = None


def _differing(before: Sequence[Record], after: Sequence[Record]) -> tuple[str, ...] | None:
    """The columns in which rows differ, of those that change together again and again; None where others do too."""
    record = type(after[0])
    for columns in record.together:
        rest = _others(record, columns)
        if all(rest(row) == rest(was) for was, row in zip(before, after, strict=True)):
            return columns
    return None


@cache
def _others(record: type[Record], columns: tuple[str, ...]) -> Callable[[Record], tuple[object, ...]]:
    return attrgetter(*(name for name in record.__struct_fields__ if name not in columns))
