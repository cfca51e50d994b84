"""What a store promises about pieces that fail: they are out of order once, and once they work again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from piecework.clock import SECOND
from piecework.run.failure import Backoff, ThreeStrikes
from piecework.space.folds import decide_finish_piece
from piecework.store.verbs import pieces
from piecework.testing.rows import piece, piece_end

if TYPE_CHECKING:
    from piecework.run.failure import FailurePolicy
    from piecework.store.items import PieceFinished
    from piecework.store.records import Run
    from piecework.testing.verbs import Verbs

SOON = Backoff(failures_limit=2, probe_seconds=600)


class BrokenPromises:
    """`finish_piece` where an update has failed, and the events that go with it."""

    async def test_a_failure_is_counted(self, verbs: Verbs) -> None:
        """A failure is counted, keeps the state of before, and the next update waits longer each time."""
        run, delays = await verbs.updating(), []
        for number in (1, 2, 3):
            done = await _end(verbs, run, "failed", state=b'{"half":1}', spread=0.5)
            assert (done.status, (await verbs.piece()).consecutive_failures) == ("failed", number)
            delays.append((done.next_run_at or 0) - verbs.now)
            run = await _next(verbs, done)
        row = await verbs.piece()
        assert delays == [30 * SECOND, 60 * SECOND, 120 * SECOND]
        assert (row.state, row.observed) == (b"{}", "backoff")

    async def test_an_outage_is_told_once(self, verbs: Verbs) -> None:
        """A piece that has failed too often is half-open, looks now and then, and that is told once, by an event."""
        run = await verbs.updating()
        done = await _end(verbs, run, "failed", failure=SOON)
        assert (done.told, await told(verbs)) == (None, [])
        for number in (2, 3, 4):
            run = await _next(verbs, done)
            done = await _end(verbs, run, "failed", failure=SOON)
            assert done.next_run_at == verbs.now + 600 * SECOND
            assert (done.told is not None) == (number == 2)
        row = await verbs.piece()
        assert (row.observed, row.status, row.consecutive_failures) == ("half-open", "because", 4)
        ((type_, space, payload),) = await told(verbs)
        assert (type_, space, payload["piece_id"], payload["observed"]) == ("piece:broken", "acme", "hn", "half-open")
        assert (payload["failures"], payload["error"]["code"]) == (2, "EXECUTION_FAILED")

    async def test_a_recovery_is_told_once(self, verbs: Verbs) -> None:
        """The first success after an outage is told, no other one is; the next outage is told again."""
        run = await verbs.updating()
        for outcome in ("failed", "failed", "retry_after", "success", "success", "failed", "failed"):
            done = await _end(verbs, run, outcome, failure=SOON, retry_after=5 * SECOND)
            run = await _next(verbs, done)
        assert [type_ for type_, _, _ in await told(verbs)] == ["piece:broken", "piece:recovered", "piece:broken"]

    async def test_coming_back_later_ends_no_outage(self, verbs: Verbs) -> None:
        """An update that asks to come back later is no success: a half-open piece stays half-open."""
        run = await verbs.updating()
        await _end(verbs, run, "failed", failure=Backoff(failures_limit=1))
        run = await _next(verbs)
        await _end(verbs, run, "retry_after", retry_after=5 * SECOND)
        row = await verbs.piece()
        assert (row.observed, row.next_run_at, row.broken_at is None) == ("half-open", verbs.now + 5 * SECOND, False)

    async def test_a_permanent_failure_is_told(self, verbs: Verbs) -> None:
        """A piece that stops for good is told; enabled, it begins anew: what breaks again is told again."""
        for _ in range(2):
            run = await verbs.updating()
            done = await _end(verbs, run, "failed", permanent=True)
            assert (done.told, done.next_run_at) == ("piece:broken", None)
            verbs.now += SECOND
        await verbs.set_desired("enabled")
        done = await _end(verbs, await _next(verbs))
        assert (done.told, (await verbs.piece()).broken_at) == ("piece:recovered", None)
        assert [type_ for type_, _, _ in await told(verbs)] == ["piece:broken", "piece:broken", "piece:recovered"]

    async def test_a_half_open_piece_that_stops_is_not_told_again(self, verbs: Verbs) -> None:
        """A permanent failure within an outage stops the piece; of the outage everybody has heard."""
        run = await verbs.updating()
        done = await _end(verbs, run, "failed", failure=Backoff(failures_limit=1))
        done = await _end(verbs, await _next(verbs, done), "failed", permanent=True)
        assert (done.told, (await verbs.piece()).observed) == (None, "broken")

    async def test_the_end_of_a_broken_update_after_a_lost_reply(self, verbs: Verbs) -> None:
        """An end that breaks a piece, and is repeated, is told once."""
        item = piece_end(await verbs.updating(), "failed", permanent=True)
        await verbs.finish_piece(item)
        await verbs.together(pieces.finish_piece, [item, item], decide_finish_piece)
        assert len(await told(verbs)) == 1

    async def test_many_that_break_at_once(self, verbs: Verbs) -> None:
        """Of several pieces that break in one commit each is told."""
        ends = [piece_end(await verbs.updating(piece(name)), "failed", permanent=True) for name in ("a", "b", "c")]
        await verbs.together(pieces.finish_piece, ends, decide_finish_piece)
        assert [payload["piece_id"] for _, _, payload in await told(verbs)] == ["a", "b", "c"]

    async def test_three_strikes(self, verbs: Verbs) -> None:
        """Under the three-strikes policy the third failure in a row disables a piece, until somebody enables it."""
        run = await verbs.updating()
        for factor in (2, 3):
            done = await _end(verbs, run, "failed", failure=ThreeStrikes())
            assert done.next_run_at == verbs.now + factor * 60 * SECOND
            run = await _next(verbs, done)
        done = await _end(verbs, run, "failed", failure=ThreeStrikes())
        row = await verbs.piece()
        assert (row.status, row.observed, row.desired) == ("Disabled: because", "broken", "enabled")
        assert (done.next_run_at, row.consecutive_failures) == (None, 3)
        await verbs.set_desired("enabled")
        assert (await verbs.piece()).consecutive_failures == 0

    async def test_a_success_ends_the_strikes(self, verbs: Verbs) -> None:
        """Failures count in a row: a success in between begins the count anew."""
        run = await verbs.updating()
        for outcome in ("failed", "failed", "success", "failed", "failed"):
            run = await _next(verbs, await _end(verbs, run, outcome, failure=ThreeStrikes()))
        row = await verbs.piece()
        assert (row.observed, row.consecutive_failures) == ("backoff", 2)

    async def test_a_failure_says_when(self, verbs: Verbs) -> None:
        """What a failure asks to be waited for is waited for, where its policy's own pause is shorter."""
        run = await verbs.updating()
        for policy in (None, ThreeStrikes()):
            done = await _end(verbs, run, "failed", failure=policy, retry_after=1800 * SECOND)
            assert done.next_run_at == verbs.now + 1800 * SECOND
            run = await _next(verbs, done)

    async def test_run_now_of_a_broken_piece_is_a_probe(self, verbs: Verbs) -> None:
        """A broken piece may be run by hand: it goes on as ever when that succeeds, and strikes count on when not."""
        run = await verbs.updating()
        for _ in range(2):
            run = await _next(verbs, await _end(verbs, run, "failed", failure=ThreeStrikes()))
        for number in (3, 4):
            await _end(verbs, run, "failed", failure=ThreeStrikes())
            row = await verbs.piece()
            assert (row.observed, row.consecutive_failures) == ("broken", number)
            await verbs.run_piece()
            run = await _next(verbs)
        done = await _end(verbs, run)
        assert (done.told, (await verbs.piece()).observed) == ("piece:recovered", "idle")
        assert done.next_run_at == verbs.now + 60 * SECOND

    @pytest.mark.parametrize("every", [60 * SECOND, None])
    async def test_a_probe_that_is_aborted_is_made_again(self, verbs: Verbs, every: int | None) -> None:
        """A half-open piece whose probe somebody stops stays so: the next is a probe too, and nothing is told anew."""
        policy = Backoff(failures_limit=1, probe_seconds=1800)
        done = await _end(verbs, await verbs.updating(), "failed", failure=policy, every=every)
        run = await _next(verbs, done)
        await verbs.abort(run.run_id)
        done = await _end(verbs, run, "failed", failure=policy, every=every)
        assert ((await verbs.piece()).observed, done.next_run_at) == ("half-open", verbs.now + 1800 * SECOND)
        await _end(verbs, await _next(verbs, done), "failed", failure=policy, every=every)
        assert len(await told(verbs)) == 1

    @pytest.mark.parametrize("policy", [Backoff(failures_limit=3), ThreeStrikes()])
    @pytest.mark.parametrize("how", ["failed", "retry_after", "aborted"])
    async def test_what_has_stopped_and_is_tried_stays_stopped(
        self, verbs: Verbs, how: str, policy: FailurePolicy
    ) -> None:
        """A broken piece that is run by hand is tried once: whatever that comes to but a success, it stays broken."""
        await _end(verbs, await verbs.updating(), "failed", permanent=True, failure=policy)
        for _ in range(3):
            await verbs.run_piece()
            assert (await verbs.piece()).observed == "broken"
            run = await _next(verbs)
            if how == "aborted":
                await verbs.abort(run.run_id)
            outcome = "retry_after" if how == "retry_after" else "failed"
            done = await _end(verbs, run, outcome, failure=policy, retry_after=5 * SECOND)
            row = await verbs.piece()
            assert (row.observed, row.run_id, row.next_run_at, done.next_run_at) == ("broken", None, None, None)
        assert len(await told(verbs)) == 1
        await verbs.run_piece()
        done = await _end(verbs, await _next(verbs), failure=policy)
        assert (done.told, done.next_run_at) == ("piece:recovered", verbs.now + 60 * SECOND)

    async def test_an_update_of_before_is_not_held_against_a_piece(self, verbs: Verbs) -> None:
        """A piece that is registered anew while it updates has a clean slate: that update's failure is only told."""
        run = await verbs.updating()
        verbs.now += SECOND
        await verbs.register_piece(piece(config=b"2"))
        done = await _end(verbs, run, "failed", permanent=True)
        row = await verbs.piece()
        assert (done.next_run_at, row.consecutive_failures, row.observed) == (verbs.now, 0, "idle")
        assert (row.last_failure_at, row.status) == (verbs.now, "because")

    async def test_an_aborted_update_is_no_failure(self, verbs: Verbs) -> None:
        """An update that somebody has stopped is not held against its piece; the state that it left is not kept."""
        for outcome in ("failed", "success"):
            run = await verbs.updating(piece(outcome))
            await verbs.abort(run.run_id)
            done = await _end(verbs, run, outcome, state=b'{"n":1}')
            row = await verbs.piece(outcome)
            assert (done.status, done.next_run_at is not None) == ("aborted", True)
            assert (row.consecutive_failures, row.observed, row.state) == (0, "idle", b"{}")

    async def test_a_pause_keeps_the_count(self, verbs: Verbs) -> None:
        """A failure of an update that is under way while its piece is paused counts."""
        run = await verbs.updating()
        verbs.now += SECOND
        await verbs.set_desired("paused")
        done = await _end(verbs, run, "failed")
        assert (done.next_run_at, (await verbs.piece()).consecutive_failures) == (None, 1)

    @pytest.mark.parametrize("permanent", [True, False])
    async def test_enabling_what_is_out_of_order(self, verbs: Verbs, permanent: bool) -> None:
        """Who enables a piece that is half-open or broken sees it run at once, with a clean slate."""
        run = await verbs.updating()
        await _end(verbs, run, "failed", permanent=permanent, failure=Backoff(failures_limit=1))
        assert await verbs.set_desired("enabled")
        row = await verbs.piece()
        assert (row.observed, row.consecutive_failures, row.next_run_at) == ("idle", 0, verbs.now)


async def told(verbs: Verbs) -> list[tuple[str, str | None, dict[str, Any]]]:
    """The events that were told with the ends of updates, oldest first."""
    return [(row.type, row.space, msgspec.json.decode(row.payload)) for row in await verbs.inbox()]


async def _end(verbs: Verbs, run: Run, outcome: str = "success", **rest: Any) -> PieceFinished:
    return await verbs.finish_piece(piece_end(run, outcome, **rest))


async def _next(verbs: Verbs, done: PieceFinished | None = None) -> Run:
    """Claims the update that follows."""
    moment = (await verbs.piece()).next_run_at if done is None else done.next_run_at
    verbs.now = moment or verbs.now
    return (await verbs.claim())[0].run
