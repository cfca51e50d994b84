"""A copy of a SQLite store, taken while its node works; and the command that does the same on PostgreSQL.

The copy appears under its name when it is whole, sound and on the disk: what has the name is a store.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from piecework.errors import StoreError, ValidationError

if TYPE_CHECKING:
    from piecework.store.looking import SqliteLook


def back_up(look: SqliteLook, destination: Path) -> tuple[Path, int]:
    """Copies a store into a new file and answers where that is, and its size in bytes.

    Args:
        look: At the store.
        destination: Not there yet, in a folder that is.

    Raises:
        ValidationError: Something of that name is there already, or its folder is not.
        StoreError: It cannot be written, or the copy is damaged as the store is; nothing is left behind.
    """
    destination = destination.absolute()
    if os.path.lexists(destination):
        raise _taken(destination)
    if not destination.parent.is_dir():
        raise ValidationError(f"there is no folder {destination.parent}: make it first", path=str(destination))
    unfinished = destination.with_name(f".{destination.name}.{os.getpid()}.unfinished")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            _copy(look, unfinished)
            _sync(unfinished)
            _give_name(unfinished, destination)
        finally:
            for left in (
                unfinished,
                Path(f"{unfinished}-wal"),
                Path(f"{unfinished}-shm"),
                Path(f"{unfinished}-journal"),
            ):
                left.unlink(missing_ok=True)
        _sync(destination.parent)
        return destination, destination.stat().st_size
    except OSError as error:
        raise StoreError(f"{destination} cannot be written: {error}", path=str(destination)) from error


def _copy(look: SqliteLook, path: Path) -> None:
    target = sqlite3.connect(path, isolation_level=None)
    try:
        look.copy_to(target)
        wrong = [row[0] for row in target.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
    except sqlite3.Error as error:
        raise StoreError(f"the copy of {look.path} cannot be written: {error}", path=str(path)) from error
    finally:
        target.close()
    if wrong:
        raise StoreError(
            f"{look.path} is damaged, and so would be its copy: {'; '.join(wrong)}. `piecework store check` tells more",
            path=str(look.path),
        )


def _give_name(unfinished: Path, destination: Path) -> None:
    try:
        os.link(unfinished, destination)  # unlike a rename it never replaces what has appeared meanwhile
    except FileExistsError:
        raise _taken(destination) from None
    except OSError:  # a file system without links
        if os.path.lexists(destination):
            raise _taken(destination) from None
        unfinished.rename(destination)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken(destination: Path) -> ValidationError:
    return ValidationError(f"{destination} is there already and was left alone: name a new file", path=str(destination))
