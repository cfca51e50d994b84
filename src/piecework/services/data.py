"""The data of workspaces that do not share it: a transaction that is undone, or an empty copy of the tables.

Only `ws.database` is another one there. The store is the app's: events, jobs and mails are published, queued and sent
as ever, and a transaction inside that "commits" lets them go. A job that this process runs works on the same data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, DatabaseError
from piecework.workspace.data import CLEAN, ROLLBACK, Data

if TYPE_CHECKING:
    import sqlalchemy as sa

    from piecework.services.database import Database
    from piecework.services.relations import Schema
    from piecework.services.session import Answer, Backend, Session
    from piecework.services.templates import Templates
    from piecework.services.writing import Writing


class RollbackData(Data):
    """One transaction on the app's database for a workspace and all below it; it is never committed.

    Its connection is taken at the first use. One statement or transaction at a time has it, the others wait.

    Args:
        real: The app's database.
    """

    mode = ROLLBACK

    def __init__(self, real: Database) -> None:
        super().__init__()
        self._real = real
        self._owner = ""
        self._database: Database | None = None
        self._ended = False

    def database_of(self, workspace_id: str, ctx: Any) -> Database:
        """The database of a workspace; the first to ask is who it ends with.

        Raises:
            ClosedError: It was rolled back.
        """
        if self._ended:
            raise ClosedError(
                f"the data of workspace {self._owner}, opened with data='rollback', was rolled back when that was "
                "closed: await what works on it inside",
                workspace_id=self._owner,
            )
        if self._database is None:
            self._owner = workspace_id
            backend = RollbackBackend(self._real, f"workspace {workspace_id}, opened with data='rollback'")
            self._database = self._real.over(backend, size=1, locks=self._real.locks, first=self._real.schema)
            ctx.on_cleanup(self._end)
        return self._database

    async def _end(self) -> None:
        assert self._database is not None, "it is noted when it is made"
        try:
            await self.drain()
        finally:
            self._ended = True
            await self._database.pool.close()


class CleanData(Data):
    """An empty copy of the app's tables for each root workspace that asks; copied at the first use, dropped at its end.

    Args:
        real: The app's database.
        templates: What it is copied from.
    """

    mode = CLEAN

    def __init__(self, real: Database, templates: Templates) -> None:
        super().__init__()
        self._real = real
        self._templates = templates

    def joined_by(self, handle: Any) -> None:
        """Nothing: whoever is opened inside has a copy of its own."""

    def database_of(self, workspace_id: str, ctx: Any) -> Database:  # noqa: ARG002 - as of RollbackData
        """A database for a workspace."""
        backend = self._templates.copy()

        async def known() -> Schema | None:
            """What the template has, as far as somebody has looked."""
            tables = await backend.known()
            return None if tables is None else database.schema_of(tables)

        database = self._real.over(backend, size=self._real.pool.status.size, first=known)

        async def end() -> None:
            """Closes the connections, then drops what they were to."""
            try:
                await database.close()
            finally:
                await backend.drop()

        ctx.on_cleanup(end)
        return database


class RollbackBackend:
    """Opens the one session of a transaction that is never committed; see `session.Backend`.

    Args:
        real: The app's database.
        words: Whose it is.
    """

    def __init__(self, real: Database, words: str) -> None:
        self._real = real
        self._backend: Backend = real.backend
        self._words = words
        self._begun = False
        self.url = self._backend.url
        self.dialect = self._backend.dialect
        self.one_writer = self._backend.one_writer

    async def connect(self) -> Session:
        """Opens the session, and begins what is never committed.

        Raises:
            DatabaseError: It was opened before, and was lost with all that was done in it.
        """
        if self._begun:
            raise DatabaseError(
                f"the transaction of {self._words} was broken by a statement that was stopped, and everything done in "
                "it is undone: open another workspace",
            )
        writing = self._real.writing
        if writing is not None:
            await writing.begin(self._words)
        try:
            session = await self._backend.connect()
            try:
                await session.begin()
            except BaseException:
                session.abandon()
                raise
        except BaseException:
            if writing is not None:
                writing.end()
            raise
        self._begun = True
        return Undone(session, writing)

    def kind_of(self, error: Exception) -> tuple[str, str]:
        """What an error of the driver means, and what to do about it."""
        return self._backend.kind_of(error)


class Undone:
    """A session inside a transaction that nobody commits: each statement is a savepoint; see `session.Session`.

    Args:
        session: It has begun that transaction.
        writing: Whose turn to write is given back at the end.
    """

    def __init__(self, session: Session, writing: Writing | None) -> None:
        self._session = session
        self._writing = writing
        self._depth = 0
        self._stopped = False

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is."""
        return not self._depth and not self._stopped and not self.lost

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more: what was done in it is gone."""
        return self._session.lost or self._session.failed == "all"

    @property
    def failed(self) -> str:
        """What a failed statement took along."""
        return self._session.failed

    async def execute(self, statement: sa.Executable, params: Any = None) -> Answer:
        """Runs one statement; one that fails leaves what was done before as it was."""
        if self._depth:
            return await self._session.execute(statement, params)
        await self.begin()
        try:
            answer = await self._session.execute(statement, params)
        except BaseException:
            self._stopped = True  # settle() undoes the savepoint, before anybody else has the session
            raise
        await self.commit()
        return answer

    async def begin(self) -> None:
        """Begins a savepoint."""
        self._stopped = True
        await self._session.begin()
        self._stopped = False
        self._depth += 1

    async def commit(self) -> None:
        """Ends what was begun last and keeps it, until the end of all."""
        self._depth -= 1
        await self._session.commit()

    async def rollback(self) -> None:
        """Ends what was begun last and undoes it."""
        self._depth -= 1
        await self._session.rollback()

    async def reflect(self) -> list[sa.Table]:
        """Reads which tables there are."""
        return await self._session.reflect()

    async def settle(self) -> None:
        """Undoes the savepoints that its last caller left behind."""
        while self._depth:
            await self.rollback()
        self._stopped = False

    async def close(self) -> None:
        """Undoes everything."""
        try:
            await self._undo()
        finally:
            await self._session.close()

    def abandon(self) -> None:
        """Undoes everything, without waiting."""
        self._session.abandon()
        self._end_turn()

    async def _undo(self) -> None:
        try:
            if not self.lost:
                await self._session.settle()
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.end()
