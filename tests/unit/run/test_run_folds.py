"""Whatever is done to a store, in whatever order, nothing in it contradicts anything else, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import InvalidStateError, StaleEpochError
from piecework.run.lifecycle import ENDED, Status
from piecework.store.items import Continue, Defer, Park
from piecework.store.sqlite import SqliteStore
from piecework.testing.invariants import check_invariants
from piecework.testing.verbs import Verbs, event, job, route, single, slot, transient, waits

SLOTS = [
    slot("one", capacity=2),
    transient("two", concurrency=2, capacity=2),
    transient("held", concurrency=2, capacity=1, hold=True),
    single("replace", "newest"),
    single("signal", "told", hold=False),
    single("queue_single", "next"),
]
EVENTS = st.sampled_from(["paid", "lost"])
PLACE = st.integers(0, 1000)
SECONDS = st.sampled_from([None, 1, 10])


class Fast(SqliteStore):
    """A store that does not wait for the disk: what a crash of the machine leaves is not looked at here."""

    def _prepare(self):
        connection = super()._prepare()
        connection.execute("PRAGMA synchronous = OFF")
        return connection


class StoreMachine(RuleBasedStateMachine):
    """Nodes come and go, runs start, pause, wake, end; old owners never have a say."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.store = Fast(Path(self.folder.name) / "state.db")
        self.do(self.store.open())
        self.verbs = Verbs(self.store)
        self.node = 1
        self.held = {}
        self.zombies = []
        self.events = 0
        self.ids = 0

    def do(self, call):
        return self.runner.run(call)

    def teardown(self):
        try:
            self.drain()
        finally:
            self.do(self.store.close())
            self.runner.close()
            self.folder.cleanup()

    @property
    def owner(self):
        return f"node-{self.node}"

    def pick(self, place):
        ids = sorted(self.held)
        return self.held[ids[place % len(ids)]]

    def fresh(self, word):
        """An id that is the same whenever the same steps are taken."""
        self.ids += 1
        return f"{word}-{self.ids:06}"

    def waits(self, run, types, **options):
        return waits(run.run_id, *types, wait_id=self.fresh("wait"), **options)

    def refresh(self, run_id):
        """What the owner knows of its run after a commit."""
        run = self.do(self.verbs.run(run_id))
        if run.owner == self.owner:
            self.held[run_id] = run
        else:
            self.held.pop(run_id, None)

    @rule(where=st.lists(st.sampled_from(SLOTS), max_size=3), type_=EVENTS, number=st.integers(0, 1))
    def publish(self, where, type_, number):
        self.events += 1
        routes = [route(to, trigger=f"t{n}", run_id=self.fresh("run")) for n, to in enumerate(where)]
        self.do(self.verbs.accept(event(type_, {"n": number}, event_id=f"e-{self.events}", routes=routes)))

    @precondition(lambda self: self.events)
    @rule(place=PLACE)
    def publish_again(self, place):
        name = f"e-{place % self.events + 1}"
        assert self.do(self.verbs.accept(event("paid", event_id=name, routes=[route(SLOTS[0])]))).duplicate

    @rule(later=st.integers(0, 3))
    def enqueue(self, later):
        self.do(self.verbs.enqueue(job(self.fresh("job"), due_at=self.verbs.now + later * SECOND)))

    @rule(limit=st.integers(1, 4))
    def claim(self, limit):
        for entry in self.do(self.verbs.claim(self.owner, limit=limit)):
            assert entry.run.run_id not in self.held
            self.held[entry.run.run_id] = entry.run

    @precondition(lambda self: self.held)
    @rule(
        place=PLACE,
        then=st.sampled_from([Continue(stage="next"), Park(stage="next"), Park(stage=None, timeout=SECOND)]),
        types=st.lists(EVENTS, unique=True, max_size=2),
        number=st.integers(0, 2),
        seconds=SECONDS,
        twice=st.booleans(),
    )
    def end_stage(self, place, then, types, number, seconds, twice):
        run = self.pick(place)
        if isinstance(then, Park) and types:
            clause = {} if number == 2 else {"n": number}
            then = replace(then, waits=self.waits(run, types, timeout_seconds=seconds, **clause))
        if run.status in ENDED:
            with pytest.raises(InvalidStateError):
                self.do(self.verbs.end_stage(run, then))
            return
        first = self.do(self.verbs.end_stage(run, then))
        if twice:
            assert self.do(self.verbs.end_stage(run, then)).outcome == first.outcome
        self.refresh(run.run_id)

    @precondition(lambda self: self.held)
    @rule(place=PLACE, later=st.integers(0, 3))
    def defer(self, place, later):
        run = self.pick(place)
        if run.status not in ENDED:
            self.do(self.verbs.end_stage(run, Defer(due_at=self.verbs.now + later * SECOND)))
            self.refresh(run.run_id)

    @precondition(lambda self: self.held)
    @rule(place=PLACE, types=st.lists(EVENTS, min_size=1, unique=True), cancel=st.booleans(), most=st.integers(1, 2))
    def register(self, place, types, cancel, most):
        run = self.pick(place)
        if run.status not in ENDED:
            new = self.waits(run, types, max_buffer=most)
            self.do(self.verbs.register(run, new, cancel=None if cancel else ()))

    @precondition(lambda self: self.held)
    @rule(place=PLACE, seconds=st.integers(1, 3))
    def unresume(self, place, seconds):
        run = self.pick(place)
        if run.status not in ENDED and run.patched:
            self.do(self.verbs.unresume(run, seconds=seconds))
            self.refresh(run.run_id)

    @rule(place=PLACE)
    def signal(self, place):
        runs = sorted(self.do(check_invariants(self.store)).runs.values(), key=lambda run: run.run_id)
        for run in runs[place % len(runs) :][:1] if runs else ():
            if run.status in ENDED:
                with pytest.raises(InvalidStateError):
                    self.do(self.verbs.signal(run.run_id))
            else:
                self.do(self.verbs.signal(run.run_id, token=self.fresh("call")))

    @precondition(lambda self: self.held)
    @rule(place=PLACE, status=st.sampled_from(["completed", "failed"]), clean=st.booleans())
    def settle(self, place, status, clean):
        run = self.pick(place)
        final = self.do(self.verbs.settle(run, status))
        assert self.do(self.verbs.settle(run, "completed")) == final
        if clean:
            self.do(self.verbs.cleaned(run))
            assert self.do(self.verbs.cleaned(run)) == 0
        self.refresh(run.run_id)

    @precondition(lambda self: self.held)
    @rule(place=PLACE, counted=st.booleans())
    def release(self, place, counted):
        run = self.pick(place)
        self.do(self.verbs.release(run, counted=counted))
        self.zombies.append(run)
        self.refresh(run.run_id)

    @rule(place=PLACE, resume=st.booleans())
    def call(self, place, resume):
        runs = sorted(self.do(check_invariants(self.store)).runs.values(), key=lambda run: run.run_id)
        if not runs:
            return
        run = runs[place % len(runs)]
        if not resume:
            assert self.do(self.verbs.abort(run.run_id)).aborted is (
                run.status not in ENDED and run.abort_reason is None
            )
        elif run.status == Status.PAUSED:
            self.do(self.verbs.resume(run.run_id, {"by": "hand"}))
        else:
            with pytest.raises(InvalidStateError):
                self.do(self.verbs.resume(run.run_id))

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds):
        self.verbs.now += seconds * SECOND
        self.do(self.verbs.due())

    @rule()
    def the_node_dies(self):
        self.zombies += self.held.values()
        self.node += 1
        self.held = {e.run.run_id: e.run for e in self.do(self.verbs.claim(self.owner, orphans=True))}

    @precondition(lambda self: self.zombies)
    @rule(place=PLACE)
    def a_zombie_writes(self, place):
        zombie = self.zombies[place % len(self.zombies)]
        before = self.do(self.verbs.run(zombie.run_id))
        if before.cleaned and before.epoch == zombie.epoch:
            return
        for write in (self.verbs.end_stage(zombie, Continue(stage="evil")), self.verbs.settle(zombie)):
            try:
                self.do(write)
            except (StaleEpochError, InvalidStateError):
                pass
            else:
                assert before.status in ENDED or before.visit == zombie.visit + 1
        assert self.do(self.verbs.run(zombie.run_id)) == before

    @invariant()
    def nothing_contradicts(self):
        self.do(check_invariants(self.store))

    def drain(self):
        """Lets everything come to its end: nobody may be left who can neither run nor be woken."""
        self.the_node_dies()
        for _ in range(60):
            self.verbs.now += 100 * SECOND
            for run in list(self.held.values()):
                self.do(self.verbs.settle(run))
                self.do(self.verbs.cleaned(run))
            taken = self.do(check_invariants(self.store))
            for run in taken.runs.values():
                if run.status == Status.PAUSED:
                    self.do(self.verbs.resume(run.run_id))
            self.held = {e.run.run_id: e.run for e in self.do(self.verbs.claim(self.owner))}
            if not self.held and all(run.cleaned for run in taken.runs.values()):
                return
        raise AssertionError(f"not all runs ended: {[r for r in taken.runs.values() if not r.cleaned]}")


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=50,
    stateful_step_count=25,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
