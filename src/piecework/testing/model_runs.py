"""What the model says of the life of a run, and of what is forgotten when it is old."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from piecework.container.state import merge
from piecework.errors import InvalidStateError, NotFoundError, StaleEpochError
from piecework.store import items
from piecework.testing.model_events import Events, rank
from piecework.testing.model_world import ENDED, ModelRun, Refused, data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Model(Events):
    """The whole model: every verb of a run, one item at a time."""

    __slots__ = ()

    # -- who has a run -----------------------------------------------------------------------------------------------

    def due_for(self, known: Sequence[str], now: int) -> list[ModelRun]:
        """The runs that may be claimed."""
        return [
            run
            for run in self.runs.values()
            if run.due is not None and run.due <= now and run.owner is None and f"{run.kind}:{run.workflow}" in known
        ]

    def orphans(self, owner: str, known: Sequence[str], now: int) -> list[ModelRun]:
        """The runs that may be taken over, the oldest first."""
        alive = {node for node, expires in self.nodes.items() if expires > now} | {owner, None}
        found = [run for run in self.runs.values() if run.owner not in alive and f"{run.kind}:{run.workflow}" in known]
        return sorted(found, key=lambda run: (run.created, run.run_id))

    def take(self, run: ModelRun, owner: str, now: int) -> None:
        """A run gets an owner; whoever had it before can write no more."""
        run.owner, run.epoch, run.due = owner, run.epoch + 1, None
        if run.status in ENDED:
            return
        run.status, run.attempt = "running", run.attempt + 1
        run.started = now if run.started is None else run.started
        run.lines.append("run:claimed")

    def carried(self, run: ModelRun, definitions: Mapping[str, items.Definition]) -> bool:
        """Whether a run can go on with these definitions; where there is none, or it only ends, it can."""
        mine = definitions.get(f"{run.kind}:{run.workflow}")
        if mine is None or run.status in ENDED or run.abort_reason is not None:
            return True
        return (
            run.trigger in mine.stages
            and run.stage in (None, *mine.stages[run.trigger])
            and rank(mine.version) >= rank(run.version)
        )

    def under(self, run: ModelRun, definitions: Mapping[str, items.Definition]) -> None:
        """A run that somebody took is of the version of that one's definition."""
        mine = definitions.get(f"{run.kind}:{run.workflow}")
        if mine is not None and run.status not in ENDED:
            run.version = mine.version

    def leave(self, run: ModelRun, now: int) -> None:
        """A run is left to others; whoever had it is dead, and has it no more."""
        if run.owner is not None:
            run.owner, run.due, run.epoch = None, now, run.epoch + 1
            run.lines.append("run:released")

    def release(self, item: items.Release, _now: int) -> bool:
        """A run goes back; an interrupted attempt does not count."""
        run = self._of_epoch(item.run_id, item.epoch)
        if run.owner is None:
            return False
        run.owner, run.due = None, item.due_at
        if run.status not in ENDED:
            run.attempt -= 0 if item.counted else min(1, run.attempt)
            run.lines.append("run:released")
        return True

    # -- stages ------------------------------------------------------------------------------------------------------

    def commit_stage(self, item: items.CommitStage, now: int) -> items.Progress:
        """A stage ends. The end of the last one may be told twice."""
        run = self._of_epoch(item.run_id, item.epoch)
        if run.visit == item.visit + 1:
            return self._told(run, item)
        self._check_held(run)
        if run.visit != item.visit or run.status != "running":
            raise Refused(InvalidStateError)
        if run.abort_reason is not None:
            return items.Progress(outcome="aborted", reason=run.abort_reason, decision=len(run.lines))
        run.visit, run.attempt = run.visit + 1, 0
        run.signals = {number: patch for number, patch in run.signals.items() if number > item.signalled}
        run.values.pop("patch", None)
        run.values["state"] = item.state
        run.lines += [entry.type for entry in item.entries]
        match item.then:
            case items.Continue(stage=stage):
                run.stage = stage
            case items.Defer(due_at=due_at):
                run.status, run.owner, run.due = "queued", None, due_at
            case items.Park():
                self._park(run, item.then, now)
        return self._told(run, item)

    def _told(self, run: ModelRun, item: items.CommitStage) -> items.Progress:
        """What the owner hears: where the run stands now, and which signals it has still to take in."""
        decision = len(run.lines)
        if run.abort_reason is not None:
            return items.Progress(outcome="aborted", reason=run.abort_reason, decision=decision)
        signals = tuple((number, data(patch)) for number, patch in sorted(run.signals.items()))
        if isinstance(item.then, items.Defer):
            return items.Progress(outcome="deferred", decision=decision)
        if isinstance(item.then, items.Continue):
            return items.Progress(outcome="continued", decision=decision, signals=signals)
        if run.owner is None:
            return items.Progress(outcome="parked", decision=decision)
        patch = data(run.values["patch"])
        return items.Progress(outcome="resumed", decision=decision, patch=patch, signals=signals)

    def _park(self, run: ModelRun, park: items.Park, now: int) -> None:
        same = {wait.identity(): wait.clauses for wait in park.waits}
        run.forget({key for key, wait in run.waits.items() if wait.stage and same.get(key) != wait.clauses})
        for wait in park.waits:
            run.waits[wait.wait_id, wait.event_type] = replace(wait, registered_at=now)
        run.stage = park.stage
        patch = run.take_met()
        if patch is not None:
            run.values["patch"] = {**patch, "__resume_reason__": "event"}
            run.resumes += 1
            run.lines.append("run:resumed")
            return
        limits = [
            limit for limit in (park.timeout, *(wait.timeout for wait in run.waits.values())) if limit is not None
        ]
        run.lines.append("run:paused")
        self.let_go(run, now + min(limits) if limits else None, now)

    def register_waits(self, item: items.Register, now: int) -> int:
        """A running run waits for more, or for less; answers for how many event types."""
        run = self._of_epoch(item.run_id, item.epoch)
        self._check_held(run)
        if run.status in ENDED:
            raise Refused(InvalidStateError)
        run.forget({key for key in run.waits if item.cancel is None or key[0] in item.cancel})
        for wait in item.waits:
            run.waits[wait.wait_id, wait.event_type] = replace(wait, registered_at=now)
        return len(run.waits)

    def append(self, item: items.Append, now: int) -> int:
        """Log lines of a run, of which the model keeps none, and how far it is."""
        run = self._of_epoch(item.run_id, item.epoch)
        if item.progress is not None:
            run.progress = msgspec.json.encode([*item.progress, now]).decode()
        return len(item.entries)

    # -- the end -----------------------------------------------------------------------------------------------------

    def settle(self, item: items.Settle, now: int) -> str:
        """A run ends, as aborted where that was promised."""
        run = self._of_epoch(item.run_id, item.epoch)
        if run.status in ENDED:
            return run.status
        self._check_held(run)
        run.status = item.status if run.abort_reason is None else "aborted"
        run.ended = now
        run.lines += [entry.type for entry in item.entries]
        run.lines.append(f"run:{run.status}")
        missed = [patch for number, patch in sorted(run.signals.items()) if number > item.signalled]
        run.forget_all()
        if item.result is not None:
            run.values["result"] = item.result
        if item.state is not None:
            run.values["state"] = data(reduce(merge, missed, msgspec.json.decode(item.state)))
        run.telling = int(item.telling)
        if run.room is not None and not item.telling:
            self.rooms[run.room].end(run.run_id)
        return run.status

    def hear(self, item: items.EndTold, _now: int) -> bool:
        """Whoever wanted to hear of a run's end has: it gives its place up."""
        run = self._of_epoch(item.run_id, item.epoch)
        if run.status not in ENDED:
            raise Refused(InvalidStateError)
        if not run.telling:
            return False
        self._check_held(run)
        if run.telling == 1 and run.room is not None:
            self.rooms[run.room].end(run.run_id)
        run.telling = 0
        return True

    def clean(self, item: items.Cleaned, now: int) -> int:
        """An ended run is clean: its place is free; answers how many start."""
        run = self._of_epoch(item.run_id, item.epoch)
        if run.cleaned:
            return 0
        if run.status not in ENDED:
            raise Refused(InvalidStateError)
        self._check_held(run)
        run.cleaned, run.owner, run.telling = True, None, 0
        if run.room is None:
            return 0
        self.rooms[run.room].leave(run.run_id)
        return self.begin_next(self.rooms[run.room], now)

    # -- calls from outside ------------------------------------------------------------------------------------------

    def resume(self, item: items.Resume, now: int) -> ModelRun:
        """Somebody wakes a paused run."""
        run = self._known(item.run_id)
        if item.token is not None and run.told == item.token:
            return run
        if run.status != "paused":
            raise Refused(InvalidStateError)
        if item.reason == "again":
            if "patch" not in run.values or run.deadline is not None:
                raise Refused(InvalidStateError)
            self.wake(run, "again", None, now)
            return run
        if item.stage is not None:
            run.stage, run.version = item.stage, None
        run.told = item.token or run.told
        # One whose resume failed has not taken in yet what woke it: that stays, beneath what comes now.
        self.wake(run, item.reason, {**run.values.get("patch", {}), **item.patch}, now)
        return run

    def expire(self, now: int) -> int:
        """Pauses end whose time is over; answers how many."""
        late = [run for run in self.runs.values() if run.deadline is not None and run.deadline <= now]
        for run in sorted(late, key=lambda run: run.deadline or 0):
            again = "patch" in run.values
            self.wake(run, "timeout", None if again else {}, now)
        return len(late)

    def unresume(self, item: items.Unresume, now: int) -> int:
        """A woken run could not go on: it pauses again, and keeps its patch; answers how often it was tried."""
        run = self._of_epoch(item.run_id, item.epoch)
        if run.owner is None and run.status == "paused" and run.deadline == item.due_at:
            return run.attempt
        if not item.unclaimed or run.due is None:
            self._check_held(run)
        # There is no pause to go back to, or it has been told to end.
        if run.status != "running" or "patch" not in run.values or run.abort_reason is not None:
            raise Refused(InvalidStateError)
        run.lines.append("run:unresumed")
        run.attempt = run.attempt if item.unclaimed else max(1, run.attempt)
        run.due = None
        if not item.unclaimed:
            run.attempt = max(1, run.attempt)
        self.let_go(run, item.due_at, now)
        return run.attempt

    def send(self, item: items.SendSignal, _now: int) -> items.Signalled:
        """Somebody sends a patch to an unended run."""
        run = self._known(item.run_id)
        if item.token is None or run.told != item.token:
            if run.status in ENDED:
                raise Refused(InvalidStateError)
            run.told = item.token or run.told
            self.signal(run, msgspec.json.decode(item.patch))
        delivered = "live" if run.status == "running" else "stored"
        return items.Signalled(delivered=delivered, number=len(run.lines), owner=run.owner)

    def abort(self, item: items.Abort, now: int) -> items.Aborted:
        """Somebody ends a run."""
        run = self._known(item.run_id)
        if item.token is None or run.told != item.token or run.abort_reason is None:
            if run.status in ENDED or run.abort_reason is not None:
                return items.Aborted(aborted=False)
            if item.dropping and (run.status != "queued" or run.owner is not None):
                return items.Aborted(aborted=False)
            run.told = item.token or run.told
            self.tell_to_end(run, item.reason, now, unheard=item.dropping)
            if item.dropping and run.event is not None:
                self.deliveries[run.event, run.workflow, run.trigger, run.run_id] = ("dropped", item.reason)
            if run.room is not None:
                self.begin_next(self.rooms[run.room], now)
        return items.Aborted(aborted=True, ended=run.ended is not None, owner=run.owner)

    def enqueue(self, item: items.Enqueue, now: int) -> items.Enqueued:
        """A run that no event asked for; of an occurrence there is only the first, or the first that has not ended."""
        wanted = item.run
        if item.occurrence is not None:
            first, at = self.occurrences.get(item.occurrence, (wanted.run_id, now))
            if item.again and (first not in self.runs or self.runs[first].ended is not None):
                first, at = wanted.run_id, now
            self.occurrences[item.occurrence] = (first, at)
            if first != wanted.run_id:
                return items.Enqueued(run_id=first, duplicate=True)
        if wanted.run_id in self.runs:
            return items.Enqueued(run_id=wanted.run_id, duplicate=True)
        self.runs[wanted.run_id] = ModelRun(
            run_id=wanted.run_id,
            kind=wanted.kind,
            workflow=wanted.workflow_id,
            space=wanted.space,
            created=now,
            due=now if wanted.due_at is None else wanted.due_at,
            lines=["run:queued"],
            values={"args": item.args},
            hops=wanted.hops,
        )
        return items.Enqueued(run_id=wanted.run_id, duplicate=False)

    # -- what is old -------------------------------------------------------------------------------------------------

    def forget_runs(self, before: int) -> int:
        """Forgets runs that ended long ago and are clean."""
        old = [
            run.run_id
            for run in self.runs.values()
            if run.cleaned and run.created < before and run.ended is not None and run.ended < before
        ]
        for run_id in old:
            del self.runs[run_id]
        return len(old)

    def forget_ids(self, before: int) -> int:
        """Forgets the ids of old events that nobody has to be told of, and old occurrences: they may come again."""
        needed = self._needed()
        events = [
            event
            for event in self.events.values()
            if event.event_id is not None and event.at < before and event.seq not in needed
        ]
        for event in events:
            event.event_id = None
        alive = {run.run_id for run in self.runs.values() if run.ended is None}
        keys = [key for key, (run_id, at) in self.occurrences.items() if at < before and run_id not in alive]
        for key in keys:
            del self.occurrences[key]
        return max(len(events), len(keys))

    def forget_events(self, before: int) -> int:
        """Forgets old events without an id that no unended run and no workflow needs."""
        needed = self._needed()
        old = [e.seq for e in self.events.values() if e.at < before and e.event_id is None and e.seq not in needed]
        for seq in old:
            del self.events[seq]
        self.deliveries = {key: told for key, told in self.deliveries.items() if key[0] not in old}
        return len(old)

    def _needed(self) -> set[int | None]:
        """The events of unended runs, and those that wait for their workflow."""
        needed = {run.event for run in self.runs.values() if run.status not in ENDED}
        return needed | {key[0] for key, told in self.deliveries.items() if told[0] == "pending"}

    def forget_slots(self) -> int:
        """Forgets slots that nobody is in."""
        empty = [key for key, room in self.rooms.items() if room.empty()]
        for key in empty:
            del self.rooms[key]
        return len(empty)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _known(self, run_id: str) -> ModelRun:
        if run_id not in self.runs:
            raise Refused(NotFoundError)
        return self.runs[run_id]

    def _of_epoch(self, run_id: str, epoch: int) -> ModelRun:
        run = self._known(run_id)
        if run.epoch != epoch:
            raise Refused(StaleEpochError)
        return run

    def _check_held(self, run: ModelRun) -> None:
        if run.owner is None:
            raise Refused(StaleEpochError)
