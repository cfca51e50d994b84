"""Commits a batch: again where somebody was in the way or the server had gone, item by item where one is to blame.

Every item may be submitted twice without harm, so a batch whose COMMIT got no answer is simply run again.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import StoreError, StoreUnavailableError
from piecework.store.contract import Failure
from piecework.store.postgres_link import is_contended, is_lost, translate
from piecework.store.postgres_requests import StartOverError, Transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import asyncpg

    from piecework.store.contract import Decide, Verb
    from piecework.store.job import Job
    from piecework.store.postgres_pool import Pool

T = TypeVar("T")

_TRIES = 10
_BATCH_TRIES = 5
"""A batch is taken apart sooner: then whoever is not in anybody's way gets through."""

_SHORTEST_SECONDS = 0.005
_LONGEST_SECONDS = 0.2
_LONGEST_AWAY_SECONDS = 2.0


class LostError(Exception):
    """The connection went, or could not be made; `unknown` when a COMMIT was under way."""

    def __init__(self, cause: BaseException, *, unknown: bool) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.unknown = unknown


class Batches:
    """Commits batches over connections of a pool.

    Args:
        pool: Where the caller has a place.
        url: For messages.
        tell: Given the topics of a batch once it is committed.
        reconnect_seconds: How long a server may be away before its items fail.
    """

    def __init__(self, pool: Pool, url: str, tell: Callable[[Iterable[str]], None], reconnect_seconds: float) -> None:
        self._pool = pool
        self._url = url
        self._tell = tell
        self._reconnect_seconds = reconnect_seconds

    async def commit(self, jobs: list[Job]) -> None:
        """Gives every job its outcome, durable or a `Failure`."""
        try:
            await self._persist(jobs)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to an item and its caller is told
            # Where the server has gone no item is to blame.
            if len(jobs) == 1 or isinstance(error, StoreUnavailableError):
                for job in jobs:
                    job.outcome = Failure(translate(error, self._url))
                return
            await self._commit_singly(jobs)

    async def _commit_singly(self, jobs: list[Job]) -> None:
        for position, job in enumerate(jobs):
            await self.commit([job])
            if isinstance(job.outcome, Failure) and isinstance(job.outcome.error, StoreUnavailableError):
                for other in jobs[position + 1 :]:
                    other.outcome = job.outcome
                return

    async def _persist(self, jobs: list[Job]) -> None:
        """Commits all or nothing, in several attempts.

        Raises:
            StoreUnavailableError: The server was away for too long.
            StoreError: Others were in the way again and again.
        """
        limit = _TRIES if len(jobs) == 1 else _BATCH_TRIES
        for tried in range(1, limit + 1):
            try:
                await patiently(lambda: self._transact(jobs), self._url, self._reconnect_seconds)
            except Exception as error:
                if not isinstance(error, StartOverError) and not is_contended(error):
                    raise
                if tried == limit:
                    why = str(error) or "what it had looked at changed each time"
                    raise StoreError(
                        f"the store {self._url} could not commit in {limit} attempts, others were in the way ({why}); "
                        "nothing was written: submit it again",
                        path=self._url,
                    ) from error
                await asyncio.sleep(pause_seconds(tried, _LONGEST_SECONDS))
            else:
                return

    async def _transact(self, jobs: Sequence[Job]) -> None:
        try:
            connection = await self._pool.take()
        except Exception as error:
            raise LostError(error, unknown=False) from error
        try:
            items, now = [job.item for job in jobs], max(job.now for job in jobs)
            outcomes, told = await transact(connection, jobs[0].verb, items, jobs[0].decide, now)
        finally:
            self._pool.give(connection)
        if told:
            self._tell(told)
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.outcome = outcome


async def transact(
    connection: asyncpg.Connection[Any], verb: Verb, items: Sequence[Any], decide: Decide, now: int
) -> tuple[list[Any], list[str]]:
    """Decides and commits items of one verb in one transaction; answers their outcomes and what is to be told.

    Raises:
        LostError: The connection went.
        StartOverError: The verb asked to be run anew.
        asyncpg.PostgresError: The server refused.
    """
    transaction = Transaction(connection)
    try:
        await transaction.begin()
        outcomes = await transaction.drive(verb(items, decide, now))
        if len(outcomes) != len(items):
            raise StoreError(f"{verb} answered {len(outcomes)} outcomes for {len(items)} items")
        await transaction.commit()
    except Exception as error:
        if is_lost(error, connection):
            connection.terminate()
            raise LostError(error, unknown=transaction.committing) from error
        await _roll_back(connection, transaction)
        raise
    return outcomes, transaction.told


async def _roll_back(connection: asyncpg.Connection[Any], transaction: Transaction) -> None:
    try:
        await transaction.rollback()
    except Exception:  # noqa: BLE001 - the failure that led here is told; without its connection the transaction ends
        connection.terminate()


async def patiently(attempt: Callable[[], Awaitable[T]], url: str, seconds: float) -> T:
    """Attempts something again and again while the server is away.

    Args:
        attempt: Raises `LostError` when the server or its connection has gone.
        url: For the message.
        seconds: How long, counted from the first such failure.

    Raises:
        StoreUnavailableError: The server did not come back in time.
    """
    loop = asyncio.get_running_loop()
    began: float | None = None
    unknown, failed = False, 0
    while True:
        try:
            return await attempt()
        except LostError as error:
            began = loop.time() if began is None else began
            unknown, failed = unknown or error.unknown, failed + 1
            if loop.time() - began >= seconds:
                doubt = "whether it was written is unknown" if unknown else "nothing was written"
                raise StoreUnavailableError(
                    f"the store {url} has been out of reach for {seconds:g} seconds ({error}): {doubt}, "
                    "submitting it again is harmless",
                    path=url,
                    unknown=unknown,
                ) from error
        left = max(0.0, began + seconds - loop.time())
        await asyncio.sleep(min(left, pause_seconds(failed, _LONGEST_AWAY_SECONDS)))


def pause_seconds(failed: int, longest: float) -> float:
    """How long to wait before the next attempt: longer each time, and for no two the same."""
    return random.uniform(0.5, 1) * min(longest, _SHORTEST_SECONDS * 2.0 ** min(failed, 20))  # noqa: S311 - nothing secret
