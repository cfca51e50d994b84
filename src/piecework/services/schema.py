"""How a SQLite file is opened, and which tables there are. Imports SQLAlchemy: import this on first use only.

Tables are read with the inspector and built here instead of by `MetaData.reflect`: it reads indexes too, which nobody
asks for, and warns about those that are expressions. Here, too, a column's type becomes what callers are promised.
"""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


def engine_of(path: Path, busy_timeout_seconds: float) -> sa.Engine:
    """Makes what opens connections: each commits every statement by itself, checks foreign keys, and waits for others.

    Args:
        path: The file; nothing is opened yet. A new one is made, and switched to WAL, by the first connection.
        busy_timeout_seconds: How long a statement waits for another writer of the same file.
    """
    return _engine(lambda: _open(path, busy_timeout_seconds, "FULL"))


def connect_fleeting(path: Path, busy_timeout_seconds: float) -> sa.Connection:
    """Opens a file that nobody will look into after a crash: no commit waits for the disk.

    Args:
        path: The file.
        busy_timeout_seconds: As of `engine_of`.
    """
    _here.opening = lambda: _open(path, busy_timeout_seconds, "OFF")
    return _fleeting().connect()


_here = threading.local()
"""What is opened in this thread, by the engine that many files share."""


@cache
def _fleeting() -> sa.Engine:
    def opening() -> sqlite3.Connection:
        opened: sqlite3.Connection = _here.opening()
        return opened

    return _engine(opening)


def _engine(opening: Callable[[], sqlite3.Connection]) -> sa.Engine:
    return sa.create_engine("sqlite://", creator=opening, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _open(path: Path, busy_timeout_seconds: float, synchronous: str) -> sqlite3.Connection:
    raw = sqlite3.connect(path, timeout=busy_timeout_seconds, check_same_thread=False)
    try:
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            # A pragma whose row stays unread keeps a lock, and the next connection finds the database locked.
            raw.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        raw.close()
        raise
    return raw


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Moments as aware UTC datetimes: a column that keeps no zone keeps UTC."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Turns a value into what is stored.

        Raises:
            ValidationError: The datetime has no zone, so nobody can know which moment is meant.
        """
        if not isinstance(value, datetime):
            return value
        if value.tzinfo is None:
            raise ValidationError(
                f"the datetime {value} has no time zone: use datetime.now(UTC), or give it tzinfo=UTC"
            )
        moment = value.astimezone(UTC)
        keeps_zone = dialect.name == "postgresql" and getattr(self.impl, "timezone", False)
        return moment if keeps_zone else moment.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Turns what is stored into an aware UTC datetime."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo is not None else value.replace(tzinfo=UTC)


def reflect(connection: sa.Connection) -> list[sa.Table]:
    """Reads the tables that the database has now: columns, their types, primary and foreign keys."""
    inspector = sa.inspect(connection)
    metadata = sa.MetaData()
    keys = inspector.get_multi_pk_constraint()
    references = inspector.get_multi_foreign_keys()
    for whole_name, columns in inspector.get_multi_columns().items():
        primary = keys[whole_name]["constrained_columns"]
        made = [_column(spec, primary=spec["name"] in primary) for spec in columns]
        sa.Table(whole_name[1], metadata, *made, *_foreign_keys(references.get(whole_name, ())))
    return list(metadata.tables.values())


def mirror(declared: sa.Table) -> sa.Table:
    """A table as it was declared, with the types that callers are promised; the declaration is left as it is."""
    columns = [
        sa.Column(
            column.name,
            _promised(column.type),
            primary_key=column.primary_key,
            nullable=column.nullable,
            default=column.default,
            onupdate=column.onupdate,
            server_default=column.server_default or (sa.FetchedValue() if column.primary_key else None),
        )
        for column in declared.c
    ]
    keys = [
        sa.ForeignKeyConstraint(
            [column.name for column in constraint.columns], [element.target_fullname for element in constraint.elements]
        )
        for constraint in declared.foreign_key_constraints
    ]
    return sa.Table(declared.name, sa.MetaData(), *columns, *keys)


def _column(spec: Any, *, primary: bool) -> sa.Column[Any]:
    # "The database fills it in": true of every column that is left out, and what each insert reads back.
    filled = sa.FetchedValue() if primary else None
    return sa.Column(
        spec["name"], _promised(spec["type"]), primary_key=primary, nullable=spec["nullable"], server_default=filled
    )


def _promised(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    if isinstance(kind, sa.DateTime):
        return UtcDateTime(timezone=kind.timezone)
    if type(kind) is sa.JSON:
        return sa.JSON(none_as_null=True)
    if isinstance(kind, sa.JSON):
        kind.none_as_null = True
    return kind


def _foreign_keys(specs: Iterable[Any]) -> list[sa.ForeignKeyConstraint]:
    return [
        sa.ForeignKeyConstraint(
            spec["constrained_columns"], [f"{spec['referred_table']}.{column}" for column in spec["referred_columns"]]
        )
        for spec in specs
        if spec["constrained_columns"] and spec["referred_columns"] and not spec.get("referred_schema")
    ]
