"""The keeper: the process between the zygote and a worker, which sees to it that nothing survives.

It runs no user code and no event loop: it forks the worker, reaps, and obeys its node. It ends when everything under
it has ended, and only then, so that its own death (a pidfd that becomes readable) proves the worker's.

Namespace mode: it is the first process of a PID namespace (`launcher` has made it so), and whatever the worker and its
children become, the kernel ends it with the keeper. Session mode, where no namespace can be had: as a subreaper it
inherits what they leave behind, daemons included, and kills until it has no child: no child left means no descendant
left.

It speaks with its node in JSON datagrams over one socket. The node says `{"do": "terminate"}`, `{"do": "kill"}` and
`{"do": "lease", "until": seconds of CLOCK_BOOTTIME, or null for no end}`; the keeper `{"worker": pid}`, with pidfds of
itself and of the worker, now and then `{"usage": …}` as its meter has it, and at last `{"status": wait status or null,
"why": one of the words below}`, with the `reason`, a code and a message, where that is a limit.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the typeshed knows only the module above it
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from piecework.process import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from piecework.process.limits import Limits
    from piecework.process.meter import Meter

MESSAGE_BYTES: Final = 4096
EXITED: Final = "exited"  # the worker ended by itself
TOLD: Final = "told"  # the node said kill
NODE: Final = "node"  # the node's end of the connection closed
ZYGOTE: Final = "zygote"  # the zygote ended
LEASE: Final = "lease"  # the node has not renewed in time: it may stand still, and others may do its work
LIMIT: Final = "limit"  # it used more than it may
_SWEEP_MILLISECONDS = 10
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode
_libc: Final = ctypes.PyDLL(
    None, use_errno=True
)  # it keeps the interpreter's lock: a child that waited for it would hang


def keep(
    control: socket.socket,
    work: Callable[[], NoReturn],
    *,
    parent: int | None,
    for_worker: Iterable[int],
    until: float | None = None,
    limits: Limits,
) -> NoReturn:
    """Forks a worker that calls `work`, stays until all under it is gone, and exits. Called in a process of its own.

    Args:
        control: The keeper's end of its connection with the node. When the node's end closes, everything is killed.
        work: What the worker does; it never returns.
        parent: The zygote's pid; None when this is the first process of a namespace, which dies with the zygote.
        for_worker: Descriptors that only the worker may hold: while the keeper had them too, none would show an end.
        until: When the lease lapses and everything is killed, in seconds of CLOCK_BOOTTIME; None is never.
        limits: What all that is under it may use.
    """
    from piecework.process.limits import separate_memory  # late: a node reads this file for its words only
    from piecework.process.meter import Meter, hang_up_board

    os.setsid()
    if parent is None:
        separate_memory(limits)
        wakeup = listen_to(signal.SIGCHLD)
    else:
        linux.become_subreaper()
        wakeup = listen_to(signal.SIGCHLD, signal.SIGTERM)
        # SIGTERM, which is handled, and not SIGKILL: whoever kills the zygote must not set the worker's children free.
        linux.die_with_parent(signal.SIGTERM, parent)
    keeper = os.getpid()
    meter = Meter(limits, hang_up_board())
    worker = fork()
    if not worker:
        wakeup.close()
        control.close()
        linux.die_with_parent(signal.SIGKILL, keeper)
        work()
    for descriptor in for_worker:
        os.close(descriptor)
    _Keeper(control, wakeup, worker, meter, namespace=parent is None).stay(until)
    os._exit(0)


class _Keeper:
    """What a keeper does once its worker is there.

    Args:
        control: The connection with the node.
        wakeup: Where the numbers of signals arrive.
        worker: The worker's pid as this process numbers it.
        meter: What tells how much is used.
        namespace: Whether all that this process may signal is its own.
    """

    def __init__(
        self, control: socket.socket, wakeup: socket.socket, worker: int, meter: Meter, *, namespace: bool
    ) -> None:
        self._control = control
        self._wakeup = wakeup
        self._worker = worker
        self._meter = meter
        self._reason: dict[str, str] | None = None
        self._namespace = namespace
        self._lease = linux.Alarm()
        self._status: int | None = None

    def stay(self, until: float | None) -> None:
        """Watches until everything is to end, ends it, and tells the node how and why."""
        why = NODE
        with contextlib.suppress(OSError):  # a node that is gone shows as an end of the control connection
            self._introduce()
            self._lease.set(until)
            why = self._watch()
        self._sweep()
        with contextlib.suppress(OSError):
            self._control.send(_encode({"status": self._status, "why": why, "reason": self._reason}))

    def _introduce(self) -> None:
        pidfds = [os.pidfd_open(os.getpid()), os.pidfd_open(self._worker)]
        socket.send_fds(self._control, [_encode({"worker": self._worker})], pidfds)
        for pidfd in pidfds:
            os.close(pidfd)

    def _watch(self) -> str:
        """Waits until everything is to end; answers why."""
        poll = select.poll()
        for source in (self._control, self._wakeup, self._lease):
            poll.register(source, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(self._meter.wait_milliseconds):
                why: str | None = LEASE
                if descriptor == self._wakeup.fileno():
                    why = self._look()
                elif descriptor == self._control.fileno():
                    why = self._obey(self._control.recv(MESSAGE_BYTES))
                if why is not None:
                    return why
            self._measure()
            if self._reason is not None:
                return LIMIT

    def _look(self) -> str | None:
        """After a signal: whether it says that this is the end."""
        told_to_end = signal.SIGTERM in self._wakeup.recv(4096)
        self._status = reap().get(self._worker)
        if self._status is not None:
            return EXITED
        return ZYGOTE if told_to_end else None

    def _obey(self, data: bytes) -> str | None:
        """Does what the node says; why this is the end, if it is."""
        if not data:
            return NODE
        command = _decode(data)
        match command["do"]:
            case "terminate":
                self._signal_all(signal.SIGTERM)
            case "lease":
                self._lease.set(command["until"])
            case _:
                return TOLD
        return None

    def _measure(self) -> None:
        news, self._reason = self._meter.look()
        if news is not None:
            with contextlib.suppress(BlockingIOError):  # a node that is slow to read hears the next one
                self._control.send(_encode({"usage": news}), socket.MSG_DONTWAIT)

    def _signal_all(self, signum: int) -> None:
        if self._namespace and os.getpid() == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signum)  # everything in the namespace but its first process
            return
        for pid in linux.descendants(os.getpid()):
            # A descendant that was reaped by its own parent since the look is gone; its number cannot be in use again
            # within these microseconds. Anything that is left is ours: every pid here was a descendant.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)

    def _sweep(self) -> None:
        """Kills until no child is left; the worker's wait status may come only now."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while True:
            self._signal_all(signal.SIGKILL)
            self._status = reap().get(self._worker, self._status)
            if _childless():
                return
            if poll.poll(_SWEEP_MILLISECONDS):
                self._wakeup.recv(4096)


def fork(*, bare: bool = False) -> int:
    """Forks; the child comes back with its signals fresh, and none is lost or misdirected on the way.

    Until a child has reset them, the handlers and the wakeup socket that it shares with its parent would take a signal
    that was meant for the child to the parent: so they are held back meanwhile.

    Args:
        bare: By the C library alone. What the interpreter, and who asked it to, do in every forked child is left out:
            locks made anew, random numbers, `os.register_at_fork`. Only for a process without threads, and a child that
            runs nothing but this package's; what that forks in turn has all of it done.
    """
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = _fork_of_libc() if bare else os.fork()
        if not pid:
            _reset_signals()
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    return pid


def spawn(work: Callable[[], NoReturn]) -> int:
    """Forks bare; the child calls `work`, and ends in any case: what fails there is told on standard error."""
    pid = fork(bare=True)
    if not pid:
        try:
            work()
        except BaseException:  # noqa: BLE001 - there is nobody above
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    return pid


def listen_to(*signals: signal.Signals) -> socket.socket:
    """Has each of these signals write its number to a socket, which is returned, instead of anything else."""
    inner, outer = socket.socketpair()
    inner.setblocking(False)
    outer.setblocking(False)
    for signum in signals:
        signal.signal(signum, _noted)
    signal.set_wakeup_fd(inner.fileno(), warn_on_full_buffer=False)
    _written.append(inner)
    return outer


_written: Final[list[socket.socket]] = []
"""Where this process's signals are noted. Python forgets that in a child as soon as it knows asyncio, from 3.12 on."""


def _reset_signals() -> None:
    # To what a fresh interpreter has: handlers that an import installed are not inherited.
    _signal.set_wakeup_fd(-1)
    while _written:
        _written.pop().close()
    for signum in _SIGNALS:
        fresh = _FRESH.get(signum, _signal.SIG_DFL)
        if _signal.getsignal(signum) != fresh:
            with contextlib.suppress(OSError):  # the C library keeps a few for itself
                _signal.signal(signum, fresh)


# Numbers, and the module below `signal`: that one makes members of enumerations of them, which a fork then has copied.
_SIGNALS: Final = tuple(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_FRESH: Final[dict[int, Any]] = {
    int(signal.SIGPIPE): int(signal.SIG_IGN),
    int(signal.SIGXFSZ): int(signal.SIG_IGN),
    int(signal.SIGINT): signal.default_int_handler,
}


def _fork_of_libc() -> int:
    pid: int = _libc.fork()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "this process cannot be forked")
    return pid


def _noted(_signum: int, _frame: FrameType | None) -> None:
    """The number is in the wakeup socket; nothing else is to be done."""


def reap() -> dict[int, int]:
    """Collects children that have ended, without waiting: pid → wait status."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended[pid] = status
    return ended


def _childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
