"""The command line: one group of commands a file, most of them clients of a node.

`serve`, `demo`, `command` and `repl` open an app themselves; `services` and `doctor` need none that is open.

`program` puts them together and turns every failure into one line; `asking` finds the node; `telling` prints for
people and for programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command line and tells its exit code; see `program.main`.

    Args:
        argv: The words after the program's name; None means the process's own.
    """
    try:
        from piecework.cli import program  # takes a moment, in which Ctrl-C is as good as later

        return program.main(argv)
    except KeyboardInterrupt:
        return 130


__all__ = ["main"]
