"""What a store promises about an event that more runs wait for than one commit wakes: each of them once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from piecework.ids import new_id
from piecework.run import folds
from piecework.run.lifecycle import Status
from piecework.store.items import Park
from piecework.store.records import Fanout
from piecework.store.verbs import runs
from piecework.store.verbs.accept import accept
from piecework.store.verbs.waiting import FANOUT_LIMIT
from piecework.testing.rows import event, route, slot, stage_end, waits
from piecework.testing.verbs import decide_accept

if TYPE_CHECKING:
    from piecework.store.items import Accepted, DispatchResult
    from piecework.store.records import Wait
    from piecework.testing.verbs import Verbs

_MANY = 2 * FANOUT_LIMIT + 200


class FanoutPromises:
    """`accept` and `continue_fanout`."""

    async def test_a_wide_event_wakes_in_parts(self, verbs: Verbs) -> None:
        """A commit wakes so many and says that there are more; the others follow, each once, and none is left."""
        ids = await _parked(verbs, _MANY)
        first = await verbs.accept(event("order.paid"))
        assert (first.more, len(first.dispatched)) == (True, FANOUT_LIMIT)
        parts = [await verbs.continue_fanout(first.seq) for _ in range(2)]
        assert [(part.more, len(part.dispatched)) for part in parts] == [(True, FANOUT_LIMIT), (False, 200)]
        woken = [*first.dispatched, *(result for part in parts for result in part.dispatched)]
        assert _outcomes(woken) == {"resumed"}
        assert sorted(result.run_id or "" for result in woken) == sorted(ids)
        assert await _fanouts(verbs) == []

    async def test_a_wide_event_that_is_repeated(self, verbs: Verbs) -> None:
        """Going on when all is done does nothing, and the event's duplicate names everybody that was woken."""
        ids = await _parked(verbs, FANOUT_LIMIT + 20)
        first = await verbs.accept(event("order.paid", event_id="e-1"))
        await verbs.continue_fanout(first.seq)
        again = await verbs.continue_fanout(first.seq)
        assert (again.more, again.dispatched) == (False, ())
        duplicate = await verbs.accept(event("order.paid", event_id="e-1"))
        assert sorted(result.run_id or "" for result in duplicate.dispatched) == sorted(ids)
        assert {run.resume_count for run in await verbs.runs(*ids)} == {1}

    async def test_a_part_whose_reply_was_lost(self, verbs: Verbs) -> None:
        """The same part asked for again is the next part: nobody is woken twice."""
        ids = await _parked(verbs, _MANY)
        first = await verbs.accept(event("order.paid"))
        while (await verbs.continue_fanout(first.seq)).more:
            """What came back is lost."""
        assert {run.resume_count for run in await verbs.runs(*ids)} == {1}

    async def test_two_nodes_go_on_at_once(self, verbs: Verbs) -> None:
        """Two nodes that go on with one event share its parts, and wake each run once."""
        ids = await _parked(verbs, _MANY)
        first = await verbs.accept(event("order.paid"))
        parts = await asyncio.gather(*(verbs.continue_fanout(first.seq) for _ in range(4)))
        while (await verbs.continue_fanout(first.seq)).more:
            """Whoever shared a commit has to ask again."""
        assert all(part.more or len(part.dispatched) <= FANOUT_LIMIT for part in parts)
        assert {run.resume_count for run in await verbs.runs(*ids)} == {1}
        assert len(await verbs.deliveries(first.seq)) == len(ids)

    async def test_two_waits_of_one_run_in_two_parts(self, verbs: Verbs) -> None:
        """A run whose second wait comes up in a later part is not met again there."""
        first_wait, last_wait = "0" * 32, "f" * 32
        run = await verbs.running()
        new = tuple(_at(wait_id, run.run_id) for wait_id in (first_wait, last_wait))
        await verbs.end_stage(run, Park(stage="b", waits=new))
        await _parked(verbs, FANOUT_LIMIT)
        first = await verbs.accept(event("order.paid"))
        rest = await verbs.continue_fanout(first.seq)
        assert run.run_id in {result.run_id for result in first.dispatched}
        assert run.run_id not in {result.run_id for result in rest.dispatched}
        (claimed,) = [entry for entry in await verbs.claim(limit=1000) if entry.run.run_id == run.run_id]
        assert (await verbs.end_stage(claimed.run, Park(stage="c"))).outcome == "parked"

    async def test_a_run_that_pauses_again_is_not_met_again(self, verbs: Verbs) -> None:
        """Who was woken, and waits for the same again behind the cursor, has had this event."""
        run = await verbs.running()
        await verbs.end_stage(run, Park(stage="b", waits=(_at("0" * 32, run.run_id),)))
        await _parked(verbs, FANOUT_LIMIT)
        first = await verbs.accept(event("order.paid"))
        (claimed,) = [entry for entry in await verbs.claim(limit=1000) if entry.run.run_id == run.run_id]
        await verbs.end_stage(claimed.run, Park(stage="c", waits=(_at("f" * 32, run.run_id),)))
        rest = await verbs.continue_fanout(first.seq)
        assert run.run_id not in {result.run_id for result in rest.dispatched}
        assert (await verbs.run(run.run_id)).status == Status.PAUSED

    async def test_a_run_that_registers_meanwhile(self, verbs: Verbs) -> None:
        """A wait that is registered behind the cursor while an event fans out is hit by it."""
        late = await verbs.running()
        await _parked(verbs, FANOUT_LIMIT + 1)
        first = await verbs.accept(event("order.paid"))
        await verbs.register(late, (_at("f" * 32, late.run_id),))
        rest = await verbs.continue_fanout(first.seq)
        assert [(r.run_id, r.outcome) for r in rest.dispatched if r.run_id == late.run_id] == [
            (late.run_id, "buffered")
        ]

    async def test_a_later_event_may_overtake(self, verbs: Verbs) -> None:
        """A run that is not reached yet is woken by a later event; the earlier one is kept for its next pause."""
        run = await verbs.running()
        await verbs.end_stage(run, Park(stage="b", waits=(*_both(run.run_id),)))
        await _parked(verbs, FANOUT_LIMIT)
        first = await verbs.accept(event("order.paid", {"n": 1}))
        assert first.more
        assert await verbs.publish("order.lost", n=2) == ["resumed"]
        rest = await verbs.continue_fanout(first.seq)
        assert [(r.run_id, r.outcome) for r in rest.dispatched] == [(run.run_id, "buffered")]
        (claimed,) = [entry for entry in await verbs.claim(limit=1000) if entry.run.run_id == run.run_id]
        progress = await verbs.end_stage(claimed.run, Park(stage="c"))
        assert (progress.outcome, b'"n":1' in (progress.patch or b"")) == ("resumed", True)

    async def test_a_run_that_ended_meanwhile(self, verbs: Verbs) -> None:
        """Who has ended or waits no more when its part comes is passed over."""
        ids = await _parked(verbs, FANOUT_LIMIT + 2)
        first = await verbs.accept(event("order.paid"))
        left = sorted(set(ids) - {result.run_id for result in first.dispatched})
        await verbs.abort(left[0])
        rest = await verbs.continue_fanout(first.seq)
        assert [result.run_id for result in rest.dispatched] == left[1:]

    async def test_a_node_that_dies_between_two_parts(self, verbs: Verbs) -> None:
        """Where an event had come stands in the store: whoever looks next finds it, and goes on."""
        await _parked(verbs, FANOUT_LIMIT + 5)
        first = await verbs.accept(event("order.paid"))
        (left,) = await _fanouts(verbs)
        assert left.event_seq == first.seq
        rest = await verbs.continue_fanout(left.event_seq)
        assert (len(rest.dispatched), await _fanouts(verbs)) == (5, [])

    @pytest.mark.parametrize("number", [FANOUT_LIMIT - 1, FANOUT_LIMIT])
    async def test_an_event_that_just_fits(self, verbs: Verbs, number: int) -> None:
        """As many as one commit wakes are woken by one commit."""
        await _parked(verbs, number)
        outcome = await verbs.accept(event("order.paid"))
        assert (outcome.more, len(outcome.dispatched)) == (False, number)

    async def test_a_wide_event_that_few_match(self, verbs: Verbs) -> None:
        """Waits that are looked at and not met cost parts, not wakes."""
        await _parked(verbs, FANOUT_LIMIT + 5, id__gt=7)
        one = await _parked(verbs, 1, id__gt=3)
        outcome = await verbs.accept(event("order.paid", {"id": 5}))
        results = list(outcome.dispatched)
        if outcome.more:
            results += (await verbs.continue_fanout(outcome.seq)).dispatched
        assert [result.run_id for result in results] == one
        assert await _fanouts(verbs) == []

    async def test_two_wide_events(self, verbs: Verbs) -> None:
        """Two events that fan out at once each come to their end; a run is woken by one and keeps the other."""
        ids = await _parked(verbs, FANOUT_LIMIT + 30)
        outcomes: list[Accepted] = await verbs.together(
            accept, [event("order.paid", {"n": n}) for n in (1, 2)], decide_accept
        )
        told: list[list[DispatchResult]] = []
        for outcome in outcomes:
            parts = [await verbs.continue_fanout(outcome.seq)]
            while parts[-1].more:
                parts.append(await verbs.continue_fanout(outcome.seq))
            told.append([*outcome.dispatched, *(result for part in parts for result in part.dispatched)])
        assert [sorted(result.run_id or "" for result in each) for each in told] == [sorted(ids)] * 2
        assert {run.resume_count for run in await verbs.runs(*ids)} == {1}


async def _parked(verbs: Verbs, number: int, **clauses: Any) -> list[str]:
    """Runs that wait for one event type, made in few commits; each has a slot of its own."""
    keys = [new_id() for _ in range(number)]
    batch = [event("begin", routes=[route(slot(key), run_id=key)]) for key in keys]
    await verbs.together(accept, batch, decide_accept)
    claimed = {entry.run.run_id: entry.run for entry in await verbs.claim(limit=number + 1)}
    ends = [stage_end(claimed[key], Park(stage="b", waits=waits(key, "order.paid", **clauses))) for key in keys]
    await verbs.together(runs.commit_stage, ends, folds.decide_commit_stage)
    return keys


def _at(wait_id: str, run_id: str) -> Wait:
    """A wait at a place of its own in the order of waits."""
    (wait,) = waits(run_id, "order.paid", wait_id=wait_id)
    return wait


def _both(run_id: str) -> tuple[Wait, ...]:
    """Waits of which the one for the wide event is the last of all."""
    (lost,) = waits(run_id, "order.lost")
    return (_at("f" * 32, run_id), lost)


def _outcomes(results: list[DispatchResult]) -> set[str]:
    return {result.outcome for result in results}


async def _fanouts(verbs: Verbs) -> list[Fanout]:
    rows: list[Fanout] = await verbs.store.read("open_fanouts", {"limit": 100}, Fanout)
    return rows
