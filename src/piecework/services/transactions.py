"""Transactions of a workspace on the application's database.

A transaction belongs to the task that opened it and to what that task awaits; tasks that are started inside take turns
on its connection. Another workspace is outside of it, also one that is opened inside: it has connections of its own.
A transaction inside a transaction is a savepoint.
"""

from __future__ import annotations

import asyncio
import inspect
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from piecework.errors import DatabaseError, TransactionClosedError
from piecework.services.finishing import finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    import sqlalchemy as sa

    from piecework.services.access import Access
    from piecework.services.outbox import Bundle, Intent
    from piecework.services.pool import Lease
    from piecework.services.relations import Schema
    from piecework.services.session import Answer, Session
    from piecework.services.tables import WorkspaceDatabase

_innermost: ContextVar[Transaction | None] = ContextVar("piecework_transaction", default=None)


def current(database: WorkspaceDatabase) -> Transaction | None:
    """The innermost open transaction on a workspace's database that the caller is in, or None.

    Args:
        database: What `ws.database` is.
    """
    access = database.access
    return next((one for one in chain() if one.access is access and one.open), None)


def of_workspace(workspace_id: str) -> Transaction | None:
    """Like `current`, for whoever has not asked for `ws.database`, and does not want to.

    Args:
        workspace_id: The id of the workspace, or of its root.
    """
    return next((one for one in chain() if one.access.workspace_id == workspace_id and one.open), None)


def chain() -> list[Transaction]:
    """Every transaction that the caller is in, of whichever workspace, innermost first."""
    found, one = [], _innermost.get()
    while one is not None:
        found.append(one)
        one = one.outer
    return found


def of(access: Access) -> Transaction | None:
    """The transaction that a statement of a workspace belongs to, or None.

    Raises:
        TransactionClosedError: The caller has outlived it.
    """
    one = _innermost.get()
    while one is not None:
        if one.access is access:
            one.check_open()
            return one
        one = one.outer
    return None


def held() -> list[Lease]:
    """The connections that the caller's transactions hold, outermost first."""
    return [one.lease for one in reversed(chain()) if one.lease is not None and one.open]


class Transaction:
    """A transaction, or a savepoint in one; `ws.database.transaction()` opens it.

    Attributes:
        access: The workspace's way to the database.
        outer: The transaction that the opener was in, of whichever workspace.
        parent: The one that this is a savepoint of, or None.
        lease: The connection; None for a savepoint.
        ended: How it ended: empty while it is open.
        promised: What goes to the store with its commit: of itself and of savepoints that were kept.
        bundle: What the rows have in common that say so; None as long as there is none.
    """

    def __init__(self, access: Access, outer: Transaction | None, parent: Transaction | None) -> None:
        self.access = access
        self.outer = outer
        self.parent = parent
        self.lease: Lease | None = None
        self.ended = ""
        self.promised: list[Intent] = []
        self.bundle: Bundle | None = None
        self._doomed = ""
        self._schema: Schema | None = None
        self._redefines = False
        self._turn = asyncio.Lock()
        self._inner: Transaction | None = None
        self._callbacks: list[Callable[[], Any]] = []
        self._undoing: list[Callable[[], Any]] = []

    def __repr__(self) -> str:
        return f"<{self.words} {self.ended or 'open'}>"

    @property
    def open(self) -> bool:
        """Whether it takes statements."""
        return not self.ended

    @property
    def words(self) -> str:
        """What it is, for errors."""
        return f"{'transaction' if self.parent is None else 'savepoint'} of {self.access.who}"

    @property
    def session(self) -> Session:
        """The connection that it is on."""
        lease = self.outermost.lease
        assert lease is not None, "begin() comes first"
        return lease.session

    @property
    def outermost(self) -> Transaction:
        """The one that commits; itself, if it is no savepoint."""
        one = self
        while one.parent is not None:
            one = one.parent
        return one

    def check_open(self) -> None:
        """Refuses any use after the end.

        Raises:
            TransactionClosedError: It has ended.
        """
        if self.ended:
            raise TransactionClosedError(
                f"the {self.words} was {self.ended}: a task that outlives it needs a workspace of its own, as "
                "ws.spawn_in_new_workspace gives it, or has to be awaited inside",
                workspace_id=self.access.workspace_id,
            )

    async def execute(
        self,
        statement: sa.Executable,
        params: dict[str, Any] | None = None,
        *,
        verb: str = "execute",
        table: str = "",
    ) -> Answer:
        """Runs one statement in the transaction; it is committed with it.

        Args:
            statement: What SQLAlchemy compiles.
            params: Its parameters.
            verb: What it does, for errors.
            table: The table it is about, for errors.

        Raises:
            TransactionClosedError: It has ended.
            DuplicateKeyError: A unique key is taken; the transaction goes on.
            ValidationError: A value or a constraint does not hold; the transaction goes on.
            DatabaseError: The database cannot do it, or could not do a statement before it that broke the transaction.
        """
        self.check_open()
        async with self._turn:
            self.check_open()
            self._check_whole()
            session = self.session
            try:
                return await session.execute(statement, params)
            except BaseException as error:
                if session.failed:
                    self._doom(f"{verb} {table}".strip(), everything=session.failed == "all")
                if isinstance(error, Exception):
                    self.access.database.explain(error, verb, table)
                raise

    def after_commit(self, fn: Callable[[], Any]) -> None:
        """Has a function called once the outermost transaction is committed; a rollback drops it.

        It stays in this process: what must not be lost when the process dies in between is a job, a mail or an event,
        which go along with the commit.

        Args:
            fn: Without arguments, plain or async. It is called outside of the transaction, in the order of asking.

        Raises:
            TransactionClosedError: It has ended.
        """
        self.check_open()
        self._callbacks.append(fn)

    async def promise(self, kind: str, told: Mapping[str, Any], *, overrides: Mapping[str, Any] | None = None) -> None:
        """Writes down what goes to the store when the outermost transaction has committed; a rollback drops it.

        Args:
            kind: One of those of `outbox`.
            told: What the store is told, in JSON values, with the id that it will have there.
            overrides: What stands for services in a job, as long as this process lives.

        Raises:
            TransactionClosedError: It has ended.
            DatabaseError: It could not be written.
        """
        self.check_open()
        outbox = self.access.database.outbox
        assert outbox is not None, "the app that opens a database gives it one"
        self.promised.append(await outbox.promise(self, kind, told, overrides=overrides))

    async def schema(self, *, than: Schema | None = None) -> Schema:
        """The tables as they are in it. What it has defined itself is read by it: anybody else would wait for its end.

        Args:
            than: What was seen to lack something: they are read again.
        """
        one = self.outermost
        found = one._schema or (None if one._redefines else self.access.database.known)
        if found is not None and found is not than:
            return found
        async with self._turn:
            self.check_open()
            if one._schema is None or one._schema is than:
                one._schema = await self.access.database.read(self.session)
        one._redefines = True
        return one._schema

    def redefines_tables(self) -> None:
        """Notes that tables are defined in it: they are others from here on, and again after a rollback."""
        self.outermost._redefines = True
        self.outermost._schema = None

    def after_rollback(self, fn: Callable[[], Any]) -> None:
        """Has a plain function called when this transaction, or one around it, was rolled back.

        Args:
            fn: Without arguments; it is called once, outside of the transaction. What it raises is written onto the
                error that the transaction was rolled back for, as a note.

        Raises:
            TransactionClosedError: It has ended.
        """
        self.check_open()
        self._undoing.append(fn)

    # -- its life, by TransactionScope and Access

    def savepoints(self) -> list[Transaction]:
        """Itself, and the savepoints that are open in it, each inside the one before."""
        found = [self]
        while (inner := found[-1]._inner) is not None:
            found.append(inner)
        return found

    async def begin(self) -> None:
        """Begins it: waits for its turn, and has a connection of its own from then on."""
        if self.parent is None:
            await self._begin_outermost()
        else:
            await self._begin_savepoint(self.parent)

    async def finish(self, *, keep: bool) -> list[Callable[[], Any]]:
        """Ends it; gives what is to be called then.

        Raises:
            TransactionClosedError: It was ended underneath.
            DatabaseError: It could not be committed, and was undone.
            ExceptionGroup: It was rolled back as it was to be, and callbacks raised.
        """
        failure: Exception | None = None
        async with self._turn:  # what is under way in other tasks comes to its end first
            if self.ended:
                if keep:
                    self.check_open()
                return []
            kept = keep and not self._doomed
            self.ended = "committed" if kept else "rolled back"
            try:
                await (self.session.commit() if kept else self.session.rollback())
            except Exception as error:  # noqa: BLE001 - raised below; what could not be undone here is left to the pool
                self.ended = "rolled back"
                failure = error if kept else None
                kept = False
            finally:
                self._leave()
        errors = [] if kept else _failures(self._undoing)
        try:
            if failure is not None:
                self.access.database.explain(failure, "commit", "")
            if keep:
                self._check_whole()
        except Exception as error:
            self.note(error, errors)
            raise
        if errors:
            raise ExceptionGroup(f"after the {self.words} was rolled back", errors)
        return self._passed_on() if kept else []

    def note(self, error: BaseException, others: Iterable[Exception]) -> None:
        """Writes onto why it was rolled back what callbacks raised afterwards."""
        for other in others:
            error.add_note(f"and, after the {self.words} was rolled back: {type(other).__name__}: {other}")

    async def _begin_outermost(self) -> None:
        access = self.access
        database = access.database
        await database.schema()  # read before: afterwards it would take another connection
        if database.writing is not None:
            await database.writing.begin(self.words)
        try:
            self.lease = await database.pool.lease(holder=self.words, held=held())
            try:
                await self.lease.session.begin()
            except BaseException as error:
                database.pool.release(self.lease)
                if isinstance(error, Exception):
                    database.explain(error, "begin", "")
                raise
        except BaseException:
            if database.writing is not None:
                database.writing.end()
            raise
        access.transactions.add(self)

    async def _begin_savepoint(self, parent: Transaction) -> None:
        await parent._turn.acquire()
        try:
            parent.check_open()
            parent._check_whole()
            await self.session.begin()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                parent._doom("savepoint", everything=True)  # nobody knows whether it was begun
            parent._turn.release()
            raise
        parent._inner = self

    def _leave(self) -> None:
        if self.parent is not None:
            self.parent._inner = None
            self.parent._turn.release()
            return
        access = self.access
        access.transactions.discard(self)
        if self._redefines:
            access.database.forget_tables()
        assert self.lease is not None, "begin() comes first"
        access.database.pool.release(self.lease)
        if access.database.writing is not None:
            access.database.writing.end()

    def _passed_on(self) -> list[Callable[[], Any]]:
        if self.parent is None:
            outbox = self.access.database.outbox
            if outbox is None or not self.promised:
                return self._callbacks
            return [partial(outbox.committed, self.promised), *self._callbacks]
        self.parent.promised += self.promised
        self.parent._callbacks += self._callbacks
        self.parent._undoing += self._undoing
        return []

    def _doom(self, what: str, *, everything: bool) -> None:
        one: Transaction | None = self
        while one is not None:
            one._doomed = one._doomed or what
            one = one.parent if everything else None

    def _check_whole(self) -> None:
        if self._doomed:
            raise DatabaseError(
                f"the {self.words} was broken by a statement that failed or was stopped ({self._doomed}): it is rolled "
                "back; put what may fail into a transaction() of its own inside it",
                workspace_id=self.access.workspace_id,
            )


class TransactionScope:
    """Opens a transaction for the body of an `async with`: commits at its end, rolls back on any exception."""

    __slots__ = ("_access", "_previous", "_transaction")

    def __init__(self, access: Access) -> None:
        self._access = access
        self._previous: Transaction | None = None
        self._transaction: Transaction | None = None

    async def __aenter__(self) -> Transaction:
        self._access.check_open()
        self._previous = _innermost.get()
        transaction = Transaction(self._access, self._previous, of(self._access))
        await transaction.begin()
        self._transaction = transaction
        _innermost.set(transaction)
        return transaction

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None, "entered once, left once"
        # No token: it could not be reset when the body is left in another task than it was entered in.
        if _innermost.get() is transaction:
            _innermost.set(self._previous)
        await finished(_commit(transaction) if error is None else _roll_back(transaction, error))


async def _commit(transaction: Transaction) -> None:
    errors: list[Exception] = []
    for fn in await transaction.finish(keep=True):
        try:
            value = fn()
            if inspect.isawaitable(value):
                await value
        except Exception as error:  # noqa: BLE001 - the others are called all the same, and all are raised below
            error.add_note(f"after the {transaction.words} was committed")
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"after the {transaction.words} was committed", errors)


async def _roll_back(transaction: Transaction, error: BaseException) -> None:
    try:
        await transaction.finish(keep=False)
    except ExceptionGroup as failed:
        transaction.note(error, failed.exceptions)


def _failures(functions: list[Callable[[], Any]]) -> list[Exception]:
    """Calls each, and tells what they raised."""
    errors: list[Exception] = []
    for fn in functions:
        try:
            fn()
        except Exception as error:  # noqa: BLE001 - the others are called all the same, and all are told
            errors.append(error)
    return errors
