from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import timedelta

import pytest

from piecework import App, Backoff, Settings, Stage, ThreeStrikes, Workflow
from piecework.errors import AbortedError, NotFoundError, StoreError, ValidationError
from piecework.process import linux

from . import test_pieces as pieces
from .test_pieces import add, runs

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
app, make_kinds, line = pieces.app, pieces.make_kinds, pieces.line


@pytest.fixture
def ailment(tmp_path):
    """What ails the pieces of kinds `ails` and `strikes`: nothing, until a test says so."""
    path = tmp_path / "ailment"
    path.write_text("")
    return path


async def again(app, times=1):
    """Has the piece updated now, so many times, and answers it."""
    for _ in range(times):
        await app.pieces.run_now("acme", "p", wait=True)
    return await app.pieces.get("acme", "p")


@pytest.fixture
def heard(app):
    """The events about pieces that are broken or work again, in a queue."""
    heard = asyncio.Queue()
    for name in ("piece:broken", "piece:recovered"):
        app.bus.subscribe(name, heard.put_nowait)
    return heard


@pytest.mark.engines("sqlite")
@pytest.mark.covers("P10", "N410")
async def test_the_third_failure_in_a_row_disables(make_kinds, ailment):
    """Under three strikes the third failure in a row disables a piece and says why; a restart forgets no strike."""
    ailment.write_text("down")
    async with make_kinds() as app:
        await add(app, "strikes", ails=str(ailment))
        piece = await again(app)
        assert (piece.consecutive_failures, piece.observed, piece.status) == (2, "backoff", "ConnectionError: down")
        assert piece.next_run_at - piece.last_failure_at == timedelta(hours=3)
    async with make_kinds() as app:
        assert await app.pieces.get("acme", "p") == piece
        piece = await again(app)
        assert (piece.status, piece.observed) == ("Disabled: ConnectionError: down", "broken")
        assert (piece.desired, piece.next_run_at) == ("enabled", None)


@pytest.mark.engines("sqlite")
@pytest.mark.covers("P18")
async def test_a_success_clears_the_strikes(app, ailment):
    """A due update runs once; a success ends the count of failures in a row, so that three more have to follow."""
    ailment.write_text("down")
    await add(app, "strikes", ails=str(ailment))
    await again(app)
    ailment.write_text("")
    piece = await again(app)
    assert (piece.status, piece.observed, piece.consecutive_failures) == ("Success", "idle", 0)
    ailment.write_text("down")
    piece = await again(app, 2)
    assert (piece.observed, piece.consecutive_failures) == ("backoff", 2)
    ended = [update.outcome for update in await app.pieces.runs("acme", "p") if update.ended_at]
    assert ended == ["failed", "failed", "success", "failed", "failed"]


@pytest.mark.covers("A20")
async def test_an_outage_and_its_end_are_told_once(app, ailment, heard):
    """After too many failures a piece is half-open and that is told, once; its recovery is told once too."""
    ailment.write_text("down")
    await add(app, "ails", ails=str(ailment))
    assert (await app.pieces.get("acme", "p")).observed == "backoff"
    piece = await again(app, 3)
    assert (piece.observed, piece.next_run_at - piece.last_failure_at) == ("half-open", timedelta(minutes=30))
    broken = await heard.get()
    ailment.write_text("")
    piece = await again(app, 2)
    assert (piece.observed, piece.broken_at, piece.status) == ("idle", None, "Success")
    recovered = await heard.get()
    assert [(one.type, one.space, one.payload["piece_id"]) for one in (broken, recovered)] == [
        ("piece:broken", "acme", "p"),
        ("piece:recovered", "acme", "p"),
    ]
    assert broken.payload["failures"] == 2
    ailment.write_text("forbidden")
    assert (await again(app)).observed == "broken"  # what is told now is a new outage
    assert ((await heard.get()).type, heard.empty()) == ("piece:broken", True)


@pytest.mark.engines("sqlite")
@pytest.mark.covers("A20", "N411")
async def test_what_cannot_help_is_not_tried_again(app, ailment, heard):
    """What is forbidden stops a piece at once, with its code as the reason; what says when is tried again then."""
    ailment.write_text("busy")
    await add(app, "ails", ails=str(ailment))
    piece = await app.pieces.get("acme", "p")
    assert (piece.observed, piece.next_run_at - piece.last_failure_at) == ("backoff", timedelta(seconds=100_000))
    ailment.write_text("forbidden")
    piece = await again(app)
    assert (piece.observed, piece.next_run_at, piece.last_error["code"]) == ("broken", None, "FORBIDDEN")
    assert piece.broken_at == piece.last_failure_at
    told = await heard.get()
    assert (told.payload["observed"], told.payload["error"]["code"]) == ("broken", "FORBIDDEN")


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N512")
async def test_what_has_stopped_is_tried_once(app, ailment, heard):
    """A piece that has stopped is tried by `run_now` once; unless that succeeds it stays so, and nothing is told."""
    ailment.write_text("forbidden")
    await add(app, "ails", ails=str(ailment))
    assert (await heard.get()).type == "piece:broken"
    ailment.write_text("down")
    piece = await again(app)
    assert (piece.observed, piece.next_run_at, piece.status) == ("broken", None, "ConnectionError: down")
    ailment.write_text("")
    piece = await again(app)
    assert (piece.observed, piece.next_run_at > piece.last_run_at) == ("idle", True)
    assert (await heard.get()).type == "piece:recovered"


@pytest.mark.covers("N412")
async def test_a_workflow_hears_of_a_broken_piece(app):
    """A workflow may start with `piece:broken`, in the piece's space; it is told why the piece has stopped."""
    told = asyncio.Queue()

    async def tell(ctx):
        told.put_nowait((ctx.event.space, ctx.event.payload["status"]))

    await app.runtime.register(Workflow("tell", on="piece:broken", stages=[Stage("tell", steps=[tell])]))
    await add(app, "gives-up")
    assert await told.get() == ("acme", "410 Gone")
    await app.runtime.deregister("tell")


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N416")
async def test_a_workflow_that_enables_what_breaks_again_stops(app, heard):
    """A workflow that enables every piece that breaks does not so for ever: after 32 times its event is rejected."""

    async def enable(ctx):
        await app.pieces.resume("acme", ctx.event.payload["piece_id"])

    await app.runtime.register(Workflow("enable", on="piece:broken", stages=[Stage("enable", steps=[enable])]))
    await add(app, "gives-up")
    while (await heard.get()).hops < 32:
        pass
    assert (heard.empty(), (await app.pieces.get("acme", "p")).observed) == (True, "broken")
    await app.runtime.deregister("enable")


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N413")
async def test_a_piece_is_paused_and_resumed(app):
    """A paused piece has no update to come and says why; resumed, or registered anew, it is updated at once."""
    await add(app, "plain")
    pieces = app.pieces
    assert [await pieces.pause("acme", "p", reason="holiday"), await pieces.pause("acme", "p")] == [True, False]
    piece = await pieces.get("acme", "p")
    assert (piece.desired, piece.desired_reason, piece.next_run_at) == ("paused", "holiday", None)
    assert [await pieces.resume("acme", "p"), await pieces.resume("acme", "p")] == [True, False]
    update = (await pieces.runs("acme", "p"))[0]
    assert (await app.runtime.wait(update.run_id, timeout_seconds=25)).ok
    await pieces.pause("acme", "p")
    assert await pieces.register(space="acme", piece_id="p", integration="plain") is False
    piece = await pieces.get("acme", "p")
    assert (piece.desired, piece.desired_reason) == ("enabled", None)


@pytest.mark.covers("N414")
async def test_a_piece_is_removed_while_it_updates(app, line):
    """Removing a piece stops the update that is under way, for real, and none follows; the run can be looked at."""
    await app.pieces.register(space="acme", piece_id="p", integration="held", config=line.config)
    worker = await line.has_begun()
    (update,) = await app.pieces.runs("acme", "p")
    await app.pieces.remove("acme", "p")
    assert await app.pieces.list() == []
    assert not (await app.runtime.wait(update.run_id, timeout_seconds=25)).ok
    assert not runs(worker)
    assert (await app.runtime.get(update.run_id)).status == "aborted"
    with pytest.raises(NotFoundError):
        await app.pieces.get("acme", "p")
    assert await app.pieces.register(space="acme", piece_id="p", integration="sync") is True


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N415")
async def test_a_piece_says_whether_it_is_at_it(make_kinds, line):
    """A piece whose update is under way is running, one that waits for its turn is queued."""
    async with make_kinds(settings=Settings(space_grace_seconds=0.2, space_concurrency=1)) as app:
        await app.pieces.register(space="acme", piece_id="one", integration="held", config=line.config)
        await line.has_begun()
        await app.pieces.register(space="acme", piece_id="two", integration="sync")
        found = [(piece.piece_id, piece.observed) for piece in await app.pieces.list()]
        assert found == [("one", "running"), ("two", "queued")]
        await line.let_go()


@pytest.mark.covers("N500")
@pytest.mark.parametrize("how", ["pause", "remove"])
async def test_who_waits_for_an_update_that_is_called_off_is_told(make_kinds, line, how):
    """Who waits for an update that a pause or a removal calls off is told so at once."""
    async with make_kinds(settings=Settings(space_grace_seconds=0.2, space_concurrency=1)) as app:
        await app.pieces.register(space="acme", piece_id="one", integration="held", config=line.config)
        await line.has_begun()
        await app.pieces.register(space="acme", piece_id="two", integration="sync")
        await app.pieces.pause("acme", "two")  # its first update is called off: the next one is what is waited for
        waiting = asyncio.ensure_future(app.pieces.run_now("acme", "two", wait=True))
        while not await app.pieces.runs("acme", "two"):
            await asyncio.sleep(0.01)
        await getattr(app.pieces, how)("acme", "two")
        with pytest.raises(AbortedError, match="called off"):
            await asyncio.wait_for(waiting, 20)
        await line.let_go()


@pytest.mark.engines("sqlite")
@pytest.mark.covers("P50")
async def test_a_registration_that_cannot_be_committed(app, store):
    """A registration whose commit fails raises, and leaves nothing behind; the next one is the first."""
    with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as raw:
        raw.execute("CREATE TRIGGER full BEFORE INSERT ON timeline BEGIN SELECT RAISE(ABORT, 'no room'); END")
    with pytest.raises(StoreError, match="no room"):
        await app.pieces.register(space="acme", piece_id="p", integration="sync")
    assert (await app.pieces.list(), await app.runtime.list_all_runs()) == ([], [])
    with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as raw:
        raw.execute("DROP TRIGGER full")
    assert await app.pieces.register(space="acme", piece_id="p", integration="sync") is True


@pytest.mark.parametrize("policy", ["backoff", 3, Backoff, ThreeStrikes])
def test_a_policy_that_is_none_is_refused(policy):
    """What is no failure policy is refused where the piece is declared."""
    with pytest.raises(ValidationError, match="ThreeStrikes"):
        App("x").piece("feed", failure=policy)


async def test_a_reason_is_a_text(app):
    """A reason that is no text is refused."""
    with pytest.raises(ValidationError, match="reason"):
        await app.pieces.pause("acme", "p", reason=3)
