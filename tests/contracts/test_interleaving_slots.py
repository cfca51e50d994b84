"""What changes slots at once on a real PostgreSQL, in every order that can make a difference.

Whatever the order: no deadlock, nothing that contradicts itself, and one of the endings that the test names.
"""

from __future__ import annotations

import pytest

from contracts.orders import all_claimed, anyio_backend, arena, ended, endings, runs, samples, start
from piecework.store.items import Park
from piecework.store.verbs import retention
from piecework.testing.proof_calls import Later, together
from piecework.testing.rows import event, route, single, slot, transient, waits

__all__ = ["anyio_backend", "arena", "samples"]


# -- slots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        pytest.param(slot(), {"started | queued", "queued | started"}, id="serialized"),
        pytest.param(slot(capacity=0), {"started | dropped", "dropped | started"}, id="full"),
        pytest.param(transient(), {"started | started"}, id="transient"),
        pytest.param(single("reject"), {"started | rejected", "rejected | started"}, id="exclusive"),
        pytest.param(single("queue_single"), {"started | queued", "queued | started"}, id="queue_single"),
        pytest.param(single("replace"), {"started | replaced", "replaced | started"}, id="replace"),
        pytest.param(single("signal"), {"started | signalled", "signalled | started"}, id="signal"),
        pytest.param(single("drop"), {"started | dropped", "dropped | started"}, id="drop"),
    ],
)
async def test_two_events_on_a_new_slot(arena, to, wanted):
    """A slot admits no more than its mode allows, also when it is just being made."""

    async def setup(verbs):
        return [start(Later(verbs), to) for _ in range(2)]

    assert await endings(arena, setup, all_in_order) == wanted


async def all_in_order(end):
    """The order of admission is that of the places."""
    places = [run.place for run in await runs(end.verbs) if run.place is not None]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("on_busy", ["replace", "signal", "queue_single"])
async def test_two_events_on_a_busy_slot(arena, on_busy):
    """Of two events that find one run busy the second sees what the first did."""

    async def setup(verbs):
        to = single(on_busy)
        await verbs.running(to)
        return [start(Later(verbs), to) for _ in range(2)]

    word = {"replace": "replaced", "signal": "signalled", "queue_single": "queued"}[on_busy]
    assert await endings(arena, setup) == {f"{word} | {word}"}


async def test_three_events_on_a_new_slot(arena, samples):
    """Of three events on one new slot exactly one starts."""

    async def setup(verbs):
        return [start(Later(verbs), slot()) for _ in range(3)]

    seen = await endings(arena, setup, samples=samples)
    assert {tuple(sorted(word.split(" | "))) for word in seen} == {("queued", "queued", "started")}


async def test_one_event_id_twice(arena):
    """Of two events with one id one is the other's duplicate."""

    async def setup(verbs):
        return [Later(verbs).accept(event(event_id="e-1", routes=[route(slot(), run_id=name)])) for name in "ab"]

    async def check(end):
        first, second = (outcome for (outcome,) in end.outcomes)
        assert first.seq == second.seq
        assert first.dispatched[0].run_id == second.dispatched[0].run_id
        assert len(await runs(end.verbs)) == 1

    assert await endings(arena, setup, check) == {"started | duplicate", "duplicate | started"}


async def test_two_batches_of_events_in_opposite_order(arena):
    """Two batches with the same ids, slots and waiting runs, each in its own order, do not wait in a ring."""

    async def setup(verbs):
        for name in ("x", "y"):
            await verbs.paused(transient(name), f"{name}.paid")
        later = Later(verbs)
        one = [later.accept(event(f"{n}.paid", event_id=n, routes=[route(transient(n))])) for n in ("x", "y")]
        other = [later.accept(event(f"{n}.paid", event_id=n, routes=[route(transient(n))])) for n in ("y", "x")]
        return [together(*one), together(*other)]

    assert await endings(arena, setup) == {
        "resumed+started resumed+started | duplicate duplicate",
        "duplicate duplicate | resumed+started resumed+started",
    }


@pytest.mark.parametrize(
    "verb", ["settle", "end_told", "cleaned", "resume", "abort", "signal", "release", "append", "register"]
)
async def test_two_batches_of_one_verb_in_opposite_order(arena, verb):
    """Two batches about the same runs, each in its own order, do not wait in a ring."""

    async def setup(verbs):
        later = Later(verbs)
        taken = []
        for name in ("x", "y"):
            match verb:
                case "resume":
                    taken.append(await verbs.paused(transient(name)))
                case "cleaned":
                    taken.append(await ended(verbs, slot(name)))
                case "end_told":
                    taken.append(await ended(verbs, slot(name), telling=True))
                case _:
                    taken.append(await verbs.running(slot(name)))
        match verb:
            case "append":
                calls = [later.append(run, "line") for run in taken]
            case "register":
                calls = [later.register(run, waits(run.run_id)) for run in taken]
            case "resume" | "abort" | "signal":
                calls = [getattr(later, verb)(run.run_id) for run in taken]
            case _:
                calls = [getattr(later, verb)(run) for run in taken]
        return [together(*calls), together(*reversed(calls))]

    await endings(arena, setup)


async def test_two_batches_of_pauses_in_opposite_order(arena):
    """Two batches of pauses of the same runs do not wait in a ring, and repeat each other harmlessly."""

    async def setup(verbs):
        parking = [await verbs.running(transient(name, concurrency=1)) for name in ("x", "y")]
        calls = [Later(verbs).end_stage(run, Park(stage="b", waits=waits(run.run_id))) for run in parking]
        return [together(*calls), together(*reversed(calls))]

    assert await endings(arena, setup) == {"parked parked | parked parked"}


@pytest.mark.parametrize("to", [slot(), slot(capacity=0), single("replace"), single("queue_single")])
async def test_clean_slot_and_event(arena, to):
    """An event that comes while a slot is being freed starts a run, at once or with the slot's freeing."""

    async def setup(verbs):
        run = await ended(verbs, to)
        return [Later(verbs).cleaned(run), start(Later(verbs), to)]

    assert await endings(arena, setup, all_claimed) == {"0 | started", "1 | queued"}


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        pytest.param(slot(), {"completed | queued"}, id="serialized"),
        pytest.param(single("replace"), {"aborted | replaced", "completed | queued"}, id="replace"),
        pytest.param(single("signal"), {"completed | signalled", "completed | queued"}, id="signal"),
        pytest.param(single("reject"), {"completed | rejected", "completed | queued"}, id="reject"),
    ],
)
async def test_end_and_event(arena, to, wanted):
    """An event finds a run busy or closing, and nothing in between."""

    async def setup(verbs):
        run = await verbs.running(to)
        return [Later(verbs).settle(run), start(Later(verbs), to)]

    assert await endings(arena, setup) == wanted


async def test_pause_and_event(arena):
    """Where a pause gives up its place an event has it, at once or with the pause."""

    async def setup(verbs):
        to = transient(concurrency=1)
        run = await verbs.running(to)
        return [Later(verbs).end_stage(run, Park(stage="b")), start(Later(verbs), to)]

    assert await endings(arena, setup, all_claimed) == {"parked | started", "parked | queued"}


async def test_two_clean_runs_of_one_slot(arena):
    """Two that free places of one slot at once start two successors."""

    async def setup(verbs):
        to = transient(concurrency=2)
        gone = [await ended(verbs, to) for _ in range(2)]
        for _ in range(3):
            await verbs.start(to)
        return [Later(verbs).cleaned(run) for run in gone]

    async def check(end):
        assert len(await end.verbs.claim()) == 2

    assert await endings(arena, setup, check) == {"1 | 1"}


async def test_clean_slot_and_abort_of_its_next(arena):
    """A queued run that is aborted while its place becomes free starts never, and whoever comes after it does."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        queued = [await verbs.start(slot()) for _ in range(2)]
        return [Later(verbs).cleaned(run), Later(verbs).abort(queued[0].run_id)]

    async def check(end):
        assert len(await end.verbs.claim()) == 1

    assert await endings(arena, setup, check) == {"1 | ended"}


async def test_clean_slot_and_event_and_abort(arena, samples):
    """Three that change one slot at once."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        queued = await verbs.start(slot())
        later = Later(verbs)
        return [later.cleaned(run), start(later, slot()), later.abort(queued.run_id)]

    async def check(end):
        assert len(await end.verbs.claim()) == 1

    await endings(arena, setup, check, samples=samples)


async def test_higher_limit_and_clean_slot(arena):
    """Who raises a limit and who frees a place together start as many as there is room for."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        for _ in range(4):
            await verbs.start(slot())
        like = transient("any", concurrency=3)
        return [Later(verbs).raise_limit(like), Later(verbs).cleaned(run)]

    async def check(end):
        assert len(await end.verbs.claim()) == 3

    assert await endings(arena, setup, check) == {"2 | 1"}


async def test_empty_slot_forgotten_and_event(arena):
    """An event whose slot is being forgotten makes it again."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        await verbs.cleaned(run)
        return [Later(verbs).forget(retention.forget_slots), start(Later(verbs), slot())]

    async def check(end):
        found = await end.verbs.slot("a")
        assert found is not None
        assert found.live == 1

    assert {word.split(" | ")[1] for word in await endings(arena, setup, check)} == {"started"}


async def test_empty_slots_forgotten_and_two_events(arena, samples):
    """Two events whose slot is being forgotten share the one that is made."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        await verbs.cleaned(run)
        later = Later(verbs)
        return [later.forget(retention.forget_slots), start(later, slot()), start(later, slot())]

    seen = await endings(arena, setup, samples=samples)
    assert {word.split(" | ", 1)[1] for word in seen} == {"started | queued", "queued | started"}


async def test_fanout_over_two_slots_and_their_cleaning(arena):
    """An event that wakes runs of two slots and who frees both, in the other order, do not wait in a ring."""

    async def setup(verbs):
        x, y = transient("x"), transient("y")
        for to in (x, y):
            await verbs.paused(to)
        gone = [await ended(verbs, to) for to in (y, x)]
        return [Later(verbs).publish(), together(*(Later(verbs).cleaned(run) for run in gone))]

    assert await endings(arena, setup) == {"resumed+resumed | 0 0"}


async def test_empty_slot_forgotten_and_higher_limit(arena):
    """A slot that is being forgotten while its limit is raised does no harm."""

    async def setup(verbs):
        await verbs.end(await verbs.running(slot()))
        return [Later(verbs).forget(retention.forget_slots), Later(verbs).raise_limit(transient("any"))]

    assert await endings(arena, setup) == {"1 | 0"}
