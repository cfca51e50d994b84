"""What everything under a keeper uses: memory, processes, processor time. The keeper looks, and ends what is too much.

Looking costs a few reads for each process, so it is seldom done while little happens and often while much does. Whose
processor time it is the keeper cannot know; a worker that is asked to writes the run whose code it is running on a
board that both see, with how much it has used itself by then, whenever that is another fiftieth of a second.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import signal
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from piecework.errors import MemoryLimitError, ProcessLimitError
from piecework.process import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from piecework.process.limits import Limits

_OFTEN_SECONDS, _SELDOM_SECONDS = 0.05, 0.4
_MUCH_CPU = 0.25  # of one processor: below that, what is looked at seldom cannot grow fast
_NOTED_BYTES = 1024 * 1024
_BOARD = struct.Struct("=IId")
_BOARD_BYTES = 1024
_CURRENT_EVERY_SECONDS = 0.02
_UNCLEAR_SECONDS = 0.15  # so much may be used before it is told without a word on whose it is
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What some processes use together.

    Attributes:
        memory_bytes: What is resident or swapped out, but for files' pages.
        processes: How many there are.
        cpu_seconds: Processor time so far, that of processes that have ended included.
    """

    memory_bytes: int
    processes: int
    cpu_seconds: float


class Board:
    """A page that a keeper and its worker share: which run's code was running when it was last written."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _BOARD_BYTES)
        self._seen, self._seconds = 0, 0.0

    def write(self, name: str, cpu_seconds: float) -> None:
        """Notes a run, and what its process has used so far, in the worker."""
        data = name.encode()[: _BOARD_BYTES - _BOARD.size]
        count, _, _ = _BOARD.unpack_from(self._page)
        self._page[_BOARD.size : _BOARD.size + len(data)] = data
        _BOARD.pack_into(self._page, 0, (count + 1) & 0xFFFFFFFF, len(data), cpu_seconds)

    def read(self) -> tuple[str | None, float] | None:
        """The run that was noted since the last look, None for no run, and what the worker has used in between.

        None when nothing was noted. In the keeper; what stands there is a worker's word and may be anything.
        """
        count, length, seconds = _BOARD.unpack_from(self._page)
        if count == self._seen:
            return None
        used, self._seen, self._seconds = seconds - self._seconds, count, seconds
        name = self._page[_BOARD.size : _BOARD.size + min(length, _BOARD_BYTES)].decode("utf-8", "replace")
        return name or None, used if 0 <= used < math.inf else 0.0


_board: Board | None = None


def hang_up_board() -> Board:
    """Makes the board that this process and what it forks share."""
    global _board  # noqa: PLW0603 - a page that the worker finds again after the fork, as the keeper made it
    _board = Board()
    return _board


def note_current(name_of_current: Callable[[], str | None]) -> None:
    """Has this process note on the board whose code it runs, as often as it uses some processor time.

    Args:
        name_of_current: The run whose code is running, asked in the main thread between two instructions.
    """
    board = _board
    if board is None:
        return

    def note(_signum: int, _frame: object) -> None:
        """Runs in the context of whatever it interrupted."""
        board.write(name_of_current() or "", time.process_time())

    signal.signal(signal.SIGPROF, note)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, _CURRENT_EVERY_SECONDS, _CURRENT_EVERY_SECONDS)


class Meter:
    """A keeper's view of what is under it.

    Args:
        limits: What is too much.
        board: Where the worker notes whose code it runs.
    """

    def __init__(self, limits: Limits, board: Board) -> None:
        self._limits = limits
        self._board = board
        self._me = linux.own_number()
        self._born_bytes = _memory(self._me)
        self._last = Usage(0, 0, 0.0)
        self._told = self._last
        self._looked_at = time.monotonic()
        self._wait_seconds = _OFTEN_SECONDS

    @property
    def wait_milliseconds(self) -> int:
        """How long until the next look is due."""
        return max(0, round((self._looked_at + self._wait_seconds - time.monotonic()) * 1000))

    def look(self) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        """Looks at what is used, where that is due.

        Returns:
            What the node should hear, or None; and why everything is to end, as code and message, or None.
        """
        now = time.monotonic()
        passed = now - self._looked_at
        if passed < self._wait_seconds:
            return None, None
        usage = self._usage()
        busy = usage.cpu_seconds - self._last.cpu_seconds > _MUCH_CPU * passed
        self._wait_seconds = (
            _OFTEN_SECONDS if busy or self._near(usage) else min(2 * self._wait_seconds, _SELDOM_SECONDS)
        )
        self._looked_at, self._last = now, usage
        return self._news(usage), self._excess(usage)

    def _near(self, usage: Usage) -> bool:
        memory, processes = self._limits.memory_bytes, self._limits.processes
        return (memory is not None and usage.memory_bytes * 2 > memory) or (
            processes is not None and usage.processes * 2 > processes
        )

    def _usage(self) -> Usage:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        memory, cpu, count = -self._born_bytes, ended.ru_utime + ended.ru_stime, 0
        for pid in linux.descendants(self._me):
            memory += _memory(pid)
            cpu += _cpu_seconds(pid)
            count += 1
        return Usage(max(0, memory), count, cpu)

    def _news(self, usage: Usage) -> dict[str, Any] | None:
        told, whose = self._told, self._board.read()
        used = usage.cpu_seconds - told.cpu_seconds
        if not (
            (self._limits.run_cpu_seconds is not None and (whose is not None or used > _UNCLEAR_SECONDS))
            or abs(usage.memory_bytes - told.memory_bytes) >= _NOTED_BYTES
            or usage.processes != told.processes
        ):
            return None
        self._told = usage
        run_id, seconds = whose or (None, 0.0)
        return {
            "memory_bytes": usage.memory_bytes,
            "processes": usage.processes,
            "cpu_seconds": usage.cpu_seconds,
            "run_id": run_id,
            "run_cpu_seconds": min(seconds, used + _UNCLEAR_SECONDS),
        }

    def _excess(self, usage: Usage) -> dict[str, str] | None:
        memory, processes = self._limits.memory_bytes, self._limits.processes
        if processes is not None and usage.processes > processes:
            return _reason(
                ProcessLimitError.code,
                f"{usage.processes} processes at once, and {processes} are allowed: start fewer at a time, or raise "
                "space_processes",
            )
        if memory is not None and usage.memory_bytes > memory:
            used = self._closer_look(usage)
            if used > memory:
                return _reason(
                    MemoryLimitError.code,
                    f"{used >> 20} MiB of memory in all, and {memory >> 20} are allowed: hold less at once, or raise "
                    "space_memory_bytes",
                )
        return None

    def _closer_look(self, usage: Usage) -> int:
        """The memory in use without what counted twice: pages that processes share. It takes longer."""
        pids = linux.descendants(self._me)
        used = _shared_out(pids)
        if used is not None:
            return used - self._born_bytes
        # The kernel does not tell us. What each fork of the worker is born with is known all the same.
        twins = sum(_command(pid) == _command(self._me) for pid in pids)
        return usage.memory_bytes - self._born_bytes * max(0, twins - 1)


def _reason(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def _memory(pid: int) -> int:
    """What a process has resident or swapped out, but for files' pages; 0 when it is gone."""
    return _sum_of(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:", b"VmSwap:")) or 0


def _shared_out(pids: Iterable[int]) -> int | None:
    """The same for several, with what they share counted once; None when the kernel does not tell us."""
    total = 0
    for pid in pids:
        used = _sum_of(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:"))
        if used is None:
            return None
        total += used
    return total


def _sum_of(path: str, names: tuple[bytes, ...]) -> int | None:
    try:
        text = linux.read(path)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _command(pid: int) -> bytes:
    """What a process was started as: that of its parent, as long as it has started nothing else."""
    with suppress(OSError):
        return linux.read(f"/proc/{pid}/cmdline")
    return b""


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that it has seen end; 0 when it is gone."""
    try:
        fields = linux.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS
