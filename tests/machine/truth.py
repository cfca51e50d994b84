"""What has to be true of a runtime at every moment, and what of a whole history when it is over."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.errors import InvalidStateError
from piecework.run.lifecycle import ENDED, Status
from piecework.store.records import Delivery, Entry, EventRow, Run, RunValue
from piecework.testing.invariants import check_invariants

if TYPE_CHECKING:
    from collections.abc import Iterable

    from piecework.run.intake import Receipt
    from piecework.store.contract import Store

    from .history import History

_MAKES_A_RUN = frozenset({"started", "queued", "replaced"})


class Truth:
    """Remembers what clients were told, and looks whether the store keeps it.

    Args:
        history: Whose.

    Attributes:
        runs: All runs, as of the last look.
        receipts: Of the events that were accepted.
        gone: The workflows that were ever deregistered.
        number: How many marks have been made.
        fresh: Whether nothing has happened since the last look.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._ends: dict[str, tuple[str, Any]] = {}
        self.receipts: list[Receipt] = []
        self._marks: list[tuple[str, str]] = []
        self._aborted: set[str] = set()
        self._invoked: set[str] = set()
        self.runs: dict[str, Run] = {}
        self.waiting: dict[str, set[str]] = {}
        self.gone: set[str] = set()
        self.number = 0
        self.fresh = False

    def mark(self) -> str:
        """A name that no other patch has."""
        self.number += 1
        return f"m{self.number}"

    @property
    def _engine(self) -> Store:
        assert self._history.engine is not None
        return self._history.engine

    # -- what clients were told ----------------------------------------------------------------------------------

    def nothing(self, result: Any) -> None:
        """It has only to have worked."""
        _raised(result)

    def accepted(self, mark: str, awaiting: set[str], receipt: Any, *, calm: bool) -> None:
        """An event was accepted; those that waited for it have it, where nothing else happened meanwhile (`calm`)."""
        _raised(receipt)
        self.receipts.append(receipt)
        got = {result.run_id for result in receipt.dispatched if result.outcome in {"resumed", "buffered"}}
        full = {result.run_id for result in receipt.dispatched if result.reason == "buffer_full"}
        assert not calm or awaiting <= got | full, f"{awaiting - got} waited for {receipt}"
        for result in receipt.dispatched:
            if result.outcome == "resumed":
                self._marks.append((result.run_id, mark))
            if result.outcome == "signalled":
                self.signalled(result.run_id, mark, None, calm=calm)

    def accepted_again(self, first: Receipt, receipt: Any) -> None:
        """An event was accepted for a second time: nothing new comes of it, and the client is told what did."""
        _raised(receipt)
        now = {(result.workflow_id, result.trigger_id, result.run_id) for result in receipt.dispatched}
        for result in first.dispatched:
            if result.outcome != "pending":
                assert (result.workflow_id, result.trigger_id, result.run_id) in now, f"{result} is not in {receipt}"

    def resumed(self, run_id: str, mark: str, result: Any, *, calm: bool) -> None:
        """A resume was answered: done, or refused because the run was not paused, or its workflow is only coming.

        It is also coming to a node that has died while it opened, as long as that one's word holds.
        """
        _raised(result)
        if result.ok:
            self._marks.append((run_id, mark))
        else:
            sure = calm and self._history.there[self.runs[run_id].workflow_id]
            coming = set() if sure else {"EXPIRED_DEFINITION"}
            assert result.error.code in {"INVALID_STATE", "NOT_FOUND", *coming}, result.error

    def signalled(self, run_id: str, mark: str, result: Any, *, calm: bool) -> None:
        """A signal was answered; who has a stage before it will see it."""
        if isinstance(result, InvalidStateError):
            return
        _raised(result)
        run = self.runs.get(run_id)
        if calm and run is not None and not self._at_last_stage(run):
            self._marks.append((run_id, mark))

    def aborted(self, run_id: str, result: Any) -> None:
        """An abort was answered."""
        _raised(result)
        if result:
            self._aborted.add(run_id)

    def invoked(self, run_id: str, result: Any) -> None:
        """A run was invoked."""
        _raised(result)
        if result.metadata is None:
            assert result.error.code == "NOT_FOUND", result.error
        else:
            self._invoked.add(run_id)

    def _at_last_stage(self, run: Run) -> bool:
        """Whether it may have no stage before it any more, as far as the last look tells."""
        flow = self._history.world.flows[run.workflow_id]
        stages = [stage.id for stage in flow.workflow.pipelines[run.trigger_id].stages]
        return run.status != Status.QUEUED and (run.stage or stages[0]) == stages[-1]

    # -- at every moment -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Fails when something is not as it has to be while nothing moves."""
        history = self._history
        assert not history.world.wrong, history.world.wrong
        assert not history.complaints.told, history.complaints.told
        taken = await check_invariants(self._engine)
        self.runs = taken.runs
        self.waiting = defaultdict(set)
        for wait in taken.waits:
            for _field, _op, value in msgspec.json.decode(wait.clauses):
                self.waiting[value].add(wait.run_id)
        await self._look_at_ends()
        self.fresh = not history.calls
        if history.app is not None:
            self._look_for_work(history.app.node_id, history.app.node.in_flight)

    async def _look_at_ends(self) -> None:
        """Terminal is final: neither its status nor its data change any more."""
        ended = [run.run_id for run in self.runs.values() if Status(run.status) in ENDED]
        states = await self._states(ended)
        for run_id in ended:
            now = (self.runs[run_id].status, states.get(run_id))
            assert self._ends.setdefault(run_id, now) == now, f"run {run_id} was {self._ends[run_id]}, is {now}"
        for run_id, (status, _) in self._ends.items():
            assert run_id in self.runs, f"run {run_id} had ended ({status}) and is gone"

    def _look_for_work(self, node_id: str, in_flight: int) -> None:
        """No wake-up is lost: what is due is under way, and nobody sleeps past a deadline."""
        history = self._history
        now = history.clock.now()
        for run in self.runs.values():
            known = history.there.get(run.workflow_id, False)
            due = run.owner is None and run.due_at is not None and run.due_at <= now
            assert not (known and due), f"run {run.run_id} ({run.status}) is due and nobody has it"
            late = run.expires_at is not None and run.expires_at <= now
            assert not late, f"run {run.run_id} sleeps past its deadline"
        mine = sum(run.owner == node_id for run in self.runs.values())
        assert mine == in_flight, f"the node has {mine} runs and executes {in_flight}"

    # -- when it is over -----------------------------------------------------------------------------------------

    async def look_back(self) -> None:
        """Fails when what clients were told, or what steps did, is not what became of it."""
        states = await self._states(self.runs)
        for run in self.runs.values():
            self._judge(run, states.get(run.run_id, {}))
        for run_id, mark in self._marks:
            if self.runs[run_id].status == Status.COMPLETED:
                assert mark in states[run_id], f"what was sent to run {run_id} ({mark}) is not in {states[run_id]}"
        for run_id in self._aborted:
            assert self.runs[run_id].status == Status.ABORTED, f"run {run_id} was aborted: {self.runs[run_id]}"
        assert self._invoked <= self.runs.keys()
        await self._judge_receipts()
        await self._judge_timelines()

    def _judge(self, run: Run, state: dict[str, Any]) -> None:
        world = self._history.world
        if run.status == Status.COMPLETED:
            world.check_trail(run.workflow_id, state["trail"])
        elif run.status == Status.FAILED:
            crashed = self._history.deaths >= 5 and "CRASHED" in (run.error or "")
            assert run.run_id in world.failed or crashed, f"run {run.run_id} failed by itself: {run.error}"
        else:
            assert run.abort_reason is not None, f"nobody aborted run {run.run_id}: {run.error}"

    async def _judge_receipts(self) -> None:
        """No accepted event is without its outcome, and none has two."""
        ids = [receipt.event_id for receipt in self.receipts]
        stored: list[EventRow] = await self._engine.read("events_by_id", {"ids": ids}, EventRow)
        seqs = {row.event_id: row.seq for row in stored}
        assert len(seqs) == len(set(ids)), "an accepted event is not there"
        rows: list[Delivery] = await self._engine.read("deliveries_of", {"seqs": sorted(seqs.values())}, Delivery)
        told: dict[int, list[Delivery]] = defaultdict(list)
        for row in rows:
            told[row.event_seq].append(row)
        for receipt in self.receipts:
            mine = told[seqs[receipt.event_id]]
            assert all(row.outcome != "pending" for row in mine), f"event {receipt.event_id} is still pending: {mine}"
            here = {(row.workflow_id, row.trigger_id, row.run_id) for row in mine}
            for result in receipt.dispatched:
                if result.outcome not in {"pending", "duplicate"}:
                    place = (result.workflow_id, result.trigger_id, result.run_id or "")
                    assert place in here, f"{result} of event {receipt.event_id} is not in {mine}"
            self._judge_runs_of(receipt.event_id, mine)

    def _judge_runs_of(self, event_id: str, rows: Iterable[Delivery]) -> None:
        seq = None
        for row in rows:
            seq = row.event_seq
            if row.outcome in _MAKES_A_RUN:
                assert row.run_id in self.runs, f"event {event_id} {row.outcome} run {row.run_id}, which is not there"
        made = [(run.workflow_id, run.trigger_id) for run in self.runs.values() if run.event_seq == seq is not None]
        assert len(made) == len(set(made)), f"event {event_id} has made runs twice: {made}"

    async def _judge_timelines(self) -> None:
        """The decisions of a run stand in its timeline in the order of their commits."""
        committed: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._history.log.entries:
            committed[entry.run_id].append(entry)
        for run in self.runs.values():
            rows: list[Entry] = await self._engine.read("timeline_of", {"run_id": run.run_id}, Entry)
            shown = [(row.decision, row.type, row.payload) for row in rows if row.ordinal == 0]
            wanted = [(row.decision, row.type, row.payload) for row in committed[run.run_id]]
            assert shown == wanted, f"the timeline of run {run.run_id} is {shown}, was committed as {wanted}"
            assert [number for number, *_ in shown] == list(range(1, run.decision + 1)), shown

    async def _states(self, run_ids: Iterable[str]) -> dict[str, Any]:
        rows: list[RunValue] = await self._engine.read("values_of_runs", {"run_ids": list(run_ids)}, RunValue)
        return {row.run_id: msgspec.json.decode(row.data) for row in rows if row.name == "state"}


def _raised(result: Any) -> None:
    if isinstance(result, BaseException):
        raise result
