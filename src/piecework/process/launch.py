"""The node's handle of its zygote: starts it, asks it for workers, stops it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from typing import IO, TYPE_CHECKING, Any, TypeVar

from piecework.errors import AppImportError, CrashedError, InvalidStateError, StoppedError
from piecework.process import environment, linux
from piecework.process.child import Child, Output, readable
from piecework.process.lease import Lease
from piecework.process.limits import Limits
from piecework.process.spare import Spare
from piecework.process.zygote import MESSAGE_BYTES
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

_STOP_SECONDS = 5
_WORKER = "piecework.space.worker:main"
_NOBODY = "(spare)"
_LAST_LINES = 20


class Zygote:
    """A process that has the application imported and forks a worker in milliseconds.

    Args:
        target: The application as "module:attribute"; the attribute may also be a function that makes it.
        paths: `sys.path` over there.
        main_path: File of the script that the node runs as `__main__`, where `target` names that module.
        environ: The node's variables, secrets included: they are withheld here. None means its own.
        lease: When workers end without another word of this process; None has them end with it only.
        namespaces: False keeps workers together by sessions also where PID namespaces can be had.
        on_output: Called on the loop with each line that a process of ours prints, and the space it is for (None: the
            zygote itself).
        limits: What each worker, with all that it starts, may use; None is no limit at all.
        spare: Keep a worker ready for the next space while another has one.
    """

    def __init__(
        self,
        target: str,
        *,
        paths: Sequence[str],
        main_path: str | None = None,
        environ: Mapping[str, str] | None = None,
        lease: Lease | None = None,
        namespaces: bool = True,
        on_output: Callable[[str, str | None], None],
        limits: Limits | None = None,
        spare: bool = False,
    ) -> None:
        self._limits = limits or Limits()
        self._spare = Spare(lambda: self._fork(_NOBODY)) if spare else None
        self._target = target
        self._paths = list(paths)
        self._main_path = main_path
        self._environ = dict(os.environ if environ is None else environ)
        self._lease = lease or Lease()
        self._namespaces = namespaces
        self._on_output = on_output
        self._mode = ""
        self._findings: tuple[str, ...] = ()
        self._files: tuple[str, ...] = ()
        self._base = False
        self._lock = asyncio.Lock()
        self._ids = itertools.count(1)
        self._children: set[Child] = set()
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._requests: socket.socket | None = None
        self._output: Output | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int | None:
        """The zygote's pid while it runs."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def mode(self) -> str:
        """What holds all of a worker together here: "namespace", "user namespace", or "session"; see `launcher`."""
        return self._mode

    @property
    def findings(self) -> tuple[str, ...]:
        """What importing the application has left behind that workers cannot share: threads, loops, sockets, files.

        With threads among them, workers import the application themselves, each one anew.
        """
        return self._findings

    @property
    def files(self) -> tuple[str, ...]:
        """The source files that it has imported, or tried to, installed packages left out."""
        return self._files

    @property
    def alive(self) -> bool:
        """True from `start` until it has ended, for whatever reason."""
        if self._ended is None or self._ended.done():
            return False
        # The thread that waits for it may tell of its end only after its workers' ends, which are heard of elsewhere.
        return self._process is None or not _has_ended(self._process.pid)

    @property
    def spare(self) -> Child | None:
        """The worker that stands ready for the next space, where one does."""
        return None if self._spare is None else self._spare.ready

    async def start(self) -> None:
        """Starts the process and waits until it has imported the application.

        Raises:
            AppImportError: The import failed over there; the message carries its traceback.
            InvalidStateError: It runs already, or this system cannot supervise workers.
        """
        if not linux.can_run_workers():
            raise InvalidStateError("spaces need a Linux kernel with pidfds (5.4 or newer): run pieces on one")
        if self.alive:
            raise InvalidStateError(f"the zygote of {self._target!r} runs already")
        answer = await self._boot()
        self._findings = tuple(answer["findings"])
        if self._findings:
            signals.emit(signals.ZYGOTE_FINDINGS, level="warning", target=self._target, findings=self._findings)
        if answer["threads"]:
            await self.stop()
            self._base = True
            answer = await self._boot()
        self._mode = answer["mode"]
        signals.emit(signals.ZYGOTE_STARTED, pid=self.pid)

    async def fork(self, space: str, entry: str = _WORKER) -> Child:
        """Asks for a worker and waits until it is there.

        Args:
            space: The tenant that it will serve.
            entry: "module:function" that it calls with its socket and the application.

        Raises:
            StoppedError: The zygote does not run, or the node's lease has lapsed.
            CrashedError: The fork failed over there.
        """
        if self._lease.lapsed:
            raise StoppedError(
                f"space {space!r} gets no worker now: this node's lease has lapsed, and others may do its work; it "
                "gets one when the store can be reached again",
                space=space,
            )
        child = None if self._spare is None or entry != _WORKER else self._spare.take()
        if child is None:
            child = await self._fork(space, entry)
        child.space = space
        if self._spare is not None:
            self._spare.given(child)
        return child

    async def _fork(self, space: str, entry: str = _WORKER) -> Child:
        channel, worker_channel = socket.socketpair()
        control, keeper_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        owner: list[Child] = []
        output = Output(reading, lambda line: self._on_output(line, owner[0].space if owner else space))
        try:
            with worker_channel, keeper_control, open(writing, "wb", buffering=0):  # noqa: PTH123, ASYNC230 - a pipe's end: opening it waits for nothing
                await self._request(space, entry, [worker_channel.fileno(), keeper_control.fileno(), writing])
            child = await Child.meet(space, channel, control, output)
        except BaseException:
            # A keeper that has been forked meanwhile sees the end of its control connection, and kills its worker.
            channel.close()
            control.close()
            output.finish()
            raise
        owner.append(child)
        self._children.add(child)
        self._lease.bind(child)
        child.when_dead(lambda _: self._children.discard(child))
        return child

    async def stop(self) -> int | None:
        """Kills every worker that is left, ends the zygote, and returns when nothing of them runs; its exit status."""
        if self._spare is not None:
            self._spare.drop()
        for child in tuple(self._children):
            child.kill()
        for child in tuple(self._children):
            await child.dead()
        if self._requests is not None:
            with contextlib.suppress(OSError):
                self._requests.shutdown(socket.SHUT_RDWR)  # wakes a fork that waits, and the zygote
            async with self._lock:
                self._requests.close()
                self._requests = None
        if self._spare is not None:
            await self._spare.settled()
        status = await self._wait_for_end()
        for child in tuple(self._children):  # forked while we stopped: its keeper has seen the zygote end
            await child.dead()
        if self._output is not None:
            self._output.finish()
            self._output = None
        return status

    async def _wait_for_end(self) -> int | None:
        if self._ended is None or self._process is None:
            return None
        done, _ = await asyncio.wait({self._ended}, timeout=_STOP_SECONDS)
        if not done:  # still importing, or stuck there
            self._process.send_signal(signal.SIGKILL)
        return await asyncio.shield(self._ended)

    async def _boot(self) -> dict[str, Any]:
        """Starts a zygote and waits for its first word."""
        try:
            await self._launch()
            answer = await self._receive()
        except BaseException:
            await self.stop()
            raise
        self._files = tuple(dict.fromkeys((*self._files, *(answer or {}).get("files", ()))))
        if answer is None or "error" in answer:
            status = await self.stop()
            raise self._import_failed(answer, status)
        return answer

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setblocking(False)
        reading, writing = os.pipe()
        self._output = Output(reading, self._keep_line)
        self._ended = loop.create_future()
        started: asyncio.Future[subprocess.Popen[bytes]] = loop.create_future()
        with theirs, open(writing, "wb", buffering=0), self._boot_file() as boot:  # noqa: PTH123, ASYNC230 - a pipe's end: opening it waits for nothing
            command = self._command(theirs.fileno(), boot.fileno())
            options: dict[str, Any] = {
                "env": environment.real(self._environ),
                "stdout": writing,
                "stderr": writing,
                "pass_fds": (theirs.fileno(), boot.fileno()),
            }
            threading.Thread(
                target=_heartbeat,
                args=(loop, command, options, started, self._ended),
                name="piecework-zygote",
                daemon=True,
            ).start()
            try:
                self._process = await asyncio.shield(started)
            except asyncio.CancelledError:
                self._process = await started
                raise

    def _command(self, requests: int, boot: int) -> list[str]:
        numbers = ["--requests", str(requests), "--boot", str(boot), "--node", str(os.getpid())]
        return [sys.executable, "-P", "-m", "piecework.process.zygote", *numbers]

    def _boot_file(self) -> IO[str]:
        """Writes what may not be in the real environment to memory that only a descriptor reaches."""
        boot = {
            "target": self._target,
            "main_path": self._main_path,
            "paths": self._paths,
            "environ": environment.without_secrets(self._environ),
            "namespaces": self._namespaces,
            "base": self._base,
        }
        file = os.fdopen(os.memfd_create("piecework-boot"), "w+", encoding="utf-8")
        json.dump(boot, file)
        file.flush()
        file.seek(0)
        return file

    async def _request(self, space: str, entry: str, descriptors: list[int]) -> None:
        async with self._lock:
            if self._requests is None or not self.alive:
                raise StoppedError(
                    f"space {space!r} cannot get a worker: the zygote does not run; start it", space=space
                )
            ident = next(self._ids)
            asked = {
                "id": ident,
                "space": space,
                "entry": entry,
                "until": self._lease.until,
                "limits": self._limits.told(),
            }
            request = json.dumps(asked).encode()
            with contextlib.suppress(OSError):  # a zygote that is gone answers with the end of the connection
                socket.send_fds(self._requests, [request], descriptors)
            answer = await self._receive()
            while answer is not None and answer.get("id") != ident:  # to a caller that was cancelled meanwhile
                answer = await self._receive()
        if answer is None:
            raise StoppedError(
                f"space {space!r} got no worker: the zygote ended; the log has what it printed", space=space
            )
        if "error" in answer:
            error = answer["error"]
            raise CrashedError(
                f"space {space!r} got no worker: {error['type']}: {error['message']}", space=space, trace=error["trace"]
            )

    async def _receive(self) -> dict[str, Any] | None:
        """The next message of the zygote; None when there will be none."""
        assert self._requests is not None
        await readable(self._requests)
        with contextlib.suppress(ConnectionError):
            data = self._requests.recv(MESSAGE_BYTES)
            answer: dict[str, Any] | None = json.loads(data) if data else None
            return answer
        return None

    def _keep_line(self, line: str) -> None:
        self._last_lines.append(line)
        self._on_output(line, None)

    def _import_failed(self, answer: dict[str, Any] | None, status: int | None) -> AppImportError:
        if answer is not None:
            error = answer["error"]
            if error["type"] == AppImportError.__name__:
                return AppImportError(error["message"], target=self._target, trace=error["trace"])
            what, trace = f"{error['type']}: {error['message']}", error["trace"]
        else:
            what, trace = f"the process ended with status {status}", "\n".join(self._last_lines)
        return AppImportError(
            f"{self._target!r} cannot be imported in another process: {what}. "
            f"Give App(import_path='module:attribute'), and let nothing but definitions run on import.\n{trace}",
            target=self._target,
            trace=trace,
        )


def _has_ended(pid: int) -> bool:
    """Whether a child of ours has exited; leaves it to be reaped by whoever waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _heartbeat(
    loop: asyncio.AbstractEventLoop,
    command: list[str],
    options: dict[str, Any],
    started: asyncio.Future[subprocess.Popen[bytes]],
    ended: asyncio.Future[int],
) -> None:
    """Runs in a thread that lives as long as the zygote: a death signal comes when the *thread* that forked ends."""
    try:
        # A session of its own: an interrupt from a terminal is for the node, which stops its workers in order.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)  # noqa: S603 - our own interpreter and module
    except OSError as error:
        _tell(loop, ended.set_result, -1)
        _tell(loop, started.set_exception, error)
        return
    _tell(loop, started.set_result, process)
    _tell(loop, ended.set_result, process.wait())


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[T], None], value: T) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle, value)
