"""Ids that sort by the time they were made: 48 bits of milliseconds, 74 random bits (UUID version 7, RFC 9562)."""

from __future__ import annotations

import os
import time

_BYTES = 10
_noise = bytearray()
# A forked child would otherwise give out the same ids as its parent.
os.register_at_fork(after_in_child=_noise.clear)


def new_id() -> str:
    """Makes an id: 32 hexadecimal digits, unique, later ones sorting behind earlier ones to the millisecond."""
    try:
        noise = int.from_bytes(_take(), "big")
    except IndexError:  # another thread emptied the pool in between
        return new_id()
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | (0x7 << 76) | (((noise >> 64) & 0xFFF) << 64) | (0b10 << 62) | (noise & (2**62 - 1))
    return f"{value:032x}"


def _take() -> bytes:
    """Ten random bytes. The kernel is asked for many at once: a call to it costs more than all the rest."""
    if len(_noise) < _BYTES:
        _noise.extend(os.urandom(_BYTES * 256))
    return bytes([_noise.pop() for _ in range(_BYTES)])
