"""What an engine must do: carry out requests inside one transaction, and group what arrives together.

A verb is handed to the engine with its items; the engine drives the verb's generator, answering each request:
`Lock` and `Read` with rows, `InsertMissing` with the rows that were inserted, the writes with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from piecework.store.records import Record


@dataclass(frozen=True, slots=True)
class Lock:
    """Locks rows of a table in the order of their keys and answers them; missing keys are simply not there."""

    record: type[Record]
    keys: Sequence[tuple[object, ...]]
    share: bool = False
    """Whether others may lock the rows for sharing too; nobody may change them meanwhile."""


@dataclass(frozen=True, slots=True)
class Read:
    """Runs a named query (`sql/NAME.sql`) and answers its rows, as records when `into` names the class.

    An engine may have a text of its own, `sql/NAME.ENGINE.sql`, where the common one cannot say it.
    """

    name: str
    params: dict[str, Any]
    into: type[Record] | None = None


@dataclass(frozen=True, slots=True)
class Insert:
    """Inserts rows of one table; a key that exists fails the transaction."""

    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class InsertMissing:
    """Inserts the rows whose `unique` column is not there yet and answers those, as the store has them.

    They are inserted in the order of that column, which is the order of locks; what the store numbers (`serial`) it
    numbers in the order in which they were given.
    """

    records: Sequence[Record]
    unique: str


@dataclass(frozen=True, slots=True)
class Put:
    """Inserts rows, or replaces those whose key is there."""

    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Update:
    """Replaces rows by key; fails the transaction when one is missing."""

    records: Sequence[Record]
    columns: tuple[str, ...] | None = None
    """The only ones that differ from what stands there, and so are written; None where any may."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes rows by key."""

    record: type[Record]
    keys: Sequence[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """Runs a named statement (`sql/NAME.sql`) that changes or deletes rows and answers nothing."""

    name: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Rolls back and runs the verb anew: what was peeked at has changed."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Tells the other processes of this store, after the commit, what they may want to look at.

    Nothing depends on its arrival: who waits looks by itself now and then. Topics: `due` (there is work to claim),
    `inbox`, `pending` (events wait for their workflows), `run:ID` (a run paused or ended), `abort:OWNER:ID`,
    `signal:OWNER:ID`.
    """

    topics: Sequence[str]


Request: TypeAlias = Lock | Read | Insert | InsertMissing | Put | Update | Delete | Change | StartAgain | Tell


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of an item that could not be decided; the caller gets its error raised."""

    error: BaseException


Script: TypeAlias = Generator[Request, Any, list[Any]]
Decide: TypeAlias = Callable[[Any, Any, int], Any]
Verb: TypeAlias = Callable[[Sequence[Any], Decide, int], Script]
"""A verb: called with a batch of items, the fold that decides each, and the moment; yields requests."""


class Heartbeat(Protocol):
    """What keeps saying that a node lives."""

    async def start(self) -> None:
        """Says it, and from now on again and again."""
        ...

    async def stop(self) -> None:
        """Says it no more. Stopping twice is harmless."""
        ...


def nobody(_moment: float) -> None:
    """Wants to hear of no heartbeat."""


class Silence:
    """A heartbeat that says nothing."""

    async def start(self) -> None:
        """Nothing has to be said."""

    async def stop(self) -> None:
        """Nothing was said."""


class Store(Protocol):
    """An engine. Every method may be called from the event loop that opened it."""

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes may be nodes of it at the same time; if not, a lock proves every other one dead."""
        ...

    @property
    def clock_offset(self) -> int:
        """What has to be added to this machine's wall clock to get the store's, in microseconds."""
        ...

    async def open(self) -> None:
        """Takes possession, creates or migrates the schema.

        Raises:
            StoreLockedError: Another process is the node; the message names its pid.
            StoreFormatError: It is there but not ours; untouched.
            SchemaVersionError: It was written by a newer version; untouched.
            StoreUnavailableError: It cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Finishes what was submitted, then lets go. Closing twice is harmless."""
        ...

    async def run(
        self, verb: Verb, item: Any, decide: Decide, now: int, then: Callable[[Any], None] | None = None
    ) -> Any:
        """Submits one item of a verb and returns its outcome once it is durable.

        `then` is called on the loop with the outcome as soon as there is one, also when the caller has been cancelled
        meanwhile: what must follow a commit belongs there.

        Items of one verb and one `decide` that arrive together share a transaction.

        Raises:
            StoreError: It could not be written; nothing of the item was.
            StoreUnavailableError: The store was lost in mid-commit and did not come back in time: whether the item was
                written is unknown. Submitting it again is harmless.
            PieceworkError: What the decision raised for this item.
        """
        ...

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query outside of any verb, on a connection for readers."""
        ...

    def listen(self, hear: Callable[[frozenset[str]], None]) -> None:
        """Has `hear` called on the loop with the topics that other processes have told.

        An engine of one process never calls it. Where topics may have been missed it is called with `*`.
        """
        ...

    def heartbeat(
        self,
        beat: Callable[[], tuple[Verb, Any, Decide]],
        *,
        every_seconds: float,
        stall_seconds: float,
        on_held: Callable[[float], None] = nobody,
    ) -> Heartbeat:
        """What renews a node's lease from a thread of its own, so that a briefly blocked loop loses nothing.

        Args:
            beat: Makes the verb that says so, its item and decision; called in that thread.
            every_seconds: How often.
            stall_seconds: After how long without a turn of the opener's loop it says nothing any more.
            on_held: Called in that thread each time it has been said durably, with the moment before it was begun, in
                seconds of CLOCK_BOOTTIME.
        """
        ...
