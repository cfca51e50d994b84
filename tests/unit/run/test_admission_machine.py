"""Promises about slots over time: whatever happens in whatever order, against lists of run ids instead of counts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from piecework.run.admission import (
    Admission,
    Exclusive,
    Serialized,
    SingletonLoop,
    Transient,
    admit,
    cleaned,
    closing,
    gone,
    governed,
    paused,
    promoted,
    queued,
    slot_of,
    startable,
    started,
    unqueued,
    woken,
)


@dataclass
class Keeper:
    """Keeps one slot as the store does: it asks the product for every decision and every count.

    Attributes:
        places: Of every admitted run, its number in the order of admission.
        waiting: The queue; who starts is decided by `places`, not by this order.
        aborting: Runs that were told to end.
        superseded: Runs that a newer event took the turn of.
        starts: Every run that started, in this order.
    """

    slot: object
    places: dict[str, int] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    aborting: set[str] = field(default_factory=set)
    superseded: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)

    def publish(self, run_id):
        verdict = admit(self.slot)
        if verdict.supersedes:
            self.superseded.append(self.slot.pending_run_id)
            self.waiting.remove(self.slot.pending_run_id)
            self.slot = unqueued(self.slot, self.slot.pending_run_id)
        if verdict.admission is Admission.REPLACE:
            self.aborting.add(self.slot.active_run_id)
        if verdict.admission is Admission.START:
            self.slot = started(self.slot, run_id)
            self.starts.append(run_id)
        elif verdict.admission in {Admission.QUEUE, Admission.REPLACE}:
            self.slot = queued(self.slot, run_id)
            self.waiting.add(run_id)
        if verdict.admission in {Admission.START, Admission.QUEUE, Admission.REPLACE}:
            self.places[run_id] = self.slot.admitted
        return verdict

    def start_successors(self):
        """Answers who started, in order."""
        chosen = []
        while startable(self.slot):
            chosen.append(min(self.waiting, key=self.places.__getitem__))
            self.waiting.remove(chosen[-1])
            self.slot = promoted(self.slot, chosen[-1])
        self.starts += chosen
        return chosen

    def end(self, run_id, *, resting=False, clean=False):
        leave = gone if clean else closing
        self.slot = leave(self.slot, run_id, was_paused=resting)
        self.aborting.discard(run_id)


@dataclass
class Model:
    """What a slot has to be: who waits, who lives, who rests, who is being cleaned. No count is kept anywhere.

    Attributes:
        beyond: Runs that may be more than there are places: woken beside others, ended without a place, or there
            before the mode changed.
    """

    mode: object
    waiting: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)
    closing: list[str] = field(default_factory=list)
    beyond: set[str] = field(default_factory=set)
    active: str | None = None
    pending: str | None = None

    @property
    def single(self):
        return isinstance(self.mode, SingletonLoop | Exclusive)

    @property
    def holders(self):
        return [run for run in self.live if self.mode.hold_while_paused or run not in self.resting]

    @property
    def taken(self):
        return self.holders + self.closing

    def expected(self):
        """The outcome of one more event, its reason and whom it supersedes: the table, read as text."""
        if not self.waiting and len(self.taken) < self.mode.concurrency:
            return "started", None, None
        if not self.single:
            return self._expected_in_line()
        if not self.holders:
            return "queued", "closing", self.pending
        match self.mode.on_busy:
            case "drop":
                return "dropped", "busy", None
            case "reject":
                return "rejected", "BUSY", None
            case "queue_single":
                return "queued", None, self.pending
            case "signal" if self.active:
                return "signalled", None, None
            case "replace" if self.active:
                return "replaced", None, self.pending
        return "queued", "busy", self.pending

    def _expected_in_line(self):
        """Imagines that everybody is clean: who would wait then?"""
        inside, outside = list(self.holders), [*self.waiting, "new"]
        while outside and len(inside) < self.mode.concurrency:
            inside.append(outside.pop(0))
        if "new" in inside:
            return "queued", "closing", None
        if len(outside) <= self.mode.capacity:
            return "queued", None, None
        return "dropped", "capacity" if isinstance(self.mode, Transient) else "queue_full", None

    def start(self, run):
        assert len(self.taken) < self.mode.concurrency, f"{run} starts where there is no room"
        assert not self.single or not self.holders, f"{run} starts beside {self.holders}"
        self.live.append(run)
        self.active = run if self.single else None

    def queue(self, run):
        self.waiting.append(run)
        self.pending = run if self.single else None

    def unqueue(self, run):
        self.waiting.remove(run)
        self.pending = None if run == self.pending else self.pending

    def end(self, run):
        self.live.remove(run)
        if run in self.resting:
            self.resting.remove(run)
        self.active = None if run == self.active else self.active


HOLD = st.booleans()
FIFO = st.one_of(
    st.builds(Transient, concurrency=st.integers(1, 3), capacity=st.integers(0, 3), hold_while_paused=HOLD),
    st.builds(Serialized, capacity=st.integers(0, 3), hold_while_paused=HOLD),
)
SINGLE = st.one_of(
    st.builds(SingletonLoop, on_busy=st.sampled_from(SingletonLoop.choices), hold_while_paused=HOLD),
    st.builds(Exclusive, on_busy=st.sampled_from(Exclusive.choices), hold_while_paused=HOLD),
)
KEYS = st.sampled_from("ab")
PICK = st.integers(0, 1000)


class SlotMachine(RuleBasedStateMachine):
    """Events, pauses, resumes, ends, clean-ups and aborts at two keys of one workflow, in any order."""

    def __init__(self):
        super().__init__()
        self.pairs = {}
        self.registered_again = False
        self.number = 0

    @initialize(mode=st.one_of(FIFO, SINGLE))
    def open(self, mode):
        self.pairs = {key: (Keeper(slot_of(mode, key, "w")), Model(mode)) for key in "ab"}

    def _settle(self, key):
        """Starts who may start, on both sides, and compares: the order is that of admission."""
        keeper, model = self.pairs[key]
        for run in keeper.start_successors():
            assert run == model.waiting[0]
            model.unqueue(run)
            model.start(run)

    def _some(self, key, pick, runs):
        """One of these runs of a key, or None where there is none."""
        return runs[pick % len(runs)] if runs else None

    @rule(key=KEYS)
    def publish(self, key):
        keeper, model = self.pairs[key]
        self.number += 1
        run = f"r{self.number}"
        outcome, reason, superseded = model.expected()
        others = [other.slot for name, (other, _) in self.pairs.items() if name != key]
        active = model.active
        verdict = keeper.publish(run)
        assert (verdict.admission, verdict.reason, verdict.supersedes) == (outcome, reason, superseded is not None)
        if superseded is not None:
            assert keeper.superseded[-1] == superseded
            model.unqueue(superseded)
        if outcome == "started":
            model.start(run)
        elif outcome in {"queued", "replaced"}:
            model.queue(run)
        assert (outcome == "replaced") <= (active in keeper.aborting)
        assert [other.slot for name, (other, _) in self.pairs.items() if name != key] == others
        self._settle(key)

    @rule(key=KEYS, pick=PICK)
    def pause(self, key, pick):
        keeper, model = self.pairs[key]
        run = self._some(key, pick, [run for run in model.live if run not in model.resting])
        if run is not None:
            model.resting.append(run)
            if not model.mode.hold_while_paused and model.active == run:
                model.active = None
            keeper.slot = paused(keeper.slot, run)
            self._settle(key)

    @rule(key=KEYS, pick=PICK)
    def wake(self, key, pick):
        keeper, model = self.pairs[key]
        run = self._some(key, pick, model.resting)
        if run is not None:
            model.resting.remove(run)
            if len(model.taken) > model.mode.concurrency:
                model.beyond.add(run)
            if model.single and model.active is None:
                model.active = run
            keeper.slot = woken(keeper.slot, run)
            self._settle(key)

    @rule(key=KEYS, pick=PICK, clean=st.booleans())
    def end(self, key, pick, clean):
        keeper, model = self.pairs[key]
        run = self._some(key, pick, model.live)
        if run is not None:
            keeper.end(run, resting=run in model.resting, clean=clean)
            if run not in model.holders:
                model.beyond.add(run)
            model.end(run)
            if not clean:
                model.closing.append(run)
            self._settle(key)

    @rule(key=KEYS, pick=PICK)
    def clean(self, key, pick):
        keeper, model = self.pairs[key]
        run = self._some(key, pick, model.closing)
        if run is not None:
            model.closing.remove(run)
            keeper.slot = cleaned(keeper.slot)
            self._settle(key)

    @rule(key=KEYS, pick=PICK)
    def abort_waiting(self, key, pick):
        keeper, model = self.pairs[key]
        run = self._some(key, pick, model.waiting)
        if run is not None:
            model.unqueue(run)
            keeper.waiting.remove(run)
            keeper.slot = unqueued(keeper.slot, run)
            self._settle(key)

    @rule(key=KEYS, mode=st.one_of(FIFO, SINGLE), skip=st.integers(0, 2))
    def register_again(self, key, mode, skip):
        if skip:  # seldom, so that many histories know one mode only and the strictest promises hold
            return
        self.registered_again = True
        keeper, model = self.pairs[key]
        model.mode = mode
        model.beyond = {*model.live, *model.closing}
        model.active = model.active if model.single and model.holders else None
        model.pending = model.pending if model.single else None
        keeper.slot = governed(keeper.slot, slot_of(mode, key, "w"))
        self._settle(key)

    @invariant()
    def the_counts_are_those_of_the_lists(self):
        for keeper, model in self.pairs.values():
            slot = keeper.slot
            assert (slot.live, slot.queued, slot.closing, slot.paused) == (
                len(model.live),
                len(model.waiting),
                len(model.closing),
                len(model.resting),
            )
            assert (slot.active_run_id, slot.pending_run_id) == (model.active, model.pending)

    @invariant()
    def nobody_waits_beside_a_free_place(self):
        for keeper, model in self.pairs.values():
            assert startable(keeper.slot) == 0
            assert not model.waiting or len(model.taken) >= model.mode.concurrency

    @invariant()
    def no_more_places_are_taken_than_there_are(self):
        for _, model in self.pairs.values():
            beyond = model.beyond & {*model.live, *model.closing}
            assert len(model.taken) <= model.mode.concurrency + len(beyond)

    @invariant()
    def runs_start_in_the_order_of_admission(self):
        for keeper, _ in self.pairs.values():
            order = [keeper.places[run] for run in keeper.starts]
            assert order == sorted(set(order))

    @precondition(lambda self: not self.registered_again)
    @invariant()
    def with_one_run_at_a_time_only_the_newest_waits(self):
        for keeper, model in self.pairs.values():
            assert not model.single or model.waiting in ([], [model.pending])
            assert not model.pending or keeper.places[model.pending] == max(keeper.places.values())


TestSlots = SlotMachine.TestCase
TestSlots.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def a_keeper(mode):
    return Keeper(slot_of(mode, "k", "w"))


@pytest.mark.parametrize("resting", [False, True])
def test_a_storm_of_replaces_leaves_the_old_run_and_the_newest(resting):
    """A thousand events replace one run: it is aborted once, only the last of them starts, and nothing in between."""
    keeper = a_keeper(SingletonLoop(on_busy="replace"))
    keeper.publish("old")
    if resting:
        keeper.slot = paused(keeper.slot, "old")
    verdicts = [keeper.publish(f"r{number}") for number in range(1000)]
    assert {verdict.admission for verdict in verdicts} == {Admission.REPLACE}
    assert keeper.aborting == {"old"}
    keeper.end("old", resting=resting)
    assert keeper.start_successors() == []
    keeper.slot = cleaned(keeper.slot)
    assert keeper.start_successors() == ["r999"]
    assert keeper.superseded == [f"r{number}" for number in range(999)]
    assert (keeper.starts, keeper.waiting) == (["old", "r999"], set())
    assert (keeper.slot.live, keeper.slot.queued, keeper.slot.active_run_id) == (1, 0, "r999")


def test_a_replace_while_the_old_run_is_being_cleaned_waits_for_it():
    """Nobody is aborted for it, the newest wins, and it starts when the old run is clean and not before."""
    keeper = a_keeper(SingletonLoop(on_busy="replace"))
    keeper.publish("old")
    keeper.end("old")
    assert [keeper.publish(run).reason for run in ("one", "two")] == ["closing", "closing"]
    assert (keeper.aborting, keeper.start_successors()) == (set(), [])
    keeper.slot = cleaned(keeper.slot)
    assert (keeper.start_successors(), keeper.superseded) == (["two"], ["one"])


def test_a_replace_of_a_paused_run_starts_the_new_one_at_once():
    """There is nothing to cancel: when the abort leaves nothing to clean, the new run starts in the same decision."""
    keeper = a_keeper(SingletonLoop(on_busy="replace"))
    keeper.publish("old")
    keeper.slot = paused(keeper.slot, "old")
    assert keeper.publish("new").admission is Admission.REPLACE
    keeper.end("old", resting=True, clean=True)
    assert keeper.start_successors() == ["new"]


def test_of_five_events_at_a_busy_exclusive_run_exactly_the_fifth_runs_next():
    """The newest event keeps the only turn there is; the four before it are superseded, in order."""
    keeper = a_keeper(Exclusive(on_busy="queue_single"))
    for run in ("active", "1", "2", "3", "4", "5"):
        keeper.publish(run)
    keeper.end("active", clean=True)
    assert (keeper.start_successors(), keeper.superseded) == (["5"], ["1", "2", "3", "4"])


@pytest.mark.parametrize("mode", [Transient(concurrency=1, capacity=0), Serialized(capacity=0)])
def test_no_queue_is_not_an_endless_one(mode):
    """Without a queue a busy slot drops, and a free one starts."""
    keeper = a_keeper(mode)
    outcomes = [keeper.publish(run).admission for run in ("a", "b", "c")]
    assert outcomes == [Admission.START, Admission.DROP, Admission.DROP]
    keeper.end("a", clean=True)
    assert keeper.publish("d").admission is Admission.START


def test_a_hundred_serialized_runs_start_one_by_one_in_the_order_of_admission():
    """However each of them ends, the next one starts when it is clean."""
    keeper = a_keeper(Serialized(capacity=100))
    runs = [f"r{number}" for number in range(100)]
    for run in runs:
        keeper.publish(run)
    for number, run in enumerate(runs):
        assert keeper.starts == runs[: number + 1]
        keeper.end(run)
        assert keeper.start_successors() == []
        keeper.slot = cleaned(keeper.slot)
        keeper.start_successors()
    assert keeper.starts == runs
