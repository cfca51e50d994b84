"""What a store promises about old history: it goes in small batches, and nothing that anybody needs goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from piecework.clock import SECOND
from piecework.run.lifecycle import Status
from piecework.store.items import Continue, Park
from piecework.store.records import EventRow, Fanout
from piecework.store.verbs.retention import forget_events, forget_ids, forget_runs, forget_slots
from piecework.store.verbs.waiting import FANOUT_LIMIT
from piecework.testing.rows import event, job, piece_end, route, single, slot, waits

if TYPE_CHECKING:
    from piecework.store.records import Run
    from piecework.testing.verbs import Verbs

_LATER = 10**12


class RetentionPromises:
    """`forget_runs`, `forget_events`, `forget_ids`, `forget_slots`."""

    async def test_ended_runs_go_with_all_that_is_theirs(self, verbs: Verbs) -> None:
        """A run that ended long enough ago goes, with its values and its timeline."""
        run = await verbs.running()
        await verbs.end_stage(run, Continue(stage="b"), state=b'{"n":1}')
        await verbs.end(await verbs.run(run.run_id))
        verbs.now += SECOND
        assert [await verbs.forget(forget_runs), await verbs.forget(forget_runs)] == [1, 0]
        assert (await verbs.runs(run.run_id), await verbs.values(run.run_id), await verbs.timeline(run.run_id)) == (
            [],
            {},
            [],
        )

    async def test_runs_that_ended_later_stay(self, verbs: Verbs) -> None:
        """What counts is when a run ended, however long ago it was made."""
        old, late = await verbs.running(), await verbs.running()
        await verbs.end(old)
        verbs.now += SECOND
        await verbs.end(late)
        assert await verbs.forget(forget_runs) == 1
        assert [run.run_id for run in await verbs.runs(old.run_id, late.run_id)] == [late.run_id]

    async def test_runs_that_have_not_ended_stay(self, verbs: Verbs) -> None:
        """Whatever waits, runs, pauses or is being cleaned up is no history."""
        left = await _living(verbs)
        verbs.now += _LATER
        assert await verbs.forget(forget_runs) == 0
        assert await verbs.runs(*(run.run_id for run in left)) == left

    async def test_updates_of_pieces_stay(self, verbs: Verbs) -> None:
        """A piece keeps its own history, however old."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run))
        verbs.now += _LATER
        assert await verbs.forget(forget_runs) == 0
        assert len(await verbs.runs(run.run_id)) == 1

    async def test_runs_go_in_small_batches(self, verbs: Verbs) -> None:
        """Each batch is as large as it was asked to be, the oldest first, until nothing is left."""
        for number in range(5):
            await verbs.enqueue(job(f"job-{number}"))
            verbs.now += 1
        for entry in await verbs.claim():
            await verbs.end(entry.run)
        verbs.now += 1
        assert await verbs.forget(forget_runs, limit=2) == 2
        assert [run.run_id for run in await verbs.runs(*(f"job-{n}" for n in range(5)))] == ["job-2", "job-3", "job-4"]
        assert [await verbs.forget(forget_runs, limit=2) for _ in range(3)] == [2, 1, 0]

    async def test_an_id_that_was_forgotten_may_come_again(self, verbs: Verbs) -> None:
        """After its time an event id is no duplicate any more; a younger one still is."""
        first = await verbs.accept(event(event_id="e-1", accepted_at=verbs.now))
        verbs.now += SECOND
        await verbs.accept(event(event_id="e-2", accepted_at=verbs.now))
        assert [await verbs.forget(forget_ids), await verbs.forget(forget_ids)] == [1, 0]
        again = await verbs.accept(event(event_id="e-1", accepted_at=verbs.now, routes=[route(slot())]))
        assert (again.duplicate, again.seq > first.seq, again.dispatched[0].outcome) == (False, True, "started")
        assert (await verbs.accept(event(event_id="e-2"))).duplicate

    async def test_the_id_of_a_living_runs_event_stays(self, verbs: Verbs) -> None:
        """As long as a run has not ended it is told which event it was started by."""
        outcome = await verbs.accept(event(event_id="e-1", routes=[route(slot())]))
        verbs.now += _LATER
        assert await verbs.forget(forget_ids) == 0
        (claimed,) = await verbs.claim()
        assert claimed.event is not None
        assert claimed.event.event_id == "e-1"
        await verbs.end(claimed.run)
        verbs.now += _LATER
        assert await verbs.forget(forget_ids) == 1
        assert [row.event_id for row in await _events(verbs, outcome.seq)] == [None]

    async def test_events_go_when_their_ids_have(self, verbs: Verbs) -> None:
        """An event that may still have duplicates stays; then it goes, with what became of it."""
        outcome = await verbs.accept(event(routes=[route(single("drop"))]))
        (claimed,) = await verbs.claim()
        await verbs.end(claimed.run)
        verbs.now += SECOND
        assert await verbs.forget(forget_events) == 0
        await verbs.forget(forget_ids)
        assert [await verbs.forget(forget_events), await verbs.forget(forget_events)] == [1, 0]
        assert (await _events(verbs, outcome.seq), await verbs.deliveries(outcome.seq)) == ([], [])

    async def test_events_go_in_small_batches(self, verbs: Verbs) -> None:
        """Ids and events go so many at a time."""
        for _ in range(5):
            await verbs.accept(event())
        verbs.now += 1
        assert [await verbs.forget(forget_ids, limit=2) for _ in range(4)] == [2, 2, 1, 0]
        assert [await verbs.forget(forget_events, limit=2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_events_of_living_runs_stay(self, verbs: Verbs) -> None:
        """A run that has not ended is handed its event whenever it is claimed, however old that is."""
        left = await _living(verbs)
        verbs.now += _LATER
        await verbs.forget(forget_ids)
        await verbs.forget(forget_events)
        unended = [run for run in left if run.ended_at is None and run.event_seq is not None]
        assert len(unended) == 4
        rows = await _events(verbs, *(run.event_seq for run in unended if run.event_seq is not None))
        assert len(rows) == 4

    async def test_events_that_wait_for_their_workflow_stay(self, verbs: Verbs) -> None:
        """An event that nobody could decide yet is decided as ever when somebody can."""
        await verbs.register_routes("order.placed")
        seq = (await verbs.accept(event())).seq
        verbs.now += _LATER
        await verbs.forget(forget_ids)
        assert await verbs.forget(forget_events) == 0
        assert (await verbs.dispatch(seq, route(slot()))).decided

    async def test_events_that_fan_out_stay(self, verbs: Verbs) -> None:
        """An event on its way to many runs stays until it has reached the last."""
        run = await verbs.running()
        new = tuple(wait for _ in range(FANOUT_LIMIT + 1) for wait in waits(run.run_id, id__gt=100))
        await verbs.register(run, new)
        outcome = await verbs.accept(event("order.paid", {"id": 1}))
        assert outcome.more
        verbs.now += _LATER
        await verbs.forget(forget_ids)
        assert await verbs.forget(forget_events) == 0
        assert not (await verbs.continue_fanout(outcome.seq)).more
        rows: list[Fanout] = await verbs.store.read("open_fanouts", {"limit": 1}, Fanout)
        await verbs.forget(forget_ids)
        assert (rows, await verbs.forget(forget_events)) == ([], 1)

    async def test_what_is_kept_for_a_run_needs_no_event(self, verbs: Verbs) -> None:
        """An event that is kept for a run's next pause is kept whole: it wakes the run when the event has gone."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        outcome = await verbs.accept(event("order.paid", {"n": 1}))
        verbs.now += _LATER
        await verbs.forget(forget_ids)
        await verbs.forget(forget_events)
        assert await _events(verbs, outcome.seq) == []
        progress = await verbs.end_stage(run, Park(stage="b"))
        assert (progress.outcome, b'"n":1' in (progress.patch or b"")) == ("resumed", True)

    async def test_empty_slots_go(self, verbs: Verbs) -> None:
        """A slot that nobody is in goes; the next event makes it anew."""
        run = await verbs.running(slot("a"))
        await verbs.end(run)
        assert [await verbs.forget(forget_slots), await verbs.forget(forget_slots)] == [1, 0]
        assert await verbs.slot("a") is None
        assert (await verbs.start(slot("a"))).outcome == "started"

    async def test_slots_with_somebody_in_stay(self, verbs: Verbs) -> None:
        """Whoever waits, runs, pauses or is being cleaned up keeps the slot."""
        left = await _living(verbs)
        before = [await verbs.slot(run.slot_key) for run in left if run.slot_key is not None]
        await verbs.forget(forget_slots)
        assert [await verbs.slot(run.slot_key) for run in left if run.slot_key is not None] == before
        assert None not in before

    async def test_slots_go_in_small_batches(self, verbs: Verbs) -> None:
        """Slots go so many at a time, past those that stay."""
        await verbs.running(slot("stays"))
        for number in range(5):
            await verbs.end(await verbs.running(slot(f"goes-{number}")))
        counts = [await verbs.forget(forget_slots, limit=2) for _ in range(4)]
        assert counts == [2, 2, 1, 0]
        assert await verbs.slot("stays") is not None

    @pytest.mark.parametrize("end", ["completed", "aborted"])
    async def test_all_that_lived_goes_on(self, verbs: Verbs, end: str) -> None:
        """When all history has gone, everything that was there comes to its end as if nothing had happened."""
        left = await _living(verbs)
        verbs.now += _LATER
        for verb in (forget_runs, forget_ids, forget_events, forget_slots):
            await verbs.forget(verb)
        for run in await verbs.runs(*(run.run_id for run in left)):
            if end == "aborted" and run.ended_at is None:
                await verbs.abort(run.run_id)
            elif run.status == Status.PAUSED:
                await verbs.resume(run.run_id)
        held = [run for run in await verbs.runs(*(run.run_id for run in left)) if run.owner is not None]
        while held:
            for run in held:
                await verbs.end(run)
            held = [entry.run for entry in await verbs.claim()]
        ended = await verbs.runs(*(run.run_id for run in left))
        assert [bool(run.cleaned) for run in ended] == [True] * len(left)


async def _living(verbs: Verbs) -> list[Run]:
    """A running run with one that waits behind it, a paused one, a settled one, a due one and a due job."""
    running = await verbs.running(slot("one"))
    queued = await verbs.start(slot("one"))
    paused = await verbs.paused(slot("two"))
    settled = await verbs.running(slot("three"))
    await verbs.settle(settled)
    due = await verbs.start(slot("four"))
    late = await verbs.enqueue(job(due_at=verbs.now + 1))
    ids = [running.run_id, queued.run_id, paused.run_id, settled.run_id, due.run_id, late.run_id]
    return await verbs.runs(*(run_id or "" for run_id in ids))


async def _events(verbs: Verbs, *seqs: int) -> list[EventRow]:
    rows: list[EventRow] = await verbs.store.read("events_by_seq", {"seqs": list(seqs)}, EventRow)
    return rows
