"""Draws a run's timeline for people: stages with their steps, what was logged under each, pauses, and what comes next.

What is drawn is decided first, as `Line`s, without looking at a terminal; showing them is the smaller part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from piecework.cli.telling import clean, moment, print_table, say, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NARROW = 60
_SIGNS = {
    "run:completed": ("✓", "green"),
    "run:failed": ("✗", "bold red"),
    "run:aborted": ("✗", "red"),
    "run:abort": ("✗", "red"),
    "run:paused": ("‖", "yellow"),
    "run:unresumed": ("‖", "yellow"),
    "run:resumed": ("▸", "cyan"),
    "step:completed": ("✓", "green"),
    "step:failed": ("✗", "bold red"),
    "step:retry": ("↻", "yellow"),
    "stage:completed": ("✓", "green"),
    "log.warning": ("!", "yellow"),
    "log.error": ("!", "bold red"),
    "timeline:gap": ("!", "yellow"),
    "watch:overflow": ("!", "yellow"),
    "build:error": ("!", "bold red"),
}
_QUIET = ("run_id", "workflow_id", "job", "attempt")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the picture.

    Attributes:
        at: When it was, or None for a line that belongs to the one above.
        depth: 0 for the run, 1 for a step or a service, 2 for what belongs to one.
        text: What happened.
        detail: More about it.
        kind: The type of the entry, for its sign.
    """

    at: datetime | None
    depth: int
    text: str
    detail: str = ""
    kind: str = ""


@dataclass(slots=True)
class _Stage:
    """What is known of a stage whose end has not been read yet."""

    at: datetime
    steps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def show_timeline(entries: Sequence[dict[str, Any]], run: dict[str, Any]) -> None:
    """Prints what happened to a run, each line with its distance from the first, and where the run stands now.

    Args:
        entries: TimelineEntries as JSON.
        run: Its RunInfo as JSON.
    """
    if not entries:
        say("nothing has happened yet")
        return
    start = datetime.fromisoformat(entries[0]["at"])
    say(f"run {run['run_id']} of {run['kind']} {run['workflow_id']}")
    say(f"from {entries[0]['at']}, {moment(entries[0]['at'])}:")
    narrow = Console().is_terminal and Console().width < _NARROW
    table = Table(box=None, pad_edge=False, show_header=False)
    if not narrow:
        table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for line in [*lines_of(entries), *_standing(run)]:
        offset = "" if line.at is None else f"+{(line.at - start).total_seconds():.3f} s"
        body = _body(line)
        table.add_row(body) if narrow else table.add_row(offset, body)
    print_table(table)


def lines_of(entries: Sequence[dict[str, Any]]) -> Iterator[Line]:
    """The picture of a timeline: the run's own entries in order, and each stage with what happened in it.

    Args:
        entries: TimelineEntries as JSON, oldest first.
    """
    since = datetime.fromisoformat(entries[0]["at"]) if entries else None
    stages: dict[str, _Stage] = {}
    services: list[Line] = []
    for entry in entries:
        at, (stage, slash, step) = datetime.fromisoformat(entry["at"]), entry["path"].partition("/")
        if entry["source"] == "container":
            services += _service(entry)
        elif slash:
            stages.setdefault(stage, _Stage(since or at)).steps.setdefault(step, []).append(entry)
        elif entry["type"] == "stage:completed":
            yield from _stage(stage, stages.pop(stage, _Stage(since or at)), entry)
            yield from _emptied(services)
            since = at
        elif entry["source"] == "pipeline" and not entry["type"].startswith(("timeline:", "watch:")):
            yield from _left(stages)
            yield from _emptied(services)
            yield _own(entry)
            since = at
        else:
            yield _own(entry)
    yield from _left(stages)
    yield from services


def _left(stages: dict[str, _Stage]) -> Iterator[Line]:
    """The stages that came to no end."""
    for name in list(stages):
        yield from _stage(name, stages.pop(name), None)


def _emptied(lines: list[Line]) -> Iterator[Line]:
    while lines:
        yield lines.pop(0)


def _service(entry: dict[str, Any]) -> Iterator[Line]:
    """What became of a service; that its build began goes without saying."""
    if entry["type"] != "build:start":
        words = {"build:complete": "built", "build:error": "not built"}
        what = words.get(entry["type"], entry["type"].rpartition(":")[2])
        yield Line(None, 1, f"service {entry['path']} {what}", _detail(entry["payload"]), entry["type"])


def _own(entry: dict[str, Any]) -> Line:
    """An entry that belongs to no stage. What changes the state is committed with the stage that follows."""
    at = None if entry["type"].startswith("state:") else datetime.fromisoformat(entry["at"])
    if entry["source"] in {"logger", "print"}:
        return Line(at, 1, *_said(entry), entry["type"])
    detail = _detail(entry["payload"])
    if entry.get("changed"):
        detail = f"{detail} changed {', '.join(entry['changed'])}".strip()
    return Line(at, 0, f"{entry['type']} {entry['path']}".strip(), detail, entry["type"])


def _stage(name: str, stage: _Stage, end: dict[str, Any] | None) -> Iterator[Line]:
    """A stage and its steps; without an end it was not committed."""
    if end is None:
        yield Line(stage.at, 0, f"stage {name}", "not committed")
    else:
        at = datetime.fromisoformat(end["at"])
        payload = end["payload"] or {}
        then = "" if payload.get("next") is None else f"then {payload['next']}"
        if payload.get("instruction") not in (None, "advance", "pause"):
            then = f"{payload['instruction']} {payload.get('next') or ''}".strip()
        changed = f"changed {', '.join(end['changed'])}" if end.get("changed") else ""
        took = f"{(at - stage.at).total_seconds():.3f} s"
        yield Line(stage.at, 0, f"stage {name}", ", ".join(filter(None, (took, then, changed))), "stage:completed")
    for step, entries in stage.steps.items():
        yield from _step(step, entries)


def _step(name: str, entries: list[dict[str, Any]]) -> Iterator[Line]:
    """A step, then its retries and what it logged."""
    ends = [entry for entry in entries if entry["type"] in {"step:completed", "step:failed"}]
    payload = (ends[-1]["payload"] or {}) if ends else {}
    attempts = f"{payload['attempt']} attempts" if payload.get("attempt", 1) > 1 else ""
    took = f"{payload['seconds']:.3f} s" if "seconds" in payload else ""
    told = ", ".join(filter(None, (took, attempts, _error(payload))))
    yield Line(None, 1, name, told, ends[-1]["type"] if ends else "")
    for entry in entries:
        if entry["type"] == "step:retry":
            again = entry["payload"] or {}
            yield Line(None, 2, f"again after {again.get('delay_seconds')} s", _error(again), "step:retry")
    for entry in entries:
        if entry["source"] == "logger":
            yield Line(None, 2, *_said(entry), entry["type"])


def _said(entry: dict[str, Any]) -> tuple[str, str]:
    payload = entry["payload"] or {}
    return str(payload.get("message", "")), _detail(payload.get("fields"))


def _error(payload: dict[str, Any]) -> str:
    error = payload.get("error")
    return "" if not isinstance(error, dict) else f"{error.get('code')}: {error.get('message')}"


def _detail(payload: Any) -> str:
    if not isinstance(payload, dict):
        return "" if payload is None else shortened(payload)
    if "code" in payload and "message" in payload:
        return f"{payload['code']}: {payload['message']}"
    told = (f"{key}={_value(value)}" for key, value in payload.items() if key not in _QUIET and value is not None)
    error = _error(payload)
    return error or " ".join(told)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else shortened(value)


def _standing(run: dict[str, Any]) -> Iterator[Line]:
    """Where a run that has not ended stands."""
    if run["ended_at"] is not None:
        return
    if run["status"] == "paused":
        waits = ", ".join(run["waiting_for"] or []) or "a resume"
        until = "" if run["expires_at"] is None else f", at the latest {moment(run['expires_at'])}"
        yield Line(None, 0, f"waits for {waits}", f"since {moment(run['paused_at'])}{until}".strip(), "run:paused")
    elif run["status"] == "running":
        yield Line(None, 0, f"is at {run['stage'] or 'its first stage'}", f"started {moment(run['started_at'])}")
    else:
        yield Line(None, 0, "waits for its turn", f"since {moment(run['created_at'])}")


def _body(line: Line) -> Table:
    """A sign and what it stands for; what is too long for the line goes on beneath its own beginning."""
    sign, style = _SIGNS.get(line.kind, ("·", "dim"))
    words = Text(clean(line.text), style="bold" if line.depth == 0 else "")
    if line.detail:
        words.append(f"  {clean(line.detail)}", style="not bold dim")
    body = Table.grid(padding=(0, 1, 0, 0))
    body.add_column(no_wrap=True)
    body.add_column(overflow="fold")
    body.add_row(Text(f"{'  ' * line.depth}{sign}", style=style), words)
    return body
