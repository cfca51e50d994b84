"""The program: its commands, what stands before them, and one line for every failure."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

import cyclopts
from cyclopts import CycloptsError, Parameter

import piecework
from piecework.cli.command import command as call_command
from piecework.cli.demo import demo
from piecework.cli.doctor import doctor
from piecework.cli.events import events
from piecework.cli.jobs import jobs
from piecework.cli.pieces import pieces
from piecework.cli.repl import repl
from piecework.cli.runs import runs
from piecework.cli.serve import serve
from piecework.cli.services import services
from piecework.cli.spaces import spaces
from piecework.cli.store import store
from piecework.cli.telling import clean
from piecework.cli.workflows import workflows
from piecework.errors import PieceworkError

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = 2
_INTERRUPTED = 130
_GLOBAL = ("--app", "--store")

program = cyclopts.App(
    "piecework",
    help="The durable runtime for the work behind a Python application.",
    help_epilogue="--app and --store may also stand before the command. PIECEWORK_APP, PIECEWORK_STORE and "
    "[tool.piecework] in pyproject.toml say what they default to.",
    version=f"piecework {piecework.__version__}",
    default_parameter=Parameter(negative=()),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
for command in (serve, demo, doctor):
    program.command(command)
program.command(repl, help_format="markdown")  # its help is a paragraph, broken where the terminal ends
program.command(call_command, name="command")
for group in (events, workflows, runs, pieces, spaces, jobs, services, store):
    program.command(group)


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command line and tells its exit code.

    Args:
        argv: The words after the program's name; None means the process's own.

    Returns:
        0 when it worked, 1 when it failed, 2 when it was not understood, 130 when it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a title still shows the rest
    words = _globals_last(list(sys.argv[1:] if argv is None else argv))
    try:
        code = program(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        error.verbose = False
        return _fail(str(error), _USAGE)
    except PieceworkError as error:
        return _fail(error.message)
    except ExceptionGroup as group:
        ours, others = group.split(PieceworkError)
        if ours is None or others is not None:
            raise
        return _fail("; ".join(_messages(ours)))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough; Python would complain about it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"the operating system says: {error}")
    return code if isinstance(code, int) else 0


def _globals_last(words: list[str]) -> list[str]:
    """Moves options that stand before the command behind it, where each command knows them."""
    count = 0
    while count < len(words):
        if words[count] in _GLOBAL and count + 1 < len(words):
            count += 2
        elif words[count].startswith(tuple(f"{name}=" for name in _GLOBAL)):
            count += 1
        else:
            break
    given, rest = words[:count], words[count:]
    end = rest.index("--") if "--" in rest else len(rest)
    return rest[:end] + given + rest[end:]


def _messages(group: ExceptionGroup[PieceworkError]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _messages(error) if isinstance(error, ExceptionGroup) else [error.message]
    return found


def _fail(message: str, code: int = 1) -> int:
    sys.stderr.write(f"piecework: {clean(' '.join(message.split()))}\n")
    return code
