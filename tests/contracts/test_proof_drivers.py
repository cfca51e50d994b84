"""The proof drivers themselves: they find the faults that they are there for, and leave out nothing that matters."""

from __future__ import annotations

import re
import shutil
import sqlite3

import pytest
from msgspec.structs import replace

from contracts.orders import anyio_backend, arena, runs
from piecework.clock import SECOND
from piecework.errors import ValidationError
from piecework.ids import new_id
from piecework.store.contract import InsertMissing, Lock, Read, StartAgain
from piecework.store.items import Continue, Park
from piecework.store.records import Buffered, Delivery, NodeRow, Run, Slot, Space
from piecework.store.sqlite_requests import Hands
from piecework.store.verbs import retention
from piecework.testing.crashing import PostgresGround, SqliteGround, crash_everywhere
from piecework.testing.interleaving import Arena, explore
from piecework.testing.proof_calls import Call, ConnectionStore, Later, together
from piecework.testing.rows import event, job, notification, route, slot, transient, waits
from piecework.testing.verbs import Verbs

__all__ = ["anyio_backend", "arena"]


# -- known faults -----------------------------------------------------------------------------------------------


def mutant(call, change):
    """The call with a verb whose requests and answers go through `change`, a generator of a request's answer."""

    def verb(items, decide, now):
        script, answer = call.verb(items, decide, now), None
        try:
            while True:
                answer = yield from change(script.send(answer))
        except StopIteration as done:
            return done.value

    return Call(verb, call.items, call.decide, call.now)


def no_run_locks(request):
    """Runs are read, not locked."""
    if isinstance(request, Lock) and request.record is Run:
        return (yield Read("runs_by_id", {"run_ids": [key[0] for key in request.keys]}, Run))
    return (yield request)


def no_slot_locks(request):
    """Slots are read, not locked."""
    if isinstance(request, Lock) and request.record is Slot:
        wanted = {key[0] for key in request.keys}
        found = yield Read("slots_of_workflow", {"workflow_id": "orders", "after": "", "limit": 100}, Slot)
        return [row for row in found if row.slot_key in wanted]
    return (yield request)


def no_delivery_locks(request):
    """Pending deliveries are read, not locked."""
    if isinstance(request, Lock) and request.record is Delivery:
        return (yield Read("pending_deliveries", {"workflow_ids": ["orders"], "limit": 100}, Delivery))
    return (yield request)


def slots_in_any_order(request):
    """Slots are locked one by one, the last key first."""
    if isinstance(request, Lock) and request.record is Slot:
        found = []
        for key in sorted(request.keys, reverse=True):
            found += yield Lock(Slot, [key])
        return found
    return (yield request)


def slots_made_in_any_order(request):
    """Missing slots are made one by one, the last key first."""
    if isinstance(request, InsertMissing) and isinstance(request.records[0], Slot):
        made = []
        for row in sorted(request.records, key=lambda row: row.slot_key, reverse=True):
            made += yield InsertMissing([row], "slot_key")
        return made
    return (yield request)


def spaces_first():
    """Spaces are locked before anything else."""
    state = {"locked": False}

    def change(request):
        if not state["locked"]:
            state["locked"] = True
            yield Lock(Space, [("default",)])
        return (yield request)

    return change


def spaces_read_before_they_are_locked():
    """When there is more to do in a space is read before the space is locked."""
    state = {}

    def change(request):
        if isinstance(request, Lock) and request.record is Space:
            state["moments"] = yield Read("next_due_of_spaces", {"spaces": [key[0] for key in request.keys]})
        if isinstance(request, Read) and request.name == "next_due_of_spaces":
            return state["moments"]
        return (yield request)

    return change


def kept_events_read_first(run_id):
    """What is kept for a run is read before anything is locked."""
    state = {}

    def change(request):
        if not state:
            state["kept"] = yield Read("buffers_of_runs", {"run_ids": [run_id]}, Buffered)
        if isinstance(request, Read) and request.name == "buffers_of_runs":
            return state["kept"]
        return (yield request)

    return change


async def _wake_and_signal(verbs, change):
    run = await verbs.paused()
    return [change(Later(verbs).publish()), Later(verbs).signal(run.run_id)]


async def _nothing_undone(end):
    (run,) = await runs(end.verbs)
    assert (run.signals, run.resume_count) == (1, 1), "one has undone what the other did"


async def _two_events(verbs, change):
    run = await verbs.running(slot())
    await verbs.end(run)
    later = Later(verbs)
    return [change(later.accept(event(routes=[route(slot())]))) for _ in range(2)]


async def _two_wide_events(verbs, change):
    calls = [Later(verbs).accept(event(routes=[route(slot(name))])) for name in ("x", "y")]
    return [change(together(*calls)), together(*(Later(verbs).accept(replace_ids(call.items[0])) for call in calls))]


def replace_ids(item):
    """Another event with the same triggers."""
    fresh = replace(item.event, event_id=new_id())
    return replace(item, event=fresh, routes=tuple(replace(one, run_id=new_id()) for one in item.routes))


async def _two_freed_slots(verbs, change):
    gone = []
    for name in ("x", "y"):
        gone.append(await verbs.running(transient(name)))
        gone.append(await verbs.running(transient(name)))
    for run in gone:
        await verbs.settle(run)
    later = Later(verbs)
    return [
        change(together(later.cleaned(gone[0]), later.cleaned(gone[2]))),
        together(later.cleaned(gone[1]), later.cleaned(gone[3])),
    ]


async def _two_dispatches(verbs, change):
    await verbs.register_routes("order.placed")
    seq = (await verbs.accept(event())).seq
    return [change(Later(verbs).dispatch(seq, route(slot()))) for _ in range(2)]


async def _one_run(end):
    assert len(await runs(end.verbs)) == 1, "the event was decided twice"


async def _claim_and_event(verbs, change):
    await verbs.start(slot("x"))
    await verbs.claim("node-0", limit=1)
    return [change(Later(verbs).claim()), Later(verbs).accept(event(routes=[route(slot("y"))]))]


async def _two_resumes(verbs, change):
    run = await verbs.paused()
    return [change(Later(verbs).resume(run.run_id)), Later(verbs).resume(run.run_id)]


async def _event_and_pause(verbs, change):
    run = await verbs.running()
    await verbs.register(run, waits(run.run_id))
    return [change(Later(verbs).end_stage(run, Park(stage="b")), run.run_id), Later(verbs).publish()]


def _same(call, *_):
    return call


def _with(change):
    """Makes mutants; `change` holds for every request."""
    return lambda call: mutant(call, change)


def _remembering(make):
    """Makes mutants whose change remembers something, anew for every attempt."""

    def change(call, *given):
        def verb(items, decide, now):
            return mutant(call, make(*given)).verb(items, decide, now)

        return Call(verb, call.items, call.decide, call.now)

    return change


MUTANTS = {
    "runs are not locked": (_wake_and_signal, _nothing_undone, _with(no_run_locks), "undone|signal_count"),
    "slots are not locked": (_two_events, None, _with(no_slot_locks), "slot_"),
    "slots are locked in any order": (_two_freed_slots, None, _with(slots_in_any_order), "deadlock"),
    "slots are made in any order": (_two_wide_events, None, _with(slots_made_in_any_order), "deadlock"),
    "deliveries are not locked": (_two_dispatches, _one_run, _with(no_delivery_locks), "decided twice"),
    "spaces are locked first": (_two_resumes, None, _remembering(spaces_first), "deadlock"),
    "spaces are read before they are locked": (
        _claim_and_event,
        None,
        _remembering(spaces_read_before_they_are_locked),
        "space_asleep",
    ),
    "kept events are read first": (
        _event_and_pause,
        None,
        _remembering(kept_events_read_first),
        "buffered_while_paused",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_known_fault_is_found(arena, name):
    """A verb with a known fault fails in some schedule, the list that is told leads there again, and without the fault
    every schedule is fine."""
    scenario, check, change, message = MUTANTS[name]
    report = await arena.explore(lambda verbs: scenario(verbs, _same), check)
    assert report.complete
    with pytest.raises(AssertionError, match=message) as caught:
        await arena.explore(lambda verbs: scenario(verbs, change), check)
    replay = [int(number) for number in re.search(r"replay=\[([\d, ]*)\]", str(caught.value))[1].split(",")]
    with pytest.raises(AssertionError, match=message):
        await arena.explore(lambda verbs: scenario(verbs, change), check, replay=replay)


async def test_locks_in_a_ring_are_found(arena):
    """Two that lock the same rows, each in its own order, are found in a deadlock."""

    async def setup(verbs):
        ids = [(await verbs.running()).run_id for _ in range(2)]

        def locks(order):
            def verb(items, decide, now):
                for run_id in order:
                    yield Lock(Run, [(run_id,)])
                return [True for _ in items]

            return Call(verb, [None], None)

        return [locks(ids), locks(ids[::-1])]

    with pytest.raises(AssertionError, match="deadlock"):
        await arena.explore(setup)


# -- what is left out -------------------------------------------------------------------------------------------


async def _resume_and_abort(verbs):
    run = await verbs.paused()
    return [Later(verbs).resume(run.run_id), Later(verbs).abort(run.run_id)]


async def _signal_and_stage_end(verbs):
    run = await verbs.running()
    return [Later(verbs).signal(run.run_id), Later(verbs).end_stage(run, Continue(stage="b"))]


async def _duplicate_and_forgotten_id(verbs):
    await verbs.accept(event(event_id="e-1"))
    verbs.now += SECOND
    return [Later(verbs).accept(event(event_id="e-1")), Later(verbs).forget(retention.forget_ids)]


async def _claim_and_abort(verbs):
    result = await verbs.start(slot())
    return [Later(verbs).claim(), Later(verbs).abort(result.run_id)]


async def _two_claims(verbs):
    await verbs.enqueue(job())
    return [Later(verbs).claim("node-1"), Later(verbs).claim("node-2")]


async def _two_occurrences(verbs):
    return [Later(verbs).enqueue(job(occurrence="daily")) for _ in range(2)]


async def _two_notifications(verbs):
    return [Later(verbs).notify(notification(to=to, occurrence="x")) for to in ("ada", "bob")]


async def _notification_and_mail(verbs):
    await verbs.notify(notification("n-1"))
    (digest,) = await verbs.due_digests()
    return [Later(verbs).notify(notification("n-2")), Later(verbs).mail_digest(digest)]


async def _two_releases_and_a_signal(verbs):
    run = await verbs.running()
    return [Later(verbs).release(run), Later(verbs).signal(run.run_id), Later(verbs).release(run)]


@pytest.mark.parametrize(
    "setup",
    [
        _resume_and_abort,
        _signal_and_stage_end,
        _duplicate_and_forgotten_id,
        _claim_and_abort,
        _two_claims,
        _two_occurrences,
        pytest.param(_two_notifications, marks=pytest.mark.slow),  # far more schedules than the others
        _notification_and_mail,
        _two_releases_and_a_signal,
    ],
    ids=lambda setup: setup.__name__.strip("_"),
)
async def test_nothing_that_matters_is_left_out(arena, setup):
    """All schedules together end no otherwise than those that are tried, which are far fewer."""
    fewer = await arena.explore(setup)
    every = await arena.explore(setup, reduce=False, limit=20_000)
    assert fewer.complete
    assert every.complete
    assert (set(fewer.endings), fewer.states) == (set(every.endings), every.states)
    assert fewer.schedules <= every.schedules


async def test_an_exploration_can_be_repeated(arena):
    """The same scenario takes the same schedules."""
    first, second = [await arena.explore(_resume_and_abort) for _ in range(2)]
    assert (first.schedules, first.endings, first.strayed) == (second.schedules, second.endings, 0)


async def test_an_exploration_may_be_bounded(arena):
    """A limit ends an exploration, and the report says that it is not complete."""
    report = await arena.explore(_resume_and_abort, limit=2)
    assert (report.schedules, report.complete) == (2, False)


async def test_schedules_taken_at_random(arena):
    """Schedules at random are as many as were asked for, differ from each other, and find what all of them find."""
    report = await arena.explore(_resume_and_abort, samples=30)
    assert (report.schedules, report.complete, report.states) == (30, False, 2)
    with pytest.raises(AssertionError, match="deadlock"):
        await arena.explore(lambda verbs: _two_freed_slots(verbs, _with(slots_in_any_order)), samples=30)


async def test_what_a_verb_raises_is_an_outcome(arena):
    """A verb that fails as a whole is rolled back; the others go on."""

    async def setup(verbs):
        def verb(items, decide, now):
            yield Read("nodes", {}, NodeRow)
            raise ValidationError("no")

        return [Call(verb, [None, None], None), Later(verbs).enqueue(job())]

    assert set((await arena.explore(setup)).endings) == {"VALIDATION_ERROR VALIDATION_ERROR | queued"}


async def test_a_verb_that_starts_again_for_ever_is_found(arena):
    """Starting again has an end."""

    async def setup(verbs):
        def verb(items, decide, now):
            yield StartAgain()

        return [Call(verb, [None], None)]

    with pytest.raises(AssertionError, match="again and again"):
        await arena.explore(setup)


async def test_rows_of_somebody_are_not_deleted(postgres_url):
    """A store in which something stands is no place for a proof."""

    async def nothing(verbs):
        raise AssertionError("never asked")

    async with Arena(postgres_url, participants=1) as other:
        await Verbs(ConnectionStore(other.watcher)).enqueue(job())
        with pytest.raises(ValidationError, match="holds rows"):
            await explore(postgres_url, nothing)
        with pytest.raises(ValidationError, match="holds rows"):
            async with PostgresGround(postgres_url):
                pass


# -- crashes ----------------------------------------------------------------------------------------------------


async def test_an_effect_that_comes_twice_is_found(tmp_path):
    """A call whose repeat is not known by anything has its effect twice, and that is told."""

    async def setup(verbs):
        run = await verbs.running()
        return Later(verbs).signal(run.run_id)

    with pytest.raises(AssertionError, match="again after its reply was lost"):
        await crash_everywhere(SqliteGround(tmp_path), setup)


class _NoTransaction(SqliteGround):
    """An engine that forgets to begin."""

    async def die(self, call, requests):
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            script, answer, made = call.verb(call.items, call.decide, call.now), None, 0
            hands = Hands(connection, at_once=False)
            try:
                while made != requests:
                    answer = hands.carry_out(script.send(answer))
                    made += 1
            except StopIteration:
                return False
        finally:
            connection.close()
        left = next(self._names)
        shutil.copy(self._path, left)
        self._path = left
        return True


async def test_a_half_written_verb_is_found(tmp_path):
    """What a dead verb leaves behind is told."""

    async def setup(verbs):
        return Later(verbs).enqueue(job("r-1"))

    with pytest.raises(AssertionError, match="left something"):
        await crash_everywhere(_NoTransaction(tmp_path), setup)
