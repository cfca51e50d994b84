"""What puts a keeper into a PID namespace of its own.

Who unshares does not enter the new namespace, its next child does, as the first process there. When that one ends, for
whatever reason, the kernel ends all the others, and tells of its end only when they are gone.

Root does it outright: the zygote unshares, forks the keeper, and shares again. An ordinary user needs a user namespace
around it, where the machine allows those, and one for each space, whose processes are counted there: nobody leaves one
again, so the zygote forks a launcher, which unshares, forks the keeper, and ends. Run as a module it prints which of
them is possible here.
"""

from __future__ import annotations

import os
import select
import signal
from enum import StrEnum
from functools import partial
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


def start(keep: Callable[[], NoReturn], mode: Mode, zygote: int) -> int:
    """Has `keep` called in the first process of a new namespace; answers the child that the zygote is to bury.

    Called in the zygote; where it ends in a child, that child ends.

    Args:
        keep: What the keeper does.
        mode: Which kind of namespace.
        zygote: A pidfd of the zygote, with which the keeper ends; closed before `keep` is called.

    Raises:
        OSError: The kernel gives no namespace: there are too many, or it was forbidden meanwhile.
    """
    if mode is Mode.USER_NAMESPACE:
        return keeper.spawn(partial(_launch, keep, zygote))
    linux.unshare()
    try:
        return keeper.spawn(partial(_become_keeper, keep, zygote))
    finally:
        linux.share_again()


def _launch(keep: Callable[[], NoReturn], zygote: int) -> NoReturn:
    _enter_user_namespace()
    # Told by the kernel only after the keeper has got another parent: its end would count as the parent's otherwise.
    launcher = os.pidfd_open(os.getpid())
    if keeper.fork(bare=True):
        os._exit(0)
    _wait_for(launcher)
    os.close(launcher)
    _become_keeper(keep, zygote)


def _become_keeper(keep: Callable[[], NoReturn], zygote: int) -> NoReturn:
    linux.set_death_signal(signal.SIGKILL)
    if _has_ended(zygote):
        os._exit(1)
    os.close(zygote)
    if linux.unshare_mounts():
        linux.mount_proc()
    keep()


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    linux.forbid_inspection(forbidden=False)  # else what is in /proc/self is not ours to write
    linux.unshare(user=True)
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    linux.forbid_inspection()


def _try(mode: Mode) -> bool:
    """Makes a namespace in a child of its own, and has a first process there."""
    pid = keeper.fork()
    if not pid:
        status = 1
        try:
            if mode is Mode.USER_NAMESPACE:
                _enter_user_namespace()
            else:
                linux.unshare()
            if not (inner := keeper.fork()):
                os._exit(int(os.getpid() != 1))
            if mode is Mode.NAMESPACE:
                linux.share_again()
            status = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
        except OSError:
            pass  # this is the answer
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


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
