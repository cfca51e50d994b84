"""Whether the application's own code has changed on disk since it was imported: for development."""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class CodeWatch:
    """Looks at the files of the modules that this process has imported, installed packages left out.

    Args:
        others: Names more of them: those that a zygote has imported and this process has not.
    """

    def __init__(self, others: Callable[[], Iterable[str]] = tuple) -> None:
        self._others = others
        self._seen: dict[str, int] = {}
        self._looked_at = time.time_ns()
        self.changed()

    def changed(self) -> list[str]:
        """The files that are not what they were at the last look; blocks for some file system calls."""
        found, changed = {}, []
        for path in _own_files(self._others()):
            try:
                found[path] = Path(path).stat().st_mtime_ns
            except OSError:
                found[path] = -1  # gone, perhaps while an editor writes it anew
            # One that is seen for the first time may have been written anew since somebody else imported it.
            if found[path] != self._seen[path] if path in self._seen else found[path] > self._looked_at:
                changed.append(path)
        self._seen, self._looked_at = found, time.time_ns()
        return [path for path in changed if found[path] >= 0]


def _own_files(others: Iterable[str]) -> list[str]:
    files = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())} | set(others)
    return [file for file in files if isinstance(file, str) and file.endswith(".py") and not _is_installed(file)]


def _is_installed(file: str) -> bool:
    return file.startswith(_INSTALLED)
