"""What an app has done for others: events, jobs and what people are to be told, published, queued and kept durably.

It goes one of three ways: a worker asks the node that started it, a client of a file's node asks that one, and
everybody else has the store. Inside an open transaction it goes into the outbox instead, and along with the commit.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, overload

from piecework.bus.event import Event, hops_of_run
from piecework.client.parts import RemoteParts
from piecework.client.within import no_transactions, publish_within
from piecework.clock import check_duration, micros
from piecework.errors import ClosedError, InvalidStateError
from piecework.ids import new_id
from piecework.opened import Opened
from piecework.run.intake import Receipt, check_event
from piecework.services import outbox, transactions
from piecework.services.job import offered_jobs
from piecework.store.items import DispatchResult
from piecework.store.values import check_identifier, encode_mapping
from piecework.workspace.context import current_workspace
from piecework.workspace.data import check_reach
from piecework.workspace.sending import queue_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from piecework.services.declared_job import JobDefinition
    from piecework.services.job_handle import JobOptions
    from piecework.workflow.runtime import Runtime
    from piecework.workspace.context import OpenTransaction, Promised
    from piecework.workspace.workspace import Workspace

_WAIT_SECONDS = 20.0
"""How long one question of a worker waits for a run: one that goes away is forgotten after that."""


class Sending(Opened):
    """Publishes, queues and keeps for an app that is open."""

    @overload
    async def publish(
        self,
        type: str,
        payload: dict[str, Any] | None = None,
        *,
        id: str | None = None,
        space: str | None = None,
        connection: None = None,
    ) -> Receipt: ...
    @overload
    async def publish(
        self,
        type: str,
        payload: dict[str, Any] | None = None,
        *,
        id: str | None = None,
        space: str | None = None,
        connection: Any,
    ) -> Promised: ...
    async def publish(
        self,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - as in CloudEvents
        space: str | None = None,
        connection: Any = None,
    ) -> Receipt | Promised:
        """Publishes an event and returns when it, and all that follows from it at once, is durable.

        Args:
            type: A dotted name.
            payload: A mapping of JSON values.
            id: Names this very occurrence: a second event of the same id is a duplicate.
            space: The tenant, or None.
            connection: The event goes along with a transaction of the caller's: it is published when that one commits,
                and never when it is rolled back; the receipt's `dispatched` is None then. An asyncpg connection, a
                SQLAlchemy AsyncConnection or AsyncSession, or a psycopg AsyncConnection, inside a transaction on the
                PostgreSQL database that the store is in.

        Raises:
            ValidationError: Something of it is not acceptable; nothing was stored.
            ClosedError: The app is not open.
            InvalidStateError: The connection is not inside a transaction, or the store is no PostgreSQL one.
            StoreError: It could not be written; or the store is not in the connection's database.
            NoNodeError: This is a client of a file's node, and there is none; see `error.unknown`.
        """
        payload = {} if payload is None else payload
        if connection is not None:
            return await self._publish_within(connection, Event(type, payload, id=id, space=space))
        if self._ask is not None:
            answer = await self._ask("publish", {"type": type, "payload": payload, "id": id, "space": space})
            return Receipt(answer["event_id"], [DispatchResult(**result) for result in answer["dispatched"]])
        return await self._any_parts().intake.publish(Event(type, payload, id=id, space=space))

    async def _publish_within(self, connection: Any, event: Event) -> Promised:
        if self._ask is not None:
            raise InvalidStateError(
                "publish(connection=…) is not possible in a space's worker, which does not know the store: publish "
                "without connection= when the transaction has committed, with an id= made from what was committed"
            )
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            raise no_transactions(f"the file {parts.link.path}")
        limit_bytes = self.settings.payload_limit_bytes
        return await publish_within(connection, event, parts.store, limit_bytes=limit_bytes, now=parts.node.now())

    async def enqueue(
        self,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None = None,
        delay_seconds: float | None = None,
        dedup: str | None = None,
        space: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> str:
        """Queues a job and returns its run id when it is durable; the same `run_id` twice is one run.

        Args:
            name: The job.
            args: Its own arguments, by name.
            run_id: Names the run; made when not given.
            delay_seconds: How much later it may begin.
            dedup: While a job of this name and key is queued or running, its run id is the answer.
            space: The tenant.
            overrides: What stands for services in it, by name, if this very process carries it out.

        Raises:
            NotFoundError: There is no such job.
            ValidationError: The arguments are not acceptable; nothing was queued.
            InvalidStateError: It comes from a workspace whose data only this process has, and this is not the node.
            NoNodeError: This is a client of a file's node, and there is none; see `error.unknown`.
        """
        args = await self._checked_job(name, args, delay_seconds=delay_seconds, dedup=dedup)
        if self._ask is not None or isinstance(self._parts, RemoteParts):
            check_reach(overrides, f"the node that runs job {name!r}")
        if self._ask is not None:
            told = {"name": name, "args": args, "run_id": run_id, "delay_seconds": delay_seconds}
            answer: str = await self._ask("enqueue", told | {"dedup": dedup, "space": space})
            return answer
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            return await parts.intake.enqueue(
                name, args, run_id=run_id, delay_seconds=delay_seconds, dedup=dedup, space=space
            )
        due_at = parts.node.now() + micros(delay_seconds) if delay_seconds else None
        run_id = new_id() if run_id is None else check_identifier(run_id, "run_id")
        key = None if dedup is None else f"dedup:{name}:{dedup}"
        remembered = parts.jobs.inheriting(run_id, overrides, _ended_on(parts.runtime)) if overrides else nullcontext()
        with remembered:
            queued = await parts.intake.enqueue(
                "job", name, args, run_id=run_id, space=space, due_at=due_at, occurrence=key, again=key is not None
            )
        return queued.run_id

    async def _checked_job(
        self, name: str, args: dict[str, Any], *, delay_seconds: float | None, dedup: str | None
    ) -> dict[str, Any]:
        """What a job is given, as it is stored; refuses what is known here not to be acceptable."""
        if check_identifier(name, "job") in self._jobs:
            args = self._jobs[name].arguments.stored(args, self.has_service)
        if delay_seconds:
            check_duration("delay_seconds", delay_seconds)
        if dedup is not None:
            check_identifier(dedup, "dedup")
        parts = None if self._ask is not None else self._any_parts()
        if parts is not None and not isinstance(parts, RemoteParts):
            if not parts.jobs.has(name):
                parts.jobs.check(name, await offered_jobs(parts.store, parts.node.now()))
            parts.jobs.check_args(name, args)
        return args

    async def queue_job(
        self, definition: JobDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], options: JobOptions
    ) -> str:
        """Queues a declared job for its `Job`: from the current workspace, where there is one."""
        given = definition.arguments.named(args, kwargs, self.has_service)
        told = {"delay_seconds": options.delay_seconds, "dedup": options.dedup, "space": options.space}
        ws = _workspace_of(self)
        if ws is None:
            return await self.enqueue(definition.name, given, **told)  # type: ignore[arg-type]  # the options' own types
        return await queue_in(ws, definition.name, given, **told)  # type: ignore[arg-type]  # as above

    async def job_value(self, run_id: str) -> Any:
        """Waits for the end of a job's run and gives what it returned.

        Raises:
            NotFoundError: There is no such run.
            InvalidStateError: It begins with the commit of a transaction that the caller is in.
            PieceworkError: It failed or was aborted: its own error, or EXECUTION_FAILED with its words.
        """
        outbox.refuse_waiting(run_id)
        if self._ask is None:
            (await self.runtime.wait(run_id)).unwrap()
            return (await self.runtime.get(run_id)).result
        while True:
            told = await self._ask("jobs.value", {"run_id": run_id, "seconds": _WAIT_SECONDS})
            if told is not None:
                return told["value"]

    async def enqueue_job(self, name: str, /, **args: Any) -> str:
        """Queues a job; returns its run id when it is durable. See `Workspace.enqueue_job`."""
        return await self.enqueue(name, args)

    async def run_background_job(self, name: str, /, **args: Any) -> Any:
        """Has a job run on a node, waits and gives what it returned. See `Workspace.run_background_job`."""
        return await self.job_value(await self.enqueue(name, args))

    async def call_command(self, ws: Workspace, name: str, params: Mapping[str, Any], *, key: str | None) -> Any:
        """Calls a command in a fork of a workspace, for `Workspace.run_command`."""
        return await self._commands.run(ws, name, params, key=key)

    async def keep_notification(
        self,
        *,
        notification_id: str,
        email: str,
        body: str,
        subject: str | None,
        frequency: str,
        force: bool,
        space: str | None,
        once: bool = False,
    ) -> None:
        """Keeps what somebody is to be told until their digest is due; `row.notify` ends here.

        Args:
            notification_id: Names it: the same twice is one, as long as it waits.
            email: Whom to tell.
            body: The words.
            subject: One line, or None.
            frequency: asap, daily, or none, of which nothing is kept.
            force: Whether to tell it at once.
            space: The tenant.
            once: The same twice is one also when it has been told.

        Raises:
            ValidationError: Something of it is not acceptable; nothing was stored.
            NoNodeError: This is a client of a file's node, and there is none; see `error.unknown`.
        """
        told: dict[str, Any] = {
            "notification_id": notification_id,
            "email": email,
            "body": body,
            "subject": subject,
            "frequency": frequency,
            "force": force,
            "space": space,
            "once": once,
        }
        if self._ask is not None:
            await self._ask("notify", told)
            return
        parts = self._any_parts()
        if isinstance(parts, RemoteParts):
            await parts.link.ask("notify", told)
        else:
            await parts.notifications.add(**told)

    # -- with the commit of an open transaction ------------------------------------------------------------------

    def current_transaction(self, ws: Workspace) -> OpenTransaction | None:
        """The transaction that the calling code has open on that workspace's database, or None."""
        return transactions.of_workspace(ws.root.id)

    async def promise_event(
        self,
        workspace_id: str,
        type: str,  # noqa: A002 - the word of the field
        payload: dict[str, Any],
        *,
        id: str,  # noqa: A002 - the word of the field
        space: str | None,
    ) -> None:
        """Has an event published with the commit of that workspace's open transaction, for `Workspace.publish`."""
        check_event(Event(type, payload, id=id, space=space), limit_bytes=self.settings.payload_limit_bytes)
        told = {"type": type, "payload": payload, "id": id, "space": space}
        await _promise(workspace_id, outbox.EVENT, told)

    async def promise_job(
        self,
        workspace_id: str,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str,
        delay_seconds: float | None = None,
        dedup: str | None = None,
        space: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Has a job queued with the commit of that workspace's open transaction; arguments and errors of `enqueue`."""
        args = await self._checked_job(name, args, delay_seconds=delay_seconds, dedup=dedup)
        encode_mapping(args, what=f"the arguments of {name}", limit_bytes=self.settings.payload_limit_bytes)
        told: dict[str, Any] = {"name": name, "args": args, "run_id": run_id, "dedup": dedup, "space": space}
        told["due_at"] = self.clock.now() + micros(delay_seconds) if delay_seconds else None
        await _promise(workspace_id, outbox.JOB, told, overrides=overrides)

    async def promise_notification(self, workspace_id: str, told: Mapping[str, Any]) -> None:
        """Has somebody told with the commit of that workspace's open transaction: arguments of `keep_notification`."""
        await _promise(workspace_id, outbox.NOTIFICATION, told)

    def refuse_running(self, ws: Workspace, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of that workspace."""
        outbox.refuse_running(name, ws.root.id)

    def refuse_running_here(self, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of the current workspace."""
        ws = _workspace_of(self)
        if ws is not None:
            self.refuse_running(ws, name)


def _ended_on(runtime: Runtime) -> Callable[[str], Awaitable[Any]]:
    async def ended(run_id: str) -> bool:
        return (await runtime.wait(run_id)).ok  # looked at: what a job came to is told by its run

    return ended


def _workspace_of(app: Sending) -> Workspace | None:
    """The current workspace, if there is one and it is an open one of this app."""
    try:
        ws = current_workspace()
    except (InvalidStateError, ClosedError):
        return None
    return ws if ws.host is app else None


async def _promise(
    workspace_id: str, kind: str, told: Mapping[str, Any], *, overrides: Mapping[str, Any] | None = None
) -> None:
    transaction = transactions.of_workspace(workspace_id)
    assert transaction is not None, "whoever promises has looked for it"
    hops = hops_of_run()
    carried = told if hops is None else {**told, "run_hops": hops}
    await transaction.promise(kind, carried, overrides=overrides)
