"""What only the kernel can tell or do: death signals, subreapers, pidfds, the list of children.

Everything here says so, and does nothing, where the kernel has no such thing (macOS): importing it never fails.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


def can_run_workers() -> bool:
    """Tells whether this system has what a worker's supervision stands on: pidfds and prctl."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def die_with_parent(signum: int, parent: int) -> None:
    """Has the kernel send `signum` to this process when the thread that forked it ends.

    Args:
        signum: Which signal.
        parent: The parent's pid as it was before the fork; if it is gone already, the signal comes at once.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def become_subreaper() -> bool:
    """Makes orphans among this process's descendants its own children; False where there is no such thing."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def has_subreapers() -> bool:
    """Tells whether this kernel knows subreapers, without making this process one."""
    answer = ctypes.c_int()
    return _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))


def forbid_inspection() -> bool:
    """Keeps other processes of the same user from reading this one's memory and environment."""
    return _prctl(_PR_SET_DUMPABLE, 0)


def pid_of(pidfd: int) -> int:
    """Tells which process a pidfd stands for, as this process numbers it; -1 when it has been reaped."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(fields["Pid"])


def children(pid: int) -> set[int]:
    """Lists the processes that `pid` is the parent of, zombies included; empty when it is gone."""
    found: set[int] = set()
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found.update(map(int, (thread / "children").read_text("ascii").split()))
    except OSError:  # it ended while we looked, or there is no /proc
        return found
    return found


def descendants(pid: int) -> set[int]:
    """Lists everything under `pid`, itself not included, as of one look; what forks meanwhile may be missed."""
    found: set[int] = set()
    fresh = children(pid)
    while fresh:
        found |= fresh
        fresh = set().union(*map(children, fresh)) - found
    return found


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0)
