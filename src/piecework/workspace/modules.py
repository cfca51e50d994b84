"""The modules that an app names: imported before its first workspace, so that what they declare is there.

One that is not there or that fails is named, with the line of its own that is to blame; nothing is opened then.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from piecework.errors import AppImportError, NotFoundError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_modules(names: Iterable[str]) -> tuple[str, ...]:
    """Gives the names of modules as a tuple, each once.

    Args:
        names: Dotted names, such as "newsroom.services".

    Raises:
        ValidationError: It is one text instead of several, or one of them is no module's name.
    """
    if isinstance(names, str):
        raise ValidationError(f"modules={names!r} is one text: give several, as in modules=({names!r},)")
    given = tuple(dict.fromkeys(names))
    for name in given:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValidationError(f"modules=… has {name!r}, which is no module's name, such as 'newsroom.services'")
    return given


def import_modules(names: Iterable[str], *, app: str) -> None:
    """Imports modules, in order; one that was imported before costs nothing.

    Args:
        names: As `check_modules` gave them.
        app: Whose they are, for the error.

    Raises:
        AppImportError: One is not there, or raised while it was imported: what it raised is the cause.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise _failed(name, app, error) from error


def _failed(name: str, app: str, error: BaseException) -> AppImportError:
    whose = f"module {name!r} of app {app!r} (its modules=)"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (name == missing or name.startswith(f"{missing}.")):
        return AppImportError(f"{whose} is not there: {_advice(missing)}", app=app, name=name)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return AppImportError(f"importing {whose} failed: {text}{_place(error)}", app=app, name=name)


def _advice(missing: str) -> str:
    """What to do about a module that is not there: near names of its package, which has few; the path has hundreds."""
    import pkgutil  # as below: only for those who have something to say

    package = missing.rpartition(".")[0]
    beside = pkgutil.iter_modules(getattr(sys.modules.get(package), "__path__", ()), f"{package}.") if package else ()
    names = [found.name for found in beside]
    if names:
        return NotFoundError.among("module", missing, names).message
    return f"no module {missing!r}: look at its spelling, and that the folder it lies in is in PYTHONPATH"


def _place(error: BaseException) -> str:
    """The innermost line that ran, as ` (file.py:17)`; of a syntax error, where it is."""
    import traceback

    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    own = [frame for frame in frames if frame.filename not in {__file__, importlib.__file__}]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
