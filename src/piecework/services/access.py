"""One workspace's way to the application's database: refuses once it has closed, and knows its transactions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, CrossWorkspaceError, InvalidStateError, NotFoundError
from piecework.services import transactions
from piecework.workspace.context import current_workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.services.database import Database
    from piecework.services.query import Made
    from piecework.services.relations import Schema
    from piecework.services.session import Answer
    from piecework.services.transactions import Transaction

_DEFINES_TABLES = re.compile(r"\s*(create|alter|drop)\b", re.IGNORECASE)
_ONLY_READS = re.compile(r"\s*(select|explain|values|pragma|show)\b", re.IGNORECASE)


class Access:
    """What the collections and rows of one workspace go through.

    Attributes:
        database: The process's.
        workspace_id: Whose it is.
        transactions: Those that are open.
    """

    __slots__ = ("_check_here", "_closed", "database", "transactions", "workspace_id")

    def __init__(
        self,
        database: Database,
        closed: Callable[[], bool],
        workspace_id: str,
        check_here: Callable[[str], None] | None = None,
    ) -> None:
        self._check_here = check_here
        self.database = database
        self.workspace_id = workspace_id
        self.transactions: set[Transaction] = set()
        self._closed = closed

    @property
    def who(self) -> str:
        """Whose it is, for errors."""
        return f"workspace {self.workspace_id or '(unnamed)'}"

    async def make(self, build: Callable[[Schema, str], Made]) -> Made:
        """Makes a statement by the tables as they are; what it does not find may have been created since.

        Raises:
            NotFoundError: There is no such table, column, relation or suffix; the message has the nearest names.
        """
        self.check_open()
        dialect = self.database.dialect
        inside = transactions.of(self)
        schema = await (self.database.schema() if inside is None else inside.schema())
        try:
            return build(schema, dialect)
        except NotFoundError:
            schema = await (self.database.schema(than=schema) if inside is None else inside.schema(than=schema))
        return build(schema, dialect)

    async def execute(self, made: Made, *, verb: str, table: str) -> Answer:
        """Runs one statement: in the transaction that the caller is in, else committed by itself."""
        return await self.run(made.statement, made.params, verb=verb, table=table)

    async def run(
        self, statement: Any, params: dict[str, Any] | None = None, *, verb: str, table: str, writes: bool | None = None
    ) -> Answer:
        """Runs one statement; `writes` tells whether, where the statement does not."""
        self.check_open()
        inside = transactions.of(self)
        if inside is not None:
            return await inside.execute(statement, params, verb=verb, table=table)
        database = self.database
        held = transactions.held()
        holder = self.who
        if database.writing is None or not (statement.is_dml if writes is None else writes):
            return await database.execute(statement, params, verb=verb, table=table, holder=holder, held=held)
        async with database.writing.turn(f"{verb} {table} of {holder}"):
            return await database.execute(statement, params, verb=verb, table=table, holder=holder, held=held)

    async def run_text(self, sql: str, params: dict[str, Any]) -> Answer:
        """Runs SQL as it is; one that defines tables has them read anew."""
        self.check_open()
        inside = transactions.of(self)
        if inside is None:
            await self.database.schema()  # imports SQLAlchemy off the loop, as the beginning of a transaction does
        from piecework.services import query

        writes = _ONLY_READS.match(sql) is None
        answer = await self.run(query.raw(sql, params), verb="run", table=_shortened(sql), writes=writes)
        if _DEFINES_TABLES.match(sql):
            if inside is None:
                self.database.forget_tables()
            else:
                inside.redefines_tables()
        return answer

    def check_open(self) -> None:
        """Refuses any use after the workspace's end, or in a function that has another workspace.

        Raises:
            ClosedError: It has closed.
            CrossWorkspaceError: The function has another one.
        """
        if self._closed():
            raise ClosedError(
                f"the database of {self.who} was used after the workspace had "
                "closed: await what uses it, or open another one with run_in_new_workspace",
                workspace_id=self.workspace_id,
            )
        if self._check_here is not None:
            self._check_here("its database")

    def check_here(self, born: str, what: str) -> None:
        """Refuses a row or a query in a workspace that it is not of.

        Args:
            born: The id of the workspace that was current when it was made.
            what: What it is, for the error.

        Raises:
            CrossWorkspaceError: The current workspace is another one.
        """
        here = current_id()
        if here and here not in {born, self.workspace_id}:
            raise CrossWorkspaceError(
                f"{what} belongs to {self.who} and was used in workspace {here}: pass its id as an argument, and read "
                "it anew there",
                workspace_id=self.workspace_id,
                used_in=here,
            )

    async def close(self) -> None:
        """Rolls back the transactions that are still open.

        Raises:
            ExceptionGroup: Callbacks of theirs raised; all of them are rolled back.
        """
        errors: list[Exception] = []
        for transaction in list(self.transactions):
            for one in reversed(transaction.savepoints()):  # the innermost first: it has the turn of those around it
                try:
                    await one.finish(keep=False)
                except ExceptionGroup as failed:
                    errors += failed.exceptions
        if errors:
            raise ExceptionGroup(f"after transactions of {self.who} were rolled back", errors)


def current_id() -> str:
    """The id of the workspace, or of its root, that the calling code runs in; empty when it runs in none."""
    try:
        return current_workspace().root.id
    except (InvalidStateError, ClosedError):
        return ""


def _shortened(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 60 else text[:59] + "…"
