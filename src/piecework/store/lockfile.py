"""One node for a store file: a lock that the kernel releases when its owner dies, and a note that names the owner.

A POSIX record lock (`lockf`) is not inherited by forked children, as an `flock` would be, but it does not exclude its
own process, and closing *any* descriptor of the file releases it. So there is a table of what this process holds, and
nobody in the holding process ever opens the lock file a second time.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from piecework.errors import StoreLockedError

_held: dict[Path, LockFile] = {}


class LockFile:
    """The lock beside a store file, and the note inside it (pid, boot id, and what the owner adds)."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.path = _beside(store)
        self.note: dict[str, Any] = {}
        self._fd: int | None = None

    def acquire(self) -> None:
        """Takes the lock, or says who has it.

        Raises:
            StoreLockedError: This or another process is the node of the store.
        """
        if self.path in _held:
            raise self._refusal(os.getpid())
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = _parse(os.read(fd, 4096)).get("pid")
            os.close(fd)
            raise self._refusal(pid) from None
        self._fd = fd
        _held[self.path] = self
        self.describe(pid=os.getpid(), boot_id=boot_id())

    def describe(self, **note: Any) -> None:
        """Writes more into the note that other processes read."""
        assert self._fd is not None
        self.note.update(note)
        data = json.dumps(self.note).encode()
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))

    def release(self) -> None:
        """Lets go; the file stays, because removing it would let two processes lock two files of one name."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
            _held.pop(self.path, None)

    def _refusal(self, pid: int | None) -> StoreLockedError:
        who = f"process {pid}" if pid else "another process"
        return StoreLockedError(
            f"{who} is the node of {self.store} already: stop it, or use another store", pid=pid, path=str(self.store)
        )


def read_note(store: Path) -> dict[str, Any]:
    """Reads what the owner of a store wrote into its lock file; empty when nobody owns it."""
    path = _beside(store)
    if path in _held:
        return dict(_held[path].note)
    try:
        note = _parse(path.read_bytes())
    except OSError:
        return {}
    return note if note.get("boot_id") == boot_id() and _alive(note.get("pid")) else {}


def boot_id() -> str:
    """Names this boot of the machine, so that a pid of an earlier one is not believed."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _beside(store: Path) -> Path:
    """The lock file of a store: one for all the names that the file has by way of links and dots."""
    return Path(f"{store.resolve()}.lock")


def _parse(data: bytes) -> dict[str, Any]:
    try:
        note = json.loads(data)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
