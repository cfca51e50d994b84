"""What a store promises about pauses: no event is missed, none wakes a run twice, and the first to wake it wins."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from piecework.clock import SECOND
from piecework.errors import InvalidStateError
from piecework.run import folds
from piecework.run.lifecycle import Status
from piecework.store.contract import Failure
from piecework.store.items import Continue, Park, Resume
from piecework.store.verbs import runs
from piecework.store.verbs.accept import accept
from piecework.testing.verbs import decide_accept, event, route, slot, transient, waits

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs


class WaitPromises:
    """`commit_stage` (park), `register_waits`, `resume`, `due`, and `accept` where a run waits."""

    async def test_park_lets_go(self, verbs: Verbs) -> None:
        """A paused run is rows: no owner, what it waits for in the same commit, and where it goes on."""
        run = await verbs.paused(None, "order.paid", "order.lost", timeout_seconds=60)
        assert (run.status, run.owner, run.stage, run.paused_at) == (Status.PAUSED, None, "after", verbs.now)
        assert (run.waiting_for, run.expires_at) == ('["order.lost","order.paid"]', verbs.now + 60 * SECOND)
        assert {wait.event_type for wait in await verbs.waits(run.run_id)} == {"order.paid", "order.lost"}

    async def test_park_takes_the_earliest_deadline(self, verbs: Verbs) -> None:
        """Of several time limits the shortest holds."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id, timeout_seconds=30))
        await verbs.end_stage(run, Park(stage="b", waits=waits(run.run_id, timeout_seconds=20), timeout=25 * SECOND))
        assert (await verbs.run(run.run_id)).expires_at == verbs.now + 20 * SECOND

    async def test_park_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A pause that is repeated is answered as parked, and waits once."""
        run = await verbs.running()
        park = Park(stage="b", waits=waits(run.run_id))
        await verbs.end_stage(run, park)
        before = await verbs.run(run.run_id)
        assert (await verbs.end_stage(run, park)).outcome == "parked"
        assert await verbs.run(run.run_id) == before
        assert len(await verbs.waits(run.run_id)) == 1

    async def test_park_gives_its_place_up_where_the_mode_says_so(self, verbs: Verbs) -> None:
        """A paused run of a transient workflow makes room; one of a serialized workflow keeps its place."""
        await verbs.paused(transient(concurrency=1), "a")
        assert (await verbs.start(transient(concurrency=1))).outcome == "started"
        await verbs.paused(slot(), "b")
        assert (await verbs.start(slot())).outcome == "queued"

    async def test_park_starts_its_successor(self, verbs: Verbs) -> None:
        """Where a pause makes room, the longest waiting run starts with it."""
        run = await verbs.running(transient(concurrency=1))
        queued = await verbs.start(transient(concurrency=1))
        await verbs.end_stage(run, Park(stage="b"))
        assert [entry.run.run_id for entry in await verbs.claim()] == [queued.run_id]

    async def test_an_event_wakes_a_paused_run(self, verbs: Verbs) -> None:
        """A matching event makes a paused run due, with the patch that it will merge."""
        run = await verbs.paused(None, "order.paid", id=7, patch={"by": "mail"})
        assert await verbs.publish("order.paid", id=7, total=3) == ["resumed"]
        (claimed,) = await verbs.claim()
        patch = (await verbs.values(run.run_id))["patch"]
        assert (claimed.run.run_id, claimed.run.resume_count, claimed.run.expires_at) == (run.run_id, 1, None)
        assert (patch["by"], patch["total"], patch["__resume_reason__"]) == ("mail", 3, "event")
        assert patch["__resume_event__"]["payload"] == {"id": 7, "total": 3}

    @pytest.mark.parametrize("payload", [{}, {"id": 8}, {"id": None}, {"id": "7"}, {"id": [7]}])
    async def test_another_event_does_not(self, verbs: Verbs, payload: dict[str, object]) -> None:
        """An event that does not meet all clauses leaves a paused run alone."""
        run = await verbs.paused(None, "order.paid", id=7)
        assert await verbs.publish("order.paid", **payload) == []
        assert await verbs.publish("order.lost", id=7) == []
        assert (await verbs.run(run.run_id)).status == Status.PAUSED

    async def test_an_event_wakes_all_that_wait_for_it(self, verbs: Verbs) -> None:
        """Every run whose wait an event meets is woken, each once, and triggers are offered it too."""
        ids = {(await verbs.paused(None, "order.paid", **clause)).run_id for clause in ({}, {"id": 7}, {"id__gt": 1})}
        outcome = await verbs.accept(event("order.paid", {"id": 7}, routes=[route(slot())]))
        assert {result.run_id for result in outcome.dispatched if result.outcome == "resumed"} == ids
        assert outcome.dispatched[-1].outcome == "started"

    async def test_two_events_of_one_batch_for_one_run(self, verbs: Verbs) -> None:
        """The first of two events wakes the run, the second is kept for its next pause."""
        run = await verbs.paused(None, "order.paid")
        batch = [event("order.paid", {"n": n}) for n in (1, 2)]
        answers = await verbs.together(accept, batch, decide_accept)
        assert [answer.dispatched[0].outcome for answer in answers] == ["resumed", "buffered"]
        (claimed,) = await verbs.claim()
        progress = await verbs.end_stage(claimed.run, Park(stage="again"))
        assert (progress.outcome, b'"n":2' in (progress.patch or b"")) == ("resumed", True)
        assert (await verbs.run(run.run_id)).owner == "node-1"

    async def test_an_event_for_a_running_run_is_kept(self, verbs: Verbs) -> None:
        """From `register` on a matching event is kept, and wakes the run at the moment when it pauses."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id, id=7))
        assert await verbs.publish(id=7) == ["buffered"]
        assert await verbs.publish(id=8) == []
        progress = await verbs.end_stage(run, Park(stage="b"))
        after = await verbs.run(run.run_id)
        assert progress.outcome == "resumed"
        assert (after.status, after.owner, after.stage, after.resume_count) == (Status.RUNNING, "node-1", "b", 1)

    async def test_park_beside_a_kept_event_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A pause that was woken at once and is repeated is answered with the same patch: the run goes on here."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        await verbs.publish("order.paid", n=1)
        await verbs.publish("order.paid", n=2)
        first = await verbs.end_stage(run, Park(stage="b"))
        assert await verbs.end_stage(run, Park(stage="b")) == first

    async def test_kept_events_come_in_their_order(self, verbs: Verbs) -> None:
        """Events are handed over one a pause, the oldest first."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        for number in range(3):
            await verbs.publish("order.paid", n=number)
        patches = [(await verbs.end_stage(run, Park(stage="b"), visit=visit)).patch or b"" for visit in range(3)]
        assert [f'"n":{n}'.encode() in patch for n, patch in enumerate(patches)] == [True, True, True]
        assert (await verbs.end_stage(run, Park(stage="b"), visit=3)).outcome == "parked"

    async def test_a_full_buffer_drops_the_newest(self, verbs: Verbs) -> None:
        """What does not fit is dropped, and the timeline says so."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id, max_buffer=2))
        assert [(await verbs.publish())[0] for _ in range(3)] == ["buffered", "buffered", "dropped"]
        assert [e.type for e in await verbs.timeline(run.run_id)][-1] == "watch:overflow"

    async def test_one_event_of_each_type(self, verbs: Verbs) -> None:
        """A run that waits for all of its types goes on with the last of them, and has the payloads of all."""
        run = await verbs.paused(None, "order.paid", "order.lost", "order.sent", mode="all")
        assert await verbs.publish("order.lost", n=1) == ["buffered"]
        assert await verbs.publish("order.paid", n=2) == ["buffered"]
        assert (await verbs.run(run.run_id)).status == Status.PAUSED
        assert await verbs.publish("order.sent", n=3) == ["resumed"]
        patch = (await verbs.values(run.run_id))["patch"]
        assert (patch["n"], patch["__resume_event__"]["type"]) == (3, "order.sent")
        assert patch["__events__"] == {"order.lost": {"n": 1}, "order.paid": {"n": 2}, "order.sent": {"n": 3}}

    async def test_one_type_twice_is_not_all(self, verbs: Verbs) -> None:
        """A second event of a type stands for no other; it counts at the next pause."""
        await verbs.paused(None, "order.paid", "order.lost", mode="all")
        assert [(await verbs.publish("order.paid", n=n))[0] for n in (1, 2)] == ["buffered", "buffered"]
        assert await verbs.publish("order.lost", n=3) == ["resumed"]
        (claimed,) = await verbs.claim()
        assert (await verbs.end_stage(claimed.run, Park(stage="b"))).outcome == "parked"
        assert await verbs.publish("order.lost", n=4) == ["resumed"]
        events = (await verbs.values(claimed.run.run_id))["patch"]["__events__"]
        assert events == {"order.paid": {"n": 2}, "order.lost": {"n": 4}}

    async def test_what_came_before_the_pause_counts(self, verbs: Verbs) -> None:
        """Types that were there when a run pauses need not come again; when all were, it goes on at once."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id, "order.paid", "order.lost", mode="all"))
        assert await verbs.publish("order.paid", n=1) == ["buffered"]
        assert (await verbs.end_stage(run, Park(stage="b"))).outcome == "parked"
        assert await verbs.publish("order.lost", n=2) == ["resumed"]
        (claimed,) = await verbs.claim()
        for name in ("order.lost", "order.paid"):
            await verbs.publish(name, n=3)
        progress = await verbs.end_stage(claimed.run, Park(stage="c"))
        assert (progress.outcome, b"__events__" in (progress.patch or b"")) == ("resumed", True)

    async def test_a_full_buffer_has_room_for_what_is_missing(self, verbs: Verbs) -> None:
        """Events of one type do not fill the buffer against a type that is still missing."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id, "a.a", "b.b", "c.c", mode="all", max_buffer=1))
        outcomes = [(await verbs.publish(name))[0] for name in ("a.a", "a.a", "b.b", "c.c")]
        assert outcomes == ["buffered", "dropped", "buffered", "buffered"]
        assert (await verbs.end_stage(run, Park(stage="b"))).outcome == "resumed"

    async def test_a_wait_for_one_goes_before_a_wait_for_all(self, verbs: Verbs) -> None:
        """An event that is enough for one of a run's waits wakes it, whatever else would like to have the event."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id, "order.paid", "order.lost", mode="all"))
        await verbs.register(run, waits(run.run_id, "order.paid"))
        await verbs.end_stage(run, Park(stage="b"))
        assert await verbs.publish("order.paid") == ["resumed"]

    async def test_a_kept_event_survives_the_owner(self, verbs: Verbs) -> None:
        """What was kept for a run is there for whoever takes it over."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        await verbs.publish()
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert (await verbs.end_stage(taken.run, Park(stage="b"))).outcome == "resumed"

    async def test_a_registration_survives_a_resume(self, verbs: Verbs) -> None:
        """A run that pauses again still waits for what it registered before."""
        run = await verbs.paused(None, "order.paid")
        await verbs.resume(run.run_id)
        (claimed,) = await verbs.claim()
        await verbs.end_stage(claimed.run, Park(stage="again"))
        assert await verbs.publish() == ["resumed"]

    async def test_register_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A registration that is repeated is one registration."""
        run = await verbs.running()
        new = waits(run.run_id, "order.paid", "order.lost")
        assert [await verbs.register(run, new), await verbs.register(run, new)] == [2, 2]
        assert len(await verbs.waits(run.run_id)) == 2

    async def test_cancel_one_registration(self, verbs: Verbs) -> None:
        """A cancelled registration finds no event; others go on."""
        run = await verbs.running()
        one, other = waits(run.run_id, "order.paid"), waits(run.run_id, "order.lost")
        await verbs.register(run, one + other)
        assert await verbs.register(run, cancel=(one[0].wait_id,)) == 1
        assert [await verbs.publish("order.paid"), await verbs.publish("order.lost")] == [[], ["buffered"]]

    async def test_cancel_everything(self, verbs: Verbs) -> None:
        """Cancelling all registrations forgets what was kept for them."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        await verbs.publish()
        assert await verbs.register(run, cancel=None) == 0
        assert (await verbs.end_stage(run, Park(stage="b"))).outcome == "parked"

    async def test_many_fields_under_one_type(self, verbs: Verbs) -> None:
        """However many fields runs wait on under one event type, each is found."""
        run = await verbs.running()
        names = [f"field{number:03}" for number in range(120)]
        new = tuple(wait for name in names for wait in waits(run.run_id, conditions=[{"field": name, "value": 1}]))
        await verbs.register(run, new)
        found = [await verbs.publish("order.paid", **{name: 1}) for name in names]
        assert found == [["buffered"]] * len(names)

    async def test_resume_by_hand(self, verbs: Verbs) -> None:
        """A resumed run is due with the patch it was given, and goes on at another stage where one is named."""
        run = await verbs.paused()
        woken = await verbs.resume(run.run_id, {"ok": 1}, stage="elsewhere")
        assert (woken.status, woken.due_at, woken.stage) == (Status.RUNNING, verbs.now, "elsewhere")
        assert (await verbs.values(run.run_id))["patch"] == {
            "ok": 1,
            "__resume_event__": None,
            "__resume_reason__": "manual",
        }

    async def test_the_loser_of_a_resume_is_told(self, verbs: Verbs) -> None:
        """Of two that resume one run the first wins; the other hears INVALID_STATE and changes nothing."""
        run = await verbs.paused()
        batch = [Resume(run_id=run.run_id, reason="manual", patch={"by": name}) for name in ("one", "other")]
        winner, loser = await verbs.together(runs.resume, batch, folds.decide_resume)
        assert winner.status == Status.RUNNING
        assert isinstance(loser, Failure)
        assert isinstance(loser.error, InvalidStateError)
        assert (await verbs.values(run.run_id))["patch"]["by"] == "one"

    async def test_resume_and_event_at_once(self, verbs: Verbs) -> None:
        """A resume and an event that race wake a run once; the event, if it lost, is kept."""
        run = await verbs.paused()
        resumed, outcomes = await asyncio.gather(
            verbs.resume(run.run_id), verbs.publish("order.paid"), return_exceptions=True
        )
        won = isinstance(resumed, InvalidStateError)
        assert outcomes == (["resumed"] if won else ["buffered"])
        assert (await verbs.run(run.run_id)).resume_count == 1

    @pytest.mark.parametrize("status", ["queued", "running", "completed"])
    async def test_only_a_paused_run_can_be_resumed(self, verbs: Verbs, status: str) -> None:
        """Resuming what is not paused is refused with its status."""
        run_id = (await verbs.start(slot())).run_id or ""
        if status != "queued":
            (claimed,) = await verbs.claim()
            if status == "completed":
                await verbs.settle(claimed.run)
        with pytest.raises(InvalidStateError, match=status):
            await verbs.resume(run_id)

    async def test_a_resume_patch_lasts_until_the_next_commit(self, verbs: Verbs) -> None:
        """The patch of a resume is there for every attempt, and gone when its stage is committed."""
        run = await verbs.paused()
        await verbs.resume(run.run_id, {"ok": 1})
        await verbs.claim()
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert b'"ok":1' in taken.values["patch"]
        await verbs.end_stage(taken.run, Continue(stage="c"))
        assert "patch" not in await verbs.values(run.run_id)

    async def test_a_deadline_wakes(self, verbs: Verbs) -> None:
        """A pause whose time has passed ends by itself, once, and its reason is timeout."""
        run = await verbs.paused(None, "order.paid", timeout_seconds=10)
        verbs.now += 10 * SECOND - 1
        assert await verbs.due() == 0
        verbs.now += 1
        assert [await verbs.due(), await verbs.due()] == [1, 0]
        assert (await verbs.values(run.run_id))["patch"]["__resume_reason__"] == "timeout"

    async def test_the_next_moment(self, verbs: Verbs) -> None:
        """A node can ask when there will be something to do: the earliest due run or deadline."""
        assert await _next_due(verbs) is None
        await verbs.paused(None, "order.paid", timeout_seconds=10)
        assert await _next_due(verbs) == verbs.now + 10 * SECOND
        await verbs.start(slot())
        assert await _next_due(verbs) == verbs.now

    async def test_a_resumed_run_needs_no_room(self, verbs: Verbs) -> None:
        """A resume never waits for a place; new runs wait until there is one again."""
        room = transient(concurrency=1)
        parked = await verbs.paused(room)
        running = await verbs.running(room)
        await verbs.resume(parked.run_id)
        queued = await verbs.start(room)
        assert (queued.outcome, len(await verbs.claim())) == ("queued", 1)
        await verbs.settle(running)
        assert await verbs.cleaned(running) == 0


async def _next_due(verbs: Verbs) -> int | None:
    rows = await verbs.store.read("next_due", {"known": ("workflow:orders",), "full": ()})
    moment: int | None = rows[0][0]
    return moment
