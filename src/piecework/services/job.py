"""Jobs, a kind of work: a run with a name and arguments. Sending a mail is one; `declared_job` has the user's own.

The claim has counted the attempt, durably, before anything here runs. So an attempt that is not followed by a commit
was cut off, and a job that must not repeat itself blindly can know it.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from piecework.clock import micros
from piecework.errors import CrashedError, NotFoundError, PieceworkError, clean_text, describe
from piecework.run.folds import decide_cleaned, decide_commit_stage, decide_settle
from piecework.run.lifecycle import ENDED, Status
from piecework.run.logger import RunLogger
from piecework.run.parts import encode
from piecework.store.items import Cleaned, CommitStage, Defer, NewEntry, Settle
from piecework.store.records import NodeRow
from piecework.store.verbs.runs import cleaned, commit_stage, settle
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from piecework.bus.event import Event
    from piecework.run.node import Node
    from piecework.store.contract import Store
    from piecework.store.items import Claimed, Definition, Progress, Route
    from piecework.store.records import EventRow, Run, Wait

KIND = "job"
OFFER = "job:"
"""What a job's name begins with among the offers of a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a job.

    Attributes:
        run_id: The run.
        args: What the job was given.
        state: What earlier attempts kept.
        cut_off: How many attempts since the last commit were cut off by a crash.
        overrides: What stood for services where it was queued, by name: for the workspace that it opens. Empty where it
            was queued by another process, or by this one before a restart.
    """

    run_id: str
    args: dict[str, Any]
    state: dict[str, Any]
    cut_off: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    space: str | None = None
    logger: Any = None


@dataclass(frozen=True, slots=True)
class Done:
    """The job is done.

    Attributes:
        result: JSON values worth keeping.
        outcome: success or skipped, where that is told.
        reason: Why it was skipped, for the timeline.
    """

    result: Any = None
    outcome: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """The job is to be tried again.

    Attributes:
        seconds: How much later.
        state: Kept for the next attempt.
        error: Why, for the timeline.
    """

    seconds: float
    state: dict[str, Any]
    error: PieceworkError | None = None


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The job has failed.

    Attributes:
        error: Why.
    """

    error: PieceworkError


Verdict = Done | Again | GaveUp


class Schedules(Protocol):
    """Who runs jobs by the clock: see `services.bot`."""

    async def begins(self, run: Run) -> Verdict | None:
        """Looks at a run before an attempt at it: what it comes to without one, or None."""
        ...

    async def ends(self, run: Run) -> None:
        """Does what follows a run; called before its own end is committed."""
        ...


class Jobs:
    """The kind `job`.

    Args:
        functions: What carries out one attempt of each job, by name.
        node: Gives the node that commits; asked late, since node and kinds know each other.

    Attributes:
        schedules: Who runs jobs by the clock; None where nobody does.
    """

    name = KIND

    def __init__(self, functions: dict[str, Callable[[Attempt], Awaitable[Verdict]]], node: Callable[[], Node]) -> None:
        self.schedules: Schedules | None = None
        self._functions = functions
        self._node = node
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._overrides: dict[str, Mapping[str, Any]] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    @contextmanager
    def inheriting(
        self, run_id: str, overrides: Mapping[str, Any], ended: Callable[[str], Awaitable[Any]]
    ) -> Iterator[None]:
        """Lets a job have what stands for services where it is queued; the body of the `with` queues it.

        Args:
            run_id: The run.
            overrides: By name. Of one that is queued twice the first ones hold.
            ended: Returns, or raises, when there is no such run any more that has not ended.
        """
        first = run_id not in self._overrides
        self._overrides.setdefault(run_id, overrides)
        try:
            yield
        finally:
            if first:
                watcher = asyncio.create_task(self._forget(run_id, ended), name=f"overrides of {run_id}")
                self._watchers.add(watcher)
                watcher.add_done_callback(self._watchers.discard)

    async def _forget(self, run_id: str, ended: Callable[[str], Awaitable[Any]]) -> None:
        try:
            await ended(run_id)
        except PieceworkError:
            pass  # it was never queued, or the node stops: nobody needs them any more
        finally:
            del self._overrides[run_id]

    def add_built_in(self, name: str, fn: Callable[[Attempt], Awaitable[Verdict]]) -> None:
        """Adds a job of ours, unless the user has one of that name."""
        self._functions.setdefault(name, fn)

    def carries_out(self, name: str, fn: Callable[[Attempt], Awaitable[Verdict]]) -> bool:
        """Whether it is this function that the runs of a job are given to."""
        return self._functions.get(name) is fn

    def check_args(self, name: str, args: dict[str, Any]) -> None:
        """Refuses arguments that a job of ours could not be carried out with.

        Args:
            name: The job; a function with a `check` of its own says what of its arguments is wrong.
            args: What it is to be given.

        Raises:
            ValidationError: An argument is unknown, missing, or not acceptable.
        """
        check = getattr(self._functions.get(name), "check", None)
        if check is not None:
            check(args)

    def known(self) -> list[str]:
        """The jobs whose runs may be claimed here."""
        return list(self._functions)

    def has(self, name: str) -> bool:
        """Whether there is a job of that name here."""
        return name in self._functions

    def check(self, name: str, elsewhere: Sequence[str] = ()) -> None:
        """Refuses the name of a job that there is not.

        Args:
            name: Of the job.
            elsewhere: The jobs that other nodes offer.

        Raises:
            NotFoundError: With near names.
        """
        if name not in self._functions and name not in elsewhere:
            raise NotFoundError.among("job", name, {*self._functions, *elsewhere})

    def versions(self) -> dict[str, str | None]:
        """None: no event starts a job."""
        return {}

    def definitions(self) -> dict[str, Definition]:
        """None: a job has no stages that another definition could lack."""
        return {}

    def offers(self) -> list[str]:
        """The jobs, for processes that do not declare them."""
        return [f"{OFFER}{name}" for name in self._functions]

    def routes(self, event: Event) -> list[Route]:  # noqa: ARG002 - jobs are not started by events
        """None: no event starts a job."""
        return []

    def matches(self, wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 - jobs do not wait
        """None: a job waits for no event."""
        return None

    def abort(self, run_id: str, reason: str) -> None:  # noqa: ARG002 - the commit that follows says why
        """Cancels an attempt that is under way; the settle that follows ends it as aborted."""
        task = self._tasks.get(run_id)
        if task is not None:
            task.cancel()

    async def execute(self, claimed: Claimed) -> None:
        """Makes one attempt at a job and commits what follows from it."""
        run = claimed.run
        if Status(run.status) in ENDED:
            await self._clean(run)
            return
        book = self._node().timelines.book(run)
        attempt = Attempt(
            run_id=run.run_id,
            args=msgspec.json.decode(claimed.values["args"]),
            state=msgspec.json.decode(claimed.values.get("state", b"{}")),
            cut_off=run.attempt - 1,
            overrides=self._overrides.get(run.run_id, {}),
            space=run.space,
            logger=RunLogger(book, run.workflow_id, run_id=run.run_id, job=run.workflow_id),
        )
        verdict = await self._attempt(run, attempt)
        await book.flush()
        await self._commit(run, verdict)

    async def _attempt(self, run: Run, attempt: Attempt) -> Verdict:
        early: Verdict | None = self._aborted(run)
        if early is None and self.schedules is not None:
            early = await self.schedules.begins(run) or self._aborted(run)  # it may have been aborted meanwhile
        if early is not None:
            return early
        task = asyncio.ensure_future(self._call(run, attempt))
        self._tasks[run.run_id] = task
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is None:
                await self._commit(run, task.result())
            raise
        finally:
            del self._tasks[run.run_id]
        if task.cancelled():
            return GaveUp(CrashedError(f"job {run.run_id} was aborted"))
        return task.result()

    def _aborted(self, run: Run) -> GaveUp | None:
        reason = self._node().abort_reason(run)
        return None if reason is None else GaveUp(CrashedError(f"job {run.run_id} was aborted: {reason}"))

    async def _call(self, run: Run, attempt: Attempt) -> Verdict:
        try:
            return await self._functions[run.workflow_id](attempt)
        except PieceworkError as error:
            return GaveUp(error)
        except Exception as error:  # noqa: BLE001 - becomes the run's own error
            return GaveUp(PieceworkError(f"{type(error).__name__}: {error}"))

    async def _commit(self, run: Run, verdict: Verdict) -> None:
        if isinstance(verdict, Again):
            await self._defer(run, verdict)
            return
        if self.schedules is not None:
            await self.schedules.ends(run)
        error = None if isinstance(verdict, Done) else encode(self._shown(verdict.error)).decode()
        item = Settle(
            run_id=run.run_id,
            epoch=run.epoch,
            status=Status.COMPLETED if error is None else Status.FAILED,
            result=encode(verdict.result) if isinstance(verdict, Done) else None,
            error=error,
            outcome=verdict.outcome if isinstance(verdict, Done) else None,
            entries=_told(verdict),
        )
        status: str = await self._node().commit(settle, item, decide_settle)
        level = "info" if status == Status.COMPLETED else "warning"
        signals.emit(signals.RUN_ENDED, level=level, status=status, error=error)
        self._node().news.announce(run.run_id, status)
        await self._clean(run)

    def _shown(self, error: PieceworkError) -> dict[str, Any]:
        """A failure as people may see it."""
        return self._node().timelines.redaction.fields(describe(error))

    async def _defer(self, run: Run, again: Again) -> None:
        node = self._node()
        told = {"seconds": again.seconds, "error": None if again.error is None else self._shown(again.error)}
        item = CommitStage(
            run_id=run.run_id,
            epoch=run.epoch,
            visit=run.visit,
            state=encode(again.state),
            entries=(NewEntry(type="job:again", payload=encode(told)),),
            then=Defer(due_at=node.now() + micros(again.seconds)),
        )
        progress: Progress = await node.commit(commit_stage, item, decide_commit_stage)
        if progress.outcome == "aborted":
            await self._commit(run, GaveUp(CrashedError(f"job {run.run_id} was aborted: {progress.reason}")))
            return
        node.news.announce(run.run_id, Status.QUEUED)
        node.wake()

    async def _clean(self, run: Run) -> None:
        await self._node().commit(cleaned, Cleaned(run_id=run.run_id, epoch=run.epoch), decide_cleaned)


def _told(verdict: Done | GaveUp) -> tuple[NewEntry, ...]:
    if not isinstance(verdict, Done) or not verdict.reason:
        return ()
    return (NewEntry(type=f"job:{verdict.outcome}", payload=encode({"reason": clean_text(verdict.reason)})),)


async def offered_jobs(store: Store, now: int) -> list[str]:
    """The jobs that the living nodes of a store can run.

    Args:
        store: Open.
        now: Microseconds since the epoch.
    """
    rows: list[NodeRow] = await store.read("living_nodes", {"now": now}, NodeRow)
    offers = {offer for row in rows for offer in msgspec.json.decode(row.workflows) if offer.startswith(OFFER)}
    return sorted(offer.removeprefix(OFFER) for offer in offers)
