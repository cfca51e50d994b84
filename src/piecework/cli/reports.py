"""Tells of a piece's updates as a colleague would: what happened, when, how long it took, why, and what comes next.

The words are made of records alone, without looking at a terminal; printing them is the smaller part.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from piecework.cli.telling import between, clean, duration, error_text, moment, say, shortened, show_table
from piecework.errors import ExecutionFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_RESULT_CHARACTERS = 200
_WORDS = {
    "success": "succeeded",
    "skipped": "had nothing to do",
    "retry_after": "asked to be run again later",
    "failed": "failed",
    "interrupted": "was interrupted, through no fault of its own",
}
_STYLES = {"failed": "red", "aborted": "red", "retry_after": "yellow", "interrupted": "yellow", "running": "cyan"}


def is_told_why(run: Mapping[str, Any]) -> bool:
    """Whether only the run's timeline knows why it came to what it came to."""
    return run["outcome"] in {"skipped", "retry_after", "interrupted"} and not run["error"]


def show_updates(piece: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> None:
    """Prints a piece's updates, the newest first, and what comes next.

    Args:
        piece: Its PieceRecord as JSON.
        runs: RunInfos as JSON, the newest first.
        reasons: Of the runs that ended for a reason that their record does not have, by run id.
    """
    rows = []
    after: Mapping[str, Any] | None = None
    for run in runs:
        if run["started_at"] is not None:
            words = clean(what_happened(run, reasons.get(run["run_id"], ""), after, piece))
            told = Text(words, style=_STYLES.get(run["outcome"] or run["status"], ""))
            rows.append((moment(run["ended_at"] or run["started_at"]), _took(run), run["run_id"], told))
        after = run
    columns = ("when", "took", "run", "what happened")
    show_table(
        columns, rows, nothing=f"{_name(piece)} has not been updated yet", beneath=columns.index("what happened")
    )
    say("")
    for line in what_next(piece, runs):
        say(line)


def what_happened(
    run: Mapping[str, Any], reason: str, after: Mapping[str, Any] | None, piece: Mapping[str, Any]
) -> str:
    """Tells what came of an update.

    Args:
        run: Its RunInfo as JSON.
        reason: Why, where its record does not say.
        after: The update that followed it.
        piece: The piece's record, which says what comes after its latest update.
    """
    if run["ended_at"] is None:
        progress = run["progress"]
        told = (
            f"is running: {progress['fraction']:.0%} {progress['message'] or ''}".strip() if progress else "is running"
        )
        return told + (f", its attempt {run['attempt']}" if run["attempt"] > 1 else "")
    told = _WORDS.get(run["outcome"], run["outcome"] or run["status"])
    if run["error"]:
        told = f"{told}: {why(run['error'])}"
    elif run["result"] is not None:
        told = f"{told}: {shortened(run['result'], _RESULT_CHARACTERS)}"
    elif reason:
        told = f"{told}: {reason}"
    if run["outcome"] in {"failed", "interrupted"}:
        told += _again(run, after, piece)
    return told


def what_next(piece: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tells how a piece stands and what comes next, in sentences.

    Args:
        piece: Its PieceRecord as JSON.
        runs: Its RunInfos as JSON, the newest first.
    """
    name, place = _name(piece), f"{piece['space']} {piece['piece_id']}"
    failures = piece["consecutive_failures"]
    if failures > 1:
        yield f"{name} has failed {failures} times in a row; " + (
            f"it last succeeded {moment(piece['last_success_at'])}"
            if piece["last_success_at"]
            else "it never succeeded"
        )
    if any(run["status"] == "running" for run in runs):
        yield f"{name} is being updated now"
    elif piece["desired"] != "enabled":
        reason = f": {piece['desired_reason']}" if piece["desired_reason"] else ""
        yield f"{name} is {piece['desired']}{reason}; to go on: piecework pieces resume {place}"
    elif piece["next_run_at"] is not None:
        tried = piece["observed"] in {"broken", "half-open"}
        told = "has failed too often: whether it works again is looked at" if tried else "is due"
        yield f"{name} {told} {due(piece['next_run_at'])} ({piece['schedule']})"
    elif piece["observed"] == "broken":
        yield f"{name} is out of order until somebody enables it: piecework pieces resume {place}"
    else:
        yield f"{name} waits ({piece['schedule']})"


def due(at: str, *, now: datetime | None = None) -> str:
    """Tells when something comes that may be late: "in 3 min", or "now"."""
    seconds = (datetime.fromisoformat(at) - (now or datetime.now(UTC))).total_seconds()
    return str(moment(at, now=now)) if seconds >= 1 else "now"


def _again(run: Mapping[str, Any], after: Mapping[str, Any] | None, piece: Mapping[str, Any]) -> str:
    """What followed an update that failed."""
    if after is not None and after["started_at"] is not None:
        waited = between(run["ended_at"], after["started_at"])
        return f"; run again {duration(max(waited or 0.0, 0.0))} later"
    if piece["desired"] != "enabled":
        return f"; {piece['desired']} since"
    if piece["next_run_at"] is None:
        return "; it is not run again by itself" if piece["observed"] == "broken" else ""
    return f"; run again {due(piece['next_run_at'])}"


def why(error: Mapping[str, Any]) -> str:
    """Tells a described error in words; that what was executed failed has been said.

    Args:
        error: With `code` and `message`.
    """
    return str(error["message"]) if error.get("code") == ExecutionFailedError.code else str(error_text(dict(error)))


def _took(run: Mapping[str, Any]) -> str | None:
    seconds = between(run["started_at"], run["ended_at"])
    return None if seconds is None else duration(seconds)


def _name(piece: Mapping[str, Any]) -> str:
    return f"{piece['space']}/{piece['piece_id']}"
