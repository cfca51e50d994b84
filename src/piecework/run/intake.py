"""The door: an event or a call becomes runs, and the caller hears of it once it is durable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.bus.event import Event, hops_of_event, hops_of_run
from piecework.errors import (
    ConflictError,
    PieceworkError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    ValidationError,
    describe,
)
from piecework.ids import new_id
from piecework.run.folds import decide_enqueue
from piecework.run.folds_events import decide_accept
from piecework.run.lifecycle import Status
from piecework.store.items import Accept, Accepted, DispatchResult, Enqueue, Enqueued
from piecework.store.records import EventRow, Run
from piecework.store.values import check_identifier, encode_mapping
from piecework.store.verbs.accept import accept
from piecework.store.verbs.runs import enqueue
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from piecework.bus.subscriptions import EventBus
    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.run.kind import Kind
    from piecework.run.node import Node
    from piecework.store.contract import Store
    from piecework.store.items import Aborting, Dispatched, FannedOut, Route
    from piecework.store.records import Inbox, Wait

_WORK = frozenset({"started", "resumed", "replaced"})
_LOST = frozenset({"dropped", "rejected"})


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `publish` answers, once it is durable.

    Attributes:
        event_id: The event's id, made when none was given.
        dispatched: What became of it at each trigger that it matched and at each run that waited for it.
    """

    event_id: str
    dispatched: list[DispatchResult]


class Intake:
    """Takes events and enqueued runs in.

    Args:
        store: Open.
        kinds: By their names.
        node: Told what follows.
        bus: Its subscribers see what was accepted here.
        clock: Tells the time.
        settings: The numbers.
        deciding: Whether triggers are evaluated here; a client leaves them to nodes.

    Attributes:
        on_left: Called when something of an event was left for later.
        on_decided: Called with what became of an event, once that is durable.
        commands: What an event of a type does before it is accepted; a repeat of it has to do nothing more.
    """

    def __init__(
        self,
        store: Store,
        kinds: Mapping[str, Kind],
        node: Node,
        bus: EventBus,
        clock: Clock,
        settings: Settings,
        *,
        deciding: bool = True,
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._deciding = tuple(kinds.values()) if deciding else ()
        self.on_left: Callable[[], None] = _nothing
        self.on_decided: Callable[[Sequence[DispatchResult], str | None], None] = _nobody
        self.commands: Mapping[str, Callable[[Event], Awaitable[None]]] = {}
        self._node = node
        self._bus = bus
        self._clock = clock
        self._limit = settings.payload_limit_bytes
        self._lost: Counter[tuple[str, str, str | None]] = Counter()
        self._warned_at: dict[tuple[str, str, str | None], float] = {}
        # One object for the node's whole life: events that arrive together share a transaction by it.
        self._decide_accept = partial(decide_accept, self.matches)

    async def move(self, row: Inbox) -> None:
        """Accepts an event of the inbox, which leaves it in the same commit.

        Raises:
            StoreError: It could not be written: it stays where it is.
            PieceworkError: It was refused: it stays where it is.
        """
        event = Event(row.type, msgspec.json.decode(row.payload), id=row.event_id, space=row.space, hops=row.hops)
        stored = EventRow(None, row.event_id, row.type, row.space, row.payload, self._clock.now(), row.hops)
        item = Accept(
            event=stored,
            payload=event.payload,
            routes=self._routes(event),
            known=self._known(),
            inbox_seq=row.inbox_seq,
        )
        await self._command(event)
        told = partial(self._accepted, event, item)
        await self._store.run(accept, item, self._decide_accept, self._clock.now(), told)

    def dispatched(self, outcome: Dispatched, *, event_id: str | None = None) -> None:
        """Does what follows the commit of a pending event's decision."""
        if outcome.decided:
            self._follow(outcome.dispatched, outcome.aborting, event_id)

    def fanned_out(self, outcome: FannedOut) -> None:
        """Does what follows the commit of a part of a fan-out."""
        self._follow(outcome.dispatched, (), None)

    async def publish(self, event: Event) -> Receipt:
        """Makes an event durable together with everything that follows from it at once.

        Raises:
            ValidationError: Its type, id, space or payload is not acceptable; nothing was stored.
            StoreError: It could not be written; nothing was stored.
        """
        item = self._accept_item(event)
        told = partial(self._accepted, event, item)
        await self._command(replace(event, id=item.event.event_id))
        try:
            outcome: Accepted = await self._store.run(accept, item, self._decide_accept, self._clock.now(), told)
        except (StoreFullError, StoreUnavailableError):
            self._node.ready = False  # until something could be written again
            raise
        return Receipt(event_id=outcome.event_id, dispatched=list(outcome.dispatched))

    async def enqueue(
        self,
        kind: str,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None = None,
        space: str | None = None,
        trigger_id: str = "",
        pipeline_id: str = "",
        version: str | None = None,
        due_at: int | None = None,
        occurrence: str | None = None,
        again: bool = False,
        telling: bool = False,
    ) -> Enqueued:
        """Makes a run that no event asked for; the same `run_id` twice is one run.

        Args:
            kind: Of the work.
            name: The workflow's id or the job's name.
            args: JSON values that it is given.
            run_id: Made when not given.
            space: The tenant; "default" when not given.
            trigger_id: For an invoked pipeline.
            pipeline_id: For an invoked pipeline.
            version: Of its definition.
            due_at: Microseconds since the epoch; None means at once.
            occurrence: Names what may happen only once; its first run is answered.
            again: Whether it may happen again once that run has ended.
            telling: Whether somebody wants to hear of its end.

        Raises:
            ValidationError: The args are not JSON.
        """
        run = Run(
            run_id=check_identifier(run_id, "run_id") if run_id is not None else new_id(),
            kind=kind,
            workflow_id=name,
            trigger_id=trigger_id,
            pipeline_id=pipeline_id,
            slot_key=None,
            place=None,
            key_value=None,
            space=check_identifier(space or "default", "space"),
            status=Status.QUEUED,
            stage=None,
            version=version,
            event_seq=None,
            telling=int(telling),
            due_at=due_at,
            hops=hops_of_run() or 0,
        )
        told = encode_mapping(args, what=f"the arguments of {name}", limit_bytes=self._limit)
        item = Enqueue(run=run, args=told, occurrence=occurrence, again=again)
        outcome: Enqueued = await self._store.run(enqueue, item, decide_enqueue, self._clock.now(), self._wake)
        return outcome

    async def enforce(self, event: Event, route: Route) -> DispatchResult:
        """Offers an event to one trigger alone, by the rules of its mode: no wait, and no other trigger, sees it.

        Raises:
            ValidationError: As of `publish`.
            StoreError: It could not be written; nothing was stored.
        """
        event_id, payload = check_event(event, limit_bytes=self._limit)
        row = EventRow(None, event_id, event.type, event.space, payload, self._clock.now(), hops_of_run() or 0)
        item = Accept(event=row, payload=event.payload, routes=(route,), alone=True)
        outcome: Accepted = await self._store.run(
            accept,
            item,
            self._decide_accept,
            self._clock.now(),
            lambda told: None if told.duplicate else self._follow(told.dispatched, told.aborting, event_id),
        )
        mine = [result for result in outcome.dispatched if result.trigger_id == route.trigger_id]
        if not mine:  # the id of an event that was published before and found other triggers
            raise ConflictError(f"there is an event {event_id!r} already, of other triggers", id=event_id)
        return mine[-1]

    async def _command(self, event: Event) -> None:
        """Does what an event of this type asks for; what is wrong with it is shown and holds nothing up.

        One that was accepted before has done its work: repeated, it would undo what others have asked for since.
        """
        if event.type not in self.commands or await self._store.read("events_by_id", {"ids": [event.id]}, EventRow):
            return
        try:
            await self.commands[event.type](event)
        except StoreError:
            raise
        except PieceworkError as error:
            signals.emit(
                signals.OBSERVER_FAILED,
                level="error",
                pattern=event.type,
                event_id=event.id,
                type=event.type,
                error=describe(error),
            )

    def _wake(self, _outcome: Any) -> None:
        self._node.wake()

    def _accepted(self, event: Event, item: Accept, outcome: Accepted) -> None:
        if outcome.duplicate:
            self.on_decided(outcome.dispatched, outcome.event_id)
        else:
            self._follow(outcome.dispatched, outcome.aborting, outcome.event_id)
            self._tell(event, item, outcome.dispatched)
            if outcome.more or any(result.outcome == "pending" for result in outcome.dispatched):
                self.on_left()

    def _follow(
        self, results: tuple[DispatchResult, ...], aborting: tuple[Aborting, ...], event_id: str | None
    ) -> None:
        if any(result.outcome in _WORK for result in results):
            self._node.wake()
        for told in aborting:
            self._node.told_to_end(told)
            if told.displaced is not None:
                self.on_decided((told.displaced,), None)
        self.on_decided(results, event_id)
        for result in results:
            if result.outcome == "signalled" and result.run_id is not None:
                self._node.on_signal(result.run_id)
            if result.outcome in _LOST:
                self._count_lost(result)

    def _count_lost(self, result: DispatchResult) -> None:
        """Warns of events that start nothing: the first at once, then with a count, at most once a second."""
        what = (result.workflow_id, result.outcome, result.reason)
        self._lost[what] += 1
        now = self._clock.monotonic()
        if now - self._warned_at.get(what, -2.0) >= 1.0:
            self._warned_at[what] = now
            signals.emit(
                signals.EVENT_DROPPED,
                level="warning",
                workflow_id=result.workflow_id,
                outcome=result.outcome,
                reason=result.reason,
                count=self._lost.pop(what),
            )

    def _accept_item(self, event: Event) -> Accept:
        event_id, payload = check_event(event, limit_bytes=self._limit)
        now, hops = self._clock.now(), hops_of_event(event)
        row = EventRow(None, event_id, event.type, event.space, payload, now, hops)
        return Accept(event=row, payload=event.payload, routes=self._routes(event), known=self._known())

    def _routes(self, event: Event) -> tuple[Route, ...]:
        return tuple(route for kind in self._deciding for route in kind.routes(event))

    def _known(self) -> dict[str, str | None]:
        told = [versions for kind in self._deciding if (versions := kind.versions())]
        # Asked with every event; one kind has triggers, and its own table does.
        return told[0] if len(told) == 1 else {name: version for versions in told for name, version in versions.items()}

    def matches(self, wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:
        """Whether an event meets a wait, by the rule of the kind that registered it: the patch to resume with."""
        for kind in self._kinds.values():
            patch = kind.matches(wait, event, payload)
            if patch is not None:
                return patch
        return None

    def _tell(self, event: Event, item: Accept, results: tuple[DispatchResult, ...]) -> None:
        event_id = item.event.event_id
        signals.emit(
            signals.EVENT_ACCEPTED,
            level="debug",
            event_id=event_id,
            type=event.type,
            outcomes=[result.outcome for result in results],
        )
        stored = item.event
        self._bus.tell(
            Event(event.type, event.payload, id=event_id, space=event.space, at=stored.accepted_at, hops=stored.hops)
        )


def _nobody(_results: Sequence[DispatchResult], _event_id: str | None) -> None:
    """Nobody wants to hear of decisions."""


def _nothing() -> None:
    """Nobody does what is left: another node will."""


def check_event(event: Event, *, limit_bytes: int) -> tuple[str, bytes]:
    """Checks an event at the door, whichever door it is; answers its id, made where none is given, and its payload.

    Raises:
        ValidationError: Its type, id, space or payload is not acceptable.
    """
    check_identifier(event.type, "event type")
    event_id = new_id() if event.id is None else check_identifier(event.id, "event id")
    if event.space is not None:
        check_identifier(event.space, "space")
    check_payload(event.payload)
    return event_id, encode_mapping(event.payload, what="payload", limit_bytes=limit_bytes)


def check_payload(payload: Any, what: str = "payload") -> None:
    """Refuses payloads, and patches, that would reach into a run's own state.

    Raises:
        ValidationError: It is not a mapping, or a key begins with two underscores.
    """
    if not isinstance(payload, dict):
        raise ValidationError(f"{what} is a {type(payload).__name__}, not a mapping: pass a dict", path=what)
    for key in payload:
        if isinstance(key, str) and key.startswith("__"):
            raise ValidationError(f"{what} key {key!r} is reserved: names with two underscores are the runtime's own")
