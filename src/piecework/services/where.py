"""From the conditions of a query to SQL: suffixes, relations, NULL. Pure. Imports SQLAlchemy: import on first use only.

A condition's name is a column (`role`), a column and a suffix (`age__ge`), or the same behind relations
(`subscriptions__tier__in`). A row matches when related rows are there that match, and it matches once. Conditions of
one `where` that go by the same relation are about the same related row.

Only names of the tables' own get into the text; every value is a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from piecework.errors import NotFoundError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.services.asked import Group
    from piecework.services.relations import Schema

SUFFIXES = ("ne", "lt", "gt", "le", "ge", "in", "not_in", "startswith", "endswith", "contains", "isnull")
_LISTS = (list, tuple, set, frozenset)
_COMPARED: Mapping[str, Callable[[Any, Any], Any]] = {
    "lt": lambda column, value: column < value,
    "gt": lambda column, value: column > value,
    "le": lambda column, value: column <= value,
    "ge": lambda column, value: column >= value,
}
_AFFIXES = {"startswith": ("", "%"), "endswith": ("%", ""), "contains": ("%", "%")}


def is_list(value: Any) -> bool:
    """Whether a value of a condition stands for any of several."""
    return isinstance(value, _LISTS)


def flatten(schema: Schema, table: str, group: Group) -> Group:
    """Takes nested conditions apart: `subscriptions={"tier": "free"}` is `subscriptions__tier="free"`."""
    flat: list[tuple[str, Any]] = []
    for name, value in group:
        relation = schema.relations(table).get(name) if isinstance(value, dict) else None
        if relation is None or name in schema.table(table).c:
            flat.append((name, value))
            continue
        inner = flatten(schema, relation.target, tuple(value.items()))
        flat.extend((f"{name}__{deeper}", wanted) for deeper, wanted in inner)
    return tuple(flat)


def shape_of(groups: tuple[Group, ...]) -> Any:
    """What the text of the conditions depends on; queries of one shape differ in their values alone."""
    return tuple(tuple((name, _kind(name, value)) for name, value in group) for group in groups)


def _kind(name: str, value: Any) -> Any:
    if value is None:
        return "null"
    if name.endswith("__isnull"):
        return bool(value)
    if is_list(value):
        return "list with null" if None in value else "list"
    return "value"


@dataclass(slots=True)
class Conditions:
    """Makes the conditions of one statement, and what turns their values into its parameters.

    Attributes:
        schema: Where names are looked up.
        dialect: `sqlite` or `postgresql`.
        scope: Columns that related rows have to have in common with the row itself, where their table has them.
        readers: For each condition in order, the parameter and what makes its value.
    """

    schema: Schema
    dialect: str
    scope: tuple[str, ...] = ()
    readers: list[tuple[str, Callable[[Any], Any]]] = field(default_factory=list)
    _whole: Any = None

    def of(self, table: sa.Table, groups: tuple[Group, ...]) -> list[sa.ColumnElement[bool]]:
        """The conditions on rows of a table.

        Raises:
            NotFoundError: A column, relation or suffix is not there; the message has the nearest names.
            ValidationError: A value does not go with its suffix.
        """
        self._whole = table
        return [found for group in groups for found in self._group(table, table.name, group, self._places(group))]

    def values(self, groups: tuple[Group, ...]) -> dict[str, Any]:
        """The parameters for the values of conditions of this shape."""
        wanted = (value for group in groups for _, value in group)
        return {name: read(value) for (name, read), value in zip(self.readers, wanted, strict=True) if name}

    def _places(self, group: Group) -> list[int]:
        """Gives each condition of a group its place among the parameters; one without keeps the empty name."""
        start = len(self.readers)
        self.readers.extend([("", _same)] * len(group))
        return list(range(start, start + len(group)))

    def _group(self, table: Any, name: str, group: Group, places: list[int]) -> list[sa.ColumnElement[bool]]:
        found: list[sa.ColumnElement[bool]] = []
        related: dict[str, list[tuple[tuple[str, Any], int]]] = {}
        for (asked, value), place in zip(group, places, strict=True):
            column, suffix = self._column(table, asked)
            if column is not None:
                found.append(self._condition(column, suffix, value, place, asked))
                continue
            relation, rest = self._relation(table, name, asked)
            related.setdefault(relation, []).append(((rest, value), place))
        for relation, parts in related.items():
            found.append(self._exists(table, name, relation, parts))
        return found

    def _column(self, table: Any, asked: str) -> tuple[sa.ColumnElement[Any] | None, str]:
        column = table.c.get(asked)
        if column is not None:
            return column, "eq"
        stem, _, suffix = asked.rpartition("__")
        column = table.c.get(stem) if stem else None
        if column is None:
            return None, ""
        if suffix not in SUFFIXES:
            raise NotFoundError.among(f"suffix for column {stem}", suffix, SUFFIXES)
        return column, suffix

    def _relation(self, table: Any, name: str, asked: str) -> tuple[str, str]:
        relations = self.schema.relations(name)
        fitting = [known for known in relations if asked.startswith(f"{known}__")]
        if not fitting:
            head = asked.split("__", 1)[0]
            known = [*table.c.keys(), *relations]
            wanted = asked if head == asked else head
            if wanted in relations:
                raise ValidationError(
                    f"{wanted!r} of {name} is a relation: name a column behind it, {wanted}__id=…, or give a mapping",
                    table=name,
                )
            kind = f"column of {name}" if head == asked else f"column or relation of {name}"
            raise NotFoundError.among(kind, wanted, known)
        longest = max(fitting, key=len)
        return longest, asked[len(longest) + 2 :]

    def _exists(self, table: Any, name: str, relation: str, parts: Any) -> sa.ColumnElement[bool]:
        way = self.schema.relations(name)[relation]
        other = self.schema.table(way.target).alias()
        inner = self._group(other, way.target, tuple(part for part, _ in parts), [place for _, place in parts])
        joined = [table.c[mine] == other.c[theirs] for mine, theirs in way.pairs]
        joined += [self._whole.c[column] == other.c[column] for column in self.scope if column in other.c]
        return sa.exists(sa.literal(1)).select_from(other).where(*joined, *inner).correlate_except(other)

    def _condition(self, column: Any, suffix: str, value: Any, place: int, asked: str) -> sa.ColumnElement[bool]:
        if suffix == "isnull":
            if not isinstance(value, bool):
                raise ValidationError(f"{asked} takes True or False, not {value!r}")
            return column.is_(None) if value else column.is_not(None)  # type: ignore[no-any-return]  # of a column, not known as one
        if suffix in _AFFIXES:
            return self._like(column, suffix, place, asked)
        if suffix in _COMPARED:
            return _COMPARED[suffix](column, self._bind(place, column.type, lambda v: _comparable(v, asked)))  # type: ignore[no-any-return]  # of a column
        negative = suffix in {"ne", "not_in"}
        if suffix in {"in", "not_in"}:
            _listed(value, asked)  # a query of another kind of value is of another shape, and made anew
        if value is None:
            return column.is_not(None) if negative else column.is_(None)  # type: ignore[no-any-return]  # of a column
        if not is_list(value):
            bound = self._bind(place, column.type, _same)
            return sa.or_(column != bound, column.is_(None)) if negative else column == bound
        return self._any(column, None in value, place, asked, negative=negative)

    def _any(self, column: Any, with_null: bool, place: int, asked: str, *, negative: bool) -> sa.ColumnElement[bool]:
        if isinstance(column.type, sa.ARRAY):
            raise ValidationError(
                f"{asked}: a list is any of its values, and {column.name} is a column of arrays: ask by ws.database.run"
            )

        # NULL is in no SQL list; here it is one value of many, so that [x] and x always mean the same.
        def present(value: Any) -> list[Any]:
            return [item for item in _listed(value, asked) if item is not None]

        if self.dialect == "postgresql":
            inside = column == sa.any_(self._bind(place, ARRAY(_unlimited(column.type)), present))
        else:
            inside = column.in_(self._bind(place, column.type, present, expanding=True))
        if not negative:
            return sa.or_(inside, column.is_(None)) if with_null else inside
        return sa.and_(~inside, column.is_not(None)) if with_null else sa.or_(~inside, column.is_(None))

    def _like(self, column: Any, suffix: str, place: int, asked: str) -> sa.ColumnElement[bool]:
        if not isinstance(column.type, sa.String | sa.types.NullType):
            raise ValidationError(f"{asked}: {column.name} is no text column, {suffix} asks about text")
        before, after = _AFFIXES[suffix]
        if self.dialect == "postgresql":
            bound = self._bind(place, sa.Text(), lambda v: before + _escaped(v, asked, "%_/", "/{}") + after)
            return column.like(bound, escape="/")  # type: ignore[no-any-return]  # of a column
        # SQLite's LIKE takes a for A, its GLOB does not.
        star = (before + "{}" + after).replace("%", "*")
        bound = self._bind(place, sa.Text(), lambda v: star.format(_escaped(v, asked, "*?[", "[{}]")))
        return column.op("GLOB", is_comparison=True)(bound)  # type: ignore[no-any-return]  # of a column

    def _bind(self, place: int, kind: Any, read: Callable[[Any], Any], *, expanding: bool = False) -> Any:
        name = f"p{place}"
        self.readers[place] = (name, read)
        if self.dialect == "postgresql":
            kind = _unlimited(kind)
        return sa.bindparam(name, type_=kind, expanding=expanding)


def _unlimited(kind: Any) -> Any:
    """A type without its length or precision: a value that is cast to those becomes another one, and finds its rows."""
    if isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float) and kind.precision is not None:
        return sa.Numeric() if kind.asdecimal else sa.Numeric(asdecimal=False)
    if isinstance(kind, sa.String) and not isinstance(kind, sa.Enum) and kind.length is not None:
        return sa.String()
    return kind


def _same(value: Any) -> Any:
    return value


def _comparable(value: Any, asked: str) -> Any:
    if value is None or is_list(value):
        raise ValidationError(f"{asked} compares with one value, not with {value!r}")
    return value


def _listed(value: Any, asked: str) -> Any:
    if not is_list(value):
        raise ValidationError(f"{asked} takes a list, a tuple or a set, not {value!r}")
    return value


def _escaped(value: Any, asked: str, special: str, pattern: str) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"{asked} takes a text, not {value!r}")
    return "".join(pattern.format(sign) if sign in special else sign for sign in value)
