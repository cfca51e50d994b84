"""One verb of an interleaving, on a connection of its own, stepped from request to request.

What it writes goes with the next thing that it asks for, or with its COMMIT. It is driven as an engine would: what it
raises is its outcome, and where others were in its way, or it says so itself, it starts again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework.store.contract import Failure, InsertMissing, Lock, Read, StartAgain
from piecework.store.postgres_link import is_contended
from piecework.store.postgres_requests import Transaction
from piecework.testing.proof_order import Footprint, Rows, add, footprint, shown

if TYPE_CHECKING:
    import asyncpg

    from piecework.store.contract import Request, Script
    from piecework.testing.proof_calls import Call

_RESTARTS = 10
_DEADLOCK = "40P01"


class Participant:
    """One call on its connection.

    Args:
        number: Its name in a schedule.
        call: Made anew when it starts again.
        connection: In no transaction.

    Attributes:
        task: The step that it is taking; None between steps.
        outcomes: Of its items, once it has committed or failed.
        deadlocks: How often the server has refused it for one.
    """

    def __init__(self, number: int, call: Call, connection: asyncpg.Connection[Any]) -> None:
        self.number = number
        self.call = call
        self.pid = connection.get_server_pid()
        self.task: asyncio.Task[None] | None = None
        self.outcomes: list[Any] | None = None
        self.deadlocks = 0
        self._error: BaseException | None = None
        self._restarts = 0
        self._connection = connection
        self._start()

    def _start(self) -> None:
        self._transaction = Transaction(self._connection)
        self._script: Script = self.call.verb(self.call.items, self.call.decide, self.call.now)
        self._begun = False
        self._sent: list[Request] = []
        self._held: Rows = {}
        self._kept: list[Request] = []
        self._request: Request | None = None
        self._answers: list[Any] | None = None
        self._undo = False
        self._let_go = False
        self._advance(None)

    def _advance(self, answer: Any) -> None:
        """Runs the verb up to the next request that is answered, or to its end."""
        try:
            while True:
                request = self._script.send(answer)
                answer = None
                if isinstance(request, StartAgain):
                    self._undo = True
                    return
                if isinstance(request, Lock | Read | InsertMissing):
                    self._request = request
                    return
                self._kept.append(request)
        except StopIteration as done:
            self._request, self._answers = None, done.value
        except Exception as error:  # noqa: BLE001 - it is the outcome, as in an engine
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._error, self._undo = error, True

    @property
    def free(self) -> bool:
        """Whether it can be stepped."""
        return self.outcomes is None and self.task is None

    @property
    def letting_go(self) -> bool:
        """Whether its last step gave up locks: it committed, was taken back, or failed."""
        return self._let_go

    def mark(self) -> Footprint:
        """What the next step has to do with."""
        if self._undo:
            return Footprint(frees=dict(self._held))
        step = footprint(self._kept, self._request)
        if self._request is None:
            step.shows = shown([*self._sent, *self._kept])
            step.frees = dict(self._held)
            for rows in (step.takes, step.shares):
                for table, keys in rows.items():
                    add(step.frees, table, keys)
        return step

    def told(self) -> str:
        """The next step in words."""
        if self._undo:
            return f"{self.number} {self.call.name}: ROLLBACK ({self._error or 'starts again'})"
        writes = "".join(f"{_words(write)}; " for write in self._kept)
        asks = "COMMIT" if self._request is None else _words(self._request)
        return f"{self.number} {self.call.name}: {writes}{asks}"

    async def step(self) -> None:
        """Takes the next step; may have to wait for others.

        Raises:
            AssertionError: It starts again for ever.
        """
        self._let_go = False
        try:
            await self._take()
        except AssertionError:
            raise
        except Exception as error:  # noqa: BLE001 - it is the outcome, or tried again as an engine does
            self.deadlocks += getattr(error, "sqlstate", None) == _DEADLOCK
            self._held = {}
            self._let_go = True
            self._give_up(error)

    async def _take(self) -> None:
        if self._undo:
            await self._roll_back()
            return
        if not self._begun:
            await self._transaction.begin()
            self._begun = True
        step = footprint(self._kept, self._request)
        for rows in (step.takes, step.shares):
            for table, keys in rows.items():
                add(self._held, table, keys)
        writes, self._kept = self._kept, []
        self._sent += writes
        for write in writes:
            await self._transaction.carry_out(write)
        await self._transaction.flush()
        if self._request is None:
            await self._transaction.commit()
            self.outcomes = self._answers or []
            self._let_go = True
            return
        self._sent.append(self._request)
        self._advance(await self._transaction.carry_out(self._request))

    async def _roll_back(self) -> None:
        if self._begun:
            await self._transaction.rollback()
        error, self._error = self._error, None
        if error is not None and not is_contended(error):
            self.outcomes = [Failure(error) for _ in self.call.items]
            self._let_go = True
            return
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise AssertionError(f"{self.call.name} starts again and again")
        self._start()
        self._let_go = True

    async def abandon(self) -> None:
        """Takes back what an unfinished transaction did."""
        if self.task is not None:
            await asyncio.wait({self.task})
        if self._begun and self.outcomes is None:
            await self._transaction.rollback()


def _words(request: Request) -> str:
    name = getattr(request, "name", None)
    about = name or getattr(getattr(request, "record", None), "table", None)
    keys = getattr(request, "keys", None)
    records = getattr(request, "records", ())
    if records:
        about, keys = records[0].table, [row.identity() for row in records]
    shown_keys = "" if keys is None else f" {sorted(keys, key=repr)}"
    return f"{type(request).__name__} {about or ''}{shown_keys}"
