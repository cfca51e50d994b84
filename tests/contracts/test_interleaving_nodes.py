"""What nodes share at once on a real PostgreSQL, in every order that can make a difference.

Whatever the order: no deadlock, nothing that contradicts itself, and one of the endings that the test names.
"""

from __future__ import annotations

import pytest

from contracts.orders import all_claimed, anyio_backend, arena, ended, endings, runs, samples
from piecework.clock import SECOND
from piecework.store.items import Park
from piecework.store.records import Piece
from piecework.store.verbs import retention, waiting
from piecework.testing.proof_calls import Later, together
from piecework.testing.rows import event, job, node, notification, piece, piece_end, published, route, slot, waits

__all__ = ["anyio_backend", "arena", "samples"]


# -- workflows that are somewhere else --------------------------------------------------------------------------


async def pending(verbs):
    """An event that waits for its workflow; answers its number."""
    await verbs.register_routes("order.placed")
    return (await verbs.accept(event())).seq


async def test_two_dispatches(arena):
    """A pending event is decided once."""

    async def setup(verbs):
        seq = await pending(verbs)
        return [Later(verbs).dispatch(seq, route(slot())) for _ in range(2)]

    async def check(end):
        assert len(await runs(end.verbs)) == 1

    assert await endings(arena, setup, check) == {"started | undecided", "undecided | started"}


async def test_two_batches_of_dispatches_in_opposite_order(arena):
    """Two nodes that decide the same events do not wait in a ring."""

    async def setup(verbs):
        seqs = [await pending(verbs), await pending(verbs)]
        one, other = (
            [Later(verbs).dispatch(seq, route(slot(f"{seq}"))) for seq in order] for order in (seqs, seqs[::-1])
        )
        return [together(*one), together(*other)]

    async def check(end):
        assert len(await runs(end.verbs)) == 2

    await endings(arena, setup, check)


async def test_dispatch_and_event_on_one_slot(arena):
    """An event that waited and one that comes share a slot."""

    async def setup(verbs):
        seq = await pending(verbs)
        known = event(routes=[route(slot())], known={"orders": "1"})
        return [Later(verbs).dispatch(seq, route(slot())), Later(verbs).accept(known)]

    assert await endings(arena, setup) == {"started | queued", "queued | started"}


async def test_one_inbox_row_and_two_nodes(arena):
    """Two nodes that move one event on from the inbox accept it once."""

    async def setup(verbs):
        await verbs.insert(published("e-1"))
        (row,) = await verbs.inbox()
        item = event(event_id="e-1", routes=[route(slot())], inbox_seq=row.inbox_seq)
        return [Later(verbs).accept(item), Later(verbs).accept(item)]

    async def check(end):
        assert await end.verbs.inbox() == []

    assert await endings(arena, setup, check) == {"started | duplicate", "duplicate | started"}


async def test_dispatch_and_retirement(arena):
    """A pending event of a workflow that is retired is decided or dropped."""

    async def setup(verbs):
        seqs = [await pending(verbs), await pending(verbs)]
        calls = [Later(verbs).dispatch(seq, route(slot(f"{seq}"))) for seq in reversed(seqs)]
        return [together(*calls), Later(verbs).retire()]

    async def check(end):
        assert await end.verbs.pending("orders") == []

    await endings(arena, setup, check)


async def test_routes_and_event(arena):
    """An event that comes while its workflow is registered waits for it, or came before it."""

    async def setup(verbs):
        return [Later(verbs).register_routes("order.placed"), Later(verbs).accept(event())]

    async def check(end):
        assert len(await end.verbs.pending("orders")) == len(end.outcomes[1][0].dispatched)

    assert await endings(arena, setup, check) == {"True | nobody", "True | pending"}


async def test_retirement_and_event(arena):
    """An event of a workflow that is being retired is not left pending for nobody."""

    async def setup(verbs):
        await verbs.register_routes("order.placed")
        return [Later(verbs).retire(), Later(verbs).accept(event())]

    async def check(end):
        return f"{len(await end.verbs.pending('orders'))} pending, {end.outcomes[0][0].dropped} dropped"

    assert await endings(arena, setup, check) == {"0 pending, 0 dropped", "0 pending, 1 dropped"}


async def test_routes_of_two_nodes(arena):
    """Two nodes that register the same workflows, each in its own order, do not wait in a ring."""

    async def setup(verbs):
        calls = [Later(verbs).register_routes("a", "b", workflow=name) for name in ("w", "v")]
        return [together(*calls), together(*reversed(calls))]

    assert await endings(arena, setup) == {"True True | True True"}


async def test_routes_of_two_versions(arena):
    """Of two nodes with two versions the newest version's routes hold, and no others."""

    async def setup(verbs):
        later = Later(verbs)
        return [later.register_routes("a", "b", version="1"), later.register_routes("b", "c", version="2")]

    async def check(end):
        outcome = await end.verbs.accept(event("a"))
        newest = [await end.verbs.accept(event(name)) for name in ("b", "c")]
        assert [len(one.dispatched) for one in (outcome, *newest)] == [0, 1, 1]

    await endings(arena, setup, check)


async def test_node_of_two_heartbeats(arena):
    """A node's heartbeats of two moments do not disturb each other."""

    async def setup(verbs):
        calls = [Later(verbs).renew(node(name)) for name in ("node-1", "node-2")]
        return [together(*calls), together(*reversed(calls))]

    await endings(arena, setup)


# -- wide events ------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch):
    """One commit of an event's fan-out wakes one run."""
    monkeypatch.setattr(waiting, "FANOUT_LIMIT", 1)


async def wide(verbs, runs=3):
    """An event whose fan-out is not at its end; answers its number and the runs."""
    waiting_runs = [await verbs.paused(slot(f"w-{number}")) for number in range(runs)]
    outcome = await verbs.accept(event("order.paid"))
    assert outcome.more
    return outcome.seq, waiting_runs


async def test_two_that_continue_a_fanout(arena, narrow):
    """Two nodes that go on with one event wake no run twice and leave none out."""

    async def setup(verbs):
        seq, _ = await wide(verbs)
        return [Later(verbs).continue_fanout(seq) for _ in range(2)]

    async def check(end):
        assert [run.resume_count for run in await runs(end.verbs)] == [1, 1, 1]

    assert await endings(arena, setup, check) == {"resumed | resumed"}


async def test_fanout_and_pause(arena, narrow):
    """A run that pauses while an event fans out is woken by it."""

    async def setup(verbs):
        run = await verbs.running()
        await verbs.register(run, waits(run.run_id))
        seq, _ = await wide(verbs, runs=2)
        return [Later(verbs).continue_fanout(seq), Later(verbs).end_stage(run, Park(stage="b"))]

    await endings(arena, setup)


async def test_fanout_and_another_event(arena, narrow):
    """A later event may overtake one that fans out; both reach every run, one wakes it and the other is kept."""

    async def setup(verbs):
        seq, _ = await wide(verbs, runs=2)
        return [Later(verbs).continue_fanout(seq), Later(verbs).publish("order.paid")]

    async def check(end):
        assert {run.resume_count for run in await runs(end.verbs)} <= {0, 1}

    await endings(arena, setup, check)


# -- pieces -----------------------------------------------------------------------------------------------------


async def test_one_piece_registered_twice(arena):
    """Two registrations of one piece are one piece with one update."""

    async def setup(verbs):
        return [Later(verbs).register_piece(piece(config=config)) for config in (b"1", b"2")]

    async def check(end):
        assert len(await runs(end.verbs)) == 1

    assert await endings(arena, setup, check) == {"added | known", "known | added"}


async def test_pieces_registered_in_opposite_order(arena):
    """Two batches of the same pieces, each in its own order, do not wait in a ring."""

    async def setup(verbs):
        calls = [Later(verbs).register_piece(piece(name)) for name in ("x", "y")]
        return [together(*calls), together(*reversed(calls))]

    async def check(end):
        assert len(await runs(end.verbs)) == 2

    await endings(arena, setup, check)


@pytest.mark.parametrize("other", ["register_piece", "run_piece", "pause", "remove"])
async def test_end_of_an_update(arena, other):
    """What is asked of a piece while its update ends is not lost, and one update at most is to come."""

    async def setup(verbs):
        run = await verbs.updating(piece())
        verbs.now += SECOND
        later = Later(verbs)
        asked = {
            "register_piece": lambda: later.register_piece(piece(config=b"2")),
            "run_piece": later.run_piece,
            "pause": lambda: later.set_desired("paused"),
            "remove": later.remove_piece,
        }
        return [later.finish_piece(piece_end(run)), asked[other]()]

    async def check(end):
        unended = [run for run in await runs(end.verbs) if run.ended_at is None]
        assert len(unended) == (0 if other in {"pause", "remove"} else 1)
        if other == "remove":
            assert await end.verbs.store.read("list_pieces", {"space": None}, Piece) == []
            return "as asked"
        row = await end.verbs.piece()
        if other == "register_piece":
            assert (row.config, row.next_run_at) == (b"2", end.verbs.now)
        return "as asked"

    assert await endings(arena, setup, check) == {"as asked"}


@pytest.mark.parametrize("other", ["finish", "claim", "pause", "wake"])
async def test_an_event_for_a_piece(arena, other):
    """What an event is for is updated for it, whatever happens at the same time, unless it is paused: and once."""

    async def setup(verbs):
        later = Later(verbs)
        if other == "finish":
            beside = later.finish_piece(piece_end(await verbs.updating()))
        else:
            await verbs.register_piece(piece())
        seq = await verbs.event_for_pieces(space="acme")
        if other == "claim":
            beside = later.claim()
        elif other == "pause":
            beside = later.set_desired("paused")
        elif other == "wake":
            beside = later.wake_pieces(seq)
        return [later.wake_pieces(seq), beside]

    async def check(end):
        unended = [run for run in await runs(end.verbs) if run.ended_at is None]
        assert await end.verbs.pending("piece:feed") == []
        assert len([run for run in unended if run.event_seq is not None]) == (0 if other == "pause" else 1)
        return "as asked"

    assert await endings(arena, setup, check) == {"as asked"}


async def test_claim_and_piece_wanted_now(arena):
    """A piece that is wanted now while its update is claimed has one update."""

    async def setup(verbs):
        await verbs.register_piece(piece())
        return [Later(verbs).claim(), Later(verbs).run_piece()]

    async def check(end):
        assert len(await runs(end.verbs)) == 1
        await all_claimed(end)
        return f"{len(end.outcomes[0][0])} claimed"

    await endings(arena, setup, check)


async def test_claim_and_pause_of_a_piece(arena):
    """A piece that is paused while its update is claimed goes on with that update to its end, or has none."""

    async def setup(verbs):
        await verbs.register_piece(piece())
        return [Later(verbs).claim(), Later(verbs).set_desired("paused")]

    await endings(arena, setup)


@pytest.mark.parametrize("other", ["claim", "register_piece", "run_piece", "pause"])
async def test_removal_of_a_piece(arena, other):
    """A piece that is removed while something else is done to it is gone, or a new one, and has one update at most."""

    async def setup(verbs):
        await verbs.register_piece(piece())
        later = Later(verbs)
        asked = {
            "claim": later.claim,
            "register_piece": lambda: later.register_piece(piece(config=b"2")),
            "run_piece": later.run_piece,
            "pause": lambda: later.set_desired("paused"),
        }
        return [later.remove_piece(), asked[other]()]

    async def check(end):
        left = await end.verbs.store.read("list_pieces", {"space": None}, Piece)
        unended = [run for run in await runs(end.verbs) if run.ended_at is None]
        assert {(row.space, row.piece_id) for row in left} == {(run.space, run.key_value) for run in unended}
        assert len(unended) <= 1

    await endings(arena, setup, check)


# -- history ----------------------------------------------------------------------------------------------------


async def test_forgotten_event_id_and_its_duplicate(arena):
    """An event whose id is being forgotten is a duplicate, or comes as a new one."""

    async def setup(verbs):
        await verbs.accept(event(event_id="e-1"))
        verbs.now += SECOND
        return [Later(verbs).forget(retention.forget_ids), Later(verbs).accept(event(event_id="e-1"))]

    assert await endings(arena, setup) == {"1 | duplicate", "1 | nobody"}


async def test_forgotten_occurrence_and_its_repeat(arena):
    """An occurrence that is being forgotten is a duplicate, or happens anew."""

    async def setup(verbs):
        await _ended_occurrence(verbs)
        return [Later(verbs).forget(retention.forget_ids), Later(verbs).enqueue(job(occurrence="daily"))]

    assert await endings(arena, setup) == {"1 | duplicate", "1 | queued"}


async def test_an_occurrence_that_may_happen_again_happens_once(arena):
    """Of two callers that want again what has ended, one gets a run of its own and the other the same."""

    async def setup(verbs):
        await _ended_occurrence(verbs)
        return [Later(verbs).enqueue(job(occurrence="daily", again=True)) for _ in range(2)]

    assert await endings(arena, setup) == {"queued | duplicate", "duplicate | queued"}


async def test_an_occurrence_that_happens_again_is_not_forgotten(arena):
    """What happens again while it is being forgotten is known afterwards, by whichever came last."""

    async def setup(verbs):
        await _ended_occurrence(verbs)
        return [Later(verbs).forget(retention.forget_ids), Later(verbs).enqueue(job(occurrence="daily", again=True))]

    assert await endings(arena, setup) == {"1 | queued", "0 | queued"}


async def _ended_occurrence(verbs):
    await verbs.enqueue(job(occurrence="daily"))
    await verbs.end((await verbs.claim())[0].run)
    verbs.now += SECOND


@pytest.mark.parametrize("verb", [retention.forget_runs, retention.forget_slots, retention.forget_events])
async def test_history_forgotten_by_two_nodes(arena, verb):
    """Two nodes that remove the same history do not disturb each other."""

    async def setup(verbs):
        for name in ("x", "y"):
            run = await ended(verbs, slot(name))
            await verbs.cleaned(run)
        verbs.now += SECOND
        await verbs.forget(retention.forget_ids)
        return [Later(verbs).forget(verb) for _ in range(2)]

    await endings(arena, setup)


# -- notifications ----------------------------------------------------------------------------------------------


async def _told(end):
    """Whatever was added is told by a mail that was made, or waits in a digest that a run that is to come delivers."""
    waiting = [run for run in await runs(end.verbs) if run.workflow_id == "tidy" and run.status == "queued"]
    assert not await end.verbs.due_digests() or waiting
    await all_claimed(end)


async def test_two_notifications_of_one_address(arena):
    """Two that are told the same person share a digest and its run."""

    async def setup(verbs):
        return [Later(verbs).notify(notification(occurrence="x")) for _ in range(2)]

    async def check(end):
        assert (await end.verbs.told_by("ada@example.org"), len(await runs(end.verbs))) == ([(b"Hello", 2)], 1)

    assert await endings(arena, setup, check) == {"woken | kept", "kept | woken"}


async def test_two_batches_of_notifications_in_opposite_order(arena):
    """Two nodes that tell the same people something do not wait in a ring."""

    async def setup(verbs):
        people = ("ada", "bob")
        batches = ([Later(verbs).notify(notification(to=to)) for to in order] for order in (people, people[::-1]))
        return [together(*batch) for batch in batches]

    await endings(arena, setup, _told)


async def test_a_notification_while_its_digest_is_mailed(arena):
    """What comes while a digest is mailed keeps it back, or is for the next one; nothing is lost."""

    async def setup(verbs):
        await verbs.notify(notification())
        (digest,) = await verbs.due_digests()
        return [Later(verbs).notify(notification()), Later(verbs).mail_digest(digest)]

    assert await endings(arena, setup, _told) == {"woken | False", "woken | True"}


async def test_a_digest_mailed_by_two(arena):
    """Of two nodes that mail one digest one does."""

    async def setup(verbs):
        await verbs.notify(notification())
        (digest,) = await verbs.due_digests()
        return [Later(verbs).mail_digest(digest) for _ in range(2)]

    assert await endings(arena, setup) == {"True | False", "False | True"}


async def test_a_notification_and_the_claim_of_its_run(arena):
    """One that would share a run which is being claimed has it still to come, or gets one of its own."""

    async def setup(verbs):
        await verbs.notify(notification(to="bob", occurrence="x"))
        return [Later(verbs).notify(notification(occurrence="x")), Later(verbs).claim()]

    assert await endings(arena, setup) == {"kept | 0 runs", "kept | 1 runs", "woken | 1 runs"}
