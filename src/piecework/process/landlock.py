"""Landlock, the kernel's own fence: what is not named can be neither read nor written by a thread and what it starts.

Three system calls, raw because no library of Python's has them. A fence needs no privilege, cannot be taken down again,
and is inherited by everything that is started behind it. Nothing here does anything where the kernel has no Landlock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from piecework.process.kernel import call, gain_no_privileges

if TYPE_CHECKING:
    from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION_ONLY = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# How many rights the first versions knew: each later one added some, and an older kernel refuses what it does not know.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_RIGHTS_NOW = 16
_SCOPE_SIGNALS = 1 << 1
_FIRST_WITH_SCOPES = 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Which version of Landlock this kernel offers; 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, call(_CREATE, None, 0, _VERSION_ONLY))


def scopes_signals() -> bool:
    """Tells whether this kernel can keep what is behind a fence from signalling what is not."""
    return version() >= _FIRST_WITH_SCOPES


def restrict(*, readable: Iterable[str], writable: Iterable[str], listable: Iterable[str] = ()) -> bool:
    """Puts this thread, and all that it starts from now on, behind a fence. There is no way back.

    Args:
        readable: Files, and folders with all that is in them, that may be read and executed. What is not there, or may
            not be opened, is left out.
        writable: The same for everything else too: writing, making, removing.
        listable: Folders whose names may be read, those further down included, but nothing that stands in files.

    Returns:
        False where the kernel has no Landlock; nothing has changed then.

    Raises:
        OSError: The kernel refused the fence.
    """
    here = version()
    if not here:
        return False
    known = (1 << _RIGHTS.get(here, _RIGHTS_NOW)) - 1
    scoped = _SCOPE_SIGNALS if here >= _FIRST_WITH_SCOPES else 0
    attributes = _Ruleset(known, 0, scoped)
    # An old kernel takes a longer structure only when what it does not know is zero, which it then is.
    ruleset = call(_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "the kernel made no ruleset of Landlock")
    try:
        for rights, paths in ((_READ, readable), (known, writable), (_READ_DIR, listable)):
            for path in dict.fromkeys(paths):
                _allow(ruleset, path, rights & known)
        gain_no_privileges()
        if call(_RESTRICT, ruleset, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel did not put up Landlock's fence")
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: str, rights: int) -> None:
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= _OF_FILES
            rule = _Beneath(rights, descriptor)
            if rights and call(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0) != 0:
                number = ctypes.get_errno()
                if number != errno.EBADFD:  # a place that no rule can be for, such as a pipe
                    raise OSError(number, "the kernel took no rule of Landlock", path)
        finally:
            os.close(descriptor)
