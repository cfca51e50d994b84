"""What only the kernel can tell or do: death signals, subreapers, pidfds, the list of children.

Everything here says so, and does nothing, where the kernel has no such thing (macOS): importing it never fails.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_TFD_TIMER_ABSTIME = 1
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 0x4000, 0x80000
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64
_PART_BYTES = 65536


def prepare() -> None:
    """Looks up what keepers and workers call of the C library, so that what they fork from has it already."""
    for name in ("prctl", "unshare", "setns", "mount", "capset", "timerfd_create", "timerfd_settime"):
        getattr(_libc(), name, None)


def can_run_workers() -> bool:
    """Tells whether this system has what a worker's supervision stands on: pidfds and prctl."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def die_with_parent(signum: int, parent: int) -> None:
    """Has the kernel send `signum` to this process when the thread that forked it ends.

    Args:
        signum: Which signal.
        parent: The parent's pid as it was before the fork; if it is gone already, the signal comes at once.
    """
    set_death_signal(signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def set_death_signal(signum: int) -> None:
    """Has the kernel send `signum` when the thread that is this process's parent ends; one that has ended is missed."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def become_subreaper() -> bool:
    """Makes orphans among this process's descendants its own children; False where there is no such thing."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def has_subreapers() -> bool:
    """Tells whether this kernel knows subreapers, without making this process one."""
    answer = ctypes.c_int()
    return _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer))


def forbid_inspection(*, forbidden: bool = True) -> bool:
    """Keeps other processes of the same user from reading this one's memory and environment, or lets them."""
    return _prctl(_PR_SET_DUMPABLE, int(not forbidden))


def can_unshare() -> bool:
    """Tells whether there is such a thing as a namespace at all; whether one can be had, only trying tells."""
    return sys.platform == "linux" and hasattr(_libc(), "unshare")


@functools.cache
def namespaces() -> str:
    """Tries in a process of its own what a zygote may here: "namespace", "user namespace", or "session" for none."""
    import subprocess  # late: a worker that never asks does not pay for it

    if not can_run_workers():
        return "session"
    command = [sys.executable, "-P", "-m", "piecework.process.launcher"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter and module
    return done.stdout.strip() or "session"


def unshare(*, user: bool = False) -> None:
    """Gives this process's next child a PID namespace of its own.

    Args:
        user: Puts this process into a user namespace first, which is what an ordinary user needs for the other.

    Raises:
        OSError: The kernel refuses.
    """
    if _libc().unshare(_CLONE_NEWPID | (_CLONE_NEWUSER if user else 0)) != 0:
        raise OSError(ctypes.get_errno(), "this process gets no namespace")


def share_again() -> None:
    """Gives children from the next on this process's own PID namespace again.

    Raises:
        OSError: The kernel refuses.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc().setns(own, _CLONE_NEWPID) != 0:
            raise OSError(ctypes.get_errno(), "this process does not get its namespace back")
    finally:
        os.close(own)


def unshare_mounts() -> bool:
    """Makes what is mounted from here on this process's own matter; False where that is not allowed."""
    return bool(_libc().unshare(_CLONE_NEWNS) == 0)


def mount_proc() -> bool:
    """Mounts a `/proc` of this PID namespace over the one that shows all; False where that is not allowed.

    Only for a process with a mount namespace of its own. Whatever the machine unmounts later goes from here too, and
    nothing that is mounted here shows outside.
    """
    libc = _libc()
    if libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) != 0:
        return False
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    return bool(libc.mount(b"proc", b"/proc", b"proc", flags, None) == 0)


def drop_capabilities() -> bool:
    """Gives up all capabilities, for good and for all that this process starts; True when none is left.

    Root keeps its user id, and what its files allow it; what its capabilities allowed besides is gone.
    """
    if sys.platform != "linux":
        return False
    for capability in range(_CAPABILITIES):
        _prctl(_PR_CAPBSET_DROP, capability)  # refused to who may not, and they have none to give
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    return bool(_libc().capset(header, (ctypes.c_uint32 * 6)()) == 0)


class Alarm:
    """A descriptor that becomes readable at a moment of CLOCK_BOOTTIME, which goes on while the machine sleeps."""

    def __init__(self) -> None:
        self._descriptor: int = _libc().timerfd_create(time.CLOCK_BOOTTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "this kernel gives no timer")

    def fileno(self) -> int:
        """The descriptor; it is poll's to wait for."""
        return self._descriptor

    def set(self, until: float | None) -> None:
        """Sets the moment, in seconds of that clock; None means never."""
        # A moment of zero would take the alarm off; one that has passed rings at once.
        moment = 0 if until is None else max(1, int(until * 1_000_000_000))
        # The interval is none; then the moment, each as seconds and nanoseconds.
        spec = (ctypes.c_long * 4)(0, 0, *divmod(moment, 1_000_000_000))
        if _libc().timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, spec, None) != 0:
            raise OSError(ctypes.get_errno(), f"the timer cannot be set to {until}")


def pid_of(pidfd: int) -> int:
    """Tells which process a pidfd stands for, as this process numbers it; -1 when it has been reaped."""
    fields = dict(
        line.split(":", 1) for line in read(f"/proc/self/fdinfo/{pidfd}").decode().splitlines() if ":" in line
    )
    return int(fields["Pid"])


def own_number() -> int:
    """This process as `/proc` numbers it: not as `os.getpid` in a namespace that has no `/proc` of its own."""
    return int(os.readlink("/proc/self"))  # noqa: PTH115 - as of `read`


def is_stopped(pid: int) -> bool:
    """Tells whether a process has been stopped by a signal or a debugger; False when it is gone."""
    try:
        text = read(f"/proc/{pid}/stat")
    except OSError:
        return False
    return text.rpartition(b")")[2].split()[0] in (b"T", b"t")


def read(path: str) -> bytes:
    """Reads a file of `/proc`, in the way that touches the fewest pages: all of them that a fork touches are copied.

    Raises:
        OSError: It is not there, or not to be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, _PART_BYTES):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def children(pid: int) -> set[int]:
    """Lists the processes that `pid` is the parent of, zombies included; empty when it is gone."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - a Path for each would touch many pages
            found.update(map(int, read(f"/proc/{pid}/task/{thread}/children").split()))
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


def command(pid: int) -> str | None:
    """The name of what a process runs, as the kernel keeps it; None when it is gone, or has ended."""
    try:
        found = read(f"/proc/{pid}/stat").decode("utf-8", "backslashreplace")
    except OSError:
        return None
    name, _, rest = found.partition("(")[2].rpartition(")")
    return None if rest.split()[:1] == ["Z"] else name


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    return bool(_libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
