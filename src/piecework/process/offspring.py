"""The child processes of a worker, and which run each is of.

Two witnesses, because neither says all. The interpreter announces who starts a process and where, before it has a pid
(`subprocess`, `os.fork`, `os.posix_spawn`, `os.system`; `multiprocessing` does not, so we do), and nothing of C code.
The kernel's lists of children say which processes there are, by the thread that forked each, and nothing of the run.
What has left its parent is the keeper's by then: it is of whom its session or group tells, else of those that
started something last. A process that nobody announced may be of any run that was under way when it was first seen.
Of several whose a process may be the last to end waits for it.

Helpers of the standard library (the resource tracker and the fork server of `multiprocessing`) are nobody's.
"""

from __future__ import annotations

import _posixsubprocess
import asyncio
import contextlib
import os
import select
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.process import linux
from piecework.process.accounting import Account, current, place

if TYPE_CHECKING:
    from collections.abc import Iterator

_ANNOUNCING = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
_UNKNOWN = "an unknown line"
_WORDS_LIMIT = 100
_LIST_BYTES = 64 * 1024


@dataclass(slots=True)
class _Announced:
    """Somebody is about to start a process; `account` is None where no run does."""

    account: Account | None
    where: str
    thread: int


@dataclass(slots=True, eq=False)
class Process:
    """A process under this one that has not ended.

    Attributes:
        pid: As this process numbers it.
        pidfd: Stands for it whatever becomes of the number; -1 once it has ended.
        owners: Whose it may be; it is the last one's to wait for. Empty: nobody's.
        where: The line that started it, where known.
    """

    pid: int
    pidfd: int
    owners: set[Account]
    where: str
    grace_seconds: float
    helper: bool = False
    told: bool = False
    _ended: asyncio.Future[None] | None = field(default=None)

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done when it has ended, whether or not somebody has reaped it."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self.pidfd, self._close)
        return self._ended

    @property
    def what(self) -> str:
        """Its pid, and what it runs."""
        words = b""
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").strip()
        return f"the process {self.pid} ({words.decode('utf-8', 'backslashreplace')[:_WORDS_LIMIT]})"

    def over(self) -> bool:
        """Whether it has ended."""
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def cancel(self) -> None:
        """Has it terminated, and killed after the grace."""
        if not self.told and self.pidfd >= 0:
            self.told = True
            self._send(signal.SIGTERM)
            asyncio.get_running_loop().call_later(self.grace_seconds, self._send, signal.SIGKILL)

    def let_go(self) -> None:
        """Gives its descriptor back, from any thread, unless the loop will."""
        if self._ended is None and self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _close(self) -> None:
        if self._ended is not None and self.pidfd >= 0:
            self._ended.get_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
            if not self._ended.done():
                self._ended.set_result(None)

    def _send(self, signum: int) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(
                ProcessLookupError, PermissionError
            ):  # one that runs as somebody else: the keeper's
                signal.pidfd_send_signal(self.pidfd, signum)


class Offspring:
    """Knows the processes under this one. Made in the worker, before it carries out anything.

    Args:
        grace_seconds: Between SIGTERM and SIGKILL of what is cancelled.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._keeper = os.getppid()
        self._pid = os.getpid()
        self._adoptions: int | None = None
        self._open: set[Account] = set()
        self._known: dict[int, Process] = {}
        self._past: dict[int, Process] = {}
        self._announced: list[_Announced] = []
        self._starters: dict[Account, str] = {}
        self._lock = threading.RLock()
        # Where /proc counts otherwise than this process does its numbers say nothing here.
        self._blind = not os.path.exists("/proc/self") or os.readlink("/proc/self") != str(os.getpid())  # noqa: PTH110, PTH115 - the text of the link
        os.register_at_fork(after_in_child=self._leave)

    def watch(self) -> None:
        """Begins to hear who starts processes; there is no end of that."""

        def spawn(*args: Any) -> Any:
            """Stands for the interpreter's own function, which `multiprocessing` calls without a word."""
            self.announce()
            return fork_exec(*args)

        fork_exec = _posixsubprocess.fork_exec
        _posixsubprocess.fork_exec = spawn
        sys.addaudithook(self._witness)

    def announce(self) -> None:
        """Says that the caller is about to start a process."""
        if self._blind:
            return
        account, where, here = current(), place(), threading.get_native_id()
        with self._lock:
            self.look()  # whoever this thread announced before has a pid by now, or has ended
            self._announced = [one for one in self._announced if one.thread != here]
            self._announced.append(_Announced(account, where, here))
            if account is not None:
                self._starters[account] = where

    def _witness(self, event: str, _args: tuple[Any, ...]) -> None:
        if event in _ANNOUNCING:
            self.announce()

    def begin(self, account: Account) -> None:
        """Says that a run is under way; what there is before is not its own."""
        if self._known or self._announced or _has_children():
            self.look()
        self._open.add(account)

    def end(self, account: Account) -> None:
        """Says that a run has settled; what nobody knows the starter of is the others' from now on."""
        with self._lock:
            self._open.discard(account)
            self._starters.pop(account, None)
            for process in (*self._known.values(), *self._past.values()):
                process.owners.discard(account)
            self._past = {pid: process for pid, process in self._past.items() if process.owners}
            self._announced = [one for one in self._announced if one.account is not account]

    def of(self, account: Account) -> list[Process]:
        """The processes that this run is to wait for."""
        self.look()
        return [process for process in self._known.values() if process.owners == {account} and not process.over()]

    def look(self) -> None:
        """Asks the kernel which processes there are; notes whose the new ones are."""
        with self._lock:
            nothing = not self._known and not self._announced and not _has_children()
            if self._blind or (nothing and not self._adopted()):
                return
            seen: set[int] = set()
            for pid, parent, thread in self._tree():
                seen.add(pid)
                known = self._known.get(pid)
                if known is None or (known.over() and not _is_zombie(pid)):
                    self._meet(pid, parent, thread)
            for pid in self._known.keys() - seen:
                self._forget(pid)

    def _tree(self) -> Iterator[tuple[int, Process | None, int | None]]:
        """Every process under this one and what has left it: its pid, its parent, the thread that forked it."""
        fresh: list[tuple[int, Process | None, int | None]] = [
            (pid, None, thread) for thread, pids in _children_by_thread() for pid in pids
        ]
        fresh += [(pid, None, None) for pid in self._adopted()]
        while fresh:
            entry = fresh.pop()
            yield entry
            parent = self._known.get(entry[0])
            fresh += [(pid, parent, None) for pid in linux.children(entry[0])]

    def _forget(self, pid: int) -> None:
        process = self._known[pid]
        if process.over():
            process.let_go()
            self._past[pid] = self._known.pop(pid)

    def _leave(self) -> None:
        # In a process that was forked from this one, whose lock may be held by a thread that is not there.
        self._blind = True

    def _adopted(self) -> set[int]:
        """What the keeper has besides this process. Every run asks, so it is one call of the kernel."""
        with contextlib.suppress(OSError):  # it may not be looked at here: then nobody knows
            if self._adoptions is None:
                self._adoptions = os.open(f"/proc/{self._keeper}/task/{self._keeper}/children", os.O_RDONLY)
            return {int(pid) for pid in os.pread(self._adoptions, _LIST_BYTES, 0).split()} - {self._pid}
        return set()

    def _meet(self, pid: int, parent: Process | None, thread: int | None) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it has ended meanwhile, or there is no room: then it is met at the next look
            return
        if parent is not None and not parent.helper:
            owners, where = set(parent.owners), parent.where
        elif parent is not None:
            owners, where = set(self._open), _UNKNOWN
        elif thread is None and (leader := self._led_by(pid)) is not None:
            owners, where = set(leader.owners), leader.where
        else:
            owners, where = self._claim(thread)
        helper = pid in _helpers()
        self._known[pid] = Process(pid, pidfd, set() if helper else owners, where, self._grace_seconds, helper)

    def _led_by(self, pid: int) -> Process | None:
        """Who made the session or the group of a process that has left its parent."""
        for leader in _stat(pid)[2:4]:
            known = self._known.get(int(leader)) or self._past.get(int(leader))
            if known is not None:
                return known
        return None

    def _claim(self, thread: int | None) -> tuple[set[Account], str]:
        """Whose a process is that this thread has forked (None: it has left its parent), and where."""
        # A thread that has ended leaves its children to another, a process that has ended to the keeper.
        living = {int(name) for name in os.listdir("/proc/self/task")}  # noqa: PTH208 - `native_id` is wrong after a fork
        for one in self._announced:
            if one.thread == thread or (thread is not None and one.thread not in living):
                self._announced.remove(one)
                return (set() if one.account is None else {one.account}), one.where
        if thread is None:
            latest = {one.account: one.where for one in self._announced if one.account is not None}
            starters = latest or self._starters
            if starters:
                return set(starters), list(starters.values())[-1]
        return set(self._open), _UNKNOWN


def _children_by_thread() -> Iterator[tuple[int, list[int]]]:
    """The children of this process, by the thread that forked them."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield int(thread.name), [int(pid) for pid in (thread / "children").read_text("ascii").split()]


def _is_zombie(pid: int) -> bool:
    """Whether that process has ended and waits to be reaped; its number is taken as long."""
    return _stat(pid)[:1] == ["Z"]


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and more of a process; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return []


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _helpers() -> set[int]:
    """The pids of the standard library's own."""
    found = set()
    for module, made, attribute in (
        ("multiprocessing.resource_tracker", "_resource_tracker", "_pid"),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"),
    ):
        pid = getattr(getattr(sys.modules.get(module), made, None), attribute, None)
        if pid is not None:
            found.add(pid)
    return found
