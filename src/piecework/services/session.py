"""What a connection to the application's database can do, whichever engine it is of.

A caller that is cancelled in the middle stops the statement and waits until it has ended, so that nothing is written
after it has gone; one that is cancelled again leaves at once, and the session is lent again only when it is idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement brought.

    Attributes:
        columns: Names of the columns, in order; empty for a statement without rows.
        rows: The values of each row.
        count: How many rows were changed; -1 where the engine does not tell.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    count: int


class Session(Protocol):
    """One connection; does one thing at a time."""

    @property
    def clean(self) -> bool:
        """Whether it can be lent again as it is: idle, in no transaction, as it was opened."""
        ...

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more."""
        ...

    @property
    def failed(self) -> str:
        """What a failed statement took along: nothing (empty), what was begun last (`inner`), or everything (`all`)."""
        ...

    async def execute(self, statement: sa.Executable, params: Mapping[str, Any] | None = None) -> Answer:
        """Runs one statement; it commits by itself where no transaction was begun."""
        ...

    async def begin(self) -> None:
        """Begins a transaction, or inside of one a savepoint."""
        ...

    async def commit(self) -> None:
        """Ends what was begun last and keeps it."""
        ...

    async def rollback(self) -> None:
        """Ends what was begun last and undoes it."""
        ...

    async def reflect(self) -> list[sa.Table]:
        """Reads which tables there are."""
        ...

    async def settle(self) -> None:
        """Waits for what its last caller left behind and undoes it; afterwards it is clean, or lost."""
        ...

    async def close(self) -> None:
        """Ends it in order."""
        ...

    def abandon(self) -> None:
        """Ends it without waiting."""
        ...


class Backend(Protocol):
    """How an engine's sessions are opened, and what its errors mean.

    Attributes:
        url: Where the database is, without secrets.
        dialect: `sqlite` or `postgresql`.
        one_writer: Whether only one transaction at a time can write.
    """

    url: str
    dialect: str
    one_writer: bool

    async def connect(self) -> Session:
        """Opens one more session."""
        ...

    def kind_of(self, error: Exception) -> tuple[str, str]:
        """What an error of the driver means: `duplicate`, `invalid` or `trouble`; and what to do about it."""
        ...
