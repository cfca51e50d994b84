"""What a store promises about modes of one run at a time, and about modes that change under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from piecework.run.lifecycle import Status
from piecework.store.items import Continue, Defer
from piecework.store.verbs.accept import accept
from piecework.testing.rows import WORKFLOW, event, route, single, slot, transient, waits
from piecework.testing.verbs import decide_accept

if TYPE_CHECKING:
    from piecework.store.items import Accepted
    from piecework.testing.verbs import Verbs


class ModePromises:
    """`accept` for singleton and exclusive workflows, and `raise_limit`."""

    # -- one long-lived run ----------------------------------------------------------------------------------------

    async def test_drop_forgets_what_finds_it_busy(self, verbs: Verbs) -> None:
        """While a run has the place an event is dropped, and nothing is kept of it but what became of it."""
        first = await verbs.running(single("drop"))
        outcome = await verbs.accept(event(routes=[route(single("drop"))]))
        assert [(r.outcome, r.reason, r.run_id) for r in outcome.dispatched] == [("dropped", "busy", None)]
        assert await verbs.end(first) == 0
        assert (await verbs.start(single("drop"))).outcome == "started"

    async def test_drop_lets_a_paused_run_keep_its_place(self, verbs: Verbs) -> None:
        """A paused run is busy too."""
        await verbs.paused(single("drop"))
        assert (await verbs.start(single("drop"))).outcome == "dropped"

    async def test_signal_tells_the_active_run(self, verbs: Verbs) -> None:
        """An event that finds it busy becomes a signal with the mapped patch; no second run is made."""
        run = await verbs.running(single("signal"))
        outcome = await verbs.accept(event(routes=[route(single("signal"), patch=b'{"n":1}')]))
        (told,) = outcome.dispatched
        assert (told.outcome, told.run_id, told.active_run_id) == ("signalled", run.run_id, run.run_id)
        progress = await verbs.end_stage(run, Continue(stage="b"))
        assert [patch for _, patch in progress.signals] == [b'{"n":1}']

    async def test_signal_takes_the_payload_where_nothing_is_mapped(self, verbs: Verbs) -> None:
        """Without a mapped patch the signal is the event's payload."""
        run = await verbs.running(single("signal"))
        await verbs.accept(event(payload={"total": 3}, routes=[route(single("signal"))]))
        assert [row.patch for row in await verbs.signals(run.run_id)] == [b'{"total":3}']

    async def test_signal_before_the_run_has_begun(self, verbs: Verbs) -> None:
        """The second of two events of one batch is told to the run that the first one starts."""
        batch = [event(payload={"n": n}, routes=[route(single("signal"))]) for n in (1, 2)]
        first, second = await verbs.together(accept, batch, decide_accept)
        assert [o.dispatched[0].outcome for o in (first, second)] == ["started", "signalled"]
        (claimed,) = await verbs.claim()
        assert [patch for _, patch in claimed.signals] == [b'{"n":2}']

    async def test_signal_meets_an_end(self, verbs: Verbs) -> None:
        """An event that comes between the end of the run and its clean-up starts a run: it is never lost."""
        run = await verbs.running(single("signal"))
        await verbs.settle(run)
        late = await verbs.start(single("signal"))
        assert (late.outcome, late.reason) == ("queued", "closing")
        assert await verbs.cleaned(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [late.run_id]

    async def test_replace_asks_the_owner_to_end_it(self, verbs: Verbs) -> None:
        """The active run is told to end and its owner is named; the new one starts when it is clean."""
        run = await verbs.running(single("replace"), owner="node-7")
        outcome = await verbs.accept(event(event_id="e-9", routes=[route(single("replace"))]))
        (told,) = outcome.dispatched
        assert (told.outcome, told.active_run_id) == ("replaced", run.run_id)
        assert [(a.run_id, a.owner, a.reason) for a in outcome.aborting] == [
            (run.run_id, "node-7", "replaced by event e-9")
        ]
        assert await verbs.claim() == []
        assert await verbs.settle(run, "completed") == Status.ABORTED
        assert await verbs.cleaned(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [told.run_id]

    @pytest.mark.parametrize("hold", [True, False])
    async def test_replace_ends_a_paused_run_at_once(self, verbs: Verbs, hold: bool) -> None:
        """A paused run needs nobody to end: the new one is due with the same commit."""
        run = await verbs.paused(single("replace", hold=hold), "order.paid")
        outcome = await verbs.accept(event(routes=[route(single("replace", hold=hold))]))
        (claimed,) = await verbs.claim()
        assert claimed.run.run_id == outcome.dispatched[0].run_id
        if hold:
            ended = await verbs.run(run.run_id)
            assert (ended.status, ended.cleaned, await verbs.waits(run.run_id)) == (Status.ABORTED, 1, [])
            assert [(a.run_id, a.owner) for a in outcome.aborting] == [(run.run_id, None)]
        else:
            assert outcome.dispatched[0].outcome == "started"

    async def test_replace_of_one_that_was_about_to_start(self, verbs: Verbs) -> None:
        """A run that nobody has claimed ends at once, and the new one has its place."""
        first, second = await verbs.start(single("replace")), await verbs.start(single("replace"))
        assert (await verbs.run(first.run_id or "")).status == Status.ABORTED
        assert [entry.run.run_id for entry in await verbs.claim()] == [second.run_id]

    async def test_replace_by_an_event_that_is_kept_too(self, verbs: Verbs) -> None:
        """An event that a waiting run would keep, and that ends it as well, is not kept for it."""
        run = await verbs.running(single("replace"))
        await verbs.register(run, waits(run.run_id, "order.placed"))
        await verbs.end_stage(run, Defer(due_at=verbs.now + 5))
        outcome = await verbs.accept(event(routes=[route(single("replace"))]))
        assert [result.outcome for result in outcome.dispatched] == ["buffered", "replaced"]
        assert [entry.run.run_id for entry in await verbs.claim()] == [outcome.dispatched[1].run_id]

    async def test_signal_and_an_end_in_one_batch(self, verbs: Verbs) -> None:
        """A signal to a run that the next event of the batch ends is gone with it."""
        first = await verbs.start(single("signal"))
        batch = [event(routes=[route(single(on_busy))]) for on_busy in ("signal", "replace")]
        told = await verbs.together(accept, batch, decide_accept)
        assert [outcome.dispatched[0].outcome for outcome in told] == ["signalled", "replaced"]
        assert await verbs.signals(first.run_id or "") == []

    async def test_replace_keeps_the_newest_only(self, verbs: Verbs) -> None:
        """A thousand events leave the old run and the newest; those between end aborted, and are told of once."""
        run = await verbs.running(single("replace"))
        outcomes: list[Accepted] = []
        for _ in range(4):
            batch = [event(routes=[route(single("replace"))]) for _ in range(250)]
            outcomes += await verbs.together(accept, batch, decide_accept)
        aborting = [told.run_id for outcome in outcomes for told in outcome.aborting]
        made = [outcome.dispatched[0].run_id or "" for outcome in outcomes]
        assert aborting == [run.run_id, *made[:-1]]
        statuses = {row.status for row in await verbs.runs(*made[:-1])}
        assert statuses == {Status.ABORTED}
        await verbs.end(run)
        assert [entry.run.run_id for entry in await verbs.claim()] == [made[-1]]

    async def test_replace_by_many_at_once(self, verbs: Verbs) -> None:
        """However many replace at the same moment, one is left to follow."""
        run = await verbs.running(single("replace"))
        outcomes = await asyncio.gather(*(verbs.start(single("replace")) for _ in range(20)))
        rows = await verbs.runs(*(outcome.run_id or "" for outcome in outcomes))
        assert sorted(row.status for row in rows) == [Status.ABORTED] * 19 + [Status.QUEUED]
        assert await verbs.end(run) == 1

    async def test_replace_when_the_pending_one_is_aborted(self, verbs: Verbs) -> None:
        """Aborting the run that waits leaves nobody to follow; the next event waits in its stead."""
        run = await verbs.running(single("replace"))
        waiting = await verbs.start(single("replace"))
        await verbs.abort(waiting.run_id or "")
        newest = await verbs.start(single("replace"))
        assert await verbs.end(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [newest.run_id]

    # -- at most one -----------------------------------------------------------------------------------------------

    async def test_reject_names_who_is_in_the_way(self, verbs: Verbs) -> None:
        """An event that finds it busy is rejected, with the active run's id."""
        run = await verbs.running(single("reject"))
        result = await verbs.start(single("reject"))
        assert (result.outcome, result.reason, result.active_run_id) == ("rejected", "BUSY", run.run_id)
        assert result.run_id is None

    async def test_queue_single_keeps_the_newest(self, verbs: Verbs) -> None:
        """Of five events that find it busy the fifth starts a run; the four before it are superseded."""
        run = await verbs.running(single("queue_single"))
        results = [await verbs.start(single("queue_single")) for _ in range(5)]
        assert [result.outcome for result in results] == ["queued"] * 5
        ended = await verbs.runs(*(result.run_id or "" for result in results[:-1]))
        assert {(row.status, (row.abort_reason or "")[:13]) for row in ended} == {(Status.ABORTED, "superseded by")}
        assert await verbs.end(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [results[-1].run_id]

    async def test_queue_single_outcome_names_the_superseded(self, verbs: Verbs) -> None:
        """The active run is left in peace; whom a newer event displaces is told of, and nobody has it."""
        await verbs.running(single("queue_single"))
        first = await verbs.accept(event(routes=[route(single("queue_single"))]))
        second = await verbs.accept(event(routes=[route(single("queue_single"))]))
        assert first.aborting == ()
        assert [(a.run_id, a.owner) for a in second.aborting] == [(first.dispatched[0].run_id, None)]

    # -- closing, keys ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("on_busy", ["drop", "signal", "replace", "reject", "queue_single"])
    async def test_the_closing_window_keeps_the_newest(self, verbs: Verbs, on_busy: str) -> None:
        """Between an end and its clean-up nothing is turned away, and only the newest event waits."""
        run = await verbs.running(single(on_busy))
        await verbs.settle(run)
        results = [await verbs.start(single(on_busy)) for _ in range(3)]
        assert {(result.outcome, result.reason) for result in results} == {("queued", "closing")}
        assert await verbs.cleaned(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [results[-1].run_id]

    @pytest.mark.parametrize("on_busy", ["drop", "signal", "replace", "reject", "queue_single"])
    async def test_keys_are_apart(self, verbs: Verbs, on_busy: str) -> None:
        """What happens under one key has no say under another."""
        first = await verbs.running(single(on_busy, "one"))
        assert (await verbs.start(single(on_busy, "other"))).outcome == "started"
        assert (await verbs.run(first.run_id)).abort_reason is None
        assert await verbs.signals(first.run_id) == []

    # -- modes that change -----------------------------------------------------------------------------------------

    async def test_a_mode_that_becomes_single(self, verbs: Verbs) -> None:
        """Under a new mode those that run and wait keep what they have; when they are through it holds for all."""
        room = transient("s", concurrency=2)
        running = [await verbs.running(room), await verbs.running(room)]
        waiting = await verbs.start(room)
        assert (await verbs.start(single("reject"))).outcome == "rejected"
        assert [await verbs.end(run) for run in running] == [0, 1]
        (claimed,) = await verbs.claim()
        result = await verbs.start(single("reject"))
        assert (claimed.run.run_id, result.active_run_id) == (waiting.run_id, waiting.run_id)
        await verbs.end(claimed.run)
        assert (await verbs.start(single("reject"))).outcome == "started"

    @pytest.mark.parametrize("on_busy", ["signal", "replace"])
    async def test_a_mode_that_does_not_know_who_is_active(self, verbs: Verbs, on_busy: str) -> None:
        """Where nobody can say who has the place, an event is neither lost nor told to the wrong run: it waits."""
        run = await verbs.running(slot("s"))
        result = await verbs.start(single(on_busy))
        assert (result.outcome, result.reason) == ("queued", "busy")
        assert (await verbs.run(run.run_id)).abort_reason is None
        assert await verbs.end(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [result.run_id]

    async def test_a_queue_that_becomes_single(self, verbs: Verbs) -> None:
        """Runs that wait under the old mode are not superseded by the new one: each starts in the end."""
        first = await verbs.running(slot("s"))
        waiting = [await verbs.start(slot("s")) for _ in range(2)]
        newest = await verbs.start(single("queue_single"))
        await verbs.end(first)
        begun: list[str] = []
        while claimed := await verbs.claim():
            begun += [entry.run.run_id for entry in claimed]
            await verbs.end(claimed[0].run)
        assert sorted(begun) == sorted(result.run_id or "" for result in (*waiting, newest))

    async def test_a_mode_that_gets_room_starts_who_waits(self, verbs: Verbs) -> None:
        """When a mode of one run at a time becomes one of several, whoever waited for the place starts."""
        await verbs.running(single("queue_single"))
        pending = await verbs.start(single("queue_single"))
        newest = await verbs.start(transient("s", concurrency=3))
        assert newest.outcome == "started"
        assert {entry.run.run_id for entry in await verbs.claim()} == {pending.run_id, newest.run_id}

    async def test_a_mode_that_lets_paused_runs_go(self, verbs: Verbs) -> None:
        """When paused runs give up their places from now on, those that wait take them with the next event."""
        await verbs.paused(slot("t"))
        waiting = await verbs.start(slot("t"))
        newest = await verbs.start(transient("t", concurrency=1))
        assert newest.outcome == "queued"
        assert [entry.run.run_id for entry in await verbs.claim()] == [waiting.run_id]

    async def test_raise_limit_starts_those_that_wait(self, verbs: Verbs) -> None:
        """More room starts as many of every queue as there is room for, the longest waiting first."""
        waiting: dict[str, list[str]] = {}
        for key in ("a", "b"):
            results = [await verbs.start(transient(key, concurrency=1)) for _ in range(5)]
            waiting[key] = [result.run_id or "" for result in results]
        raised = await verbs.raise_limit(transient("", concurrency=3))
        assert (raised.started, raised.last) == (4, None)
        assert {entry.run.run_id for entry in await verbs.claim()} == {*waiting["a"][:3], *waiting["b"][:3]}

    async def test_raise_limit_page_by_page(self, verbs: Verbs) -> None:
        """Every slot of the workflow is looked at once, in pages; other workflows are left alone."""
        for number in range(7):
            for _ in range(2):
                await verbs.start(transient(f"k{number}", concurrency=1))
        started, after, pages = 0, "", 0
        while True:
            raised = await verbs.raise_limit(transient("", concurrency=2), after=after, limit=3)
            started, pages = started + raised.started, pages + 1
            if raised.last is None:
                break
            assert raised.last > after
            after = raised.last
        assert (started, pages, len(await verbs.claim())) == (7, 3, 14)

    async def test_raise_limit_again_starts_nobody(self, verbs: Verbs) -> None:
        """A page that is repeated finds its work done."""
        for _ in range(3):
            await verbs.start(transient("a", concurrency=1))
        assert (await verbs.raise_limit(transient("", concurrency=2))).started == 1
        assert (await verbs.raise_limit(transient("", concurrency=2))).started == 0

    async def test_raise_limit_of_a_single_mode(self, verbs: Verbs) -> None:
        """Where the newest registration makes one run at a time many, the pending run starts."""
        await verbs.running(single("replace"))
        pending = await verbs.start(single("replace"))
        assert (await verbs.raise_limit(transient("", concurrency=2))).started == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [pending.run_id]

    async def test_a_lowered_limit_ends_nobody(self, verbs: Verbs) -> None:
        """With less room than runs, all go on; nobody follows until there is room again."""
        room = transient("a", concurrency=3)
        running = [await verbs.running(room) for _ in range(3)]
        await verbs.start(room)
        assert (await verbs.raise_limit(transient("", concurrency=1))).started == 0
        started = [await verbs.end(run) for run in running]
        assert started == [0, 0, 1]

    async def test_places_tell_the_order_of_admission(self, verbs: Verbs) -> None:
        """Who starts at once and who waits are numbered in one order, in which those that wait start."""
        room = transient("t", concurrency=2)
        results = [await verbs.start(room) for _ in range(6)]
        rows = await verbs.runs(*(result.run_id or "" for result in results))
        assert [row.place for row in rows] == [1, 2, 3, 4, 5, 6]
        begun: list[str] = []
        while claimed := await verbs.claim(limit=1):
            begun.append(claimed[0].run.run_id)
            await verbs.end(claimed[0].run)
        assert begun == [row.run_id for row in rows]

    async def test_slots_are_their_workflows(self, verbs: Verbs) -> None:
        """A slot is found by its workflow, with the numbers of its mode and of its runs."""
        await verbs.start(single("queue_single"))
        row = await verbs.slot("s")
        assert row is not None
        assert (row.workflow_id, row.on_busy, row.live, row.admitted) == (WORKFLOW, "queue_single", 1, 1)
