"""What a store promises about pieces that are removed: no update follows, and none of a namesake overlaps the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from piecework.clock import SECOND
from piecework.errors import NotFoundError
from piecework.run.lifecycle import Status
from piecework.space.folds import decide_remove_piece
from piecework.store.contract import Failure
from piecework.store.items import RemovePiece
from piecework.store.records import Piece, Run
from piecework.store.verbs import pieces, retention
from piecework.testing.rows import piece, piece_end

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs


class RemovedPromises:
    """`remove_piece`, and the other verbs of pieces where one is removed."""

    async def test_a_removed_piece_is_gone(self, verbs: Verbs) -> None:
        """Removing a piece removes its row and the update that was to come, without a trace."""
        await verbs.register_piece(piece(), run_id="first")
        assert (await verbs.remove_piece()).aborting is None
        assert await _rows(verbs) == []
        verbs.now += 10**12
        assert (await verbs.claim(), await verbs.runs("first"), await verbs.timeline("first")) == ([], [], [])

    @pytest.mark.parametrize("how", ["broken", "paused"])
    async def test_a_piece_that_does_not_run_is_removed(self, verbs: Verbs, how: str) -> None:
        """A piece that has stopped, or is paused, can be removed as any other."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, "failed", permanent=how == "broken"))
        if how == "paused":
            await verbs.set_desired("paused")
        await verbs.remove_piece()
        assert await _rows(verbs) == []
        assert (await verbs.run(run.run_id)).status == "failed"

    async def test_removed_during_an_update(self, verbs: Verbs) -> None:
        """An update that is under way is told to end, ends aborted whatever it came to, and is the last."""
        run = await verbs.updating()
        told = await verbs.remove_piece()
        assert told.aborting is not None
        assert (told.aborting.run_id, told.aborting.owner) == (run.run_id, run.owner)
        done = await verbs.finish_piece(piece_end(run, state=b'{"n":1}'))
        assert (done.status, done.next_run_at, await _rows(verbs)) == (Status.ABORTED, None, [])

    async def test_what_is_being_removed_is_not_there(self, verbs: Verbs) -> None:
        """A piece that was removed is not found any more, also while its last update is being stopped."""
        await verbs.updating()
        await verbs.remove_piece()
        for asked in (verbs.remove_piece(), verbs.run_piece(), verbs.set_desired("enabled")):
            with pytest.raises(NotFoundError):
                await asked

    async def test_removed_after_it_was_given_back(self, verbs: Verbs) -> None:
        """An update that had begun, and that nobody has now, ends as interrupted: what it did stays in the history."""
        run = await verbs.updating()
        await verbs.release(run)
        assert (await verbs.remove_piece()).aborting is None
        ended = await verbs.run(run.run_id)
        assert (ended.status, ended.outcome, await _rows(verbs)) == (Status.ABORTED, "interrupted", [])

    async def test_given_back_after_it_was_removed(self, verbs: Verbs) -> None:
        """A removed piece's last update that its owner gave back is ended by whoever takes it, and the row with it."""
        run = await verbs.updating()
        await verbs.remove_piece()
        await verbs.release(run)
        (claimed,) = await verbs.claim()
        assert claimed.run.abort_reason == "the piece was removed"
        await verbs.finish_piece(piece_end(claimed.run, "failed"))
        assert await _rows(verbs) == []

    async def test_a_namesake_is_a_new_piece(self, verbs: Verbs) -> None:
        """Registering a removed piece again is a new one: without the state, the failures and the times of the old."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run, state=b'{"n":1}'))
        await verbs.remove_piece()
        verbs.now += SECOND
        assert await verbs.register_piece(piece())
        row = await verbs.piece()
        assert (row.state, row.last_success_at, row.created_at) == (b"{}", None, verbs.now)

    @pytest.mark.parametrize("outcome", ["success", "failed"])
    async def test_a_namesake_waits_for_the_last_update(self, verbs: Verbs, outcome: str) -> None:
        """Two updates of one id never overlap: a namesake's first follows the end of the one that is being stopped."""
        run = await verbs.updating()
        await verbs.remove_piece()
        verbs.now += SECOND
        assert await verbs.register_piece(piece(config=b"2"))
        assert await verbs.claim() == []
        done = await verbs.finish_piece(piece_end(run, outcome, state=b'{"n":1}'))
        row = await verbs.piece()
        assert (done.next_run_at, row.state, row.config, row.observed) == (verbs.now, b"{}", b"2", "idle")
        assert len(await verbs.claim()) == 1

    async def test_removed_in_one_batch(self, verbs: Verbs) -> None:
        """Of two removals in one batch the second finds nothing; a neighbour is removed all the same."""
        await verbs.register_piece(piece("a"))
        await verbs.register_piece(piece("b"))
        batch = [RemovePiece(space="acme", piece_id=name) for name in ("a", "a", "nobody", "b")]
        found = await verbs.together(pieces.remove_piece, batch, decide_remove_piece)
        assert [isinstance(one, Failure) for one in found] == [False, True, True, False]
        assert await _rows(verbs) == []

    async def test_the_history_of_a_removed_piece_is_forgotten_by_and_by(self, verbs: Verbs) -> None:
        """Updates of a removed piece are kept as long as other runs; those of one that is there are its own history."""
        for name in ("gone", "there"):
            run = await verbs.updating(piece(name))
            await verbs.finish_piece(piece_end(run))
        await verbs.remove_piece("gone")
        verbs.now += SECOND
        assert await verbs.forget(retention.forget_runs) == 1
        left: list[Run] = await verbs.store.read("piece_runs", {"space": "acme", "piece_id": "gone", "limit": 10}, Run)
        assert left == []


async def _rows(verbs: Verbs) -> list[Piece]:
    return await verbs.store.read("list_pieces", {"space": None}, Piece)
