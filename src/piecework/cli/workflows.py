"""`piecework workflows`: what is registered, and what shall not be any more."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson, Where, ask
from piecework.cli.telling import say, show_json, show_table

workflows = App("workflows", help="Look at the workflows that events find, and retire them.")

_Where = Annotated[Where | None, Parameter(name="*")]


@workflows.command(name="list")
async def list_workflows(*, as_json: AsJson = False, where: _Where = None) -> None:
    """List the workflows that events find, wherever they are registered.

    Args:
        as_json: Print JSON.
        where: Which node.
    """
    page: dict[str, Any] = await ask(where or Where(), "workflows.registered")
    if as_json:
        show_json(page)
        return
    rows = [
        (item["workflow_id"], item["version"], ", ".join(item["events"]), _nodes(item), item["pending"])
        for item in page["items"]
    ]
    show_table(("workflow", "version", "events", "nodes", "waiting"), rows, nothing="no workflow was ever registered")


@workflows.command
async def retire(workflow_id: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """End a workflow that no node has any more: events are no longer kept for it.

    Args:
        workflow_id: Its id.
        as_json: Print JSON.
        where: Which node.
    """
    answer: dict[str, Any] = await ask(where or Where(), "workflows.retire", workflow_id=workflow_id)
    if as_json:
        show_json(answer)
    else:
        say(f"workflow {workflow_id} is retired, {answer['dropped']} events that waited for it are dropped")


def _nodes(item: dict[str, Any]) -> str:
    """How many nodes have a workflow; where they differ from the newest version, how many have which."""
    versions = Counter(item["versions"].values())
    if not versions.keys() - {item["version"]}:
        return str(len(item["nodes"]))
    return ", ".join(f"{count} of {version}" for version, count in sorted(versions.items()))
