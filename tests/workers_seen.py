"""What runs under this process's zygotes, as it numbers it: a worker's own getpid() is small and not unique."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from piecework.process import linux


def under_zygotes():
    """The keepers, workers, and what those have started; without zombies."""
    zygotes = [pid for pid in linux.children(os.getpid()) if _is_zygote(pid)]
    return {pid for zygote in zygotes for pid in linux.descendants(zygote) if runs(pid)}


async def nothing_under_zygotes():
    """Waits until nothing is there any more: a spare that nobody took goes by itself when the last worker has gone."""
    while under_zygotes():
        await asyncio.sleep(0.01)


def runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def who():
    """Names the calling process, wherever it runs: a namespace's number is used again, the time of a start is not."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return f"{Path('/proc/self/ns/pid').stat().st_ino}:{os.getpid()}:{started}"


def _is_zygote(pid):
    try:
        return b"piecework.process.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
