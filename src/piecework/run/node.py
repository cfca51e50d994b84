"""The node: takes over what a dead one left, claims what is due, hands each run to its kind, sleeps until the next.

A run that is executing is a task here; a paused one is rows. With nothing due the node waits for the earliest due time
or for somebody to wake it: there is no polling.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from piecework.bus.event import within_run
from piecework.clock import SECOND
from piecework.errors import (
    ClosedError,
    StaleEpochError,
    StoppedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    describe,
)
from piecework.run.barred import Barred
from piecework.run.folds import decide_claim, decide_release, decide_resume
from piecework.run.folds_nodes import no_decision
from piecework.run.lifecycle import Status
from piecework.run.logger import Timelines
from piecework.run.parts import encode
from piecework.store.items import Claim, Claimed, Leave, LeftAlone, Release, Renew, TakeOver
from piecework.store.records import NO_SPACES, NodeRow, Run, Signal
from piecework.store.verbs.claim import claim, take_over
from piecework.store.verbs.nodes import leave, renew
from piecework.store.verbs.runs import due, release
from piecework.telemetry import logs, signals
from piecework.telemetry.redaction import PLAIN, Redaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from piecework.clock import Clock
    from piecework.run.kind import Kind
    from piecework.run.news import News
    from piecework.store.contract import Decide, Store, Verb
    from piecework.store.items import Aborting, Definition

_IN_FLIGHT_LIMIT = 500
_AT_ONCE = 100
_LONGEST_SLEEP_SECONDS = 60.0
_TROUBLE_PAUSE_SECONDS = 1.0
_GIVEN_BACK_SECONDS = 5.0
_NEVER = 2**63 - 1


@dataclass(slots=True, eq=False)
class _Flying:
    """A run that executes here."""

    run: Run
    task: asyncio.Task[None]


class Node:
    """Runs runs.

    Args:
        node_id: Names this owner in the store.
        store: Open.
        kinds: By their names.
        clock: Tells the time.
        news: Where statuses are announced.
        places: How many runs of the kind `piece` one space may have in flight: more would only wait here.
        lease_seconds: How long what this node has is its own, where others can be nodes too and it says nothing more.
        forsaken_seconds: How long after its end a run of a workflow that nobody has is cleaned without its hooks.
        version: Of Piecework, for people who look.
        redaction: What no line of a timeline shows.
        strict_timeline: Whether a run fails when its log lines cannot be written.

    Attributes:
        on_signal: Called with the id of a run that executes here and was sent a signal.
        on_ended: Called with the id of a run that a commit here has ended while nobody had it.
        tell_spaces: What this node says of its spaces' workers, as JSON; called in a thread of its own.
        timelines: What is written to its runs' timelines beside their decisions.
        ready: False while the store is full or away: what runs waits, nothing new is taken.
    """

    def __init__(
        self,
        node_id: str,
        store: Store,
        kinds: Mapping[str, Kind],
        clock: Clock,
        news: News,
        *,
        places: int = 4,
        lease_seconds: float = 15,
        forsaken_seconds: float = 30,
        version: str = "",
        redaction: Redaction = PLAIN,
        strict_timeline: bool = False,
    ) -> None:
        self.timelines = Timelines(self.commit, redaction=redaction, strict=strict_timeline)
        self.node_id = node_id
        self.ready = True
        self.on_signal: Callable[[str], None] = _nobody
        self.on_ended: Callable[[str], None] = _nobody
        self.tell_spaces: Callable[[], bytes] = lambda: NO_SPACES
        self._lease_seconds = lease_seconds
        self._forsaken_seconds = forsaken_seconds
        self._version = version
        self._started_at = 0
        self._workflows = b"{}"
        self._ask_for_aborts = False
        self.news = news
        self._store = store
        self._kinds = kinds
        self._clock = clock
        self._places = places
        self._wanted = asyncio.Event()
        self._flying: dict[str, _Flying] = {}
        self._in_space: Counter[str] = Counter()
        self._aborting: dict[str, str] = {}
        self._claiming = asyncio.Lock()
        self._chores: set[asyncio.Task[Any]] = set()
        self._strays = False
        self._barred = Barred(store, clock, news)
        self._served = ""
        self._fruitless = 0
        self._looked_at = 0.0
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def in_flight(self) -> int:
        """How many runs are executing here."""
        return len(self._flying)

    @property
    def started(self) -> bool:
        """Whether it claims."""
        return self._loop_task is not None

    @property
    def stopping(self) -> bool:
        """Whether it claims no more, and is about to leave."""
        return self._stopping

    async def catch_up(self) -> None:
        """Says what is registered now and takes over what was left of it; goes on when the caller is cancelled."""
        chore = asyncio.create_task(self._catch_up())
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        await asyncio.shield(chore)

    async def _catch_up(self) -> None:
        await self.register()
        await self.take_over()
        await self._barred.rouse(self._definitions())
        self.wake()

    async def register(self, *coming: str) -> None:
        """Says in the store that this node lives, what it has registered, and what it is about to."""
        offers: dict[str, Definition | None] = dict.fromkeys(coming)
        for kind in self._kinds.values():
            known = kind.definitions()
            offers |= {name: known.get(name) for name in kind.offers()}
        self._workflows = encode(offers)
        await self._store.run(renew, self.renewal(), no_decision, self._clock.now())

    def beat(self) -> tuple[Verb, Renew, Decide]:
        """What a heartbeat commits; called in a thread of its own."""
        return renew, self.renewal(), no_decision

    def renewal(self) -> Renew:
        """What this node says of itself; where others can be nodes too, its word holds for the length of its lease."""
        now = self._clock.now()
        shared = self._store.shared
        row = NodeRow(
            node_id=self.node_id,
            pid=os.getpid(),
            host=socket.gethostname(),
            version=self._version,
            workflows=self._workflows,
            started_at=self._started_at or now,
            renewed_at=now,
            expires_at=now + round(self._lease_seconds * SECOND) if shared else None,
            spaces=self.tell_spaces() if shared else NO_SPACES,
        )
        self._started_at = row.started_at
        return Renew(node=row, alone=not shared)

    async def start(self) -> int:
        """Takes over what dead owners left and begins to claim. Answers how many runs were taken over."""
        await self.register()
        taken = await self.take_over()
        await self._barred.rouse(self._definitions())
        self._loop_task = asyncio.create_task(self._run(), name="piecework-node")
        return taken

    async def take_over(self) -> int:
        """Takes over what dead owners left of the work that is known here; answers how many runs."""
        taken = 0
        while True:
            runs = await self._claim(_AT_ONCE, orphans=True)
            taken += len(runs)
            if len(runs) < _AT_ONCE:
                self._looked_at = self._clock.monotonic()
                return taken

    def now(self) -> int:
        """The wall clock: microseconds since the epoch."""
        return self._clock.now()

    def look_after(self, work: Coroutine[Any, Any, None]) -> None:
        """Has something done beside the runs, which handles its own failures; `stop` waits for it."""
        chore = asyncio.create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    def wake(self) -> None:
        """Makes the node look for due work now."""
        self._wanted.set()

    def hear(self, topics: frozenset[str]) -> None:
        """What other processes have told: wakes whoever it concerns. All look by themselves too."""
        everything = "*" in topics
        runs = [topic[4:] for topic in topics if topic.startswith("run:")]
        if everything or "due" in topics:
            self.wake()
        if everything or runs:
            self.news.look(None if everything or "*" in runs else runs)
        mine = f"signal:{self.node_id}:"
        for run_id in self._flying if everything else [t[len(mine) :] for t in topics if t.startswith(mine)]:
            self.on_signal(run_id)
        if everything or any(topic.startswith(f"abort:{self.node_id}:") for topic in topics):
            self._ask_for_aborts = True
            self.wake()

    def told_to_end(self, told: Aborting) -> None:
        """Does what follows when a commit has told a run to end."""
        if told.owner is None:
            self.on_ended(told.run_id)
            self.news.announce(told.run_id, Status.ABORTED)
        elif told.owner == self.node_id:
            self.abort(told.run_id, told.reason)

    def abort(self, run_id: str, reason: str) -> None:
        """Tells a run that is executing here, or was claimed this moment, to end."""
        self._aborting[run_id] = reason
        for kind in self._kinds.values():
            kind.abort(run_id, reason)

    async def signals_of(self, run_id: str) -> tuple[tuple[int, bytes], ...]:
        """The signals of a run that its state does not hold yet, each with its number, in their order."""
        rows: list[Signal] = await self._store.read("signals_of_runs", {"run_ids": [run_id]}, Signal)
        return tuple((row.number, row.patch) for row in rows)

    def abort_reason(self, run: Run) -> str | None:
        """Why a run has been told to end, if it has: before its claim, or between the claim and now."""
        return run.abort_reason or self._aborting.get(run.run_id)

    async def interrupt(self, kind: str, name: str) -> None:
        """Interrupts the runs of one workflow, job or integration that execute here; they stay in the store."""
        current = asyncio.current_task()
        mine = [
            flying.task
            for flying in self._flying.values()
            if (flying.run.kind, flying.run.workflow_id) == (kind, name) and flying.task is not current
        ]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def let_end(self, kind: str, name: str, *, seconds: float | None = None, but: str = "") -> bool:
        """Waits for the runs of one workflow that execute here; answers whether all of them have ended or paused.

        Args:
            kind: Of the work.
            name: The workflow.
            seconds: How long; None means as long as it takes.
            but: A run that is not waited for.
        """
        current = asyncio.current_task()
        mine = [
            flying.task
            for flying in self._flying.values()
            if (flying.run.kind, flying.run.workflow_id) == (kind, name)
            and flying.run.run_id != but
            and flying.task is not current
        ]
        if not mine:
            return True
        _, late = await asyncio.wait(mine, timeout=seconds)
        return not late

    async def until_given_back(self, run_ids: Iterable[str]) -> None:
        """Waits until none of these runs executes here: they are about to be given back."""
        tasks = {flying.task for run_id in run_ids if (flying := self._flying.get(run_id)) is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=_GIVEN_BACK_SECONDS)

    def executes(self, run_id: str) -> bool:
        """Whether a run executes here, or is just being given back; who waits for news of it looks when that ends."""
        return run_id in self._flying

    async def look(self) -> None:
        """Claims what is due now, if this node claims at all."""
        if self.started and not self._stopping:
            await self._claim(_AT_ONCE)

    async def stop(self, grace_seconds: float) -> None:
        """Claims no more, lets runs go on for a while, then interrupts them: the next node continues them.

        Args:
            grace_seconds: How long runs may still go on.
        """
        self._stopping = True
        self.wake()
        if self._loop_task is not None:
            await self._loop_task
        while self._chores:
            await asyncio.wait(self._chores)
        tasks = [flying.task for flying in self._flying.values()]
        if tasks:
            signals.emit(signals.NODE_STOPPING, runs=len(tasks), grace_seconds=grace_seconds)
            _, late = await asyncio.wait(tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            if self._strays:
                await self._gather_strays()
        except (StoreError, ClosedError) as error:  # the next node takes them over
            signals.emit(signals.NODE_TROUBLE, level="error", what="giving runs back", error=error.message)
        while self._chores:
            await asyncio.wait(self._chores)
        self.news.close()

    async def leave(self) -> None:
        """Says that this node is no more; after `stop`, and when nothing says any longer that it lives."""
        if not self._started_at:  # it has never said that it is one
            return
        try:
            await self._store.run(leave, Leave(node_id=self.node_id), no_decision, self._clock.now())
        except (StoreError, ClosedError) as error:  # its lease ends by itself
            signals.emit(signals.NODE_TROUBLE, level="error", what="leaving", error=error.message)

    async def commit(self, verb: Verb, item: Any, decide: Decide) -> Any:
        """Submits a run's write; waits and tries again while the disk is full.

        Raises:
            StaleEpochError: The run is somebody else's now.
            StoreError: It could not be written for another reason.
        """
        pause = 0.1
        while True:
            try:
                outcome = await self._store.run(verb, item, decide, self._clock.now())
            except (StoreFullError, StoreUnavailableError) as error:
                self.ready = False
                what = "store is full" if isinstance(error, StoreFullError) else "store is away"
                signals.emit(signals.NODE_TROUBLE, level="error", what=what, error=error.message)
                await self._clock.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                self.ready = True
                return outcome

    async def _run(self) -> None:
        while not self._stopping:
            self._wanted.clear()
            try:
                if self._strays:
                    await self._gather_strays()
                await self._look_after_others()
                moment = await self._work_and_look_ahead()
                self.ready = True
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - shown, and tried again: a node that claims no more is no node
                self._strays = True  # a claim whose reply was lost is ours, and nobody executes it
                self.ready = not isinstance(error, StoreFullError | StoreUnavailableError)
                signals.emit(signals.NODE_TROUBLE, level="error", what="claiming", error=describe(error))
                moment = self._clock.now() + round(_TROUBLE_PAUSE_SECONDS * SECOND)
            await self._sleep_until(moment)

    async def _work_and_look_ahead(self) -> int | None:
        """Claims all that is due and answers when there is more to do; None means: when somebody says so."""
        asked_at, claimed = self._clock.now(), []
        while not self._stopping:
            asked_at = self._clock.now()
            room = min(_AT_ONCE, _IN_FLIGHT_LIMIT - len(self._flying))
            claimed = await self._claim(room) if room > 0 else []
            if len(claimed) < room or room <= 0:
                break
        rows = await self._store.read("next_due", {})
        moment: int | None = rows[0][0]
        if moment is not None and moment <= self._clock.now():
            if len(self._flying) >= _IN_FLIGHT_LIMIT:
                return None
            woken = await self._store.run(due, None, decide_resume, self._clock.now())
            if woken or claimed or moment > asked_at:
                self._fruitless = 0
                self._wanted.set()
            else:  # something is due that cannot be taken here: never spin on it
                self._fruitless += 1
                pause = min(_TROUBLE_PAUSE_SECONDS * 2 ** min(self._fruitless - 1, 10), _LONGEST_SLEEP_SECONDS)
                now = self._clock.now()
                (later,) = await self._store.read("next_due_after", {"now": now})  # which is not to be late for it
                moment = min(now + round(pause * SECOND), later[0] or _NEVER)
        return moment

    async def _look_after_others(self) -> None:
        """Where there are other nodes: takes over from those whose lease has ended, asks for aborts told there."""
        if not self._store.shared:
            return
        if self._clock.monotonic() - self._looked_at >= self._lease_seconds / 3:
            self._ask_for_aborts = True
            await self.take_over()
        if self._ask_for_aborts:
            self._ask_for_aborts = False
            rows: list[Run] = await self._store.read("aborting_runs", {"owner": self.node_id}, Run)
            for run in rows:
                if run.run_id not in self._aborting:  # told once: a second cancel would meet what ends it in order
                    self.abort(run.run_id, run.abort_reason or "")

    async def _claim(self, limit: int, *, orphans: bool = False) -> list[Claimed]:
        """Claims and starts runs; a caller that is cancelled leaves no claimed run without its task."""
        chore = asyncio.create_task(self._claim_now(limit, orphans=orphans))
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        return await asyncio.shield(chore)

    async def _claim_now(self, limit: int, *, orphans: bool) -> list[Claimed]:
        async with self._claiming:
            claimed: list[Claimed] = []
            more = True
            while more and len(claimed) < limit:
                answer = await self._ask(limit - len(claimed), orphans=orphans)
                claimed += (entry for entry in answer if isinstance(entry, Claimed))
                more = await self._barred.learn([entry.run for entry in answer if isinstance(entry, LeftAlone)])
            return claimed

    async def _ask(self, limit: int, *, orphans: bool) -> list[Claimed | LeftAlone]:
        """Asks the store once, and starts what it gives."""
        known, definitions = self._known(), self._definitions()
        forsaken = self._clock.now() - round(self._forsaken_seconds * SECOND)
        item: Claim | TakeOver
        if orphans:
            item = TakeOver(owner=self.node_id, limit=limit, known=known, definitions=definitions, forsaken=forsaken)
        else:
            item = Claim(
                owner=self.node_id,
                limit=limit,
                known=known,
                forsaken=forsaken,
                definitions=definitions,
                barred=self._barred.shapes(definitions),
                after=self._served,
                places=self._places,
                taken=dict(self._in_space),
            )
        verb = take_over if orphans else claim
        answer: list[Claimed | LeftAlone] = await self._store.run(verb, item, decide_claim, self._clock.now())
        for entry in answer:
            if isinstance(entry, Claimed):
                self._start(entry)
        if answer and not orphans:
            after = self._served
            self._served = max((entry.run.space for entry in answer), key=lambda space: (space <= after, space))
        return answer

    def _start(self, entry: Claimed) -> None:
        run = entry.run
        # A run that paused and was woken may still be closing what its last segment used: first that, then the next.
        before = self._flying.get(run.run_id)
        task = asyncio.create_task(
            self._execute(entry, None if before is None else before.task), name=f"piecework-run-{run.run_id}"
        )
        flying = self._flying[run.run_id] = _Flying(run, task)
        if run.kind == "piece":
            self._in_space[run.space] += 1
        task.add_done_callback(partial(self._done, flying))

    def _known(self) -> tuple[str, ...]:
        return tuple(f"{kind.name}:{name}" for kind in self._kinds.values() for name in kind.known())

    def _definitions(self) -> dict[str, Definition]:
        told = [(kind.name, definitions) for kind in self._kinds.values() if (definitions := kind.definitions())]
        return {f"{kind}:{name}": known for kind, definitions in told for name, known in definitions.items()}

    def _done(self, flying: _Flying, task: asyncio.Task[None]) -> None:
        run = flying.run
        full = len(self._flying) >= _IN_FLIGHT_LIMIT
        if self._flying.get(run.run_id) is flying:
            del self._flying[run.run_id]
            self._aborting.pop(run.run_id, None)
            self.news.look([run.run_id])
        if run.kind == "piece":
            full = full or self._in_space[run.space] >= self._places
            self._in_space[run.space] -= 1
            if not self._in_space[run.space]:
                del self._in_space[run.space]
        # A task that was cancelled before its first step has given nothing back.
        self._strays = self._strays or task.cancelled()
        if full or self._strays:
            self.wake()

    async def _execute(self, claimed: Claimed, before: asyncio.Task[None] | None) -> None:
        run = claimed.run
        with logs.bind(run_id=run.run_id, space=run.space, workflow_id=run.workflow_id):
            try:
                if before is not None:
                    await asyncio.wait({before})
                signals.emit(signals.RUN_STARTED, level="debug", kind=run.kind, attempt=run.attempt)
                with within_run(run.hops):
                    await self._kinds[run.kind].execute(claimed)
            except asyncio.CancelledError:
                await self._give_back(claimed)
                raise
            except StaleEpochError as error:
                signals.emit(signals.RUN_LOST, level="warning", error=error.message)
            except StoppedError as error:
                signals.emit(signals.RUN_INTERRUPTED, level="info", error=error.message)
                again_seconds: float = error.data.get("again_seconds", _TROUBLE_PAUSE_SECONDS)
                await self._give_back(claimed, pause_seconds=again_seconds)
            except Exception as error:  # noqa: BLE001 - a fault of ours: shown, and the run is tried again
                signals.emit(signals.NODE_TROUBLE, level="error", what=f"executing {run.kind}", error=describe(error))
                await self._give_back(claimed, pause_seconds=_TROUBLE_PAUSE_SECONDS, counted=True)

    async def _give_back(self, claimed: Claimed, *, pause_seconds: float = 0, counted: bool = False) -> None:
        """Leaves an unfinished run to the next claim; an interruption is not an attempt, a fault of ours is."""
        due_at = self._clock.now() + round(pause_seconds * SECOND)
        item = Release(run_id=claimed.run.run_id, epoch=claimed.run.epoch, due_at=due_at, counted=counted)
        try:
            await self._store.run(release, item, decide_release, self._clock.now())
            self.wake()
        except StaleEpochError as error:
            signals.emit(signals.RUN_LOST, level="warning", error=error.message)
        except StoreError as error:
            self._strays = True
            signals.emit(signals.NODE_TROUBLE, level="error", what="giving a run back", error=error.message)

    async def _gather_strays(self) -> None:
        """Gives back the runs that are this node's by the store's account and that nobody executes here."""
        async with self._claiming:
            self._strays = False
            try:
                rows = await self._store.read("owned_runs", {"owner": self.node_id}, Run)
                for run in rows:
                    if run.run_id not in self._flying:
                        item = Release(run_id=run.run_id, epoch=run.epoch, due_at=self._clock.now())
                        await self._store.run(release, item, decide_release, self._clock.now())
            except StaleEpochError:
                pass  # its task ended between our look and our write
            except StoreError:
                self._strays = True
                raise

    async def _sleep_until(self, moment: int | None) -> None:
        if self._stopping or self._wanted.is_set():
            return
        delay = self._lease_seconds / 3 if self._store.shared else _LONGEST_SLEEP_SECONDS
        if moment is not None:
            delay = min(delay, max(0.0, (moment - self._clock.now()) / SECOND))
        wanted = asyncio.ensure_future(self._wanted.wait())
        asleep = asyncio.ensure_future(self._clock.sleep(delay))
        try:
            await asyncio.wait({wanted, asleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (wanted, asleep):
                task.cancel()
            await asyncio.gather(wanted, asleep, return_exceptions=True)


def _nobody(_run_id: str) -> None:
    """No kind of work here wants to hear of it."""
