"""What arrives together shares a transaction: one batch of a verb is under way at a time, the next gathers meanwhile.

Another one sets out beside it only when a batch was full: more lanes would split batches, and a commit costs more than
the rows in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from piecework.store.contract import Failure
from piecework.store.job import UNDECIDED, Job
from piecework.store.postgres_link import translate

if TYPE_CHECKING:
    from piecework.store.contract import Decide, Verb
    from piecework.store.postgres_pool import Pool

BATCH_LIMIT = 500


class Committer(Protocol):
    """Commits batches."""

    async def commit(self, jobs: list[Job]) -> None:
        """Gives every job its outcome, durable or a `Failure`; the caller has a place in the pool."""
        ...


@dataclass(slots=True)
class _Lane:
    waiting: deque[Job] = field(default_factory=deque)
    flying: int = 0
    full: bool = False


class Lanes:
    """A lane for each verb and decision.

    Args:
        pool: Where a batch needs a place before it is gathered.
        committer: Commits it.
        url: For messages.
        limit: Items in a batch.
    """

    def __init__(self, pool: Pool, committer: Committer, url: str, limit: int = BATCH_LIMIT) -> None:
        self._pool = pool
        self._committer = committer
        self._url = url
        self._limit = limit
        self._lanes: dict[tuple[Verb, Decide], _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, job: Job) -> None:
        """Takes an item; its future is resolved once the outcome is durable."""
        lane = self._lanes.setdefault((job.verb, job.decide), _Lane())
        lane.waiting.append(job)
        if not lane.flying or lane.full:
            self._set_out((job.verb, job.decide), lane)

    async def drain(self) -> None:
        """Waits until everything that was submitted is answered."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _set_out(self, key: tuple[Verb, Decide], lane: _Lane) -> None:
        lane.flying += 1
        lane.full = False
        task = asyncio.get_running_loop().create_task(self._fly(key, lane), name="piecework-commit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, key: tuple[Verb, Decide], lane: _Lane) -> None:
        jobs: list[Job] = []
        try:
            async with self._pool.place():
                jobs = self._gather(key, lane)
                await self._committer.commit(jobs)
        except BaseException as error:
            # The loop is ending, or it is a fault of ours: either way nobody is left waiting.
            jobs += lane.waiting
            lane.waiting.clear()
            for job in jobs:
                if job.outcome is UNDECIDED:
                    job.outcome = Failure(translate(error, self._url))
            if not isinstance(error, Exception):
                raise
        finally:
            for job in jobs:
                job.resolve()
            lane.flying -= 1
            if lane.waiting and not lane.flying:
                self._set_out(key, lane)
            elif not lane.waiting and not lane.flying:
                self._lanes.pop(key, None)

    def _gather(self, key: tuple[Verb, Decide], lane: _Lane) -> list[Job]:
        jobs = [lane.waiting.popleft() for _ in range(min(self._limit, len(lane.waiting)))]
        if len(jobs) == self._limit:
            lane.full = True
            if lane.waiting:
                self._set_out(key, lane)
        return jobs
