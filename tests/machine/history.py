"""One history: a store, the nodes that come and go on it, the calls of clients, and what is true at every moment."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from piecework import App, Settings, roles
from piecework.errors import ClosedError, ConflictError, StoppedError
from piecework.store.check import check

from .loop import LoopClock, VirtualLoop
from .steered import CommitLog, SteeredStore
from .truth import Truth
from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from piecework.store.contract import Store

SETTINGS = Settings(lease_seconds=30, heartbeat_seconds=10, abort_grace_seconds=2, close_timeout_seconds=2)
_TROUBLE = frozenset({"node.trouble", "run.lost", "observer.failed", "predicate.failed", "workspace.close_failed"})
_PATIENCE = 50
_FOUND_SECONDS = SETTINGS.lease_seconds / 3
"""After so long a node has found what others have committed, told of it or not."""


@dataclass(eq=False)
class Call:
    """What a client asks of the runtime; asked again of the next node when one dies before it answers."""

    what: str
    make: Callable[[App], Coroutine[Any, Any, Any]]
    done: Callable[[Any], None]
    calm: bool = True
    task: asyncio.Task[Any] | None = None


@dataclass(frozen=True, slots=True)
class Death:
    """When a node dies: at which operation from now on, and whether that one is committed first."""

    after: int
    lose: str


class Complaints(logging.Handler):
    """Collects the log lines that no history may have."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []
        self.deaf = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        event = getattr(record.msg, "event", str(record.msg))
        if not self.deaf and event in _TROUBLE:
            self.told.append(str(record.msg))


@dataclass(eq=False)
class History:
    """Steers everything that happens on one store.

    Args:
        loop: Its own.
        connect: Opens the engine; called again after each death where the engine is a node's own.
        seed: Of the order of operations; 0 takes them as they come.
    """

    loop: VirtualLoop
    connect: Callable[[LoopClock], Coroutine[Any, Any, Store]]
    seed: int
    world: World = field(default_factory=World)
    log: CommitLog = field(default_factory=CommitLog)
    complaints: Complaints = field(default_factory=Complaints)
    app: App | None = None
    store: SteeredStore | None = None
    engine: Store | None = None
    there: dict[str, bool] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    death: Death | None = None
    deaths: int = 0
    zombie: tuple[App, SteeredStore] | None = None

    def __post_init__(self) -> None:
        self.clock = LoopClock(self.loop)
        self.order = Random(self.seed) if self.seed else None
        self.truth = Truth(self)
        self.loop.set_exception_handler(self._complain)
        logging.getLogger("piecework").addHandler(self.complaints)

    def _complain(self, _loop: Any, context: dict[str, Any]) -> None:
        if not self.complaints.deaf:
            self.complaints.told.append(f"{context.get('message')}: {context.get('exception')!r}")

    # -- nodes -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """A new node; one that dies while it opens is followed by another."""
        while self.app is None:
            if self.engine is None:
                self.engine = await self.connect(self.clock)
            self.store = SteeredStore(self.engine, self.clock, self.order, self.log)
            roles.store_for = lambda *_, **__: self.store  # type: ignore[assignment]  # put back by whoever runs histories
            app = App("history", store=self.engine.url, settings=SETTINGS, clock=self.clock)
            for name, flow in self.world.flows.items():
                if self.there[name]:
                    app.workflow(flow.workflow, mode=flow.mode)
            self.app = app
            opening = self.loop.start(app, app.__aenter__())
            await self.settle()
            if self.app is app:
                assert opening.done(), "an app does not open"
                opening.result()
        for call in self.calls:
            self._start(call)

    async def kill(self) -> None:
        """The node is no more: nothing of it is answered, none of its tasks goes on, nothing of it is closed."""
        app, store = self.app, self.store
        assert app is not None
        assert store is not None
        self.app, self.death = None, None
        self.deaths += 1
        await self._end(app, store)
        if not store.shared:  # what a file's node had open goes with it
            await self.let_go()
            self.engine = await self.connect(self.clock)

    async def _end(self, app: App, store: SteeredStore) -> None:
        """Ends the tasks of a node that is no more."""
        store.die()
        rounds = 0
        with self._deaf():
            while tasks := self.loop.tasks_of(app):
                rounds += 1
                assert rounds < _PATIENCE, f"tasks that do not end: {tasks}"
                for task in tasks:
                    task.cancel()
                await self.loop.idle()
                for task in tasks:
                    if task.done() and not task.cancelled():
                        task.exception()
        for call in self.calls:
            if call.task is not None and call.task.done():
                call.task, call.calm = None, False

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """What is said meanwhile is said by one who is no more, or not for long."""
        before, self.complaints.deaf = self.complaints.deaf, True
        try:
            yield
        finally:
            self.complaints.deaf = before

    async def cut_off(self) -> None:
        """The node reaches its store no more and does not know it; another one takes its place."""
        assert self.app is not None
        assert self.store is not None
        self.zombie, self.app = (self.app, self.store), None
        self.world.forget()
        for call in self.calls:
            call.task, call.calm = None, False
        await self.open()

    async def come_back(self, operations: int) -> None:
        """What was cut off reaches the store again, late; after some of its operations it is no more.

        Nobody tells the living node of those; what they made due it finds by itself.

        Args:
            operations: How many of them get through.
        """
        assert self.zombie is not None
        app, store = self.zombie
        with self._deaf():
            while operations and store.pending:
                operations -= 1
                with self.loop.outside():
                    await store.step()
                await self.loop.idle()
        self.zombie = None
        self._answered()  # what the living node has answered by now is not asked again
        await self._end(app, store)
        await self.pass_time(_FOUND_SECONDS)

    async def let_go(self) -> None:
        """Closes the engine."""
        engine, self.engine = self.engine, None
        if engine is not None:
            with self.loop.outside():
                await engine.close()

    async def restart(self) -> None:
        """The node stops in order and another one begins."""
        await self.close()
        await self.open()

    async def close(self) -> None:
        """The node stops in order."""
        app = self.app
        if app is None:
            return
        closing = self.loop.start(app, app.__aexit__(None, None, None))
        for _ in range(_PATIENCE):
            await self.settle()
            if closing.done() or self.app is not app:
                break
            await self.loop.advance(1, self.settle)
        if self.app is not app:
            return
        assert closing.done(), "an app does not close"
        closing.result()
        self.app = None
        await self.loop.idle()
        left = self.loop.tasks_of(app) - {call.task for call in self.calls if call.task is not None}
        assert not left, f"left running: {left}"
        for call in self.calls:
            if call.task is not None and not call.task.done():
                call.task.cancel()
            call.calm = False
        await self.loop.idle()
        for call in self.calls:
            call.task = None
        assert self.store is not None
        assert not self.store.pending
        if not self.store.shared:
            await self.let_go()
            self.engine = await self.connect(self.clock)

    # -- what happens ------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Until nothing moves; a node that dies meanwhile is dead when it returns."""
        while True:
            await self.loop.idle()
            self._answered()
            store, app = self.store, self.app
            if store is None or app is None or not store.pending:
                return
            lose = ""
            if self.death is not None:
                left = self.death.after - 1
                lose = self.death.lose if left <= 0 else ""
                self.death = Death(left, self.death.lose)
            with self.loop.outside():
                await store.step(lose=lose)
            if lose:
                await self.kill()
            elif self.world.wrong:
                return

    async def go_on(self) -> None:
        """Until nothing moves and a node lives."""
        await self.settle()
        while self.app is None:
            await self.look()
            await self.open()
            await self.settle()

    async def pass_time(self, seconds: float) -> None:
        """Moves time on; a node that dies meanwhile has its successor at that moment."""
        await self.loop.advance(seconds, self.go_on)

    def call(self, call: Call) -> None:
        """A client asks for something."""
        call.calm, self.truth.fresh = self.truth.fresh, False
        self.calls.append(call)
        self._start(call)

    def hasten(self) -> None:
        """The next thing happens before what was asked for is answered: nobody can tell what it will find."""
        self.truth.fresh = False
        for call in self.calls:
            call.calm = False

    def _start(self, call: Call) -> None:
        if self.app is not None and call.task is None:
            call.task = self.loop.start(self.app, call.make(self.app))

    def _answered(self) -> None:
        for call in [call for call in self.calls if call.task is not None and call.task.done()]:
            task = call.task
            assert task is not None
            if task.cancelled() or isinstance(task.exception(), ClosedError | StoppedError):
                continue  # with its node
            self.calls.remove(call)
            call.done(task.exception() or task.result())

    async def look(self) -> None:
        """Looks whether everything is as it has to be while nothing moves."""
        with self.loop.outside():
            await self.truth.look()

    async def look_back(self) -> None:
        """Looks whether everything that was promised was kept."""
        with self.loop.outside():
            await self.truth.look_back()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Everything comes to its end, and then everything is looked at."""
        self.death = None
        await self.go_on()
        if self.zombie is not None:
            await self.come_back(_PATIENCE)
        for name, there in self.there.items():
            if not there:
                self.toggle(name)
        self.world.free = True
        await self.go_on()
        for _ in range(_PATIENCE):
            for gate in list(self.world.gates):
                if not gate.future.done():
                    gate.future.set_result("go on")
            await self.go_on()
            await self.look()
            live = [run for run in self.truth.runs.values() if run.ended_at is None or not run.cleaned]
            if not live and not self.calls:
                break
            for run in live:
                if run.status == "paused" and run.expires_at is None:
                    self.resume(run.run_id)
            await self.pass_time(11)
        else:
            raise AssertionError(f"never ends: {[(run.run_id, run.status) for run in live]} {self.calls}")
        await self.look_back()
        await self.close()
        assert self.engine is not None
        found = await check(self.engine)
        assert not found, found

    async def tidy(self) -> None:
        """Leaves nothing, whatever state it is in."""
        logging.getLogger("piecework").removeHandler(self.complaints)
        self.complaints.deaf = True
        if self.zombie is not None:
            await self._end(*self.zombie)
        if self.app is not None:
            await self.kill()
        await self.let_go()

    # -- calls -------------------------------------------------------------------------------------------------------

    def toggle(self, name: str) -> None:
        """Deregisters a workflow, or registers it again."""
        self.there[name] = not self.there[name]
        flow = self.world.flows[name]
        if self.there[name]:

            async def register(app: App) -> None:
                while not app.runtime.has_workflow(name):
                    try:
                        await app.runtime.register(flow.workflow, mode=flow.mode)
                    except ConflictError:  # its deregistration is still under way
                        await asyncio.sleep(1)

            self.call(Call(f"register {name}", register, self.truth.nothing))
        else:
            self.truth.gone.add(name)
            self.call(
                Call(
                    f"deregister {name}", lambda app: app.runtime.deregister(name, grace_seconds=0), self.truth.nothing
                )
            )

    def resume(self, run_id: str) -> None:
        """Resumes a run."""
        mark, token = self.truth.mark(), f"token {self.truth.number}"

        async def resume(app: App) -> Any:
            result = await app.runtime.resume(run_id, {mark: True}, wait=False, token=token)
            assert result.ok or result.error  # looked at, also where nobody hears of it because the node has died
            return result

        call = Call(f"resume {run_id}", resume, lambda result: self.truth.resumed(run_id, mark, result, calm=call.calm))
        self.call(call)
