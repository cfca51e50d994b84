"""Where another process finds what this one has: a module and an attribute in it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from piecework.errors import AppImportError


@dataclass(frozen=True, slots=True)
class Address:
    """An importable thing.

    Attributes:
        target: "module:attribute".
        main_path: The script's file where the module is `__main__`: over there it is imported under another name.
    """

    target: str
    main_path: str | None = None


def address_of(value: object, *, name: str, made_in: str, import_path: str | None, why: str = "has pieces") -> Address:
    """Finds an object by identity among the modules that are loaded.

    Args:
        value: The app.
        name: What it is called, for the error.
        made_in: The module that made it: looked at first.
        import_path: Where it is, by its owner's word; nothing is looked for then.
        why: What it needs another process for, for the error.

    Raises:
        AppImportError: No module has it as an attribute.
    """
    if import_path is not None:
        return Address(import_path)
    for module_name in (made_in, *sys.modules):
        module = sys.modules.get(module_name)
        main_path = getattr(module, "__file__", None) if module_name == "__main__" else None
        if module is None or (module_name == "__main__" and main_path is None):
            continue
        for attribute, found in list(vars(module).items()):
            if found is value:
                return Address(f"{module_name}:{attribute}", main_path)
    raise AppImportError(
        f"app {name!r} {why}, but no module has it as an attribute, so a worker process cannot import it: "
        "assign it at module level, or give App(import_path='package.module:app')",
        app=name,
    )
