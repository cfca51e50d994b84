"""Events, runs and their owners at once on a real PostgreSQL, in every order that can make a difference.

Whatever the order: no deadlock, nothing that contradicts itself, and one of the endings that the test names.
"""

from __future__ import annotations

import pytest

from contracts.orders import all_claimed, anyio_backend, arena, ended, endings, runs, samples, start
from piecework.clock import SECOND
from piecework.run.lifecycle import Status
from piecework.store.items import Continue, Park
from piecework.testing.proof_calls import Later
from piecework.testing.rows import job, node, slot, waits

__all__ = ["anyio_backend", "arena", "samples"]


# -- events and runs that wait ----------------------------------------------------------------------------------


async def test_event_and_pause(arena):
    """An event that comes while its run pauses wakes it, one way or the other."""

    async def setup(verbs):
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        later = Later(verbs)
        return [later.publish("order.paid"), later.end_stage(run, Park(stage="b"))]

    async def check(end):
        assert [run.status for run in await runs(end.verbs)] == [Status.RUNNING]

    assert await endings(arena, setup, check) == {"resumed | parked", "buffered | resumed"}


async def test_event_and_pause_that_registers(arena):
    """An event that comes while a run pauses for it either misses it, as one before it would, or wakes it."""

    async def setup(verbs):
        run = await verbs.running()
        later = Later(verbs)
        return [later.publish("order.paid"), later.end_stage(run, Park(stage="b", waits=waits(run.run_id)))]

    assert await endings(arena, setup) == {"nobody | parked", "resumed | parked"}


async def test_event_and_registration_and_pause(arena):
    """From the registration on no event is lost, and a pause beside one goes on at once."""

    async def setup(verbs):
        run = await verbs.running()
        later = Later(verbs)
        return [
            later.publish("order.paid"),
            later.register(run, waits(run.run_id)),
            later.end_stage(run, Park(stage="b")),
        ]

    assert await endings(arena, setup) == {
        "nobody | 1 | parked",
        "buffered | 1 | resumed",
        "resumed | 1 | parked",
        "nobody | STALE_EPOCH | parked",
    }


async def test_two_events_and_pause(arena, samples):
    """Of two events one wakes the run and the other is kept."""

    async def setup(verbs):
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        later = Later(verbs)
        return [later.publish(), later.publish(), later.end_stage(run, Park(stage="b"))]

    wanted = {"resumed | buffered | parked", "buffered | resumed | parked", "buffered | buffered | resumed"}
    seen = await endings(arena, setup, samples=samples)
    assert seen == wanted


async def test_resume_and_event(arena):
    """Of a resume and an event one wakes the run; the event, if it came second, is kept."""

    async def setup(verbs):
        run = await verbs.paused()
        return [Later(verbs).resume(run.run_id), Later(verbs).publish()]

    assert await endings(arena, setup) == {"woken | buffered", "INVALID_STATE | resumed"}


async def test_resume_and_abort(arena):
    """An abort always wins in the end; a resume before it is told so by the run's end, one after it by its error."""

    async def setup(verbs):
        run = await verbs.paused()
        return [Later(verbs).resume(run.run_id), Later(verbs).abort(run.run_id)]

    assert await endings(arena, setup) == {"woken | ended", "INVALID_STATE | ended"}


async def test_resume_and_deadline(arena):
    """Of a resume and a deadline one wakes the run."""

    async def setup(verbs):
        run = await verbs.paused(None, "order.paid", timeout_seconds=1)
        verbs.now += SECOND
        return [Later(verbs).resume(run.run_id), Later(verbs).due()]

    async def check(end):
        (run,) = await runs(end.verbs)
        assert run.resume_count == 1

    assert await endings(arena, setup, check) == {"woken | 0", "woken | 1", "INVALID_STATE | 1"}


async def test_event_and_deadline_and_abort(arena, samples):
    """Three that want one paused run: it is woken at most once, and ends."""

    async def setup(verbs):
        run = await verbs.paused(None, "order.paid", timeout_seconds=1)
        verbs.now += SECOND
        later = Later(verbs)
        return [later.publish(), later.due(), later.abort(run.run_id)]

    async def check(end):
        (run,) = await runs(end.verbs)
        assert (run.status, run.resume_count <= 1) == (Status.ABORTED, True)

    await endings(arena, setup, check, samples=samples)


async def test_abort_and_event(arena):
    """An event does not wake what is aborted before it."""

    async def setup(verbs):
        run = await verbs.paused()
        return [Later(verbs).abort(run.run_id), Later(verbs).publish()]

    assert await endings(arena, setup) == {"ended | nobody", "ended | resumed"}


async def test_signal_and_event(arena):
    """A signal and an event at one paused run do not undo each other."""

    async def setup(verbs):
        run = await verbs.paused()
        return [Later(verbs).signal(run.run_id), Later(verbs).publish()]

    async def check(end):
        (run,) = await runs(end.verbs)
        assert (run.signals, run.resume_count) == (1, 1)

    assert await endings(arena, setup, check) == {"stored | resumed", "live | resumed"}


async def test_unresume_and_event(arena):
    """An event never overtakes a resume that is to be tried again."""

    async def setup(verbs):
        run = await verbs.paused()
        await verbs.resume(run.run_id)
        (claimed,) = await verbs.claim()
        return [Later(verbs).unresume(claimed.run), Later(verbs).publish()]

    async def check(end):
        (run,) = await runs(end.verbs)
        assert run.expires_at is not None

    assert await endings(arena, setup, check) == {"1 | buffered"}


async def test_deadline_twice(arena):
    """Two nodes that see one deadline wake the run once."""

    async def setup(verbs):
        for _ in range(2):
            await verbs.paused(None, "order.paid", timeout_seconds=1)
        verbs.now += SECOND
        return [Later(verbs).due(), Later(verbs).due()]

    async def check(end):
        assert [run.resume_count for run in await runs(end.verbs)] == [1, 1]

    await endings(arena, setup, check)


async def test_signal_and_stage_end(arena):
    """A signal that a commit does not hold yet is answered by that commit, or waits for the next."""

    async def setup(verbs):
        run = await verbs.running()
        return [Later(verbs).signal(run.run_id), Later(verbs).end_stage(run, Continue(stage="b"))]

    async def check(end):
        ((signalled,), (progress,)) = end.outcomes
        (run,) = await runs(end.verbs)
        assert (run.signals, len(await end.verbs.signals(run.run_id))) == (1, 1)
        return "answered" if [number for number, _ in progress.signals] == [signalled.number] else "waits"

    assert await endings(arena, setup, check) == {"answered", "waits"}


async def test_signal_and_end(arena):
    """A run that ends takes no signal any more, and none is left."""

    async def setup(verbs):
        run = await verbs.running()
        return [Later(verbs).signal(run.run_id), Later(verbs).settle(run)]

    assert await endings(arena, setup) == {"live | completed", "INVALID_STATE | completed"}


# -- owners -----------------------------------------------------------------------------------------------------


async def test_two_claims(arena):
    """Two claims never get one run, and what neither gets is due still."""

    async def setup(verbs):
        for _ in range(3):
            await verbs.enqueue(job())
        return [Later(verbs).claim("node-1"), Later(verbs).claim("node-2")]

    async def check(end):
        taken = [entry.run.run_id for (claimed,) in end.outcomes for entry in claimed]
        taken += [entry.run.run_id for entry in await end.verbs.claim("node-3")]
        assert len(taken) == len(set(taken)) == 3

    assert await endings(arena, setup, check) >= {"3 runs | 0 runs", "0 runs | 3 runs"}


async def test_two_small_claims(arena):
    """Two claims that want two of three runs each leave none behind and share none."""

    async def setup(verbs):
        for space in ("one", "one", "two"):
            await verbs.enqueue(job(space=space))
        return [Later(verbs).claim("node-1", limit=2), Later(verbs).claim("node-2", limit=2)]

    async def check(end):
        taken = [entry.run.run_id for (claimed,) in end.outcomes for entry in claimed]
        taken += [entry.run.run_id for entry in await end.verbs.claim("node-3")]
        assert len(taken) == len(set(taken)) == 3

    await endings(arena, setup, check)


async def test_claim_and_event(arena):
    """What becomes due while a claim looks is found by that claim or by the next."""

    async def setup(verbs):
        await verbs.start(slot("x"))
        return [Later(verbs).claim(), start(Later(verbs), slot("y"))]

    assert await endings(arena, setup, all_claimed) == {"1 runs | started", "2 runs | started"}


async def test_claim_that_finds_nothing_and_event(arena):
    """A claim that finds nothing does not put a space to sleep beneath what is becoming due in it."""

    async def setup(verbs):
        await verbs.start(slot("x"))
        await verbs.claim("node-0")  # which leaves the space awake: it looked for more than there was
        return [Later(verbs).claim(), start(Later(verbs), slot("y"))]

    assert await endings(arena, setup, all_claimed) == {"0 runs | started", "1 runs | started"}


async def test_claim_and_two_events(arena, samples):
    """As before, with two that make something due."""

    async def setup(verbs):
        await verbs.start(slot("x"))
        later = Later(verbs)
        return [later.claim(), start(later, slot("y")), start(later, slot("z"))]

    await endings(arena, setup, all_claimed, samples=samples)


async def test_claim_and_clean_slot(arena):
    """A successor that becomes due while a claim looks is found by that claim or by the next."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        await verbs.start(slot())
        return [Later(verbs).claim("node-2"), Later(verbs).cleaned(run)]

    assert await endings(arena, setup, all_claimed) == {"0 runs | 1", "1 runs | 1"}


async def test_claim_and_abort(arena):
    """A due run that is aborted while it is claimed is ended by whoever has it, and by nobody else."""

    async def setup(verbs):
        result = await verbs.start(slot())
        return [Later(verbs).claim(), Later(verbs).abort(result.run_id)]

    async def check(end):
        (run,) = await runs(end.verbs)
        assert (run.owner is None) == (run.status == Status.ABORTED)

    assert await endings(arena, setup, check) == {"1 runs | told", "0 runs | ended"}


async def test_claim_and_resume(arena):
    """A run that is woken while a claim looks is found by that claim or by the next."""

    async def setup(verbs):
        run = await verbs.paused()
        return [Later(verbs).claim(), Later(verbs).resume(run.run_id)]

    assert await endings(arena, setup, all_claimed) == {"0 runs | woken", "1 runs | woken"}


async def test_claim_and_enqueue_in_a_new_space(arena, samples):
    """A space's first run is found."""

    async def setup(verbs):
        return [Later(verbs).claim(), Later(verbs).enqueue(job(space="new")), Later(verbs).enqueue(job(space="new"))]

    await endings(arena, setup, all_claimed, samples=samples)


@pytest.mark.parametrize("then", [Continue(stage="b"), Park(stage="b")])
async def test_take_over_and_stage_end(arena, then):
    """Of an owner that was thought dead and who takes its run over, one writes and the other is refused."""

    async def setup(verbs):
        run = await verbs.running()
        return [Later(verbs).claim("node-2", orphans=True), Later(verbs).end_stage(run, then)]

    word = "continued" if isinstance(then, Continue) else "parked"
    wanted = {"1 runs | STALE_EPOCH", f"{1 if word == 'continued' else 0} runs | {word}"}
    assert await endings(arena, setup) == wanted


@pytest.mark.parametrize("write", ["settle", "release", "append"])
async def test_take_over_and_other_writes(arena, write):
    """A superseded owner's write is refused, one before it stands."""

    async def setup(verbs):
        run = await verbs.running()
        call = Later(verbs).append(run, "line") if write == "append" else getattr(Later(verbs), write)(run)
        return [Later(verbs).claim("node-2", orphans=True), call]

    seen = await endings(arena, setup)
    assert "1 runs | STALE_EPOCH" in seen
    assert len(seen) == 2


async def test_two_take_overs(arena):
    """Of two nodes that take over what a dead one had each run has one."""

    async def setup(verbs):
        for name in ("node-2", "node-3"):
            await verbs.running()
            await verbs.renew(node(name))
        return [Later(verbs).claim(name, orphans=True) for name in ("node-2", "node-3")]

    async def check(end):
        taken = [entry.run.run_id for (claimed,) in end.outcomes for entry in claimed]
        assert len(taken) == len(set(taken)) == 2

    assert await endings(arena, setup, check) == {"2 runs | 0 runs", "0 runs | 2 runs"}


async def test_take_over_and_cleaning(arena):
    """An ended run is cleaned once, by its owner or by whoever takes it over."""

    async def setup(verbs):
        run = await ended(verbs, slot())
        await verbs.start(slot())
        return [Later(verbs).claim("node-2", orphans=True), Later(verbs).cleaned(run)]

    assert await endings(arena, setup) == {"1 runs | STALE_EPOCH", "0 runs | 1"}


async def test_abort_and_stage_end(arena):
    """An abort is seen by the commit after it, or asked of the owner."""

    async def setup(verbs):
        run = await verbs.running()
        return [Later(verbs).abort(run.run_id), Later(verbs).end_stage(run, Park(stage="b"))]

    assert await endings(arena, setup) == {"told | aborted", "ended | parked"}


async def test_abort_and_end(arena):
    """An abort that was promised wins over whatever the run came to; one that comes late says so."""

    async def setup(verbs):
        run = await verbs.running()
        return [Later(verbs).abort(run.run_id), Later(verbs).settle(run)]

    assert await endings(arena, setup) == {"told | aborted", "late | completed"}


async def test_one_occurrence_twice(arena):
    """What may happen once becomes one run."""

    async def setup(verbs):
        return [Later(verbs).enqueue(job(occurrence="daily 2026-01-01")) for _ in range(2)]

    async def check(end):
        first, second = (outcome for (outcome,) in end.outcomes)
        assert [run.run_id for run in await runs(end.verbs)] == [first.run_id] == [second.run_id]

    assert await endings(arena, setup, check) == {"queued | duplicate", "duplicate | queued"}


async def test_one_run_id_twice(arena):
    """A run that is enqueued twice, because a reply was late, is one run."""

    async def setup(verbs):
        item = job()
        return [Later(verbs).enqueue(item), Later(verbs).enqueue(item)]

    assert await endings(arena, setup) == {"queued | duplicate", "duplicate | queued"}


async def test_take_over_and_abort(arena):
    """A run that is aborted while it is taken over is told to its new owner, or known to it."""

    async def setup(verbs):
        run = await verbs.running()
        return [Later(verbs).claim("node-2", orphans=True), Later(verbs).abort(run.run_id)]

    async def check(end):
        (run,) = await runs(end.verbs)
        assert (run.owner, run.abort_reason is not None) == ("node-2", True)

    assert await endings(arena, setup, check) == {"1 runs | told"}
