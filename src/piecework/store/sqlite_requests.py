"""Carries out the requests of a verb on a SQLite connection, in one of two forms with the same effect.

*Row by row*: `executemany`, and rows fetched one at a time. Cheapest where nobody competes for the interpreter, because
the statements stay small. *At once*: one statement for many rows, and a query answers a single row, a JSON text. Beside
a thread that computes every step of a statement waits for a switch interval, so there the number of steps is the cost.
Bytes are always bound as they are.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import astuple

from piecework.errors import StoreError
from piecework.store import statements
from piecework.store.contract import (
    Change,
    Delete,
    Insert,
    InsertMissing,
    Lock,
    Put,
    Read,
    StartAgain,
    Tell,
    Update,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from piecework.store.contract import Request, Script
    from piecework.store.records import Record

_ROWS_AT_ONCE = 256
_VALUES_AT_ONCE = 4096
_WRITES = re.compile(r"\bRETURNING\b", re.IGNORECASE)


class Hands:
    """Carries out requests, one transaction's.

    Args:
        connection: In a transaction, unless it is only read from.
        at_once: Whether to take few, large steps.

    Attributes:
        steps: How often the interpreter was given up for something that mattered: once a statement and once a row.
    """

    def __init__(self, connection: sqlite3.Connection, *, at_once: bool) -> None:
        self._connection = connection
        self._at_once = at_once
        self.steps = 0

    def drive(self, script: Script) -> list[Any]:
        """Carries out a verb's requests one after the other and answers its outcomes."""
        answer: Any = None
        try:
            while True:
                answer = self.carry_out(script.send(answer))
        except StopIteration as done:
            outcomes: list[Any] = done.value
            return outcomes

    def carry_out(self, request: Request) -> Any:
        """Carries out one request and answers what the contract says.

        Raises:
            StoreError: A row to be replaced is not there, or a verb asked for what a single writer never needs.
            sqlite3.Error: SQLite refused.
        """
        match request:
            case Lock(record, keys):
                return self._lock(record, keys)
            case Read():
                return self.select(request)
            case Insert(records):
                self._write(records, statements.insert, statements.insert_many)
            case Put(records):
                self._write(records, statements.put, statements.put_many)
            case Update(records, columns):
                self._update(records, columns)
            case Delete(record, keys):
                self._delete(record, keys)
            case Change(name, params):
                flat, lists = statements.spread(params)
                self._execute(statements.named_for(name, None, lists), flat)
            case InsertMissing(records, unique):
                return self._insert_missing(records, unique)
            case Tell():
                pass  # there is no other process to hear it
            case StartAgain():
                # Nobody else writes while the writer thread does: what was peeked at cannot have changed.
                raise StoreError("a verb asked to start again, which a single writer never needs")
        return None

    def select(self, request: Read) -> list[Any]:
        """Runs a named query and answers its rows.

        Raises:
            sqlite3.Error: SQLite refused.
        """
        flat, lists = statements.spread(request.params)
        text = statements.named_for(request.name, request.into, lists)
        if request.into is not None:
            return self._records(request.into, text, flat)
        if not self._at_once or _WRITES.search(text):
            return self._fetch(text, flat)
        body = _without_end(text)
        known = _columns.get(body)
        if known is None:
            # What its columns are is asked once; a query without a class has them in no other place.
            cursor = self._connection.execute(statements.without_rows(body), flat)
            known = _columns[body] = tuple(column[0] for column in cursor.description)
        ((line,),) = self._fetch(statements.columns_in_one_row(body, known), flat)
        return [tuple(map(_value, row)) for row in msgspec.json.decode(line)]

    def _lock(self, record: type[Record], keys: Sequence[tuple[object, ...]]) -> list[Record]:
        """A single writer needs no lock: this is the read that goes with it."""
        found: list[Record] = []
        for part, count in _parts(sorted(dict.fromkeys(keys)), len(record.key)):
            found += self._records(record, statements.by_keys(record, count), _padded(part, count, len(record.key)))
        return found

    def _records(self, record: type[Record], text: str, params: Any) -> list[Any]:
        if not self._at_once or _WRITES.search(text):
            return [record(*row) for row in self._fetch(text, params)]
        ((line,),) = self._fetch(statements.in_one_row(_without_end(text), record), params)
        rows = msgspec.json.decode(line)
        for position in statements.blob_positions(record):
            for row in rows:
                if row[position] is not None:
                    row[position] = bytes.fromhex(row[position])
        return [record(*row) for row in rows]

    def _write(
        self,
        records: Sequence[Record],
        one: Callable[[type[Record]], str],
        many: Callable[[type[Record], int], str],
    ) -> None:
        record = type(records[0])
        if not self._at_once or len(records) == 1:
            self._execute_many(one(record), list(map(astuple, records)))
            return
        width = len(record.__struct_fields__)
        rows = list(map(astuple, records))
        changed = sum(
            self._execute(many(record, count), _padded(part, count, width)) for part, count in _parts(rows, width)
        )
        # A row whose filled column is None looks like what pads a statement out.
        if changed != len(records):
            raise StoreError(f"{len(records) - changed} of {len(records)} rows of {record.table} were not taken")

    def _update(self, records: Sequence[Record], columns: tuple[str, ...] | None) -> None:
        record = type(records[0])
        rows = list(map(statements.update_order(record, columns), records))
        if not self._at_once or len(records) == 1:
            changed = self._execute_many(statements.update(record, columns), rows)
        else:
            width = len(rows[0])
            changed = sum(
                self._execute(statements.update_many(record, count, columns), _padded(part, count, width))
                for part, count in _parts(rows, width)
            )
        if changed != len(records):
            raise StoreError(f"{len(records) - changed} of {len(records)} rows of {record.table} are gone")

    def _delete(self, record: type[Record], keys: Sequence[tuple[object, ...]]) -> None:
        if not self._at_once or len(keys) == 1:
            self._execute_many(statements.delete(record), keys)
            return
        width = len(record.key)
        for part, count in _parts(keys, width):
            self._execute(statements.delete_many(record, count), _padded(part, count, width))

    def _insert_missing(self, records: Sequence[Record], unique: str) -> list[Record]:
        record = type(records[0])
        values = [getattr(one, unique) for one in records]
        if not self._at_once or len(records) == 1 or None in values:
            return self._insert_missing_singly(records, unique)
        wanted = _json(values)
        if "\\u0000" in wanted:  # SQLite ends a text from JSON there
            return self._insert_missing_singly(records, unique)
        ((line,),) = self._fetch(statements.taken(record, unique), (wanted,))
        taken = set(msgspec.json.decode(line))
        fresh: dict[object, Record] = {}
        for value, one in zip(values, records, strict=True):
            if value not in taken:
                fresh.setdefault(value, one)
        if not fresh:
            return []
        rows = list(fresh.values())
        self._write(rows, statements.insert, statements.insert_many)
        if record.serial is None:
            return rows
        return self._records(record, statements.by_unique(record, unique), (_json(list(fresh)),))

    def _insert_missing_singly(self, records: Sequence[Record], unique: str) -> list[Record]:
        text = statements.insert_missing(type(records[0]), unique)
        rows = chain.from_iterable(self._fetch(text, astuple(one)) for one in records)
        return [type(records[0])(*row) for row in rows]

    def _execute(self, text: str, params: Any) -> int:
        self.steps += 1
        return self._connection.execute(text, params).rowcount

    def _execute_many(self, text: str, rows: Sequence[Sequence[object]]) -> int:
        self.steps += len(rows)
        return self._connection.executemany(text, rows).rowcount

    def _fetch(self, text: str, params: Any) -> list[Any]:
        rows = self._connection.execute(text, params).fetchall()
        self.steps += 1 + len(rows)
        return rows


_columns: dict[str, tuple[str, ...]] = {}


@cache
def _without_end(text: str) -> str:
    return text.rstrip().removesuffix(";")


def _value(value: Any) -> Any:
    match value:
        case ["blob", digits]:
            return bytes.fromhex(digits)
        case ["real", digits]:
            return float(digits)
    return value


def _json(values: Sequence[object]) -> str:
    return msgspec.json.encode(values).decode()


def _parts(rows: Sequence[Any], width: int) -> Iterator[tuple[Sequence[Any], int]]:
    """Cuts rows into what one statement takes, and tells for how many rows its text is made.

    The texts come in few sizes (powers of two), because each is prepared once and kept.
    """
    limit = min(_ROWS_AT_ONCE, 1 << ((_VALUES_AT_ONCE // width).bit_length() - 1))
    for start in range(0, len(rows), limit):
        part = rows[start : start + limit]
        yield part, 1 << (len(part) - 1).bit_length()


def _padded(part: Sequence[tuple[object, ...]], count: int, width: int) -> list[object]:
    """The values of all rows in one list, filled up with NULLs for the rows that are not there."""
    flat = list(chain.from_iterable(part))
    flat += [None] * ((count - len(part)) * width)
    return flat
