"""From what was asked of a collection to one SQL statement. Pure. Imports SQLAlchemy: import this on first use only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from piecework.errors import NotFoundError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

Clauses = tuple[tuple[str, Any], ...]
"""Pairs of column and value that all have to hold; None is NULL, a list is any of its values."""


def select_rows(table: sa.Table, clauses: Clauses, limit: int | None = None) -> sa.Select[Any]:
    """The rows that match, in the order of the primary key, at most `limit`."""
    return sa.select(*table.c).where(*_conditions(table, clauses)).order_by(*table.primary_key).limit(limit)


def count_rows(table: sa.Table, clauses: Clauses) -> sa.Select[int]:
    """How many rows match."""
    return sa.select(sa.func.count()).select_from(table).where(*_conditions(table, clauses))


def insert_row(table: sa.Table, values: Mapping[str, Any], *, missing_only: bool = False) -> sa.Insert:
    """Inserts a row and answers it as it is stored.

    Args:
        table: Where to.
        values: By column; what is left out is the database's to fill in.
        missing_only: Answer no row, and change nothing, when a row with one of its unique keys is there already.
    """
    statement = sqlite.insert(table).values({column_of(table, name): value for name, value in values.items()})
    if missing_only:
        statement = statement.on_conflict_do_nothing()
    return statement.returning(*table.c)


def update_rows(table: sa.Table, clauses: Clauses, values: Mapping[str, Any]) -> sa.Update:
    """Changes the rows that match.

    Raises:
        ValidationError: There is nothing to set.
    """
    if not values:
        raise ValidationError(f"update of {table.name!r} sets nothing: name at least one column", table=table.name)
    changes = {column_of(table, name): value for name, value in values.items()}
    return sa.update(table).where(*_conditions(table, clauses)).values(changes)


def delete_rows(table: sa.Table, clauses: Clauses) -> sa.Delete:
    """Removes the rows that match."""
    return sa.delete(table).where(*_conditions(table, clauses))


def raw(sql: str, params: Mapping[str, Any]) -> sa.TextClause:
    """SQL as it is, with `:name` for each parameter.

    Raises:
        ValidationError: A parameter is given that the text does not have.
    """
    statement = sa.text(sql)
    surplus = sorted(set(params) - set(statement.compile().params))
    if surplus:
        raise ValidationError(
            f"the SQL text has no place for {', '.join(surplus)}: write :{surplus[0]} where it belongs", sql=sql
        )
    return statement.bindparams(**params)


def column_of(table: sa.Table, name: str) -> sa.Column[Any]:
    """Finds a column.

    Raises:
        NotFoundError: The table has none of that name; the message has the nearest ones.
    """
    column = table.c.get(name)
    if column is None:
        raise NotFoundError.among(f"column of {table.name}", name, table.c.keys())
    return column


def _conditions(table: sa.Table, clauses: Clauses) -> list[sa.ColumnElement[bool]]:
    return [_condition(column_of(table, name), value) for name, value in clauses]


def _condition(column: sa.Column[Any], value: Any) -> sa.ColumnElement[bool]:
    if value is None:
        return column.is_(None)
    if not isinstance(value, list | tuple | set | frozenset):
        return column == sa.literal(value, column.type)
    # NULL is in no SQL list; here it is one value of many, so that [x] and x always mean the same.
    present = column.in_([item for item in value if item is not None])
    return sa.or_(present, column.is_(None)) if None in value else present
