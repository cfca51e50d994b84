"""The controller: the node's side of one space's worker - starts it, hands it runs, stops what will not stop.

    NEW → BOOTING → STARTING → READY (→ DRAINING) → STOPPING → DEAD        (DEAD from anywhere)

A worker is dead when nothing under its keeper runs any more, and only then do its runs settle: no retry may overlap
with what is left of the run before. `_expected` says whether its end is our own doing; such an end is nobody's
failure, and no run is charged for it but the one it was for. A heartbeat tells whether the worker's loop turns: one
that does not is shown, and ended only at the deadline of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from contextvars import Context
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from piecework.bus.event import within_run
from piecework.clock import SECOND, Clock, SystemClock
from piecework.errors import (
    ClosedError,
    CpuLimitError,
    CrashedError,
    InvalidStateError,
    ProtocolError,
    StoppedError,
    TimeoutExceededError,
    ValidationError,
    clean_text,
    describe,
)
from piecework.process import linux, protocol
from piecework.process.protocol import Channel
from piecework.run.outcome import Failed
from piecework.space.cpu import CpuBook
from piecework.space.piece import pack_outcome, unpack_outcome
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from piecework.config import Settings
    from piecework.process.child import Child
    from piecework.process.launch import Zygote


class State(StrEnum):
    """Where a worker is in its life."""

    NEW = "new"
    BOOTING = "booting"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    DEAD = "dead"


_SERVING = frozenset({State.READY, State.DRAINING})
_SERVED = _SERVING | {State.STOPPING}
_TOLD = 5
_WORDS_LIMIT = 1_500
"""How many processes are told, and how much of what a worker says that a run had left: it says what it likes."""


class WorkerDied(CrashedError):  # noqa: N818 - an event in the life of a space before it is an error
    """The worker ended while a run was under way, or before it was ready.

    Attributes:
        space: Whose worker.
        status: Its exit status, negative for a signal, None when unknown.
        charged: True when this run was alone in flight and had begun, and the worker ended by itself: the run is to
            blame.
        suspect: True when it was one of several, or handed to a worker that was dying already: run it again alone,
            uncharged. Neither is true when the worker was stopped for something else, or died with its zygote: queue
            it again, uncharged.
    """

    cause = "a worker ended while a run was under way, or before it was ready"
    cure = "the message has the signal or the status; look at its output, which stands in the node's"


class UnknownIntegration(StoppedError):  # noqa: N818 - as above: it is no verdict on the run
    """The worker's code has no definition of a run's integration: the run was not begun, and waits for one.

    Attributes:
        space: Whose worker.
        piece_id: Which piece.
        integration: What it has no definition of.
    """

    cause = "the code of a space's workers lacks the integration of a piece that the node has, as after `--reload`"
    cure = "nothing is lost: the piece goes on when the code has it again; the message has near names"


@dataclass(slots=True)
class _Pending:
    run: protocol.Run
    result: asyncio.Future[protocol.Result]
    over_cpu: asyncio.Future[None]
    begun: bool = False
    left: protocol.Left | None = None
    killed: str = ""


class Controller:
    """One worker of one space. It is started once; a space that needs another worker makes another controller.

    Args:
        zygote: Where the worker comes from.
        space: The tenant.
        init: What the worker is told first.
        settings: Deadlines of booting, starting and stopping.
        on_ask: Answers what the worker asks: op, args, and the run that asks, where there is one in flight.
        on_log: Takes what user code says beside its results: log lines, progress, failures that came late.
        on_over: Called once a worker that was ready has ended, with its death where it ended by itself.
        clock: Says since when a worker is blocked.
    """

    def __init__(
        self,
        zygote: Zygote,
        space: str,
        init: protocol.Init,
        settings: Settings,
        on_ask: Callable[[str, dict[str, Any], str | None], Awaitable[Any]],
        on_log: Callable[[protocol.Log | protocol.Progress | protocol.Late], None],
        on_over: Callable[[WorkerDied | None], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._zygote = zygote
        self._space = space
        self._init = init
        self._settings = settings
        self._on_ask = on_ask
        self._on_log = on_log
        self._on_over = on_over
        self._clock = SystemClock() if clock is None else clock
        self._state = State.NEW
        self._expected = False
        self._why = ""
        self._cause: Exception | None = None
        self._child: Child | None = None
        self._channel: Channel[protocol.ToNode] | None = None
        self._runs: dict[str, _Pending] = {}
        self._cpu = CpuBook(settings.space_run_cpu_seconds)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._free = asyncio.Event()
        self._free.set()
        self._pings = itertools.count(1)
        self._unanswered: tuple[int, float] | None = None
        self._next_beat: asyncio.TimerHandle | None = None
        self._blocked_at: int | None = None

    @property
    def state(self) -> State:
        """Where the worker is in its life."""
        return self._state

    @property
    def alive(self) -> bool:
        """True while it takes runs."""
        return self._state is State.READY

    @property
    def blocked_at(self) -> int | None:
        """Since when its loop has not turned, in microseconds since the epoch; None while it turns."""
        return self._blocked_at

    @property
    def in_flight(self) -> int:
        """How many runs it has."""
        return len(self._runs)

    @property
    def pid(self) -> int | None:
        """The worker's pid as the node numbers it; None before the fork."""
        return None if self._child is None else self._child.worker_pid

    @property
    def keeper_pid(self) -> int | None:
        """The pid of its keeper; None before the fork."""
        return None if self._child is None else self._child.keeper_pid

    @property
    def keeper_state(self) -> str:
        """What its keeper is doing: "running", "stopped" when somebody has stopped it, or "dead"; see `Child`."""
        return "dead" if self._child is None else self._child.keeper_state

    async def start(self) -> None:
        """Starts the worker and returns when it takes runs; after an error nothing of it is left.

        Raises:
            TimeoutExceededError: It did not say hello, or was not ready, in time.
            WorkerDied: It ended before; the message has its own words where it had any.
            StoppedError: The zygote does not run, or `stop` was called meanwhile.
            InvalidStateError: It was started before.
        """
        if self._state is not State.NEW:
            raise InvalidStateError(f"the worker of space {self._space!r} is {self._state}: make another controller")
        loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._halted: asyncio.Future[None] = loop.create_future()
        self._state = State.BOOTING
        try:
            # The worker serves many runs: what it prints, and its end, are not told as the first one's, whose context
            # every callback that is set here would keep.
            boot = loop.create_task(self._boot(), context=Context())
            await self._in_time(boot, self._settings.space_boot_seconds, "its first word")
            self._state = State.STARTING
            with contextlib.suppress(ClosedError):  # how it died is what we hear next
                self._send(self._init)
            await self._in_time(self._ready, self._settings.space_init_seconds, "ready")
        except BaseException:
            await self._shielded(self._abandon())
            raise
        finally:
            self._over.set()
        self._state = State.READY
        self._beat_later()
        signals.emit(signals.SPACE_STARTED, space=self._space, pid=self.pid)

    async def run(self, run: protocol.Run, timeout_seconds: float) -> protocol.Result:
        """Hands the worker a run and waits until it is over; a run that is cancelled or late is stopped for real.

        After a failed outcome with the code TIMEOUT, `alive` tells whether the worker is kept. It is not, and finishes
        only what it has, where a service that it shares was still being made: what hangs there would hang for the next.

        Args:
            run: What to carry out.
            timeout_seconds: How long it may take.

        Raises:
            WorkerDied: The worker ended; its attributes say whether this run is to blame.
            UnknownIntegration: The worker's code has no definition of the run.
            StoppedError: The worker takes no runs.
            ValidationError: The run is too large for a frame.
        """
        if not self.alive:
            raise StoppedError(f"the worker of space {self._space!r} is {self._state} and takes no runs")
        if run.run_id in self._runs:
            raise InvalidStateError(f"run {run.run_id} is under way in space {self._space!r} already")
        loop = asyncio.get_running_loop()
        pending = _Pending(run, loop.create_future(), loop.create_future())
        self._send(run)
        self._runs[run.run_id] = pending
        self._free.clear()
        try:
            waits: set[asyncio.Future[Any]] = {pending.result, pending.over_cpu}
            await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if pending.result.done():
                return pending.result.result()
            if pending.over_cpu.done():
                await self._shielded(self._stop_run(pending, CpuLimitError.code))
                return self._over_cpu(run)
            beside = len(self._runs) > 1
            await self._shielded(self._stop_run(pending, TimeoutExceededError.code))
            if beside and not pending.begun and self._state not in _SERVING:
                raise self._never_begun()
            if pending.left is not None and pending.left.making and self.alive:
                self.retire()
                self._own(self._let_finish())
            return self._timed_out(pending, timeout_seconds)
        except asyncio.CancelledError:
            await self._shielded(self._stop_run(pending, "ABORTED"))
            raise
        finally:
            del self._runs[run.run_id]
            if not self._runs:
                self._free.set()
            if pending.result.done() and not pending.result.cancelled():
                pending.result.exception()  # the verdict above stands; this one has been looked at

    async def stop(self) -> int | None:
        """Has the worker close and exit, else ends it; returns its exit status when nothing of it is left.

        Runs in flight end with a `WorkerDied` that charges nobody: drain first.
        """
        if self._state is State.NEW:
            self._state = State.DEAD
        elif self._state in {State.BOOTING, State.STARTING}:
            _open(self._halted)
            await self._over.wait()
        elif self._state is not State.DEAD:
            await self._shielded(self._end("it was stopped", politely=True))
        await self._finished()
        return await self.dead()

    def retire(self) -> None:
        """Takes no more runs from here on; a crash of those under way is what it always is."""
        if self._state is State.READY:
            self._state = State.DRAINING
            with contextlib.suppress(ClosedError):
                self._send(protocol.Drain())

    async def drain(self) -> int | None:
        """Takes no more runs, lets those under way come to their end, and ends; its exit status."""
        if self._state in {State.BOOTING, State.STARTING}:
            await self._over.wait()
        self.retire()
        if self._state is State.DRAINING:
            await self._free.wait()
        if self._state is State.DRAINING:
            await self._shielded(self._end("it was drained", politely=True))
        return await self.dead()

    async def _let_finish(self) -> None:
        await self.drain()

    async def dead(self) -> int | None:
        """Waits until nothing of the worker is left; its exit status, negative for a signal, None when unknown."""
        return None if self._child is None else await self._child.dead()

    async def _boot(self) -> None:
        self._child = await self._zygote.fork(self._space)
        self._child.when_dead(self._died)
        self._child.on_told = self._metered
        self._channel = await Channel.open(self._child.channel_socket, protocol.ToNode, self._received, self._closed)
        await self._greeted

    async def _in_time(self, step: Awaitable[None], seconds: float, what: str) -> None:
        """Sees a step of the start through, unless it takes too long or `stop` is called meanwhile."""
        work = asyncio.ensure_future(step)
        try:
            await asyncio.wait({work, self._halted}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # the verdict stands; this one has been looked at
        if self._halted.done():
            raise StoppedError(f"the worker of space {self._space!r} was stopped while it started", space=self._space)
        raise TimeoutExceededError(
            f"the worker of space {self._space!r} was not {what} within {seconds:g} s: look at what the app does "
            "when it opens, or raise the setting",
            space=self._space,
        )

    async def _abandon(self) -> None:
        self._expected = True
        if self._child is not None:
            self._child.kill()
            await self._child.dead()
        self._state = State.DEAD

    async def _stop_run(self, pending: _Pending, reason: str) -> None:
        """Cancel, grace, and when the run is then not entirely over, the end of the worker."""
        with contextlib.suppress(ClosedError):
            self._send(protocol.Cancel(run_id=pending.run.run_id, reason=reason))
        done, _ = await asyncio.wait({pending.result}, timeout=self._settings.space_grace_seconds)
        if not done:
            pending.killed = self._beneath()
            await self._end(f"run {pending.run.run_id} did not stop ({reason})", politely=False)

    async def _end(self, why: str, *, politely: bool) -> None:
        """The ladder: stop frame when politely, SIGTERM to everything, SIGKILL of everything; grace in between."""
        assert self._child is not None
        if self._state is not State.DEAD:
            self._expected = True
            self._why = self._why or why
            self._state = State.STOPPING
        if politely:
            with contextlib.suppress(ClosedError):
                self._send(protocol.Stop())
            if await self._dead_within_grace():
                return
        self._child.terminate()
        if not await self._dead_within_grace():
            self._child.kill()
            await self._child.dead()

    def _beneath(self) -> str:
        """The processes that run under the worker and end with it, as this node numbers them; a few of them."""
        if self._child is None:
            return ""
        pids = sorted(linux.descendants(self._child.keeper_pid) - {self._child.worker_pid})
        told = [f"{pid} ({name})" for pid in pids[:_TOLD] if (name := linux.command(pid)) is not None]
        return ", ".join(told) + (f" and {len(pids) - _TOLD} more" if len(pids) > _TOLD else "")

    def _beat_later(self) -> None:
        # On the loop's own time, as the deadlines are: what comes in is read before a timer is looked at, so that a
        # node whose own loop stood still blames nobody.
        loop = asyncio.get_running_loop()
        self._next_beat = loop.call_later(self._settings.heartbeat_seconds, self._beat, context=Context())

    def _beat(self) -> None:
        if self._state not in _SERVING or self._channel is None or self._channel.closed:
            return
        now = asyncio.get_running_loop().time()
        if self._unanswered is None:
            self._unanswered = next(self._pings), now
            self._send(protocol.Ping(id=self._unanswered[0]))
        elif self._blocked_at is None and now - self._unanswered[1] >= self._settings.space_stall_seconds:
            self._blocked_at = self._clock.now() - round((now - self._unanswered[1]) * SECOND)
            signals.emit(
                signals.SPACE_BLOCKED, level="warning", space=self._space, pid=self.pid, runs=",".join(self._runs)
            )
        self._beat_later()

    def _turns(self, pong: protocol.Pong) -> None:
        if self._unanswered is None or self._unanswered[0] != pong.id:
            return
        self._unanswered = None
        if self._blocked_at is not None:
            seconds = (self._clock.now() - self._blocked_at) / SECOND
            self._blocked_at = None
            signals.emit(signals.SPACE_UNBLOCKED, space=self._space, pid=self.pid, after_seconds=round(seconds, 1))

    async def _see_off(self) -> None:
        # A worker that has hung up is mostly ending already, and its exit status is worth waiting for.
        if not await self._dead_within_grace() and self._child is not None:
            self._child.kill()

    async def _dead_within_grace(self) -> bool:
        assert self._child is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.space_grace_seconds):
                await self._child.dead()
        return not self._child.alive

    async def _shielded(self, ending: Coroutine[Any, Any, None]) -> None:
        """Sees an ending through even when our caller is cancelled; what is left of it then is awaited by `stop`."""
        await asyncio.shield(self._own(ending))

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # The worker was booted by some run, and serves many: what it publishes is not of that one.
        with within_run(None):
            task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _finished(self) -> None:
        current = asyncio.current_task()
        if left := self._tasks - {current}:
            await asyncio.wait(left, timeout=self._settings.space_grace_seconds)
        while left := self._tasks - {current}:  # answers that nobody is there to hear
            for task in left:
                task.cancel()
            await asyncio.wait(left)

    def _send(self, message: protocol.Message) -> None:
        if self._channel is None:
            raise ClosedError(f"the worker of space {self._space!r} has no connection")
        self._channel.send(message)

    def _received(self, message: protocol.ToNode) -> None:
        match message:
            case protocol.Begun():
                self._begun(message)
            case protocol.Result():
                self._settle(message)
            case protocol.Left():
                self._note_left(message)
            case protocol.Unknown():
                self._refuse(message)
            case protocol.Log() | protocol.Progress() | protocol.Late():
                self._on_log(message)
            case protocol.Ask():
                self._own(self._answer(message))
            case protocol.Hello():
                self._greet(message)
            case protocol.Ready():
                self._in_turn(message, State.STARTING, self._ready)
            case protocol.Pong():
                self._turns(message)
            case protocol.Fatal():
                self._cause = protocol.revive(message.error)
                self._why = f"it failed with {message.error.get('message')}"

    def _greet(self, hello: protocol.Hello) -> None:
        if hello.version != protocol.VERSION:
            raise ProtocolError(f"the worker speaks version {hello.version} of the frames, the node {protocol.VERSION}")
        self._in_turn(hello, State.BOOTING, self._greeted)

    def _in_turn(self, message: protocol.Message, turn: State, gate: asyncio.Future[None]) -> None:
        if self._state is not turn or (gate.done() and not gate.cancelled() and gate.exception() is None):
            raise ProtocolError(f"a {type(message).__name__} came out of turn")
        _open(gate)

    def _begun(self, begun: protocol.Begun) -> None:
        pending = self._runs.get(begun.run_id)
        if pending is not None and pending.run.epoch == begun.epoch:
            pending.begun = True

    def _settle(self, result: protocol.Result) -> None:
        pending = self._runs.get(result.run_id)
        if pending is None or pending.run.epoch != result.epoch:
            return  # of an attempt that nobody waits for any more
        unpack_outcome(result.outcome)  # a malformed one raises here, which ends the connection and the worker
        if not pending.result.done():
            pending.result.set_result(result)

    def _note_left(self, said: protocol.Left) -> None:
        pending = self._runs.get(said.run_id)
        if pending is not None and pending.run.epoch == said.epoch:
            pending.left = said

    def _refuse(self, said: protocol.Unknown) -> None:
        pending = self._runs.get(said.run_id)
        if pending is None or pending.run.epoch != said.epoch or pending.result.done():
            return
        run = pending.run
        pending.result.set_exception(
            UnknownIntegration(
                f"piece {run.piece_id!r} of space {self._space!r} waits for its definition: {said.message}",
                space=self._space,
                piece_id=run.piece_id,
                integration=run.integration,
            )
        )

    async def _answer(self, ask: protocol.Ask) -> None:
        try:
            run_id = ask.run_id if ask.run_id in self._runs else None
            with within_run(None if run_id is None else self._runs[run_id].run.hops):
                reply = protocol.Reply(id=ask.id, value=await self._on_ask(ask.op, ask.args, run_id))
        except Exception as error:  # noqa: BLE001 - raised over there, where it was asked
            reply = protocol.Reply(id=ask.id, error=describe(error))
        try:
            self._send(reply)
        except ValidationError as error:
            self._send(protocol.Reply(id=ask.id, error=describe(error)))
        except ClosedError:
            pass  # the asker is gone; what it asked for has been done

    def _metered(self, told: dict[str, Any]) -> None:
        """The keeper has said what is used: whoever is over the limit is stopped, or all are when that is unclear."""
        usage = told.get("usage")
        in_flight = [run_id for run_id, pending in self._runs.items() if not pending.result.done()]
        if usage is None or self._child is None:
            return
        over = self._cpu.charge(usage["cpu_seconds"], usage["run_id"], usage["run_cpu_seconds"], in_flight)
        if len(over) == 1:
            _open(self._runs[over[0]].over_cpu)
        elif over and not self._expected:
            self._why = f"one of its runs used more than {self._cpu.limit_seconds:g} s of processor time, unclear which"
            self._child.kill()

    def _closed(self, error: Exception | None) -> None:
        """The frames have ended. Nothing is settled yet: what runs over there may go on for a moment."""
        if self._state is State.DEAD or self._child is None:
            return
        if error is not None and not isinstance(error, OSError):
            self._cause = error
            self._why = self._why or f"it broke the protocol: {error}"
            self._child.kill()
        elif not self._expected and not self._why:
            self._own(self._see_off())

    def _died(self, status: int | None) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._next_beat is not None:
            self._next_beat.cancel()
        self._blocked_at = None
        left = [pending for pending in self._runs.values() if not pending.result.done()]
        if self._state is State.DRAINING and not left:
            self._expected = True
        if not self._expected:
            signals.emit(signals.SPACE_DIED, level="warning", space=self._space, pid=self.pid, status=status)
        served, self._state = self._state in _SERVED, State.DEAD
        to_blame = len(self._runs) == 1 and any(pending.begun for pending in left)
        for pending in left:
            pending.result.set_exception(self._death(status, to_blame=to_blame))
        for waiting in (self._greeted, self._ready):
            _break(waiting, self._death(status, to_blame=False))
        if served and self._on_over is not None:
            death = self._death(status, to_blame=to_blame)
            self._on_over(death if death.charged or death.suspect else None)

    def _death(self, status: int | None, *, to_blame: bool) -> WorkerDied:
        how = _how(status)
        reason = None if self._child is None else self._child.reason
        if reason is not None:
            self._why = self._why or f"it used {reason['message']}"
        above = self._zygote.alive  # its own zygote, not the one that may have taken its place by now
        if not above:
            how = f"{how}; the zygote above it had ended"
        lapsed = self._child is not None and self._child.lapsed
        if lapsed:
            how = f"{how}; the node had not renewed its lease in time"
        by_itself = above and not self._expected and not lapsed
        error = WorkerDied(
            f"the worker of space {self._space!r} ended{f': {self._why}' if self._why else ''} ({how})",
            space=self._space,
            status=status,
            charged=to_blame and by_itself,
            suspect=not to_blame and by_itself,
        )
        error.__cause__ = self._cause
        if reason is not None:
            error.code = reason["code"]  # type: ignore[misc]  # of this one: what it died of is what its run failed of
        return error

    def _never_begun(self) -> WorkerDied:
        """A neighbour has held the worker's loop until this run's time was over: it was never carried out."""
        return WorkerDied(
            f"the worker of space {self._space!r} was ended: another run blocked it before this one could begin",
            space=self._space,
            status=None,
            charged=False,
            suspect=True,
        )

    def _over_cpu(self, run: protocol.Run) -> protocol.Result:
        failed = Failed(
            f"the update used more than {self._cpu.limit_seconds:g} s of processor time: do less at once, or raise "
            "space_run_cpu_seconds",
            code=CpuLimitError.code,
        )
        return protocol.Result(run_id=run.run_id, epoch=run.epoch, outcome=pack_outcome(failed))

    def _timed_out(self, pending: _Pending, timeout_seconds: float) -> protocol.Result:
        run, left = pending.run, pending.left
        how = "it was cancelled" if self._state in _SERVING else "it did not stop when cancelled, its worker was ended"
        told = f"the update took longer than {timeout_seconds:g} s: {how}. Raise timeout_seconds, or do less at once"
        if left is not None and left.what:
            told += f". What it had started and was not over: {clean_text(left.what, _WORDS_LIMIT)}"
        if left is not None and left.making:
            told += f". A service was still being made: {clean_text(left.making, _WORDS_LIMIT)}"
        if pending.killed:
            told += f". Ended with the worker: {pending.killed}"
        failed = Failed(told, code=TimeoutExceededError.code)
        return protocol.Result(run_id=run.run_id, epoch=run.epoch, outcome=pack_outcome(failed))


def _open(gate: asyncio.Future[None]) -> None:
    if not gate.done():
        gate.set_result(None)


def _break(gate: asyncio.Future[None], error: Exception) -> None:
    if not gate.done():
        gate.set_exception(error)
        gate.exception()  # perhaps nobody waits at this one


def _how(status: int | None) -> str:
    if status is None:
        return "exit status unknown"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
