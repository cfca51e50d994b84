"""Events and jobs of a workspace: sent at once, or along with the commit of the transaction that is open in it.

Where the workspace has an idempotency key, work that is done again sends the same once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.ids import new_id
from piecework.store import values
from piecework.workspace.context import Promised

if TYPE_CHECKING:
    from piecework.workspace.workspace import Workspace


async def publish_from(
    ws: Workspace,
    type: str,  # noqa: A002 - the word of the field
    payload: dict[str, Any] | None,
    *,
    id: str | None,  # noqa: A002 - the word of the field
    space: str | None,
) -> Any:
    """Publishes an event from a workspace; see `Workspace.publish`."""
    ws.check_open()
    payload = {} if payload is None else payload
    if id is None and ws.key is not None:
        id = ws.repeatable_id(type, values.encode(payload, what="payload"))  # noqa: A001 - the word of the field
    space = ws.space if space is None else space
    if ws.host.current_transaction(ws) is None:
        return await ws.host.publish(type, payload, id=id, space=space)
    event_id = new_id() if id is None else id
    await ws.host.promise_event(ws.root.id, type, payload, id=event_id, space=space)
    return Promised(event_id)


async def queue_in(
    ws: Workspace,
    name: str,
    args: dict[str, Any],
    *,
    delay_seconds: float | None = None,
    dedup: str | None = None,
    space: str | None = None,
) -> str:
    """Queues a job from a workspace, as `Workspace.enqueue_job` does, with options.

    Args:
        ws: The workspace.
        name: The job.
        args: The job's own arguments.
        delay_seconds: How much later it may begin.
        dedup: While a job of this name and key is queued or running, its run id is the answer; inside a transaction it
            is not known yet whether there is one, and the answer is the id of a run that may never be made.
        space: The tenant; None means the workspace's own.

    Raises:
        ClosedError: The workspace is closed.
        NotFoundError: There is no such job.
        ValidationError: The arguments are not acceptable; nothing was queued.
    """
    ws.check_open()
    run_id = None if ws.key is None else ws.repeatable_id(f"job {name}", repr(sorted(args.items())).encode())
    told: dict[str, Any] = {
        "delay_seconds": delay_seconds,
        "dedup": dedup,
        "space": ws.space if space is None else space,
        "overrides": ws.overridden,
    }
    if ws.host.current_transaction(ws) is None:
        return await ws.host.enqueue(name, args, run_id=run_id, **told)
    run_id = run_id or new_id()
    await ws.host.promise_job(ws.root.id, name, args, run_id=run_id, **told)
    return run_id
