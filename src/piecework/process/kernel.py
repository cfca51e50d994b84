"""Calls of the kernel that Python has no function for, and what both fences need before they can be put up.

Only to be used on Linux: elsewhere there is nothing to call.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_libc: Final = ctypes.CDLL(None, use_errno=True)


def call(number: int, *args: object) -> int:
    """Makes a system call by its number; below 0 it has failed, and `ctypes.get_errno` says how."""
    return int(_libc.syscall(ctypes.c_long(number), *args))


def prctl(option: int, value: int = 0, pointer: object = 0) -> int:
    """Asks for, or changes, something about this process; below 0 it has failed."""
    return int(_libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0))


def gain_no_privileges() -> bool:
    """Has no program that is started from here on gain privileges, by setuid bits or file capabilities."""
    return prctl(_PR_SET_NO_NEW_PRIVS, 1) == 0
