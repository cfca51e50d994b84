"""System calls that no update needs are refused with EPERM: those that reach into other processes, or into the kernel.

A short list of what is forbidden and not a list of what is allowed: a piece may use libraries that nobody here has
heard of. The filter is a program of the kernel's own small machine; it cannot be taken off again, and all that is
started behind it has it too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from functools import cache

from piecework.process.kernel import gain_no_privileges, prctl

_PR_GET_SECCOMP, _PR_SET_SECCOMP = 21, 22
_MODE_FILTER = 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_NUMBER_AT, _MACHINE_AT = 0, 4
_X32 = 0x40000000  # a second set of numbers on x86-64, under which the same calls could be made
_INSTRUCTION = struct.Struct("=HBBI")

# Of each call its numbers on x86-64 and on aarch64; None where there is none.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # into other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # other views of the machine
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # keys of the user's other processes
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large and seldom needed parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
}
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def available() -> bool:
    """Tells whether this kernel filters system calls, and whether we know their numbers on this machine."""
    if sys.platform != "linux" or os.uname().machine not in _MACHINES:
        return False
    return prctl(_PR_GET_SECCOMP) >= 0


def refused() -> list[str]:
    """The calls that are refused, by name."""
    return list(_FORBIDDEN)


def refuse() -> bool:
    """Puts the filter on this thread and all that it starts from now on; False where there is no such thing."""
    found = program()
    if found is None or not gain_no_privileges():
        return False
    return prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(found)) == 0


@cache
def program() -> ctypes.Structure | None:
    """The filter as the kernel takes it; made once. None where there is no such thing."""
    if not available():
        return None
    code = _code(*_MACHINES[os.uname().machine])
    return _Program(len(code) // _INSTRUCTION.size, code)


def _code(machine: int, column: int) -> bytes:
    """The filter for one machine: each jump names how many instructions it leaves out."""
    numbers = [found for row in _FORBIDDEN.values() if (found := row[column]) is not None]
    checks = [(_EQUAL, number) for number in numbers]
    if not column:
        checks.append((_AT_LEAST, _X32))
    to_refuse = len(checks)
    program = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_EQUAL, 0, to_refuse + 2, machine),  # calls of another machine, such as 32 bit ones, have other numbers
        (_LOAD, 0, 0, _NUMBER_AT),
        *((code, to_refuse - place, 0, value) for place, (code, value) in enumerate(checks)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
