"""What `ws.database` is: a collection for each table, transactions, locks, and SQL as it is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from piecework.errors import InvalidStateError, ValidationError
from piecework.services.access import Access
from piecework.services.asked import Query
from piecework.services.collection import Collection
from piecework.services.locks import LockScope
from piecework.services.rows import Row, rows_of
from piecework.services.scoped import scope_of
from piecework.services.transactions import TransactionScope

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.services.asked import Group
    from piecework.services.database import Database
    from piecework.services.pool import PoolStatus


class WorkspaceDatabase:
    """The application's database as one workspace sees it; each table is an attribute.

    A workspace has a connection only while it needs one: for a statement, or for a transaction.

    Args:
        database: The process's.
        closed: Tells whether the workspace has closed.
        workspace_id: Named in errors.
        check_here: Refuses the use of what it is told in a function of another workspace; None means that there is
            nobody to ask.

    Attributes:
        access: What its collections and rows go through.
    """

    def __init__(
        self,
        database: Database,
        *,
        closed: Callable[[], bool],
        workspace_id: str = "",
        check_here: Callable[[str], None] | None = None,
    ) -> None:
        self.access = Access(database, closed, workspace_id, check_here)
        self._scope: Group = ()

    def __getattr__(self, name: str) -> Collection:
        if name.startswith("_"):
            raise AttributeError(f"the database has no {name!r}; a table of that name is at table({name!r})")
        return Collection(self.access, Query(name, scope=self._scope))

    def __repr__(self) -> str:
        return f"<database {self.url} of {self.access.who}>"

    @property
    def url(self) -> str:
        """Where the database is, without secrets."""
        return self.access.database.url

    @property
    def status(self) -> PoolStatus:
        """How many connections this process has to the database, and how many callers wait for one."""
        return self.access.database.status

    def table(self, table: Any) -> Collection:
        """The collection of a table.

        Args:
            table: Its name, for one that cannot be an attribute: computed, or that of a method here. Or a declarative
                model or a `Table` of SQLAlchemy's: from then on the types and defaults of its declaration, and of all
                tables declared beside it, hold for everybody.

        Raises:
            ValidationError: It is none of these.
        """
        if isinstance(table, str):
            return Collection(self.access, Query(table, scope=self._scope))
        declared = getattr(table, "__table__", table)
        metadata, name = getattr(declared, "metadata", None), getattr(declared, "name", None)
        if metadata is None or not isinstance(name, str):
            raise ValidationError(f"{table!r} is no table: give its name, a declarative model, or a Table")
        if not self.access.database.declares(name):
            self.access.database.declare(list(metadata.tables.values()))
        return Collection(self.access, Query(name, scope=self._scope))

    def scoped(self, /, **columns: Any) -> WorkspaceDatabase:
        """The same database for one tenant: only the rows that have these values, whatever is asked.

        A row that is inserted gets them, and none can be given others. Of tables that a condition goes to by a
        relation, those that have such columns count only the tenant's rows. A table without the columns is refused;
        so is `run`, since nobody knows what an SQL text is about. Transactions and locks are those of the workspace.

        Args:
            **columns: The one value of each: `scoped(tenant=ws.space)`.

        Raises:
            ValidationError: There is none, it is None or several, or it contradicts the scope that this one has.
        """
        narrower = copy.copy(self)
        narrower._scope = scope_of(self._scope, columns)  # noqa: SLF001 - another of the same kind
        return narrower

    def transaction(self) -> TransactionScope:
        """Opens, with `async with`, a transaction: committed at its end, rolled back on any exception.

        What this workspace does with the database inside, in the same task and in tasks that are started there, belongs
        to it. One inside another is a savepoint.

        Raises:
            PoolExhaustedError: No connection came free, or none can.
            DeadlockError: On SQLite: the caller is awaited inside a transaction of another workspace.
            DatabaseError: It cannot be begun or committed.
            TransactionClosedError: A task uses it after its end.
            ClosedError: The workspace has closed.
        """
        return TransactionScope(self.access)

    def lock(self, name: str = "default", *, timeout_seconds: float = 30) -> LockScope:
        """Holds, with `async with`, a named lock: one holder among tasks, workspaces and processes.

        It keeps nobody from reading or writing, only from taking a lock of the same name. Who holds it may take it
        again in the same task and workspace.

        Args:
            name: Of the lock, in this database.
            timeout_seconds: How long to wait for it.

        Raises:
            TimeoutExceededError: It did not come free in time; the message names the holder.
            DeadlockError: It can never come: the caller is awaited by the holder.
            ValidationError: The name is no text of 1 to 200 characters, or the time is not positive.
        """
        return LockScope(self.access, name, timeout_seconds)

    async def run(self, sql: str, /, **params: Any) -> list[Row]:
        r"""Runs one statement of SQL as it is, and commits it; inside a transaction with that.

        Args:
            sql: The text, with `:name` for each parameter; a colon that is none is written `\:`.
            **params: The values. Here neither they nor the rows are converted by column type.

        Returns:
            The rows that it answered; none for a statement that answers none.

        Raises:
            ValidationError: A parameter is missing or too many, or a constraint does not hold.
            DatabaseError: The database does not accept the statement.
            InvalidStateError: The database is scoped.
        """
        if self._scope:
            raise InvalidStateError(
                "a scoped database runs no SQL text, which might be about anybody's rows: use ws.database, and say in "
                "the text whose rows it is about"
            )
        return rows_of("row", await self.access.run_text(sql, params))

    async def close(self) -> None:
        """Rolls back what is still open; the workspace's end does this."""
        await self.access.close()
