"""SQL text for the requests, compiled from the records' columns and from the named queries in `sql/`."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from piecework.store.records import Record

_FOLDER = Path(__file__).parent / "sql"
_LIST = re.compile(r"\(:(\w+)\)")
_COLUMNS = re.compile(r"\{(?:(\w+)\.)?columns\}")


@cache
def named(name: str) -> str:
    """The text of `sql/NAME.sql`."""
    return (_FOLDER / f"{name}.sql").read_text("utf-8")


@cache
def named_for(name: str, record: type[Record] | None, lists: tuple[str, ...]) -> str:
    """A named query with its columns and its lists spelled out.

    Args:
        name: Of the file.
        record: Whose columns stand for `{columns}` or `{alias.columns}`.
        lists: Parameters that are lists. Each is one bound JSON text: SQLite looks named parameters up one by one, so
            a parameter for each of ten thousand values would cost a hundred million comparisons.
    """
    text = named(name)
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
    fields = record.__struct_fields__
    return f"INSERT INTO {record.table} ({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})"  # noqa: S608 - names are ours


@cache
def insert_missing(record: type[Record], unique: str) -> str:
    """Inserts one row unless its unique column is taken; answers it."""
    return f"{insert(record)} ON CONFLICT ({unique}) DO NOTHING RETURNING {', '.join(record.__struct_fields__)}"


@cache
def put(record: type[Record]) -> str:
    """Inserts one row, or replaces the one with its key."""
    rest = [f for f in record.__struct_fields__ if f not in record.key]
    sets = ", ".join(f"{f} = excluded.{f}" for f in rest)
    action = f"DO UPDATE SET {sets}" if rest else "DO NOTHING"
    return f"{insert(record)} ON CONFLICT ({', '.join(record.key)}) {action}"


@cache
def update(record: type[Record]) -> str:
    """Replaces one row; parameters are the other columns, then the key."""
    sets = ", ".join(f"{f} = ?" for f in record.__struct_fields__ if f not in record.key)
    return f"UPDATE {record.table} SET {sets} WHERE {_matches(record)}"  # noqa: S608 - names are ours


@cache
def update_order(record: type[Record]) -> tuple[int, ...]:
    """The positions of a row's values in the order in which `update` wants them."""
    fields = record.__struct_fields__
    return tuple(i for i, f in enumerate(fields) if f not in record.key) + tuple(fields.index(f) for f in record.key)


@cache
def delete(record: type[Record]) -> str:
    """Deletes one row by its key."""
    return f"DELETE FROM {record.table} WHERE {_matches(record)}"  # noqa: S608 - names are ours


@cache
def by_keys(record: type[Record], count: int) -> str:
    """Reads the rows of `count` keys, in the order of the keys."""
    columns, keys = ", ".join(record.__struct_fields__), ", ".join(record.key)
    if len(record.key) == 1:
        wanted = f"{keys} IN ({', '.join('?' * count)})"
    else:
        one = f"({', '.join('?' * len(record.key))})"
        wanted = f"({keys}) IN (VALUES {', '.join([one] * count)})"
    return f"SELECT {columns} FROM {record.table} WHERE {wanted} ORDER BY {keys}"  # noqa: S608 - names are ours


def _matches(record: type[Record]) -> str:
    return " AND ".join(f"{f} = ?" for f in record.key)
