"""The log lines of a piece's updates, as they were written and while they are."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from piecework.cli.telling import clean, say, shortened

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    from piecework.cli.asking import Ask

_LOOK_SECONDS = 0.5
_NEWEST = 5  # updates are looked through for those that began since the last look
_LEVELS = {"warning": "yellow", "error": "bold red", "debug": "dim"}


async def lines_of(ask: Ask, run_id: str, *, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The log lines of a run behind an entry of its timeline, and the number of the last entry there is.

    Args:
        ask: Asks the node.
        run_id: Which run.
        cursor: Behind the entry of this number.

    Raises:
        PieceworkError: The node's answer.
    """
    lines: list[dict[str, Any]] = []
    more: int | None = cursor
    while more is not None:
        page = await ask("runs.timeline", run_id=run_id, cursor=more)
        for entry in page["items"]:
            cursor = entry["seq"]
            if entry["source"] == "logger":
                payload = entry["payload"] or {}
                level = entry["type"].removeprefix("log.")
                told = {"message": payload.get("message", ""), "fields": payload.get("fields") or {}}
                lines.append({"run_id": run_id, "at": entry["at"], "level": level, **told})
        more = page["next_cursor"]
    return lines, cursor


def show_head(run: Mapping[str, Any]) -> None:
    """Prints whose lines follow."""
    standing = "is running" if run["ended_at"] is None else run["outcome"] or run["status"]
    say(f"run {run['run_id']}: {standing}, {datetime.fromisoformat(run['started_at']):%Y-%m-%d %H:%M:%S} UTC")


def show_line(line: Mapping[str, Any]) -> None:
    """Prints one line: time (UTC), level, message, fields."""
    at = datetime.fromisoformat(line["at"]).strftime("%H:%M:%S.%f")[:-3]
    fields = " ".join(
        f"{name}={value if isinstance(value, str) else shortened(value)}" for name, value in line["fields"].items()
    )
    text = Text(f"  {at} ", style="dim")
    text.append(f"{line['level']:<7} ", style=f"not dim {_LEVELS.get(line['level'], '')}".strip())
    text.append(clean(line["message"]), style="not dim")
    if fields:
        text.append(f"  {clean(fields)}")
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(text, soft_wrap=True)
    else:
        say(text.plain)


async def follow(ask: Ask, *, space: str, piece_id: str, seen: Counter[str]) -> None:
    """Prints lines as they are written, until it is cancelled.

    Args:
        ask: Asks the node.
        space: The tenant.
        piece_id: Which piece.
        seen: By run id, the number of the entry behind which its lines are new; the newest run's lines stand last.

    Raises:
        PieceworkError: The node's answer.
    """
    last = next(reversed(seen), None)
    while True:
        page = await ask("pieces.runs", space=space, piece_id=piece_id, limit=_NEWEST)
        for run in reversed(page["items"]):
            if run["started_at"] is None or (run["run_id"] not in seen and last is not None and run["run_id"] < last):
                continue
            lines, seen[run["run_id"]] = await lines_of(ask, run["run_id"], cursor=seen[run["run_id"]])
            for line in lines:
                if last != run["run_id"]:
                    show_head(run)
                    last = run["run_id"]
                show_line(line)
        await asyncio.sleep(_LOOK_SECONDS)
