"""What was asked of a collection, before anything is known about the tables. Pure, and without SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Group = tuple[tuple[str, Any], ...]
"""What one `where` asked: names and values that all have to hold."""


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked of a collection.

    Attributes:
        table: Its name.
        groups: The conditions of each `where`.
        order: Columns, `-` before one that descends; the primary key follows by itself.
        limit: The most rows, or None.
        offset: How many rows are left out before.
        scope: Columns and the value that every row has there which is read or written.
    """

    table: str
    groups: tuple[Group, ...] = ()
    order: tuple[str, ...] = ()
    limit: int | None = None
    offset: int = 0
    scope: Group = ()

    def narrowed(self, group: Group) -> Query:
        """The same with further conditions."""
        return replace(self, groups=(*self.groups, group)) if group else self
