"""From "module:attribute" to an App, with an error that says which line of whose file is to blame."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.config import tool_setting
from piecework.errors import AppImportError, NotFoundError

if TYPE_CHECKING:
    from types import ModuleType

    from piecework.app import App

_HOW = "name it as MODULE:ATTRIBUTE, such as shop.app:app"


def app_name() -> str | None:
    """The app that is meant when none is named: PIECEWORK_APP, else `[tool.piecework] app` of pyproject.toml."""
    return os.environ.get("PIECEWORK_APP") or tool_setting("app")


def load_app(name: str) -> App:
    """Imports an application; the working folder is looked into first.

    Args:
        name: "module:attribute"; the attribute may be a function that makes the app.

    Raises:
        AppImportError: It cannot be imported, or is no App.
    """
    from piecework.app import App

    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise AppImportError(f"{name!r} names no app: {_HOW}", name=name)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import(module_name, name)
    found = _attribute(module, attribute, name)
    if not isinstance(found, App):
        found = _make(found, name)
    if not isinstance(found, App):
        if inspect.iscoroutine(found):
            found.close()
        raise AppImportError(f"{name} is a {type(found).__qualname__}, not a piecework.App: {_HOW}", name=name)
    if found.import_path is None:
        found.import_path = name  # workers find it by the same name
    return found


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise AppImportError(
                f"there is no module {error.name!r} for the app {name!r}: run this in the folder where it is (this is "
                f"{Path.cwd()}), or put that folder into PYTHONPATH",
                name=name,
            ) from error
        raise _failed(module_name, name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(module_name, name, error) from error


def _attribute(module: ModuleType, attribute: str, name: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
            near = NotFoundError.among("attribute", part, known)
            raise AppImportError(f"the app {name!r} cannot be found: {near.message}", name=name)
        found = getattr(found, part)
    return found


def _make(found: Any, name: str) -> Any:
    if not callable(found) or isinstance(found, type):
        return found
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise _failed(f"{name}()", name, error) from error


def _failed(what: str, name: str, error: BaseException) -> AppImportError:
    place = _place(error)
    where = f" ({place})" if place else ""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    doing = "calling" if what.endswith("()") else "importing"
    return AppImportError(f"{doing} {what} failed: {text}{where}", name=name)


def _place(error: BaseException) -> str | None:
    """The innermost line of the user's own code; of a syntax error, where it is."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    ours = Path(__file__).parent
    installed = [Path(path) for key, path in sysconfig.get_paths().items() if key in {"stdlib", "purelib", "platlib"}]
    own = [
        frame
        for frame in frames
        if not any(Path(frame.filename).is_relative_to(folder) for folder in (ours, *installed))
    ]
    if not own:
        return None
    return f"{own[-1].filename}, line {own[-1].lineno}"
