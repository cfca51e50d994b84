"""The launcher: a process that lives for a moment, to put a keeper into a PID namespace of its own.

Who unshares does not enter the new namespace, its next child does, as the first process there. So the zygote forks a
launcher, the launcher unshares and forks the keeper, and ends. When the first process of a namespace ends, for
whatever reason, the kernel ends all the others, and tells of its end only when they are gone.

Root does that outright; an ordinary user with a user namespace around it, where the machine allows those. Run as a
module it prints which of them is possible here.
"""

from __future__ import annotations

import os
import select
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from piecework.process import keeper, linux

if TYPE_CHECKING:
    from collections.abc import Callable


class Mode(StrEnum):
    """What holds together all that a worker starts."""

    SESSION = "session"
    NAMESPACE = "namespace"
    USER_NAMESPACE = "user namespace"


def probe() -> Mode:
    """Finds out, by doing it, what this process may; for a process without threads, as it forks."""
    for mode in (Mode.NAMESPACE, Mode.USER_NAMESPACE):
        if linux.can_unshare() and _try(mode):
            return mode
    return Mode.SESSION


def launch(keep: Callable[[], NoReturn], mode: Mode, zygote: int) -> NoReturn:
    """Has `keep` called in the first process of a new namespace, and ends. Called in a process forked for it.

    Args:
        keep: What the keeper does.
        mode: Which kind of namespace.
        zygote: A pidfd of the zygote, with which the keeper ends; closed before `keep` is called.

    Raises:
        OSError: The kernel gives no namespace: there are too many, or it was forbidden meanwhile.
    """
    own_mounts = _unshare(mode)
    # Told by the kernel only after the keeper has got another parent: its end would count as the parent's otherwise.
    launcher = os.pidfd_open(os.getpid())
    if keeper.fork(bare=True):
        os._exit(0)
    _wait_for(launcher)
    linux.set_death_signal(signal.SIGKILL)
    if _has_ended(zygote):
        os._exit(1)
    os.close(launcher)
    os.close(zygote)
    if own_mounts:
        linux.mount_proc()
    keep()


def _unshare(mode: Mode) -> bool:
    user, group = os.geteuid(), os.getegid()
    if mode is Mode.USER_NAMESPACE:
        linux.forbid_inspection(forbidden=False)  # else what is in /proc/self is not ours to write
    own_mounts = linux.unshare(user=mode is Mode.USER_NAMESPACE)
    if mode is Mode.USER_NAMESPACE:
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    linux.forbid_inspection()
    return own_mounts


def _try(mode: Mode) -> bool:
    """Makes a namespace and lets its first process say a word."""
    reading, writing = os.pipe()
    pid = keeper.fork()
    if not pid:
        try:
            _unshare(mode)
            if inner := keeper.fork():
                os.waitpid(inner, 0)
            elif os.getpid() == 1:
                os.write(writing, b"1")
        except OSError:
            pass  # this is the answer
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor has no path
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer == b"1"


def _wait_for(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


if __name__ == "__main__":
    print(probe())  # noqa: T201 - to whoever asked
