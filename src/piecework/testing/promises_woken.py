"""What a store promises about pieces that events wake, and about what is asked of one while its update is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.store.records import Run
from piecework.testing.rows import event, piece, piece_end

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs


class WokenPromises:
    """`wake_pieces`, `move_piece`, `accept` for pieces, and `run_piece` under each overlap."""

    async def test_an_accepted_event_waits_for_its_pieces(self, verbs: Verbs) -> None:
        """An event is left, in the commit that accepts it, for each integration that was registered for its type."""
        await verbs.register_routes("feed.changed", workflow="piece:feed", version=None)
        await verbs.register_routes("feed.*", "*", workflow="piece:mailbox", version=None)
        await verbs.register_routes("feed.*", workflow="orders")
        outcome = await verbs.accept(event("feed.changed"))
        assert [(r.outcome, r.workflow_id) for r in outcome.dispatched] == [
            ("pending", "piece:mailbox"),
            ("pending", "piece:feed"),
        ]
        assert await verbs.pending("piece:feed") == [outcome.seq]
        assert (await verbs.accept(event("other"))).dispatched[0].workflow_id == "piece:mailbox"

    @pytest.mark.parametrize("space", ["acme", None])
    async def test_an_event_wakes_the_pieces_of_its_space(self, verbs: Verbs, space: str | None) -> None:
        """An event of a space makes its pieces' updates due, one without a space those of every space: once."""
        for where in ("acme", "beta"):
            await verbs.register_piece(piece(space=where), at_once=False)
        await verbs.register_piece(replace(piece("other"), integration="mailbox"), at_once=False)
        seq = await verbs.event_for_pieces(space=space)
        woken = await verbs.wake_pieces(seq)
        claimed = await verbs.claim()
        assert sorted(entry.run.space for entry in claimed) == (["acme"] if space else ["acme", "beta"])
        assert {(entry.run.trigger_id, entry.run.event_seq) for entry in claimed} == {("event", seq)}
        assert {entry.event.type for entry in claimed if entry.event is not None} == {"feed.changed"}
        assert sorted(woken.run_ids) == sorted(entry.run.run_id for entry in claimed)
        assert not (await verbs.wake_pieces(seq)).decided
        assert await verbs.pending("piece:feed") == []

    async def test_very_many_pieces_are_woken_in_parts(self, verbs: Verbs) -> None:
        """An event that more pieces are for than one commit wakes waits until the last of them has it."""
        for number in range(3):
            await verbs.register_piece(piece(f"p-{number}"), at_once=False)
        seq = await verbs.event_for_pieces(space="acme")
        first = await verbs.wake_pieces(seq, limit=2)
        assert (first.more, await verbs.pending("piece:feed")) == (("acme", "p-1"), [seq])
        again = await verbs.wake_pieces(seq, limit=2)  # as another node, which begins from the beginning
        assert (again.run_ids, again.more) == ((), ("acme", "p-1"))
        second = await verbs.wake_pieces(seq, limit=2, after=first.more)
        assert (len(first.run_ids), len(second.run_ids), second.more) == (2, 1, None)
        assert len({entry.run.run_id for entry in await verbs.claim()}) == 3
        assert await verbs.pending("piece:feed") == []

    async def test_an_event_brings_forward_what_time_had_made_due(self, verbs: Verbs) -> None:
        """A piece that also runs at intervals has its next update at once, and no second one."""
        run = await verbs.updating()
        await verbs.finish_piece(piece_end(run))
        assert await verbs.claim() == []
        seq = await verbs.event_for_pieces(space="acme")
        await verbs.wake_pieces(seq)
        (claimed,) = await verbs.claim()
        assert claimed.run.event_seq == seq
        done = await verbs.finish_piece(piece_end(claimed.run))
        assert done.next_run_at == verbs.now + 60 * SECOND
        (following,) = await _unended(verbs)
        assert following.event_seq is None

    @pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
    async def test_what_is_asked_for_during_an_update(self, verbs: Verbs, overlap: str) -> None:
        """While an update is under way "skip" is that update, "queue" one more right after it, "cancel" stops it."""
        run = await verbs.updating()
        wanted = await verbs.run_piece(overlap=overlap)
        assert await verbs.run_piece(overlap=overlap) == wanted
        assert (wanted == run.run_id, await verbs.claim()) == (overlap == "skip", [])
        stopped = (await verbs.run(run.run_id)).abort_reason is not None
        assert stopped == (overlap == "cancel")
        done = await verbs.finish_piece(piece_end(run, "failed" if stopped else "success"))
        assert ((await verbs.piece()).consecutive_failures, done.status) == (0, "aborted" if stopped else "completed")
        claimed = [entry.run.run_id for entry in await verbs.claim()]
        assert claimed == ([] if overlap == "skip" else [wanted])

    async def test_a_pause_takes_back_what_was_to_follow(self, verbs: Verbs) -> None:
        """Pausing a piece ends the update that was to follow the one under way; it was never carried out."""
        run = await verbs.updating()
        wanted = await verbs.run_piece(overlap="queue")
        await verbs.set_desired("paused")
        ended = await verbs.run(wanted)
        assert (ended.status, ended.outcome, ended.started_at) == ("aborted", "interrupted", None)
        assert (await verbs.finish_piece(piece_end(run))).next_run_at is None
        assert await verbs.claim() == []

    async def test_a_piece_that_has_stopped_forgets_what_was_to_follow(self, verbs: Verbs) -> None:
        """A permanent failure ends also what was asked for meanwhile."""
        run = await verbs.updating()
        wanted = await verbs.run_piece(overlap="queue")
        await verbs.finish_piece(piece_end(run, "failed", permanent=True))
        assert ((await verbs.run(wanted)).status, await verbs.claim()) == ("aborted", [])

    async def test_an_interrupted_update_is_done_before_the_one_that_follows(self, verbs: Verbs) -> None:
        """What was cut off is carried out again; what was asked for meanwhile still follows right after."""
        run = await verbs.updating()
        wanted = await verbs.run_piece(overlap="queue")
        await verbs.release(run)
        (again,) = await verbs.claim()
        assert again.run.run_id == run.run_id
        await verbs.finish_piece(piece_end(again.run))
        assert [entry.run.run_id for entry in await verbs.claim()] == [wanted]

    async def test_a_due_time_is_moved(self, verbs: Verbs) -> None:
        """A due time that still stands where it was seen is moved, and the node finds it there."""
        run = await verbs.updating()
        done = await verbs.finish_piece(piece_end(run))
        assert done.next_run_at is not None
        assert not await verbs.move_piece(done.next_run_at + 1, verbs.now)
        assert await verbs.move_piece(done.next_run_at, verbs.now)
        assert (await verbs.piece()).next_run_at == verbs.now
        assert len(await verbs.claim()) == 1

    async def test_off_and_on_during_an_update(self, verbs: Verbs) -> None:
        """Paused while it updates a piece stays paused; paused and enabled it has exactly one update to come."""
        run = await verbs.updating()
        verbs.now += SECOND
        await verbs.set_desired("paused")
        await verbs.finish_piece(piece_end(run))
        assert ((await verbs.piece()).desired, await _unended(verbs)) == ("paused", [])
        await verbs.set_desired("enabled")
        (claimed,) = await verbs.claim()
        verbs.now += SECOND
        for desired in ("paused", "enabled", "paused", "enabled"):
            await verbs.set_desired(desired)
        await verbs.finish_piece(piece_end(claimed.run))
        (following,) = await _unended(verbs)
        assert (await verbs.piece()).run_id == following.run_id


async def _unended(verbs: Verbs) -> list[Run]:
    params = {"space": "acme", "piece_id": "hn", "limit": 100}
    rows: list[Run] = await verbs.store.read("piece_runs", params, Run)
    return [row for row in rows if row.ended_at is None]
