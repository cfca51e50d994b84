"""`piecework runs`: look at runs, and lend a hand."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from piecework.cli.asking import AsJson, JsonObject, Where, ask
from piecework.cli.telling import error_text, moment, say, show_fields, show_json, show_table
from piecework.cli.timeline import show_timeline
from piecework.client.doors import as_result
from piecework.errors import ExecutionFailedError, InvalidStateError

runs = App("runs", help="Look at runs, resume and abort them.")

_Where = Annotated[Where | None, Parameter(name="*")]
_Limit = Annotated[int, Parameter(help="At most so many, up to 1000.", validator=validators.Number(gte=1, lte=1000))]


@runs.command(name="list")
async def list_runs(
    *,
    status: str | None = None,
    workflow: str | None = None,
    space: str | None = None,
    kind: Literal["workflow", "job", "piece"] | None = None,
    limit: _Limit = 50,
    cursor: str | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """List runs, the newest first.

    Args:
        status: Only queued, running, paused, completed, failed or aborted ones.
        workflow: Only those of a workflow, job or integration.
        space: Only those of a tenant.
        kind: Only those of a kind of work.
        limit: At most so many.
        cursor: Go on behind this run id.
        as_json: Print JSON.
        where: Which node.
    """
    page = await ask(
        where or Where(),
        "runs.list",
        status=status,
        workflow=workflow,
        space=space,
        kind=kind,
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        show_json(page)
        return
    show_runs(page["items"], nothing="no runs")
    if page["next_cursor"]:
        say(f"there are more: --cursor {page['next_cursor']}")


@runs.command
async def show(run_id: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """Show a run and its state.

    Args:
        run_id: Which run.
        as_json: Print JSON.
        where: Which node.
    """
    run = await ask(where or Where(), "runs.show", run_id=run_id)
    if as_json:
        show_json(run)
    else:
        show_run(run)


@runs.command
async def timeline(run_id: str, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """Show what happened to a run, oldest first, and what it waits for now.

    Args:
        run_id: Which run.
        as_json: Print JSON.
        where: Which node.
    """
    page = await ask(where or Where(), "runs.timeline", run_id=run_id)
    if as_json:
        show_json(page)
    else:
        show_timeline(page["items"], await ask(where or Where(), "runs.get", run_id=run_id))


@runs.command
async def explain(
    run_id: str,
    /,
    *,
    event: str | None = None,
    type: str | None = None,  # noqa: A002 - the word of the field
    payload: JsonObject | None = None,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Explain why an event did, or would, wake a run or not.

    Args:
        run_id: Which run.
        event: The id of an event that was published.
        type: Instead of an id, the type of an event that might be.
        payload: Its payload, a JSON object.
        as_json: Print JSON.
        where: Which node.
    """
    page = await ask(where or Where(), "runs.explain", run_id=run_id, event_id=event, type=type, payload=payload)
    if as_json:
        show_json(page)
        return
    for answer in page["items"]:
        name = f"wait {answer['wait_id']} for {answer['event_type']}" if answer["wait_id"] else f"run {run_id}"
        say(f"{name}: {'matches' if answer['matches'] else 'does not match'}: {answer['reason']}")
        for clause in answer["clauses"]:
            mark = "ok " if clause["ok"] else "NOT"
            told = f"{clause['field']} {clause['op']} {json.dumps(clause['expected'])}"
            say(f"  {mark} {told}, has {json.dumps(clause['actual'])}")


@runs.command
async def resume(
    run_id: str,
    /,
    *,
    patch: JsonObject | None = None,
    at: str | None = None,
    no_wait: bool = False,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Wake a paused run and wait until it completes, fails or pauses again.

    Args:
        run_id: Which run.
        patch: A JSON object that is merged into its state.
        at: The stage to go on with, whatever stage it paused for and whatever version of the workflow it is of.
        no_wait: Return as soon as the run is woken.
        as_json: Print JSON.
        where: Which node.

    Raises:
        ExecutionFailedError: It went on and failed.
    """
    try:
        came_to = await ask(where or Where(), "runs.resume", run_id=run_id, patch=patch, at=at, wait=not no_wait)
    except ExecutionFailedError as error:
        raise ExecutionFailedError(f"run {run_id} went on and failed: {error.message}") from error
    if as_json:
        show_json(came_to)
        return
    waiting = came_to.get("waiting_for")
    say(f"run {run_id} is {came_to['status']}" + (f", waiting for {', '.join(waiting)}" if waiting else ""))


@runs.command
async def signal(run_id: str, /, *, patch: JsonObject, as_json: AsJson = False, where: _Where = None) -> None:
    """Merge a patch into the state of a run that has not ended, without waking it.

    Args:
        run_id: Which run.
        patch: A JSON object.
        as_json: Print JSON.
        where: Which node.

    Raises:
        InvalidStateError: It has ended.
    """
    told = as_result(await ask(where or Where(), "runs.signal", run_id=run_id, patch=patch)).unwrap()
    if as_json:
        show_json({"run_id": run_id, "status": told.status, "delivered": told.delivered})
    else:
        say(f"run {run_id} has the patch" if told.delivered == "live" else f"run {run_id} gets it when it goes on")


@runs.command
async def abort(run_id: str, /, *, reason: str | None = None, as_json: AsJson = False, where: _Where = None) -> None:
    """Abort a run; a running one ends as soon as its steps let go.

    Args:
        run_id: Which run.
        reason: Why, for its timeline.
        as_json: Print JSON.
        where: Which node.

    Raises:
        InvalidStateError: It had ended already.
    """
    answer = await ask(where or Where(), "runs.abort", run_id=run_id, reason=reason)
    if not answer["aborted"]:
        raise InvalidStateError(f"run {run_id} has ended, or is being aborted already: `piecework runs show` tells")
    if as_json:
        show_json(answer)
    else:
        say(f"run {run_id} is aborted")


def show_runs(items: list[dict[str, Any]], *, nothing: str) -> None:
    """Prints runs as a table."""
    rows = [
        (
            run["run_id"],
            run["outcome"] or run["status"],
            run["kind"],
            run["workflow_id"],
            run["space"],
            run["stage"] or run["key"],
            moment(run["created_at"]),
            error_text(run["error"]) or _what_next(run),
        )
        for run in items
    ]
    columns = ("run", "status", "kind", "name", "space", "at", "created", "note")
    show_table(columns, rows, nothing=nothing, beneath=columns.index("at"))


def show_run(run: dict[str, Any]) -> None:
    """Prints all that is known of a run."""
    show_fields(
        [
            ("run", run["run_id"]),
            ("kind", run["kind"]),
            ("name", run["workflow_id"]),
            ("trigger", run["trigger_id"]),
            ("version", run["version"]),
            ("space", run["space"]),
            ("key", run["key"]),
            ("status", run["status"]),
            ("outcome", run["outcome"]),
            ("stage", run["stage"]),
            ("waiting for", run["waiting_for"]),
            ("progress", _progress(run)),
            ("created", _both(run["created_at"])),
            ("started", _both(run["started_at"])),
            ("paused", _both(run["paused_at"])),
            ("expires", _both(run["expires_at"])),
            ("ended", _both(run["ended_at"])),
            ("attempt", run["attempt"] or None),
            ("resumed", _times(run["resume_count"])),
            ("error", error_text(run["error"])),
            ("result", run["result"]),
            ("trace", (run["error"] or {}).get("trace")),
            ("state", {name: value for name, value in run.get("state", {}).items() if not name.startswith("__")}),
        ]
    )


def _progress(run: dict[str, Any]) -> str | None:
    told = run["progress"]
    if not told:
        return None
    return f"{told['fraction']:.0%}" + (f", {told['message']}" if told["message"] else "")


def _times(number: int) -> str | None:
    return None if not number else "once" if number == 1 else f"{number} times"


def _what_next(run: dict[str, Any]) -> str | None:
    if run["status"] == "running" and run["progress"]:
        return _progress(run)
    if run["waiting_for"]:
        until = f", expires {moment(run['expires_at'])}" if run["expires_at"] else ""
        return f"waits for {', '.join(run['waiting_for'])}{until}"
    return None


def _both(value: str | None) -> str | None:
    return None if value is None else f"{moment(value)} ({value})"
