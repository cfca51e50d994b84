"""Finds the rows of runs by the runs' ids; what is asked for while a query is under way shares the next one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from piecework.store.records import Record

if TYPE_CHECKING:
    from piecework.store.contract import Store

R = TypeVar("R", bound=Record)

_TOGETHER = 100


class Lookup(Generic[R]):
    """Asks one named query for many callers. Nobody is answered by a query that began before they asked.

    Args:
        store: Open when something is asked.
        name: Of the query; its one parameter is `run_ids`.
        record: Whose rows it answers; they have a `run_id`.
    """

    def __init__(self, store: Store, name: str, record: type[R]) -> None:
        self._store = store
        self._name = name
        self._record = record
        self._waiting: dict[str, list[asyncio.Future[list[R]]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def of(self, run_id: str) -> list[R]:
        """The rows of one run.

        Raises:
            ClosedError: The store has been closed.
            StoreError: The query failed.
        """
        answer: asyncio.Future[list[R]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, []).append(answer)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name=f"piecework-{self._name}")
        return await answer

    async def _ask(self) -> None:
        try:
            while self._waiting:
                asked = {run_id: self._waiting.pop(run_id) for run_id in list(self._waiting)[:_TOGETHER]}
                try:
                    await self._answer(asked)
                finally:  # whatever happened, and if the loop is ending: nobody is left waiting
                    for answer in _open(asked):
                        answer.cancel()
        finally:
            self._asking = None
            for answer in _open(self._waiting):
                answer.cancel()
            self._waiting = {}

    async def _answer(self, asked: dict[str, list[asyncio.Future[list[R]]]]) -> None:
        found: defaultdict[str, list[R]] = defaultdict(list)
        wanted = [run_id for run_id, answers in asked.items() if not all(answer.done() for answer in answers)]
        if not wanted:  # whoever asked has gone
            return
        try:
            for row in await self._store.read(self._name, {"run_ids": wanted}, self._record):
                found[row.run_id].append(row)
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked
            for answer in _open(asked):
                answer.set_exception(error)
            return
        for run_id, answers in asked.items():
            for answer in answers:
                if not answer.done():
                    answer.set_result(found[run_id])


def _open(asked: dict[str, list[asyncio.Future[Any]]]) -> list[asyncio.Future[Any]]:
    return [answer for answers in asked.values() for answer in answers if not answer.done()]
