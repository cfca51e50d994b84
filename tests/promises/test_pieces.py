from __future__ import annotations

import asyncio
import os

import pytest

from piecework import App, Settings
from piecework.clock import boottime
from piecework.errors import AppImportError, NotFoundError, ValidationError
from piecework.process import linux
from workers_seen import nothing_under_zygotes, runs, under_zygotes, who

from .apps.kinds import app as kinds

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
SETTINGS = Settings(space_grace_seconds=0.2, close_timeout_seconds=2)


@pytest.fixture
def make_kinds(make_app, store, database, mail_server):
    """The app of `apps/kinds`, over the test's own files."""

    def make(**options):
        given = {"store": store, "database": database, "mail": mail_server.url, "settings": SETTINGS}
        kinds.configure(**given | {key: value for key, value in options.items() if key != "clock"})
        if "clock" in options:
            kinds.clock = options["clock"]
        return kinds

    before = kinds.clock
    yield make
    kinds.clock = before


@pytest.fixture
async def app(make_kinds):
    """The app of `apps/kinds`, open."""
    async with make_kinds() as app:
        yield app


async def add(app, integration, piece_id="p", space="acme", **config):
    """Registers a piece and answers the first update, ended."""
    await app.pieces.register(space=space, piece_id=piece_id, integration=integration, config=config)
    return await first(app, piece_id, space)


async def first(app, piece_id="p", space="acme"):
    """The piece's first update, ended."""
    updates = await app.pieces.runs(space, piece_id)
    _ = (await app.runtime.wait(updates[-1].run_id, timeout_seconds=25)).ok
    return (await app.pieces.runs(space, piece_id))[-1]


class Line:
    """Where updates of kind `held` call up, say which process they are, and wait for an answer."""

    def __init__(self):
        self._calls = asyncio.Queue()
        self._writers = []

    async def open(self):
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", 0)
        self.config = {"port": self._server.sockets[0].getsockname()[1]}

    async def _taken(self, reader, writer):
        self._writers.append(writer)
        self._calls.put_nowait(((await reader.readline()).decode(), writer))

    async def has_begun(self):
        """Waits until an update has begun and answers its process's name."""
        pid, self._writer = await asyncio.wait_for(self._calls.get(), 25)
        return pid

    async def let_go(self):
        """Answers the update that has begun last."""
        self._writer.write(b"go")
        await self._writer.drain()

    async def close(self):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()


@pytest.fixture
async def line():
    """A line of the test's own."""
    line = Line()
    await line.open()
    yield line
    await line.close()


@pytest.mark.covers("P7", "P8")
async def test_a_registered_piece_is_updated_at_once(app):
    """A new piece is updated at once in its space's own process; a good update's status is Success."""
    update = await add(app, "plain", url="https://example.org")
    assert (update.status, update.outcome, update.result["count"]) == ("completed", "success", 1)
    assert update.result["process"] != who()
    piece = await app.pieces.get("acme", "p")
    assert (piece.status, piece.observed, piece.consecutive_failures) == ("Success", "idle", 0)
    assert piece.next_run_at > piece.last_success_at == piece.last_run_at


@pytest.mark.covers("P9")
async def test_a_failed_update_says_why(app):
    """What a failing update raised is the piece's status; it is tried again after a pause."""
    update = await add(app, "told-to", fail=True)
    assert (update.status, update.outcome, update.error["code"]) == ("failed", "failed", "EXECUTION_FAILED")
    piece = await app.pieces.get("acme", "p")
    assert "the feed is gone" in piece.status
    assert (piece.observed, piece.consecutive_failures, piece.last_success_at) == ("backoff", 1, None)
    assert piece.next_run_at > piece.last_failure_at


@pytest.mark.covers("P46", "P47", "P48")
async def test_registering_again_enables_what_is_there(app, line):
    """The first registration answers True, Initializing; every further one False, Re-initializing, one piece."""

    async def register():
        return await app.pieces.register(space="acme", piece_id="p", integration="held", config=line.config)

    assert await register() is True
    await line.has_begun()
    assert (await app.pieces.get("acme", "p")).status == "Initializing"
    assert [await register(), await register()] == [False, False]
    piece = await app.pieces.get("acme", "p")
    assert (piece.status, piece.desired) == ("Re-initializing", "enabled")
    assert len(await app.pieces.list(space="acme")) == 1
    await line.let_go()
    await line.has_begun()  # registered anew while it was under way, so once more
    await line.let_go()


@pytest.mark.covers("P49")
async def test_pieces_of_different_names_are_apart(app):
    """Pieces of other ids or spaces are pieces of their own."""
    for space, piece_id in (("acme", "a"), ("acme", "b"), ("beta", "a")):
        await add(app, "plain", piece_id, space)
    assert [(p.space, p.piece_id) for p in await app.pieces.list()] == [("acme", "a"), ("acme", "b"), ("beta", "a")]
    assert [p.piece_id for p in await app.pieces.list(space="beta")] == ["a"]


@pytest.mark.covers("P51")
async def test_of_registrations_at_once_one_is_the_first(app):
    """Of many registrations of one piece at once exactly one answers True, and there is one piece."""
    register = app.pieces.register
    added = await asyncio.gather(*(register(space="acme", piece_id="p", integration="sync") for _ in range(50)))
    assert added.count(True) == 1
    assert len(await app.pieces.list()) == 1
    await first(app)


@pytest.mark.covers("N30")
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"integration": "plian"}, NotFoundError),
        ({"space": ""}, ValidationError),
        ({"piece_id": "a\x00"}, ValidationError),
        ({"config": {"a": object()}}, ValidationError),
        ({"config": [1]}, ValidationError),
        ({"every_seconds": 0}, ValidationError),
        ({"every_seconds": True}, ValidationError),
    ],
)
async def test_a_wrong_registration_is_refused(app, given, error):
    """A registration with an unknown integration, a bad id, configuration or interval is refused; nothing is stored."""
    with pytest.raises(error):
        await app.pieces.register(**{"space": "acme", "piece_id": "p", "integration": "plain"} | given)
    assert await app.pieces.list() == []


async def test_unknown_pieces_are_not_found(app):
    """Asking about a piece that there is not raises NOT_FOUND with the nearest names."""
    await add(app, "sync", "hackernews")
    for call in (app.pieces.get, app.pieces.runs):
        with pytest.raises(NotFoundError, match="hackernews"):
            await call("acme", "hackernew")
    for call in (app.pieces.run_now, app.pieces.pause, app.pieces.resume, app.pieces.remove):
        with pytest.raises(NotFoundError, match="hackernews"):
            await call("acme", "hackernew")


@pytest.mark.covers("N31")
async def test_every_outcome_is_told(app):
    """Success, Skipped, RetryAfter and a permanent failure are told apart; what is no outcome fails the update."""
    told = {}
    for kind in ("sync", "later", "gives-up", "odd", "returns-awaitable"):
        update = await add(app, kind, kind)
        piece = await app.pieces.get("acme", kind)
        told[kind] = (update.status, update.outcome, piece.status, piece.observed)
    assert told["sync"] == ("completed", "skipped", "Skipped: nothing new for sync", "idle")
    assert told["later"] == ("completed", "retry_after", "Retry later: in 30 s", "idle")
    assert told["gives-up"] == ("failed", "failed", "410 Gone", "broken")
    assert told["odd"][:2] == ("failed", "failed")
    assert told["returns-awaitable"][1] == "success"
    assert (await app.pieces.get("acme", "gives-up")).next_run_at is None


@pytest.mark.covers("A1")
async def test_an_update_is_over_when_its_tasks_are(app):
    """An update that returns while a task of it is at work is over when the task is; the task's error fails it."""
    update = await add(app, "leaves-a-task", "good")
    assert (update.outcome, update.result) == ("success", {"returned": True})
    failed = await add(app, "leaves-a-task", "bad", fail=True)
    assert (failed.outcome, "the task failed" in failed.error["message"]) == ("failed", True)


@pytest.mark.covers("A2")
async def test_a_returned_awaitable_is_awaited(app):
    """What an update returns is awaited when it can be."""
    assert (await add(app, "returns-awaitable")).result == {"awaited": True}


@pytest.mark.covers("A3")
async def test_a_coroutine_that_nobody_awaits_fails_the_update(app):
    """A coroutine that an update makes and never awaits fails it, with its name."""
    update = await add(app, "forgets")
    assert update.outcome == "failed"
    assert "never awaited" in update.error["message"]


@pytest.mark.covers("A6")
async def test_an_update_that_does_not_end_is_ended(app, tmp_path):
    """At its deadline a busy loop that ignores SIGTERM is killed, with the program that it started; it says TIMEOUT."""
    update = await add(app, "stubborn", started=str(tmp_path / "started"))
    assert (update.outcome, update.error["code"]) == ("failed", "TIMEOUT")
    assert (tmp_path / "started").exists()
    await nothing_under_zygotes()
    assert (await add(app, "plain", "next")).outcome == "success"


@pytest.mark.covers("A7")
async def test_a_crash_is_charged_to_the_one_that_crashed(app, line):
    """When an update takes its process down, it fails with CRASHED; a neighbour under way runs again, uncharged."""
    await app.pieces.register(space="acme", piece_id="good", integration="held", config=line.config)
    worker = await line.has_begun()
    await app.pieces.register(space="acme", piece_id="bad", integration="dies")
    again = asyncio.ensure_future(line.has_begun())
    assert await again != worker
    await line.let_go()
    good = await first(app, "good")
    bad = await first(app, "bad")
    assert (good.outcome, bad.outcome, bad.error["code"]) == ("success", "failed", "CRASHED")
    assert (await app.pieces.get("acme", "good")).consecutive_failures == 0


@pytest.mark.covers("N32")
async def test_spaces_have_processes_of_their_own(app):
    """Pieces of one space share its worker; pieces of another have another one, and its crash is not noticed."""
    one = await add(app, "plain", "one", "acme")
    two = await add(app, "plain", "two", "acme")
    other = await add(app, "plain", "p", "beta")
    assert one.result["process"] == two.result["process"] != other.result["process"]
    assert (await add(app, "dies", "dies", "beta")).outcome == "failed"
    again = await app.pieces.run_now("acme", "one", wait=True)
    assert again.result["process"] == one.result["process"]


@pytest.mark.covers("A14")
async def test_a_stopped_piece_is_enabled_in_a_space_without_a_worker(make_kinds):
    """A piece that has stopped for good stays so over a restart; registering it starts its space's worker again."""
    async with make_kinds() as app:
        await add(app, "gives-up")
    async with make_kinds() as app:
        assert (await app.pieces.get("acme", "p")).observed == "broken"
        await app.pieces.register(space="acme", piece_id="p", integration="plain")
        update = (await app.pieces.runs("acme", "p"))[0]
        await app.runtime.wait(update.run_id, timeout_seconds=25)
        assert (await app.pieces.get("acme", "p")).status == "Success"


@pytest.mark.covers("N33")
async def test_due_times_and_state_survive_a_restart(make_kinds, clock):
    """A piece's due time and state are kept over a restart: nothing runs early, and the next update has its state."""
    async with make_kinds(clock=clock) as app:
        await add(app, "plain")
        due = (await app.pieces.get("acme", "p")).next_run_at
    async with make_kinds(clock=clock) as app:
        assert (await app.pieces.get("acme", "p")).next_run_at == due
        pending = (await app.pieces.runs("acme", "p"))[0]
        assert pending.status == "queued"
        await clock.until_asleep()
        await clock.advance(3600 * 1.1 + 1)
        await app.runtime.wait(pending.run_id, timeout_seconds=25)
        assert (await app.pieces.runs("acme", "p"))[1].result["count"] == 2


@pytest.mark.covers("N34")
async def test_a_failed_update_changes_no_state(app):
    """What an update writes into `piece.state` is kept with its outcome, and not kept when it fails."""
    await add(app, "told-to", "bad", fail=True)
    await add(app, "plain", "good")
    counted = await app.pieces.run_now("acme", "good", wait=True)
    assert counted.result["count"] == 2
    await app.pieces.register(space="acme", piece_id="bad", integration="plain")
    again = await app.pieces.run_now("acme", "bad", wait=True)
    assert again.result["count"] == 1


@pytest.mark.covers("N35")
async def test_an_update_reaches_the_node(app, mail_server):
    """Events, mails and log lines of an update reach the node: events carry its space, lines are in its timeline."""
    heard = []
    app.bus.subscribe("told", heard.append)
    async with app.workspace() as ws:
        await ws.database.run("create table seen (id integer primary key, piece_id text)")
    update = await add(app, "plain", url="https://example.org")
    assert [(event.space, event.payload["piece_id"]) for event in heard] == [("acme", "p")]
    lines = [entry.payload for entry in await app.runtime.timeline(update.run_id) if entry.source == "logger"]
    assert [(line["message"], line["fields"]["url"]) for line in lines] == [("looked", "https://example.org")]
    await add(app, "mails", "m")
    assert (await mail_server.mails())[0]["subject"] == "News"
    async with app.workspace() as ws:
        assert await ws.database.seen.where(piece_id="m").count() == 1


async def test_a_log_line_names_its_own_piece(app, caplog):
    """What an update logs carries its own names in the node's log, not those of its process's first update."""
    caplog.set_level("INFO", "piecework.user")
    await add(app, "looks-around", "first")
    update = await add(app, "plain", "second", url="https://example.org")
    (fields,) = [record.msg.fields for record in caplog.records if getattr(record.msg, "event", "") == "looked"]
    assert (fields["space"], fields["run_id"]) == ("acme", update.run_id)
    assert (fields["piece_id"], fields["workflow_id"]) == ("second", "plain")


async def test_an_update_notifies(app, mail_server):
    """An update notifies people by rows that it reads; the node tells them, under the update's space."""
    async with app.workspace() as ws:
        await ws.database.run("create table people (id integer primary key, email text)")
        await ws.database.people.insert(email="ada@example.org")
    await add(app, "tells")
    assert (await mail_server.mails())[0].get_content().strip() == "fresh"
    sent = [info for info in await app.runtime.list_all_runs(kind="job") if info.workflow_id == "send-mail"]
    assert [info.space for info in sent] == ["acme"]


async def test_an_event_with_an_id_is_published_once(app):
    """An update that publishes an event with the same id again publishes it once."""
    heard = []
    app.bus.subscribe("told", heard.append)
    await add(app, "plain", event_id="entry-1")
    await app.pieces.run_now("acme", "p", wait=True)
    assert [event.id for event in heard] == ["entry-1"]


@pytest.mark.covers("N36")
async def test_a_worker_sees_what_it_is_meant_to(app, monkeypatch):
    """A worker's environment is a small one under the app's layer; its configuration is the app's."""
    seen = (await add(app, "looks-around")).result
    assert (seen["layer"], seen["secret"], seen["site"], seen["shared"]) == ("app", None, "News", True)
    assert set(seen["environ"]) <= {"PATH", "HOME", "LANG", "TMPDIR", "LAYER"}


async def test_run_now_makes_the_next_update_due(app):
    """`run_now` makes a piece's next update due now, and with `wait=True` answers when it has ended."""
    await add(app, "plain")
    update = await app.pieces.run_now("acme", "p", wait=True)
    assert (update.status, update.result["count"]) == ("completed", 2)


@pytest.mark.covers("N37")
async def test_an_app_that_cannot_be_imported_elsewhere_is_refused(store):
    """An app with pieces that a worker process could not import is refused when it opens, and says what to do."""
    hidden = App("hidden", store=store)
    hidden.piece("x")(lambda piece: None)
    with pytest.raises(AppImportError, match="import_path"):
        async with hidden:
            pass


@pytest.mark.covers("N424")
async def test_a_lapsed_lease_interrupts_an_update_and_does_not_blame_it(make_kinds, line):
    """An update that the end of the node's lease cuts off is no failure: it is done again after the next renewal."""
    async with make_kinds(settings=Settings(heartbeat_seconds=1)) as app:
        await app.pieces.register(space="acme", piece_id="p", integration="held", config=line.config)
        worker = await line.has_begun()
        app._lease.renew(boottime(), 0.001)  # as a node that has been stopped since
        assert await line.has_begun() != worker
        await line.let_go()
        assert (await first(app)).outcome == "success"
        assert (await app.pieces.get("acme", "p")).consecutive_failures == 0
    assert app._lease.until is None


@pytest.mark.covers("N38")
async def test_the_end_of_the_app_interrupts_an_update_and_does_not_blame_it(make_kinds, line):
    """An update that the end of the app cuts off is no failure: it is done again by the next node."""
    async with make_kinds(settings=Settings(space_grace_seconds=0.1, close_timeout_seconds=0.1)) as app:
        await app.pieces.register(space="acme", piece_id="p", integration="held", config=line.config)
        await line.has_begun()
        workers = under_zygotes()
    assert workers
    assert not [pid for pid in workers if runs(pid)]
    async with make_kinds() as app:
        await line.has_begun()
        await line.let_go()
        update = await first(app)
        assert update.outcome == "success"
        assert (await app.pieces.get("acme", "p")).consecutive_failures == 0


@pytest.mark.covers("N171")
async def test_a_piece_awaits_a_job(app):
    """A job that a piece awaits runs on the node, in the piece's space, and its value comes back."""
    await app.pieces.register(space="acme", piece_id="hn", integration="has-a-job")
    done = await app.pieces.run_now("acme", "hn", wait=True)
    assert done.result == [os.getpid(), "acme", 8]
