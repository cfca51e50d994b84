"""The rules of the machine: what clients, time, operators and bad luck do to a runtime."""

from __future__ import annotations

from functools import wraps
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from piecework import Event, ids, roles
from piecework.run.folds import decide_signal
from piecework.store.items import SendSignal
from piecework.store.verbs.runs import signal

from .history import Call, Death, History
from .loop import VirtualLoop
from .world import EDGES, MODES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from piecework import App
    from piecework.store.contract import Store

    from .loop import LoopClock

NAMES = ("one", "two")
picks = st.integers(0, 63)
flows = st.sampled_from(NAMES)
keys = st.sampled_from([0, 0, 1])
gated = st.sampled_from([True, True, False])
"""Whether the steps of a run wait to be let go."""
hurried = st.sampled_from([False, False, False, True])
"""Whether the next thing happens before this one has had time for anything."""


def runtime_machine(connect: Callable[[LoopClock], Coroutine[Any, Any, Store]]) -> type[RuleBasedStateMachine]:
    """The machine for one engine.

    Args:
        connect: Opens an empty store the first time in a history, and the same one again after that.
    """

    class RuntimeMachine(_RuntimeMachine):
        def connect(self, clock: LoopClock) -> Coroutine[Any, Any, Store]:
            return connect(clock)

    return RuntimeMachine


def when(condition):
    """Does nothing where a condition does not hold: what is drawn may not depend on the moods of a real engine."""

    def guard(fn):
        @wraps(fn)
        def guarded(self, **drawn):
            if condition(self):
                fn(self, **drawn)

        return guarded

    return guard


class _RuntimeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.history: History | None = None
        self.broken = False
        self.kept = (roles.store_for, ids.time, ids._take)

    def connect(self, clock: LoopClock) -> Coroutine[Any, Any, Store]:
        """Opens the engine."""
        raise NotImplementedError

    @initialize(
        modes=st.tuples(st.sampled_from(sorted(MODES)), st.sampled_from(sorted(MODES))),
        shapes=st.tuples(st.sampled_from(sorted(EDGES)), st.sampled_from(sorted(EDGES))),
        seed=st.integers(0, 1000),
    )
    def begin(self, modes: tuple[str, str], shapes: tuple[str, str], seed: int) -> None:
        """A node with two workflows opens on an empty store."""
        loop = VirtualLoop()
        numbers = count()
        ids.time = SimpleNamespace(time_ns=lambda: loop.now() * 1000)  # type: ignore[assignment]
        ids._take = lambda: next(numbers).to_bytes(10, "big")
        self.connects = 0
        self.history = History(loop, self._connect, seed)
        for name, mode, shape in zip(NAMES, modes, shapes, strict=True):
            self.history.world.add(name, mode, shape)
            self.history.there[name] = True
        self.drive(self.history.open())

    def _connect(self, clock: LoopClock) -> Coroutine[Any, Any, Store]:
        return self.connect(clock)

    def drive(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something in the history's loop."""
        assert self.history is not None
        try:
            self.history.loop.run_until_complete(work)
        except BaseException:
            self.broken = True
            raise

    def act(self, call: Call | None = None, *, hurry: bool = False) -> None:
        """A client asks for something; then everything moves until nothing does, unless the next is in a hurry."""
        self.drive(self._act(call, hurry=hurry))

    async def _act(self, call: Call | None, *, hurry: bool) -> None:
        history = self.history
        assert history is not None
        if call is not None:
            history.call(call)
        if hurry:
            history.hasten()
            await history.loop.idle()
            return
        await history.go_on()
        await history.look()

    # -- events ------------------------------------------------------------------------------------------------------

    def _publish(self, event_type: str, payload: dict[str, Any], awaiting: set[str], *, hurry: bool) -> None:
        truth = self.history.truth
        mark = truth.mark()
        told, event_id = {**payload, mark: True}, f"event {truth.number}"
        call = Call(
            f"publish {event_type} {told}",
            lambda app: app.publish(event_type, told, id=event_id),
            lambda receipt: truth.accepted(mark, awaiting, receipt, calm=call.calm),
        )
        self.act(call, hurry=hurry)

    @rule(flow=flows, key=keys, gated=gated, hurry=hurried)
    def publish(self, flow: str, key: int, gated: bool, hurry: bool) -> None:
        """An event comes that may start a run."""
        self._publish(f"go.{flow}", {"k": key, "gated": gated}, set(), hurry=hurry)

    @rule(key=keys, gated=gated, hurry=hurried)
    def publish_to_all(self, key: int, gated: bool, hurry: bool) -> None:
        """An event comes that may start a run of each workflow."""
        self._publish("go.all", {"k": key, "gated": gated}, set(), hurry=hurry)

    @rule(events=st.lists(st.tuples(st.sampled_from([*NAMES, "all"]), keys, gated), min_size=2, max_size=5))
    def storm(self, events: list[tuple[str, int, bool]]) -> None:
        """Several events come at once."""
        for flow, key, gated in events:
            self._publish(f"go.{flow}", {"k": key, "gated": gated}, set(), hurry=True)
        self.act()

    @rule(pick=picks)
    @when(lambda self: self.history.truth.receipts)
    def publish_again(self, pick: int) -> None:
        """A client repeats an event that it has the receipt of."""
        receipts = self.history.truth.receipts
        first = receipts[pick % len(receipts)]
        told = Call(
            f"publish {first.event_id} again",
            lambda app: app.publish("go.again", {"other": True}, id=first.event_id),
            lambda receipt: self.history.truth.accepted_again(first, receipt),
        )
        self.act(told)

    @rule(number=st.integers(0, 1), hurry=hurried)
    def publish_news(self, number: int, hurry: bool) -> None:
        """An event comes that runs may wait for."""
        awaiting = self.history.truth.waiting.get(number, set())
        self._publish("news", {"n": number}, set(awaiting), hurry=hurry)

    # -- steps -------------------------------------------------------------------------------------------------------

    @rule(pick=picks, told=st.sampled_from(["go on", "go on", "go on", "fail"]), hurry=hurried)
    @when(lambda self: self.history.world.gates)
    def let_go(self, pick: int, told: str, hurry: bool) -> None:
        """A step that waits goes on, or fails."""
        gates = self.history.world.gates
        gate = gates[pick % len(gates)]
        if not gate.future.done():
            gate.future.set_result(told)
        self.act(hurry=hurry)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _pick(self, pick: int, *statuses: str) -> str | None:
        found = [run.run_id for run in self.history.truth.runs.values() if run.status in statuses]
        return found[pick % len(found)] if found else None

    @rule(pick=picks, hurry=hurried)
    @when(lambda self: self._pick(0, "paused", "running"))
    def resume(self, pick: int, hurry: bool) -> None:
        """Somebody resumes a run that is paused, or was."""
        self.history.resume(self._pick(pick, "paused") or self._pick(pick, "running"))
        self.act(hurry=hurry)

    @rule(pick=picks, hurry=hurried)
    @when(lambda self: self.history.truth.runs)
    def abort(self, pick: int, hurry: bool) -> None:
        """Somebody aborts a run."""
        truth = self.history.truth
        run_id = self._pick(pick, "queued", "running", "paused") or self._pick(pick, "completed", "failed", "aborted")
        token = f"token {truth.mark()}"

        async def abort(app: App) -> Any:
            return await app.runtime.abort(run_id, "for fun", token=token)

        self.act(Call(f"abort {run_id}", abort, lambda result: truth.aborted(run_id, result)), hurry=hurry)

    @rule(pick=picks, hurry=hurried)
    @when(lambda self: self.history.truth.runs)
    def signal(self, pick: int, hurry: bool) -> None:
        """Somebody sends a patch to a run."""
        truth = self.history.truth
        run_id = self._pick(pick, "queued", "running", "paused") or self._pick(pick, "completed", "failed", "aborted")
        mark = truth.mark()
        item = SendSignal(run_id=run_id, patch=f'{{"{mark}":true}}'.encode(), token=f"token {mark}")

        async def send(app: App) -> Any:
            return await app.store.run(signal, item, decide_signal, self.history.clock.now())

        call = Call(f"signal {run_id}", send, lambda result: truth.signalled(run_id, mark, result, calm=call.calm))
        self.act(call, hurry=hurry)

    @rule(flow=flows, key=keys, hurry=hurried)
    def invoke(self, flow: str, key: int, hurry: bool) -> None:
        """Somebody starts a run past its mode."""
        truth = self.history.truth
        run_id = f"invoked {truth.mark()}"
        event = Event(f"go.{flow}", {"k": key, "gated": True}, id=run_id)

        async def invoke(app: App) -> Any:
            result = await app.runtime.invoke(flow, "own", event, run_id=run_id, wait=False)
            assert result.ok or result.error  # looked at, also where nobody hears of it because the node has died
            return result

        self.act(Call(f"invoke {flow}", invoke, lambda result: truth.invoked(run_id, result)), hurry=hurry)

    # -- time, operators, bad luck -----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.3, 2, 8, 21, 40]))
    def pass_time(self, seconds: float) -> None:
        """Time goes on."""
        self.drive(self._pass_time(seconds))

    async def _pass_time(self, seconds: float) -> None:
        await self.history.pass_time(seconds)
        await self.history.look()

    @rule(what=st.sampled_from([*NAMES, "restart"]), hurry=hurried)
    def operate(self, what: str, hurry: bool) -> None:
        """A workflow is deregistered, or registered again; or the node stops in order, and the next one begins."""
        if what == "restart":
            self.drive(self._restart())
        else:
            if any(call.what.endswith(f"register {what}") for call in self.history.calls):
                self.act()  # one after the other, as they are told to
            self.history.toggle(what)
            self.act(hurry=hurry)

    @rule(after=st.integers(1, 12), lose=st.sampled_from(["before", "after"]))
    @when(lambda self: self.history.death is None)
    def doom(self, after: int, lose: str) -> None:
        """The node will die at one of its next operations: before its commit, or after it and before the answer."""
        self.history.death = Death(after, lose)

    @precondition(lambda self: self.history.engine.shared)
    @rule(operations=st.integers(0, 20))
    def cut_off(self, operations: int) -> None:
        """A node reaches its store no more, and another takes its place; or what it had still to say arrives, late."""
        self.drive(self._cut_off(operations))

    async def _cut_off(self, operations: int) -> None:
        if self.history.zombie is None:
            await self.history.cut_off()
        else:
            await self.history.come_back(operations)
        await self.history.go_on()
        await self.history.look()

    async def _restart(self) -> None:
        await self.history.restart()
        await self.history.go_on()
        await self.history.look()

    def teardown(self) -> None:
        """Everything comes to its end and is looked at; nothing is left of it."""
        if self.history is None:
            return
        try:
            if not self.broken:
                self.drive(self.history.finish())
        finally:
            try:
                self.history.loop.run_until_complete(self.history.tidy())
            finally:
                self.history.loop.close()
                roles.store_for, ids.time, ids._take = self.kept
