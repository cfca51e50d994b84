from __future__ import annotations

import struct

import pytest

from piecework.process import seccomp

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
ALLOWED, REFUSED = 0x7FFF0000, 0x00050001


def verdict(code, number, machine):
    """What the kernel's machine comes to for a call."""
    program = list(struct.iter_unpack("=HBBI", code))
    place, loaded = 0, 0
    while True:
        kind, if_so, if_not, value = program[place]
        place += 1
        if kind == 0x06:
            return value
        if kind == 0x20:
            loaded = {0: number, 4: machine}[value]
        else:
            place += if_so if {0x15: loaded == value, 0x35: loaded >= value}[kind] else if_not


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_refused(name):
    """On either machine the calls of the list are refused, and nothing else is."""
    machine, column = MACHINES[name]
    code = seccomp._code(machine, column)
    listed = {row[column] for row in seccomp._FORBIDDEN.values()} - {None}
    refused = {number for number in range(600) if verdict(code, number, machine) == REFUSED}
    assert refused == listed
    assert {verdict(code, number, machine) for number in set(range(600)) - refused} == {ALLOWED}


@pytest.mark.parametrize("name", MACHINES)
def test_calls_under_other_numbers(name):
    """Calls of another machine are refused whatever their number, and so is the second set of numbers on x86-64."""
    machine, column = MACHINES[name]
    code = seccomp._code(machine, column)
    assert verdict(code, 1, 0x40000003) == REFUSED
    assert verdict(code, 0x40000001, machine) == (REFUSED if name == "x86_64" else ALLOWED)
