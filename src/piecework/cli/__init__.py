"""The command line: one group of commands a file, all of them clients of a node but `serve`, `demo` and `doctor`.

`program` puts them together and turns every failure into one line; `asking` finds the node; `telling` prints for
people and for programs.
"""

from piecework.cli.program import main

__all__ = ["main"]
