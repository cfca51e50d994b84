"""The schema's versions: numbered, forward only, each applied whole or not at all."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from piecework.errors import SchemaVersionError, StoreFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_ID = 0x50574B31  # "PWK1": SQLite keeps it in the file's header


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Every migration as (number, SQL text), in order."""
    files = sorted((Path(__file__).parent / "migrations").glob("*.sql"))
    return tuple((int(f.name.split("_", 1)[0]), f.read_text("utf-8")) for f in files)


def inspect_sqlite(connection: sqlite3.Connection, path: str) -> int:
    """Tells the schema version of a file, 0 for a new one, without writing to it.

    Raises:
        StoreFormatError: It is no database, damaged, or somebody else's.
        SchemaVersionError: It is newer than this version of Piecework.
    """
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise
        raise StoreFormatError(
            f"{path} is not a store: {error}. Name another file, or move this one away", path=path
        ) from error
    if owner != APPLICATION_ID and (tables or version):
        names = ", ".join(tables[:3]) or "none"
        raise StoreFormatError(
            f"{path} is a database of something else (its tables: {names}); it was left alone. Name another file",
            path=path,
        )
    newest = migrations()[-1][0]
    if version > newest:
        raise SchemaVersionError(
            f"{path} has schema version {version}, this Piecework knows up to {newest}: upgrade Piecework",
            path=path,
            found=version,
            known=newest,
        )
    return version


def migrate_sqlite(connection: sqlite3.Connection, version: int) -> int:
    """Brings a file from `version` to the newest schema and answers that version."""
    for number, text in migrations():
        if number > version:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement in _statements(text):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {number}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            version = number
    return version


def _statements(text: str) -> Iterator[str]:
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
