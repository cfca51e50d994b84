"""The bot: runs jobs by their schedules. Of each scheduled job one run stands in the store, queued for its next time.

So the next time is durable, a node wakes for it as for any run, and of several nodes one has it. It puts the run after
it there, under a key that the store takes once: for `overlap="allow"` when it begins, else before it ends. What was cut
off by a crash runs again and does the same. A node sees to it that there is such a run at its start, and now and then:
a node with another version of the app may have taken the run, and left it out.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from piecework.clock import SECOND, as_datetime
from piecework.errors import ClosedError, describe
from piecework.ids import new_id
from piecework.run.folds import decide_enqueue
from piecework.run.lifecycle import Status
from piecework.run.outcome import Skipped
from piecework.run.schedule import TRIGGER, is_missed, later, next_occurrence
from piecework.services.job import KIND, Done, offered_jobs
from piecework.store.items import Enqueue
from piecework.store.records import Run
from piecework.store.verbs.runs import enqueue
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.clock import Clock
    from piecework.run.cron import Cron
    from piecework.run.node import Node
    from piecework.services.declared_job import JobDefinition
    from piecework.services.job import Verdict
    from piecework.store.contract import Store

LOOK_SECONDS = 60.0
"""How often a node looks whether a scheduled job has lost its next run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as people see it.

    Attributes:
        name: What it is asked for by.
        schedule: When it is run by itself, in cron's words with its time zone, or None.
        timeout_seconds: How long an attempt may take.
        retries: How many further attempts follow one that raises.
        missed: once, skip or all: what becomes of times at which no node was there.
        overlap: skip, queue or allow: what becomes of a time at which the run before has not ended.
        next_run_at: When its schedule is next met, as far as the store knows.
        run_id: The run that is queued for it, or is at work.
    """

    name: str
    schedule: str | None = None
    timeout_seconds: float | None = None
    retries: int = 0
    missed: str | None = None
    overlap: str | None = None
    next_run_at: datetime | None = None
    run_id: str | None = None


class Bot:
    """Keeps schedules.

    Args:
        definitions: The jobs, by name.
        store: Open.
        node: Commits, and tells the time.
        clock: Sleeps between looks.
    """

    def __init__(self, definitions: Mapping[str, JobDefinition], store: Store, node: Node, clock: Clock) -> None:
        self._definitions = definitions
        self._store = store
        self._node = node
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Sees to it that each scheduled job has a run for its next time, from now on."""
        if any(job.cron is not None for job in self._definitions.values()):
            await self.look()
            self._task = asyncio.create_task(self._run(), name="piecework-bot")

    async def stop(self) -> None:
        """Looks no more. Stopping twice, or before the start, is harmless."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Gives each scheduled job that has none a run for its next time."""
        scheduled = {name: job for name, job in self._definitions.items() if job.cron is not None}
        armed = {(run.workflow_id, run.version) for run in await self._queued()}
        for name, job in scheduled.items():
            assert job.cron is not None
            if (name, job.cron.text) not in armed:
                await self._arm(job, job.cron, job.cron.following(self._node.now()))

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - shown, and tried again
                signals.emit(signals.NODE_TROUBLE, level="error", what="looking after schedules", error=describe(error))

    async def jobs(self) -> list[JobRecord]:
        """All jobs that are declared here or that a living node offers, by their names."""
        runs = {(run.workflow_id, run.version): run for run in reversed(await self._queued())}
        names = {*self._definitions, *await offered_jobs(self._store, self._node.now())}
        return [
            self._record(self._definitions[name], runs) if name in self._definitions else JobRecord(name=name)
            for name in sorted(names)
        ]

    async def begins(self, run: Run) -> Verdict | None:
        """Looks at a run before an attempt at it: what it comes to without one, or None.

        A scheduled run is left out when it comes too late, or when its job has another schedule by now.
        """
        if run.trigger_id != TRIGGER:
            return None
        job = self._definitions[run.workflow_id]
        cron = job.cron
        if cron is None or cron.text != run.version:
            return Done(outcome=Skipped.name, reason="the schedule is another one by now")
        occurrence, began = _occurrence(run), _began(run)
        if job.overlap == "allow":
            now = self._node.now()
            await self._arm_after(job, cron, occurrence, now, now)
        if run.visit == 0 and is_missed(occurrence, began, job.missed):
            return Done(outcome=Skipped.name, reason="no node was there at its time")
        return None

    async def ends(self, run: Run) -> None:
        """Puts the run after a scheduled one into the store; called before its own end is committed."""
        job = self._definitions.get(run.workflow_id)
        if job is None or job.cron is None or run.trigger_id != TRIGGER:
            return
        now = self._node.now()
        if job.cron.text != run.version:
            await self._arm(job, job.cron, job.cron.following(now))
        else:
            began = _began(run) if job.overlap != "allow" else now
            await self._arm_after(job, job.cron, _occurrence(run), began, now)

    async def _arm_after(self, job: JobDefinition, cron: Cron, occurrence: int, began: int, now: int) -> None:
        coming = next_occurrence(occurrence, began, now, cron.following, missed=job.missed, overlap=job.overlap)
        await self._arm(job, cron, coming)

    async def _arm(self, job: JobDefinition, cron: Cron, occurrence: int | None) -> None:
        if occurrence is None:
            return
        spread = random.random()  # noqa: S311 - spreads load, keeps no secret
        at = as_datetime(occurrence)
        assert at is not None
        run = Run(
            run_id=new_id(),
            kind=KIND,
            workflow_id=job.name,
            trigger_id=TRIGGER,
            pipeline_id="",
            slot_key=None,
            place=None,
            key_value=at.isoformat(),
            space="default",
            status=Status.QUEUED,
            stage=None,
            version=cron.text,
            event_seq=None,
            due_at=later(occurrence, cron.following, jitter=job.jitter, spread=spread),
        )
        # A schedule may be long, and this is a key: its digest will do.
        name = hashlib.sha256(f"{job.name}\x00{cron.text}\x00{occurrence}".encode()).hexdigest()
        item = Enqueue(run=run, args=b"{}", occurrence=f"{TRIGGER}:{name}")
        await self._node.commit(enqueue, item, decide_enqueue)
        self._node.wake()

    async def _queued(self) -> list[Run]:
        """The scheduled runs that have not ended, the earliest first."""
        rows: list[Run] = await self._store.read("scheduled_runs", {"trigger_id": TRIGGER}, Run)
        return rows

    def _record(self, job: JobDefinition, runs: Mapping[tuple[str, str | None], Run]) -> JobRecord:
        told: dict[str, Any] = {}
        if job.cron is not None:
            run = runs.get((job.name, job.cron.text))
            told = {"schedule": job.cron.text, "missed": job.missed, "overlap": job.overlap}
            if run is not None:
                at = _occurrence(run) if run.due_at is not None else job.cron.following(self._node.now())
                told |= {"run_id": run.run_id, "next_run_at": as_datetime(at)}
        return JobRecord(name=job.name, timeout_seconds=job.timeout_seconds, retries=job.retries, **told)


def _began(run: Run) -> int:
    assert run.started_at is not None, "it was claimed"
    return run.started_at


def _occurrence(run: Run) -> int:
    assert run.key_value is not None, "a scheduled run has its time"
    return round(datetime.fromisoformat(run.key_value).timestamp()) * SECOND
