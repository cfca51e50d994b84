"""What a store promises about the life of a run: stages, its end, its successor, and an abort from outside."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from piecework.errors import InvalidStateError, PieceworkError
from piecework.run import folds
from piecework.run.lifecycle import Status
from piecework.store.contract import Failure
from piecework.store.items import Abort, Cleaned, Continue, NewEntry, Park, Settle
from piecework.store.verbs import runs
from piecework.testing.verbs import slot, stage_end, transient, waits

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs


class RunPromises:
    """`commit_stage` (continue), `settle`, `cleaned`, `abort`, `append`."""

    async def test_continue_commits_state_and_place(self, verbs: Verbs) -> None:
        """The end of a stage writes the state and the stage that follows, and forgets the attempts so far."""
        run = await verbs.running()
        progress = await verbs.end_stage(run, Continue(stage="pay"), state=b'{"total":120}')
        after = await verbs.run(run.run_id)
        assert progress.outcome == "continued"
        assert (after.stage, after.visit, after.attempt, after.owner) == ("pay", 1, 0, "node-1")
        assert (await verbs.values(run.run_id))["state"] == {"total": 120}

    async def test_continue_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A stage's commit that is repeated counts once and is answered as the first time."""
        run = await verbs.running()
        first = await verbs.end_stage(run, Continue(stage="pay"))
        before, lines = await verbs.run(run.run_id), await verbs.timeline(run.run_id)
        assert await verbs.end_stage(run, Continue(stage="pay")) == first
        assert (await verbs.run(run.run_id), await verbs.timeline(run.run_id)) == (before, lines)

    async def test_continue_repeated_in_a_batch(self, verbs: Verbs) -> None:
        """A commit and its repeat in one batch are one commit."""
        run = await verbs.running()
        batch = [stage_end(run, Continue(stage="pay"))] * 2
        first, second = await verbs.together(runs.commit_stage, batch, folds.decide_commit_stage)
        assert first == second
        assert (await verbs.run(run.run_id)).visit == 1

    async def test_an_old_commit_that_arrives_late_is_refused(self, verbs: Verbs) -> None:
        """A repeat that is overtaken by the commits behind it does not set the run back."""
        run = await verbs.running()
        await verbs.end_stage(run, Continue(stage="b"), visit=0)
        await verbs.end_stage(run, Continue(stage="c"), visit=1)
        with pytest.raises(PieceworkError):
            await verbs.end_stage(run, Continue(stage="b"), visit=0, state=b'{"old":1}')
        assert (await verbs.run(run.run_id)).stage == "c"

    async def test_a_stage_of_an_ended_run_is_refused(self, verbs: Verbs) -> None:
        """Nothing is committed to a run that has ended."""
        run = await verbs.running()
        await verbs.settle(run)
        with pytest.raises(InvalidStateError, match="ended"):
            await verbs.end_stage(run, Continue(stage="b"))
        await verbs.cleaned(run)

    async def test_settle_ends_a_run(self, verbs: Verbs) -> None:
        """A settled run has its final status, result and moment; its slot is closing."""
        run = await verbs.running(slot())
        verbs.now += 7
        assert await verbs.settle(run, "completed", result=b'{"ok":1}', state=b'{"s":1}') == "completed"
        after = await verbs.run(run.run_id)
        assert (after.status, after.ended_at, after.cleaned) == (Status.COMPLETED, verbs.now, 0)
        assert await verbs.values(run.run_id) == {"result": {"ok": 1}, "state": {"s": 1}}

    async def test_settle_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A settle that is repeated, with whatever status, is answered with the status that was committed."""
        run = await verbs.running()
        await verbs.settle(run, "failed", error='{"code":"X"}')
        before, lines = await verbs.run(run.run_id), await verbs.timeline(run.run_id)
        assert await verbs.settle(run, "completed") == "failed"
        assert (await verbs.run(run.run_id), await verbs.timeline(run.run_id)) == (before, lines)
        await verbs.cleaned(run)

    async def test_settle_forgets_what_was_waited_for(self, verbs: Verbs) -> None:
        """An ended run waits for nothing, and no event is kept for it."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        assert await verbs.publish() == ["buffered"]
        await verbs.settle(run)
        assert await verbs.waits(run.run_id) == []
        assert await verbs.publish() == []
        await verbs.cleaned(run)

    async def test_settle_bad_neighbour(self, verbs: Verbs) -> None:
        """A settle that cannot be does not keep its neighbours from ending."""
        one, other = await verbs.running(), await verbs.running()
        batch = [
            Settle(run_id=one.run_id, epoch=99, status="completed"),
            Settle(run_id="nobody", epoch=1, status="completed"),
            Settle(run_id=other.run_id, epoch=other.epoch, status="completed"),
        ]
        stale, unknown, fine = await verbs.together(runs.settle, batch, folds.decide_settle)
        assert (type(stale), type(unknown), fine) == (Failure, Failure, "completed")
        assert (await verbs.run(one.run_id)).status == Status.RUNNING

    async def test_the_successor_starts_when_its_predecessor_is_clean(self, verbs: Verbs) -> None:
        """Between the end of a run and its clean-up nothing of its slot starts; afterwards the longest waiting does."""
        run = await verbs.running(slot())
        second, third = await verbs.start(slot()), await verbs.start(slot())
        await verbs.settle(run)
        assert await verbs.claim() == []
        assert await verbs.cleaned(run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [second.run_id]
        assert (await verbs.run(third.run_id or "")).due_at is None

    async def test_a_closing_slot_turns_nobody_away(self, verbs: Verbs) -> None:
        """An event that meets a run in its clean-up is queued even where no queue is allowed."""
        run = await verbs.running(slot(capacity=0))
        await verbs.settle(run)
        result = await verbs.start(slot(capacity=0))
        assert (result.outcome, result.reason) == ("queued", "closing")
        assert await verbs.cleaned(run) == 1

    async def test_an_end_that_is_to_be_told_keeps_its_place(self, verbs: Verbs) -> None:
        """A run whose end is to be heard of keeps its place until it was; then its slot is closing as ever."""
        run = await verbs.running(slot(capacity=0))
        await verbs.settle(run, telling=True)
        assert (await verbs.start(slot(capacity=0))).outcome == "dropped"
        assert await verbs.end_told(run)
        assert not await verbs.end_told(run)
        result = await verbs.start(slot(capacity=0))
        assert (result.outcome, result.reason) == ("queued", "closing")
        assert await verbs.cleaned(run) == 1

    async def test_cleaned_without_having_been_told(self, verbs: Verbs) -> None:
        """A run that is clean gives its place up, also when nobody ever heard of its end."""
        run = await verbs.running(slot())
        await verbs.start(slot())
        await verbs.settle(run, telling=True)
        assert await verbs.cleaned(run) == 1
        assert len(await verbs.claim()) == 1

    async def test_an_end_is_told_after_its_end_only(self, verbs: Verbs) -> None:
        """Of a run that has not ended nobody has heard the end."""
        run = await verbs.running(slot())
        with pytest.raises(InvalidStateError, match=run.run_id):
            await verbs.end_told(run)

    async def test_abort_of_runs_whose_end_is_to_be_told(self, verbs: Verbs) -> None:
        """A queued or paused run that is aborted has ended at once, and is due once more, only for that to be told."""
        run = await verbs.running(slot())
        queued = await verbs.start(slot(), telling=True)
        assert (await verbs.abort(queued.run_id or "")).ended
        assert (await verbs.run(queued.run_id or "")).status == Status.ABORTED
        (claimed,) = await verbs.claim()
        assert (claimed.run.run_id, claimed.run.status, claimed.run.attempt) == (queued.run_id, Status.ABORTED, 0)
        assert await verbs.end_told(claimed.run)
        assert await verbs.cleaned(claimed.run) == 0
        assert await verbs.end(run) == 0

    async def test_what_waits_can_be_dropped(self, verbs: Verbs) -> None:
        """A run that waits can be dropped, with what became of its event; one that runs stays as it is."""
        run = await verbs.running(slot())
        queued = await verbs.start(slot(), telling=True)
        assert not (await verbs.abort(run.run_id, dropping=True)).aborted
        assert (await verbs.abort(queued.run_id or "", dropping=True)).ended
        ended = await verbs.run(queued.run_id or "")
        assert (ended.status, ended.cleaned) == (Status.ABORTED, 1)
        assert await verbs.claim() == []

    async def test_cleaned_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A slot is freed once, however often its run is reported clean."""
        run = await verbs.running(slot())
        await verbs.start(slot())
        await verbs.start(slot())
        await verbs.settle(run)
        await verbs.cleaned(run)
        assert await verbs.cleaned(run) == 0
        assert len(await verbs.claim()) == 1

    async def test_cleaned_needs_an_end(self, verbs: Verbs) -> None:
        """A run that has not ended cannot be clean."""
        run = await verbs.running(slot())
        with pytest.raises(InvalidStateError, match=run.run_id):
            await verbs.cleaned(run)

    async def test_two_cleaned_in_one_batch(self, verbs: Verbs) -> None:
        """Two runs of one slot that become clean together let two successors start."""
        room = transient(concurrency=2)
        one, other = await verbs.running(room), await verbs.running(room)
        for _ in range(3):
            await verbs.start(room)
        await asyncio.gather(verbs.settle(one), verbs.settle(other))
        batch = [Cleaned(run_id=run.run_id, epoch=run.epoch) for run in (one, other)]
        assert sorted(await verbs.together(runs.cleaned, batch, folds.decide_cleaned)) == [1, 1]
        assert len(await verbs.claim()) == 2

    async def test_abort_of_a_queued_run(self, verbs: Verbs) -> None:
        """A run that has not started ends at once; its place in the queue is free again."""
        await verbs.running(slot(capacity=1))
        queued = await verbs.start(slot(capacity=1))
        assert (await verbs.abort(queued.run_id or "")).aborted
        assert (await verbs.run(queued.run_id or "")).status == Status.ABORTED
        assert (await verbs.start(slot(capacity=1))).outcome == "queued"

    async def test_abort_of_a_due_run(self, verbs: Verbs) -> None:
        """A run that was about to start ends at once, and the next one starts in its place."""
        due, queued = await verbs.start(slot()), await verbs.start(slot())
        await verbs.abort(due.run_id or "")
        assert [entry.run.run_id for entry in await verbs.claim()] == [queued.run_id]

    async def test_abort_of_a_paused_run(self, verbs: Verbs) -> None:
        """A paused run ends at once, waits for nothing any more, and its successor starts."""
        run = await verbs.paused(slot(), timeout_seconds=5)
        queued = await verbs.start(slot())
        await verbs.abort(run.run_id, "too late")
        after = await verbs.run(run.run_id)
        assert (after.status, after.abort_reason, after.expires_at) == (Status.ABORTED, "too late", None)
        assert await verbs.publish() == []
        assert [entry.run.run_id for entry in await verbs.claim()] == [queued.run_id]

    async def test_abort_of_a_running_run_is_promised(self, verbs: Verbs) -> None:
        """Aborting a running run names its owner, who has to end it; until then it runs."""
        run = await verbs.running()
        outcome = await verbs.abort(run.run_id)
        assert (outcome.aborted, outcome.owner) == (True, "node-1")
        assert (await verbs.run(run.run_id)).status == Status.RUNNING

    @pytest.mark.parametrize("then", [Continue(stage="pay"), Park(stage="pay")])
    async def test_abort_is_seen_by_the_next_commit(self, verbs: Verbs, then: Continue | Park) -> None:
        """No stage is committed behind an abort: the commit is answered with it and writes nothing."""
        run = await verbs.running()
        await verbs.abort(run.run_id, "enough")
        progress = await verbs.end_stage(run, then, state=b'{"n":1}')
        assert (progress.outcome, progress.reason) == ("aborted", "enough")
        assert ((await verbs.run(run.run_id)).visit, await verbs.values(run.run_id)) == (0, {})

    async def test_abort_wins_over_completion(self, verbs: Verbs) -> None:
        """A run that was aborted ends aborted, whatever it came to meanwhile."""
        run = await verbs.running()
        await verbs.abort(run.run_id, "enough")
        assert await verbs.settle(run, "completed") == Status.ABORTED
        assert "ABORTED" in ((await verbs.run(run.run_id)).error or "")
        await verbs.cleaned(run)

    async def test_abort_survives_the_owner(self, verbs: Verbs) -> None:
        """An abort that was promised is known to whoever takes the run over."""
        run = await verbs.running()
        await verbs.abort(run.run_id, "enough")
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert taken.run.abort_reason == "enough"

    async def test_abort_again_is_harmless(self, verbs: Verbs) -> None:
        """A second abort, and one of an ended run, changes nothing."""
        running, queued = await verbs.running(slot()), await verbs.start(slot())
        for run_id in (running.run_id, queued.run_id or ""):
            await verbs.abort(run_id, "first")
            before, lines = await verbs.run(run_id), await verbs.timeline(run_id)
            assert not (await verbs.abort(run_id, "second")).aborted
            assert (await verbs.run(run_id), await verbs.timeline(run_id)) == (before, lines)

    async def test_abort_of_one_run_twice_in_a_batch(self, verbs: Verbs) -> None:
        """Of two aborts of one run in one batch the first one's reason stands."""
        result = await verbs.start(slot())
        batch = [Abort(run_id=result.run_id or "", reason=reason) for reason in ("first", "second")]
        answers = await verbs.together(runs.abort, batch, folds.decide_abort)
        assert [answer.aborted for answer in answers] == [True, False]
        assert (await verbs.run(result.run_id or "")).abort_reason == "first"

    async def test_abort_of_a_whole_slot(self, verbs: Verbs) -> None:
        """Aborting everything of a slot in one batch leaves it empty: nobody starts who was just aborted."""
        ids = [(await verbs.start(slot())).run_id or "" for _ in range(5)]
        batch = [Abort(run_id=run_id, reason="all") for run_id in ids]
        await verbs.together(runs.abort, batch, folds.decide_abort)
        assert await verbs.claim() == []
        assert (await verbs.start(slot())).outcome == "started"

    async def test_abort_skips_those_that_were_aborted_before(self, verbs: Verbs) -> None:
        """When a batch aborts waiting runs and then the one before them, the next that is left starts."""
        ids = [(await verbs.start(slot())).run_id or "" for _ in range(5)]
        batch = [Abort(run_id=ids[place], reason="these") for place in (1, 2, 3, 0)]
        await verbs.together(runs.abort, batch, folds.decide_abort)
        assert [entry.run.run_id for entry in await verbs.claim()] == [ids[4]]

    async def test_the_order_of_decisions_is_the_order_of_commits(self, verbs: Verbs) -> None:
        """Decision entries are numbered in the order of their commits: none ever comes between those already seen."""
        run = await verbs.running()
        looks: list[list[tuple[int, str]]] = []

        async def look() -> None:
            """Keeps what the timeline says now."""
            lines = await verbs.timeline(run.run_id)
            looks.append([(line.decision, line.type) for line in lines if line.ordinal == 0])

        async def signal() -> None:
            """Decisions of others."""
            for _ in range(5):
                await verbs.signal(run.run_id)
                await look()

        async def advance() -> None:
            """Decisions of the owner."""
            for visit in range(5):
                await verbs.end_stage(run, Continue(stage="a"), visit=visit)
                await verbs.append(run, "line", first=visit + 1)
                await look()

        async with asyncio.TaskGroup() as group:
            for work in (signal(), signal(), advance()):
                group.create_task(work)
        looks.sort(key=len)
        for earlier, later in itertools.pairwise(looks):
            assert later[: len(earlier)] == earlier
        assert [number for number, _ in looks[-1]] == list(range(1, len(looks[-1]) + 1))

    async def test_append_stands_beneath_its_decision(self, verbs: Verbs) -> None:
        """Log lines sort beneath the decision that they follow, in their order."""
        run = await verbs.running()
        await verbs.append(run, "one", "two")
        await verbs.append(run, "three", first=3)
        await verbs.end_stage(run, Continue(stage="b"))
        await verbs.settle(run, entries=(NewEntry(type="stage:done"),))
        lines = [entry.path or entry.type for entry in await verbs.timeline(run.run_id)]
        assert lines == ["run:started", "run:claimed", "one", "two", "three", "stage:done", "run:completed"]
        await verbs.cleaned(run)

    async def test_append_after_a_lost_reply(self, verbs: Verbs) -> None:
        """Log lines that are sent again stand in the timeline once."""
        run = await verbs.running()
        await verbs.append(run, "one", "two")
        await verbs.append(run, "one", "two")
        assert [entry.path for entry in await verbs.timeline(run.run_id) if entry.path] == ["one", "two"]
