"""The worker: what runs in a space's own process, from the first word to the last.

It takes runs over the channel, carries each one out in a fresh workspace, and answers only when all of it is over:
the update's own result, what it left behind, the workspace closed. It never opens the store; what needs it is asked
of the node. When the connection ends, so does the process.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from piecework.bus.event import Event
from piecework.config import Settings
from piecework.errors import (
    ClosedError,
    ExecutionFailedError,
    MemoryLimitError,
    NotFoundError,
    ProtocolError,
    StoppedError,
    ValidationError,
    clean_text,
    describe,
    trace_of,
)
from piecework.process import accounting, environment, limits, protocol
from piecework.process.ledger import Ledger, let_coroutines_be_told
from piecework.process.loop import AccountedLoop, in_thread
from piecework.process.printed import Printed
from piecework.process.protocol import Channel
from piecework.run.outcome import Failed, Outcome, RetryAfter, Skipped, Success
from piecework.run.raised import failed_by
from piecework.space.piece import PieceContext, PieceDefinition, PieceLogger, as_outcome, end_detached, pack_outcome
from piecework.store import values

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from piecework.process.accounting import Account
    from piecework.workspace.workspace import Workspace

_TERMINATED = 128 + signal.SIGTERM
_LATE_LIMIT = 20
"""How many failures that came late are told of one run."""


class Host(Protocol):
    """What the application offers inside a worker."""

    def piece(self, integration: str) -> PieceDefinition:
        """Gives a definition; raises NotFoundError with near names."""
        ...

    def being_made(self, integration: str) -> list[str]:
        """The services, by name, that somebody waits for and that live on when an update of that integration ends."""
        ...

    def workspace(
        self, *, space: str, key: str, integration: str | None = None, params: dict[str, Any] | None = None
    ) -> AbstractAsyncContextManager[Workspace]:
        """Opens a fresh root workspace of that space with that idempotency key, over the integration's services."""
        ...


class WorkerApp(Protocol):
    """The application as a worker uses it."""

    def worker_side(
        self, init: protocol.Init, ask: Callable[[str, dict[str, Any]], Awaitable[Any]]
    ) -> AbstractAsyncContextManager[Host]:
        """Opens what updates need in this process; `ask` reaches the node."""
        ...


def main(sock: socket.socket, app: WorkerApp | Callable[[], WorkerApp]) -> None:
    """Serves one space until the node says stop or goes away. Called in the forked child, which exits afterwards.

    Args:
        sock: The worker's end of the channel.
        app: The application, or a function that makes it.

    Raises:
        SystemExit: The worker was terminated, or failed after having told the node why.
    """
    signal.signal(signal.SIGTERM, _Terminated())
    with asyncio.Runner(loop_factory=_make_loop) as runner:
        runner.run(Worker(sock, app).serve())


def _make_loop() -> AccountedLoop:
    loop = AccountedLoop()
    os.register_at_fork(after_in_child=loop.leave_to_parent)
    return loop


def rehearse() -> None:
    """Does once, in a zygote, what each worker would do alike: what is looked up and kept then is theirs together."""
    let_coroutines_be_told()
    for outcome in (Success(), Skipped(), RetryAfter(1), Failed("")):
        pack_outcome(outcome)


class _Termination(SystemExit):
    """This process was told to end, whatever it does; any other SystemExit is a run's own doing."""


class _Terminated:
    """Raises in the main thread, once: a second signal must not break the clean-up off."""

    def __init__(self) -> None:
        self._raised = False

    def __call__(self, _signum: int, _frame: object) -> None:
        if not self._raised:
            self._raised = True
            raise _Termination(_TERMINATED)


@dataclass(slots=True)
class _Job:
    """One run under way, as the worker keeps it."""

    run: protocol.Run
    account: Account
    deadline: float
    piece: PieceContext | None = None
    task: asyncio.Task[None] | None = None
    cancelled_for: str | None = None
    late: int = 0


class Worker:
    """One space's side of the conversation.

    Args:
        sock: The worker's end of the channel.
        app: The application, or a function that makes it.
    """

    def __init__(self, sock: socket.socket, app: WorkerApp | Callable[[], WorkerApp]) -> None:
        self._sock = sock
        self._app = app
        self._jobs: dict[str, _Job] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._ready = False
        self._drains = False
        self._thread = threading.get_ident()

    async def serve(self) -> None:
        """Speaks with the node from hello to stop.

        Raises:
            SystemExit: Something failed that is not a run's; the node has been told.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._init: asyncio.Future[protocol.Init | None] = loop.create_future()
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._channel: Channel[protocol.ToWorker] = await Channel.open(
            self._sock, protocol.ToWorker, self._received, self._closed, last_word=_fatal
        )
        self._channel.send(protocol.Hello(version=protocol.VERSION, pid=os.getpid()))
        try:
            if (init := await self._init) is None:
                await self._stopped  # told to stop, or left alone, before it began
            else:
                await self._host_runs(init)
        except Exception as error:
            await self._tell_fatal(error)
            raise SystemExit(1) from error
        finally:
            self._channel.close()

    async def run_piece(self, job: _Job) -> None:
        """Carries out one update, from its definition to its result.

        Args:
            job: The run, with the account that this task runs under.
        """
        try:
            definition: PieceDefinition = self._host.piece(job.run.integration)
        except NotFoundError as error:  # this code lacks it, that of another node or of the next reload may not
            self._settle(job)
            self._send(protocol.Unknown(run_id=job.run.run_id, epoch=job.run.epoch, message=error.message))
            return
        # Not before: a neighbour that never lets go of the loop may keep this one from its first step.
        self._channel.send(protocol.Begun(run_id=job.run.run_id, epoch=job.run.epoch))
        try:
            outcome = await self._outcome(job, definition)
        finally:
            await job.account.clear()
            self._settle(job)  # at once: what was found clear is clear as long as nothing is awaited
        self._report(job, outcome)

    async def ask(self, op: str, args: dict[str, Any]) -> Any:
        """Asks the node to do something that only it can, and waits for the answer.

        Args:
            op: What: "publish", "enqueue", …
            args: With what; JSON values.

        Raises:
            PieceworkError: The node's own error, of its own class.
            StoppedError: The connection ended.
        """
        ident = next(self._ids)
        answer = self._asked[ident] = asyncio.get_running_loop().create_future()
        account = accounting.current()
        try:
            self._channel.send(protocol.Ask(id=ident, op=op, args=args, run_id=account.name if account else None))
            await self._channel.drain()
            return await answer
        except ClosedError as error:
            raise StoppedError(f"the node cannot be asked to {op}: it has ended the connection") from error
        finally:
            self._asked.pop(ident, None)

    async def _host_runs(self, init: protocol.Init) -> None:
        self._space = init.space
        layered = environment.for_worker(os.environ, init.env)
        os.environ.clear()
        os.environ.update(layered)
        limits.enter(init)
        if init.settings.get("space_run_cpu_seconds") is not None:
            from piecework.process import meter

            meter.note_current(lambda: account.name if (account := accounting.current()) else None)
        app: Any = self._app if hasattr(self._app, "worker_side") else self._app()
        # Half of what the node gives a run to stop in: so a program that ignores SIGTERM does not cost this process.
        self._ledger = Ledger(grace_seconds=Settings(**init.settings).space_grace_seconds / 2)
        async with app.worker_side(init, self.ask) as self._host:
            self._ledger.watch()
            self._streams = [Printed(sys.stdout, self._line("info")), Printed(sys.stderr, self._line("warning"))]
            sys.stdout, sys.stderr = self._streams
            gc.collect()
            gc.freeze()  # the collection at the end of each run then looks at what the run made
            async with asyncio.TaskGroup() as self._runs:
                self._ready = True
                self._channel.send(protocol.Ready())
                await self._stopped
                for job in self._jobs.values():
                    assert job.task is not None
                    job.task.cancel()
            await end_detached()

    async def _outcome(self, job: _Job, definition: PieceDefinition) -> Outcome:
        try:
            return await self._update(job, definition)
        except asyncio.CancelledError as error:
            return self._cancelled(job, error)
        except _Termination:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - becomes the run's outcome; sys.exit is a run's, too
            return _failed(error)

    async def _update(self, job: _Job, definition: PieceDefinition) -> Outcome:
        run = job.run
        job.account.policy = definition.accounting
        opening = self._host.workspace(space=self._space, key=run.idempotency_key, integration=run.integration)
        async with job.account.settled(job.deadline, thorough=False), opening as workspace:
            job.piece = self._context(run, workspace)
            async with job.account.settled(job.deadline):
                returned = await _call(definition.fn, job.piece)
        return as_outcome(returned)

    def _context(self, run: protocol.Run, workspace: Workspace) -> PieceContext:
        def log(level: str, message: str, fields: dict[str, Any]) -> None:
            self._log(run.run_id, level, str(message), fields=fields)

        def progress(fraction: float, message: str | None) -> None:
            self._say(protocol.Progress(run_id=run.run_id, fraction=fraction, message=message))

        return PieceContext(
            space=self._space,
            piece_id=run.piece_id,
            config=run.config,
            state=run.state,
            attempt=run.attempt,
            deadline=datetime.now(UTC) + timedelta(seconds=run.deadline_seconds),
            logger=PieceLogger(log),
            workspace=workspace,
            event=None if run.event is None else Event(**run.event),
            on_progress=progress,
        )

    def _cancelled(self, job: _Job, error: asyncio.CancelledError) -> Outcome:
        if job.cancelled_for is not None:
            return Failed(f"the run was stopped: {job.cancelled_for}", code=job.cancelled_for)
        if job.task is not None and job.task.cancelling():
            raise error  # this process ends: the run has no result, the node queues it again
        return _failed(error)

    def _settle(self, job: _Job) -> None:
        for stream in self._streams:
            stream.finish(job.account)
        if isinstance(self._loop, AccountedLoop):
            self._loop.forget(job.account)
        self._ledger.close(job.account, partial(self._late, job))

    def _late(self, job: _Job, trouble: str, error: BaseException | None) -> None:
        job.late += 1
        if job.late > _LATE_LIMIT:
            return  # a timer that sets itself again would go on for ever
        run, trouble = job.run, f"after the update had ended, {trouble}"
        told = describe(ExecutionFailedError(trouble)) if error is None else describe(error) | {"message": trouble}
        trace = "" if error is None else trace_of(error)
        self._say(protocol.Late(run_id=run.run_id, epoch=run.epoch, error=told | {"trace": trace}))

    def _line(self, level: str) -> Callable[[str, Account], bool]:
        def send(line: str, account: Account) -> bool:
            if self._channel.closed:
                return False
            self._log(account.name, level, line, source="print")
            return True

        return send

    def _log(self, run_id: str, level: str, message: str, **rest: Any) -> None:
        self._say(protocol.Log(level=level, message=clean_text(message), run_id=run_id, **rest))

    def _say(self, message: protocol.Message) -> None:
        """Sends, from any thread, what nobody waits for."""
        if threading.get_ident() == self._thread:
            self._send(message)
        else:
            with suppress(RuntimeError):  # the loop is closed: this process ends
                self._loop.call_soon_threadsafe(self._send, message)

    def _send(self, message: protocol.Message) -> None:
        if not self._channel.closed:
            self._channel.send(message)

    def _report(self, job: _Job, outcome: Outcome) -> None:
        state = None if job.piece is None or isinstance(outcome, Failed) else job.piece.state
        try:
            if state is not None:
                values.encode_mapping(state, what="piece.state")
            self._send_result(job.run, outcome, state)
        except ValidationError as error:
            self._send_result(job.run, _failed(error), None)

    def _send_result(self, run: protocol.Run, outcome: Outcome, state: dict[str, Any] | None) -> None:
        packed = pack_outcome(outcome)
        self._send(protocol.Result(run_id=run.run_id, epoch=run.epoch, outcome=packed, state=state))

    def _received(self, message: protocol.ToWorker) -> None:
        match message:
            case protocol.Init():
                self._take_init(message)
            case protocol.Run():
                self._begin(message)
            case protocol.Cancel():
                self._cancel(message)
            case protocol.Ping():
                self._channel.send(protocol.Pong(id=message.id))
            case protocol.Drain():
                self._drains = True
                self._stop_when_drained()
            case protocol.Stop():
                self._stop()
            case protocol.Reply():
                self._answered(message)

    def _take_init(self, init: protocol.Init) -> None:
        if self._init.done():
            raise ProtocolError("an Init came twice, or after a Stop")
        self._init.set_result(init)

    def _begin(self, run: protocol.Run) -> None:
        if not self._ready:
            raise ProtocolError("a Run came before this worker was ready")
        under_way = self._jobs.get(run.run_id)
        if under_way is not None:
            if under_way.run.epoch < run.epoch:
                raise ProtocolError("a Run came again under another owner while it was under way")
            return  # the same once more, or a stale one: it is done once
        deadline = asyncio.get_running_loop().time() + run.deadline_seconds
        account = self._ledger.open(run.run_id, partial(self._log, run.run_id))
        job = self._jobs[run.run_id] = _Job(run, account, deadline)
        job.task = job.account.start(self._runs.create_task, self.run_piece(job))
        job.task.add_done_callback(lambda _: self._over(run.run_id))

    def _cancel(self, message: protocol.Cancel) -> None:
        job = self._jobs.get(message.run_id)  # its result may have crossed the cancel
        if job is not None and job.task is not None:
            job.cancelled_for = message.reason
            self._tell_left(job)
            job.task.cancel()

    def _tell_left(self, job: _Job) -> None:
        what, making = job.account.left(), ", ".join(self._host.being_made(job.run.integration))
        if what or making:
            self._send(
                protocol.Left(
                    run_id=job.run.run_id, epoch=job.run.epoch, what=clean_text(what), making=clean_text(making)
                )
            )

    def _over(self, run_id: str) -> None:
        self._jobs.pop(run_id, None)
        self._stop_when_drained()

    def _stop_when_drained(self) -> None:
        if self._drains and not self._jobs:
            self._stop()

    def _stop(self) -> None:
        if not self._init.done():
            self._init.set_result(None)
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _answered(self, reply: protocol.Reply) -> None:
        answer = self._asked.get(reply.id)  # the asker may have been cancelled
        if answer is None or answer.done():
            return
        if reply.error is None:
            answer.set_result(reply.value)
        else:
            answer.set_exception(protocol.revive(reply.error))

    def _closed(self, error: Exception | None) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(StoppedError("the node has ended the connection"))
        if error is not None and not self._stopped.done():
            self._stopped.set_exception(error)
        self._stop()

    async def _tell_fatal(self, error: Exception) -> None:
        traceback.print_exception(error)
        if not self._channel.closed:
            self._channel.send(_fatal(error))


async def _call(function: Callable[[PieceContext], Any], piece: PieceContext) -> Any:
    """Calls an update and awaits what it returns, as often as that is something to await."""
    if inspect.iscoroutinefunction(function):
        returned = await function(piece)
    else:
        returned = await in_thread(function, piece)
    while inspect.isawaitable(returned):
        returned = await returned
    return returned


def _fatal(error: Exception) -> protocol.Fatal:
    return protocol.Fatal(error=describe(error) | {"trace": trace_of(error)})


def _failed(error: BaseException) -> Failed:
    if isinstance(error, MemoryError):
        message = f"MemoryError: {error} (a process of this space may have no more: hold less at once)"
        return Failed(message, code=MemoryLimitError.code, type="MemoryError", trace=trace_of(error))
    return failed_by(error, datetime.now(UTC))
