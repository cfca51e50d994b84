"""How a SQLite file is opened, and which tables it has. Imports SQLAlchemy: import this on first use only.

Tables are read with the inspector and built here instead of by `MetaData.reflect`: it reads indexes too, which nobody
asks for, and warns about those that are expressions. Here, too, a column's type becomes what callers are promised.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from pathlib import Path

Schema = dict[str, sa.Table]
"""The tables of a database by name."""

BUSY_TIMEOUT_SECONDS = 10
"""How long a statement waits for another writer of the same file."""


def engine_of(path: Path) -> sa.Engine:
    """Makes what opens connections: each commits every statement by itself, checks foreign keys, and waits for others.

    Args:
        path: The file; nothing is opened yet. A new one is made, and switched to WAL, by the first connection.
    """
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _prepare(raw: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        # A pragma whose row stays unread keeps a lock, and the next connection finds the database locked.
        raw.execute(f"PRAGMA {pragma}").fetchall()


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Moments as aware UTC datetimes: SQLite's column keeps no zone, so it keeps UTC."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
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
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Turns what is stored into an aware UTC datetime."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo is not None else value.replace(tzinfo=UTC)


def reflect(connection: sa.Connection) -> Schema:
    """Reads the tables that the database has now: columns, their types, primary keys."""
    inspector = sa.inspect(connection)
    metadata = sa.MetaData()
    keys = inspector.get_multi_pk_constraint()
    for whole_name, columns in inspector.get_multi_columns().items():
        primary = keys[whole_name]["constrained_columns"]
        made = (_column(spec["name"], spec["type"], primary=spec["name"] in primary) for spec in columns)
        sa.Table(whole_name[1], metadata, *made)
    return dict(metadata.tables)


def _column(name: str, kind: sa.types.TypeEngine[Any], *, primary: bool) -> sa.Column[Any]:
    if isinstance(kind, sa.DateTime):
        kind = UtcDateTime()
    elif isinstance(kind, sa.JSON):
        kind = sa.JSON(none_as_null=True)
    # "The database fills it in": true of every column that is left out, and what each insert reads back.
    return sa.Column(name, kind, primary_key=primary, server_default=sa.FetchedValue() if primary else None)
