"""What a store promises about what people want of pieces: who pauses one is obeyed, whatever is under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from piecework.clock import SECOND
from piecework.errors import NotFoundError, ValidationError
from piecework.ids import new_id
from piecework.run.lifecycle import Status
from piecework.space.folds import decide_set_desired
from piecework.store.contract import Failure
from piecework.store.items import SetDesired
from piecework.store.verbs import pieces
from piecework.testing.rows import piece, piece_end

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs


class DesiredPromises:
    """`set_desired`, and the other verbs of pieces where one is paused."""

    async def test_a_paused_piece_has_no_update_to_come(self, verbs: Verbs) -> None:
        """Pausing removes the update that was to come, without a trace; why stands on the piece."""
        await verbs.register_piece(piece(), run_id="first")
        assert await verbs.set_desired("paused", reason="too noisy")
        row = await verbs.piece()
        assert (row.desired, row.desired_reason, row.run_id, row.next_run_at) == ("paused", "too noisy", None, None)
        verbs.now += 10**12
        assert (await verbs.claim(), await verbs.runs("first"), await verbs.timeline("first")) == ([], [], [])

    async def test_pause_during_an_update(self, verbs: Verbs) -> None:
        """An update that is under way goes on to its end and counts; none follows it."""
        run = await verbs.updating()
        await verbs.set_desired("paused")
        assert await verbs.run(run.run_id) == run
        done = await verbs.finish_piece(piece_end(run, state=b'{"n":1}'))
        row = await verbs.piece()
        assert (done.status, done.next_run_at) == ("completed", None)
        assert (row.state, row.status, row.run_id, row.next_run_at) == (b'{"n":1}', "Success", None, None)
        verbs.now += 10**12
        assert await verbs.claim() == []

    @pytest.mark.parametrize("outcome", ["failed", "retry_after", "skipped"])
    async def test_no_end_makes_a_paused_piece_go_on(self, verbs: Verbs, outcome: str) -> None:
        """Neither a failure that would be tried again nor an update that wants to come back overrules a pause."""
        run = await verbs.updating()
        await verbs.set_desired("paused")
        done = await verbs.finish_piece(piece_end(run, outcome, retry_after=5))
        assert (done.next_run_at, (await verbs.piece()).desired) == (None, "paused")

    async def test_the_end_of_a_paused_update_after_a_lost_reply(self, verbs: Verbs) -> None:
        """The end of such an update that is repeated is answered as the first time."""
        run = await verbs.updating()
        await verbs.set_desired("paused")
        item = piece_end(run)
        assert await verbs.finish_piece(item) == await verbs.finish_piece(item)

    async def test_pause_of_an_update_that_was_given_back(self, verbs: Verbs) -> None:
        """An update that had begun, and that nobody has now, ends as interrupted: what it did stays in the history."""
        run = await verbs.updating()
        await verbs.release(run)
        await verbs.set_desired("paused")
        ended = await verbs.run(run.run_id)
        assert (ended.status, ended.outcome, ended.cleaned) == (Status.ABORTED, "interrupted", 1)
        assert await verbs.claim() == []

    async def test_pause_again_is_harmless(self, verbs: Verbs) -> None:
        """Pausing what is paused changes nothing, and says so."""
        await verbs.register_piece(piece())
        await verbs.set_desired("paused", reason="first")
        before = await verbs.piece()
        verbs.now += SECOND
        assert not await verbs.set_desired("paused", reason="second")
        assert await verbs.piece() == before

    async def test_enable_makes_an_update_due_now(self, verbs: Verbs) -> None:
        """Who enables a paused piece sees it run at once, with its failures forgotten and its state kept."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, state=b'{"n":1}', next_run_id="next"))
        await verbs.set_desired("paused")
        verbs.now += 10**9
        assert await verbs.set_desired("enabled")
        row = await verbs.piece()
        assert (row.desired, row.next_run_at, row.state) == ("enabled", verbs.now, b'{"n":1}')
        (claimed,) = await verbs.claim()
        assert claimed.run.run_id == row.run_id
        assert claimed.piece is not None
        assert claimed.piece.state == b'{"n":1}'
        assert (await verbs.finish_piece(piece_end(claimed.run))).next_run_at is not None

    async def test_enable_forgets_failures(self, verbs: Verbs) -> None:
        """A piece that is enabled again waits no longer than a new one."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, "failed"))
        await verbs.set_desired("paused")
        await verbs.set_desired("enabled")
        row = await verbs.piece()
        assert (row.consecutive_failures, row.observed, row.next_run_at) == (0, "idle", verbs.now)

    async def test_enable_revives_a_broken_piece(self, verbs: Verbs) -> None:
        """A piece that had stopped for good, whether it is paused or not, runs again when it is enabled."""
        for paused in (False, True):
            run = await verbs.updating(piece(f"p-{paused}"))
            await verbs.finish_piece(piece_end(run, "failed", permanent=True))
            if paused:
                await verbs.set_desired("paused", run.key_value or "")
            assert await verbs.set_desired("enabled", run.key_value or "")
            assert [entry.run.key_value for entry in await verbs.claim()] == [run.key_value]

    async def test_enable_again_is_harmless(self, verbs: Verbs) -> None:
        """Enabling what is enabled, with an update to come, changes nothing: it is not brought forward."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run))
        before = await verbs.piece()
        verbs.now += SECOND
        assert not await verbs.set_desired("enabled")
        assert (await verbs.piece(), await verbs.claim()) == (before, [])

    async def test_pause_and_enable_during_an_update(self, verbs: Verbs) -> None:
        """Who pauses and enables while an update is under way gets no second one beside it, but one right after."""
        run = await verbs.updating()
        verbs.now += SECOND
        await verbs.set_desired("paused")
        await verbs.set_desired("enabled")
        assert await verbs.claim() == []
        assert (await verbs.piece()).run_id == run.run_id
        assert (await verbs.finish_piece(piece_end(run))).next_run_at == verbs.now
        assert len(await verbs.claim()) == 1

    async def test_register_enables(self, verbs: Verbs) -> None:
        """Registering a paused piece enables it."""
        await verbs.register_piece(piece())
        await verbs.set_desired("paused")
        await verbs.register_piece(piece())
        assert (await verbs.piece()).desired == "enabled"
        assert len(await verbs.claim()) == 1

    async def test_run_now_while_paused(self, verbs: Verbs) -> None:
        """Somebody may run a paused piece by hand: once, and it stays paused."""
        await verbs.register_piece(piece())
        await verbs.set_desired("paused")
        run_id = await verbs.run_piece()
        (claimed,) = await verbs.claim()
        assert claimed.run.run_id == run_id
        assert (await verbs.finish_piece(piece_end(claimed.run))).next_run_at is None
        assert (await verbs.piece()).desired == "paused"

    async def test_set_desired_in_one_batch(self, verbs: Verbs) -> None:
        """Of several wishes for one piece in one batch the last one holds; an unknown piece is refused alone."""
        await verbs.register_piece(piece())
        batch = [
            SetDesired(space="acme", piece_id=name, desired=desired, reason=None, run_id=new_id())
            for name, desired in (("hn", "paused"), ("nobody", "paused"), ("hn", "enabled"), ("hn", "paused"))
        ]
        one, unknown, two, three = await verbs.together(pieces.set_desired, batch, decide_set_desired)
        assert ([one, two, three], isinstance(unknown, Failure)) == ([True, True, True], True)
        assert (await verbs.claim(), (await verbs.piece()).desired) == ([], "paused")

    async def test_set_desired_of_an_unknown_piece(self, verbs: Verbs) -> None:
        """A wish for a piece that is not there names it, and one that nobody understands is refused."""
        with pytest.raises(NotFoundError, match="nobody"):
            await verbs.set_desired("paused", "nobody")
        await verbs.register_piece(piece())
        with pytest.raises(ValidationError, match="asleep"):
            await verbs.set_desired("asleep")

    async def test_set_desired_against_the_end_of_an_update(self, verbs: Verbs) -> None:
        """A pause that races the end of an update is obeyed, whichever comes first, and the end counts."""
        for number in range(5):
            run = await verbs.updating(piece(f"p-{number}"))
            done, paused = await asyncio.gather(
                verbs.finish_piece(piece_end(run, state=b'{"n":1}')), verbs.set_desired("paused", f"p-{number}")
            )
            row = await verbs.piece(f"p-{number}")
            assert (done.status, paused, row.desired, row.run_id) == ("completed", True, "paused", None)
            assert row.state == b'{"n":1}'
        verbs.now += 10**12
        assert await verbs.claim() == []
