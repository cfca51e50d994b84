"""The keeper: the process between the zygote and a worker, which sees to it that nothing survives.

It runs no user code and no event loop: it forks the worker, reaps, and obeys its node. It ends when everything under
it has ended, and only then, so that its own death (a pidfd that becomes readable) proves the worker's. As a subreaper
it inherits whatever its worker's children leave behind, daemons included: no child left means no descendant left.

Session mode: the keeper leads a session. A launcher that puts it into a PID namespace of its own calls `keep` there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

from piecework.process import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

KILL = b"kill"
TERMINATE = b"terminate"
_SWEEP_MILLISECONDS = 10


def keep(control: socket.socket, work: Callable[[], NoReturn], parent: int, *, for_worker: Iterable[int]) -> NoReturn:
    """Forks a worker that calls `work`, stays until all under it is gone, and exits. Called in a process of its own.

    Args:
        control: The keeper's end of its connection with the node. When the node's end closes, everything is killed.
        work: What the worker does; it never returns.
        parent: The zygote's pid.
        for_worker: Descriptors that only the worker may hold: while the keeper had them too, none would show an end.
    """
    os.setsid()
    linux.become_subreaper()
    wakeup = listen_to(signal.SIGCHLD, signal.SIGTERM)
    # SIGTERM, which is handled, and not SIGKILL: whoever kills the zygote must not set the worker's children free.
    linux.die_with_parent(signal.SIGTERM, parent)
    keeper = os.getpid()
    worker = fork()
    if not worker:
        wakeup.close()
        control.close()
        linux.die_with_parent(signal.SIGKILL, keeper)
        work()
    for descriptor in for_worker:
        os.close(descriptor)
    status = None
    with contextlib.suppress(OSError):  # a node that is gone shows as an end of the control connection
        _introduce(control, worker)
        status = _watch(control, wakeup, worker)
    status = _sweep(wakeup, worker, status)
    with contextlib.suppress(OSError):
        control.send(json.dumps({"status": status}).encode())
    os._exit(0)


def fork() -> int:
    """Forks; the child comes back with its signals fresh, and none is lost or misdirected on the way.

    Until a child has reset them, the handlers and the wakeup socket that it shares with its parent would take a signal
    that was meant for the child to the parent: so they are held back meanwhile.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _reset_signals()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return pid


def listen_to(*signals: signal.Signals) -> socket.socket:
    """Has each of these signals write its number to a socket, which is returned, instead of anything else."""
    inner, outer = socket.socketpair()
    inner.setblocking(False)
    outer.setblocking(False)
    for signum in signals:
        signal.signal(signum, _noted)
    signal.set_wakeup_fd(inner.detach(), warn_on_full_buffer=False)
    return outer


def _reset_signals() -> None:
    # To what a fresh interpreter has: handlers that an import installed are not inherited.
    written = signal.set_wakeup_fd(-1)
    if written >= 0:
        os.close(written)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # the C library keeps a few for itself
            signal.signal(signum, _FRESH.get(signum, signal.SIG_DFL))


_FRESH: dict[int, Callable[[int, FrameType | None], Any] | signal.Handlers] = {
    signal.SIGPIPE: signal.SIG_IGN,
    signal.SIGXFSZ: signal.SIG_IGN,
    signal.SIGINT: signal.default_int_handler,
}


def _noted(_signum: int, _frame: FrameType | None) -> None:
    """The number is in the wakeup socket; nothing else is to be done."""


def _introduce(control: socket.socket, worker: int) -> None:
    pidfds = [os.pidfd_open(os.getpid()), os.pidfd_open(worker)]
    socket.send_fds(control, [json.dumps({"worker": worker}).encode()], pidfds)
    for pidfd in pidfds:
        os.close(pidfd)


def _watch(control: socket.socket, wakeup: socket.socket, worker: int) -> int | None:
    """Waits until everything is to end; the worker's wait status if that is why."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wakeup.fileno():
                told_to_end = signal.SIGTERM in wakeup.recv(4096)
                status = reap().get(worker)
                if told_to_end or status is not None:
                    return status
                continue
            command = control.recv(64)
            if command != TERMINATE:
                return None
            _signal_all(signal.SIGTERM)


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


def _signal_all(signum: int) -> None:
    for pid in linux.descendants(os.getpid()):
        # A descendant that was reaped by its own parent since the look is gone; its number cannot be in use again
        # within these microseconds. Anything that is left is ours: every pid here was a descendant.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _sweep(wakeup: socket.socket, worker: int, status: int | None) -> int | None:
    """Kills until no child is left; the worker's wait status, which may come only now."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    while True:
        _signal_all(signal.SIGKILL)
        ended = reap()
        status = ended.get(worker, status)
        if _childless():
            return status
        if poll.poll(_SWEEP_MILLISECONDS):
            wakeup.recv(4096)


def _childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
