"""What the proof drivers have in common: a verb with its items, a store on one connection, and its rows in plain words.

Needs the extra `postgres` where a PostgreSQL store is proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.store import check
from piecework.store.contract import Failure, Silence, nobody
from piecework.store.items import (
    Aborted,
    Accepted,
    Dispatched,
    Enqueued,
    FannedOut,
    Notified,
    PieceAsked,
    PieceFinished,
    PieceRemoved,
    PiecesWoken,
    Progress,
    Raised,
    Registered,
    Retired,
    Signalled,
)
from piecework.store.records import EventRow, Inbox, Notification, Record, Run
from piecework.testing.rows import NOW
from piecework.testing.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import asyncpg

    from piecework.store.contract import Decide, Store, Verb

_NUMBERS = frozenset({"seq", "event_seq", "inbox_seq"})


@dataclass(frozen=True, slots=True)
class Call:
    """A verb with a batch of items, as one node would submit it.

    Attributes:
        verb: Called anew for every attempt.
        items: Its batch.
        decide: The fold.
        now: The moment it is told, in microseconds since the epoch.
    """

    verb: Verb
    items: Sequence[Any]
    decide: Decide
    now: int = NOW

    @property
    def name(self) -> str:
        """The verb's name."""
        return str(getattr(self.verb, "__name__", self.verb))


class ConnectionStore:
    """A PostgreSQL store on one connection: each item is a batch, each batch a transaction, nothing is tried again.

    Args:
        connection: Set up like a store's, in no transaction; nobody else may use it meanwhile.
    """

    shared = True
    clock_offset = 0
    url = "postgresql://proof"

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    async def open(self) -> None:
        """Does nothing: the connection is there."""

    async def close(self) -> None:
        """Does nothing: the connection is its owner's."""

    async def run(
        self, verb: Verb, item: Any, decide: Decide, now: int, then: Callable[[Any], None] | None = None
    ) -> Any:
        """Commits one item and answers its outcome.

        Raises:
            PieceworkError: What the decision raised.
            asyncpg.PostgresError: The server refused; nothing was written.
        """
        (outcome,) = await self.batch(Call(verb, [item], decide, now))
        if isinstance(outcome, Failure):
            raise outcome.error
        if then is not None:
            then(outcome)
        return outcome

    async def batch(self, call: Call) -> list[Any]:
        """Commits a batch and answers its outcomes.

        Raises:
            asyncpg.PostgresError: The server refused; nothing was written.
        """
        from piecework.store.postgres_requests import Transaction

        transaction = Transaction(self._connection)
        await transaction.begin()
        try:
            outcomes = await transaction.drive(call.verb(call.items, call.decide, call.now))
            await transaction.commit()
        except BaseException:
            await transaction.rollback()
            raise
        return outcomes

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query.

        Raises:
            asyncpg.PostgresError: The server refused.
        """
        from piecework.store.contract import Read
        from piecework.store.postgres_requests import select

        return await select(self._connection, Read(name, params, into))

    def heartbeat(
        self,
        beat: Callable[[], tuple[Verb, Any, Decide]],
        *,
        every_seconds: float,
        stall_seconds: float,
        on_held: Callable[[float], None] = nobody,
    ) -> Silence:
        """Nothing: a proof renews no lease by itself."""
        del beat, every_seconds, stall_seconds, on_held
        return Silence()

    def listen(self, hear: Callable[[frozenset[str]], None]) -> None:
        """Never calls `hear`."""


async def check_everything(store: Store) -> None:
    """Fails when what stands in a store cannot be, by the rules of `store check`.

    Raises:
        AssertionError: With every contradiction, one a line.
    """
    found = [finding for finding in await check.check(store) if finding.rule not in _NOT_HERE]
    if found:
        lines = (f"{finding.rule}: {finding.subject} {finding.message}" for finding in found)
        raise AssertionError("the store contradicts itself:\n" + "\n".join(lines))


_NOT_HERE = frozenset({"owner_without_node"})
"""A rule about nodes, which most proofs do without."""


def told(rows: Mapping[type[Record], Sequence[Record]]) -> dict[str, list[Record]]:
    """What stands in a store, comparable: what it numbers is numbered from 1, whatever was rolled back in between."""
    events = {row.seq: position for position, row in enumerate(rows.get(EventRow, ()), 1) if isinstance(row, EventRow)}
    told = (row for row in rows.get(Notification, ()) if isinstance(row, Notification))
    left = (row for row in rows.get(Inbox, ()) if isinstance(row, Inbox))
    numbers: dict[type[Record], dict[int | None, int]] = {
        Notification: {row.seq: position for position, row in enumerate(told, 1)},
        Inbox: {row.inbox_seq: position for position, row in enumerate(left, 1)},
    }
    return {
        record.table: sorted(
            (_renumbered(row, numbers.get(record, events)) for row in found), key=lambda row: repr(row.identity())
        )
        for record, found in rows.items()
    }


def difference(before: Mapping[str, Sequence[Record]], after: Mapping[str, Sequence[Record]]) -> str:
    """What is not the same in two stores, one row a line; empty when nothing is."""
    lines: list[str] = []
    for table in before:
        lines += [f"- {row}" for row in before[table] if row not in after[table]]
        lines += [f"+ {row}" for row in after[table] if row not in before[table]]
    return "\n".join(lines)


def _renumbered(row: Record, numbers: Mapping[int | None, int]) -> Record:
    mine = {name: numbers.get(getattr(row, name)) for name in _NUMBERS if getattr(row, name, None) is not None}
    return replace(row, **mine) if mine else row


class _NotedError(Exception):
    """Carries a call that was noted down instead of made."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.name)
        self.call = call


class _Notebook:
    """Stands where a store should be, and only notes what it is asked."""

    async def run(self, verb: Verb, item: Any, decide: Decide, now: int) -> Any:
        """Notes a call down."""
        raise _NotedError(Call(verb, [item], decide, now))


class Later:
    """The words of `Verbs`, each of which answers the call that it stands for instead of making it.

        later = Later(verbs)
        calls = [later.publish("order.paid"), later.resume(run.run_id)]

    Args:
        verbs: Its moment is that of the calls.
    """

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    def __getattr__(self, name: str) -> Callable[..., Call]:
        def note(*args: Any, **kwargs: Any) -> Call:
            noting = Verbs(_Notebook())  # type: ignore[arg-type]  # nothing else of a store is used
            noting.now = self._verbs.now
            try:
                getattr(noting, name)(*args, **kwargs).send(None)
            except _NotedError as noted:
                return noted.call
            raise TypeError(f"`{name}` is no verb")

        return note


def together(*calls: Call) -> Call:
    """One batch of what several calls of one verb ask for."""
    return replace_items(calls[0], [item for call in calls for item in call.items])


def replace_items(call: Call, items: Sequence[Any]) -> Call:
    """The same call with other items."""
    return Call(call.verb, items, call.decide, call.now)


def in_words(outcomes: Sequence[Sequence[Any]]) -> str:
    """What came of some calls: their outcomes in a word each, calls parted by bars."""
    return " | ".join(" ".join(map(_word, batch)) for batch in outcomes)


def _word(outcome: Any) -> str:
    match outcome:
        case Failure(error):
            return str(getattr(error, "code", None) or type(error).__name__)
        case Accepted(dispatched=results, duplicate=duplicate):
            return "duplicate" if duplicate else "+".join(result.outcome for result in results) or "nobody"
        case Dispatched(decided=False):
            return "undecided"
        case Dispatched(dispatched=results) | FannedOut(dispatched=results):
            return "+".join(result.outcome for result in results) or "nobody"
        case Progress(outcome=word):
            return word
        case Run():
            return "woken"
        case Aborted(aborted=False):
            return "late"
        case Aborted(ended=ended):
            return "ended" if ended else "told"
        case Enqueued(duplicate=duplicate):
            return "duplicate" if duplicate else "queued"
        case Notified(duplicate=duplicate, woken=woken):
            return "duplicate" if duplicate else "woken" if woken else "kept"
        case Registered(added=added):
            return "added" if added else "known"
        case PieceRemoved(aborting=aborting):
            return "removed" if aborting is None else "told"
        case PiecesWoken(decided=decided, run_ids=run_ids):
            return f"{len(run_ids)} woken" if decided else "undecided"
        case Signalled(delivered=word) | PieceFinished(status=word) | PieceAsked(run_id=word):
            return word
        case Raised(started=number) | Retired(dropped=number):
            return str(number)
        case list():
            return f"{len(outcome)} runs"
    return str(outcome)
