"""`piecework jobs`: what runs durably when it is asked for, or by the clock."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson, JsonObject, Where, ask
from piecework.cli.runs import show_run
from piecework.cli.telling import error_text, moment, say, show_json, show_table
from piecework.errors import ExecutionFailedError

jobs = App("jobs", help="Look at jobs and their schedules, and have them run.")

_Where = Annotated[Where | None, Parameter(name="*")]
_WAIT_SECONDS = 20


@jobs.command(name="list")
async def list_jobs(*, as_json: AsJson = False, where: _Where = None) -> None:
    """List the jobs that the node can run, with their schedules.

    Args:
        as_json: Print JSON.
        where: Which node.
    """
    page: dict[str, Any] = await ask(where or Where(), "jobs.list")
    if as_json:
        show_json(page)
        return
    rows = [
        (
            job["name"],
            job["schedule"],
            moment(job["next_run_at"]),
            job["retries"],
            None if job["timeout_seconds"] is None else f"{job['timeout_seconds']:g} s",
        )
        for job in page["items"]
    ]
    show_table(("job", "schedule", "next run", "retries", "timeout"), rows, nothing="no jobs")


@jobs.command
async def enqueue(
    name: str,
    /,
    *,
    args: JsonObject | None = None,
    delay_seconds: float | None = None,
    dedup: str | None = None,
    space: str | None = None,
    wait: bool = False,
    as_json: AsJson = False,
    where: _Where = None,
) -> None:
    """Queue a job; a node runs it.

    Args:
        name: Which job.
        args: A JSON object: its own arguments.
        delay_seconds: How much later it may begin.
        dedup: While a job of this name and key is queued or running, that one is meant.
        space: The tenant.
        wait: Wait for its end.
        as_json: Print JSON.
        where: Which node.

    Raises:
        ExecutionFailedError: It was waited for, and failed.
    """
    place = where or Where()
    run_id: str = await ask(
        place, "enqueue", name=name, args=args, delay_seconds=delay_seconds, dedup=dedup, space=space
    )
    if not wait:
        if as_json:
            show_json({"run_id": run_id})
        else:
            say(run_id)
        return
    while await ask(place, "runs.wait", run_id=run_id, seconds=_WAIT_SECONDS) is None:
        pass
    run: dict[str, Any] = await ask(place, "runs.get", run_id=run_id)
    if as_json:
        show_json(run)
    else:
        show_run(run)
    if run["status"] != "completed":
        raise ExecutionFailedError(f"job {name} {run['status']}: {error_text(run['error'])}", run_id=run_id)
