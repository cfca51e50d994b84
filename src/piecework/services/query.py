"""From what was asked of a collection to one SQL statement. Pure. Imports SQLAlchemy: import this on first use only.

A statement is made once for each shape of a query, and kept with the tables that it is about: queries that differ in
their values alone cost what a look into a mapping costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from piecework.errors import NotFoundError, ValidationError
from piecework.services import where
from piecework.services.where import Conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.services.asked import Group, Query
    from piecework.services.relations import Schema

_KEPT_STATEMENTS = 500


@dataclass(frozen=True, slots=True)
class Made:
    """A statement and its parameters."""

    statement: sa.Executable
    params: dict[str, Any]


def select_rows(schema: Schema, dialect: str, query: Query) -> Made:
    """The rows that match, in order."""

    def make(table: sa.Table, found: list[sa.ColumnElement[bool]]) -> sa.Executable:
        statement = sa.select(*table.c).where(*found).order_by(*_order(table, query.order, dialect))
        if query.limit is not None:
            statement = statement.limit(sa.bindparam("row_limit", type_=sa.BigInteger()))
        if query.offset:
            statement = statement.offset(sa.bindparam("row_offset", type_=sa.BigInteger()))
        return statement

    shape = ("select", query.order, query.limit is None, not query.offset)
    return _kept(schema, dialect, query, shape, make, _window(query))


def count_rows(schema: Schema, dialect: str, query: Query) -> Made:
    """How many rows match; of a page, how many are on it."""

    def make(table: sa.Table, found: list[sa.ColumnElement[bool]]) -> sa.Executable:
        if query.limit is None:
            return sa.select(sa.func.count().label("count")).select_from(table).where(*found)
        page = sa.select(sa.literal(1).label("one")).select_from(table).where(*found)
        page = page.limit(sa.bindparam("row_limit", type_=sa.BigInteger()))
        page = page.offset(sa.bindparam("row_offset", type_=sa.BigInteger()))
        return sa.select(sa.func.count().label("count")).select_from(page.subquery())

    params = {} if query.limit is None else {"row_limit": query.limit, "row_offset": query.offset}
    return _kept(schema, dialect, query, ("count", query.limit is None), make, params)


def select_after(schema: Schema, dialect: str, query: Query, last: Mapping[str, Any] | None, size: int) -> Made:
    """The next rows behind a row, for reading everything in batches whatever happens in between."""
    table, found, params = _conditions(schema, dialect, query)
    keys = _sorted_by(table, query.order)
    if not list(table.primary_key):
        raise ValidationError(f"{table.name} has no primary key to go by: read it with all()", table=table.name)
    if last is not None:
        found.append(_behind(keys, last))
    statement = sa.select(*table.c).where(*found).order_by(*_order(table, query.order, dialect)).limit(size)
    return Made(statement, params)


def insert_row(schema: Schema, dialect: str, name: str, values: Mapping[str, Any], *, missing_only: bool) -> Made:
    """Inserts a row and answers it as it is stored.

    Args:
        schema: Where the table is.
        dialect: `sqlite` or `postgresql`.
        name: The table.
        values: By column; what is left out is the declaration's, or the database's, to fill in.
        missing_only: Answer no row, and change nothing, when a row with one of its unique keys is there already.
    """
    table = schema.table(name)
    values = {**_made_values(table, "default", values), **values}
    shape = ("insert", name, tuple(values), missing_only)
    statement = schema.statements.get(shape)
    if statement is None:
        insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
        insert = insert.values(_places(table, values))
        if missing_only:
            insert = insert.on_conflict_do_nothing()
        statement = _keep(schema, shape, insert.returning(*table.c))
    return Made(statement, _numbered(values))


def update_rows(schema: Schema, dialect: str, query: Query, values: Mapping[str, Any], *, answers: bool) -> Made:
    """Changes the rows that match; `answers` tells them as they are stored then.

    Raises:
        ValidationError: There is nothing to set.
    """
    if not values:
        raise ValidationError(f"update of {query.table!r} sets nothing: name at least one column", table=query.table)
    values = {**_made_values(schema.table(query.table), "onupdate", values), **values}

    def make(table: sa.Table, found: list[sa.ColumnElement[bool]]) -> sa.Executable:
        update = sa.update(table).where(*found).values(_places(table, values))
        return update.returning(*table.c) if answers else update

    return _kept(schema, dialect, query, ("update", tuple(values), answers), make, _numbered(values))


def delete_rows(schema: Schema, dialect: str, query: Query) -> Made:
    """Removes the rows that match."""
    return _kept(schema, dialect, query, ("delete",), lambda table, found: sa.delete(table).where(*found), {})


def raw(sql: str, params: Mapping[str, Any]) -> sa.TextClause:
    """SQL as it is, with `:name` for each parameter.

    Raises:
        ValidationError: A parameter is given that the text does not have.
    """
    statement = sa.text(sql)
    known = statement.compile().params
    surplus = sorted(set(params) - set(known))
    if surplus:
        raise ValidationError(
            f"the SQL text has no place for {', '.join(surplus)}: write :{surplus[0]} where it belongs", sql=sql
        )
    missing = sorted(set(known) - set(params))
    if missing:
        raise ValidationError(f"the SQL text asks for {', '.join(missing)}: give {missing[0]}=…", sql=sql)
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


def _kept(
    schema: Schema,
    dialect: str,
    query: Query,
    shape: Any,
    make: Callable[[sa.Table, list[sa.ColumnElement[bool]]], sa.Executable],
    params: dict[str, Any],
) -> Made:
    groups = _flat(schema, query)
    scope = tuple(name for name, _ in query.scope)
    key = (query.table, shape, scope, where.shape_of(groups))
    kept = schema.statements.get(key)
    if kept is None:
        conditions = Conditions(schema, dialect, scope)
        table = schema.table(query.table)
        kept = _keep(schema, key, (make(table, conditions.of(table, groups)), conditions))
    statement, conditions = kept
    return Made(statement, {**conditions.values(groups), **params})


def _keep(schema: Schema, key: Any, made: Any) -> Any:
    # What users' keys decide has an end: the oldest goes.
    if len(schema.statements) >= _KEPT_STATEMENTS:
        del schema.statements[next(iter(schema.statements))]
    schema.statements[key] = made
    return made


def _conditions(
    schema: Schema, dialect: str, query: Query
) -> tuple[sa.Table, list[sa.ColumnElement[bool]], dict[str, Any]]:
    groups = _flat(schema, query)
    conditions = Conditions(schema, dialect, tuple(name for name, _ in query.scope))
    table = schema.table(query.table)
    return table, conditions.of(table, groups), conditions.values(groups)


def _flat(schema: Schema, query: Query) -> tuple[Group, ...]:
    groups = query.groups
    if any(isinstance(value, dict) for group in groups for _, value in group):
        groups = tuple(where.flatten(schema, query.table, group) for group in groups)
    if not query.scope:
        return groups
    for name, _ in query.scope:
        column_of(schema.table(query.table), name)
    return (query.scope, *groups)


def _window(query: Query) -> dict[str, Any]:
    window = {} if query.limit is None else {"row_limit": query.limit}
    return {**window, "row_offset": query.offset} if query.offset else window


def _places(table: sa.Table, values: Mapping[str, Any]) -> dict[Any, Any]:
    columns = [column_of(table, name) for name in values]
    return {column: sa.bindparam(f"v{number}", type_=column.type) for number, column in enumerate(columns)}


def _numbered(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"v{number}": value for number, value in enumerate(values.values())}


def _made_values(table: sa.Table, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a declared column fills in by a value or a function of Python's."""
    made: dict[str, Any] = {}
    for column in table.c:
        default = getattr(column, kind)
        if default is None or column.name in given:
            continue
        if default.is_callable:
            made[column.name] = default.arg(None)
        elif default.is_scalar:
            made[column.name] = default.arg
    return made


def _sorted_by(table: sa.Table, order: tuple[str, ...]) -> list[tuple[sa.Column[Any], bool]]:
    named = [(column_of(table, name.removeprefix("-")), name.startswith("-")) for name in order]
    told = {column.name for column, _ in named}
    return [*named, *((column, False) for column in table.primary_key if column.name not in told)]


def _order(table: sa.Table, order: tuple[str, ...], dialect: str) -> list[sa.ColumnElement[Any]]:
    """NULL is the least value on both engines, as it is on SQLite by itself."""
    ordered: list[sa.ColumnElement[Any]] = []
    for column, descends in _sorted_by(table, order):
        by: sa.ColumnElement[Any] = column.desc() if descends else column.asc()
        if dialect == "postgresql" and column.nullable:
            by = by.nulls_last() if descends else by.nulls_first()
        ordered.append(by)
    return ordered


def _behind(keys: list[tuple[sa.Column[Any], bool]], last: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    cases: list[sa.ColumnElement[bool]] = []
    equal: list[sa.ColumnElement[bool]] = []
    for column, descends in keys:
        value = last[column.name]
        if value is None:
            further: sa.ColumnElement[bool] = sa.false() if descends else column.is_not(None)
            same: sa.ColumnElement[bool] = column.is_(None)
        else:
            bound = sa.literal(value, column.type)
            further = sa.or_(column < bound, column.is_(None)) if descends else column > bound
            same = column == bound
        cases.append(sa.and_(*equal, further))
        equal.append(same)
    return sa.or_(*cases)
