"""Carries out the requests of a verb on a PostgreSQL connection, inside one transaction.

Writes answer nothing, so they are kept and sent together, as one statement, before the next request that answers
something. All parts of such a statement see the rows as they were before it; writes that could meet on one row are
therefore never joined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec.structs import replace

from piecework.errors import StoreError
from piecework.store import postgres_sql as sql
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
    from collections.abc import Iterable, Sequence

    import asyncpg

    from piecework.store.contract import Request, Script
    from piecework.store.records import Record

_BEGIN = "; ".join(
    ("BEGIN", *(f"SET LOCAL enable_{way} = off" for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin")))
)
"""A plan made while the tables were small is kept while they grow: so it goes by the indexes from the start."""

_Write: TypeAlias = Insert | Put | Update | Delete | Change


class StartOverError(Exception):
    """A verb asked to be rolled back and run anew."""


class Transaction:
    """One transaction on one connection; carries out requests in the order in which they are given.

    Args:
        connection: An open one that nobody else uses meanwhile.
        merge: Whether writes are kept and joined; if not, each is sent by itself when it is asked for.

    Attributes:
        told: The topics that other processes are to be told after the commit.
        committing: Whether a COMMIT has been sent: what comes after that leaves the outcome unknown.
    """

    def __init__(self, connection: asyncpg.Connection[Any], *, merge: bool = True) -> None:
        self._connection = connection
        self._merge = merge
        self._kept: list[_Write] = []
        self._by_table: dict[str, list[_Write]] = {}
        self.told: list[str] = []
        self.committing = False

    async def begin(self) -> None:
        """Begins it.

        Raises:
            asyncpg.PostgresError: The server refused.
        """
        await self._connection.execute(_BEGIN)

    async def commit(self) -> None:
        """Sends what is kept and commits.

        Raises:
            StoreError: A row that was to be replaced is not there.
            asyncpg.PostgresError: The server refused.
        """
        await self.flush()
        self.committing = True
        await self._connection.execute("COMMIT")

    async def rollback(self) -> None:
        """Takes everything back; what is kept is forgotten.

        Raises:
            asyncpg.PostgresError: The server refused.
        """
        self._kept.clear()
        self._by_table.clear()
        self.told.clear()
        await self._connection.execute("ROLLBACK")

    async def drive(self, script: Script) -> list[Any]:
        """Carries out a verb's requests one after the other and answers its outcomes; some writes may still be kept.

        Raises:
            StartOverError: The verb asked for it.
            StoreError: A row that was to be replaced is not there.
            asyncpg.PostgresError: The server refused.
        """
        answer: Any = None
        try:
            while True:
                answer = await self.carry_out(script.send(answer))
        except StopIteration as done:
            outcomes: list[Any] = done.value
            return outcomes

    async def carry_out(self, request: Request) -> Any:
        """Carries out one request and answers what the contract says.

        Raises:
            StartOverError: It was `StartAgain`.
            StoreError: A row that was to be replaced is not there.
            asyncpg.PostgresError: The server refused.
        """
        match request:
            case Insert() | Put() | Update() | Delete() | Change():
                await self._write(request)
            case Lock():
                await self.flush()
                return await _lock(self._connection, request)
            case Read():
                await self.flush()
                return await select(self._connection, request)
            case InsertMissing():
                await self.flush()
                return await _insert_missing(self._connection, request)
            case Tell(topics):
                self.told += topics
            case StartAgain():
                raise StartOverError
        return None

    async def flush(self) -> None:
        """Sends the writes that are kept.

        Raises:
            StoreError: A row that was to be replaced is not there.
            asyncpg.PostgresError: The server refused.
        """
        kept, self._kept, self._by_table = self._kept, [], {}
        if kept:
            await _send(self._connection, kept)

    async def _write(self, request: _Write) -> None:
        if not _has_rows(request):
            return
        tables = _tables(request)
        if any(_may_meet(request, kept) for table in tables for kept in self._by_table.get(table, ())):
            await self.flush()
        for table in tables:
            self._by_table.setdefault(table, []).append(request)
        self._kept.append(request)
        if not self._merge:
            await self.flush()


async def carry_out(connection: asyncpg.Connection[Any], request: Request) -> Any:
    """Carries out one request at once, inside a transaction that somebody else began.

    Raises:
        StartOverError: It was `StartAgain`.
        StoreError: A row that was to be replaced is not there.
        asyncpg.PostgresError: The server refused.
    """
    return await Transaction(connection, merge=False).carry_out(request)


async def select(connection: asyncpg.Connection[Any], request: Read) -> list[Any]:
    """Runs a named query and answers its rows.

    Raises:
        asyncpg.PostgresError: The server refused.
    """
    absent, params = sql.bound(request.params)
    text, order = sql.query(request.name, request.into, absent)
    rows = await connection.fetch(text, *(params[name] for name in order))
    return [tuple(row) for row in rows] if request.into is None else [request.into(*row) for row in rows]


async def _lock(connection: asyncpg.Connection[Any], request: Lock) -> list[Record]:
    if not request.keys:
        return []
    text = sql.lock(request.record, share=request.share)
    rows = await connection.fetch(text, *sql.key_arrays(request.keys))
    return [request.record(*row) for row in rows]


async def _insert_missing(connection: asyncpg.Connection[Any], request: InsertMissing) -> list[Record]:
    """Rows come back as they were given, so only what the store added is asked for: payloads may be large."""
    if not request.records:
        return []
    record, unique = type(request.records[0]), request.unique
    first: dict[Any, Record] = {}
    for one in request.records:
        first.setdefault(getattr(one, unique), one)
    rows = await connection.fetch(sql.insert_missing(record, unique), *sql.as_json(first.values()))
    numbers = {row[0]: row[-1] for row in rows}
    inserted = {value: one for value, one in first.items() if value in numbers}
    if record.serial is None:
        return list(inserted.values())
    return [replace(one, **{record.serial: numbers[value]}) for value, one in inserted.items()]


async def _send(connection: asyncpg.Connection[Any], writes: Sequence[_Write]) -> None:
    compiled = [_compiled(write) for write in writes]
    counted = {position: write for position, write in enumerate(writes) if isinstance(write, Update)}
    if len(writes) == 1 and not counted:
        await connection.execute(compiled[0][0], *compiled[0][1])
        return
    texts = tuple((text, len(params)) for text, params in compiled)
    text = sql.joined(texts, frozenset(counted))
    row = await connection.fetchrow(text, *(value for _, params in compiled for value in params))
    for changed, position in zip(row or (), sorted(counted), strict=False):
        _check_all_there(counted[position], changed)


def _check_all_there(request: Update, changed: int) -> None:
    if changed == len(request.records):
        return
    wanted = len({row.identity() for row in request.records})
    if changed != wanted:
        raise StoreError(f"{wanted - changed} of {wanted} rows of {request.records[0].table} are gone")


def _compiled(write: _Write) -> tuple[str, Sequence[Any]]:
    """The text of a write and its parameters."""
    match write:
        case Change(name, params):
            absent, given = sql.bound(params)
            text, order = sql.query(name, None, absent)
            return text, [given[name] for name in order]
        case Delete(record, keys):
            return sql.delete(record), sql.key_arrays(keys)
        case Insert(records):
            return sql.insert(type(records[0])), sql.as_json(_in_order(records))
        case Put(records):
            return sql.put(type(records[0])), sql.as_json(_in_order(records, last=True))
        case Update(records, columns):
            return sql.update(type(records[0]), columns), sql.as_json(_in_order(records, last=True))


def _tables(write: _Write) -> Iterable[str]:
    match write:
        case Change(name):
            return sql.tables_of(name)
        case Delete(record):
            return (record.table,)
        case _:
            return (type(write.records[0]).table,)


def _may_meet(one: _Write, other: _Write) -> bool:
    """Whether two writes to one table may be about the same rows."""
    keys, others = _keys(one), _keys(other)
    return keys is None or others is None or not keys.isdisjoint(others)


def _keys(write: _Write) -> frozenset[tuple[object, ...]] | None:
    """The keys of the rows that a write is about; None where it may be about any row."""
    if isinstance(write, Change):
        return None
    if isinstance(write, Delete):
        return frozenset(write.keys)
    # A table that the store numbers has a second unique column: rows with different keys may meet there.
    return None if type(write.records[0]).serial else frozenset(row.identity() for row in write.records)


def _has_rows(write: _Write) -> bool:
    match write:
        case Change():
            return True
        case Delete(_, keys):
            return bool(keys)
        case Insert(records) | Put(records) | Update(records):
            return bool(records)


def _in_order(records: Sequence[Record], *, last: bool = False) -> Iterable[Record]:
    """By key, so that two transactions with the same keys wait for each other and never in a ring.

    Args:
        records: Of one class.
        last: Whether of rows with one key only the last counts: PostgreSQL refuses to touch a row twice in a statement.
    """
    if len(records) == 1 or _is_numbered(records):
        return records
    keys = [record.identity() for record in records]
    if last:
        found = dict(zip(keys, records, strict=True))
        return [found[key] for key in sorted(found)]
    return [records[place] for place in sorted(range(len(keys)), key=keys.__getitem__)]


def _is_numbered(records: Sequence[Record]) -> bool:
    """Whether the store is to number them: then they have no keys yet, and go in the order in which they came."""
    serial = type(records[0]).serial
    return serial is not None and any(getattr(record, serial) is None for record in records)
