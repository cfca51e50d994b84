"""A run while it executes here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.bus.event import Event
from piecework.container import watching
from piecework.container.scope import Scope
from piecework.container.state import State, merge
from piecework.errors import ExecutionFailedError, describe, trace_of
from piecework.run.parts import encode
from piecework.store.items import NewEntry
from piecework.workflow.deltas import SNAPSHOT_EVERY, encoded_delta

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from piecework.run.logger import LogBook
    from piecework.store.items import Claimed
    from piecework.store.records import Run
    from piecework.workflow.catalogue import Registered
    from piecework.workflow.definition import Pipeline, Stage
    from piecework.workflow.result import Result
    from piecework.workspace.workspace import Workspace

_SERVICE_EVENTS = (
    watching.BUILD_START,
    watching.BUILD_COMPLETE,
    watching.BUILD_ERROR,
    watching.INVALIDATED,
    watching.DISPOSED,
)


@dataclass(slots=True, eq=False)
class Flight:
    """A run while it executes here: what the store last said, and what has happened since.

    `resumed` says that it goes on with a patch that `on_resume` has not seen, `ended` and `ended_as` what it came to,
    `ended_at_rest` that it was ended from outside as soon as it had paused. `followers` are given each newer state.
    `told` is the state as the entries of the timeline tell it so far, those of the next commit included; None before
    the first that does.
    """

    run: Run
    registered: Registered
    pipeline: Pipeline
    event: Event
    state: dict[str, Any]
    book: LogBook
    visit: int
    stage: str | None
    entries: list[NewEntry] = field(default_factory=list)
    body: asyncio.Task[None] | None = None
    abandoned: asyncio.Future[None] | None = None
    abort_reason: str | None = None
    resumed: bool = False
    ended: Result | None = None
    ended_as: str = ""
    signalled: int = 0
    window_seconds: float | None = None
    parked: bool = False
    ended_at_rest: bool = False
    again: int = 0
    seen: tuple[str | None, dict[str, Any]] | None = None
    told: dict[str, Any] | None = None
    stages_in_a_row: int = 0
    signals_wait: bool = False
    shown: State = field(default_factory=State)
    followers: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)

    def enter(self, stage: Stage) -> None:
        """Counts the stages that are run without a pause between them.

        Raises:
            ExecutionFailedError: They are more than the pipeline allows: its routers jump for ever.
        """
        self.stages_in_a_row += 1
        limit = self.pipeline.max_stage_visits
        if self.stages_in_a_row > limit:
            raise ExecutionFailedError(
                f"run {self.run.run_id} has run {limit} stages without a pause and would go on with {stage.id!r}: its "
                "routers seem to jump for ever. Let one of them terminate or pause, or give the pipeline a larger "
                "max_stage_visits",
                run_id=self.run.run_id,
                stage=stage.id,
                max_stage_visits=limit,
            )

    def show(self) -> None:
        """Lets the run's services see its state as it is now."""
        self.shown.commit(self.state)
        for follower in self.followers:
            follower(self.state)

    def note_resumed(self) -> None:
        """Adds an entry about what a resume has brought into the state."""
        self.note_change("state:resumed", source="store", reason=self.state.get("__resume_reason__"))

    def take_signals(self, signals: tuple[tuple[int, bytes], ...]) -> None:
        """Merges what was sent to the run; the next commit says so, and then the store forgets it."""
        for number, patch in signals:
            if number <= self.signalled:
                continue
            self.state = merge(self.state, msgspec.json.decode(patch))
            self.signalled = number
            self.note_change("state:signalled", source="store", signal=number)

    def check_progress(self, limit: int) -> None:
        """Counts how often in a row the run went on from its buffer, at one stage and with nothing changed.

        Raises:
            ExecutionFailedError: It has been more often than may be: it would go on like that for ever.
        """
        now = self.stage, {key: value for key, value in self.state.items() if not key.startswith("__")}
        self.again = self.again + 1 if now == self.seen else 0
        self.seen = now
        if limit and self.again >= limit:
            raise ExecutionFailedError(
                f"run {self.run.run_id} paused {limit} times in a row before stage {self.stage!r}, went on at once "
                "with a kept event each time, and nothing in its state changed: it wakes itself; let it wait for other "
                "events than those that it causes, or raise max_resumes_without_progress",
                run_id=self.run.run_id,
                stage=self.stage,
            )

    def abandon(self) -> None:
        """Waits no longer for an aborted run's steps."""
        if self.abandoned is not None and not self.abandoned.done():
            self.abandoned.set_result(None)

    def note(self, type_: str, path: str = "", **payload: Any) -> None:
        """Adds an entry that the next commit writes."""
        if "error" in payload:
            payload = self.book.redaction.fields(payload)
        self.entries.append(NewEntry(type=type_, path=path, payload=encode(payload) if payload else None))

    def shown_error(self, error: BaseException) -> dict[str, Any]:
        """A failure with its trace, as people may see it."""
        return self.book.redaction.fields(describe(error) | {"trace": trace_of(error)})

    def note_change(self, type_: str, path: str = "", *, source: str = "pipeline", **payload: Any) -> None:
        """Adds an entry that also tells what has become of the state since the last one that did."""
        whole = self.visit > 0 and self.visit % SNAPSHOT_EVERY == 0 and source == "pipeline"
        delta = encoded_delta(self.told, self.state, whole=whole)
        self.told = self.state
        said = encode(payload) if payload else None
        self.entries.append(NewEntry(source=source, type=type_, path=path, payload=said, delta=delta))

    def look_at_services(self, ws: Workspace) -> None:
        """Lets the timeline tell what happens to the services that the workflow makes for each run."""
        mine = {service.id for service in self.registered.workflow.services if service.scope != Scope.WORKFLOW}
        if not mine:
            return  # nothing to tell, and a container that nobody looks at is the faster one
        for event in _SERVICE_EVENTS:
            ws.container.on(event, lambda told: self.book.write_event(told) if told.key in mine else None)

    def take_entries(self) -> tuple[NewEntry, ...]:
        """The entries so far, for a commit."""
        taken, self.entries = tuple(self.entries), []
        return taken


def event_of(claimed: Claimed) -> Event:
    """What started a claimed run: the stored event, or what it was invoked with."""
    row = claimed.event
    if row is not None:
        payload = msgspec.json.decode(row.payload)
        return Event(row.type, payload, id=row.event_id, space=row.space, at=row.accepted_at, hops=row.hops)
    told = msgspec.json.decode(claimed.values["args"])["event"]
    return Event(told["type"], told["payload"], id=told["id"], space=told["space"], at=claimed.run.created_at)
