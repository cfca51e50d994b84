"""What a command prints: tables and lines for people, JSON for programs.

Texts that come from users never reach the terminal as they are: a control character in them could move the cursor.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STYLES = {
    "running": "cyan",
    "queued": "cyan",
    "paused": "yellow",
    "skipped": "green",
    "retry_after": "yellow",
    "completed": "green",
    "success": "green",
    "failed": "bold red",
    "broken": "bold red",
    "aborted": "red",
    "backoff": "yellow",
    "ok": "green",
    "warning": "yellow",
}
_PAYLOAD_CHARACTERS = 100
_NONE = "-"
_LAST_CHARACTERS = 14  # the last column has long texts, which are still read when they are broken
_SENTENCE_CHARACTERS = 40  # where there are two lines for a row, a table has to be the better way to read it
_GAP = 2
# Wider than any line: what is piped into a program is neither wrapped nor cut.
_ENDLESS = 100_000


def say(text: str) -> None:
    """Prints one line."""
    sys.stdout.write(f"{clean(text)}\n")


def show_json(value: Any) -> None:
    """Prints a value for programs."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, nothing: str, beneath: int | None = None
) -> None:
    """Prints a table, or `nothing` when there are no rows; the first column is never broken.

    On a terminal that is too narrow for its words, each row is printed by itself, its fields beneath each other.

    Args:
        columns: What stands over them.
        rows: Their values.
        nothing: Said instead of an empty table.
        beneath: Where a row speaks for itself: on a narrow terminal it takes two lines, the second of which begins with
            the column of this number.
    """
    listed = [[_cell(value) for value in row] for row in rows]
    if not listed:
        say(nothing)
        return
    if not _has_room(columns, listed, whole=beneath is not None):
        if beneath is not None:
            _show_lines([[Text(column, style="bold") for column in columns], *listed], beneath)
            return
        for index, row in enumerate(listed):
            if index:
                say("")
            show_fields((column, value) for column, value in zip(columns, row, strict=True) if value.plain != _NONE)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        whole = index == 0 or (beneath is not None and index < len(columns) - 1)
        table.add_column(column, no_wrap=whole, overflow="fold")
    for row in listed:
        table.add_row(*row)
    print_table(table)


def _show_lines(rows: Sequence[Sequence[Text]], beneath: int) -> None:
    """Prints each row in two lines, what is not known left out; the first says what stands where."""
    console = Console(highlight=False)
    for row in rows:
        for indent, cells in ((0, row[:beneath]), (2, row[beneath:])):
            known = [cell for cell in cells if cell.plain != _NONE]
            if known:
                console.print(Padding(Text("  ").join(known), (0, 0, 0, indent), expand=False))


def _has_room(columns: Sequence[str], rows: Sequence[Sequence[Text]], *, whole: bool) -> bool:
    """Whether the columns of a table fit beside each other, or at least without breaking words where not `whole`.

    Of the last one the most do.
    """
    console = Console()
    if not console.is_terminal:
        return True
    cells = [[Text(column), *(row[index] for row in rows)] for index, column in enumerate(columns)]
    first, *others = ([console.measure(cell) for cell in column] for column in cells)
    widths = [
        max(size.maximum for size in first),
        *(max(size.maximum if whole else size.minimum for size in column) for column in others),
    ]
    widths[-1] = min(widths[-1], _SENTENCE_CHARACTERS if whole else _LAST_CHARACTERS)
    return sum(widths) + _GAP * (len(widths) - 1) <= console.width


def show_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Prints names and values beneath each other; what is None or empty is left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if value not in (None, "", [], {}):
            table.add_row(name, _cell(value))
    print_table(table)


def moment(value: str | None, *, now: datetime | None = None) -> str | None:
    """Tells an ISO 8601 moment as people say it: "12 s ago", "in 3 min"."""
    if value is None:
        return None
    seconds = (_moment(value) - (now or datetime.now(UTC))).total_seconds()
    size = abs(seconds)
    for limit, unit, width in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600), (float("inf"), "d", 86400)):
        if round(size) < limit:
            text = f"{round(size / width)} {unit}"
            break
    return f"in {text}" if seconds >= 0.5 else f"{text} ago"


def duration(seconds: float) -> str:
    """Tells how long something took, or takes: "0.21 s", "4.5 s", "3 min", "2.5 h"."""
    if round(seconds, 2) < 1:
        return f"{seconds:.2f} s"
    for limit, unit, width in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if round(seconds) < limit:
            return f"{seconds / width:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds / 86400:.1f}".removesuffix(".0") + " d"


def between(since: str | None, until: str | None) -> float | None:
    """How many seconds there are between two ISO 8601 moments; None where one is not known."""
    return None if since is None or until is None else (_moment(until) - _moment(since)).total_seconds()


def error_text(error: dict[str, Any] | None) -> str | None:
    """Tells a described error in a line."""
    return None if error is None else f"{error.get('code')}: {error.get('message')}"


def shortened(value: Any, limit: int = _PAYLOAD_CHARACTERS) -> str:
    """Tells a JSON value in at most `limit` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean(text: str) -> str:
    """Makes a text safe for a terminal: escapes what is not printable, line breaks included."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text(_NONE, style="dim")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Text(clean(text), style=_STYLES.get(text, ""))


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value)


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal; what is piped into a program is neither wrapped nor cut."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console = Console(highlight=False, width=_ENDLESS)
    with console.capture() as capture:
        console.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())
