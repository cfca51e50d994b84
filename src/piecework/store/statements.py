"""SQL text for the requests, compiled from the records' columns and from the named queries in `sql/`."""

from __future__ import annotations

import re
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.store.records import Record

_FOLDER = Path(__file__).parent / "sql"
_LIST = re.compile(r"(?<=IN )\(:(\w+)\)")
_COLUMNS = re.compile(r"\{(?:(\w+)\.)?columns\}")
# Without the empty text behind it some versions might take a text that a JSON function made for JSON.
_EXACT = (
    "CASE typeof({0}) WHEN 'blob' THEN json_array('blob', hex({0}))"
    " WHEN 'real' THEN json_array('real', printf('%!.17g', {0})) WHEN 'text' THEN {0} || '' ELSE {0} END"
)


@cache
def named(name: str, engine: str | None = None) -> str:
    """The text of `sql/NAME.ENGINE.sql` where there is one, else of `sql/NAME.sql`."""
    own = _FOLDER / f"{name}.{engine}.sql"
    return (own if engine is not None and own.is_file() else _FOLDER / f"{name}.sql").read_text("utf-8")


@cache
def named_for(name: str, record: type[Record] | None, lists: tuple[str, ...]) -> str:
    """A named query as SQLite runs it, with its columns and its lists spelled out.

    Args:
        name: Of the file.
        record: Whose columns stand for `{columns}` or `{alias.columns}`.
        lists: Parameters that are lists. Each is one bound JSON text: SQLite looks named parameters up one by one, so
            a parameter for each of ten thousand values would cost a hundred million comparisons.
    """
    text = named(name, "sqlite")
    if record is not None:
        fields = record.__struct_fields__
        text = _COLUMNS.sub(lambda m: ", ".join(f"{m[1]}.{f}" if m[1] else f for f in fields), text)
    return _LIST.sub(lambda m: f"(SELECT value FROM json_each(:{m[1]}))" if m[1] in lists else m[0], text)  # noqa: S608 - names are ours


def spread(params: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Turns list parameters into JSON texts and tells which they are."""
    flat: dict[str, Any] = {}
    lists: list[str] = []
    for name, value in params.items():
        if isinstance(value, list | tuple | set | frozenset):
            flat[name] = msgspec.json.encode(list(value)).decode()
            lists.append(name)
        else:
            flat[name] = value
    return flat, tuple(lists)


@cache
def insert(record: type[Record]) -> str:
    """Inserts one row."""
    return f"{_into(record)} VALUES {_marks(len(record.__struct_fields__))}"


@cache
def insert_missing(record: type[Record], unique: str) -> str:
    """Inserts one row unless its unique column is taken; answers it."""
    return f"{insert(record)} ON CONFLICT ({unique}) DO NOTHING RETURNING {', '.join(record.__struct_fields__)}"


@cache
def put(record: type[Record]) -> str:
    """Inserts one row, or replaces the one with its key."""
    return f"{insert(record)} {_or_replace(record)}"


@cache
def update(record: type[Record], columns: tuple[str, ...] | None = None) -> str:
    """Replaces one row, or some of its columns; the parameters are `update_order`."""
    sets = ", ".join(f"{f} = ?" for f in _written(record, columns))
    return f"UPDATE {record.table} SET {sets} WHERE {_matches(record)}"  # noqa: S608 - names are ours


@cache
def update_order(record: type[Record], columns: tuple[str, ...] | None = None) -> Callable[[Record], tuple[Any, ...]]:
    """Gets the values of a row in the order in which `update` and `update_many` want them: the key comes last."""
    return attrgetter(*_written(record, columns), *record.key)


@cache
def delete(record: type[Record]) -> str:
    """Deletes one row by its key."""
    return f"DELETE FROM {record.table} WHERE {_matches(record)}"  # noqa: S608 - names are ours


@cache
def insert_many(record: type[Record], count: int) -> str:
    """Inserts up to `count` rows; what is beyond is bound as NULL and left out."""
    return f"{_into(record)} SELECT * FROM {_values(record, count)} WHERE {_given(record)} IS NOT NULL"  # noqa: S608 - names are ours


@cache
def put_many(record: type[Record], count: int) -> str:
    """As `insert_many`, replacing the rows whose key is there; of two with one key the later one stays."""
    return f"{insert_many(record, count)} {_or_replace(record)}"


@cache
def update_many(record: type[Record], count: int, columns: tuple[str, ...] | None = None) -> str:
    """Replaces up to `count` rows, each bound by `update_order`, or some of their columns; a NULL key matches none."""
    names = _written(record, columns)
    sets = ", ".join(f"{f} = v.column{i}" for i, f in enumerate(names, 1))
    matches = " AND ".join(f"{record.table}.{f} = v.column{i}" for i, f in enumerate(record.key, len(names) + 1))
    values = ", ".join([_marks(len(names) + len(record.key))] * count)
    return f"UPDATE {record.table} SET {sets} FROM (VALUES {values}) AS v WHERE {matches}"  # noqa: S608 - names are ours


@cache
def delete_many(record: type[Record], count: int) -> str:
    """Deletes the rows of up to `count` keys; a NULL key matches nothing.

    Keys of several columns are spelled out: `(a, b) IN (VALUES …)` makes SQLite look at every row of the table.
    """
    if len(record.key) == 1:
        wanted = f"{record.key[0]} IN {_marks(count)}"
    else:
        wanted = " OR ".join([f"({_matches(record)})"] * count)
    return f"DELETE FROM {record.table} WHERE {wanted}"  # noqa: S608 - names are ours


@cache
def by_keys(record: type[Record], count: int) -> str:
    """Reads the rows of up to `count` keys, in the order of the keys; a NULL key matches nothing.

    Keys of several columns are joined, because `(a, b) IN (VALUES …)` makes SQLite look at every row of the table.
    """
    columns, keys = ", ".join(record.__struct_fields__), ", ".join(record.key)
    if len(record.key) == 1:
        source, wanted = record.table, f"{keys} IN {_marks(count)}"
    else:
        marks = ", ".join([_marks(len(record.key))] * count)
        source = f"(VALUES {marks}) AS v CROSS JOIN {record.table}"
        wanted = " AND ".join(f"{f} = v.column{i}" for i, f in enumerate(record.key, 1))
    return f"SELECT {columns} FROM {source} WHERE {wanted} ORDER BY {keys}"  # noqa: S608 - names are ours


@cache
def in_one_row(text: str, record: type[Record]) -> str:
    """A query for rows of a record that answers one JSON text, its bytes in hexadecimal digits."""
    blobs = blob_positions(record)
    columns = (
        f"CASE WHEN {f} IS NOT NULL THEN hex({f}) END" if i in blobs else f
        for i, f in enumerate(record.__struct_fields__)
    )
    return f"SELECT json_group_array(json_array({', '.join(columns)})) FROM (\n{text}\n)"  # noqa: S608 - names are ours


@cache
def without_rows(text: str) -> str:
    """A query that answers nothing but what its columns are called."""
    return f"SELECT * FROM (\n{text}\n) LIMIT 0"  # noqa: S608 - names are ours


@cache
def columns_in_one_row(text: str, columns: tuple[str, ...]) -> str:
    """As `in_one_row`, for a query that is no record's. What JSON cannot say is a list of its kind and its digits."""
    values = ", ".join(_EXACT.format('"' + column.replace('"', '""') + '"') for column in columns)
    return f"SELECT json_group_array(json_array({values})) FROM (\n{text}\n)"  # noqa: S608 - names are ours


@cache
def taken(record: type[Record], unique: str) -> str:
    """Which of the values in a bound JSON list a unique column has, as one JSON text."""
    return f"SELECT json_group_array({unique}) FROM {record.table} WHERE {_listed(unique)}"  # noqa: S608 - names are ours


@cache
def by_unique(record: type[Record], unique: str) -> str:
    """The rows whose unique column is in a bound JSON list, in the order in which the store numbered them."""
    columns = ", ".join(record.__struct_fields__)
    return f"SELECT {columns} FROM {record.table} WHERE {_listed(unique)} ORDER BY {record.serial}"  # noqa: S608 - names are ours


@cache
def blob_positions(record: type[Record]) -> tuple[int, ...]:
    """Which of a record's columns hold bytes."""
    fields = msgspec.structs.fields(record)
    return tuple(i for i, field in enumerate(fields) if field.type in {bytes, bytes | None})


def _written(record: type[Record], columns: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(f for f in columns or record.__struct_fields__ if f not in record.key)


def _into(record: type[Record]) -> str:
    return f"INSERT INTO {record.table} ({', '.join(record.__struct_fields__)})"


def _or_replace(record: type[Record]) -> str:
    rest = [f for f in record.__struct_fields__ if f not in record.key]
    sets = ", ".join(f"{f} = excluded.{f}" for f in rest)
    return f"ON CONFLICT ({', '.join(record.key)}) {f'DO UPDATE SET {sets}' if rest else 'DO NOTHING'}"


def _marks(count: int) -> str:
    return f"({', '.join('?' * count)})"


def _values(record: type[Record], count: int) -> str:
    return f"(VALUES {', '.join([_marks(len(record.__struct_fields__))] * count)})"


def _given(record: type[Record]) -> str:
    """A column that every row has filled: where it is NULL there is no row."""
    fields = msgspec.structs.fields(record)
    return next(
        f"column{i}" for i, field in enumerate(fields, 1) if type(None) not in getattr(field.type, "__args__", ())
    )


def _listed(column: str) -> str:
    return f"{column} IN (SELECT value FROM json_each(?))"  # noqa: S608 - names are ours


def _matches(record: type[Record]) -> str:
    return " AND ".join(f"{f} = ?" for f in record.key)
