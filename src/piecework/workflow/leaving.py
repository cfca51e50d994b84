"""How a workflow leaves a node: it is retired, or its node stops.

Whoever retires it on the last node that has it ends its runs, but for the paused ones; a node that stops ends none:
they wait for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from piecework.errors import NotFoundError, StoppedError
from piecework.ids import new_id
from piecework.run.folds import decide_abort
from piecework.run.folds_nodes import no_decision
from piecework.run.lifecycle import Status
from piecework.store.items import Abort, Aborted, DispatchResult, Retired, RetireWorkflow
from piecework.store.records import Run
from piecework.store.verbs.nodes import retire_workflow
from piecework.store.verbs.runs import abort
from piecework.workflow.catalogue import KIND, Catalogue, Registered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from piecework.run.node import Node
    from piecework.store.contract import Store
    from piecework.workflow.executor import Executor
    from piecework.workspace.context import Host

REASON = "deregistered"
_PAGE = 500
_BEGIN = frozenset({"started", "queued", "replaced"})


class Leaving:
    """Takes workflows down.

    Args:
        host: The app.
        store: Open.
        node: Whose runs they are.
        executor: Carries them.
        catalogue: Where registered workflows stand.
        turn: Held by whoever says in the store what this node has.
        serving: Whether workflows get events and run here.
    """

    def __init__(
        self,
        host: Host,
        store: Store,
        node: Node,
        executor: Executor,
        catalogue: Catalogue,
        turn: asyncio.Lock,
        *,
        serving: bool,
    ) -> None:
        self._host = host
        self._store = store
        self._node = node
        self._executor = executor
        self._catalogue = catalogue
        self._turn = turn
        self._serving = serving
        self._stopped = False
        self._ended: set[str] = set()
        self._waiting: set[asyncio.Future[str]] = set()

    async def announce(self, gone: Registered, *, own: str = "") -> bool:
        """Says in the store that this node has a workflow no more; the last to have it drops what waits for it.

        Answers whether it was the last.

        Args:
            gone: The workflow, which gets no more events here.
            own: The run that has asked for it: it ends at its next checkpoint, its step is not cut off.
        """
        workflow_id = gone.workflow.id
        if not self._serving or not await self._forget_routes(workflow_id):
            return False
        self._ended.add(workflow_id)
        await self._drop_waiting(workflow_id)
        if own:
            await self._abort(own, tell=False)
        return True

    async def finish(
        self, gone: Registered, *, alone: bool, grace_seconds: float, abort_paused: bool, own: str
    ) -> None:
        """Takes down a workflow that was announced to leave.

        Args:
            gone: The workflow, which gets no more events here.
            alone: Whether no other node has it: then its runs end here.
            grace_seconds: How long they may go on.
            abort_paused: Whether paused ones are ended too.
            own: The run that has asked for it: it is waited for last.
        """
        try:
            if alone:
                await self._end_runs(gone, grace_seconds, own, abort_paused=abort_paused)
        finally:
            await self._take_down(gone)

    def decided(self, results: Sequence[DispatchResult]) -> None:
        """Drops runs whose event was decided before their workflow left, and committed behind it."""
        for result in results:
            if result.run_id is not None and result.workflow_id in self._ended and result.outcome in _BEGIN:
                self.late(result.workflow_id, result.run_id)

    def late(self, workflow_id: str, run_id: str) -> None:
        """Drops one run that came behind, unless its workflow is there again."""
        if workflow_id in self._catalogue:
            self._ended.discard(workflow_id)
        elif workflow_id in self._ended:
            work = partial(self._abort, run_id, dropping=True)
            self._host.supervisor.call_safely(work)

    async def give_way(self, workflow_id: str) -> None:
        """Takes a workflow down for a definition that comes in its place: its runs and events are kept for that one."""
        gone = self._catalogue.remove(workflow_id)
        if gone is not None:
            await self._take_down(gone)

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Takes down every workflow; runs may go on for a while and are then left to the next node.

        Raises:
            ExceptionGroup: Services of some workflows failed to close; all were closed.
        """
        leaving = [gone for name in self._catalogue.ids() if (gone := self._catalogue.leave(name)) is not None]
        grace = self._host.settings.close_timeout_seconds if grace_seconds is None else grace_seconds
        await asyncio.gather(*(self._node.let_end(KIND, gone.workflow.id, seconds=grace) for gone in leaving))
        failures: list[Exception] = []
        for gone in leaving:
            try:
                await self._take_down(gone)
            except Exception as error:  # noqa: BLE001 - raised with the others, after all have been closed
                failures.append(error)
        self._stopped = True
        for future in list(self._waiting):
            _end(future)
        if leaving and self._serving and self._node.started and not self._node.stopping:
            await self._node.register()
        if failures:
            raise ExceptionGroup("workflows could not be closed", failures)

    @contextlib.contextmanager
    def waiting(self, run: Run, news: asyncio.Future[str]) -> Iterator[None]:
        """Has somebody who waits for a run of a workflow told STOPPED when the runtime stops."""
        if run.kind != KIND:
            yield
            return
        if self._stopped and not news.done():
            _end(news)
        self._waiting.add(news)
        try:
            yield
        finally:
            self._waiting.discard(news)

    # -- parts ---------------------------------------------------------------------------------------------------

    async def _forget_routes(self, workflow_id: str) -> bool:
        """Says in the store that this node has the workflow no more; answers whether no other has it."""
        item = RetireWorkflow(workflow_id=workflow_id, node_id=self._node.node_id)
        async with self._turn:
            outcome: Retired = await self._store.run(retire_workflow, item, no_decision, self._node.now())
            if self._node.started:
                await self._node.register()
        return not outcome.nodes

    async def _end_runs(self, gone: Registered, grace_seconds: float, own: str, *, abort_paused: bool) -> None:
        """Gives what runs its grace, aborts the rest and lets the hooks hear of it."""
        workflow_id = gone.workflow.id
        await self._node.let_end(KIND, workflow_id, seconds=grace_seconds, but=own)
        for status in (Status.RUNNING, Status.PAUSED) if abort_paused else (Status.RUNNING,):
            for run in await self._runs(workflow_id, status):
                if run.run_id != own:
                    await self._abort(run.run_id)
        await self._node.look()
        await self._node.let_end(KIND, workflow_id, but=own)
        if own:
            await self._node.let_end(KIND, workflow_id, seconds=grace_seconds)
            self._node.abort(own, REASON)
            await self._node.let_end(KIND, workflow_id)

    async def _drop_waiting(self, workflow_id: str) -> None:
        """Drops the runs that have not begun: their events are told to be dropped."""
        for run in await self._runs(workflow_id, Status.QUEUED):
            dropped = await self._abort(run.run_id, dropping=True)
            if dropped and run.event_seq is not None:
                result = DispatchResult(
                    outcome="dropped",
                    workflow_id=workflow_id,
                    trigger_id=run.trigger_id,
                    run_id=run.run_id,
                    reason=REASON,
                )
                self._executor.hooks.dispatched((result,), None)

    async def _abort(self, run_id: str, *, dropping: bool = False, tell: bool = True) -> bool:
        item = Abort(run_id=run_id, reason=REASON, token=new_id(), dropping=dropping)
        try:
            outcome: Aborted = await self._store.run(abort, item, decide_abort, self._node.now())
        except NotFoundError:  # it has ended, and was forgotten meanwhile
            return False
        if tell and outcome.owner == self._node.node_id:
            self._node.abort(run_id, REASON)
        if outcome.ended:
            self._node.news.announce(run_id, Status.ABORTED)
        return outcome.aborted

    async def _runs(self, workflow_id: str, status: Status) -> list[Run]:
        found: list[Run] = []
        last: Run | None = None
        while True:
            params = {
                "status": status,
                "workflow": workflow_id,
                "space": None,
                "kind": KIND,
                "created_at": None if last is None else last.created_at,
                "run_id": None if last is None else last.run_id,
                "limit": _PAGE,
            }
            rows: list[Run] = await self._store.read("list_live_runs", params, Run)
            found += rows
            if len(rows) < _PAGE:
                return found
            last = rows[-1]

    async def _take_down(self, gone: Registered) -> None:
        """Carries its runs no more and closes its services."""
        if self._catalogue.find(gone.workflow.id) is gone:
            self._catalogue.remove(gone.workflow.id)
        await self._node.interrupt(KIND, gone.workflow.id)
        await self._executor.hot.drop_workflow(gone.workflow.id)
        await gone.container.dispose()


def _end(future: asyncio.Future[str]) -> None:
    if not future.done():
        future.set_exception(
            StoppedError("the runtime has stopped: the run goes on when a node has its workflow again")
        )
        future.exception()  # marks it as seen, for those who have stopped to wait
