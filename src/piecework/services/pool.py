"""The pool that lends connections to the application's database: for a statement, or for a transaction.

A lease ends when its work has ended, not when the caller stops waiting. Who waits for a connection while it holds one,
as a transaction does whose body opens a workspace that asks the database, may wait for ever: when all connections are
held by such, the last to come is refused at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from piecework.errors import ClosedError, PoolExhaustedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from piecework.services.session import Backend, Session

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Lease:
    """A connection that somebody has.

    Attributes:
        session: The connection; nobody else uses it.
        holder: Who has it, in words for errors.
        task: The task that took it.
        blocked: How many times its own task waits for another connection.
    """

    session: Session
    holder: str
    task: asyncio.Task[object] | None = field(default_factory=asyncio.current_task)
    blocked: int = 0


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What a pool is doing.

    Attributes:
        size: The most connections there ever are.
        leased: How many are in use.
        idle: How many are open and free.
        waiting: How many callers wait for one.
        leases: How many times one was lent since the pool was made.
    """

    size: int
    leased: int
    idle: int
    waiting: int
    leases: int


class Pool:
    """Lends connections, at most `size` at once; opens them on demand and keeps them.

    Args:
        backend: Opens them.
        size: The most connections there ever are; further callers wait their turn.
        wait_seconds: How long they wait.
    """

    def __init__(self, backend: Backend, *, size: int, wait_seconds: float = 30) -> None:
        self._backend = backend
        self._size = size
        self._wait_seconds = wait_seconds
        self._permits = asyncio.Semaphore(size)
        self._idle: list[Session] = []
        self._leases: set[Lease] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Lock()
        self._closed = False
        self._waiting = 0
        self._lent = 0

    @property
    def status(self) -> PoolStatus:
        """What it is doing now."""
        return PoolStatus(self._size, len(self._leases), len(self._idle), self._waiting, self._lent)

    async def run(self, work: Callable[[Session], Awaitable[T]], *, holder: str, held: Sequence[Lease] = ()) -> T:
        """Leases a connection for what `work` does with it.

        Args:
            work: What to do.
            holder: Who does it, in words.
            held: The leases that the caller has already, outermost first.

        Raises:
            ClosedError: The pool was closed.
            PoolExhaustedError: No connection came free, or none can.
        """
        lease = await self.lease(holder=holder, held=held)
        try:
            return await work(lease.session)
        finally:
            self.release(lease)

    async def lease(self, *, holder: str, held: Sequence[Lease] = ()) -> Lease:
        """Gives a connection until `release`; arguments and errors as of `run`."""
        if self._permits.locked():
            await self._wait(holder, held)
        else:
            await self._permits.acquire()
        try:
            if self._closed:
                raise ClosedError(
                    f"the database {self._backend.url} was closed: its app has stopped", url=self._backend.url
                )
            session = self._take() or await self._backend.connect()
        except BaseException:
            self._permits.release()
            raise
        lease = Lease(session, holder)
        self._leases.add(lease)
        self._lent += 1
        return lease

    def release(self, lease: Lease) -> None:
        """Takes a connection back; what its holder left behind is undone before it is lent again."""
        if lease.session.clean:
            self._put_back(lease)
            return
        task = asyncio.get_running_loop().create_task(self._settle(lease), name="piecework-database-settle")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def close(self) -> None:
        """Waits for the leases, closes every connection; again is nothing."""
        self._closed = True
        async with self._closing:
            taken = 0
            try:
                for _ in range(self._size):
                    await self._permits.acquire()
                    taken += 1
                while self._idle:
                    await self._idle.pop().close()
            finally:
                for _ in range(taken):
                    self._permits.release()

    def _take(self) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if not session.lost:
                return session
            session.abandon()
        return None

    async def _wait(self, holder: str, held: Sequence[Lease]) -> None:
        task = asyncio.current_task()
        mine = [lease for lease in held if lease.task is task]
        for lease in mine:
            lease.blocked += 1
        self._waiting += 1
        try:
            if len(self._leases) >= self._size and all(lease.blocked for lease in self._leases):
                raise self._exhausted(holder, held, "they wait for each other")
            async with asyncio.timeout(self._wait_seconds):
                await self._permits.acquire()
        except TimeoutError as error:
            if isinstance(error, PoolExhaustedError):
                raise
            raise self._exhausted(holder, held, f"none came free in {self._wait_seconds:g} s") from None
        finally:
            self._waiting -= 1
            for lease in mine:
                lease.blocked -= 1

    def _exhausted(self, holder: str, held: Sequence[Lease], why: str) -> PoolExhaustedError:
        chain = " -> ".join([*(lease.holder for lease in held), holder])
        holders = sorted({lease.holder for lease in self._leases})
        return PoolExhaustedError(
            f"no connection for {chain}: all {self._size} are held ({', '.join(holders)}), and {why}. Ask the database "
            "before or after the transaction instead of inside it, or raise database_pool_size",
            chain=[*(lease.holder for lease in held), holder],
            holders=holders,
            size=self._size,
        )

    async def _settle(self, lease: Lease) -> None:
        try:
            await lease.session.settle()
        except Exception:  # noqa: BLE001 - whose fault it was has been told; a connection in doubt is not lent again
            lease.session.abandon()
            self._leases.discard(lease)
            self._permits.release()
        else:
            self._put_back(lease)

    def _put_back(self, lease: Lease) -> None:
        if lease.session.lost:
            lease.session.abandon()
        else:
            self._idle.append(lease.session)
        self._leases.discard(lease)
        self._permits.release()
