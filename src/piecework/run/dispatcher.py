"""Does what was left of events: those of the inbox, those that waited for their workflow, the rest of wide fan-outs.

An event waits where whoever accepted it could not decide: a client, a transaction of somebody else's, a node that lacks
the workflow's newest version. Any node that can does it; two that try at once do it once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.bus.event import Event
from piecework.errors import ClosedError, StoreFullError, StoreUnavailableError, describe
from piecework.run.folds_events import decide_dispatch
from piecework.store.items import ContinueFanout, Dispatch
from piecework.store.records import Delivery, EventRow, Fanout, Inbox, RouteRow
from piecework.store.verbs.dispatch import continue_fanout, dispatch
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from piecework.clock import Clock
    from piecework.run.intake import Intake
    from piecework.run.kind import Kind
    from piecework.store.contract import Decide, Store
    from piecework.store.items import Dispatched, FannedOut, Route

_AT_ONCE = 200
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_FATAL = (StoreUnavailableError, StoreFullError, ClosedError)
"""What is the store's trouble, and no single event's."""


class Dispatcher:
    """Does what is left of events, on one node.

    Args:
        store: Open.
        kinds: By their names; those with versions have triggers.
        intake: Takes events in and tells what became of them.
        clock: Sleeps between looks.
        decide_fanout: The fold of fan-outs; one object for the node's whole life.

    Attributes:
        others: What else is left of events, for the kinds of work that look after it themselves; each answers whether
            there was something.
    """

    def __init__(
        self, store: Store, kinds: Mapping[str, Kind], intake: Intake, clock: Clock, decide_fanout: Decide
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._intake = intake
        self._clock = clock
        self._decide_fanout = decide_fanout
        self.others: tuple[Callable[[], Awaitable[bool]], ...] = ()
        self._wanted = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        self._wanted.set()
        self._task = asyncio.create_task(self._run(), name="piecework-dispatcher")

    def wake(self) -> None:
        """Makes it look now."""
        self._wanted.set()

    async def stop(self) -> None:
        """Ends what is under way and looks no more. Stopping twice, or before the start, is harmless."""
        self._stopping = True
        self._wanted.set()
        if self._task is not None:
            await self._task

    async def look(self) -> bool:
        """Does everything that is there to do; answers whether there was something.

        Raises:
            StoreError: The store failed; what was not done is done at the next look.
        """
        busy = False
        for part in (self._empty_inbox, self._dispatch_pending, self._fan_out, *self.others):
            busy = await part() or busy
        return busy

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping:
            self._wanted.clear()
            busy, trouble = False, False
            try:
                busy = await self.look()
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - shown, and tried again: a loop that ended would lose events in silence
                trouble = True
                signals.emit(signals.NODE_TROUBLE, level="error", what="dispatching events", error=describe(error))
            pause = _FIRST_PAUSE_SECONDS if busy else min(pause * 2, _LONGEST_PAUSE_SECONDS)
            await self._rest(pause if trouble or self._store.shared else None)

    async def _rest(self, seconds: float | None) -> None:
        """Waits to be woken; where others write too their word may get lost, so it looks by itself now and then."""
        if seconds is None:
            await self._wanted.wait()
            return
        wanted = asyncio.ensure_future(self._wanted.wait())
        asleep = asyncio.ensure_future(self._clock.sleep(seconds))
        await asyncio.wait({wanted, asleep}, return_when=asyncio.FIRST_COMPLETED)
        for task in (wanted, asleep):
            task.cancel()
        await asyncio.gather(wanted, asleep, return_exceptions=True)

    # -- its parts -----------------------------------------------------------------------------------------------

    async def _empty_inbox(self) -> bool:
        """Accepts what was published inside transactions that have committed since."""
        after, some = 0, False
        while not self._stopping:
            rows = await self._store.read("inbox", {"after": after, "limit": _AT_ONCE}, Inbox)
            if not rows:
                return some
            after = rows[-1].inbox_seq
            some = await self._all([self._intake.move(row) for row in rows], "accepting from the inbox") or some
        return some

    async def _dispatch_pending(self) -> bool:
        """Decides events that waited for workflows which are here in their newest version."""
        mine = await self._newest_here()
        after, after_id, some = 0, "", False
        while mine and not self._stopping:
            params = {"workflow_ids": sorted(mine), "after": after, "after_id": after_id, "limit": _AT_ONCE}
            rows: list[Delivery] = await self._store.read("pending_deliveries", params, Delivery)
            if not rows:
                return some
            after, after_id = rows[-1].event_seq, rows[-1].workflow_id
            seqs = sorted({row.event_seq for row in rows})
            found: list[EventRow] = await self._store.read("events_by_seq", {"seqs": seqs}, EventRow)
            events = {row.seq: row for row in found}
            known = [row for row in rows if row.event_seq in events]
            jobs = [self._dispatch(row, events[row.event_seq], mine[row.workflow_id]) for row in known]
            some = await self._all(jobs, "dispatching pending events") or some
        return some

    async def _newest_here(self) -> dict[str, str | None]:
        versions = self._versions()
        if not versions:
            return {}
        rows: list[RouteRow] = await self._store.read(
            "routes_of_workflows", {"workflow_ids": sorted(versions)}, RouteRow
        )
        newest = {row.workflow_id: row.version for row in rows}
        return {name: version for name, version in versions.items() if newest.get(name, version) == version}

    def _versions(self) -> dict[str, str | None]:
        """The workflows that are registered here at this moment, each with its version."""
        return {name: version for kind in self._kinds.values() for name, version in kind.versions().items()}

    async def _dispatch(self, row: Delivery, stored: EventRow, version: str | None) -> None:
        event = as_event(stored)
        versions = self._versions()
        if row.workflow_id not in versions or versions[row.workflow_id] != version:
            return  # it has left since we looked: no trigger of it would be found here, and the event waits for it
        routes: Sequence[Route] = [
            route
            for kind in self._kinds.values()
            for route in kind.routes(event)
            if route.workflow_id == row.workflow_id
        ]
        item = Dispatch(event_seq=row.event_seq, workflow_id=row.workflow_id, version=version, routes=tuple(routes))
        told: Callable[[Dispatched], None] = partial(self._intake.dispatched, event_id=stored.event_id)
        await self._store.run(dispatch, item, decide_dispatch, self._clock.now(), told)

    async def _fan_out(self) -> bool:
        """Wakes the rest of those that wait for an event which more wait for than one commit wakes."""
        some = False
        rows: list[Fanout] = await self._store.read("open_fanouts", {"limit": _AT_ONCE}, Fanout)
        for row in rows:
            more = True
            while more and not self._stopping:
                some = True
                item = ContinueFanout(event_seq=row.event_seq)
                answer: FannedOut = await self._store.run(
                    continue_fanout, item, self._decide_fanout, self._clock.now(), self._intake.fanned_out
                )
                more = answer.more
        return some

    async def _all(self, jobs: Sequence[Any], what: str) -> bool:
        """Awaits all; those that fail are shown and stay where they are, the others go on. Answers whether one did.

        Raises:
            StoreError: The store itself failed.
        """
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if isinstance(failure, _FATAL) or not isinstance(failure, Exception):
                raise failure
        if failures:
            signals.emit(
                signals.NODE_TROUBLE, level="error", what=what, count=len(failures), error=describe(failures[0])
            )
        return len(failures) < len(outcomes)


def as_event(row: EventRow) -> Event:
    """A stored event as its workflows see it."""
    payload = msgspec.json.decode(row.payload)
    return Event(row.type, payload, id=row.event_id, space=row.space, at=row.accepted_at, hops=row.hops)
