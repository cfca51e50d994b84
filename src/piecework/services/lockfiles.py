"""Locks between the processes of one SQLite file: a small file for each name that is held, in a folder beside it.

The kernel lets go when the holder dies. A file is removed by its holder, so whoever got the lock looks whether what it
has locked is still what stands there.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_open: WeakSet[LockFiles] = WeakSet()


class LockFiles:
    """What this process holds beside one database file; see `locks.External`.

    Args:
        database: The file; the folder is its name with `-locks` behind.
    """

    def __init__(self, database: Path) -> None:
        self._folder = database.with_name(f"{database.name}-locks")
        self._held: dict[str, int] = {}
        _open.add(self)

    async def take(self, name: str, holder: str) -> bool:
        """Takes a lock that nobody of this process has; False when another process has it."""
        return await asyncio.to_thread(self._take, name, holder)

    async def give_back(self, name: str) -> None:
        """Gives a lock back; nothing happens when it was not taken."""
        if name in self._held:
            await asyncio.to_thread(self._give_back, [name])

    async def holder(self, name: str) -> str:
        """Who has it, in words."""
        return await asyncio.to_thread(self._holder, name)

    async def close(self) -> None:
        """Gives everything back."""
        if self._held:
            await asyncio.to_thread(self._give_back, list(self._held))

    def drop(self) -> None:
        """Lets go of what a forked child was born with; its parent goes on holding it."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _take(self, name: str, holder: str) -> bool:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(name)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_there(path, fd):
                    note = json.dumps({"pid": os.getpid(), "name": name, "holder": holder}).encode()
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, note, 0)
                    self._held[name] = fd
                    return True
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its last holder removed it meanwhile

    def _give_back(self, names: Iterable[str]) -> None:
        for name in names:
            fd = self._held.pop(name, None)
            if fd is not None:
                self._path(name).unlink(missing_ok=True)
                os.close(fd)

    def _holder(self, name: str) -> str:
        try:
            note = json.loads(self._path(name).read_bytes())
        except (OSError, ValueError):
            return "another process"
        return f"{note.get('holder')} in process {note.get('pid')}"


def _is_there(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _drop_in_child() -> None:
    for files in _open:
        files.drop()


os.register_at_fork(after_in_child=_drop_in_child)
