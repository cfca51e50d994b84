"""Two or three verbs at once on a real PostgreSQL, in every order that can make a difference.

    async with Arena("postgresql://postgres@127.0.0.1/proofs") as arena:
        report = await arena.explore(setup, check)
    assert set(report.endings) == {"resumed | parked", "buffered | resumed"}

Each verb has a connection of its own and is stepped from request to request: what it writes goes with the next thing
that it asks for, or with its COMMIT. Who waits for a lock is not stepped until it has it. After each schedule all that
stands in the store is looked at, and the scenario says what it should have come to. A failure is told with the list of
steps that leads there again: `explore(setup, check, replay=[…])`.

Every row of the schema is deleted between schedules: give it one of its own. Needs the extra `postgres`, and a role
that may set `deadlock_timeout`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from piecework.errors import ValidationError
from piecework.store import proving
from piecework.store.postgres_link import Address, Link
from piecework.store.postgres_schema import migrate_postgres
from piecework.testing.proof_calls import Call, ConnectionStore, check_everything, in_words
from piecework.testing.proof_order import Orders, Replay, Samples
from piecework.testing.proof_participants import Participant
from piecework.testing.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    import asyncpg

    Setup = Callable[[Verbs], Awaitable[Sequence[Call]]]
    Check = Callable[["End"], Awaitable[str | None]]

_LOOK_SECONDS = 0.002
_STUCK_SECONDS = 10
_ANEW = 100
"""After so many schedules what deleted rows leave behind is cleared away."""


@dataclass(frozen=True, slots=True)
class End:
    """What a schedule came to.

    Attributes:
        outcomes: Of each call those of its items; a refused one's is a `Failure`.
        verbs: Speaks to the store as it stands now, and may change it.
    """

    outcomes: tuple[list[Any], ...]
    verbs: Verbs


@dataclass(slots=True)
class Report:
    """What an exploration has seen.

    Attributes:
        schedules: How many were run to their ends.
        endings: How often each came about, by the word that the scenario has for it.
        complete: Whether every order that can make a difference was tried.
        states: How many different ends there were, by all rows and all outcomes.
        strayed: How many schedules went otherwise than they should: the server decided who gets a lock.
    """

    schedules: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    states: int = 0
    complete: bool = False
    strayed: int = 0


class Arena:
    """A schema of its own and a few connections to it, to try schedules in.

    Args:
        url: Of a PostgreSQL store in which nothing stands.
        participants: How many calls there may be at once.

    Raises:
        ValidationError: The address is none.
    """

    def __init__(self, url: str, *, participants: int = 3) -> None:
        self._link = Link(Address.parse(url))
        self._participants = participants
        self._connections: list[asyncpg.Connection[Any]] = []
        self._runs = 0

    async def __aenter__(self) -> Self:
        """Connects and makes the schema.

        Raises:
            ValidationError: Something stands in it.
            StoreError: The server or the role refuses.
        """
        self._watcher = await self._link.first()
        self._connections = [self._watcher]
        try:
            await migrate_postgres(self._watcher, self._link.address.place)
            if any((await proving.dump(self._watcher)).values()):
                raise ValidationError(f"{self._link.address.place.url} holds rows, and a proof would delete them")
            while len(self._connections) <= self._participants:
                self._connections.append(await self._link.connect())
                await proving.be_watched(self._connections[-1])
        except BaseException:
            await self._disconnect()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Empties the schema and disconnects."""
        try:
            if not self._watcher.is_closed():
                await proving.put_back(self._watcher, {})
        finally:
            await self._disconnect()

    async def _disconnect(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def explore(
        self,
        setup: Setup,
        check: Check | None = None,
        *,
        limit: int = 2000,
        samples: int | None = None,
        seed: int = 0,
        replay: Sequence[int] | None = None,
        reduce: bool = True,
    ) -> Report:
        """Runs the calls that `setup` answers in every order that can make a difference, each from the same rows.

        Args:
            setup: Brings the store into its first state and answers the calls.
            check: Raises where a schedule came to what may not be; else answers a word for it, or None for its
                outcomes in a word each. It is asked once for each state with its outcomes.
            limit: Schedules at most; those that differ late come first.
            samples: Instead of all, so many taken at random, for scenarios that have too many.
            seed: Of those.
            replay: Instead of all, this one.
            reduce: Whether to leave out orders that make no difference.

        Raises:
            AssertionError: A schedule ended in a deadlock, in a contradiction, or in what `check` refuses; the message
                has the list to replay.
        """
        await proving.put_back(self._watcher, {}, anew=True)
        verbs = Verbs(ConnectionStore(self._watcher))
        calls = await setup(verbs)
        exploration = _Exploration(self, calls, check, await proving.dump(self._watcher), verbs.now)
        orders: Orders | Samples | Replay = Orders(reduce=reduce)
        if replay is not None:
            orders = Replay(replay)
        elif samples is not None:
            orders = Samples(samples, seed)
        report = Report()
        while report.schedules < limit:
            if await exploration.run(orders, report.endings):
                report.schedules += 1
            report.states, report.strayed = exploration.states, orders.strayed
            if not orders.another():
                report.complete = isinstance(orders, Orders)
                break
        return report

    async def reset(self, rows: proving.Rows) -> None:
        """Puts the store back."""
        self._runs += 1
        await proving.put_back(self._watcher, rows, anew=not self._runs % _ANEW)

    def participants(self, calls: Sequence[Call]) -> list[Participant]:
        """The calls, each on its connection."""
        return [
            Participant(number, call, connection)
            for number, (call, connection) in enumerate(zip(calls, self._connections[1:], strict=False))
        ]

    @property
    def watcher(self) -> asyncpg.Connection[Any]:
        """The connection that takes part in nothing."""
        return self._watcher


class _Exploration:
    """The schedules of one scenario."""

    def __init__(self, arena: Arena, calls: Sequence[Call], check: Check | None, rows: proving.Rows, now: int) -> None:
        self._arena = arena
        self._calls = calls
        self._check = check
        self._rows = rows
        self._now = now
        self._known: dict[tuple[str, str], str] = {}
        self._taken: list[int] = []
        self._told: list[str] = []

    @property
    def states(self) -> int:
        """How many different ends there were."""
        return len(self._known)

    async def run(self, orders: Orders | Samples | Replay, endings: Counter[str]) -> bool:
        """Runs one schedule; False when it was left because nothing new could come of it."""
        await self._arena.reset(self._rows)
        self._taken, self._told = [], []
        everybody = self._arena.participants(self._calls)
        try:
            if not await self._walk(everybody, orders):
                return False
            endings[await self._look(everybody)] += 1
        except AssertionError as error:
            steps = "\n  ".join(self._told)
            raise AssertionError(f"{error}\nreplay={self._taken}\n  {steps}") from error
        finally:
            for participant in everybody:
                await participant.abandon()
        return True

    async def _walk(self, everybody: list[Participant], orders: Orders | Samples | Replay) -> bool:
        while any(one.outcomes is None for one in everybody):
            nexts = {one.number: one.mark() for one in everybody if one.free}
            if not nexts:
                await self._break_ring(everybody)
                continue
            chosen = orders.choose(nexts)
            if chosen is None:
                return False
            self._taken.append(chosen)
            self._told.append(everybody[chosen].told())
            await self._step(everybody, everybody[chosen], orders)
        return True

    async def _step(self, everybody: list[Participant], one: Participant, orders: Orders | Samples | Replay) -> None:
        one.task = asyncio.get_running_loop().create_task(one.step())
        await self._settle([one])
        if one.task is not None:
            self._told[-1] += " … waits"
            return
        let_go = one.letting_go
        while let_go and (waiting := [other for other in everybody if other.task is not None]):
            await self._settle(waiting)
            woken = [other for other in waiting if other.task is None]
            for other in woken:
                self._told.append(f"  ({other.number} goes on)")
                orders.woken(other.number, one.number)
            let_go = any(other.letting_go for other in woken)  # it failed, and others may have waited for it

    async def _settle(self, some: list[Participant]) -> None:
        """Waits until each has taken its step or waits for somebody else."""
        deadline = asyncio.get_running_loop().time() + _STUCK_SECONDS
        while True:
            tasks = {one.task for one in some if one.task is not None}
            done, pending = await asyncio.wait(tasks, timeout=_LOOK_SECONDS) if tasks else (set(), set())
            for one in some:
                if one.task in done:
                    one.task.result()
                    one.task = None
            if not pending:
                return
            left = [one.pid for one in some if one.task is not None]
            if await proving.waiting(self._arena.watcher, left) == set(left) and not any(
                one.task is not None and one.task.done() for one in some
            ):
                return
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"a step takes more than {_STUCK_SECONDS} seconds and waits for nobody")

    async def _break_ring(self, everybody: list[Participant]) -> None:
        """Everybody waits: the server has to find out and refuse one of them."""
        tasks = {one.task for one in everybody if one.task is not None}
        done, _ = await asyncio.wait(tasks, timeout=_STUCK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise AssertionError("everybody waits, and the server sees no deadlock: somebody else has a lock")
        refused = [one.call.name for one in everybody if one.deadlocks]
        raise AssertionError(f"deadlock: {' and '.join(refused) or 'nobody'} was refused")

    async def _look(self, everybody: list[Participant]) -> str:
        refused = [one.call.name for one in everybody if one.deadlocks]
        if refused:
            raise AssertionError(f"deadlock: {' and '.join(refused)} was refused")
        outcomes = tuple(one.outcomes or [] for one in everybody)
        state = (await proving.digest(self._arena.watcher), repr(outcomes))
        if state not in self._known:
            store = ConnectionStore(self._arena.watcher)
            await check_everything(store)
            verbs = Verbs(store)
            verbs.now = self._now
            word = None if self._check is None else await self._check(End(outcomes, verbs))
            self._known[state] = word or in_words(outcomes)
        return self._known[state]


async def explore(url: str, setup: Setup, check: Check | None = None, **options: Any) -> Report:
    """Explores one scenario in an arena of its own; see `Arena.explore`.

    Raises:
        AssertionError: A schedule failed.
    """
    async with Arena(url) as arena:
        return await arena.explore(setup, check, **options)
