"""What a store promises about nodes: a lease protects what a node has, and what dead ones left is found by others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from piecework.errors import StaleEpochError
from piecework.run.folds import decide_claim
from piecework.run.lifecycle import Status
from piecework.store.items import Continue, TakeOver
from piecework.store.records import NodeRow
from piecework.store.verbs.claim import take_over
from piecework.testing.promises_claims import late_write
from piecework.testing.rows import KNOWN, WORKFLOW, event, job, node, piece, piece_end, route, slot

if TYPE_CHECKING:
    from piecework.store.records import Run
    from piecework.testing.verbs import Verbs


class NodePromises:
    """`renew`, `leave`, `take_over`, and the fence behind a death."""

    async def test_renew_tells_of_a_node(self, verbs: Verbs) -> None:
        """A node's row is as it told last, once, whether it was there or not."""
        await verbs.renew(node("node-1", workflows=["one"], expires_at=verbs.now + 5))
        later = node("node-1", workflows=["one", "two"], expires_at=verbs.now + 15)
        await verbs.renew(later)
        await verbs.renew(later)
        await verbs.renew(node("node-2", expires_at=verbs.now + 5))
        assert await _nodes(verbs) == [later, node("node-2", expires_at=verbs.now + 5)]

    async def test_renew_alone_forgets_the_others(self, verbs: Verbs) -> None:
        """Where nobody else can be a node, all others are dead, whatever their leases say: what they had is free."""
        run = await verbs.running(owner="node-1")
        await verbs.renew(node("node-1", expires_at=verbs.now + 1000))
        await verbs.renew(node("node-2"), alone=True)
        assert await _nodes(verbs) == [node("node-2")]
        assert [entry.run.run_id for entry in await verbs.claim("node-2", orphans=True)] == [run.run_id]

    async def test_a_lease_protects(self, verbs: Verbs) -> None:
        """While its lease lasts a node's runs are its own; from the moment when it ends they are anybody's."""
        run = await verbs.running(owner="node-1")
        await verbs.renew(node("node-1", expires_at=verbs.now + 5))
        assert await verbs.claim("node-2", orphans=True) == []
        verbs.now += 4
        assert await verbs.claim("node-2", orphans=True) == []
        verbs.now += 1
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert (taken.run.run_id, taken.run.owner, taken.run.epoch) == (run.run_id, "node-2", run.epoch + 1)

    async def test_a_lease_that_is_renewed_in_time(self, verbs: Verbs) -> None:
        """A node that renews keeps what it has."""
        await verbs.running(owner="node-1")
        for _ in range(3):
            await verbs.renew(node("node-1", expires_at=verbs.now + 5))
            verbs.now += 4
            assert await verbs.claim("node-2", orphans=True) == []

    async def test_a_node_without_a_lease_lives(self, verbs: Verbs) -> None:
        """Where a lock stands for the lease, a node that is known is alive."""
        await verbs.running(owner="node-1")
        await verbs.renew(node("node-1", expires_at=None))
        verbs.now += 10**15
        assert await verbs.claim("node-2", orphans=True) == []

    async def test_an_owner_that_nobody_knows_is_dead(self, verbs: Verbs) -> None:
        """What belongs to an owner without a row is free."""
        run = await verbs.running(owner="node-0")
        await verbs.renew(node("node-1", expires_at=verbs.now + 5))
        assert [entry.run.run_id for entry in await verbs.claim("node-1", orphans=True)] == [run.run_id]

    async def test_leave_sets_free_at_once(self, verbs: Verbs) -> None:
        """A node that stops does not let others wait for the end of its lease; leaving twice is harmless."""
        run = await verbs.running(owner="node-1")
        await verbs.renew(node("node-1", expires_at=verbs.now + 1000))
        await verbs.leave("node-1")
        await verbs.leave("node-1")
        assert [entry.run.run_id for entry in await verbs.claim("node-2", orphans=True)] == [run.run_id]

    async def test_take_over_up_to_a_limit(self, verbs: Verbs) -> None:
        """Many runs of a dead node are taken over in turns, each once, by whoever asks."""
        for _ in range(7):
            await verbs.enqueue(job())
        left = {entry.run.run_id for entry in await verbs.claim("node-0")}
        taken: list[str] = []
        for owner in ("node-1", "node-2", "node-1"):
            for name in ("node-1", "node-2"):
                await verbs.renew(node(name, expires_at=verbs.now + 5))
            taken += [entry.run.run_id for entry in await verbs.claim(owner, orphans=True, limit=3)]
        assert (len(taken), set(taken)) == (7, left)

    async def test_take_over_by_two_at_once(self, verbs: Verbs) -> None:
        """Two nodes that take over at the same moment never get the same run."""
        for name in ("node-1", "node-2", "node-3", "node-4"):
            await verbs.renew(node(name, expires_at=verbs.now + 5))
        for _ in range(6):
            await verbs.enqueue(job())
        await verbs.claim("node-0")
        batch = [TakeOver(owner=name, limit=2, known=KNOWN) for name in ("node-1", "node-2")]
        answers = await verbs.together(take_over, batch, decide_claim)
        more = await asyncio.gather(*(verbs.claim(name, orphans=True) for name in ("node-3", "node-4")))
        taken = [entry.run.run_id for answer in (*answers, *more) for entry in answer]
        assert len(taken) == len(set(taken)) == 6

    async def test_take_over_of_what_was_taken_over(self, verbs: Verbs) -> None:
        """A node that took over and died is taken over from in turn; every time the epoch is raised."""
        run = await verbs.running(owner="node-0")
        for number in (1, 2, 3):
            (taken,) = await verbs.claim(f"node-{number}", orphans=True)
            assert (taken.run.epoch, taken.run.attempt) == (run.epoch + number, run.attempt + number)

    async def test_take_over_brings_what_is_needed(self, verbs: Verbs) -> None:
        """Who takes a run over is handed its event, its state, its patch and its signals, like who claims it."""
        run = await verbs.paused(None, "order.paid")
        await verbs.resume(run.run_id, {"ok": 1})
        (claimed,) = await verbs.claim()
        await verbs.signal(run.run_id, b"1")
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert taken.event == claimed.event
        assert taken.values == claimed.values
        assert [patch for _, patch in taken.signals] == [b"1"]

    @pytest.mark.parametrize(
        "write", ["continue", "park", "defer", "settle", "cleaned", "register", "release", "append", "unresume"]
    )
    async def test_a_zombie_can_write_nothing(self, verbs: Verbs, write: str) -> None:
        """A node that comes back after its lease had ended can write nothing to what was taken over from it."""
        old = await verbs.running(owner="node-1")
        await verbs.renew(node("node-1", expires_at=verbs.now))
        (taken,) = await verbs.claim("node-2", orphans=True)
        await verbs.renew(node("node-1", expires_at=verbs.now + 1000))
        before = (await verbs.run(old.run_id), await verbs.timeline(old.run_id), await verbs.values(old.run_id))
        with pytest.raises(StaleEpochError, match=old.run_id):
            await late_write(verbs, write, old)
        assert before == (await verbs.run(old.run_id), await verbs.timeline(old.run_id), await verbs.values(old.run_id))
        assert taken.run == before[0]

    async def test_a_zombie_cannot_clean(self, verbs: Verbs) -> None:
        """The clean-up of a run that another node has taken over frees no slot."""
        old = await verbs.running(slot(), owner="node-1")
        waiting = await verbs.start(slot())
        await verbs.settle(old)
        (taken,) = await verbs.claim("node-2", orphans=True)
        with pytest.raises(StaleEpochError):
            await verbs.cleaned(old)
        assert await verbs.claim() == []
        assert await verbs.cleaned(taken.run) == 1
        assert [entry.run.run_id for entry in await verbs.claim()] == [waiting.run_id]

    async def test_a_zombie_cannot_finish_a_piece(self, verbs: Verbs) -> None:
        """The late end of an update that was taken over changes neither the piece nor the run."""
        old = await verbs.updating(piece())
        await verbs.claim("node-2", orphans=True)
        before = (await verbs.piece(), await verbs.run(old.run_id))
        with pytest.raises(StaleEpochError):
            await verbs.finish_piece(piece_end(old))
        assert (await verbs.piece(), await verbs.run(old.run_id)) == before

    async def test_death_between_the_end_and_the_clean_up(self, verbs: Verbs) -> None:
        """Whoever takes over an ended run cleans it and lets its successor start; the outcome stands."""
        run = await verbs.running(slot(), owner="node-1")
        waiting = await verbs.start(slot())
        await verbs.settle(run, result=b'{"ok":1}')
        await verbs.renew(node("node-1", expires_at=verbs.now + 5))
        assert await verbs.claim("node-2", orphans=True) == []
        verbs.now += 5
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert (taken.run.status, taken.values["result"]) == (Status.COMPLETED, b'{"ok":1}')
        assert await verbs.cleaned(taken.run) == 1
        assert [entry.run.run_id for entry in await verbs.claim("node-2")] == [waiting.run_id]

    async def test_death_with_an_abort_that_was_promised(self, verbs: Verbs) -> None:
        """An abort that reached nobody is known to whoever takes over, and no stage is committed behind it."""
        run = await verbs.running(owner="node-1")
        await verbs.abort(run.run_id, "enough")
        (taken,) = await verbs.claim("node-2", orphans=True)
        assert taken.run.abort_reason == "enough"
        assert (await verbs.end_stage(taken.run, Continue(stage="b"))).outcome == "aborted"
        assert await verbs.settle(taken.run) == Status.ABORTED
        await verbs.cleaned(taken.run)

    async def test_death_before_a_pending_event_was_decided(self, verbs: Verbs) -> None:
        """An event that waits for its workflow belongs to no node: the next one with the workflow decides it."""
        await verbs.renew(node("node-1", workflows=[WORKFLOW], expires_at=verbs.now + 5))
        await verbs.register_routes("order.placed")
        seq = (await verbs.accept(event())).seq
        await verbs.leave("node-1")
        await verbs.renew(node("node-2", workflows=[WORKFLOW], expires_at=verbs.now + 5))
        assert await verbs.pending() == [seq]
        assert (await verbs.dispatch(seq, route(slot()))).decided
        assert len(await verbs.claim("node-2")) == 1

    async def test_a_paused_run_has_no_owner_to_lose(self, verbs: Verbs) -> None:
        """The death of the node that had a run before it paused means nothing to it."""
        run = await verbs.paused(None, "order.paid")
        assert await verbs.claim("node-2", orphans=True) == []
        assert await verbs.publish() == ["resumed"]
        assert [entry.run.run_id for entry in await verbs.claim("node-2")] == [run.run_id]

    async def test_a_claim_whose_reply_was_lost(self, verbs: Verbs) -> None:
        """What a node was given and never heard of is found among what it owns."""
        await verbs.start(slot())
        (claimed,) = await verbs.claim("node-1")
        assert await verbs.claim("node-1") == []
        rows: list[Run] = await verbs.store.read("owned_runs", {"owner": "node-1"}, type(claimed.run))
        assert rows == [claimed.run]

    async def test_a_nodes_row_is_small_talk(self, verbs: Verbs) -> None:
        """What a node says of itself may change in every way but its name."""
        first = node("node-1", expires_at=verbs.now + 5)
        await verbs.renew(first)
        later = replace(first, host="elsewhere", version="2.0", renewed_at=first.renewed_at + 1, expires_at=None)
        await verbs.renew(later)
        assert await _nodes(verbs) == [later]


async def _nodes(verbs: Verbs) -> list[NodeRow]:
    rows: list[NodeRow] = await verbs.store.read("nodes", {}, NodeRow)
    return rows
