"""`piecework spaces`: the processes in which every tenant's pieces run."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson, Where, ask
from piecework.cli.telling import moment, say, show_fields, show_json, show_table

spaces = App("spaces", help="Look at the spaces of pieces, and have a broken one tried again.")

_Where = Annotated[Where | None, Parameter(name="*")]
_MEBIBYTE = 1024 * 1024


@spaces.command(name="list")
async def list_spaces(*, as_json: AsJson = False, where: _Where = None) -> None:
    """List the spaces that have pieces, with what their workers do.

    Args:
        as_json: Print JSON.
        where: Which node.
    """
    page: dict[str, Any] = await ask(where or Where(), "spaces.list")
    if as_json:
        show_json(page)
        return
    rows = [
        (one["space"], one["observed"], one["pid"], _memory(one), one["restarts"] or None, one["broken_reason"])
        for one in page["items"]
    ]
    columns = ("space", "state", "pid", "memory", "restarts", "why")
    show_table(columns, rows, nothing="no space has a piece", beneath=len(columns) - 1)


@spaces.command
async def show(space: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """Show a space: its worker, what is wrong with it, and how each limit is enforced here.

    Args:
        space: The tenant.
        as_json: Print JSON.
        where: Which node.
    """
    one: dict[str, Any] = await ask(where or Where(), "spaces.show", space=space)
    if as_json:
        show_json(one)
    else:
        _show(one)


@spaces.command
async def resume(space: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """Forget that a space's workers have failed: what was put off for it is due now.

    Args:
        space: The tenant.
        as_json: Print JSON.
        where: Which node.
    """
    one: dict[str, Any] = await ask(where or Where(), "spaces.resume", space=space)
    if as_json:
        show_json(one)
    else:
        say(f"space {space} starts afresh: what was put off for it is due now")


def _show(one: dict[str, Any]) -> None:
    show_fields(
        [
            ("space", one["space"]),
            ("state", one["observed"]),
            ("why", one["broken_reason"]),
            ("blocked", moment(one.get("blocked_at"))),
            ("worker", None if one["pid"] is None else f"process {one['pid']}"),
            ("memory", _memory(one)),
            ("restarts", _restarts(one["restarts"])),
        ]
    )
    say("")
    say("how its limits are enforced here:")
    show_fields((f"  {name}", told) for name, told in one["limits"].items())


def _memory(one: dict[str, Any]) -> str | None:
    return None if one["memory_bytes"] is None else f"{one['memory_bytes'] / _MEBIBYTE:.1f} MiB"


def _restarts(number: int) -> str:
    return "none" if not number else "once" if number == 1 else f"{number} times"
