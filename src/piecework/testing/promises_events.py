"""What a store promises about events: kept once, decided in order, together with everything that follows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec.structs import replace

from piecework.errors import ConflictError
from piecework.ids import new_id
from piecework.run.folds import decide_enqueue
from piecework.run.lifecycle import Status
from piecework.store.contract import Failure
from piecework.store.records import EventRow
from piecework.store.verbs.accept import accept
from piecework.store.verbs.runs import enqueue
from piecework.testing.verbs import decide_accept, event, job, refusing, route, slot, transient

if TYPE_CHECKING:
    from piecework.store.items import Accepted
    from piecework.testing.verbs import Verbs


class EventPromises:
    """`accept` and `enqueue`."""

    async def test_an_event_that_came_by_too_many_runs_starts_none(self, verbs: Verbs) -> None:
        """An event of 31 hops starts a run, which has its hops; one of 32 is rejected, reason loop."""
        for hops, outcome, reason in ((31, "started", None), (32, "rejected", "loop")):
            item = event(routes=[route(slot(f"key {hops}"))])
            answer = await verbs.accept(replace(item, event=replace(item.event, hops=hops)))
            (result,) = answer.dispatched
            assert (result.outcome, result.reason) == (outcome, reason)
            if result.run_id is not None:
                assert (await verbs.run(result.run_id)).hops == hops

    async def test_accept_starts_a_run(self, verbs: Verbs) -> None:
        """An event starts a run at each trigger that it matches; the run is due at once."""
        result = await verbs.start(slot())
        run = await verbs.run(result.run_id or "")
        assert result.outcome == "started"
        assert (run.status, run.due_at, run.created_at) == (Status.QUEUED, verbs.now, verbs.now)

    async def test_accept_keeps_the_event(self, verbs: Verbs) -> None:
        """What was published is kept byte for byte, with its order of acceptance."""
        item = event("order.placed", {"größe": [1, 2.5, None, "\x00 ok"]}, space="acme")
        outcome = await verbs.accept(item)
        rows: list[EventRow] = await verbs.store.read("events_by_seq", {"seqs": [outcome.seq]}, EventRow)
        assert (rows[0].payload, rows[0].space) == (item.event.payload, "acme")

    async def test_accept_without_triggers(self, verbs: Verbs) -> None:
        """An event that nobody asked for is accepted all the same."""
        outcome = await verbs.accept(event())
        assert (outcome.duplicate, outcome.dispatched) == (False, ())

    async def test_accept_again_is_a_duplicate(self, verbs: Verbs) -> None:
        """An event id that is there already starts nothing; the answer names the first one's run."""
        first = await verbs.accept(event(event_id="e-1", routes=[route(slot())]))
        again = await verbs.accept(event(event_id="e-1", routes=[route(slot())]))
        assert again.duplicate
        assert [(r.outcome, r.reason, r.run_id) for r in again.dispatched] == [
            ("duplicate", "started", first.dispatched[0].run_id)
        ]

    async def test_accept_one_id_twice_in_a_batch(self, verbs: Verbs) -> None:
        """Of two events with one id in one batch the first counts, the second is its duplicate."""
        batch = [event(event_id="e-1", payload={"n": n}, routes=[route(slot())]) for n in (1, 2)]
        first, second = await verbs.together(accept, batch, decide_accept)
        rows: list[EventRow] = await verbs.store.read("events_by_id", {"ids": ["e-1"]}, EventRow)
        assert (first.duplicate, second.duplicate) == (False, True)
        assert second.dispatched[0].run_id == first.dispatched[0].run_id
        assert msgspec.json.decode(rows[0].payload) == {"n": 1}

    async def test_accept_one_slot_twice_in_a_batch(self, verbs: Verbs) -> None:
        """The second of two events on one slot sees what the first did."""
        batch = [event(routes=[route(slot(capacity=1))]) for _ in range(3)]
        outcomes: list[Accepted] = await verbs.together(accept, batch, decide_accept)
        assert [(o.dispatched[0].outcome, o.dispatched[0].reason) for o in outcomes] == [
            ("started", None),
            ("queued", None),
            ("dropped", "queue_full"),
        ]

    async def test_accept_together_from_many_callers(self, verbs: Verbs) -> None:
        """However many callers publish at once, a slot never admits more than its mode allows."""
        room = transient(concurrency=3, capacity=4)
        outcomes = await asyncio.gather(*(verbs.start(room) for _ in range(20)))
        counted = sorted(outcome.outcome for outcome in outcomes)
        assert counted == ["dropped"] * 13 + ["queued"] * 4 + ["started"] * 3

    async def test_accept_two_triggers_of_one_event(self, verbs: Verbs) -> None:
        """One event may start runs at several triggers, each decided for itself."""
        item = event(routes=[route(slot("a")), route(slot("a"), trigger="other"), route(slot("b"))])
        outcome = await verbs.accept(item)
        assert [result.outcome for result in outcome.dispatched] == ["started", "queued", "started"]

    async def test_accept_queues_in_order_of_arrival(self, verbs: Verbs) -> None:
        """Events that arrive together start in the order in which they came, whatever their ids."""
        batch = [event(event_id=name, routes=[route(slot())]) for name in ("z", "m", "a", "q")]
        outcomes: list[Accepted] = await verbs.together(accept, batch, decide_accept)
        started = []
        for _ in batch:
            (claimed,) = await verbs.claim()
            started.append(claimed.run.run_id)
            await verbs.settle(claimed.run)
            await verbs.cleaned(claimed.run)
        assert started == [outcome.dispatched[0].run_id for outcome in outcomes]

    async def test_accept_order_survives_a_duplicate(self, verbs: Verbs) -> None:
        """A duplicate behind another event does not let that one overtake the first."""
        ids = ["z", "m", "z"]
        batch = [event(event_id=name, routes=[route(slot())]) for name in ids]
        outcomes: list[Accepted] = await verbs.together(accept, batch, decide_accept)
        assert [o.dispatched[0].outcome for o in outcomes] == ["started", "queued", "duplicate"]

    async def test_accept_a_bad_item_leaves_its_neighbours_alone(self, verbs: Verbs) -> None:
        """An event whose decision fails is refused alone; the others of its batch are accepted."""
        batch = [event(event_id=name, routes=[route(slot(name))]) for name in ("e-1", "e-2", "e-3")]
        first, second, third = await verbs.together(accept, batch, refusing("e-2"))
        assert isinstance(second, Failure)
        assert (first.dispatched[0].outcome, third.dispatched[0].outcome) == ("started", "started")

    async def test_accept_a_refused_event_can_come_again(self, verbs: Verbs) -> None:
        """Nothing of a refused event is stored, so publishing it again is no duplicate."""
        with pytest.raises(ConflictError):
            await verbs.do(accept, event(event_id="e-2"), refusing("e-2"))
        again = await verbs.accept(event(event_id="e-2", routes=[route(slot())]))
        assert (again.duplicate, again.dispatched[0].outcome) == (False, "started")

    async def test_accept_takes_the_newest_numbers(self, verbs: Verbs) -> None:
        """The numbers of a workflow's newest registration hold for its next event."""
        assert (await verbs.start(slot(capacity=0))).outcome == "started"
        assert (await verbs.start(slot(capacity=0))).outcome == "dropped"
        assert (await verbs.start(slot(capacity=1))).outcome == "queued"

    async def test_accept_sixteen_mebibytes(self, verbs: Verbs) -> None:
        """A payload of 16 MiB comes back as it was."""
        item = event(payload={"text": "x" * (16_777_216 - 20)}, routes=[route(slot())])
        await verbs.accept(item)
        (claimed,) = await verbs.claim()
        assert claimed.event is not None
        assert claimed.event.payload == item.event.payload

    @pytest.mark.parametrize("text", ["'; DROP TABLE runs; --", "%_\\", "\u202e\U0001f4a5é", "a" * 512, '{"a":1}'])
    async def test_hostile_names(self, verbs: Verbs, text: str) -> None:
        """Any acceptable text may be an id, a type, a key or a space."""
        result = await verbs.accept(event(text, event_id=text, space=text, routes=[route(slot(text), run_id=text)]))
        (claimed,) = await verbs.claim()
        assert result.event_id == text
        assert (claimed.run.run_id, claimed.run.space, claimed.run.slot_key) == (text, text, text)

    async def test_enqueue_makes_a_run(self, verbs: Verbs) -> None:
        """A run that no event asked for is due at once and is handed its arguments."""
        outcome = await verbs.enqueue(job(args=b'{"limit":5}'))
        (claimed,) = await verbs.claim()
        assert claimed.run.run_id == outcome.run_id
        assert claimed.values["args"] == b'{"limit":5}'

    async def test_enqueue_for_later(self, verbs: Verbs) -> None:
        """A run with a due time waits for it."""
        await verbs.enqueue(job(due_at=verbs.now + 1))
        assert await verbs.claim() == []
        verbs.now += 1
        assert len(await verbs.claim()) == 1

    async def test_enqueue_again_is_a_duplicate(self, verbs: Verbs) -> None:
        """The same run id twice is one run, also within one batch and with other arguments."""
        run_id = new_id()
        batch = [job(run_id, args=b'{"n":1}'), job(run_id, args=b'{"n":2}')]
        first, second = await verbs.together(enqueue, batch, decide_enqueue)
        again = await verbs.enqueue(job(run_id, args=b'{"n":3}'))
        assert [first.duplicate, second.duplicate, again.duplicate] == [False, True, True]
        assert await verbs.values(run_id) == {"args": {"n": 1}}
