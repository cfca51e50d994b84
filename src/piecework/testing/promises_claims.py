"""What a store promises about owners: one at a time, each claim a new epoch, a late writer refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from piecework.errors import NotFoundError, StaleEpochError
from piecework.run import folds
from piecework.run.folds import decide_claim
from piecework.run.lifecycle import Status
from piecework.store.items import Append, Claim, Continue, Defer, Park
from piecework.store.verbs import runs
from piecework.store.verbs.claim import claim
from piecework.testing.verbs import KNOWN, job, piece, piece_end, slot, transient, waits

if TYPE_CHECKING:
    from piecework.store.records import Run
    from piecework.testing.verbs import Verbs


class ClaimPromises:
    """`claim`, `release` and the fence around every later write."""

    async def test_progress_begins_the_count_of_attempts_anew(self, verbs: Verbs) -> None:
        """Attempts that brought no progress are counted; a commit of a stage begins anew."""
        run = await verbs.running()
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert (run.attempt, taken.run.attempt) == (1, 2)
        await verbs.end_stage(taken.run, Continue(stage="two"))
        (again,) = await verbs.claim("node-3", orphans=True)
        assert again.run.attempt == 1

    async def test_progress_is_refused_of_who_had_the_run(self, verbs: Verbs) -> None:
        """How far a run is stands in its row; who had it before cannot say it any more."""
        run = await verbs.running()
        item = Append(
            run_id=run.run_id,
            epoch=run.epoch,
            decision=run.decision,
            attempt=1,
            first=1,
            entries=(),
            progress=(0.4, "two"),
        )
        await verbs.do(runs.append, item, folds.decide_append)
        told = (await verbs.run(run.run_id)).progress
        assert (told or "").startswith('[0.4,"two",')
        await verbs.claim("node-2", orphans=True)
        with pytest.raises(StaleEpochError):
            await verbs.do(runs.append, replace(item, progress=(0.9, None)), folds.decide_append)
        assert (await verbs.run(run.run_id)).progress == told

    async def test_claim_gives_ownership(self, verbs: Verbs) -> None:
        """A claimed run has an owner and a new epoch, its attempt is counted, and it is due no more."""
        await verbs.start(slot())
        (claimed,) = await verbs.claim("node-7")
        run = claimed.run
        assert (run.owner, run.epoch, run.attempt, run.due_at) == ("node-7", 1, 1, None)
        assert (run.status, run.started_at) == (Status.RUNNING, verbs.now)
        assert await verbs.run(run.run_id) == run

    async def test_claim_hands_over_event_and_values(self, verbs: Verbs) -> None:
        """A claim brings all that is needed to go on: the event that started the run, its state, its patch."""
        run = await verbs.paused(None, "order.paid")
        await verbs.end_stage(await _again(verbs, run.run_id), Park(stage="after"), state=b'{"n":1}')
        await verbs.resume(run.run_id, {"approved": True})
        (claimed,) = await verbs.claim()
        assert claimed.event is not None
        assert claimed.event.seq == run.event_seq
        assert claimed.values["state"] == b'{"n":1}'
        assert b'"approved":true' in claimed.values["patch"]

    async def test_claim_only_what_is_due(self, verbs: Verbs) -> None:
        """A run whose time has not come, that waits for room, or that somebody has, is not handed out."""
        await verbs.enqueue(job(due_at=verbs.now + 1))
        await verbs.start(slot())
        await verbs.start(slot())
        assert len(await verbs.claim("node-1")) == 1
        assert await verbs.claim("node-2") == []

    async def test_claim_only_known_names(self, verbs: Verbs) -> None:
        """Work that the node has no code for waits for one that has."""
        await verbs.start(slot())
        assert await verbs.claim(known=("workflow:other", "job:orders")) == []
        assert await verbs.claim(known=()) == []
        assert len(await verbs.claim(known=("workflow:orders",))) == 1

    async def test_claim_up_to_a_limit_longest_due_first(self, verbs: Verbs) -> None:
        """A claim takes as many as it asked for, what has been due longest first."""
        for place in (2, 0, 1):
            await verbs.enqueue(job(f"job-{place}", due_at=verbs.now - 10 + place))
        taken = await verbs.claim(limit=2)
        assert [entry.run.run_id for entry in taken] == ["job-0", "job-1"]

    async def test_claim_by_two_gives_each_run_once(self, verbs: Verbs) -> None:
        """Two nodes that claim at the same moment never get the same run."""
        for _ in range(5):
            await verbs.enqueue(job())
        batch = [Claim(owner=name, limit=3, known=KNOWN) for name in ("node-1", "node-2")]
        answers = await verbs.together(claim, batch, decide_claim)
        more = await asyncio.gather(*(verbs.claim(name) for name in ("node-1", "node-2")))
        taken = [entry.run.run_id for answer in (*answers, *more) for entry in answer]
        assert len(taken) == len(set(taken)) == 5

    async def test_orphans_are_taken_over(self, verbs: Verbs) -> None:
        """What a dead owner had is taken over at a higher epoch, as a further attempt."""
        run = await verbs.running()
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert (taken.run.owner, taken.run.epoch, taken.run.attempt) == ("node-2", run.epoch + 1, 2)

    async def test_orphans_are_not_ones_own(self, verbs: Verbs) -> None:
        """Taking over leaves alone what the asking node has, and what it has no code for."""
        await verbs.running()
        assert await verbs.claim("node-1", orphans=True) == []
        assert await verbs.claim("node-2", orphans=True, known=("job:tidy",)) == []

    async def test_orphan_between_settle_and_cleaned(self, verbs: Verbs) -> None:
        """A run whose owner died before its clean-up is taken over, keeps its outcome, and lets its successor go."""
        run = await verbs.running(slot())
        await verbs.start(slot())
        await verbs.settle(run, "failed", error='{"code":"X"}')
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert (taken.run.status, taken.run.attempt) == ("failed", run.attempt)
        assert await verbs.cleaned(taken.run) == 1

    async def test_what_nobody_cleans_is_taken_in_the_end(self, verbs: Verbs) -> None:
        """A run that ended and whose workflow nobody has any more is given to any node in the end, to be cleaned."""
        queued = await verbs.start(slot(), telling=True)
        await verbs.abort(queued.run_id or "")
        assert await verbs.claim("node-2", known=(), forsaken=verbs.now - 1) == []
        (claimed,) = await verbs.claim("node-2", known=(), forsaken=verbs.now)
        assert (claimed.run.run_id, claimed.run.status) == (queued.run_id, "aborted")
        await verbs.cleaned(claimed.run)

    async def test_release_gives_back(self, verbs: Verbs) -> None:
        """A released run may be claimed again; the interrupted attempt does not count."""
        run = await verbs.running()
        assert await verbs.release(run)
        (taken,) = await verbs.claim("node-2")
        assert (taken.run.run_id, taken.run.attempt, taken.run.epoch) == (run.run_id, 1, run.epoch + 1)

    async def test_release_counted(self, verbs: Verbs) -> None:
        """A run that is released because of a fault of ours has used an attempt."""
        run = await verbs.running()
        await verbs.release(run, counted=True)
        (taken,) = await verbs.claim()
        assert taken.run.attempt == 2

    async def test_release_again_is_harmless(self, verbs: Verbs) -> None:
        """Releasing once more changes nothing."""
        run = await verbs.running()
        await verbs.release(run)
        before = await verbs.run(run.run_id)
        assert not await verbs.release(run)
        assert await verbs.run(run.run_id) == before

    async def test_release_of_an_ended_run_leaves_its_cleaning_due(self, verbs: Verbs) -> None:
        """A run that is given back between its end and its clean-up is handed out for the clean-up."""
        run = await verbs.running()
        await verbs.settle(run)
        await verbs.release(run)
        (taken,) = await verbs.claim("node-2")
        assert taken.run.status == Status.COMPLETED
        await verbs.cleaned(taken.run)

    @pytest.mark.parametrize(
        "write", ["continue", "park", "defer", "settle", "cleaned", "register", "release", "append"]
    )
    async def test_a_superseded_owner_can_write_nothing(self, verbs: Verbs, write: str) -> None:
        """Every write of an owner that was superseded is refused, and changes nothing."""
        old = await verbs.running()
        (taken,) = await verbs.claim("node-2", orphans=True)
        before = (await verbs.run(old.run_id), await verbs.timeline(old.run_id), await verbs.values(old.run_id))
        with pytest.raises(StaleEpochError, match=old.run_id):
            await late_write(verbs, write, old)
        assert before == (await verbs.run(old.run_id), await verbs.timeline(old.run_id), await verbs.values(old.run_id))
        assert taken.run == before[0]

    @pytest.mark.parametrize("write", ["continue", "park", "defer", "settle", "register", "unresume"])
    async def test_an_owner_that_let_go_can_write_nothing(self, verbs: Verbs, write: str) -> None:
        """Who has released a run has no say in it any more, even before somebody else claims it."""
        run = await verbs.running()
        await verbs.release(run)
        before = await verbs.run(run.run_id)
        with pytest.raises(StaleEpochError, match=run.run_id):
            await late_write(verbs, write, run)
        assert await verbs.run(run.run_id) == before

    async def test_a_superseded_update_can_write_nothing(self, verbs: Verbs) -> None:
        """The late result of a piece's superseded update is refused."""
        old = await verbs.updating(piece())
        await verbs.claim("node-2", orphans=True)
        before = await verbs.piece()
        with pytest.raises(StaleEpochError):
            await verbs.finish_piece(piece_end(old))
        assert await verbs.piece() == before

    @pytest.mark.parametrize("call", ["resume", "abort"])
    async def test_an_unknown_run(self, verbs: Verbs, call: str) -> None:
        """A call about a run that never was says so."""
        with pytest.raises(NotFoundError, match="nobody"):
            await getattr(verbs, call)("nobody")

    async def test_deferred_keeps_its_place(self, verbs: Verbs) -> None:
        """A run that waits for a later moment keeps its place in the slot and starts over when it comes."""
        room = transient(concurrency=1)
        run = await verbs.running(room)
        assert (await verbs.end_stage(run, Defer(due_at=verbs.now + 5))).outcome == "deferred"
        assert (await verbs.start(room)).outcome == "queued"
        assert await verbs.claim() == []
        verbs.now += 5
        (taken,) = await verbs.claim()
        assert (taken.run.run_id, taken.run.attempt) == (run.run_id, 1)


async def _again(verbs: Verbs, run_id: str) -> Run:
    await verbs.resume(run_id)
    (claimed,) = await verbs.claim()
    return claimed.run


async def late_write(verbs: Verbs, write: str, run: Run) -> None:
    """One of the writes of an owner, by its name, with what the owner knew of the run."""
    match write:
        case "continue":
            await verbs.end_stage(run, Continue(stage="next"))
        case "park":
            await verbs.end_stage(run, Park(stage="next", waits=waits(run.run_id)))
        case "defer":
            await verbs.end_stage(run, Defer(due_at=0))
        case "settle":
            await verbs.settle(run)
        case "cleaned":
            await verbs.cleaned(run)
        case "register":
            await verbs.register(run, waits(run.run_id))
        case "release":
            await verbs.release(run)
        case "unresume":
            await verbs.unresume(run)
        case _:
            await verbs.append(run, "late")
