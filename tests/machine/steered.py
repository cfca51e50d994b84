"""A store that does one operation at a time, in an order that the test draws, and at any of them its node can die."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError
from piecework.store.contract import Failure, nobody
from piecework.store.draft import Draft
from piecework.store.records import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from piecework.store.contract import Decide, Store, Verb
    from piecework.store.records import Record

    from .loop import LoopClock


@dataclass(eq=False)
class Operation:
    """A read or a commit that somebody waits for."""

    name: str
    act: Callable[[Store], Awaitable[Any]]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None = None

    def answer(self, outcome: Any) -> None:
        """Hands over what it came to, as an engine does: what has to follow a commit follows, whoever still waits."""
        if self.then is not None and not isinstance(outcome, Failure):
            self.then(outcome)
        if self.future.done():
            return
        if isinstance(outcome, Failure):
            self.future.set_exception(outcome.error)
            self.future.exception()
        else:
            self.future.set_result(outcome)


@dataclass(eq=False)
class CommitLog:
    """The decision entries of all timelines, in the order of their commits."""

    entries: list[Entry] = field(default_factory=list)
    _fresh: dict[int, list[Entry]] = field(default_factory=dict)
    _folds: dict[Decide, Decide] = field(default_factory=dict)

    def begin(self) -> None:
        """A transaction begins; what one before it decided and did not commit never was."""
        self._fresh.clear()

    def commit(self) -> None:
        """What was decided is durable."""
        self.entries += [entry for entries in self._fresh.values() for entry in entries]
        self._fresh.clear()

    def watched(self, decide: Decide) -> Decide:
        """A fold that does the same and is looked at; the same one for the same fold, as batches go by it."""
        if decide not in self._folds:

            def fold(draft: Any, item: Any, now: int) -> Any:
                if not isinstance(draft, Draft):
                    return decide(draft, item, now)
                grown = len(draft._appended)
                outcome = decide(draft, item, now)
                added = draft._appended[grown:]
                self._fresh[id(item)] = [row for row in added if isinstance(row, Entry) and row.ordinal == 0]
                return outcome

            self._folds[decide] = fold
        return self._folds[decide]


class SteeredStore:
    """What one node has of a store. Everything that it asks for waits in `pending` until `step` does it.

    Args:
        inner: The engine, open; it outlives its nodes.
        clock: The virtual one.
        order: Draws which operation is next; None takes them as they come.
        log: Told of every commit.
    """

    def __init__(self, inner: Store, clock: LoopClock, order: Random | None, log: CommitLog) -> None:
        self.inner = inner
        self.url, self.shared, self.clock_offset = inner.url, inner.shared, 0
        self.dead = False
        self.pending: list[Operation] = []
        self.count = 0
        self._clock = clock
        self._order = order
        self._log = log
        self._heart: Heart | None = None

    async def open(self) -> None:
        """It is open."""

    async def close(self) -> None:
        """Whoever made the engine closes it."""

    async def run(
        self, verb: Verb, item: Any, decide: Decide, now: int, then: Callable[[Any], None] | None = None
    ) -> Any:
        """Submits one item of a verb; waits until it is its turn."""
        fold = self._log.watched(decide)

        async def act(inner: Store) -> Any:
            self._log.begin()
            outcome = await inner.run(verb, item, fold, now)
            self._log.commit()
            return outcome

        return await self._wait(getattr(verb, "__name__", "verb"), act, then)

    async def read(self, name: str, params: dict[str, Any], into: type[Record] | None = None) -> list[Any]:
        """Runs a named query; waits until it is its turn."""
        found: list[Any] = await self._wait(f"read {name}", lambda inner: inner.read(name, params, into))
        return found

    def listen(self, hear: Callable[[frozenset[str]], None]) -> None:
        """Nobody is told anything: nothing may depend on it."""

    def heartbeat(
        self,
        beat: Callable[[], tuple[Verb, Any, Decide]],
        *,
        every_seconds: float,
        stall_seconds: float,
        on_held: Callable[[float], None] = nobody,
    ) -> Heart:
        """What says that the node lives, by the virtual clock; nothing where a lock says so."""
        del stall_seconds, on_held
        return Heart(self, beat, every_seconds if self.shared else None)

    async def _wait(
        self, name: str, act: Callable[[Store], Awaitable[Any]], then: Callable[[Any], None] | None = None
    ) -> Any:
        if self.dead:
            raise ClosedError("this node is dead")
        operation = Operation(name, act, asyncio.get_running_loop().create_future(), then)
        self.pending.append(operation)
        return await operation.future

    # -- for whoever steers ------------------------------------------------------------------------------------------

    async def step(self, *, lose: str = "") -> None:
        """Does one of the operations that wait.

        Args:
            lose: "before" forgets it instead, "after" does it and tells nobody.
        """
        chosen = 0 if self._order is None else self._order.randrange(len(self.pending))
        operation = self.pending.pop(chosen)
        self.count += 1
        if lose == "before":
            return
        try:
            outcome = await operation.act(self.inner)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            outcome = Failure(error)
        if not lose:
            operation.answer(outcome)

    def die(self) -> None:
        """From now on it answers nothing, and nothing that waits is done."""
        self.dead = True
        self.pending.clear()

    async def beat_once(self, beat: Callable[[], tuple[Verb, Any, Decide]]) -> None:
        """Says that the node lives."""
        verb, item, decide = beat()
        await self.run(verb, item, decide, self._clock.now())


class Heart:
    """A heartbeat in the node's own loop."""

    def __init__(
        self, store: SteeredStore, beat: Callable[[], tuple[Verb, Any, Decide]], every_seconds: float | None
    ) -> None:
        self._store = store
        self._beat = beat
        self._every_seconds = every_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Says it, and again and again."""
        if self._every_seconds is not None:
            await self._store.beat_once(self._beat)
            self._task = asyncio.create_task(self._run(self._every_seconds))

    async def stop(self) -> None:
        """Says it no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            await self._store.beat_once(self._beat)
