"""What a client of a file's node has instead of the intake, the runtime and the pieces: the same names and answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from piecework.bus.event import Event
from piecework.client.node_link import NodeLink
from piecework.client.parts import RemoteParts
from piecework.client.within import inbox_row
from piecework.clock import check_duration
from piecework.container.state import in_json
from piecework.errors import (
    InvalidStateError,
    NoNodeError,
    NotFoundError,
    PieceworkError,
    TimeoutExceededError,
    ValidationError,
)
from piecework.ids import new_id
from piecework.run.info import RunInfo, RunProgress, TimelineEntry, WorkflowInfo
from piecework.run.intake import Receipt
from piecework.run.link_errors import revived_error
from piecework.space.record import PieceRecord, SpaceRecord
from piecework.store.items import DispatchResult
from piecework.store.values import encode_mapping
from piecework.workflow.explain import ClauseAnswer, Explanation
from piecework.workflow.looking import told_event
from piecework.workflow.pipeline_registry import PipelineRegistry
from piecework.workflow.result import Result, RunMetadata, RunValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from piecework.bus.subscriptions import EventBus
    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.run.admission import Mode
    from piecework.services.transport import Transport
    from piecework.workflow.definition import Workflow

T = TypeVar("T")

_PAGE = 200
_WAIT_SECONDS = 20.0
"""How long one question waits for a run: a client that goes away is forgotten after that."""


class RemoteIntake:
    """The door for events and jobs, as a client has it.

    Args:
        link: To the node.
        bus: Its subscribers see what was published here.
        clock: Tells the time.
        limit_bytes: The largest payload.
    """

    def __init__(self, link: NodeLink, bus: EventBus, clock: Clock, limit_bytes: int) -> None:
        self._link = link
        self._bus = bus
        self._clock = clock
        self._limit = limit_bytes

    async def publish(self, event: Event) -> Receipt:
        """Publishes an event and returns when the node has made it, and what follows from it, durable.

        Raises:
            ValidationError: Something of it is not acceptable; nothing was sent.
            NoNodeError: There is no node.
            PieceworkError: The node refused it.
        """
        row = inbox_row(event, limit_bytes=self._limit, now=self._clock.now())
        asked = {"type": event.type, "payload": event.payload, "id": row.event_id, "space": event.space}
        answer = await self._link.ask("publish", asked)
        results = [DispatchResult(**told) for told in answer["dispatched"]]
        # Where this app has become the node meanwhile, its own intake has told them.
        if not self._link.here and not any(result.outcome == "duplicate" for result in results):
            at = row.published_at
            self._bus.tell(Event(event.type, event.payload, id=row.event_id, space=event.space, at=at))
        return Receipt(row.event_id, results)

    async def enqueue(
        self,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None,
        delay_seconds: float | None,
        dedup: str | None,
        space: str | None,
    ) -> str:
        """Queues a job and returns its run id when it is durable.

        Raises:
            NotFoundError: The node has no such job.
            ValidationError: The arguments are not JSON; nothing was sent.
            NoNodeError: There is no node.
        """
        encode_mapping(args, what=f"the arguments of {name}", limit_bytes=self._limit)
        named = new_id() if run_id is None else run_id
        asked = {"name": name, "args": args, "run_id": named, "delay_seconds": delay_seconds}
        asked |= {"dedup": dedup, "space": space}
        queued: str = await self._link.ask("enqueue", asked)
        return queued


class RemoteRuntime:
    """The door to workflows, as a client has it: see `Runtime`, whose names and answers these are.

    Attributes:
        before_wait: Refuses to wait for a run that cannot begin before the caller goes on; None refuses nobody.
    """

    def __init__(self, link: NodeLink, limit_bytes: int) -> None:
        self.before_wait: Callable[[str], None] | None = None
        self._link = link
        self._limit = limit_bytes

    async def register(
        self,
        workflow: Workflow,
        *,
        mode: Mode | None = None,
        on_prepare: Callable[..., Any] | None = None,
        on_complete: Callable[..., Any] | None = None,
        on_resume: Callable[..., Any] | None = None,
        on_cleanup: Callable[..., Any] | None = None,
        on_dispatch: Callable[..., Any] | None = None,
        replace: bool = False,
    ) -> None:
        """Refuses: a workflow runs where the store is.

        Raises:
            InvalidStateError: Always.
        """
        del mode, on_prepare, on_complete, on_resume, on_cleanup, on_dispatch, replace
        self._refuse(f"register workflow {getattr(workflow, 'id', workflow)!r}")

    async def deregister(
        self, workflow_id: str, *, grace_seconds: float | None = None, abort_paused: bool = False
    ) -> None:
        """Refuses: a workflow runs where the store is.

        Raises:
            InvalidStateError: Always.
        """
        del grace_seconds, abort_paused
        self._refuse(f"deregister workflow {workflow_id!r}")

    async def stop(self, *, grace_seconds: float | None = None) -> None:
        """Refuses: the runtime is the node's.

        Raises:
            InvalidStateError: Always.
        """
        del grace_seconds
        self._refuse("stop the runtime")

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidStateError(
            f"a client cannot {what}: register on the node, the process that has {self._link.path}",
            path=str(self._link.path),
        )

    def has_workflow(self, workflow_id: str) -> bool:
        """Whether the node had a workflow when it was found."""
        return workflow_id in self._link.workflows

    def list_workflows(self) -> list[str]:
        """The ids of the workflows that the node had when it was found."""
        return list(self._link.workflows)

    async def registered(self) -> list[WorkflowInfo]:
        """The workflows that events find."""
        items = (await self._link.ask("workflows.registered", {}))["items"]
        return [WorkflowInfo(**item) for item in items]

    async def retire(self, workflow_id: str) -> int:
        """Ends a workflow that no node has any more; see `Runtime.retire`.

        Raises:
            NotFoundError: There is none.
            InvalidStateError: A living node has it.
        """
        answer = await self._link.ask("workflows.retire", {"workflow_id": workflow_id})
        return int(answer["dropped"])

    def registry(self, workflow_id: str) -> PipelineRegistry | None:
        """The live and paused runs of a workflow; None where the node had it not when it was found."""
        return PipelineRegistry(self, workflow_id) if self.has_workflow(workflow_id) else None

    async def invoke(
        self,
        workflow_id: str,
        trigger_id: str,
        event: Event,
        *,
        run_id: str | None = None,
        wait: bool = True,
        admission: str = "bypass",
        cancel_on_exit: bool = False,
    ) -> Result:
        """Has the node run a pipeline at once, and waits until it completes, fails or pauses; see `Runtime.invoke`.

        A run that a node's successor continues is waited for there. With NO_NODE it may not be known whether there is a
        run: the error's `run_id` names it, and `invoke` with that one cannot make a second.
        """
        metadata: RunMetadata | None = None
        named = new_id() if run_id is None else run_id
        try:
            told = told_event(event)
            encode_mapping({"event": told}, what=f"the arguments of {workflow_id}", limit_bytes=self._limit)
            if admission not in {"bypass", "enforce"}:
                raise ValidationError(f"invoke(admission={admission!r}): choose 'bypass' or 'enforce'")
            asked = {"workflow_id": workflow_id, "trigger_id": trigger_id, "run_id": named, "admission": admission}
            result = as_result(await self._link.ask("workflows.invoke", asked | told))
            metadata = result.metadata
            if not wait or not result.ok or metadata is None:
                return result
            if metadata.run_id != named:  # its mode has signalled the active run, or the event had one already
                return result
            return await self._attend(named, "paused", 0)
        except asyncio.CancelledError:
            if cancel_on_exit:
                await self._abort_left(named)
            raise
        except PieceworkError as error:
            return _failed(error, named, metadata)

    async def resume(
        self,
        run_id: str,
        patch: Mapping[str, Any] | None = None,
        *,
        at: str | None = None,
        wait: bool = True,
        token: str | None = None,
    ) -> Result:
        """Wakes a paused run and waits until it completes, fails or pauses again; see `Runtime.resume`."""
        metadata: RunMetadata | None = None
        given = in_json(dict(patch or {}))
        try:
            encode_mapping(given, what="the patch", limit_bytes=self._limit)
            named = new_id() if token is None else token
            told = await self._link.ask("runs.wake", {"run_id": run_id, "patch": given, "at": at, "token": named})
            result = as_result(told)
            metadata = result.metadata
            return await self._attend(run_id, "paused", told["resumes"]) if wait and result.ok else result
        except PieceworkError as error:
            return _failed(error, run_id, metadata)

    async def _abort_left(self, run_id: str) -> None:
        """Ends the run of a caller who was cancelled, if there is one."""
        with suppress(NotFoundError):
            await self.abort(run_id, "its caller was cancelled")

    async def signal(self, run_id: str, patch: Mapping[str, Any], *, token: str | None = None) -> Result:
        """Merges a patch into the state of a run that has not ended, without waking it; see `Runtime.signal`."""
        try:
            given = in_json(dict(patch))
            encode_mapping(given, what="the patch", limit_bytes=self._limit)
            named = new_id() if token is None else token
            return as_result(await self._link.ask("runs.signal", {"run_id": run_id, "patch": given, "token": named}))
        except PieceworkError as error:
            return _failed(error, run_id, None)

    async def abort(self, run_id: str, reason: str = "aborted by a call", *, token: str | None = None) -> bool:
        """Ends a run; see `Runtime.abort`.

        Returns:
            False for a run that has ended or is being aborted already.

        Raises:
            NotFoundError: There is no such run.
            NoNodeError: There is no node.
        """
        named = new_id() if token is None else token
        answer = await self._link.ask("runs.abort", {"run_id": run_id, "reason": reason, "token": named})
        aborted: bool = answer["aborted"]
        return aborted

    async def wait(
        self, run_id: str, *, until: str = "ended", timeout_seconds: float | None = None, resumes: int = 0
    ) -> Result:
        """Waits until a run has ended, or has paused; see `Runtime.wait`.

        Raises:
            NotFoundError: There is no such run.
            InvalidStateError: It begins with the commit of a transaction that the caller is in.
            TimeoutExceededError: It did not get there in time; the run goes on.
            NoNodeError: There is no node, or it went away and no other came in time.
        """
        if until not in {"ended", "paused"}:
            raise ValidationError(f"wait(until={until!r}): choose 'ended' or 'paused'")
        if self.before_wait is not None:
            self.before_wait(run_id)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._attend(run_id, until, resumes, timeout_seconds)
        except TimeoutExceededError:  # one of the node's own: it is a TimeoutError too
            raise
        except TimeoutError:
            raise TimeoutExceededError(
                f"run {run_id} was not {until} within {timeout_seconds:g} s; it goes on", run_id=run_id
            ) from None

    async def _attend(self, run_id: str, until: str, resumes: int, longest_seconds: float | None = None) -> Result:
        """Asks for a run again and again until it is there: no question outlives its client for long."""
        seconds = _WAIT_SECONDS if longest_seconds is None else min(_WAIT_SECONDS, max(0.0, longest_seconds))
        asked = {"run_id": run_id, "until": until, "resumes": resumes, "seconds": seconds}
        while True:
            told = await self._link.ask("runs.wait", asked)
            if told is not None:
                return as_result(told)

    async def get(self, run_id: str) -> RunInfo:
        """One run, of any kind, with its result.

        Raises:
            NotFoundError: There is no such run.
            NoNodeError: There is no node.
        """
        return _of(RunInfo, await self._link.ask("runs.get", {"run_id": run_id}))

    async def watch(self, workflow_id: str, run_id: str) -> RunInfo | None:
        """One run of a workflow as it stands now; None when there is none.

        Raises:
            NoNodeError: There is no node.
        """
        told = await self._link.ask("runs.watch", {"workflow_id": workflow_id, "run_id": run_id})
        return None if told is None else _of(RunInfo, told)

    async def list_all_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        space: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> list[RunInfo]:
        """Runs, the newest first; see `Runtime.list_all_runs`.

        Raises:
            ValidationError: The limit is below one, or there is no such status.
            NotFoundError: The cursor is no run.
            NoNodeError: There is no node.
        """
        if limit is not None and limit < 1:
            raise ValidationError(f"limit has to be at least 1, not {limit}")
        asked = {"status": status, "workflow": workflow, "space": space, "kind": kind}
        found = await _pages(self._link, "runs.list", asked, limit=limit, cursor=cursor)
        return [_of(RunInfo, told) for told in found]

    async def count_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        space: str | None = None,
        kind: str | None = None,
    ) -> int:
        """How many runs there are; see `Runtime.count_runs`.

        Raises:
            ValidationError: There is no such status.
            NoNodeError: There is no node.
        """
        asked = {"status": status, "workflow": workflow, "space": space, "kind": kind}
        return int((await self._link.ask("runs.count", asked))["count"])

    async def state(self, run_id: str) -> dict[str, Any]:
        """A run's data as of its last commit; empty before the first.

        Raises:
            NotFoundError: There is no such run.
            NoNodeError: There is no node.
        """
        told: dict[str, Any] = await self._link.ask("runs.state", {"run_id": run_id})
        return told

    async def seek(self, run_id: str, seq: int) -> dict[str, Any]:
        """A run's data as it was committed with an entry of its timeline; see `Runtime.seek`.

        Raises:
            NotFoundError: There is no such run, or its timeline has no such entry.
            ValidationError: It is no run of a workflow.
            NoNodeError: There is no node.
        """
        told: dict[str, Any] = await self._link.ask("runs.state", {"run_id": run_id, "seq": seq})
        return told

    async def timeline(self, run_id: str) -> list[TimelineEntry]:
        """What happened to a run, oldest first.

        Raises:
            NotFoundError: There is no such run.
            NoNodeError: There is no node.
        """
        found = await _pages(self._link, "runs.timeline", {"run_id": run_id})
        return [_of(TimelineEntry, told) for told in found]

    async def explain(self, run_id: str, event: Event | str) -> list[Explanation]:
        """Why an event did, or did not, or would wake a run; see `Runtime.explain`.

        Raises:
            NotFoundError: There is no such run, or no event of that id (any more).
            ValidationError: The event's type or payload is not acceptable.
            NoNodeError: There is no node.
        """
        asked: dict[str, Any] = {"run_id": run_id}
        if isinstance(event, str):
            asked["event_id"] = event
        else:
            told = told_event(event)
            asked |= {"type": told["type"], "payload": told["payload"]}
        page = await self._link.ask("runs.explain", asked)
        return [as_explanation(item) for item in page["items"]]


class RemotePieces:
    """The door to pieces, as a client has it: see `PieceService`, whose names and answers these are."""

    def __init__(self, link: NodeLink) -> None:
        self._link = link

    async def register(
        self,
        *,
        space: str,
        piece_id: str,
        integration: str,
        config: dict[str, Any] | None = None,
        every_seconds: float | None = None,
        schedule: str | Iterable[str] | None = None,
    ) -> bool:
        """Registers a piece, or enables it again with a new configuration; see `PieceService.register`.

        Returns:
            True when it is new, False when it was there: also when the node went away after it had registered it, and
            another one was asked again.

        Raises:
            NotFoundError: The node has no such integration; the message suggests near names.
            ValidationError: An id or the configuration is not acceptable.
            NoNodeError: There is no node.
        """
        given = {} if config is None else config
        encode_mapping(given, what="config")
        if every_seconds is not None:
            check_duration("every_seconds", every_seconds)
        asked: dict[str, Any] = {"space": space, "piece_id": piece_id, "integration": integration, "config": given}
        expressions = schedule if schedule is None or isinstance(schedule, str) else list(schedule)
        asked |= {"every_seconds": every_seconds, "schedule": expressions}
        answer = await self._link.ask("pieces.add", asked)
        added: bool = answer["added"]
        return added

    async def pause(self, space: str, piece_id: str, *, reason: str | None = None) -> bool:
        """Lets no update of a piece follow until it is resumed or registered again; see `PieceService.pause`.

        Returns:
            False when it was paused already: also when the node went away after it had paused it, and another one was
            asked again.

        Raises:
            NotFoundError: There is no such piece.
            ValidationError: The reason is no text.
            NoNodeError: There is no node.
        """
        answer = await self._link.ask("pieces.pause", {"space": space, "piece_id": piece_id, "reason": reason})
        changed: bool = answer["changed"]
        return changed

    async def resume(self, space: str, piece_id: str, *, reason: str | None = None) -> bool:
        """Enables a piece that is paused or out of order; see `PieceService.resume`.

        Returns:
            False when it is enabled, and neither stopped nor half-open: also when the node went away after it had
            enabled it, and another one was asked again.

        Raises:
            NotFoundError: There is no such piece.
            ValidationError: The reason is no text.
            NoNodeError: There is no node.
        """
        answer = await self._link.ask("pieces.resume", {"space": space, "piece_id": piece_id, "reason": reason})
        changed: bool = answer["changed"]
        return changed

    async def remove(self, space: str, piece_id: str) -> None:
        """Ends a piece, and an update of it that is under way; see `PieceService.remove`.

        Raises:
            NotFoundError: There is no such piece.
            CrashedError: It was waited for, and its space is broken: no worker for it could be started.
            AbortedError: The update was called off before it began: its piece was paused or removed.
            NoNodeError: There is no node. One that went away is not asked again: the piece may have gone with it.
        """
        await self._link.ask("pieces.remove", {"space": space, "piece_id": piece_id}, again=False)

    async def list(self, *, space: str | None = None) -> list[PieceRecord]:
        """Registered pieces, of one space or of all.

        Raises:
            NoNodeError: There is no node.
        """
        return [_of(PieceRecord, told) for told in await _pages(self._link, "pieces.list", {"space": space})]

    async def get(self, space: str, piece_id: str) -> PieceRecord:
        """One piece.

        Raises:
            NotFoundError: There is no such piece.
            NoNodeError: There is no node.
        """
        return _of(PieceRecord, await self._link.ask("pieces.get", {"space": space, "piece_id": piece_id}))

    async def runs(self, space: str, piece_id: str, *, limit: int = 50) -> Sequence[RunInfo]:
        """A piece's updates, the newest first; a queued one stands for the next.

        Raises:
            NotFoundError: There is no such piece.
            NoNodeError: There is no node.
        """
        found = await _pages(self._link, "pieces.runs", {"space": space, "piece_id": piece_id}, limit=limit)
        return [_of(RunInfo, told) for told in found]

    async def run_now(self, space: str, piece_id: str, *, wait: bool = False) -> RunInfo:
        """Makes a piece's next update due now; one that is under way is that update.

        Args:
            space: The tenant.
            piece_id: Which piece.
            wait: Return only when the update has ended.

        Raises:
            NotFoundError: There is no such piece.
            NoNodeError: There is no node. One that went away is not asked again whether the update is due: it may have
                run meanwhile, and this would be the next.
        """
        asked = {"space": space, "piece_id": piece_id, "wait": False}
        info = _of(RunInfo, await self._link.ask("pieces.run", asked, again=False))
        while wait and info.ended_at is None:
            info = await self.until_ended(space, info.run_id)
        return info

    async def until_ended(self, space: str, run_id: str) -> RunInfo:
        """Waits until an update has ended, unless its space gets no worker.

        Raises:
            CrashedError: The space is broken: no worker could be started. The update stays queued.
            AbortedError: The update was called off before it began: its piece was paused or removed.
            NoNodeError: There is no node.
        """
        wanted = {"space": space, "run_id": run_id, "seconds": _WAIT_SECONDS}
        while True:
            if (told := await self._link.ask("pieces.wait", wanted)) is not None:
                return _of(RunInfo, told)

    async def spaces(self) -> Sequence[SpaceRecord]:
        """The spaces that have a piece, a worker, or failures that are not forgotten, by name.

        Raises:
            NoNodeError: There is no node.
        """
        return [_of(SpaceRecord, told) for told in await _pages(self._link, "spaces.list", {})]

    async def space(self, space: str) -> SpaceRecord:
        """One space.

        Raises:
            NotFoundError: It has no piece and no worker; the message suggests near names.
            NoNodeError: There is no node.
        """
        return _of(SpaceRecord, await self._link.ask("spaces.show", {"space": space}))

    async def resume_space(self, space: str) -> SpaceRecord:
        """Forgets that a space's workers have failed, and makes the updates due now that were put off for it.

        Raises:
            NotFoundError: It has no piece and no worker; the message suggests near names.
            NoNodeError: There is no node.
        """
        return _of(SpaceRecord, await self._link.ask("spaces.resume", {"space": space}))


def remote_parts(path: Path, bus: EventBus, clock: Clock, settings: Settings, transport: Transport) -> RemoteParts:
    """Makes the parts of a client of the node that has a store file; it has still to be found: `link.open()`."""
    link = NodeLink(path, timeout_seconds=settings.connect_timeout_seconds)
    limit_bytes = settings.payload_limit_bytes
    return RemoteParts(
        link=link,
        intake=RemoteIntake(link, bus, clock, limit_bytes),
        runtime=RemoteRuntime(link, limit_bytes),
        pieces=RemotePieces(link),
        mail=transport,
    )


# -- what crosses, as what it was --------------------------------------------------------------------------------


def as_result(told: Mapping[str, Any]) -> Result:
    """A Result as the desk told it."""
    metadata = None if told["metadata"] is None else RunMetadata(**told["metadata"])
    if told["error"] is not None:
        return Result(error=revived_error(told["error"]), metadata=metadata)
    return Result(value=RunValue(**told["value"]), metadata=metadata)


def as_explanation(told: Mapping[str, Any]) -> Explanation:
    """An Explanation as the desk told it."""
    clauses = tuple(ClauseAnswer(**clause) for clause in told["clauses"])
    return Explanation(**{**told, "clauses": clauses})


def _failed(error: PieceworkError, run_id: str, metadata: RunMetadata | None) -> Result:
    if isinstance(error, NoNodeError):
        error.data["run_id"] = run_id
    return Result(error=error, metadata=metadata)


async def _pages(
    link: NodeLink, op: str, asked: dict[str, Any], *, limit: int | None = None, cursor: Any = None
) -> list[Any]:
    """Everything that a listing has, at most `limit`, page by page."""
    found: list[Any] = []
    while True:
        size = _PAGE if limit is None else min(_PAGE, limit - len(found))
        behind = {} if cursor is None else {"cursor": cursor}
        page = await link.ask(op, asked | {"limit": size} | behind)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None or (limit is not None and len(found) >= limit):
            return found


def _of(cls: type[T], told: dict[str, Any]) -> T:
    """A record as it is on the node: what is named as a moment (`at`, `*_at`) is one."""
    return cls(**{name: _told(name, value) for name, value in told.items()})


def _told(name: str, value: Any) -> Any:
    if name == "progress" and value is not None:
        return _of(RunProgress, value)
    return _moment(value) if _is_at(name) else value


def _is_at(name: str) -> bool:
    return name == "at" or name.endswith("_at")


def _moment(text: str | None) -> datetime | None:
    from datetime import datetime

    return None if text is None else datetime.fromisoformat(text)
