"""A collection: the rows of one table that match what was asked. Immutable: asking for more makes another one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from piecework.errors import InvalidStateError, ValidationError
from piecework.services.access import current_id
from piecework.services.rows import Row, rows_of
from piecework.services.scoped import kept, scoped_rows
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from piecework.services.access import Access
    from piecework.services.asked import Query

PAGE_LIMIT = 1000
"""The most rows of a page or a batch."""

MANY_ROWS = 10_000
"""From so many rows on `all` tells that there were many; `iterate` reads them in batches."""

_LARGEST = 2**63 - 1


class Collection:
    """The rows of one table that match what was asked.

    Unknown tables, columns, relations and suffixes are told when the query runs: `NotFoundError` with the nearest
    names. It is used in the workspace that it was made in: elsewhere it raises `CrossWorkspaceError`.
    """

    __slots__ = ("_access", "_born", "_query")

    def __init__(self, access: Access, query: Query, born: str | None = None) -> None:
        self._access = access
        self._query = query
        self._born = current_id() if born is None else born

    def __repr__(self) -> str:
        asked = ", ".join(f"{name}={value!r}" for group in self._query.groups for name, value in group)
        return f"<collection {self._query.table}{f' where {asked}' if asked else ''}>"

    def where(self, conditions: Mapping[str, Any] | None = None, /, **more: Any) -> Collection:
        """Narrows to rows that meet all these conditions.

        A condition is `column=value`, or with a suffix `column__suffix=value`: ne, lt, gt, le, ge, in, not_in,
        startswith, endswith, contains (upper and lower case differ), isnull. Behind the name of a relation it is about
        rows that refer to this one, or that this one refers to: `subscriptions__tier="free"` or
        `subscriptions={"tier": "free"}`; those of one `where` are about the same related row.

        None is NULL. A list, tuple or set is any of its values, an empty one no row at all; `ne` and `not_in` are what
        the other would leave out, NULL included.

        Args:
            conditions: The same as a mapping.
            **more: By name.
        """
        return self._with(self._query.narrowed((*(conditions or {}).items(), *more.items())))

    def order_by(self, *columns: str) -> Collection:
        """Sorts by columns, `-` before the name of one that descends; NULL is the least. The primary key decides ties.

        Raises:
            ValidationError: Something else than names was given.
        """
        if not all(isinstance(column, str) for column in columns):
            raise ValidationError(f"order_by takes names of columns, not {columns!r}")
        return self._with(replace(self._query, order=columns))

    def paginate(self, page: int, size: int = 100) -> Collection:
        """One page of the rows, in order; a page behind the last is empty.

        Args:
            page: Its number, from 1 on.
            size: How many rows a page has, at most 1,000.

        Raises:
            ValidationError: They are no such numbers.
        """
        whole = isinstance(page, int) and isinstance(size, int) and not isinstance(page, bool)
        if not whole or page < 1 or not 1 <= size <= PAGE_LIMIT or page * size > _LARGEST:
            raise ValidationError(
                f"page {page!r} of {size!r} rows: pages are counted from 1 and have 1 to {PAGE_LIMIT} rows; "
                "iterate() reads everything in batches",
                page=page,
                size=size,
            )
        return self._with(replace(self._query, limit=size, offset=(page - 1) * size))

    async def first(self) -> Row | None:
        """Reads the first row in order, or None."""
        rows = await self._read(replace(self._query, limit=1))
        return rows[0] if rows else None

    async def all(self) -> list[Row]:
        """Reads every row, in order: that of `order_by`, else of the primary key."""
        rows = await self._read(self._query)
        if len(rows) >= MANY_ROWS:
            signals.emit(signals.MANY_ROWS, level="warning", table=self._query.table, rows=len(rows))
        return rows

    async def iterate(self, batch: int = 100) -> AsyncIterator[Row]:
        """Reads every row, in order, a batch at a time; nothing is held between two batches.

        A row that is inserted meanwhile behind the place that was reached comes, none comes twice.

        Args:
            batch: How many rows are read at once, at most 1,000.

        Raises:
            ValidationError: The table has no primary key to go by, or the batch is no such number.
            InvalidStateError: It is a page.
        """
        if not isinstance(batch, int) or not 1 <= batch <= PAGE_LIMIT:
            raise ValidationError(f"a batch of {batch!r} rows: give 1 to {PAGE_LIMIT}", batch=batch)
        self._refuse_page("iterate")
        last: Row | None = None
        while True:
            rows = await self._read_after(last, batch)
            for row in rows:
                yield row
            if len(rows) < batch:
                return
            last = rows[-1]

    async def count(self) -> int:
        """Counts the rows; of a page, those on it."""
        query = await self._ready()
        made = await self._access.make(lambda schema, dialect: query.count_rows(schema, dialect, self._query))
        answer = await self._access.execute(made, verb="count", table=self._query.table)
        return int(answer.rows[0][0])

    async def insert(self, /, **values: Any) -> Row:
        """Inserts a row and commits it; inside a transaction with that.

        Args:
            **values: By column; what is left out gets the table's default.

        Returns:
            The row as it is stored, defaults and made keys included.

        Raises:
            DuplicateKeyError: A row with one of its unique keys is there.
            ValidationError: A constraint does not hold, or a value does not fit.
        """
        rows = await self._insert(values, missing_only=False)
        return rows[0]

    async def insert_missing(self, /, **values: Any) -> Row | None:
        """Like `insert`, but answers None and changes nothing when a row with one of its unique keys is there.

        Raises:
            ValidationError: Another constraint does not hold, or a value does not fit.
        """
        rows = await self._insert(values, missing_only=True)
        return rows[0] if rows else None

    async def update(self, /, **values: Any) -> int:
        """Sets columns of every row of the collection, commits, and tells how many rows there were.

        Raises:
            DuplicateKeyError: A row with one of its unique keys is there.
            ValidationError: Nothing to set, a constraint does not hold, or a value does not fit.
            InvalidStateError: It is a page.
        """
        self._refuse_page("update")
        if self._query.scope:
            kept(self._query.table, self._query.scope, values)
        query = await self._ready()
        made = await self._access.make(
            lambda schema, dialect: query.update_rows(schema, dialect, self._query, values, answers=False)
        )
        return (await self._access.execute(made, verb="update", table=self._query.table)).count

    async def delete(self) -> int:
        """Removes every row of the collection, commits, and tells how many there were.

        Raises:
            ValidationError: Rows of another table refer to one of them.
            InvalidStateError: It is a page.
        """
        self._refuse_page("delete")
        query = await self._ready()
        made = await self._access.make(lambda schema, dialect: query.delete_rows(schema, dialect, self._query))
        return (await self._access.execute(made, verb="delete", table=self._query.table)).count

    def _with(self, query: Query) -> Collection:
        return Collection(self._access, query, self._born)

    async def _ready(self) -> Any:
        """Gives the module that makes statements: importing it at the top would import SQLAlchemy."""
        self._access.check_open()
        self._access.check_here(self._born, repr(self))
        await self._access.database.schema()  # imports SQLAlchemy off the loop
        from piecework.services import query

        return query

    async def _read(self, wanted: Query) -> list[Row]:
        query = await self._ready()
        return await self._rows(lambda schema, dialect: query.select_rows(schema, dialect, wanted))

    async def _read_after(self, last: Row | None, size: int) -> list[Row]:
        query = await self._ready()
        values = None if last is None else last.as_dict()
        return await self._rows(lambda schema, dialect: query.select_after(schema, dialect, self._query, values, size))

    async def _rows(self, build: Any, verb: str = "select") -> list[Row]:
        answer = await self._access.execute(await self._access.make(build), verb=verb, table=self._query.table)
        if self._query.scope:
            return scoped_rows(self._query.table, answer, self._access, current_id(), self._query.scope)
        return rows_of(self._query.table, answer, self._access, current_id())

    async def _insert(self, values: dict[str, Any], *, missing_only: bool) -> list[Row]:
        table = self._query.table
        if self._query.groups or self._query.limit is not None:
            raise InvalidStateError(f"{self!r} is a query: insert into the whole table, ws.database.{table}")
        if self._query.scope:
            values = kept(table, self._query.scope, values)
        query = await self._ready()
        return await self._rows(
            lambda schema, dialect: query.insert_row(schema, dialect, table, values, missing_only=missing_only),
            "insert",
        )

    def _refuse_page(self, verb: str) -> None:
        if self._query.limit is not None:
            raise InvalidStateError(f"{verb} works on all rows that match, not on a page of them: leave paginate out")
