"""Named locks of an application's database: one holder of a name among tasks, workspaces and processes.

In a process whoever waits comes to its turn in the order of asking; between processes the database, or a file beside
it, decides. The task that holds a lock in a workspace may take it again there. What can never come is refused at once:
the same task in another workspace, and circles of tasks that wait for each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import DeadlockError, TimeoutExceededError, ValidationError
from piecework.services.finishing import finished

if TYPE_CHECKING:
    from types import TracebackType

    from piecework.services.access import Access

FIRST_TRY_AGAIN_SECONDS = 0.01
TRY_AGAIN_SECONDS = 0.1
"""How often a lock that another process holds is asked for."""

LOOK_SECONDS = 1
"""How long it may take to find out who has a lock that did not come in time."""


class External(Protocol):
    """What excludes other processes, and goes when this one does."""

    async def take(self, name: str, holder: str) -> bool:
        """Takes a lock that nobody of this process has; False when another process has it."""
        ...

    async def give_back(self, name: str) -> None:
        """Gives a lock back; nothing happens when it was not taken."""
        ...

    async def holder(self, name: str) -> str:
        """Who has it, in words; for errors."""
        ...

    async def close(self) -> None:
        """Gives everything back."""
        ...


@dataclass(eq=False, slots=True)
class Hold:
    """Somebody who has a lock, or waits for it.

    Attributes:
        access: The workspace's way to the database.
        task: Whose it is.
        count: How many times it was taken.
    """

    access: Access
    task: asyncio.Task[object] | None
    count: int = 1

    @property
    def words(self) -> str:
        """Who it is, for errors."""
        return f"{self.access.who} (task {self.task.get_name() if self.task else '?'})"


@dataclass(eq=False, slots=True)
class _Slot:
    holder: Hold
    queue: deque[tuple[Hold, asyncio.Future[None]]] = field(default_factory=deque)


class Locks:
    """The locks of one database, in this process.

    Args:
        external: What excludes other processes.
    """

    def __init__(self, external: External) -> None:
        self._external = external
        self._slots: dict[str, _Slot] = {}
        self._awaited: dict[asyncio.Task[object], str] = {}

    @property
    def held(self) -> dict[str, str]:
        """Who has which lock in this process."""
        return {name: slot.holder.words for name, slot in self._slots.items()}

    async def acquire(self, access: Access, name: str, timeout_seconds: float) -> Hold:
        """Waits for a lock; arguments and errors as of `WorkspaceDatabase.lock`."""
        me = Hold(access, asyncio.current_task())
        slot = self._slots.get(name)
        if slot is not None and slot.holder.task is me.task and me.task is not None:
            if slot.holder.access is access:
                slot.holder.count += 1
                return slot.holder
            raise _deadlock(name, slot.holder, me, "it is awaited by the holder itself")
        self._refuse_circle(name, me)
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                await self._take(name, me)
        except TimeoutError:
            if not limit.expired():
                raise
            raise await self._late(name, me, timeout_seconds) from None
        return me

    async def release(self, name: str, hold: Hold) -> None:
        """Gives a lock back as often as it was taken."""
        hold.count -= 1
        if not hold.count:
            try:
                await finished(self._external.give_back(name))
            finally:
                self._pass_on(name)

    async def close(self) -> None:
        """Gives everything back."""
        await self._external.close()

    async def _take(self, name: str, me: Hold) -> None:
        slot = self._slots.get(name)
        if slot is None:
            self._slots[name] = _Slot(me)
        else:
            await self._queue(name, slot, me)
        pause = FIRST_TRY_AGAIN_SECONDS
        try:
            while not await finished(self._external.take(name, me.words)):
                await asyncio.sleep(pause)
                pause = min(2 * pause, TRY_AGAIN_SECONDS)
        except BaseException:
            try:
                await finished(self._external.give_back(name))
            finally:
                self._pass_on(name)
            raise

    async def _queue(self, name: str, slot: _Slot, me: Hold) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slot.queue.append((me, turn))
        if me.task is not None:
            self._awaited[me.task] = name
        try:
            await turn
        except BaseException:
            if slot.holder is me:  # the turn came together with the cancel
                self._pass_on(name)
            else:
                slot.queue.remove((me, turn))
            raise
        finally:
            if me.task is not None:
                self._awaited.pop(me.task, None)

    def _pass_on(self, name: str) -> None:
        slot = self._slots[name]
        while slot.queue:
            slot.holder, turn = slot.queue.popleft()
            if not turn.done():
                if slot.holder.task is not None:
                    self._awaited.pop(slot.holder.task, None)  # at once: one that holds what it awaits is a circle
                turn.set_result(None)
                return
        del self._slots[name]

    def _refuse_circle(self, name: str, me: Hold) -> None:
        wanted: str | None = name
        while wanted is not None and (slot := self._slots.get(wanted)) is not None:
            if slot.holder.task is None:
                return
            if slot.holder.task is me.task:
                raise _deadlock(name, self._slots[name].holder, me, f"it waits for {wanted!r}, which the caller holds")
            wanted = self._awaited.get(slot.holder.task)

    async def _late(self, name: str, me: Hold, timeout_seconds: float) -> TimeoutExceededError:
        slot = self._slots.get(name)
        holder = await self._elsewhere(name) if slot is None else slot.holder.words
        return TimeoutExceededError(
            f"lock {name!r} did not come free for {me.words} in {timeout_seconds:g} s: held by {holder}. Wait for "
            "longer with timeout_seconds, or hold it for less",
            lock=name,
            holder=holder,
            waiter=me.words,
        )

    async def _elsewhere(self, name: str) -> str:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self._external.holder(name)
        except Exception:  # noqa: BLE001 - that it did not come in time is what is told
            return "another process"


class LockScope:
    """Holds a lock for the body of an `async with`."""

    __slots__ = ("_access", "_hold", "_name", "_timeout_seconds")

    def __init__(self, access: Access, name: str, timeout_seconds: float) -> None:
        if not isinstance(name, str) or not name or len(name) > 200:
            raise ValidationError("the name of a lock is a text of 1 to 200 characters", name=repr(name)[:80])
        if not timeout_seconds > 0:
            raise ValidationError(f"timeout_seconds is {timeout_seconds}: a positive number of seconds is needed")
        self._access = access
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._hold: Hold | None = None

    async def __aenter__(self) -> None:
        self._access.check_open()
        database = self._access.database
        try:
            self._hold = await database.locks.acquire(self._access, self._name, self._timeout_seconds)
        except Exception as error:  # noqa: BLE001 - explain() raises it again, in our words
            database.explain(error, "lock", repr(self._name))

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold, self._hold = self._hold, None
        assert hold is not None, "entered once, left once"
        database = self._access.database
        try:
            await database.locks.release(self._name, hold)
        except Exception as failure:  # noqa: BLE001 - explain() raises it again, in our words
            database.explain(failure, "give back lock", repr(self._name))


def _deadlock(name: str, holder: Hold, waiter: Hold, why: str) -> DeadlockError:
    data: dict[str, Any] = {"lock": name, "holder": holder.words, "waiter": waiter.words}
    return DeadlockError(
        f"lock {name!r} can never come free for {waiter.words}: held by {holder.words}, and {why}. Take it in one of "
        "them only, or spawn the child instead of awaiting it",
        **data,
    )
