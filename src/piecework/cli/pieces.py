"""`piecework pieces`: every tenant's background work."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from piecework.cli.asking import AsJson, JsonObject, Where, ask, asking
from piecework.cli.log_lines import follow as follow_lines
from piecework.cli.log_lines import lines_of, show_head, show_line
from piecework.cli.reports import due, is_told_why, show_updates, what_happened, what_next, why
from piecework.cli.telling import clean, error_text, moment, say, show_fields, show_json, show_table
from piecework.clock import check_duration
from piecework.errors import ExecutionFailedError, NoNodeError

if TYPE_CHECKING:
    from piecework.cli.asking import Ask

pieces = App("pieces", help="Add pieces, look at them and at their updates, have them run, pause and remove them.")

_Where = Annotated[Where | None, Parameter(name="*")]
_Limit = Annotated[int, Parameter(help="At most so many, up to 1000.", validator=validators.Number(gte=1, lte=1000))]
_Standing = Literal["idle", "waiting", "queued", "running", "backoff", "half-open", "broken", "paused"]
_PATIENCE_SECONDS = 1.0
_ROUND_SECONDS = 20.0


@pieces.command
async def add(
    space: str,
    piece_id: str,
    /,
    *,
    integration: str,
    config: JsonObject | None = None,
    every_seconds: float | None = None,
    schedule: str | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Register a piece, or enable it again with a new configuration.

    Args:
        space: The tenant.
        piece_id: Unique in its space.
        integration: Of one of the app's pieces.
        config: A JSON object that the update is given.
        every_seconds: From the end of one update to the next; the integration's own when omitted.
        schedule: A cron expression instead, such as "0 8 * * 1"; the integration's own when omitted.
        as_json: Print JSON.
        where: Which node.
    """
    if every_seconds is not None:
        check_duration("--every-seconds", every_seconds)  # no frame carries a number that is none
    piece = await ask(
        where or Where(),
        "pieces.add",
        space=space,
        piece_id=piece_id,
        integration=integration,
        config=config,
        every_seconds=every_seconds,
        schedule=schedule,
    )
    if as_json:
        show_json(piece)
        return
    told = "added" if piece["added"] else "there already: enabled, configured anew"
    coming = "" if piece["next_run_at"] is None else f", next update {due(piece['next_run_at'])}"
    say(f"piece {space}/{piece_id} is {told}: {integration}, {piece['schedule']}{coming}")


@pieces.command(name="list")
async def list_pieces(
    *, space: str | None = None, status: _Standing | None = None, as_json: AsJson = False, where: _Where = None
) -> None:
    """List pieces.

    Args:
        space: Only those of a tenant.
        status: Only those that stand so.
        as_json: Print JSON.
        where: Which node.
    """
    page = await ask(where or Where(), "pieces.list", space=space)
    if status is not None:
        page["items"] = [piece for piece in page["items"] if _stands(piece, status)]
    if as_json:
        show_json(page)
        return
    rows = [
        (
            f"{piece['space']}/{piece['piece_id']}",
            piece["integration"],
            _standing(piece),
            piece["schedule"],
            moment(piece["last_run_at"]),
            None if piece["next_run_at"] is None or piece["observed"] == "running" else due(piece["next_run_at"]),
            why(piece["last_error"]) if _is_in_trouble(piece) and piece["last_error"] else None,
        )
        for piece in page["items"]
    ]
    columns = ("piece", "integration", "status", "schedule", "last run", "next run", "error")
    show_table(columns, rows, nothing="no pieces", beneath=columns.index("schedule"))


@pieces.command
async def show(space: str, piece_id: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """Show a piece with its latest runs.

    Args:
        space: The tenant.
        piece_id: Which piece.
        as_json: Print JSON.
        where: Which node.
    """
    piece = await ask(where or Where(), "pieces.show", space=space, piece_id=piece_id)
    if as_json:
        show_json(piece)
        return
    show_fields(
        [
            ("piece", piece["piece_id"]),
            ("space", piece["space"]),
            ("integration", piece["integration"]),
            ("config", piece["config"]),
            ("schedule", piece["schedule"]),
            ("desired", piece["desired"]),
            ("reason", piece["desired_reason"]),
            ("observed", piece["observed"]),
            ("status", piece["status"]),
            ("last run", moment(piece["last_run_at"])),
            ("last success", moment(piece["last_success_at"])),
            ("last failure", moment(piece["last_failure_at"])),
            ("failures", f"{piece['consecutive_failures']} in a row" if piece["consecutive_failures"] else None),
            (
                "error" if _is_in_trouble(piece) else "last error",
                why(piece["last_error"]) if piece["last_error"] else None,
            ),
            ("next run", moment(piece["next_run_at"])),
        ]
    )
    say("")
    async with asking(where or Where()) as one:
        show_updates(piece, piece["runs"], await _reasons(one, piece["runs"]))


@pieces.command
async def run(
    space: str,
    piece_id: str,
    /,
    *,
    wait: Annotated[bool, Parameter(name=("--wait", "-w"), negative="--no-wait")] = True,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Have a piece updated now, and tell what came of it.

    Args:
        space: The tenant.
        piece_id: Which piece.
        wait: Wait for its end; with --no-wait return as soon as its update is due.
        as_json: Print JSON.
        where: Which node.

    Raises:
        ExecutionFailedError: The update failed.
        CrashedError: Its space is broken: no worker could be started.
    """
    async with asking(where or Where()) as one:
        update = await one("pieces.run", space=space, piece_id=piece_id, wait=False)
        if wait:
            update = await _ended(one, space, piece_id, update["run_id"])
        if as_json:
            show_json(update)
        else:
            piece = await one("pieces.get", space=space, piece_id=piece_id)
            _tell(piece, update, await _reasons(one, [update]), waited=wait)
    if wait and update["status"] != "completed":
        raise ExecutionFailedError(
            f"the update of {space}/{piece_id} {update['status']}: {error_text(update['error'])}"
        )


@pieces.command
async def pause(
    space: str,
    piece_id: str,
    /,
    *,
    reason: str | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Let no update of a piece follow until it is resumed; one that is under way goes on to its end.

    Args:
        space: The tenant.
        piece_id: Which piece.
        reason: Why, for whoever looks at it.
        as_json: Print JSON.
        where: Which node.
    """
    answer = await ask(where or Where(), "pieces.pause", space=space, piece_id=piece_id, reason=reason)
    if as_json:
        show_json(answer)
    else:
        say(f"piece {space}/{piece_id} " + ("is paused" if answer["changed"] else "was paused already"))


@pieces.command
async def resume(
    space: str,
    piece_id: str,
    /,
    *,
    reason: str | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Enable a piece that is paused or out of order: its failures are forgotten, its next update is due at once.

    Args:
        space: The tenant.
        piece_id: Which piece.
        reason: Why, for whoever looks at it.
        as_json: Print JSON.
        where: Which node.
    """
    answer = await ask(where or Where(), "pieces.resume", space=space, piece_id=piece_id, reason=reason)
    if as_json:
        show_json(answer)
    else:
        say(f"piece {space}/{piece_id} " + ("is enabled: due now" if answer["changed"] else "was enabled already"))


@pieces.command
async def remove(space: str, piece_id: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """End a piece: no update follows, and one that is under way is stopped.

    Args:
        space: The tenant.
        piece_id: Which piece.
        as_json: Print JSON.
        where: Which node.
    """
    await ask(where or Where(), "pieces.remove", space=space, piece_id=piece_id)
    if as_json:
        show_json({"space": space, "piece_id": piece_id, "removed": True})
    else:
        say(f"piece {space}/{piece_id} is removed; what its updates came to is told by run id until it is forgotten")


@pieces.command
async def runs(
    space: str,
    piece_id: str,
    /,
    *,
    limit: _Limit = 10,
    cursor: str | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Tell of a piece's updates, the newest first: what happened, when, how long it took, why, and what comes next.

    Args:
        space: The tenant.
        piece_id: Which piece.
        limit: At most so many.
        cursor: Go on behind this run id.
        as_json: Print JSON.
        where: Which node.
    """
    async with asking(where or Where()) as one:
        page = await one("pieces.runs", space=space, piece_id=piece_id, limit=limit, cursor=cursor)
        if as_json:
            show_json(page)
            return
        piece = await one("pieces.get", space=space, piece_id=piece_id)
        if cursor is not None and not page["items"]:
            say(f"{space}/{piece_id} has no updates behind {cursor}: --cursor takes what a longer list ends with")
            return
        show_updates(piece, page["items"], await _reasons(one, page["items"]))
    if page["next_cursor"]:
        say(f"there are more: --cursor {page['next_cursor']}")


@pieces.command(name="logs")
async def show_logs(
    space: str,
    piece_id: str,
    /,
    *,
    runs: _Limit = 1,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"))] = False,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Show what a piece's latest updates have logged, oldest first: time (UTC), level, message, fields.

    Args:
        space: The tenant.
        piece_id: Which piece.
        runs: Of how many updates.
        follow: Go on with what is logged from now on, until Ctrl-C.
        as_json: Print JSON; not together with --follow.
        where: Which node.
    """
    async with asking(where or Where()) as one:
        await one("pieces.get", space=space, piece_id=piece_id)
        page = await one("pieces.runs", space=space, piece_id=piece_id, limit=runs + 1)
        # The first may be the update that is to come.
        begun = [run for run in page["items"] if run["started_at"] is not None][:runs]
        seen: Counter[str] = Counter()
        found = []
        for run in reversed(begun):
            lines, seen[run["run_id"]] = await lines_of(one, run["run_id"])
            found.append((run, lines))
        if as_json and not follow:
            show_json({"items": [line for _, lines in found for line in lines], "next_cursor": None})
            return
        for run, lines in found:
            show_head(run)
            for line in lines:
                show_line(line)
            if not lines and run["ended_at"] is not None:
                say("  nothing was logged")
        if not begun and not follow:
            say(f"{space}/{piece_id} has not been updated yet")
        if follow:
            sys.stdout.flush()
            await follow_lines(one, space=space, piece_id=piece_id, seen=seen)


async def _ended(one: Ask, space: str, piece_id: str, run_id: str) -> dict[str, Any]:
    """Waits for an update's end; what it waits for is told when that takes long."""
    try:
        ended: dict[str, Any] | None = await one("pieces.wait", space=space, run_id=run_id, seconds=_PATIENCE_SECONDS)
        if ended is None:
            run: dict[str, Any] = await one("runs.get", run_id=run_id)
            standing = "no node has begun it: is `piecework serve` running, and is its space in order?"
            if run["status"] == "running":
                standing = f"it is running, begun {moment(run['started_at'])}."
            said = f"piecework: waiting for {space}/{piece_id} (run {run_id}): {standing} Ctrl-C ends the waiting."
            sys.stderr.write(clean(said) + "\n")
            sys.stderr.flush()
        while ended is None:
            ended = await one("pieces.wait", space=space, run_id=run_id, seconds=_ROUND_SECONDS)
    except NoNodeError as error:
        raise NoNodeError(
            f"the node has gone: the next node goes on with update {run_id} of {space}/{piece_id}, "
            f"`piecework runs show {run_id}` tells then what came of it",
            **error.data,
        ) from error
    return ended


def _tell(piece: dict[str, Any], update: dict[str, Any], reasons: dict[str, str], *, waited: bool) -> None:
    """Prints what an update came to, or that it will be."""
    name = f"{piece['space']}/{piece['piece_id']}"
    if not waited:
        say(f"the update of {name} is due: run {update['run_id']}")
        return
    if update["status"] == "completed":  # of another the error tells
        say(f"{name} {what_happened(update, reasons.get(update['run_id'], ''), None, piece)}")
    say(f"run {update['run_id']}; its log lines: piecework pieces logs {piece['space']} {piece['piece_id']}")
    for line in what_next(piece, [update]):
        say(line)


async def _reasons(one: Ask, runs: list[dict[str, Any]]) -> dict[str, str]:
    """Why updates came to what they came to, of those whose record does not say."""
    found = {}
    for run in runs:
        if is_told_why(run):
            page = await one("runs.timeline", run_id=run["run_id"])
            last: dict[str, Any] = (page["items"][-1]["payload"] or {}) if page["items"] else {}
            found[run["run_id"]] = str(last.get("reason") or "")
    return found


def _standing(piece: dict[str, Any]) -> str:
    """What people want of a piece where that is not simply that it runs, else how it stands."""
    if piece["desired"] != "enabled":
        return str(piece["desired"])
    return str(piece["status"] if piece["observed"] == "idle" else piece["observed"])


def _stands(piece: dict[str, Any], status: str) -> bool:
    """Whether a piece stands so: paused is what people want of it, whatever else it is."""
    return status == str(piece["observed"] if piece["desired"] == "enabled" else piece["desired"])


def _is_in_trouble(piece: dict[str, Any]) -> bool:
    """Whether its last error is still what is the matter with it, not one that it has got over."""
    return bool(piece["consecutive_failures"]) or piece["observed"] in ("backoff", "broken")
