"""What belongs to one tenant: conditions that every row meets which is read or written, and that nobody can leave.

`ws.database.scoped(tenant="acme")` gives collections of the rows with that value alone. A row gets it when it is
inserted and keeps it; of the tables that a condition goes to by a relation, those with such a column count only the
tenant's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError
from piecework.services.rows import Row

if TYPE_CHECKING:
    from piecework.services.access import Access
    from piecework.services.asked import Group, Query
    from piecework.services.session import Answer


def scope_of(outer: Group, columns: Mapping[str, Any]) -> Group:
    """Checks what a scope is made of.

    Args:
        outer: The scope that this one is inside of.
        columns: Values by column.

    Returns:
        Both together.

    Raises:
        ValidationError: There is none, a value is none that one row can have, or the outer one has another.
    """
    for name, value in columns.items():
        if value is None or isinstance(value, list | tuple | set | frozenset | Mapping):
            raise ValidationError(
                f"scoped({name}={value!r}): give the one value that its rows have; without one there are no rows that "
                "are anybody's"
            )
    if not columns:
        raise ValidationError("scoped() needs a column and the value that its rows have: scoped(tenant=ws.space)")
    return tuple(kept("the database", outer, columns).items())


def kept(table: str, scope: Group, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row that is inserted in a scope, or changed: with the scope's own.

    Args:
        table: Named in the error.
        scope: Columns and their values.
        values: By column.

    Raises:
        ValidationError: One of them would take the row out of the scope.
    """
    for name, value in scope:
        if name in values and values[name] != value:
            raise ValidationError(
                f"{table} is scoped to {name}={value!r}, and {values[name]!r} is outside of it: leave {name} out",
                column=name,
            )
    return {**dict(scope), **values}


class ScopedRow(Row):
    """A row of a scope: it is changed and removed only as long as it is in there, and stays in there."""

    __slots__ = ("_scope",)

    def __init__(self, table: str, values: dict[str, Any], access: Access | None, born: str, scope: Group) -> None:
        super().__init__(table, values, access, born)
        self._scope = scope

    async def update(self, /, **values: Any) -> Row:
        """Sets columns of this row, as `Row.update` does.

        Raises:
            ValidationError: Also: a value would take it out of the scope.
        """
        kept(self._table, self._scope, values)
        return await super().update(**values)

    async def _place(self) -> tuple[Access, Query]:
        access, query = await super()._place()
        return access, replace(query, scope=self._scope)


def scoped_rows(table: str, answer: Answer, access: Access, born: str, scope: Group) -> list[Row]:
    """The rows of an answer, as `rows.rows_of` makes them, for a scope."""
    return [
        ScopedRow(table, dict(zip(answer.columns, values, strict=True)), access, born, scope) for values in answer.rows
    ]
