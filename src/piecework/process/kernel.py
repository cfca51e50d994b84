"""Calls of the kernel that Python has no function for, and what both fences need before they can be put up.

Only to be used on Linux: elsewhere there is nothing to call.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_MS_NOSUID, _MS_NODEV = 2, 4
_libc: Final = ctypes.CDLL(None, use_errno=True)


def call(number: int, *args: object) -> int:
    """Makes a system call by its number; below 0 it has failed, and `ctypes.get_errno` says how."""
    return int(_libc.syscall(ctypes.c_long(number), *args))


def prctl(option: int, value: int = 0, pointer: object = 0) -> int:
    """Asks for, or changes, something about this process; below 0 it has failed."""
    return int(_libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0))


def mount_memory(at: str, size_bytes: int | None) -> bool:
    """Mounts a file system in memory that everybody may write to; False where that is not allowed.

    Only in a mount namespace whose mounts show nowhere else.

    Args:
        at: The folder.
        size_bytes: How much it holds; None is what the kernel thinks fit.
    """
    size = "" if size_bytes is None else f",size={size_bytes}"
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    return bool(_libc.mount(b"tmpfs", at.encode(), b"tmpfs", flags, f"mode=1777{size}".encode()) == 0)


def gain_no_privileges() -> bool:
    """Has no program that is started from here on gain privileges, by setuid bits or file capabilities."""
    return prctl(_PR_SET_NO_NEW_PRIVS, 1) == 0
