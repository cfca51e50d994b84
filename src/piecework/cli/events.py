"""`piecework events`: tell the node that something happened."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson, JsonObject, Where, ask
from piecework.cli.telling import say, show_json, show_table
from piecework.errors import NoNodeError
from piecework.ids import new_id

_PENDING = "a node decides in a moment: runs list"
_NOBODY = (
    "no workflow was interested in it, and no waiting run: `piecework workflows list` tells what starts one, "
    "`piecework runs explain RUN_ID --event ID` why a run did not wake"
)

events = App("events", help="Tell the node that something happened.")


@events.command
async def publish(
    type: str,  # noqa: A002 - the word of the field
    /,
    *,
    payload: JsonObject | None = None,
    id: str | None = None,  # noqa: A002 - as in CloudEvents
    space: str | None = None,
    as_json: AsJson = False,
    where: Annotated[Where | None, Parameter(name="*")] = None,
) -> None:
    """Publish an event; returns when it is durable.

    Args:
        type: A dotted name such as invoice.received.
        payload: A JSON object.
        id: Names this very occurrence: publishing the same id again is a duplicate.
        space: The tenant it belongs to.
        as_json: Print JSON.
        where: Which node.

    Raises:
        NoNodeError: There is none, or it went away; then the message has the id to repeat it with.
    """
    event_id = id or new_id()
    try:
        receipt: dict[str, Any] = await ask(
            where or Where(), "publish", type=type, payload=payload, id=event_id, space=space
        )
    except NoNodeError as error:
        if error.data.get("unknown"):
            raise NoNodeError(f"{error.message}; with --id {event_id} it cannot happen twice") from error
        raise
    if as_json:
        show_json(receipt)
        return
    say(f"event {receipt['event_id']} is durable")
    rows = [
        (
            result["run_id"] or result["active_run_id"],
            result["outcome"],
            result["workflow_id"],
            result["trigger_id"] or None,
            _why(result),
        )
        for result in receipt["dispatched"]
    ]
    show_table(("run", "outcome", "workflow", "trigger", "reason"), rows, nothing=_NOBODY)


def _why(result: dict[str, Any]) -> str | None:
    if result["outcome"] == "pending":
        return result["reason"] or _PENDING
    if result["active_run_id"] and not result["run_id"]:
        return f"{result['reason']}: that run has the place"
    reason: str | None = result["reason"]
    return reason
