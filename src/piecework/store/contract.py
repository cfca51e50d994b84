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


@dataclass(frozen=True, slots=True)
class Read:
    """Runs a named query (`sql/NAME.sql`) and answers its rows, as records when `into` names the class."""

    name: str
    params: dict[str, Any]
    into: type[Record] | None = None


@dataclass(frozen=True, slots=True)
class Insert:
    """Inserts rows of one table; a key that exists fails the transaction."""

    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class InsertMissing:
    """Inserts the rows whose `unique` column is not there yet and answers those, as the store has them."""

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


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes rows by key."""

    record: type[Record]
    keys: Sequence[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Runs a named deletion (`sql/NAME.sql`)."""

    name: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StartAgain:
    """Rolls back and runs the verb anew: what was peeked at has changed."""


Request: TypeAlias = Lock | Read | Insert | InsertMissing | Put | Update | Delete | DeleteWhere | StartAgain


@dataclass(frozen=True, slots=True)
class Failure:
    """The outcome of an item that could not be decided; the caller gets its error raised."""

    error: BaseException


Script: TypeAlias = Generator[Request, Any, list[Any]]
Decide: TypeAlias = Callable[[Any, Any, int], Any]
Verb: TypeAlias = Callable[[Sequence[Any], Decide, int], Script]
"""A verb: called with a batch of items, the fold that decides each, and the moment; yields requests."""


class Store(Protocol):
    """An engine. Every method may be called from the event loop that opened it."""

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        ...

    async def open(self) -> None:
        """Takes possession, creates or migrates the schema.

        Raises:
            StoreLockedError: Another process is the node; the message names its pid.
            StoreFormatError: It is there but not ours; untouched.
            SchemaVersionError: It was written by a newer version; untouched.
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
            PieceworkError: What the decision raised for this item.
        """
        ...

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query outside of any verb, on a connection for readers."""
        ...
