"""`piecework services`: what an app's workspaces offer."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson  # noqa: TC001 - the command line reads it from the annotation
from piecework.cli.command import named_app
from piecework.cli.telling import show_json, show_table

services = App("services", help="Look at the services of an app.")

_Named = Annotated[str | None, Parameter(help="MODULE:ATTRIBUTE of the app; default PIECEWORK_APP.")]
_Client = Annotated[bool, Parameter(help="Only those that clients may use.")]

_OF_CLIENTS = frozenset({"environment", "params", "run_in_new_workspace"})
_OWN = _OF_CLIENTS | {
    "config",
    "enqueue_job",
    "map_in_workspaces",
    "publish",
    "run_background_job",
    "run_command",
    "spawn_in_new_workspace",
    "user",
}
"""What every workspace has by itself."""


@services.command(name="list")
def list_services(*, client: _Client = False, app: _Named = None, as_json: AsJson = False) -> None:
    """List the services that a workspace of the app has; nothing is opened.

    Args:
        client: Only those that clients may use.
        app: MODULE:ATTRIBUTE of the app.
        as_json: Print JSON.

    Raises:
        AppImportError: No app is named, or it cannot be imported.
    """
    items = [{"name": name, "scope": "workspace", "type": None, "client": name in _OF_CLIENTS} for name in _OWN]
    items += [
        {
            "name": recipe.name,
            "scope": None if recipe.scope is None else recipe.scope.name.lower(),
            "type": None if recipe.product is None else recipe.product.__name__,
            "client": recipe.client,
        }
        for recipe in named_app(app).services
        if recipe.name not in _OWN  # in a workspace it is the workspace's own
    ]
    items = sorted((one for one in items if one["client"] or not client), key=lambda one: str(one["name"]))
    if as_json:
        show_json({"items": items, "next_cursor": None})
        return
    rows = [(one["name"], one["scope"], one["type"], "yes" if one["client"] else None) for one in items]
    show_table(("service", "scope", "type", "client"), rows, nothing="no services")
