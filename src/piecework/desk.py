"""The desk: what a process that is not the node may ask for, in JSON values. One name, one checked form, one answer.

The command line and clients of a file's node reach it over the link, workers over their own channel, where only
`WORKER_OPS` are answered and the space is always the worker's own. It decides nothing: every answer is what the app's
own call came to. What is long is told in pages that a frame carries: `next_cursor` asks for the next.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from piecework.bus.event import Event
from piecework.desk_form import Form, Limit, OpenApp, Seconds, as_many, page
from piecework.desk_pieces import PIECE_FORMS
from piecework.errors import NotFoundError, TimeoutExceededError, ValidationError
from piecework.process import protocol
from piecework.run.link_errors import told_error

if TYPE_CHECKING:
    from piecework.space.manager import Spaces
    from piecework.workflow.result import Result

WORKER_OPS = frozenset({"publish", "enqueue", "jobs.value", "notify"})
"""What a worker may ask for; the rest is for people."""


class Publish(Form, frozen=True):
    """Publishes an event: `{event_id, dispatched}`."""

    op: ClassVar[str] = "publish"
    type: str
    payload: dict[str, Any] = {}
    id: str | None = None
    space: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Returns when the event is durable."""
        return await app.publish(self.type, self.payload, id=self.id, space=self.space)


class Enqueue(Form, frozen=True):
    """Queues a job: its run id."""

    op: ClassVar[str] = "enqueue"
    name: str
    args: dict[str, Any] = {}
    run_id: str | None = None
    delay_seconds: float | None = None
    dedup: str | None = None
    space: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Returns when the job is durable."""
        return await app.enqueue(
            self.name,
            self.args,
            run_id=self.run_id,
            delay_seconds=self.delay_seconds,
            dedup=self.dedup,
            space=self.space,
        )


class ListJobs(Form, frozen=True):
    """Lists the jobs that are declared, or offered by other nodes: `{items, next_cursor}`."""

    op: ClassVar[str] = "jobs.list"

    async def answer(self, app: OpenApp) -> Any:
        """All of them, as JobRecords."""
        return page(await app.bot.jobs())


class JobValue(Form, frozen=True):
    """Waits for a job's run for a while: `{value}`, or null when it has not ended yet.

    Attributes:
        seconds: How long; who wants to wait for longer asks again.
        space: Whose run it has to be, where that is not open.
    """

    op: ClassVar[str] = "jobs.value"
    run_id: str
    seconds: Seconds
    space: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """A run that failed raises its error."""
        info = await app.runtime.get(self.run_id)
        if self.space is not None and info.space != self.space:
            raise NotFoundError(f"there is no run {self.run_id!r} in space {self.space!r}", run_id=self.run_id)
        try:
            result = await app.runtime.wait(self.run_id, timeout_seconds=self.seconds)
        except TimeoutExceededError:
            return None
        result.unwrap()
        return {"value": (await app.runtime.get(self.run_id)).result}


class ListRuns(Form, frozen=True):
    """Lists runs, the newest first: `{items, next_cursor}`."""

    op: ClassVar[str] = "runs.list"
    status: str | None = None
    workflow: str | None = None
    space: str | None = None
    kind: str | None = None
    limit: Limit = 50
    cursor: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Looks for one more than is asked for, to know whether there are more."""
        found = await app.runtime.list_all_runs(
            status=self.status,
            workflow=self.workflow,
            space=self.space,
            kind=self.kind,
            limit=self.limit + 1,
            cursor=self.cursor,
        )
        items, more = as_many(found, self.limit)
        return page(items, next_cursor=items[-1]["run_id"] if more else None)


class GetRun(Form, frozen=True):
    """Tells a run: its RunInfo, with its result."""

    op: ClassVar[str] = "runs.get"
    run_id: str

    async def answer(self, app: OpenApp) -> Any:
        """As of the last commit."""
        return await app.runtime.get(self.run_id)


class WatchRun(Form, frozen=True):
    """Tells a run of a workflow: its RunInfo, or null when there is none."""

    op: ClassVar[str] = "runs.watch"
    workflow_id: str
    run_id: str

    async def answer(self, app: OpenApp) -> Any:
        """As of the last commit."""
        return await app.runtime.watch(self.workflow_id, self.run_id)


class RunState(Form, frozen=True):
    """Tells a run's data.

    Attributes:
        seq: As it was committed with this entry of the timeline; as of the last commit when there is none.
    """

    op: ClassVar[str] = "runs.state"
    run_id: str
    seq: int | None = None

    async def answer(self, app: OpenApp) -> Any:
        """As of the last commit, or of an earlier one."""
        if self.seq is None:
            return await app.runtime.state(self.run_id)
        return await app.runtime.seek(self.run_id, self.seq)


class ShowRun(Form, frozen=True):
    """Shows a run: its RunInfo and its `state`."""

    op: ClassVar[str] = "runs.show"
    run_id: str

    async def answer(self, app: OpenApp) -> Any:
        """Both are as of the last commit."""
        info = msgspec.to_builtins(await app.runtime.get(self.run_id))
        return info | {"state": await app.runtime.state(self.run_id)}


class RunTimeline(Form, frozen=True):
    """Lists what happened to a run, oldest first: `{items, next_cursor}`.

    Attributes:
        limit: At most so many; all of it when there is none.
        cursor: Behind the entry of this number.
    """

    op: ClassVar[str] = "runs.timeline"
    run_id: str
    limit: Limit | None = None
    cursor: int = 0

    async def answer(self, app: OpenApp) -> Any:
        """What a page cannot hold follows on the next."""
        found = [entry for entry in await app.runtime.timeline(self.run_id) if entry.seq > self.cursor]
        if self.limit is None:
            return page(found)
        items, more = as_many(found, self.limit)
        return page(items, next_cursor=items[-1]["seq"] if more else None)


class ExplainRun(Form, frozen=True):
    """Explains why an event did, or would, wake a run or not: `{items, next_cursor}`, an answer for each of its waits.

    Attributes:
        event_id: Of an event that was published; or, of one that might be:
        type: Its type, and its `payload`.
    """

    op: ClassVar[str] = "runs.explain"
    run_id: str
    event_id: str | None = None
    type: str | None = None
    payload: dict[str, Any] = {}

    async def answer(self, app: OpenApp) -> Any:
        """As of the last commit."""
        if (self.event_id is None) is (self.type is None):
            raise ValidationError(
                "explain needs one of two: the id of an event that was published (--event ID), or the type of one that "
                "might be, with its payload (--type TYPE --payload JSON)"
            )
        asked = self.event_id if self.type is None else Event(self.type, self.payload)
        assert asked is not None
        return page(await app.runtime.explain(self.run_id, asked))


class ResumeRun(Form, frozen=True):
    """Wakes a paused run: `{run_id, status, state, waiting_for}` of where it came to, or `{run_id, status}` at once.

    Attributes:
        patch: Merged into the run's state.
        at: The stage to go on with, whatever stage it paused for.
        wait: Answer only when the run has completed, failed or paused again.
    """

    op: ClassVar[str] = "runs.resume"
    run_id: str
    patch: dict[str, Any] = {}
    at: str | None = None
    wait: bool = True

    async def answer(self, app: OpenApp) -> Any:
        """A run that failed meanwhile raises its error."""
        value = (await app.runtime.resume(self.run_id, self.patch, at=self.at, wait=self.wait)).unwrap()
        if self.wait:
            return {"run_id": self.run_id} | msgspec.to_builtins(value)
        return {"run_id": self.run_id, "status": value.status}


class WakeRun(Form, frozen=True):
    """Wakes a paused run and does not wait: a told Result (see `_told`) and the run's `resumes`.

    Attributes:
        patch: Merged into the run's state.
        at: The stage to go on with, whatever stage it paused for.
        token: Names this very call, so that a repeat of it does nothing more.
    """

    op: ClassVar[str] = "runs.wake"
    run_id: str
    token: str
    patch: dict[str, Any] = {}
    at: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Whoever wants to know what the run comes to waits for a pause after so many resumes."""
        result = await app.runtime.resume(self.run_id, self.patch, at=self.at, wait=False, token=self.token)
        resumes = (await app.runtime.get(self.run_id)).resume_count if result.ok else 0
        return _told(result) | {"resumes": resumes}


class WaitRun(Form, frozen=True):
    """Waits for a run for a while: a told Result (see `_told`), or null when it is not there yet.

    Attributes:
        until: What is waited for, as of `Runtime.wait`.
        resumes: A pause counts only after so many.
        seconds: How long; who wants to wait for longer asks again, and a client that has gone is soon forgotten.
    """

    op: ClassVar[str] = "runs.wait"
    run_id: str
    seconds: Seconds
    until: Literal["ended", "paused"] = "ended"
    resumes: int = 0

    async def answer(self, app: OpenApp) -> Any:
        """Answers as soon as the run is there."""
        try:
            result = await app.runtime.wait(
                self.run_id, until=self.until, timeout_seconds=self.seconds, resumes=self.resumes
            )
        except TimeoutExceededError:
            return None
        return _told(result)


class AbortRun(Form, frozen=True):
    """Aborts a run: `{run_id, aborted}`; false when it had ended already.

    Attributes:
        reason: Why, for people.
        token: Names this very call, so that a repeat of it answers the same.
    """

    op: ClassVar[str] = "runs.abort"
    run_id: str
    reason: str = "aborted by an operator"
    token: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """A running one ends as soon as its steps let go."""
        aborted = await app.runtime.abort(self.run_id, self.reason, token=self.token)
        return {"run_id": self.run_id, "aborted": aborted}


class SignalRun(Form, frozen=True):
    """Merges a patch into the state of a run that has not ended: a told Result (see `_told`) with `delivered`.

    Attributes:
        token: Names this very call, so that a repeat of it does nothing more.
    """

    op: ClassVar[str] = "runs.signal"
    run_id: str
    patch: dict[str, Any]
    token: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Nobody is woken by it."""
        return _told(await app.runtime.signal(self.run_id, self.patch, token=self.token))


class CountRuns(Form, frozen=True):
    """Counts runs: `{count}`."""

    op: ClassVar[str] = "runs.count"
    status: str | None = None
    workflow: str | None = None
    space: str | None = None
    kind: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """As of the last commit."""
        count = await app.runtime.count_runs(
            status=self.status, workflow=self.workflow, space=self.space, kind=self.kind
        )
        return {"count": count}


class ListWorkflows(Form, frozen=True):
    """Lists the ids of the workflows that are registered on the node: `{items, next_cursor}`."""

    op: ClassVar[str] = "workflows.list"

    async def answer(self, app: OpenApp) -> Any:
        """All of them."""
        return page(app.runtime.list_workflows())


class RegisteredWorkflows(Form, frozen=True):
    """Lists the workflows that events find, wherever they are registered: `{items, next_cursor}`."""

    op: ClassVar[str] = "workflows.registered"

    async def answer(self, app: OpenApp) -> Any:
        """All of them, as WorkflowInfos."""
        return page(await app.runtime.registered())


class RetireWorkflow(Form, frozen=True):
    """Ends a workflow that no node has any more: `{workflow_id, dropped}`."""

    op: ClassVar[str] = "workflows.retire"
    workflow_id: str

    async def answer(self, app: OpenApp) -> Any:
        """What waited for it is dropped."""
        return {"workflow_id": self.workflow_id, "dropped": await app.runtime.retire(self.workflow_id)}


class InvokeWorkflow(Form, frozen=True):
    """Runs a pipeline and does not wait: a told Result (see `_told`). The same `run_id` twice is one run.

    Attributes:
        trigger_id: Whose pipeline.
        type: Of the event that the run is given; its payload, id and space follow.
    """

    op: ClassVar[str] = "workflows.invoke"
    workflow_id: str
    trigger_id: str
    run_id: str
    type: str
    payload: dict[str, Any] = {}
    id: str | None = None
    space: str | None = None
    admission: Literal["bypass", "enforce"] = "bypass"

    async def answer(self, app: OpenApp) -> Any:
        """Returns when the run is durable."""
        event = Event(self.type, self.payload, id=self.id, space=self.space)
        result = await app.runtime.invoke(
            self.workflow_id, self.trigger_id, event, run_id=self.run_id, wait=False, admission=self.admission
        )
        return _told(result)


class Notify(Form, frozen=True):
    """Keeps what somebody is to be told until their digest is due: nothing."""

    op: ClassVar[str] = "notify"
    notification_id: str
    email: str
    body: str
    subject: str | None = None
    frequency: str = "asap"
    force: bool = False
    space: str | None = None
    once: bool = False

    async def answer(self, app: OpenApp) -> Any:
        """Returns when it is durable."""
        await app.keep_notification(**msgspec.structs.asdict(self))


class Info(Form, frozen=True):
    """Tells about the node: who it is, what it knows, what it does, its workers."""

    op: ClassVar[str] = "info"

    async def answer(self, app: OpenApp) -> Any:
        """As of now."""
        return {
            "app": app.name,
            "node_id": app.node.node_id,
            "pid": os.getpid(),
            "store": app.store.url,
            "versions": _versions(),
            "in_flight": app.node.in_flight,
            "workflows": app.runtime.list_workflows(),
            "integrations": app.integrations,
            "spaces": _workers(app.spaces),
        }


_ALL: tuple[type[Form], ...] = (
    Publish,
    Enqueue,
    ListJobs,
    JobValue,
    ListWorkflows,
    RegisteredWorkflows,
    RetireWorkflow,
    InvokeWorkflow,
    ListRuns,
    GetRun,
    WatchRun,
    ShowRun,
    RunState,
    RunTimeline,
    ExplainRun,
    ResumeRun,
    WakeRun,
    WaitRun,
    AbortRun,
    SignalRun,
    CountRuns,
    *PIECE_FORMS,
    Notify,
    Info,
)
_FORMS = {form.op: form for form in _ALL}


class Desk:
    """Answers what is asked of a node.

    Args:
        app: The app that is, or will be, open; asking a closed one raises CLOSED.
    """

    def __init__(self, app: OpenApp) -> None:
        self._app = app

    async def answer(self, op: str, args: dict[str, Any]) -> Any:
        """Does what is asked and tells what came of it as JSON values; moments are ISO 8601 texts in UTC.

        Args:
            op: What is asked for, such as `runs.list`.
            args: With what: the fields of that op's form.

        Raises:
            NotFoundError: There is no such op.
            ValidationError: A field is unknown, missing or of the wrong type; the message names it.
            PieceworkError: What the app's own call raises.
        """
        form = _FORMS.get(op)
        if form is None:
            raise NotFoundError.among("operation", op, _FORMS)
        try:
            asked = msgspec.convert(args, form)
        except msgspec.ValidationError as error:
            raise ValidationError(f"{op}: {error}", op=op) from error
        return msgspec.to_builtins(await asked.answer(self._app))

    async def answer_worker(self, op: str, args: dict[str, Any], *, space: str) -> Any:
        """Like `answer`, for the worker of a space: only `WORKER_OPS`, and always in its own space.

        Args:
            op: What the worker asks for.
            args: With what; a space that it names itself is not believed.
            space: Whose worker it is.

        Raises:
            NotFoundError: A worker may not ask for that.
            PieceworkError: As of `answer`.
        """
        if op not in WORKER_OPS:
            raise NotFoundError.among("operation", op, WORKER_OPS, hint="Workers may ask for no other")
        return await self.answer(op, args | {"space": space})


def _told(result: Result) -> dict[str, Any]:
    """A Result in JSON values: `value` (of RunValue), `error` (as `link.told_error` tells it) and `metadata`."""
    error = result.error
    return {
        "value": msgspec.to_builtins(result.value),
        "error": None if error is None else told_error(error),
        "metadata": msgspec.to_builtins(result.metadata),
    }


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "piecework": version("piecework"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "frames": protocol.VERSION,
    }


def _workers(spaces: Spaces) -> list[dict[str, Any]]:
    return [
        {
            "space": manager.space,
            "pid": None if manager.controller is None else manager.controller.pid,
            "runs": manager.users,
            "restarts": max(manager.restarts, 0),
        }
        for manager in spaces.managers()
    ]
