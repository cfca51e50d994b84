"""The outbox: what a transaction of the application's promises to the store, as rows of `piecework_outbox`.

An event, a job, a mail or a notification that is made inside a transaction is a row written in it: it goes with the
commit and vanishes with the rollback. Whoever committed hands its rows to the store at once, in order, and then forgets
them; what a killed process left behind, a node does (`relay`). Every row has the id that it will have in the store, so
that the store takes it once however often it is handed over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from piecework.clock import as_datetime
from piecework.errors import DatabaseError, InvalidStateError
from piecework.ids import new_id
from piecework.services import transactions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from piecework.clock import Clock
    from piecework.services.database import Database
    from piecework.services.relay import Relay
    from piecework.services.transactions import Transaction

TABLE: Final = "piecework_outbox"

EVENT: Final = "event"
JOB: Final = "job"
NOTIFICATION: Final = "notification"

WAITS_SECONDS: Final = (1.0, 10.0, 60.0, 300.0)
"""The waits after a row was refused the first time, the second, and so on; after the last one it is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One row.

    Attributes:
        row_id: Of the row.
        transaction_id: What its transaction's rows have in common.
        position: Its place among them.
        kind: `event`, `job` (a mail is one) or `notification`.
        told: What the store is told, in JSON values.
        attempts: How often it was refused.
        overrides: What stands for services in a job, in this process only.
    """

    row_id: str
    transaction_id: str
    position: int
    kind: str
    told: Mapping[str, Any]
    attempts: int = 0
    overrides: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def item_id(self) -> str:
        """Its id in the store."""
        return str(self.told.get({JOB: "run_id", NOTIFICATION: "notification_id"}.get(self.kind, "id")))


@dataclass(slots=True)
class Bundle:
    """What the rows of one transaction have in common.

    Attributes:
        transaction_id: Theirs.
        created_at: When the first was written.
        places: Numbers them.
    """

    transaction_id: str
    created_at: datetime
    places: count[int] = field(default_factory=count)


def after_refusal(attempts: int) -> float | None:
    """How long a row waits that was refused for so many times; None: it is dead."""
    return WAITS_SECONDS[attempts - 1] if attempts <= len(WAITS_SECONDS) else None


class Outbox:
    """Writes the rows of a process's transactions.

    Args:
        clock: Tells the time.
        relay: Who is told of what was committed.
        rows: False writes none: a database that goes with its workspace keeps nothing for later.

    Attributes:
        there: Whether the table is known to be there, for good.
    """

    def __init__(self, clock: Clock, relay: Relay, *, rows: bool = True) -> None:
        self.there = False
        self._clock = clock
        self._relay = relay
        self._rows = rows

    def without_rows(self) -> Outbox:
        """The same for a database that goes with its workspace: what is promised is handed over, and not kept."""
        return Outbox(self._clock, self._relay, rows=False)

    async def promise(
        self, transaction: Transaction, kind: str, told: Mapping[str, Any], *, overrides: Mapping[str, Any] | None
    ) -> Intent:
        """Writes a row in a transaction; it counts when that has committed.

        Raises:
            TransactionClosedError: The transaction has ended.
            DatabaseError: The row, or the table, could not be written.
        """
        bundle = transaction.outermost.bundle
        if bundle is None:
            bundle = transaction.outermost.bundle = Bundle(new_id(), self._now())
        place = next(bundle.places)
        intent = Intent(
            row_id=new_id(),
            transaction_id=bundle.transaction_id,
            position=place,
            kind=kind,
            told=told,
            overrides=overrides,
        )
        if not self._rows:
            transaction.check_open()
            return intent
        row = {
            "id": intent.row_id,
            "transaction_id": bundle.transaction_id,
            "position": place,
            "kind": kind,
            "told": json.dumps(dict(told)),
            "attempts": 0,
            "error": None,
            "created_at": self._now(),
            "due_at": bundle.created_at,
            "dead_at": None,
        }
        await self._write(transaction, row)
        return intent

    async def committed(self, intents: list[Intent]) -> None:
        """Hands the rows of a committed transaction to the store; what cannot be handed over now is not lost.

        Raises:
            PieceworkError: The store did not take what is kept nowhere else.
        """
        if not self._rows:
            for intent in intents:
                await self._relay.deliver(intent)
            return
        self.there = True
        await self._relay.hand_over(intents)

    async def _write(self, transaction: Transaction, row: dict[str, Any]) -> None:
        from piecework.services import outbox_rows

        known = self.there
        if not known:
            await self._make(transaction)
        try:
            await transaction.execute(outbox_rows.INSERT, row, verb="promise", table=TABLE)
        except DatabaseError:
            if not known or not transaction.open:
                raise
            # Somebody has dropped it since.
            self.there = False
            await self._make(transaction)
            await transaction.execute(outbox_rows.INSERT, row, verb="promise", table=TABLE)

    async def _make(self, transaction: Transaction) -> None:
        """Makes the table: on SQLite in the transaction, which is the only one that may write."""
        from piecework.services import outbox_rows

        database = transaction.access.database
        transaction.check_open()
        if database.dialect == "sqlite":
            for statement in outbox_rows.creating(database.dialect):
                await transaction.execute(statement, verb="create", table=TABLE)
            return
        await make_table(database)
        self.there = True

    def _now(self) -> datetime:
        moment = as_datetime(self._clock.now())
        assert moment is not None, "there is a time"
        return moment


async def make_table(database: Database) -> None:
    """Makes the table on a connection of its own.

    Raises:
        DatabaseError: It cannot be made: the message says how somebody else makes it.
    """
    from piecework.services import outbox_rows

    session = None
    try:
        session = await database.connect()
        await outbox_rows.make_apart(session)
    except Exception as error:  # noqa: BLE001 - explain() raises it again, in our words
        database.explain(error, "create", f"{TABLE} (the guide to transactions has its definition)")
    finally:
        if session is not None:
            await session.close()


async def counts(database: Database) -> tuple[int, int]:
    """How many rows wait to be relayed, and how many are dead; none where there is no table.

    Raises:
        DatabaseError: The database cannot be read.
    """
    await database.schema()  # imports SQLAlchemy off the loop
    from piecework.services import outbox_rows

    answer = await database.execute(outbox_rows.there(database.dialect), verb="look for", table=TABLE)
    if not answer.rows:
        return 0, 0
    rows, dead = (await database.execute(outbox_rows.COUNTS, verb="count", table=TABLE)).rows[0]
    return rows - dead, dead


def refuse_waiting(run_id: str) -> None:
    """Refuses to wait for a job inside the transaction that it begins with the commit of.

    Raises:
        InvalidStateError: The caller is in that transaction.
    """
    for one in transactions.chain():
        if one.open and any(intent.kind == JOB and intent.item_id == run_id for intent in one.promised):
            raise InvalidStateError(
                f"run {run_id} begins when the {one.words} has committed, so nobody can wait for it inside: wait "
                "behind the `async with`",
                run_id=run_id,
            )


def refuse_running(name: str, workspace_id: str) -> None:
    """Refuses to run a job and wait for it inside a transaction: it would begin with the commit.

    Raises:
        InvalidStateError: A transaction of that workspace is open.
    """
    one = transactions.of_workspace(workspace_id)
    if one is not None:
        raise InvalidStateError(
            f"job {name!r} was to be run and waited for inside the {one.words}, with whose commit it would begin: "
            "enqueue it, and wait behind the `async with`",
            job=name,
        )
