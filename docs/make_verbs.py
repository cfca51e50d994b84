"""Writes the table of the store's verbs into docs/store.md, from the verbs' own words: run it when they change."""

from __future__ import annotations

import inspect
from pathlib import Path

from piecework.store.verbs import accept, claim, dispatch, late, nodes, notifications, pieces, retention, runs

PAGE = Path(__file__).parent / "store.md"
OPEN, CLOSE = "<!-- verbs -->", "<!-- /verbs -->"
_MODULES = (accept, dispatch, runs, claim, nodes, pieces, late, notifications, retention)


def table() -> str:
    """The table: each verb with the first paragraph of its docstring."""
    lines = ["| verb | what it promises |", "|---|---|"]
    for module in _MODULES:
        for name, verb in vars(module).items():
            if inspect.isfunction(verb) and verb.__module__ == module.__name__ and not name.startswith("_"):
                promise = " ".join((inspect.getdoc(verb) or "").split("\n\n")[0].split())
                lines.append(f"| `{name}` | {promise} |")
    return "\n".join(lines)


def page() -> str:
    """The page as it has to be."""
    before, rest = PAGE.read_text("utf-8").split(OPEN)
    return f"{before}{OPEN}\n{table()}\n{CLOSE}{rest.split(CLOSE)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
