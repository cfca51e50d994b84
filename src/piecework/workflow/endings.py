"""What is left to do for a run that has ended: its hooks hear of that, whoever waits is told, its place is freed.

Each is noted in the store before the next is begun, so that what a crash interrupts goes on there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.container.state import State
from piecework.errors import describe
from piecework.run.folds import decide_cleaned, decide_end_told, decide_settle
from piecework.run.info import run_info
from piecework.run.lifecycle import Status
from piecework.run.logger import RunLogger
from piecework.run.parts import encode
from piecework.store.items import Cleaned, EndTold, NewEntry, Settle
from piecework.store.verbs.runs import cleaned, end_told, settle
from piecework.telemetry import signals
from piecework.workflow.result import result_of
from piecework.workspace.calls import open_workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.errors import ExecutionFailedError, PieceworkError
    from piecework.run.logger import LogBook
    from piecework.run.node import Node
    from piecework.store.items import Claimed
    from piecework.store.records import Run
    from piecework.workflow.catalogue import Catalogue, Registered
    from piecework.workflow.flight import Flight
    from piecework.workflow.hook_calls import HookCalls
    from piecework.workflow.result import Result
    from piecework.workspace.context import Host
    from piecework.workspace.opening import Opening
    from piecework.workspace.workspace import Workspace


class Endings:
    """Does what is left of runs that have ended.

    Args:
        host: The app, for workspaces.
        catalogue: The registered workflows.
        hooks: Calls hooks.
        node: Gives the node that commits.
    """

    def __init__(self, host: Host, catalogue: Catalogue, hooks: HookCalls, node: Callable[[], Node]) -> None:
        self._host = host
        self._catalogue = catalogue
        self._hooks = hooks
        self._node = node

    async def close(self, flight: Flight, ws: Workspace) -> None:
        """Lets `on_complete` hear of the end; the run's place is held until it has, and whoever waits hears later."""
        run = flight.run
        hook = flight.registered.hooks.on_complete
        if hook is not None and flight.ended is not None:
            await self._tell(flight.registered, run, hook, flight.ended, ws)
        self._node().news.announce(run.run_id, flight.ended_as)
        signals.emit(signals.RUN_CLOSED, level="debug")

    async def without_code(self, claimed: Claimed, error: PieceworkError) -> None:
        """Fails a run of which no stage can run here; its hooks hear of that as far as they are there."""
        run, told = claimed.run, encode(describe(error)).decode()
        registered = self._catalogue.find(run.workflow_id)
        telling = registered is not None and registered.hooks.on_complete is not None
        item = Settle(run_id=run.run_id, epoch=run.epoch, status=Status.FAILED, telling=telling, error=told)
        status: str = await self._node().commit(settle, item, decide_settle)
        signals.emit(signals.RUN_ENDED, level="warning", status=status, error=describe(error))
        await self.unheard(replace(claimed, run=replace(run, status=status, error=told, telling=int(telling))))

    async def unheard(self, claimed: Claimed) -> None:
        """Does what is left of a run that ended where nobody could: without an owner, or under one that has died."""
        run = claimed.run
        registered = self._catalogue.find(run.workflow_id)
        if registered is None:
            signals.emit(signals.HOOKS_SKIPPED, level="warning", run_id=run.run_id, workflow_id=run.workflow_id)
            await self._commit_cleaned(run, (NewEntry(type="hooks:skipped"),))
            return
        hook = registered.hooks.on_complete
        if run.telling and hook is None:
            await self._node().commit(end_told, EndTold(run_id=run.run_id, epoch=run.epoch), decide_end_told)
        elif run.telling and hook is not None:
            shown = State()
            stored = claimed.values.get("state")
            state = {} if stored is None else msgspec.json.decode(stored)
            shown.commit(state)
            book = self._node().timelines.book(run, registered.workflow.env)
            async with self.workspace(run, registered, shown, book) as ws:
                await self._tell(registered, run, hook, result_of(run_info(run), state), ws)
                await book.flush()
        self._node().news.announce(run.run_id, run.status)
        await self.clean(run, registered)

    async def clean(self, run: Run, registered: Registered) -> None:
        """Lets `on_cleanup` do its part, and frees the run's place for the next."""
        entries: tuple[NewEntry, ...] = ()
        if registered.hooks.on_cleanup is not None:
            error = await self._hooks.call("on_cleanup", registered.hooks.on_cleanup, (), run, None)
            entries = () if error is None else (self._hook_error("on_cleanup", error, run, registered),)
        await self._commit_cleaned(run, entries)

    def workspace(self, run: Run, registered: Registered, shown: State, book: LogBook) -> Opening:
        """A fresh workspace of a run, also of one that has ended: its hooks have services."""
        return open_workspace(
            self._host,
            parents=(registered.container,),
            space=run.space,
            key=run.run_id,
            run_id=run.run_id,
            state=shown,
            logger=RunLogger(book, run_id=run.run_id, workflow_id=run.workflow_id),
        )

    # -- parts -------------------------------------------------------------------------------------------------

    async def _tell(
        self, registered: Registered, run: Run, hook: Callable[..., Any], result: Result, ws: Workspace
    ) -> None:
        error = await self._hooks.call("on_complete", hook, (result,), run, ws)
        assert result.ok or result.error  # looked at: it need not warn
        entries = () if error is None else (self._hook_error("on_complete", error, run, registered),)
        item = EndTold(run_id=run.run_id, epoch=run.epoch, entries=entries)
        await self._node().commit(end_told, item, decide_end_told)

    async def _commit_cleaned(self, run: Run, entries: tuple[NewEntry, ...]) -> None:
        item = Cleaned(run_id=run.run_id, epoch=run.epoch, entries=entries)
        started: int = await self._node().commit(cleaned, item, decide_cleaned)
        if started:
            self._node().wake()

    def _hook_error(self, name: str, error: ExecutionFailedError, run: Run, registered: Registered) -> NewEntry:
        told = self._node().timelines.redaction_of(run.workflow_id, registered.workflow.env).fields(describe(error))
        return NewEntry(type="hook:error", path=name, payload=encode({"error": told}))
