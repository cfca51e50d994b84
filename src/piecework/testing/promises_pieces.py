"""What a store promises about pieces: one update to come at a time, and its end in one commit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import InvalidStateError, NotFoundError, StaleEpochError
from piecework.ids import new_id
from piecework.run.lifecycle import Status
from piecework.space.folds import decide_finish_piece, decide_register_piece
from piecework.store.contract import Failure
from piecework.store.items import RegisterPiece
from piecework.store.records import Run
from piecework.store.verbs import pieces
from piecework.testing.verbs import job, piece, piece_end

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs


class PiecePromises:
    """`register_piece`, `run_piece`, `finish_piece` and the lists; what follows failures is promised elsewhere."""

    async def test_register_makes_an_update_due(self, verbs: Verbs) -> None:
        """A new piece's first update is due at once and is handed the piece."""
        assert await verbs.register_piece(piece(config=b'{"url":"x"}'))
        (claimed,) = await verbs.claim()
        assert claimed.piece is not None
        assert (claimed.piece.config, claimed.run.key_value, claimed.run.space) == (b'{"url":"x"}', "hn", "acme")

    async def test_register_again_enables(self, verbs: Verbs) -> None:
        """Registering once more is no second piece: it takes the new configuration and is due now."""
        await verbs.register_piece(piece())
        assert not await verbs.register_piece(piece(config=b'{"url":"y"}'))
        claimed = await verbs.claim()
        assert [entry.piece.config for entry in claimed if entry.piece is not None] == [b'{"url":"y"}']

    async def test_register_one_piece_twice_in_a_batch(self, verbs: Verbs) -> None:
        """Two registrations of one piece in one batch are one piece with one update."""
        batch = [RegisterPiece(piece=piece(config=config), run_id=new_id()) for config in (b"1", b"2")]
        answers = await verbs.together(pieces.register_piece, batch, decide_register_piece)
        assert [answer.added for answer in answers] == [True, False]
        assert len(await verbs.claim()) == 1

    async def test_register_at_once(self, verbs: Verbs) -> None:
        """Of fifty registrations of one piece at once one is the first, and there is one piece with one update."""
        found = await asyncio.gather(*(verbs.register_piece(piece()) for _ in range(50)))
        assert found.count(True) == 1
        assert len(await verbs.claim()) == 1

    async def test_register_revives_a_broken_piece(self, verbs: Verbs) -> None:
        """A piece that had stopped for good runs again when it is registered again."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, "failed", permanent=True))
        await verbs.register_piece(piece())
        assert (await verbs.piece()).consecutive_failures == 0
        assert len(await verbs.claim()) == 1

    async def test_register_during_an_update(self, verbs: Verbs) -> None:
        """A piece that is registered anew while it updates runs again right after that update."""
        run = await verbs.updating()
        verbs.now += SECOND
        await verbs.register_piece(piece(config=b"2"))
        assert await verbs.claim() == []
        assert (await verbs.finish_piece(piece_end(run))).next_run_at == verbs.now

    async def test_register_moves_to_another_integration(self, verbs: Verbs) -> None:
        """The update that is to come is of the integration that the piece has now."""
        await verbs.register_piece(piece())
        await verbs.register_piece(replace(piece(), integration="mailbox"))
        assert await verbs.claim() == []
        assert len(await verbs.claim(known=("piece:mailbox",))) == 1

    async def test_run_now(self, verbs: Verbs) -> None:
        """A piece that is wanted now is due now, by the update that was to come."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, next_run_id="next"))
        assert await verbs.claim() == []
        assert await verbs.run_piece() == "next"
        assert [entry.run.run_id for entry in await verbs.claim()] == ["next"]

    async def test_run_now_during_an_update(self, verbs: Verbs) -> None:
        """An update that is under way is the answer; no second one starts beside it."""
        run = await verbs.updating()
        assert await verbs.run_piece() == run.run_id
        assert await verbs.claim() == []

    async def test_run_now_of_an_unknown_piece(self, verbs: Verbs) -> None:
        """Asking for a piece that is not there names it."""
        with pytest.raises(NotFoundError, match="nobody"):
            await verbs.run_piece("nobody")

    async def test_finish_with_success(self, verbs: Verbs) -> None:
        """A success keeps the state, clears the failures, and the next update is a fixed delay away."""
        run = await verbs.updating()
        verbs.now += 5 * SECOND
        done = await verbs.finish_piece(piece_end(run, state=b'{"n":1}'))
        row, ended = await verbs.piece(), await verbs.run(run.run_id)
        assert (done.status, done.next_run_at) == ("completed", verbs.now + 60 * SECOND)
        assert (row.state, row.status, row.last_success_at) == (b'{"n":1}', "Success", verbs.now)
        assert (ended.status, ended.outcome, ended.cleaned) == ("completed", "success", 1)

    async def test_finish_with_nothing_to_do(self, verbs: Verbs) -> None:
        """A skipped update counts as a success and says why."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, "skipped"))
        row = await verbs.piece()
        assert (row.status, row.consecutive_failures, row.last_success_at) == ("Skipped: because", 0, verbs.now)

    async def test_finish_with_a_later_moment(self, verbs: Verbs) -> None:
        """An update that asks to come back later does, whatever its interval; that is neither success nor failure."""
        run = await verbs.updating()
        done = await verbs.finish_piece(piece_end(run, "retry_after", retry_after=300 * SECOND))
        row = await verbs.piece()
        assert done.next_run_at == verbs.now + 300 * SECOND
        assert (row.last_success_at, row.last_failure_at) == (None, None)

    async def test_finish_for_good(self, verbs: Verbs) -> None:
        """A permanent failure stops the piece until somebody enables it again."""
        run = await verbs.updating()
        done = await verbs.finish_piece(piece_end(run, "failed", permanent=True))
        row = await verbs.piece()
        assert (done.next_run_at, row.observed, row.run_id) == (None, "broken", None)
        verbs.now += 10**12
        assert await verbs.claim() == []

    async def test_finish_of_an_aborted_update(self, verbs: Verbs) -> None:
        """An update that was aborted ends aborted; the piece goes on."""
        run = await verbs.updating()
        await verbs.abort(run.run_id)
        done = await verbs.finish_piece(piece_end(run))
        assert (done.status, done.next_run_at is not None) == (Status.ABORTED, True)

    async def test_abort_of_an_update_to_come(self, verbs: Verbs) -> None:
        """A piece's coming update cannot be aborted: that would end its schedule without a word."""
        await verbs.register_piece(piece())
        with pytest.raises(InvalidStateError, match="end the piece's schedule"):
            await verbs.abort((await verbs.piece()).run_id or "")
        assert len(await verbs.claim()) == 1

    async def test_finish_after_a_lost_reply(self, verbs: Verbs) -> None:
        """An end that is repeated counts once and is answered as the first time."""
        run = await verbs.updating()
        item = piece_end(run, "failed")
        first = await verbs.finish_piece(item)
        before = await verbs.piece()
        again = await verbs.together(pieces.finish_piece, [item, item], decide_finish_piece)
        assert again == [first, first]
        assert await verbs.piece() == before

    async def test_finish_bad_neighbour(self, verbs: Verbs) -> None:
        """The end of an unknown update does not keep others from ending."""
        run = await verbs.updating()
        stray = piece_end(job("nobody").run)
        unknown, fine = await verbs.together(pieces.finish_piece, [stray, piece_end(run)], decide_finish_piece)
        assert isinstance(unknown, Failure)
        assert fine.status == "completed"

    async def test_late_failure(self, verbs: Verbs) -> None:
        """A failure after the end of a good update stands in its timeline and counts once; the schedule stays."""
        run = await verbs.updating()
        done = await verbs.finish_piece(piece_end(run))
        assert [await verbs.late_failure(run, number=number) for number in (1, 2, 2)] == [True, False, False]
        row, ended = await verbs.piece(), await verbs.run(run.run_id)
        assert (row.consecutive_failures, row.last_failure_at, row.status) == (1, verbs.now, "late")
        assert (row.next_run_at, ended.status, ended.error) == (done.next_run_at, "completed", '{"code":"X"}')
        assert [entry.type for entry in await verbs.timeline(run.run_id)].count("run:late") == 2

    async def test_late_failure_of_a_failed_update(self, verbs: Verbs) -> None:
        """A failure after the end of a failed update is told, and counts no second time."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, "failed"))
        before = await verbs.piece(), await verbs.run(run.run_id)
        assert not await verbs.late_failure(run)
        assert (await verbs.piece(), await verbs.run(run.run_id)) == before

    async def test_late_failure_of_anothers_update(self, verbs: Verbs) -> None:
        """A space cannot tell of failures in another one, nor of an attempt that is somebody else's now."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run))
        for wrong in ({"run": run, "space": "beta"}, {"run": replace(run, epoch=run.epoch + 1)}):
            with pytest.raises(StaleEpochError):
                await verbs.late_failure(**wrong)
        with pytest.raises(NotFoundError):
            await verbs.late_failure(replace(run, run_id="nobody"))
        assert (await verbs.piece()).consecutive_failures == 0

    async def test_late_failure_of_a_removed_piece(self, verbs: Verbs) -> None:
        """A failure after the end of an update whose piece has been removed is not charged to another of its name."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run))
        await verbs.remove_piece()
        verbs.now += SECOND
        await verbs.register_piece(piece())
        assert await verbs.late_failure(run)
        assert (await verbs.piece()).consecutive_failures == 0

    async def test_history_is_trimmed(self, verbs: Verbs) -> None:
        """A piece keeps its newest runs, and few of those that had nothing to do; values and timelines go along."""
        run, ids = await verbs.updating(), []
        for number in range(8):
            ids.append(run.run_id)
            outcome = "skipped" if number % 2 else "success"
            done = await verbs.finish_piece(piece_end(run, outcome, history_limit=4, skipped_limit=1))
            verbs.now = done.next_run_at or 0
            run = (await verbs.claim())[0].run
        rows: list[Run] = await verbs.store.read("piece_runs", {"space": "acme", "piece_id": "hn", "limit": 100}, Run)
        kept = [row.run_id for row in rows if row.ended_at is not None]
        assert kept == [ids[7], ids[6], ids[4]]
        assert (await verbs.timeline(ids[0]), await verbs.values(ids[0])) == ([], {})

    async def test_listing_by_cursor(self, verbs: Verbs) -> None:
        """Runs are listed the newest first, page by page, each once."""
        for number in range(25):
            verbs.now += number % 3
            await verbs.enqueue(job(f"job-{number:02}"))
        seen: list[Run] = []
        while True:
            last = seen[-1] if seen else None
            page: list[Run] = await verbs.store.read("list_runs", _page(last), Run)
            seen += page
            if not page:
                break
        assert [run.run_id for run in seen] == [f"job-{number:02}" for number in reversed(range(25))]


def _page(last: Run | None) -> dict[str, object]:
    return {
        "status": None,
        "workflow": None,
        "space": None,
        "kind": "job",
        "created_at": None if last is None else last.created_at,
        "run_id": None if last is None else last.run_id,
        "limit": 4,
    }
