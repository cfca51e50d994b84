"""Ids that sort by the time they were made: 48 bits of milliseconds, 74 random bits (UUID version 7, RFC 9562)."""

from __future__ import annotations

import os
import time


def new_id() -> str:
    """Makes an id: 32 hexadecimal digits, unique, later ones sorting behind earlier ones to the millisecond."""
    millis = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    value = (millis << 80) | (0x7 << 76) | (((noise >> 64) & 0xFFF) << 64) | (0b10 << 62) | (noise & (2**62 - 1))
    return f"{value:032x}"
