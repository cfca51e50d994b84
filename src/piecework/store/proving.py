"""What proofs need of a store beside the requests of verbs: who waits, what stands there, and to put it back.

For a store that belongs to a proof alone: every row of it is deleted here without a question.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from piecework.errors import StoreError
from piecework.store import postgres_sql as sql
from piecework.store.records import TABLES, Record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    import asyncpg

Rows = dict[type[Record], list[Record]]
"""Everything that stands in a store, by table."""

_WAITING = "SELECT pid FROM unnest($1::int[]) AS pid WHERE cardinality(pg_blocking_pids(pid)) > 0"
_WATCHED = "SET deadlock_timeout = '15ms'; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0"


async def waiting(connection: asyncpg.Connection[Any], pids: Sequence[int]) -> set[int]:
    """Which of some backends wait for a lock that another one has."""
    return {row[0] for row in await connection.fetch(_WAITING, list(pids))}


async def terminate(connection: asyncpg.Connection[Any], pid: int) -> None:
    """Ends a backend in whatever it is doing, and answers when it is gone and its transaction with it.

    Raises:
        StoreError: It does not go.
    """
    if not await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid):
        raise StoreError(f"the PostgreSQL backend {pid} could not be ended")


async def dump(connection: asyncpg.Connection[Any]) -> Rows:
    """Everything that stands in a PostgreSQL store."""
    return {record: [record(*row) for row in await connection.fetch(text_of_rows(record))] for record in TABLES}


def dump_file(connection: sqlite3.Connection) -> Rows:
    """Everything that stands in a SQLite store."""
    return {record: [record(*row) for row in connection.execute(text_of_rows(record))] for record in TABLES}


async def digest(connection: asyncpg.Connection[Any]) -> str:
    """A text that is the same for the same rows."""
    found: str = await connection.fetchval(_digest_text())
    return found


async def put_back(
    connection: asyncpg.Connection[Any], rows: Mapping[type[Record], Sequence[Record]], *, anew: bool = False
) -> None:
    """Makes a store what it was, and has what it numbers go on behind that.

    Args:
        connection: In no transaction.
        rows: What shall stand there; everything else goes.
        anew: Whether what deleted rows leave on the disk shall go as well, which is slower.
    """
    names = [record.table for record in TABLES]
    emptied = f"TRUNCATE {', '.join(names)}" if anew else "; ".join(f"DELETE FROM {name}" for name in names)  # noqa: S608 - names are ours
    numbered = [_numbered_from(record, rows.get(record, ())) for record in TABLES if record.serial is not None]
    async with connection.transaction():
        await connection.execute("; ".join([emptied, *numbered]))
        for record in TABLES:
            if rows.get(record):
                await connection.execute(sql.insert(record), *sql.as_json(rows[record]))


async def be_watched(connection: asyncpg.Connection[Any]) -> None:
    """Sets a connection up for a proof: it finds deadlocks quickly and waits for locks as long as it takes."""
    await connection.execute(_WATCHED)


def text_of_rows(record: type[Record]) -> str:
    """The query for all rows of a table, on either engine."""
    return f"SELECT {', '.join(record.__struct_fields__)} FROM {record.table} ORDER BY {', '.join(record.key)}"  # noqa: S608 - names are ours


def _numbered_from(record: type[Record], rows: Sequence[Record]) -> str:
    last = max((getattr(row, record.serial or "") for row in rows), default=0)
    # Numbers stay clear of those that were given: what a transaction that was rolled back drew is given again.
    return f"SELECT setval('{record.table}_{record.serial}_seq', {last + 1}, false)"


@cache
def _digest_text() -> str:
    parts = (
        f"(SELECT coalesce(string_agg(t::text, chr(10) ORDER BY {', '.join(record.key)}), '') FROM {record.table} AS t)"  # noqa: S608 - names are ours
        for record in TABLES
    )
    return f"SELECT md5(concat_ws(chr(12), {', '.join(parts)}))"
