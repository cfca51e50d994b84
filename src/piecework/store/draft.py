"""What a decision may see and change: the rows that were loaded, replaced one by one, written as a difference.

Records are frozen; `put` replaces. At most one row a key is written, so the second of two items on one slot sees what
the first did. Touching a key that was not loaded is an error, never a silent insert. What one item did is undone when
its decision raises: its neighbours in the batch go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import PieceworkError
from piecework.store.contract import Delete, Failure, Insert, Put, Update
from piecework.store.records import TABLES, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from piecework.store.contract import Request

R = TypeVar("R", bound=Record)
_UNKNOWN = object()
_Key = tuple[type[Record], tuple[object, ...]]


class Draft:
    """The rows of one batch, as loaded and as they shall become."""

    def __init__(self) -> None:
        self._before: dict[_Key, Record | None] = {}
        self._after: dict[_Key, Record | None] = {}
        self._appended: list[Record] = []
        self._journal: list[tuple[_Key, Record | None, bool]] = []
        self.queues: dict[str, list[str]] = {}

    def load(self, cls: type[R], keys: Iterable[tuple[object, ...]], rows: Iterable[R]) -> None:
        """Makes rows known. A key without a row is known to be missing; what was known already stays.

        Args:
            cls: Their class.
            keys: All the keys that were asked for.
            rows: What was found.
        """
        for row in rows:
            self._before.setdefault((cls, row.identity()), row)
        for key in keys:
            self._before.setdefault((cls, key), None)

    def find(self, cls: type[R], *key: object) -> R | None:
        """The row as it stands now, or None when there is none.

        Raises:
            LookupError: The key was never loaded: the verb forgot to.
        """
        address = (cls, key)
        if address in self._after:
            return self._after[address]  # type: ignore[return-value]  # the address holds the class
        if address not in self._before:
            raise LookupError(f"{cls.__name__} {key} was not loaded into the draft")
        return self._before[address]  # type: ignore[return-value]  # as above

    def get(self, cls: type[R], *key: object) -> R:
        """The row as it stands now.

        Raises:
            LookupError: There is no such row, or it was not loaded.
        """
        row = self.find(cls, *key)
        if row is None:
            raise LookupError(f"there is no {cls.__name__} {key}")
        return row

    def all(self, cls: type[R]) -> list[R]:
        """Every row of a class that is loaded or was added, as it stands now."""
        addresses = dict.fromkeys([*self._before, *self._after])
        rows = (self._after.get(a, self._before.get(a)) for a in addresses if a[0] is cls)
        return [row for row in rows if row is not None]  # type: ignore[misc]  # filtered by class above

    def put(self, record: Record) -> None:
        """Replaces a loaded row, or fills a key that is known to be missing."""
        address = (type(record), record.identity())
        if address not in self._before and address not in self._after:
            raise LookupError(f"{type(record).__name__} {address[1]} was not loaded into the draft")
        self._note(address)
        self._after[address] = record

    def add(self, record: Record) -> None:
        """Adds a row whose key cannot exist yet (a fresh id)."""
        address = (type(record), record.identity())
        self._before.setdefault(address, None)
        self._note(address)
        self._after[address] = record

    def remove(self, cls: type[Record], *key: object) -> None:
        """Deletes a row; one that is not there is no error."""
        address = (cls, key)
        self._note(address)
        self._after[address] = None

    def append(self, record: Record) -> None:
        """Adds a row to a table that only grows."""
        self._appended.append(record)

    def _note(self, address: _Key) -> None:
        self._journal.append((address, self._after.get(address), address in self._after))

    def fold(self, items: Sequence[Any], decide: Callable[[Draft, Any, int], Any], now: int) -> list[Any]:
        """Decides the items in order; an item whose decision raises leaves nothing behind and yields a `Failure`."""
        outcomes: list[Any] = []
        for item in items:
            self._journal.clear()
            grown = len(self._appended)
            queues = {key: list(ids) for key, ids in self.queues.items()} if self.queues else {}
            try:
                outcomes.append(decide(self, item, now))
            except (PieceworkError, LookupError, ValueError, TypeError) as error:
                for address, row, there in reversed(self._journal):
                    if there:
                        self._after[address] = row
                    else:
                        del self._after[address]
                del self._appended[grown:]
                self.queues = queues
                outcomes.append(Failure(error))
        return outcomes

    def write(self) -> Generator[Request, Any, None]:
        """Yields the requests that make the difference durable, tables in their fixed order."""
        inserts: dict[type[Record], list[Record]] = {}
        updates: dict[type[Record], list[Record]] = {}
        deletes: dict[type[Record], list[tuple[object, ...]]] = {}
        for address, row in self._after.items():
            before = self._before.get(address, _UNKNOWN)
            if row is before:
                continue
            cls, key = address
            if row is None:
                deletes.setdefault(cls, []).append(key)
            elif before is None:
                inserts.setdefault(cls, []).append(row)
            else:
                updates.setdefault(cls, []).append(row)
        puts: dict[type[Record], list[Record]] = {}
        for row in self._appended:
            puts.setdefault(type(row), []).append(row)
        for cls in TABLES:
            if cls in deletes:
                yield Delete(cls, deletes[cls])
            if cls in updates:
                yield Update(updates[cls])
            if cls in inserts:
                yield Insert(inserts[cls])
            if cls in puts:
                yield Put(puts[cls])
