"""What the bus events `run:abort` and `run:signal` do, whoever publishes them.

They are events like any other: durable, known by their ids, seen by observers, and a trigger on them fires. But before
one is accepted, the call that it stands for is made under a token of the event's id: so the one that was acknowledged
has done its work, and its repeat does nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.errors import InvalidStateError, ValidationError
from piecework.store.values import check_identifier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from piecework.bus.event import Event
    from piecework.workflow.runtime import Runtime


def commands_of(runtime: Runtime) -> Mapping[str, Callable[[Event], Awaitable[None]]]:
    """The commands of a runtime, by the types of their events."""

    async def abort(event: Event) -> None:
        """`{run, reason?}`: aborts a run."""
        run_id = _run_of(event)
        reason = event.payload.get("reason") or f"aborted by event {event.id}"
        if not await runtime.abort(run_id, check_identifier(reason, "reason"), token=f"event:{event.id}"):
            raise InvalidStateError(f"run {run_id} has ended, or is being aborted already", run_id=run_id)

    async def signal(event: Event) -> None:
        """`{run, patch}`: signals a run."""
        patch: Any = event.payload.get("patch")
        if not isinstance(patch, dict):
            raise ValidationError(f"event {event.type} needs a patch: {{'run': RUN_ID, 'patch': {{…}}}}")
        (await runtime.signal(_run_of(event), patch, token=f"event:{event.id}")).unwrap()

    return {"run:abort": abort, "run:signal": signal}


def _run_of(event: Event) -> str:
    return check_identifier(event.payload.get("run"), f"the key 'run' of event {event.type}")
