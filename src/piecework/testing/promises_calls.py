"""What a store promises about calls from outside: signals, failed resumes, repeats, and what may happen only once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import InvalidStateError, NotFoundError, StaleEpochError
from piecework.run import folds
from piecework.run.lifecycle import Status
from piecework.store.contract import Failure
from piecework.store.items import Continue, Defer, Park, SendSignal
from piecework.store.verbs import runs
from piecework.store.verbs.retention import forget_ids
from piecework.store.verbs.runs import enqueue
from piecework.testing.rows import job, slot, transient, waits

if TYPE_CHECKING:
    from piecework.store.records import Run, Slot
    from piecework.testing.verbs import Verbs

ONE, OTHER = "call-1", "call-2"


class CallPromises:
    """`signal`, `unresume`, tokens, and `enqueue` with an occurrence."""

    # -- signals ---------------------------------------------------------------------------------------------------

    async def test_signal_of_a_running_run_is_live(self, verbs: Verbs) -> None:
        """A running run's owner is named, so that it can be told at once."""
        run = await verbs.running(owner="node-7")
        told = await verbs.signal(run.run_id, b'{"n":1}')
        assert (told.delivered, told.owner) == ("live", "node-7")
        assert [(row.number, row.patch) for row in await verbs.signals(run.run_id)] == [(told.number, b'{"n":1}')]

    @pytest.mark.parametrize("status", ["queued", "paused"])
    async def test_signal_of_a_waiting_run_is_stored(self, verbs: Verbs, status: str) -> None:
        """A run that waits keeps the signal, wakes not for it, and is handed it when it goes on."""
        if status == "queued":
            await verbs.running(slot())
            run_id = (await verbs.start(slot())).run_id or ""
        else:
            run_id = (await verbs.paused()).run_id
        told = await verbs.signal(run_id, b'{"n":1}')
        after = await verbs.run(run_id)
        assert (told.delivered, told.owner, after.status, after.due_at) == ("stored", None, status, None)

    async def test_signals_are_handed_over_in_their_order(self, verbs: Verbs) -> None:
        """Whoever claims a run gets its signals, the oldest first."""
        run = await verbs.paused()
        numbers = [(await verbs.signal(run.run_id, b"%d" % n)).number for n in range(12)]
        await verbs.resume(run.run_id)
        (claimed,) = await verbs.claim()
        assert claimed.signals == tuple(zip(numbers, [b"%d" % n for n in range(12)], strict=True))

    async def test_signal_of_an_ended_run_is_refused(self, verbs: Verbs) -> None:
        """A run that has ended takes no signal, also while it is being cleaned up."""
        run = await verbs.running()
        await verbs.settle(run)
        with pytest.raises(InvalidStateError, match="ended"):
            await verbs.signal(run.run_id)
        await verbs.cleaned(run)
        with pytest.raises(InvalidStateError, match="ended"):
            await verbs.signal(run.run_id)

    async def test_signal_of_an_unknown_run(self, verbs: Verbs) -> None:
        """A signal to a run that never was says so."""
        with pytest.raises(NotFoundError, match="nobody"):
            await verbs.signal("nobody")

    async def test_signal_again_with_its_token(self, verbs: Verbs) -> None:
        """A signal that is repeated with its token is one signal, with one number."""
        run = await verbs.running()
        answers = [await verbs.signal(run.run_id, b'{"n":1}', token=ONE) for _ in range(2)]
        assert answers[0] == answers[1]
        assert len(await verbs.signals(run.run_id)) == 1
        await verbs.signal(run.run_id, b'{"n":1}', token=OTHER)
        assert len(await verbs.signals(run.run_id)) == 2

    async def test_signals_of_one_batch(self, verbs: Verbs) -> None:
        """Signals of one batch are kept in their order, a repeat among them once, and a bad one is refused alone."""
        run = await verbs.running()
        batch = [
            SendSignal(run_id=run.run_id, patch=b"1", token=ONE),
            SendSignal(run_id=run.run_id, patch=b"1", token=ONE),
            SendSignal(run_id="nobody", patch=b"2"),
            SendSignal(run_id=run.run_id, patch=b"3", token=OTHER),
        ]
        first, again, unknown, last = await verbs.together(runs.signal, batch, folds.decide_signal)
        assert (first, isinstance(unknown, Failure), last.number > first.number) == (again, True, True)
        assert [row.patch for row in await verbs.signals(run.run_id)] == [b"1", b"3"]

    async def test_signals_are_merged_once(self, verbs: Verbs) -> None:
        """A commit says which signals its state holds: those are forgotten, later ones are answered."""
        run = await verbs.running()
        first = await verbs.signal(run.run_id, b"1")
        second = await verbs.signal(run.run_id, b"2")
        progress = await verbs.end_stage(run, Continue(stage="b"), signalled=first.number)
        assert progress.signals == ((second.number, b"2"),)
        progress = await verbs.end_stage(run, Continue(stage="c"), visit=1, signalled=second.number)
        assert (progress.signals, await verbs.signals(run.run_id)) == ((), [])

    async def test_signals_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A commit that is repeated answers the signals that its state does not hold, as the first time."""
        run = await verbs.running()
        first = await verbs.signal(run.run_id, b"1")
        await verbs.signal(run.run_id, b"2")
        answers = [await verbs.end_stage(run, Continue(stage="b"), signalled=first.number) for _ in range(2)]
        assert answers[0] == answers[1]

    @pytest.mark.parametrize("then", [Park(stage="b"), Defer(due_at=0)])
    async def test_signals_wait_out_a_pause(self, verbs: Verbs, then: Park | Defer) -> None:
        """What the state does not hold when a run lets go is handed to whoever has it next."""
        run = await verbs.running()
        await verbs.signal(run.run_id, b"1")
        await verbs.end_stage(run, then)
        if isinstance(then, Park):
            await verbs.resume(run.run_id)
        (claimed,) = await verbs.claim("node-2")
        assert [patch for _, patch in claimed.signals] == [b"1"]

    async def test_signals_beside_a_kept_event(self, verbs: Verbs) -> None:
        """A pause that is over at once brings the signals along with the event's patch."""
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        await verbs.publish()
        told = await verbs.signal(run.run_id, b"1")
        answers = [await verbs.end_stage(run, Park(stage="b")) for _ in range(2)]
        assert [answer.outcome for answer in answers] == ["resumed", "resumed"]
        assert [answer.signals for answer in answers] == [((told.number, b"1"),)] * 2

    async def test_signals_survive_the_owner(self, verbs: Verbs) -> None:
        """Who takes a dead owner's run over is handed the signals that no checkpoint holds."""
        run = await verbs.running()
        told = await verbs.signal(run.run_id, b"1")
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert taken.signals == ((told.number, b"1"),)

    @pytest.mark.parametrize("end", ["settle", "abort"])
    async def test_signals_are_gone_with_the_run(self, verbs: Verbs, end: str) -> None:
        """What an ended run has not taken in is forgotten."""
        run = await (verbs.running() if end == "settle" else verbs.paused())
        await verbs.signal(run.run_id, b"1")
        if end == "settle":
            await verbs.end(run)
        else:
            await verbs.abort(run.run_id)
        assert await verbs.signals(run.run_id) == []
        assert (await verbs.run(run.run_id)).signals == 0

    async def test_signals_from_many_at_once(self, verbs: Verbs) -> None:
        """However many signal at the same moment, each signal is kept, under a number of its own."""
        run = await verbs.running()
        answers = await asyncio.gather(*(verbs.signal(run.run_id, b"%d" % n) for n in range(20)))
        kept = {row.number: row.patch for row in await verbs.signals(run.run_id)}
        assert kept == {answer.number: b"%d" % n for n, answer in enumerate(answers)}
        assert len(kept) == 20

    # -- a resume that fails ---------------------------------------------------------------------------------------

    async def test_unresume_pauses_again_with_its_patch(self, verbs: Verbs) -> None:
        """A run that could not go on is paused as before, and woken by itself with the patch that it had."""
        run = await _woken(verbs)
        assert await verbs.unresume(run, seconds=5, error="no room") == 1
        paused = await verbs.run(run.run_id)
        assert (paused.status, paused.owner, paused.expires_at) == (Status.PAUSED, None, verbs.now + 5 * SECOND)
        assert paused.waiting_for == '["order.paid"]'
        verbs.now += 5 * SECOND
        assert await verbs.due() == 1
        (claimed,) = await verbs.claim()
        assert (claimed.run.attempt, b'"n":1' in claimed.values["patch"]) == (2, True)
        assert b'"__resume_reason__":"event"' in claimed.values["patch"]

    async def test_unresume_is_not_early(self, verbs: Verbs) -> None:
        """Until its time has come such a run is left alone."""
        await verbs.unresume(await _woken(verbs), seconds=5)
        verbs.now += 5 * SECOND - 1
        assert (await verbs.due(), await verbs.claim()) == (0, [])

    async def test_unresume_counts_the_attempts(self, verbs: Verbs) -> None:
        """Each failed resume is one more; the end of a stage begins a new count."""
        run = await _woken(verbs)
        for number in (1, 2, 3):
            assert await verbs.unresume(run, seconds=1) == number
            verbs.now += SECOND
            await verbs.due()
            (claimed,) = await verbs.claim()
            run = claimed.run
        await verbs.end_stage(run, Continue(stage="c"))
        after = await verbs.run(run.run_id)
        assert (after.attempt, "patch" in await verbs.values(run.run_id)) == (0, False)

    async def test_unresume_keeps_events_meanwhile(self, verbs: Verbs) -> None:
        """An event that comes before it is woken again does not overtake the patch that it has: it is kept."""
        run = await _woken(verbs)
        await verbs.unresume(run, seconds=5)
        assert await verbs.publish("order.paid", n=2) == ["buffered"]
        verbs.now += 5 * SECOND
        await verbs.due()
        (claimed,) = await verbs.claim()
        assert b'"n":1' in claimed.values["patch"]
        progress = await verbs.end_stage(claimed.run, Park(stage="c"))
        assert (progress.outcome, b'"n":2' in (progress.patch or b"")) == ("resumed", True)

    async def test_unresume_beside_a_kept_event(self, verbs: Verbs) -> None:
        """An event that came while it was being woken waits for its turn as well, and nothing contradicts that."""
        run = await _woken(verbs)
        assert await verbs.publish("order.paid", n=2) == ["buffered"]
        await verbs.unresume(run, seconds=5)
        assert (await verbs.due(), await verbs.claim()) == (0, [])

    async def test_unresume_after_a_lost_reply(self, verbs: Verbs) -> None:
        """A failed resume that is told twice counts once."""
        run = await _woken(verbs)
        first = await verbs.unresume(run)
        before, lines = await verbs.run(run.run_id), await verbs.timeline(run.run_id)
        assert await verbs.unresume(run) == first
        assert (await verbs.run(run.run_id), await verbs.timeline(run.run_id)) == (before, lines)

    async def test_unresume_gives_its_place_up(self, verbs: Verbs) -> None:
        """Where a pause makes room so does a failed resume: who waits starts."""
        room = transient(concurrency=1)
        run = await _woken(verbs, room)
        waiting = await verbs.start(room)
        await verbs.unresume(run)
        assert [entry.run.run_id for entry in await verbs.claim()] == [waiting.run_id]

    async def test_unresume_by_a_superseded_owner(self, verbs: Verbs) -> None:
        """Only who has the run can say that it did not go on."""
        run = await _woken(verbs)
        (taken,) = await verbs.claim("node-2", orphans=True)
        with pytest.raises(StaleEpochError, match=run.run_id):
            await verbs.unresume(run)
        assert await verbs.run(run.run_id) == taken.run

    async def test_unresume_and_a_resume_by_hand(self, verbs: Verbs) -> None:
        """Somebody may wake it before its time; what it was to merge is not lost beneath the new patch."""
        run = await _woken(verbs)
        await verbs.unresume(run, seconds=60)
        await verbs.resume(run.run_id, {"by": "hand"})
        (claimed,) = await verbs.claim()
        patch = (await verbs.values(run.run_id))["patch"]
        assert (claimed.run.run_id, patch["by"], patch["n"]) == (run.run_id, "hand", 1)
        verbs.now += 60 * SECOND
        assert await verbs.due() == 0

    async def test_unresume_and_an_abort(self, verbs: Verbs) -> None:
        """A run that waits for its next resume can be aborted like any paused one."""
        run = await _woken(verbs)
        await verbs.unresume(run)
        outcome = await verbs.abort(run.run_id)
        assert (outcome.aborted, outcome.ended, await verbs.values(run.run_id)) == (True, True, {"state": {}})

    # -- repeats ---------------------------------------------------------------------------------------------------

    async def test_resume_again_with_its_token(self, verbs: Verbs) -> None:
        """A resume that is repeated with its token is one resume, also when the run has been claimed since."""
        run = await verbs.paused()
        first = await verbs.resume(run.run_id, {"n": 1}, token=ONE)
        assert await verbs.resume(run.run_id, {"n": 1}, token=ONE) == first
        await verbs.claim()
        again = await verbs.resume(run.run_id, {"n": 1}, token=ONE)
        assert (again.run_id, again.resume_count) == (run.run_id, 1)
        with pytest.raises(InvalidStateError):
            await verbs.resume(run.run_id, {"n": 1}, token=OTHER)

    async def test_abort_again_with_its_token(self, verbs: Verbs) -> None:
        """An abort that is repeated with its token is answered as the first time; another's is told so."""
        run = await verbs.running(owner="node-7")
        first = await verbs.abort(run.run_id, token=ONE)
        assert await verbs.abort(run.run_id, token=ONE) == first
        assert (first.aborted, first.ended, first.owner) == (True, False, "node-7")
        assert not (await verbs.abort(run.run_id, token=OTHER)).aborted

    async def test_abort_of_a_waiting_run_again_with_its_token(self, verbs: Verbs) -> None:
        """An abort that ended the run at once says so again."""
        run = await verbs.paused()
        first = await verbs.abort(run.run_id, token=ONE)
        assert (first.ended, await verbs.abort(run.run_id, token=ONE)) == (True, first)

    # -- once ------------------------------------------------------------------------------------------------------

    async def test_an_occurrence_happens_once(self, verbs: Verbs) -> None:
        """Two callers that want the same occurrence get the same run; other occurrences are runs of their own."""
        first = await verbs.enqueue(job("job-1", occurrence="daily/monday"))
        again = await verbs.enqueue(job("job-2", occurrence="daily/monday"))
        other = await verbs.enqueue(job("job-3", occurrence="daily/tuesday"))
        assert (first.duplicate, again.duplicate, other.duplicate) == (False, True, False)
        assert (again.run_id, {entry.run.run_id for entry in await verbs.claim()}) == ("job-1", {"job-1", "job-3"})

    async def test_an_occurrence_that_may_happen_again(self, verbs: Verbs) -> None:
        """While its run has not ended it stands for further ones; after that the next one is a run of its own."""
        first = await verbs.enqueue(job("job-1", occurrence="digest", again=True))
        (entry,) = await verbs.claim()
        while_running = await verbs.enqueue(job("job-2", occurrence="digest", again=True))
        assert (first.duplicate, while_running.run_id, while_running.duplicate) == (False, "job-1", True)
        await verbs.end(entry.run)
        anew = await verbs.enqueue(job("job-3", occurrence="digest", again=True))
        after = await verbs.enqueue(job("job-4", occurrence="digest", again=True))
        assert (anew.run_id, anew.duplicate, after.run_id, after.duplicate) == ("job-3", False, "job-3", True)

    async def test_an_occurrence_is_kept_while_its_run_waits(self, verbs: Verbs) -> None:
        """However old it is, an occurrence is not forgotten before its run has ended."""
        await verbs.enqueue(job("job-1", occurrence="yearly", due_at=verbs.now + 10 * SECOND))
        verbs.now += 5 * SECOND
        assert await verbs.forget(forget_ids) == 0
        assert (await verbs.enqueue(job("job-2", occurrence="yearly"))).run_id == "job-1"

    async def test_an_occurrence_in_one_batch(self, verbs: Verbs) -> None:
        """Also within one batch, among runs without an occurrence, the first one counts."""
        batch = [
            job("job-1", occurrence="x"),
            job("job-2"),
            job("job-3", occurrence="x"),
            job("job-1", occurrence="x"),
        ]
        answers = await verbs.together(enqueue, batch, folds.decide_enqueue)
        assert [(answer.run_id, answer.duplicate) for answer in answers] == [
            ("job-1", False),
            ("job-2", False),
            ("job-1", True),
            ("job-1", True),
        ]

    async def test_an_occurrence_from_many_at_once(self, verbs: Verbs) -> None:
        """However many want it at the same moment, it happens once."""
        answers = await asyncio.gather(*(verbs.enqueue(job(occurrence="x")) for _ in range(20)))
        assert len({answer.run_id for answer in answers}) == 1
        assert sum(not answer.duplicate for answer in answers) == 1
        assert len(await verbs.claim()) == 1

    async def test_an_occurrence_may_come_again(self, verbs: Verbs) -> None:
        """When occurrences of its time are forgotten it may happen again; younger ones still may not."""
        await verbs.enqueue(job("job-1", occurrence="x"))
        verbs.now += SECOND
        await verbs.enqueue(job("job-2", occurrence="y"))
        for entry in await verbs.claim():
            await verbs.end(entry.run)
        await verbs.forget(forget_ids)
        answers = [await verbs.enqueue(replace(job(name), occurrence=what)) for name, what in _AGAIN]
        assert [answer.duplicate for answer in answers] == [False, True]


_AGAIN = (("job-3", "x"), ("job-4", "y"))


async def _woken(verbs: Verbs, to: Slot | None = None) -> Run:
    """A run that an event has woken and that somebody has."""
    run = await verbs.paused(to, "order.paid")
    await verbs.publish("order.paid", n=1)
    (claimed,) = await verbs.claim()
    assert claimed.run.run_id == run.run_id
    return claimed.run
