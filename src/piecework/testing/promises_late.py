"""What a store promises about events that are decided later: by a node that has their workflow, or out of the inbox."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from piecework.errors import ConflictError
from piecework.run.folds_events import decide_dispatch
from piecework.run.lifecycle import Status
from piecework.store.contract import Failure
from piecework.store.items import Dispatch
from piecework.store.records import RouteRow
from piecework.store.verbs.accept import accept
from piecework.store.verbs.dispatch import dispatch
from piecework.testing.rows import WORKFLOW, event, node, published, route, single, slot
from piecework.testing.verbs import decide_accept, refusing

if TYPE_CHECKING:
    from piecework.store.records import Inbox
    from piecework.testing.verbs import Verbs


class LatePromises:
    """`register_routes`, `retire_workflow`, `dispatch`, and `accept` for those and for the inbox."""

    # -- who is asked ----------------------------------------------------------------------------------------------

    async def test_routes_are_of_the_newest_version(self, verbs: Verbs) -> None:
        """A newer registration replaces the routes; an older one, on a node that is behind, changes nothing."""
        await verbs.register_routes("a", "b", version="1.9")
        await verbs.register_routes("b", "c", version="1.10")
        await verbs.register_routes("a", version="1.9")
        assert await _routes(verbs) == [("b", "1.10"), ("c", "1.10")]

    async def test_routes_of_an_equal_version(self, verbs: Verbs) -> None:
        """Of two registrations of one version the last one holds, and a repeat changes nothing."""
        await verbs.register_routes("a", "b")
        await verbs.register_routes("a", "c")
        await verbs.register_routes("a", "c")
        assert await _routes(verbs) == [("a", "1"), ("c", "1")]

    async def test_routes_are_each_workflows_own(self, verbs: Verbs) -> None:
        """What one workflow is registered for says nothing about another."""
        await verbs.register_routes("a", workflow="one", version="2")
        await verbs.register_routes("b", workflow="other", version="1")
        assert (await _routes(verbs, "one"), await _routes(verbs, "other")) == ([("a", "2")], [("b", "1")])

    async def test_an_event_for_a_workflow_that_is_not_here_waits(self, verbs: Verbs) -> None:
        """Whoever has not looked at a workflow that is registered for an event's type leaves the event to others."""
        await verbs.register_routes("order.placed")
        outcome = await verbs.accept(event())
        assert [(r.outcome, r.workflow_id, r.run_id) for r in outcome.dispatched] == [("pending", WORKFLOW, None)]
        assert await verbs.pending() == [outcome.seq]

    async def test_an_event_for_a_newer_version_waits(self, verbs: Verbs) -> None:
        """A node of an older version decides nothing: what it found out is not what holds."""
        await verbs.register_routes("order.placed", version="2")
        outcome = await verbs.accept(event(routes=[route(slot(), version="1")], known={WORKFLOW: "1"}))
        assert [result.outcome for result in outcome.dispatched] == ["pending"]
        assert await verbs.claim() == []

    async def test_an_event_for_the_version_that_is_here_is_decided(self, verbs: Verbs) -> None:
        """Where the newest version has been looked at nothing is left to do, whether it matched or not."""
        await verbs.register_routes("order.placed")
        started = await verbs.accept(event(routes=[route(slot())], known={WORKFLOW: "1"}))
        ignored = await verbs.accept(event(known={WORKFLOW: "1"}))
        assert [result.outcome for result in started.dispatched] == ["started"]
        assert (ignored.dispatched, await verbs.pending()) == ((), [])

    async def test_a_client_leaves_it_to_two_workflows(self, verbs: Verbs) -> None:
        """An event from somebody who has no workflow waits for each that is registered for it, and for no other."""
        for workflow, type_ in (("one", "order.placed"), ("two", "order.placed"), ("three", "order.paid")):
            await verbs.register_routes(type_, workflow=workflow)
        outcome = await verbs.accept(event())
        assert [(r.outcome, r.workflow_id) for r in outcome.dispatched] == [("pending", "one"), ("pending", "two")]
        assert await verbs.pending("one", "two", "three") == [outcome.seq] * 2

    async def test_an_event_that_nobody_is_registered_for_is_done(self, verbs: Verbs) -> None:
        """A workflow that is registered later does not get the events from before."""
        outcome = await verbs.accept(event())
        await verbs.register_routes("order.placed")
        assert await verbs.pending() == []
        assert not (await verbs.dispatch(outcome.seq, route(slot()))).decided

    async def test_an_event_that_waits_still_wakes_runs(self, verbs: Verbs) -> None:
        """Runs that wait for an event need no workflow's code: they are woken when it is accepted."""
        await verbs.register_routes("order.paid")
        run = await verbs.paused(None, "order.paid")
        outcome = await verbs.accept(event("order.paid"))
        assert [(r.outcome, r.run_id) for r in outcome.dispatched] == [("resumed", run.run_id), ("pending", None)]

    async def test_a_duplicate_of_an_event_that_waits(self, verbs: Verbs) -> None:
        """A duplicate says that the first is still to be decided, and later what became of it."""
        await verbs.register_routes("order.placed")
        first = await verbs.accept(event(event_id="e-1"))
        again = await verbs.accept(event(event_id="e-1", routes=[route(slot())], known={WORKFLOW: "1"}))
        assert [(r.outcome, r.reason) for r in again.dispatched] == [("duplicate", "pending")]
        decided = await verbs.dispatch(first.seq, route(slot()))
        last = await verbs.accept(event(event_id="e-1"))
        assert [(r.reason, r.run_id) for r in last.dispatched] == [("started", decided.dispatched[0].run_id)]

    # -- dispatch --------------------------------------------------------------------------------------------------

    async def test_dispatch_decides_once(self, verbs: Verbs) -> None:
        """The first node that decides has decided: a repeat, and a second node, start nothing more."""
        seq = await _waiting(verbs)
        first = await verbs.dispatch(seq, route(slot()))
        again = await verbs.dispatch(seq, route(slot()))
        assert (first.decided, [r.outcome for r in first.dispatched]) == (True, ["started"])
        assert (again.decided, again.dispatched) == (False, ())
        assert len(await verbs.claim()) == 1
        assert await verbs.pending() == []

    async def test_dispatch_by_two_nodes_at_once(self, verbs: Verbs) -> None:
        """Of two nodes that decide at the same moment one does, also when both share a batch."""
        seqs = [await _waiting(verbs), await _waiting(verbs)]
        answers = await asyncio.gather(*(verbs.dispatch(seqs[0], route(slot())) for _ in range(5)))
        batch = [
            Dispatch(event_seq=seqs[1], workflow_id=WORKFLOW, version="1", routes=(route(slot("b")),)) for _ in range(3)
        ]
        more = await verbs.together(dispatch, batch, decide_dispatch)
        assert [sum(answer.decided for answer in each) for each in (answers, more)] == [1, 1]
        assert len(await verbs.claim()) == 2

    async def test_dispatch_by_an_older_version(self, verbs: Verbs) -> None:
        """A node of an older version leaves it to one of the newest."""
        seq = await _waiting(verbs, version="2")
        assert not (await verbs.dispatch(seq, route(slot()), version="1")).decided
        assert await verbs.pending() == [seq]
        assert (await verbs.dispatch(seq, route(slot()), version="2")).decided

    async def test_dispatch_when_a_newer_version_came(self, verbs: Verbs) -> None:
        """Who waited for one version is decided by the next, when that has been registered meanwhile."""
        seq = await _waiting(verbs, version="1")
        await verbs.register_routes("order.placed", version="2")
        assert not (await verbs.dispatch(seq, route(slot()), version="1")).decided
        assert (await verbs.dispatch(seq, route(slot()), version="2")).decided

    async def test_dispatch_of_what_does_not_match(self, verbs: Verbs) -> None:
        """An event that matches none of the workflow's triggers is done; it does not come up again."""
        seq = await _waiting(verbs)
        assert (await verbs.dispatch(seq)).decided
        assert (await verbs.pending(), await verbs.deliveries(seq)) == ([], [])

    async def test_dispatch_of_an_unknown_event(self, verbs: Verbs) -> None:
        """What does not wait is not decided."""
        assert not (await verbs.dispatch(99, route(slot()))).decided

    async def test_dispatch_is_admitted_like_any_event(self, verbs: Verbs) -> None:
        """A late event meets the mode of its workflow: who is replaced is told of, with its owner."""
        run = await verbs.running(single("replace"), owner="node-7")
        seq = await _waiting(verbs)
        decided = await verbs.dispatch(seq, route(single("replace")))
        assert [(a.run_id, a.owner) for a in decided.aborting] == [(run.run_id, "node-7")]
        assert [r.outcome for r in decided.dispatched] == ["replaced"]

    async def test_dispatch_keeps_the_order_of_admission(self, verbs: Verbs) -> None:
        """Late events start in the order in which they were decided, behind those that were decided before."""
        running = await verbs.running(slot())
        seqs = [await _waiting(verbs) for _ in range(3)]
        at_once = await verbs.accept(event("other", routes=[route(slot())]))
        late = [await verbs.dispatch(seq, route(slot())) for seq in seqs]
        order = [at_once.dispatched[0].run_id, *(answer.dispatched[0].run_id for answer in late)]
        begun: list[str] = []
        await verbs.end(running)
        while claimed := await verbs.claim():
            begun.append(claimed[0].run.run_id)
            await verbs.end(claimed[0].run)
        assert begun == order

    async def test_dispatch_of_a_batch_in_its_order(self, verbs: Verbs) -> None:
        """Several late events of one batch are decided in their order; one that fails stays pending, alone."""
        seqs = [await _waiting(verbs) for _ in range(3)]
        batch = [Dispatch(event_seq=seq, workflow_id=WORKFLOW, version="1", routes=(route(slot()),)) for seq in seqs]
        bad = replace(batch[1], routes=(route(replace(slot(), mode="nonsense", concurrency=0, capacity=0)),))
        first, second, third = await verbs.together(dispatch, [batch[0], bad, batch[2]], decide_dispatch)
        assert [answer.dispatched[0].outcome for answer in (first, third)] == ["started", "queued"]
        assert isinstance(second, Failure)
        assert await verbs.pending() == [seqs[1]]

    # -- retiring --------------------------------------------------------------------------------------------------

    async def test_retire_drops_what_waits(self, verbs: Verbs) -> None:
        """A workflow that is retired gets no events any more; those that wait for it are dropped, with the reason."""
        seq = await _waiting(verbs)
        retired = await verbs.retire()
        assert (retired.nodes, retired.dropped) == ((), 1)
        assert [(row.outcome, row.reason) for row in await verbs.deliveries(seq)] == [("dropped", "deregistered")]
        assert not (await verbs.dispatch(seq, route(slot()))).decided
        assert (await verbs.accept(event())).dispatched == ()

    async def test_retire_again_is_harmless(self, verbs: Verbs) -> None:
        """Retiring once more drops nothing."""
        await _waiting(verbs)
        assert [(await verbs.retire()).dropped for _ in range(2)] == [1, 0]

    async def test_retire_while_a_living_node_has_it(self, verbs: Verbs) -> None:
        """As long as another living node has the workflow it is not retired, and that node is named."""
        seq = await _waiting(verbs)
        await verbs.renew(node("node-2", workflows=[WORKFLOW], expires_at=verbs.now + 1))
        await verbs.renew(node("node-3", workflows=["another"], expires_at=verbs.now + 1))
        assert (await verbs.retire(node_id="node-1")).nodes == ("node-2",)
        assert await verbs.pending() == [seq]
        verbs.now += 1
        assert (await verbs.retire(node_id="node-1")).dropped == 1

    async def test_retire_by_the_last_node_that_has_it(self, verbs: Verbs) -> None:
        """Who retires a workflow itself does not stand in its own way."""
        await _waiting(verbs)
        await verbs.renew(node("node-1", workflows=[WORKFLOW]))
        assert (await verbs.retire(node_id="node-1")).dropped == 1

    async def test_retire_leaves_others_alone(self, verbs: Verbs) -> None:
        """What waits for another workflow goes on waiting."""
        await verbs.register_routes("order.placed", workflow="another")
        seq = await _waiting(verbs)
        await verbs.retire()
        assert await verbs.pending("another") == [seq]

    # -- the inbox -------------------------------------------------------------------------------------------------

    async def test_the_inbox_is_emptied_with_the_commit(self, verbs: Verbs) -> None:
        """An event of the inbox is accepted like any other, and leaves it in the same commit."""
        await verbs.insert(published("e-1"), published("e-2"))
        first, second = await verbs.inbox()
        outcome = await verbs.accept(_move(first))
        assert (outcome.event_id, outcome.dispatched[0].outcome) == ("e-1", "started")
        assert await verbs.inbox() == [second]

    async def test_the_inbox_after_a_lost_reply(self, verbs: Verbs) -> None:
        """An event of the inbox that is accepted again is a duplicate."""
        await verbs.insert(published("e-1"))
        (row,) = await verbs.inbox()
        answers = [await verbs.accept(_move(row)) for _ in range(2)]
        assert [answer.duplicate for answer in answers] == [False, True]
        assert (len(await verbs.claim()), await verbs.inbox()) == (1, [])

    async def test_one_event_twice_in_the_inbox_and_once_published(self, verbs: Verbs) -> None:
        """One id is one event, whichever ways it came; nothing of it stays in the inbox."""
        await verbs.insert(published("e-1"), published("e-1"), published("e-1"))
        rows = await verbs.inbox()
        batch = [_move(rows[0]), event(event_id="e-1", routes=[route(slot())]), _move(rows[1])]
        answers = await verbs.together(accept, batch, decide_accept)
        late = await verbs.accept(_move(rows[2]))
        assert [answer.duplicate for answer in (*answers, late)] == [False, True, True, True]
        assert (len(await verbs.claim()), await verbs.inbox()) == (1, [])

    async def test_the_inbox_keeps_what_fails(self, verbs: Verbs) -> None:
        """An event whose decision fails stays in the inbox; its neighbours leave it."""
        await verbs.insert(*(published(f"e-{n}") for n in (1, 2, 3)))
        rows = await verbs.inbox()
        answers = await verbs.together(accept, [_move(row) for row in rows], refusing("e-2"))
        assert [isinstance(answer, Failure) for answer in answers] == [False, True, False]
        assert await verbs.inbox() == [rows[1]]
        with pytest.raises(ConflictError):
            await verbs.do(accept, _move(rows[1]), refusing("e-2"))
        assert await verbs.inbox() == [rows[1]]
        assert not (await verbs.accept(_move(rows[1]))).duplicate

    async def test_the_inbox_for_a_workflow_that_is_not_here(self, verbs: Verbs) -> None:
        """An event of the inbox can wait for its workflow too."""
        await verbs.register_routes("order.placed", version="2")
        await verbs.insert(published("e-1"))
        (row,) = await verbs.inbox()
        outcome = await verbs.accept(_move(row))
        assert (await verbs.pending(), await verbs.inbox()) == ([outcome.seq], [])
        decided = await verbs.dispatch(outcome.seq, route(slot()), version="2")
        assert (await verbs.run(decided.dispatched[0].run_id or "")).status == Status.QUEUED


async def _routes(verbs: Verbs, workflow: str = WORKFLOW) -> list[tuple[str, str | None]]:
    rows: list[RouteRow] = await verbs.store.read("routes_of_workflows", {"workflow_ids": [workflow]}, RouteRow)
    return [(row.event_type, row.version) for row in rows]


async def _waiting(verbs: Verbs, *, version: str = "1") -> int:
    """An event that waits for the workflow."""
    await verbs.register_routes("order.placed", version=version)
    return (await verbs.accept(event())).seq


def _move(row: Inbox) -> Any:
    """What a node makes of an event in the inbox."""
    return event(row.type, event_id=row.event_id, routes=[route(slot())], inbox_seq=row.inbox_seq)
