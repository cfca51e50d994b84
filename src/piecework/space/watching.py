"""Whether the application's own code has changed on disk since it was imported: for development."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class CodeWatch:
    """Looks at the files of the modules that this process has imported, installed packages left out.

    A zygote imports what its node does; a file that only it has imported is not seen.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self.changed()

    def changed(self) -> list[str]:
        """The files that are not what they were at the last look; blocks for some file system calls."""
        found, changed = {}, []
        for path in _own_files():
            try:
                found[path] = Path(path).stat().st_mtime_ns
            except OSError:
                found[path] = -1  # gone, perhaps while an editor writes it anew
            if found[path] != self._seen.get(path, found[path]):
                changed.append(path)
        self._seen = found
        return [path for path in changed if found[path] >= 0]


def _own_files() -> list[str]:
    files = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
    return [file for file in files if isinstance(file, str) and file.endswith(".py") and not _is_installed(file)]


def _is_installed(file: str) -> bool:
    return file.startswith(_INSTALLED)
