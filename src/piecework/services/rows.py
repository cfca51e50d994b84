"""A row as it was read: attributes to look at, and a way to change or remove it where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.errors import InvalidStateError, NotFoundError
from piecework.services.asked import Query

if TYPE_CHECKING:
    from piecework.services.access import Access
    from piecework.services.session import Answer


class Row:
    """A row as it was read: its columns are attributes. A column named like a method is at `row["name"]`.

    Reading its attributes is always possible; changing it is for the workspace that read it.
    """

    __slots__ = ("_access", "_born", "_table", "_values")

    def __init__(self, table: str, values: dict[str, Any], access: Access | None = None, born: str = "") -> None:
        self._table = table
        self._values = values
        self._access = access
        self._born = born

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
            CrossWorkspaceError: The current workspace is another one than that which read it.
            ClosedError: The workspace is closed.
            ValidationError: The row has no `email`, or something is not acceptable.
        """
        from piecework.workspace.context import current_workspace

        if self._access is not None:
            self._access.check_here(self._born, repr(self))
        notify = await current_workspace().require("notify")
        told: str | None = await notify(self, text, subject=subject, force=force)
        return told

    def as_dict(self) -> dict[str, Any]:
        """Copies the values into a new mapping by column."""
        return dict(self._values)

    async def update(self, /, **values: Any) -> Row:
        """Sets columns of this row, in the database and here, and commits it; inside a transaction with that.

        Returns:
            The row itself, as it is stored now.

        Raises:
            NotFoundError: It is not there any more, or has no such column.
            DuplicateKeyError: A row with one of its unique keys is there.
            ValidationError: Nothing to set, a constraint does not hold, or a value does not fit.
            InvalidStateError: It is no row of a table with a primary key.
            CrossWorkspaceError: The current workspace is another one than that which read it.
            ClosedError: Its workspace has closed.
        """
        access, key = await self._place()
        from piecework.services import query

        made = await access.make(lambda schema, dialect: query.update_rows(schema, dialect, key, values, answers=True))
        answer = await access.execute(made, verb="update", table=self._table)
        if not answer.rows:
            raise NotFoundError(
                f"{self!r} is not there any more: it was deleted, or its key was changed", kind=self._table
            )
        self._values = dict(zip(answer.columns, answer.rows[0], strict=True))
        return self

    async def delete(self) -> bool:
        """Removes this row and commits it; False when it was not there any more. Errors as of `update`."""
        access, key = await self._place()
        from piecework.services import query

        made = await access.make(lambda schema, dialect: query.delete_rows(schema, dialect, key))
        return (await access.execute(made, verb="delete", table=self._table)).count > 0

    async def _place(self) -> tuple[Access, Any]:
        access = self._access
        if access is None:
            raise InvalidStateError(f"{self!r} is what run() answered: read it by its table to change it")
        access.check_open()
        access.check_here(self._born, repr(self))
        schema = await access.database.schema()
        keys = [column.name for column in schema.table(self._table).primary_key]
        if not keys:
            raise InvalidStateError(f"{self._table} has no primary key: change its rows by where(…)", table=self._table)
        return access, Query(self._table, (tuple((name, self._values[name]) for name in keys),))


def rows_of(table: str, answer: Answer, access: Access | None = None, born: str = "") -> list[Row]:
    """The rows of an answer.

    Args:
        table: Where they are from, or what they are.
        answer: What the statement brought.
        access: The way to change them; None where there is none.
        born: The id of the workspace that they were read in.
    """
    columns = answer.columns
    return [Row(table, dict(zip(columns, values, strict=True)), access, born) for values in answer.rows]
