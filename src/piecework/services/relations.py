"""The tables of a database, and how they refer to each other. Knows SQLAlchemy's tables only by their attributes.

A foreign key gives a relation both ways. With `subscriptions.user_id` that refers to `users`, a subscription has `user`
and (if no other key of it refers there) `users`, and a user has `subscriptions`. Where two keys of one table refer to
another one, as `posts.author_id` and `posts.editor_id` do, the way back is `posts_by_author` and `posts_by_editor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from piecework.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Relation:
    """A way from one table to another.

    Attributes:
        target: The other table's name.
        pairs: Columns of the one and of the other that have to be equal.
    """

    target: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(eq=False, slots=True)
class Schema:
    """The tables as they were read last; what was made for them is forgotten with it.

    Attributes:
        tables: By name.
        statements: Statements that were made for them, by shape.
    """

    tables: dict[str, sa.Table] = field(default_factory=dict)
    statements: dict[Any, Any] = field(default_factory=dict)
    _relations: dict[str, dict[str, Relation]] | None = None

    def table(self, name: str) -> sa.Table:
        """Finds a table.

        Raises:
            NotFoundError: There is none of that name; the message has the nearest ones.
        """
        table = self.tables.get(name)
        if table is None:
            raise NotFoundError.among("table", name, self.tables)
        return table

    def relations(self, name: str) -> dict[str, Relation]:
        """The ways from a table, by name."""
        if self._relations is None:
            self._relations = _relations_among(self.tables)
        return self._relations.get(name, {})


def _relations_among(tables: dict[str, sa.Table]) -> dict[str, dict[str, Relation]]:
    found: dict[str, dict[str, Relation]] = {name: {} for name in tables}
    for name, table in tables.items():
        keys = list(_keys_of(table))
        for target, pairs in keys:
            if target not in tables:
                continue
            alone = sum(other == target for other, _ in keys) == 1
            near = _stem(pairs, target)
            found[name].setdefault(near, Relation(target, pairs))
            if alone and target != name:
                found[name].setdefault(target, Relation(target, pairs))
            back = tuple((theirs, mine) for mine, theirs in pairs)
            found[target].setdefault(name if alone else f"{name}_by_{near}", Relation(name, back))
    return found


def _keys_of(table: sa.Table) -> Iterable[tuple[str, tuple[tuple[str, str], ...]]]:
    ordered = sorted(table.foreign_key_constraints, key=lambda constraint: tuple(constraint.column_keys))
    for constraint in ordered:
        targets = [element.target_fullname.rsplit(".", 1) for element in constraint.elements]
        yield (
            targets[0][0],
            tuple((mine, theirs) for mine, (_, theirs) in zip(constraint.column_keys, targets, strict=True)),
        )


def _stem(pairs: tuple[tuple[str, str], ...], target: str) -> str:
    mine, theirs = pairs[0]
    return mine.removesuffix(f"_{theirs}") if len(pairs) == 1 and mine.endswith(f"_{theirs}") else target
