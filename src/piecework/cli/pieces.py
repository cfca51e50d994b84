"""`piecework pieces`: every tenant's background work."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson, JsonObject, Where, ask
from piecework.cli.runs import show_run, show_runs
from piecework.cli.telling import error_text, moment, say, show_fields, show_json, show_table
from piecework.errors import ExecutionFailedError

pieces = App("pieces", help="Add pieces, look at them, have them run.")

_Where = Annotated[Where | None, Parameter(name="*")]


@pieces.command
async def add(
    space: str,
    piece_id: str,
    /,
    *,
    integration: str,
    config: JsonObject | None = None,
    every_seconds: float | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Register a piece, or enable it again with a new configuration; it runs at once.

    Args:
        space: The tenant.
        piece_id: Unique in its space.
        integration: Of one of the app's pieces.
        config: A JSON object that the update is given.
        every_seconds: From the end of one update to the next; the integration's own when omitted.
        as_json: Print JSON.
        where: Which node.
    """
    piece = await ask(
        where or Where(),
        "pieces.add",
        space=space,
        piece_id=piece_id,
        integration=integration,
        config=config,
        every_seconds=every_seconds,
    )
    if as_json:
        show_json(piece)
    else:
        say(
            f"piece {space}/{piece_id} is " + ("added" if piece["added"] else "there already: enabled, configured anew")
        )


@pieces.command(name="list")
async def list_pieces(*, space: str | None = None, as_json: AsJson = False, where: _Where = None) -> None:
    """List pieces.

    Args:
        space: Only those of a tenant.
        as_json: Print JSON.
        where: Which node.
    """
    page = await ask(where or Where(), "pieces.list", space=space)
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
            moment(piece["next_run_at"]),
            error_text(piece["last_error"]),
        )
        for piece in page["items"]
    ]
    show_table(
        ("piece", "integration", "status", "schedule", "last run", "next run", "error"), rows, nothing="no pieces"
    )


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
            ("error", error_text(piece["last_error"])),
            ("next run", moment(piece["next_run_at"])),
        ]
    )
    say("")
    show_runs(piece["runs"], nothing="no runs yet")


@pieces.command
async def run(
    space: str, piece_id: str, /, *, no_wait: bool = False, as_json: AsJson = False, where: _Where = None
) -> None:
    """Have a piece updated now and wait for it.

    Args:
        space: The tenant.
        piece_id: Which piece.
        no_wait: Return as soon as its update is due.
        as_json: Print JSON.
        where: Which node.

    Raises:
        ExecutionFailedError: The update failed.
    """
    update = await ask(where or Where(), "pieces.run", space=space, piece_id=piece_id, wait=not no_wait)
    if as_json:
        show_json(update)
    else:
        show_run(update)
    if update["status"] == "failed":
        raise ExecutionFailedError(f"the update of {space}/{piece_id} failed: {error_text(update['error'])}")


def _standing(piece: dict[str, Any]) -> str:
    """What people want of a piece where that is not simply that it runs, else how it stands."""
    if piece["desired"] != "enabled":
        return str(piece["desired"])
    return str(piece["status"] if piece["observed"] == "idle" else piece["observed"])
