"""What `ws.database` offers: a collection for each table, immutable queries on it, rows with attributes.

Each `await` here is one statement on a connection leased for just that statement, and committed by itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import sqlalchemy as sa

    from piecework.services.database import Database
    from piecework.services.pool import Answer
    from piecework.services.query import Clauses

_DEFINES_TABLES = re.compile(r"\s*(create|alter|drop)\b", re.IGNORECASE)


class Row:
    """A row as it was read: its columns are attributes. A column named like a method is at `row["name"]`."""

    __slots__ = ("_table", "_values")

    def __init__(self, table: str, values: dict[str, Any]) -> None:
        self._table = table
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name in Row.__slots__:  # while it is being copied it has neither
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            import difflib

            near = difflib.get_close_matches(name, self._values, n=3)
            advice = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(self._values)}"
            raise AttributeError(f"{self._table} has no column {name!r}: {advice}") from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __repr__(self) -> str:
        return f"<{self._table} {' '.join(f'{name}={value!r}' for name, value in self._values.items())}>"

    async def notify(self, text: Any, *, subject: str | None = None, force: bool = False) -> str | None:
        """Tells the person whom this row is about something, by mail and by and by: see `notify.Notify`.

        Args:
            text: The words, or a function that builds them: `lambda mail: mail.line("New comment")`.
            subject: One line; the mail's, where nothing else is told in it.
            force: Tells it at once, with all that has been waiting.

        Returns:
            The notification's id; None for who wants to hear nothing.

        Raises:
            InvalidStateError: The caller runs in no workspace.
            ClosedError: The workspace is closed.
            ValidationError: The row has no `email`, or something is not acceptable.
        """
        from piecework.workspace.context import current_workspace

        notify = await current_workspace().require("notify")
        told: str | None = await notify(self, text, subject=subject, force=force)
        return told

    def as_dict(self) -> dict[str, Any]:
        """Copies the values into a new mapping by column."""
        return dict(self._values)


class Collection:
    """The rows of one table that match what was asked; asking for more makes another collection.

    Unknown tables and columns are told when the query runs: `NotFoundError` with the nearest names.
    """

    __slots__ = ("_access", "_clauses", "_table")

    def __init__(self, access: Access, table: str, clauses: Clauses = ()) -> None:
        self._access = access
        self._table = table
        self._clauses = clauses

    def __repr__(self) -> str:
        asked = ", ".join(f"{name}={value!r}" for name, value in self._clauses)
        return f"<collection {self._table}{f' where {asked}' if asked else ''}>"

    def where(self, /, **equals: Any) -> Collection:
        """Narrows to rows whose columns all have these values.

        Args:
            **equals: By column. None is NULL; a list, tuple or set is any of its values, an empty one no row at all.
        """
        return Collection(self._access, self._table, (*self._clauses, *equals.items()))

    async def first(self) -> Row | None:
        """Reads the first row in the order of the primary key, or None."""
        rows = await self._read(limit=1)
        return rows[0] if rows else None

    async def all(self) -> list[Row]:
        """Reads every row, in the order of the primary key."""
        return await self._read(limit=None)

    async def count(self) -> int:
        """Counts the rows."""
        table = await self._find()
        from piecework.services import query

        answer = await self._access.execute(query.count_rows(table, self._clauses), verb="count", table=self._table)
        return int(answer.rows[0][0])

    async def insert(self, /, **values: Any) -> Row:
        """Inserts a row and commits it.

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
        """
        table = await self._find(values)
        from piecework.services import query

        statement = query.update_rows(table, self._clauses, values)
        return (await self._access.execute(statement, verb="update", table=self._table)).count

    async def delete(self) -> int:
        """Removes every row of the collection, commits, and tells how many there were.

        Raises:
            ValidationError: Rows of another table refer to one of them.
        """
        table = await self._find()
        from piecework.services import query

        statement = query.delete_rows(table, self._clauses)
        return (await self._access.execute(statement, verb="delete", table=self._table)).count

    async def _read(self, *, limit: int | None) -> list[Row]:
        table = await self._find()
        from piecework.services import query

        statement = query.select_rows(table, self._clauses, limit)
        return _rows(self._table, await self._access.execute(statement, verb="select", table=self._table))

    async def _insert(self, values: dict[str, Any], *, missing_only: bool) -> list[Row]:
        if self._clauses:
            raise InvalidStateError(f"{self!r} is a query: insert into the whole table, ws.database.{self._table}")
        table = await self._find(values)
        from piecework.services import query

        statement = query.insert_row(table, values, missing_only=missing_only)
        return _rows(self._table, await self._access.execute(statement, verb="insert", table=self._table))

    async def _find(self, values: Iterable[str] = ()) -> sa.Table:
        return await self._access.find(self._table, (*values, *(name for name, _ in self._clauses)))


class WorkspaceDatabase:
    """The application's database as one workspace sees it; each table is an attribute.

    Args:
        database: The process's.
        closed: Tells whether the workspace has closed.
        workspace_id: Named in errors.
    """

    def __init__(self, database: Database, *, closed: Callable[[], bool], workspace_id: str = "") -> None:
        self._access = Access(database, closed, workspace_id)

    def __getattr__(self, name: str) -> Collection:
        if name.startswith("_"):
            raise AttributeError(f"the database has no {name!r}; a table of that name is at table({name!r})")
        return Collection(self._access, name)

    def table(self, name: str) -> Collection:
        """The collection of a table whose name cannot be an attribute: computed, or that of a method here."""
        return Collection(self._access, name)

    async def run(self, sql: str, /, **params: Any) -> list[Row]:
        r"""Runs one statement of SQL as it is, and commits it.

        Args:
            sql: The text, with `:name` for each parameter; a colon that is none is written `\:`.
            **params: The values. Here neither they nor the rows are converted by column type.

        Returns:
            The rows that it answered; none for a statement that answers none.

        Raises:
            ValidationError: A parameter is missing or too many, or a constraint does not hold.
            DatabaseError: The database does not accept the statement.
        """
        return _rows("row", await self._access.run(sql, params))


class Access:
    """One workspace's way to the database: refuses once the workspace has closed."""

    __slots__ = ("_closed", "_database", "_workspace_id")

    def __init__(self, database: Database, closed: Callable[[], bool], workspace_id: str) -> None:
        self._database = database
        self._closed = closed
        self._workspace_id = workspace_id

    async def find(self, table: str, columns: Iterable[str]) -> sa.Table:
        """Finds a table by name, read anew when it or one of `columns` is unknown."""
        self._check_open()
        return await self._database.table(table, columns)

    async def execute(self, statement: sa.Executable, *, verb: str, table: str) -> Answer:
        """Runs one statement and commits it; `verb` and `table` are for errors."""
        self._check_open()
        return await self._database.execute(statement, verb=verb, table=table)

    async def run(self, sql: str, params: dict[str, Any]) -> Answer:
        """Runs SQL as it is; one that defines tables has them read anew."""
        self._check_open()
        await self._database.open()
        from piecework.services import query

        answer = await self.execute(query.raw(sql, params), verb="run", table=_shortened(sql))
        if _DEFINES_TABLES.match(sql):
            self._database.forget_tables()
        return answer

    def _check_open(self) -> None:
        if self._closed():
            raise ClosedError(
                f"the database of workspace {self._workspace_id or '(unnamed)'} was used after the workspace had "
                "closed: await what uses it, or open another one with run_in_new_workspace",
                workspace_id=self._workspace_id,
            )


def _rows(table: str, answer: Answer) -> list[Row]:
    return [Row(table, dict(zip(answer.columns, values, strict=True))) for values in answer.rows]


def _shortened(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 60 else text[:59] + "…"
