"""PostgreSQL's text for the requests, compiled from the records' columns and from the named queries in `sql/`.

Whatever the number of rows, a form has one text. Rows go as one JSON text: asyncpg looks at each element of an array
whether it is an array itself, which cost more than all else that a commit computes. Keys are few and go as arrays.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.errors import StoreError
from piecework.store.records import TABLES
from piecework.store.statements import named

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from piecework.store.records import Record

_KINDS = {str: "text", int: "bigint", bytes: "bytea"}
_COLUMNS = re.compile(r"\{(?:(\w+)\.)?columns\}")
_LISTS = re.compile(r"\b(NOT )?IN \(:(\w+)\)", re.IGNORECASE)
_ABSENT = re.compile(r"(?<!:):(\w+) IS (NOT )?NULL", re.IGNORECASE)
_PARAMETER = re.compile(r"(?<![:\w]):([A-Za-z_]\w*)")
_NUMBER = re.compile(r"\$(\d+)")
_COMMENT = re.compile(r"--[^\n]*")
_WORD = re.compile(r"\w+")


@cache
def query(name: str, record: type[Record] | None, absent: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """A named query as PostgreSQL runs it, and which parameters it takes in which order.

    Args:
        name: Of the file.
        record: Whose columns stand for `{columns}` or `{alias.columns}`.
        absent: Parameters that are None in this call. `:name IS NULL` is answered here: PostgreSQL could not tell the
            parameter's type by it, and a plan that knows the answer is a better one.
    """
    text = _COMMENT.sub("", named(name, "postgres")).strip().removesuffix(";")
    if record is not None:
        fields = record.__struct_fields__
        text = _COLUMNS.sub(lambda m: ", ".join(f"{m[1]}.{f}" if m[1] else f for f in fields), text)
    text = _LISTS.sub(lambda m: f"<> ALL(:{m[2]})" if m[1] else f"= ANY(:{m[2]})", text)
    text = _ABSENT.sub(lambda m: "TRUE" if (m[1] in absent) != bool(m[2]) else "FALSE", text)
    order: dict[str, int] = {}
    text = _PARAMETER.sub(lambda m: f"${order.setdefault(m[1], len(order) + 1)}", text)
    return text, tuple(order)


def bound(params: dict[str, Any]) -> tuple[frozenset[str], dict[str, Any]]:
    """The parameters of a named query as they are bound, and which of them are None."""
    absent = frozenset(name for name, value in params.items() if value is None)
    return absent, {
        name: list(value) if isinstance(value, tuple | set | frozenset) else value for name, value in params.items()
    }


@cache
def tables_of(name: str) -> frozenset[str]:
    """The tables that a named statement mentions."""
    words = set(_WORD.findall(_COMMENT.sub("", named(name, "postgres"))))
    return frozenset(record.table for record in TABLES if record.table in words)


@cache
def insert(record: type[Record]) -> str:
    """Inserts rows; what the store numbers is numbered in the order in which they are given."""
    return f"INSERT INTO {record.table} ({_names(record)}) {_numbered(record)}"


@cache
def insert_missing(record: type[Record], unique: str) -> str:
    """Inserts the rows whose unique column is free, in its order, and answers that column and the number given.

    The numbers are given before the rows are sorted: theirs is the order of arrival.
    """
    answer = unique if record.serial is None else f"{unique}, {record.serial}"
    return (
        f"WITH given AS MATERIALIZED ({_numbered(record)}) "  # noqa: S608 - names are ours
        f"INSERT INTO {record.table} ({_names(record)}) SELECT {_names(record)} FROM given "
        f'ORDER BY {unique} COLLATE "C" ON CONFLICT ({unique}) DO NOTHING RETURNING {answer}'
    )


@cache
def put(record: type[Record]) -> str:
    """Inserts rows, or replaces those whose key is there; no key may be given twice."""
    rest = [f for f in record.__struct_fields__ if f not in record.key]
    sets = ", ".join(f"{f} = excluded.{f}" for f in rest)
    action = f"DO UPDATE SET {sets}" if rest else "DO NOTHING"
    return f"{insert(record)} ON CONFLICT ({', '.join(record.key)}) {action}"


@cache
def update(record: type[Record], columns: tuple[str, ...] | None = None) -> str:
    """Replaces rows by key, or only these columns of them."""
    names = tuple(f for f in columns or record.__struct_fields__ if f not in record.key)
    sets = ", ".join(f"{f} = {_value(record, f)}" for f in names)
    given = _given(record, fields=(*record.key, *names))
    return f"UPDATE {record.table} AS t SET {sets} FROM {given} WHERE {_same_key(record)}"  # noqa: S608 - names are ours


@cache
def delete(record: type[Record]) -> str:
    """Deletes rows by key."""
    if len(record.key) == 1:
        return f"DELETE FROM {record.table} WHERE {record.key[0]} = ANY({_array(record, record.key[0], 1)})"  # noqa: S608 - names are ours
    return f"DELETE FROM {record.table} AS t USING {_rows(record, record.key)} WHERE {_same_key(record)}"  # noqa: S608 - as above


@cache
def lock(record: type[Record], *, share: bool) -> str:
    """Locks and reads rows, in the order of their keys."""
    mode = "SHARE" if share else "NO KEY UPDATE"
    keys = ", ".join(f"t.{f}" for f in record.key)
    columns = ", ".join(f"t.{f}" for f in record.__struct_fields__)
    if len(record.key) == 1:
        source, wanted = "", f"{keys} = ANY({_array(record, record.key[0], 1)})"
    else:
        source, wanted = f" JOIN {_rows(record, record.key)} ON TRUE", _same_key(record)
    return f"SELECT {columns} FROM {record.table} AS t{source} WHERE {wanted} ORDER BY {keys} FOR {mode} OF t"  # noqa: S608 - names are ours


def as_json(records: Iterable[Record]) -> list[str]:
    """The one parameter of what writes rows: bytes in it are base64. A statement leaves out what it has no use for.

    Raises:
        StoreError: A text has a lone surrogate.
    """
    try:
        return [msgspec.json.encode(list(records)).decode()]
    except UnicodeEncodeError as error:
        raise StoreError(f"a row has a text that UTF-8 cannot carry ({error}): nothing was written") from error


def key_arrays(keys: Iterable[tuple[object, ...]]) -> list[tuple[Any, ...]]:
    """The keys' values, one tuple a column, each key once and in order."""
    return list(zip(*sorted(set(keys)), strict=True))


@lru_cache(1024)
def joined(texts: tuple[tuple[str, int], ...], counted: frozenset[int]) -> str:
    """Makes one statement of several that change rows of different tables.

    Args:
        texts: Each with the number of its parameters, which are renumbered.
        counted: Positions of those whose number of changed rows is wanted; the answer has one column for each.
    """
    parts: list[str] = []
    used = 0
    for position, (text, size) in enumerate(texts):
        answer = " RETURNING 1" if position in counted else ""
        parts.append(f"w{position} AS ({_shifted(text, used)}{answer})")
        used += size
    counts = ", ".join(f"(SELECT count(*) FROM w{position})" for position in sorted(counted))  # noqa: S608 - names are ours
    return f"WITH {', '.join(parts)} SELECT {counts or '1'}"


def _shifted(text: str, by: int) -> str:
    return _NUMBER.sub(lambda m: f"${int(m[1]) + by}", text) if by else text


@cache
def _kinds(record: type[Record]) -> dict[str, str]:
    """PostgreSQL's word for each column's type."""
    kinds: dict[str, str] = {}
    for field in msgspec.structs.fields(record):
        members = getattr(field.type, "__args__", (field.type,))
        kinds[field.name] = next(_KINDS[member] for member in members if member in _KINDS)
    return kinds


def _array(record: type[Record], field: str, number: int) -> str:
    return f"${number}::{_kinds(record)[field]}[]"


def _names(record: type[Record]) -> str:
    return ", ".join(record.__struct_fields__)


def _rows(record: type[Record], fields: Sequence[str]) -> str:
    arrays = ", ".join(_array(record, field, number) for number, field in enumerate(fields, 1))
    return f"unnest({arrays}) AS v ({', '.join(fields)})"


def _given(record: type[Record], *, ordered: bool = False, fields: tuple[str, ...] | None = None) -> str:
    """The given rows, or these columns of them, as a table `v` whose bytes are still text."""
    kinds, names = _kinds(record), fields or record.__struct_fields__
    columns = ", ".join(f"{name} {'text' if kinds[name] == 'bytea' else kinds[name]}" for name in names)
    source = f"json_to_recordset($1::json) AS ({columns})"
    if ordered:
        return f"ROWS FROM ({source}) WITH ORDINALITY AS v ({_names(record)}, arrival)"
    return f"ROWS FROM ({source}) AS v ({', '.join(names)})"


def _value(record: type[Record], field: str) -> str:
    return f"decode(v.{field}, 'base64')" if _kinds(record)[field] == "bytea" else f"v.{field}"


def _numbered(record: type[Record]) -> str:
    """A query for the given rows; a number that is missing is the store's next one."""
    serial = record.serial
    number = f"coalesce({serial}, nextval('{record.table}_{serial}_seq'))"
    fields = record.__struct_fields__
    columns = ", ".join(f"{number if field == serial else _value(record, field)} AS {field}" for field in fields)
    if serial is None:
        return f"SELECT {columns} FROM {_given(record)}"  # noqa: S608 - names are ours
    source = _given(record, ordered=True)
    return f"SELECT {columns} FROM (SELECT * FROM {source} ORDER BY arrival) AS v"  # noqa: S608 - names are ours


def _same_key(record: type[Record]) -> str:
    return " AND ".join(f"t.{f} = v.{f}" for f in record.key)
