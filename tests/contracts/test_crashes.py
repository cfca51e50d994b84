"""Every verb dies at every request, before its COMMIT and after it, and is asked for again: its effect comes once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from msgspec.structs import replace

from contracts.orders import anyio_backend, ended
from piecework.clock import SECOND
from piecework.store.items import Continue, Defer, Park
from piecework.store.sqlite import SqliteStore
from piecework.store.verbs import retention, waiting
from piecework.testing.crashing import PostgresGround, SqliteGround, crash_everywhere
from piecework.testing.proof_calls import Later, check_everything, replace_items, together
from piecework.testing.rows import (
    event,
    job,
    node,
    notification,
    piece,
    piece_end,
    route,
    single,
    slot,
    transient,
    waits,
)
from piecework.testing.verbs import Verbs

__all__ = ["anyio_backend"]


@pytest.fixture(scope="module")
async def postgres_ground(postgres_databases):
    url = postgres_databases.fresh()
    async with PostgresGround(url) as ground:
        yield ground
    postgres_databases.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def ground(request, tmp_path):
    if request.param == "sqlite":
        return SqliteGround(tmp_path)
    return request.getfixturevalue("postgres_ground")


def with_token(call):
    """The same call, whose repeat is known by its token."""
    return replace_items(call, [replace(item, token="t-1") for item in call.items])


async def _accept(verbs):
    return Later(verbs).accept(event(event_id="e-1", routes=[route(slot(), run_id="r-1")]))


async def _accept_that_wakes(verbs):
    await verbs.paused()
    return Later(verbs).accept(event("order.paid", event_id="e-1"))


async def _accept_that_is_kept(verbs):
    run = await verbs.running()
    await verbs.register(run, waits(run.run_id))
    return Later(verbs).accept(event("order.paid", event_id="e-1"))


async def _accept_that_replaces(verbs):
    await verbs.running(single("replace"))
    return Later(verbs).accept(event(event_id="e-1", routes=[route(single("replace"), run_id="r-1")]))


async def _accept_that_signals(verbs):
    await verbs.running(single("signal"))
    return Later(verbs).accept(event(event_id="e-1", routes=[route(single("signal"), run_id="r-1")]))


async def _accept_that_is_pending(verbs):
    await verbs.register_routes("order.placed")
    return Later(verbs).accept(event(event_id="e-1"))


async def _accept_a_batch(verbs):
    await verbs.accept(event(event_id="e-2", routes=[route(slot(), run_id="r-2")]))
    later = Later(verbs)
    return together(
        *(later.accept(event(event_id=f"e-{n}", routes=[route(slot(), run_id=f"r-{n}")])) for n in (1, 2, 1))
    )


async def _dispatch(verbs):
    await verbs.register_routes("order.placed")
    outcome = await verbs.accept(event())
    return Later(verbs).dispatch(outcome.seq, route(slot(), run_id="r-1"))


async def _enqueue(verbs):
    return Later(verbs).enqueue(job("r-1"))


async def _enqueue_an_occurrence(verbs):
    return Later(verbs).enqueue(job("r-1", occurrence="daily"))


async def _claim(verbs):
    await verbs.start(slot())
    await verbs.enqueue(job())
    return Later(verbs).claim()


async def _take_over(verbs):
    await verbs.running()
    await verbs.renew(node("node-2"))
    return Later(verbs).claim("node-2", orphans=True)


async def _continue(verbs):
    return Later(verbs).end_stage(await verbs.running(), Continue(stage="b"), state=b'{"n":1}')


async def _continue_with_a_signal(verbs):
    run = await verbs.running()
    await verbs.signal(run.run_id)
    return Later(verbs).end_stage(run, Continue(stage="b"))


async def _continue_an_aborted_run(verbs):
    run = await verbs.running()
    await verbs.abort(run.run_id)
    return Later(verbs).end_stage(run, Continue(stage="b"))


async def _defer(verbs):
    return Later(verbs).end_stage(await verbs.running(), Defer(due_at=verbs.now + SECOND))


async def _park(verbs):
    run = await verbs.running(transient(concurrency=1))
    await verbs.start(transient(concurrency=1))
    return Later(verbs).end_stage(run, Park(stage="b", waits=waits(run.run_id)))


async def _park_beside_an_event(verbs):
    run = await verbs.running()
    await verbs.register(run, waits(run.run_id))
    await verbs.publish()
    return Later(verbs).end_stage(run, Park(stage="b"))


async def _settle(verbs):
    run = await verbs.running()
    await verbs.register(run, waits(run.run_id))
    await verbs.publish()
    return Later(verbs).settle(run, result=b"1")


async def _settle_to_be_told(verbs):
    run = await verbs.running()
    return Later(verbs).settle(run, telling=True)


async def _end_told(verbs):
    run = await verbs.running(slot())
    await verbs.settle(run, telling=True)
    return Later(verbs).end_told(run)


async def _abort_to_be_told(verbs):
    await verbs.running(slot())
    queued = await verbs.start(slot(), telling=True)
    return Later(verbs).abort(queued.run_id or "", token="t")


async def _cleaned(verbs):
    run = await ended(verbs, slot())
    await verbs.start(slot())
    return Later(verbs).cleaned(run)


async def _release(verbs):
    return Later(verbs).release(await verbs.running())


async def _resume(verbs):
    run = await verbs.paused()
    return with_token(Later(verbs).resume(run.run_id, {"ok": 1}))


async def _resume_without_a_token(verbs):
    run = await verbs.paused()
    return Later(verbs).resume(run.run_id, {"ok": 1})


async def _unresume(verbs):
    run = await verbs.paused()
    await verbs.resume(run.run_id)
    (claimed,) = await verbs.claim()
    return Later(verbs).unresume(claimed.run)


async def _signal(verbs):
    run = await verbs.running()
    return with_token(Later(verbs).signal(run.run_id))


async def _abort_a_paused_run(verbs):
    run = await verbs.paused(slot())
    await verbs.start(slot())
    return with_token(Later(verbs).abort(run.run_id))


async def _abort_a_running_run(verbs):
    return with_token(Later(verbs).abort((await verbs.running()).run_id))


async def _due(verbs):
    await verbs.paused(None, "order.paid", timeout_seconds=1)
    verbs.now += SECOND
    return Later(verbs).due()


async def _register(verbs):
    run = await verbs.running()
    return Later(verbs).register(run, waits(run.run_id))


async def _cancel(verbs):
    run = await verbs.running()
    await verbs.register(run, waits(run.run_id))
    return Later(verbs).register(run, cancel=None)


async def _append(verbs):
    return Later(verbs).append(await verbs.running(), "one", "two")


async def _renew(verbs):
    return Later(verbs).renew(node())


async def _renew_alone(verbs):
    await verbs.renew(node("node-9"))
    return Later(verbs).renew(node(), alone=True)


async def _leave(verbs):
    await verbs.renew(node())
    return Later(verbs).leave("node-1")


async def _register_routes(verbs):
    await verbs.register_routes("a", "b")
    return Later(verbs).register_routes("b", "c", version="2")


async def _retire(verbs):
    await verbs.register_routes("order.placed")
    await verbs.accept(event())
    return Later(verbs).retire()


async def _raise_limit(verbs):
    await verbs.running(slot())
    await verbs.start(slot())
    return Later(verbs).raise_limit(transient("any", concurrency=2))


async def _register_piece(verbs):
    return Later(verbs).register_piece(piece(), run_id="r-1")


async def _register_piece_again(verbs):
    await verbs.register_piece(piece())
    return Later(verbs).register_piece(piece(config=b"2"), run_id="r-1")


async def _run_piece(verbs):
    run = await verbs.updating()
    await verbs.finish_piece(piece_end(run))
    return Later(verbs).run_piece()


async def _pause_a_piece(verbs):
    await verbs.register_piece(piece())
    return Later(verbs).set_desired("paused")


async def _finish_piece(verbs):
    for _ in range(2):
        await verbs.finish_piece(piece_end(await verbs.updating(), history_limit=1))
    return Later(verbs).finish_piece(piece_end(await verbs.updating(), history_limit=1, next_run_id="r-1"))


async def _break_a_piece(verbs):
    run = await verbs.updating()
    return Later(verbs).finish_piece(piece_end(run, "failed", permanent=True, next_run_id="r-1"))


async def _remove_a_piece(verbs):
    await verbs.register_piece(piece())
    return Later(verbs).remove_piece()


async def _remove_an_updating_piece(verbs):
    await verbs.updating()
    return Later(verbs).remove_piece()


async def _finish_a_removed_piece(verbs):
    run = await verbs.updating()
    await verbs.remove_piece()
    return Later(verbs).finish_piece(piece_end(run, next_run_id="r-1"))


async def _wake_pieces(verbs):
    await verbs.register_piece(piece(), at_once=False)
    await verbs.updating(piece("busy"))
    return Later(verbs).wake_pieces(await verbs.event_for_pieces(space="acme"))


async def _move_a_piece(verbs):
    await verbs.register_piece(piece())
    return Later(verbs).move_piece(verbs.now, verbs.now + SECOND)


async def _replace_an_update(verbs):
    await verbs.updating()
    return Later(verbs).run_piece(overlap="cancel")


async def _notify(verbs):
    return Later(verbs).notify(notification("n-1", due_at=verbs.now + SECOND, occurrence="x"))


async def _notify_once(verbs):
    return Later(verbs).notify(notification("n-1", due_at=verbs.now + SECOND, occurrence="x", once=True))


async def _notify_a_batch(verbs):
    await verbs.notify(notification("n-1"))
    return together(*(Later(verbs).notify(notification(f"n-{n}")) for n in (1, 2, 2)))


async def _mail_a_digest(verbs):
    await verbs.notify(notification())
    (digest,) = await verbs.due_digests()
    return Later(verbs).mail_digest(digest, run_id="r-1")


async def _forget_runs(verbs):
    await verbs.cleaned(await ended(verbs))
    verbs.now += SECOND
    return Later(verbs).forget(retention.forget_runs)


async def _forget_slots(verbs):
    await verbs.cleaned(await ended(verbs))
    return Later(verbs).forget(retention.forget_slots)


async def _forget_ids(verbs):
    await verbs.accept(event())
    await verbs.enqueue(job(occurrence="daily"))
    await verbs.end((await verbs.claim())[0].run)
    verbs.now += SECOND
    return Later(verbs).forget(retention.forget_ids)


async def _forget_events(verbs):
    await verbs.accept(event())
    verbs.now += SECOND
    await verbs.forget(retention.forget_ids)
    return Later(verbs).forget(retention.forget_events)


DEATHS = {
    _accept: ("started", "duplicate"),
    _accept_that_wakes: ("resumed", "duplicate"),
    _accept_that_is_kept: ("buffered", "duplicate"),
    _accept_that_replaces: ("replaced", "duplicate"),
    _accept_that_signals: ("signalled", "duplicate"),
    _accept_that_is_pending: ("pending", "duplicate"),
    _accept_a_batch: ("queued duplicate duplicate", "duplicate duplicate duplicate"),
    _dispatch: ("started", "undecided"),
    _enqueue: ("queued", "duplicate"),
    _enqueue_an_occurrence: ("queued", "duplicate"),
    _claim: ("2 runs", "0 runs"),
    _take_over: ("1 runs", "0 runs"),
    _continue: ("continued", "continued"),
    _continue_with_a_signal: ("continued", "continued"),
    _continue_an_aborted_run: ("aborted", "aborted"),
    _defer: ("deferred", "deferred"),
    _park: ("parked", "parked"),
    _park_beside_an_event: ("resumed", "resumed"),
    _settle: ("completed", "completed"),
    _settle_to_be_told: ("completed", "completed"),
    _end_told: ("True", "False"),
    _abort_to_be_told: ("ended", "ended"),
    _cleaned: ("1", "0"),
    _release: ("True", "False"),
    _resume: ("woken", "woken"),
    _resume_without_a_token: ("woken", "INVALID_STATE"),
    _unresume: ("1", "1"),
    _signal: ("live", "live"),
    _abort_a_paused_run: ("ended", "ended"),
    _abort_a_running_run: ("told", "told"),
    _due: ("1", "0"),
    _register: ("1", "1"),
    _cancel: ("0", "0"),
    _append: ("2", "2"),
    _renew: ("True", "True"),
    _renew_alone: ("True", "True"),
    _leave: ("True", "True"),
    _register_routes: ("True", "True"),
    _retire: ("1", "0"),
    _raise_limit: ("1", "0"),
    _register_piece: ("added", "known"),
    _register_piece_again: ("known", "known"),
    _pause_a_piece: ("True", "False"),
    _finish_piece: ("completed", "completed"),
    _break_a_piece: ("failed", "failed"),
    _remove_a_piece: ("removed", "NOT_FOUND"),
    _remove_an_updating_piece: ("told", "NOT_FOUND"),
    _finish_a_removed_piece: ("aborted", "aborted"),
    _wake_pieces: ("2 woken", "undecided"),
    _move_a_piece: ("True", "False"),
    _notify: ("woken", "duplicate"),
    _notify_once: ("woken", "duplicate"),
    _notify_a_batch: ("duplicate woken duplicate", "duplicate duplicate duplicate"),
    _mail_a_digest: ("True", "True"),
    _forget_runs: ("1", "0"),
    _forget_slots: ("1", "0"),
    _forget_ids: ("1", "0"),
    _forget_events: ("1", "0"),
}

GOES_ON = {_register_piece}
"""Asked again, a piece is registered again."""


@pytest.mark.parametrize("setup", DEATHS, ids=lambda setup: setup.__name__.strip("_"))
async def test_a_verb_that_dies(ground, setup):
    """Before the COMMIT nothing is left of a verb, after it everything; asked again it is done, and done once."""
    survived = await crash_everywhere(ground, setup, goes_on=setup in GOES_ON)
    assert (survived.first, survived.again) == DEATHS[setup]
    assert survived.requests > 0


@pytest.mark.parametrize("setup", [_run_piece, _replace_an_update])
async def test_a_piece_wanted_now(ground, setup):
    """A piece that is wanted now, and asked for again, is wanted once: the answer names the same update."""
    survived = await crash_everywhere(ground, setup)
    assert survived.first == survived.again


async def test_a_fanout(ground, monkeypatch):
    """A part of a fan-out whose reply was lost is not done again: the next one follows."""
    monkeypatch.setattr(waiting, "FANOUT_LIMIT", 1)

    async def setup(verbs):
        for number in range(4):
            await verbs.paused(slot(f"w-{number}"))
        outcome = await verbs.accept(event("order.paid"))
        return Later(verbs).continue_fanout(outcome.seq)

    survived = await crash_everywhere(ground, setup, goes_on=True)
    assert (survived.first, survived.again) == ("resumed", "resumed")


DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from piecework.store.sqlite import SqliteStore
from piecework.store.verbs.accept import accept
from piecework.testing.rows import event, route, slot
from piecework.testing.verbs import NOW, decide_accept

def dying(items, decide, now):
    script, answer = accept(items, decide, now), None
    for _ in range(int(sys.argv[2])):
        answer = yield script.send(answer)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    await store.run(dying, event(event_id="e-1", routes=[route(slot())]), decide_accept, NOW)

asyncio.run(main())
"""


@pytest.mark.parametrize("requests", [0, 3, 6, 9])
async def test_a_process_that_is_killed(tmp_path, requests):
    """A node that is killed in the middle of a verb leaves nothing of it, and the next one does it."""
    path = tmp_path / "state.db"
    child = subprocess.run([sys.executable, "-c", DIE, path, str(requests)], check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    store = SqliteStore(path)
    await store.open()
    try:
        await check_everything(store)
        outcome = await Verbs(store).accept(event(event_id="e-1", routes=[route(slot())]))
        assert (outcome.duplicate, outcome.dispatched[0].outcome) == (False, "started")
    finally:
        await store.close()
