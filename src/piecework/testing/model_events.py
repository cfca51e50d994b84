"""What the model says of events: whom they wake, which triggers they meet, and what is left to others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.store.items import Aborting, Accepted, Dispatched, DispatchResult
from piecework.testing.model_room import Room
from piecework.testing.model_world import ModelEvent, ModelRun, World, meets

if TYPE_CHECKING:
    from piecework.store.items import Accept, Dispatch, RegisterRoutes, Route
    from piecework.store.records import Slot, Wait


_HOPS = 32


class Events(World):
    """`accept`, `dispatch`, `register_routes`, `retire_workflow` and `raise_limit`, one item at a time."""

    __slots__ = ()

    def accept(self, item: Accept, seq: int, now: int) -> Accepted:
        """An event comes in; `seq` is the number that the store gave it, or it has when it came before."""
        event_id = item.event.event_id or ""
        for event in self.events.values():
            if event.event_id == event_id:
                return self._again(event, event_id)
        event = ModelEvent(seq, event_id, item.event.type, item.payload, item.event.space, item.event.accepted_at)
        event.hops = item.event.hops
        self.events[seq] = event
        pending = sorted(
            workflow
            for workflow, (version, types) in self.routes.items()
            if event.type in types and (workflow not in item.known or item.known[workflow] != version)
        )
        results = self._offer_to_waiting(event, now)
        aborting: list[Aborting] = []
        for route in item.routes:
            if route.workflow_id not in pending:
                results.append(self._offer(route, event, now, aborting))
        results += [DispatchResult(outcome="pending", workflow_id=name, trigger_id="") for name in pending]
        for result in results[len(results) - len(pending) :]:
            self._write(seq, result)
        return Accepted(
            event_id=event_id, seq=seq, duplicate=False, dispatched=tuple(results), aborting=tuple(aborting)
        )

    def dispatch(self, item: Dispatch, now: int) -> Dispatched:
        """A node of a pending event's workflow decides about it, if it is of the newest version."""
        key = (item.event_seq, item.workflow_id, "", "")
        newest = self.routes[item.workflow_id][0] if item.workflow_id in self.routes else item.version
        if self.deliveries.get(key, ("",))[0] != "pending" or newest != item.version:
            return Dispatched(decided=False)
        del self.deliveries[key]
        aborting: list[Aborting] = []
        event = self.events[item.event_seq]
        results = [self._offer(route, event, now, aborting) for route in item.routes]
        return Dispatched(decided=True, dispatched=tuple(results), aborting=tuple(aborting))

    def register_routes(self, item: RegisterRoutes, now: int) -> bool:
        """A workflow's events are those of its newest version, as it was registered last."""
        version, since = self.routes.get(item.workflow_id, (None, {}))
        if item.workflow_id in self.routes and rank(version) > rank(item.version):
            return True
        self.routes[item.workflow_id] = (item.version, {name: since.get(name, now) for name in item.event_types})
        return True

    def retire(self, workflow: str) -> int:
        """A workflow that no node has gets no more events; answers how many were dropped."""
        self.routes.pop(workflow, None)
        mine = [key for key, told in self.deliveries.items() if key[1] == workflow and told[0] == "pending"]
        for key in mine:
            self.deliveries[key] = ("dropped", "deregistered")
        return len(mine)

    def raise_limit(self, like: Slot, now: int) -> int:
        """All slots of a workflow go by new numbers; answers how many runs start."""
        mine = sorted(key for key, room in self.rooms.items() if room.like.workflow_id == like.workflow_id)
        return sum(self.govern(key, like, now) for key in mine)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _again(self, event: ModelEvent, event_id: str) -> Accepted:
        results = tuple(
            DispatchResult(
                outcome="duplicate", workflow_id=workflow, trigger_id=trigger, run_id=run_id or None, reason=outcome
            )
            for (seq, workflow, trigger, run_id), (outcome, _) in self.deliveries.items()
            if seq == event.seq
        )
        return Accepted(event_id=event_id, seq=event.seq, duplicate=True, dispatched=results)

    def _write(self, seq: int, result: DispatchResult) -> None:
        key = (seq, result.workflow_id, result.trigger_id, result.run_id or "")
        self.deliveries[key] = (result.outcome, result.reason)

    def _offer_to_waiting(self, event: ModelEvent, now: int) -> list[DispatchResult]:
        found = [
            (wait.mode == "all", wait.registered_at, wait.wait_id, run, wait)
            for run in self.runs.values()
            for wait in run.waits.values()
        ]
        results: dict[str, DispatchResult] = {}
        for _, _, _, run, wait in sorted(found, key=lambda entry: entry[:3]):
            if run.run_id not in results and meets(wait, event):
                outcome, reason = self._meet(run, wait, event, now)
                results[run.run_id] = DispatchResult(
                    outcome=outcome, workflow_id=run.workflow, trigger_id="", run_id=run.run_id, reason=reason
                )
                self._write(event.seq, results[run.run_id])
        return list(results.values())

    def _meet(self, run: ModelRun, wait: Wait, event: ModelEvent, now: int) -> tuple[str, str | None]:
        told = {"id": event.event_id, "type": event.type, "payload": event.payload, "space": event.space}
        base: dict[str, Any] = {} if wait.patch is None else msgspec.json.decode(wait.patch)
        patch = {**base, **event.payload, "__resume_event__": told}
        there = {(kept[0], kept[2]) for kept in run.kept.values()}
        room = len(run.kept) < wait.max_buffer
        run.kept[event.seq] = (wait.wait_id, patch, event.type)
        met = run.take_met() if run.status == "paused" and "patch" not in run.values else None
        if met is not None:
            self.wake(run, "event", met, now)
            return "resumed", None
        if not room and (wait.mode == "any" or (wait.wait_id, event.type) in there):
            del run.kept[event.seq]
            run.lines.append("watch:overflow")
            return "dropped", "buffer_full"
        return "buffered", None

    def _offer(self, route: Route, event: ModelEvent, now: int, aborting: list[Aborting]) -> DispatchResult:
        result = self._decide(route, event, now, aborting)
        self._write(event.seq, result)
        return result

    def _decide(self, route: Route, event: ModelEvent, now: int, aborting: list[Aborting]) -> DispatchResult:
        result = DispatchResult(outcome="rejected", workflow_id=route.workflow_id, trigger_id=route.trigger_id)
        if route.refused is not None:
            return replace(result, reason=route.refused)
        room = self.rooms.setdefault(route.slot.slot_key, Room(route.slot))
        if event.hops >= _HOPS:
            return replace(result, reason="loop")
        self.govern(route.slot.slot_key, route.slot, now)
        outcome, reason = room.admit()
        result = replace(result, outcome=outcome, reason=reason)
        if outcome == "dropped":
            return result
        if outcome == "rejected":
            return replace(result, active_run_id=room.active)
        active = self.runs.get(room.active or "")
        if active is not None and outcome in {"signalled", "replaced"}:
            over = active.ended is not None  # it only keeps its place
            if over or (outcome == "signalled" and active.abort_reason is not None):
                outcome, reason = "queued", "closing"  # it would never read it
                result = replace(result, outcome=outcome, reason=reason)
        if outcome == "signalled":
            patch = event.payload if route.patch is None else msgspec.json.decode(route.patch)
            self.signal(self.runs[room.active or ""], patch)
            return replace(result, run_id=room.active, active_run_id=room.active)
        if outcome != "started" and room.pending is not None:
            self._supersede(room.pending, event, now, aborting)
        if outcome == "replaced":
            result = replace(result, active_run_id=room.active)
            if self.runs[room.active or ""].abort_reason is None:
                aborting.append(self._tell(room.active or "", f"replaced by event {event.event_id}", now))
        self._enter(room, route, event, now, start=outcome == "started")
        self.begin_next(room, now)
        return replace(result, run_id=route.run_id)

    def _supersede(self, run_id: str, event: ModelEvent, now: int, aborting: list[Aborting]) -> None:
        run, reason = self.runs[run_id], f"superseded by event {event.event_id}"
        displaced = DispatchResult(
            outcome="superseded", workflow_id=run.workflow, trigger_id=run.trigger, run_id=run_id, reason=reason
        )
        aborting.append(replace(self._tell(run_id, reason, now, unheard=True), displaced=displaced))
        self.deliveries[run.event or 0, run.workflow, run.trigger, run_id] = ("superseded", reason)

    def _tell(self, run_id: str, reason: str, now: int, *, unheard: bool = False) -> Aborting:
        run = self.runs[run_id]
        self.tell_to_end(run, reason, now, unheard=unheard)
        return Aborting(run_id=run_id, reason=reason, owner=run.owner)

    def _enter(self, room: Room, route: Route, event: ModelEvent, now: int, *, start: bool) -> None:
        self.runs[route.run_id] = ModelRun(
            run_id=route.run_id,
            kind=route.kind,
            workflow=route.workflow_id,
            space=event.space or "default",
            created=now,
            due=now if start else None,
            trigger=route.trigger_id,
            room=room.like.slot_key,
            place=room.enter(route.run_id, start=start),
            version=route.version,
            event=event.seq,
            telling=int(route.telling),
            hops=event.hops,
            lines=["run:started" if start else "run:queued"],
        )


def rank(version: str | None) -> list[int]:
    """The numbers in a version, by which it is newer than another."""
    return [int(part) for part in re.findall(r"\d+", version or "")]
