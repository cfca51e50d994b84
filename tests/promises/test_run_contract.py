"""What an update may use, and what becomes of what it does: through a whole app."""

from __future__ import annotations

import asyncio
import logging

import pytest

from piecework.process import linux

from .apps.contract import app as contract
from .test_pieces import SETTINGS, Line, add

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")


@pytest.fixture
async def app(make_app, store, database_url):
    """The app of `apps/contract`, open."""
    contract.configure(store=store, database=database_url, mail="outbox:", settings=SETTINGS)
    async with contract as app:
        yield app


@pytest.fixture
async def line():
    """Where `goes-on` calls up."""
    line = Line()
    await line.open()
    yield line
    await line.close()


def lines(caplog, text):
    """The fields of the log lines that say that."""
    told = [record.msg for record in caplog.records]
    return [line.fields for line in told if getattr(line, "event", None) == text]


@pytest.mark.covers("A4")
async def test_a_write_that_is_refused_at_the_commit_fails_the_update(app):
    """An update whose write is refused only when it is committed fails, and leaves nothing."""
    async with app.workspace() as ws:
        await ws.database.run("create table feeds (id integer primary key)")
        reference = "references feeds (id) deferrable initially deferred"
        await ws.database.run(f"create table entries (id integer primary key, feed_id integer {reference})")
    update = await add(app, "is-refused")
    assert (update.outcome, "foreign key" in update.error["message"].lower()) == ("failed", True)
    async with app.workspace() as ws:
        assert await ws.database.entries.count() == 0


@pytest.mark.engines("sqlite")
@pytest.mark.covers("P43", "N458")
async def test_what_updates_share(app):
    """Two updates of a worker share the app's services, two of one integration its own; the others are fresh."""
    made = [(await add(app, kind, name)).result for kind, name in (("uses-services", "a"), ("uses-services", "b"))]
    made.append((await add(app, "uses-services-too", "c")).result)
    assert [one["app"] for one in made] == [[1, 1]] * 3
    assert [one["workflow"] for one in made] == [[1, 1], [1, 1], [2, 2]]
    assert [one["run"] for one in made] == [[1, 1], [2, 2], [3, 3]]
    assert [one["transient"] for one in made] == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N530")
async def test_a_shared_service_that_hangs_once_hangs_no_later_update(app):
    """Where an update's time is over while a shared service is being made, the next one begins in another worker."""
    update = await add(app, "logs-in")
    assert (update.outcome, update.error["code"]) == ("failed", "TIMEOUT")
    assert "A service was still being made: session" in update.error["message"]
    update = await app.pieces.run_now("acme", "p", wait=True)
    assert (update.outcome, update.result) == ("success", "logged in")
    space = await app.pieces.space("acme")
    assert (space.restarts, space.broken_reason) == (0, None)


@pytest.mark.engines("sqlite")
@pytest.mark.covers("P40", "N456")
async def test_an_update_that_goes_on_is_seen(app, line, caplog):
    """Progress is seen while the update runs; each line, printed ones too, has space, piece and run in the log."""
    caplog.set_level(logging.INFO)
    await app.pieces.register(space="acme", piece_id="p", integration="goes-on", config=line.config)
    await line.has_begun()
    while (run := (await app.pieces.runs("acme", "p"))[0]).progress is None:
        await asyncio.sleep(0)
    assert (run.status, run.progress.fraction, run.progress.message) == ("running", 0.4, "page 2")
    await line.let_go()
    await app.runtime.wait(run.run_id, timeout_seconds=25)
    told = {entry.source: entry.payload for entry in await app.runtime.timeline(run.run_id)}
    assert (told["print"]["message"], told["logger"]["message"]) == ("page 2", "looked")
    for text in ("page 2", "looked"):
        (fields,) = lines(caplog, text)
        assert (fields["space"], fields["piece_id"], fields["run_id"]) == ("acme", "p", run.run_id)


@pytest.mark.covers("N454")
async def test_what_fails_late_counts(app):
    """What fails when its update has ended is in that update's timeline, and counts once as a failure of its piece."""
    early = await add(app, "leaves", "early")
    other = await add(app, "goes-wrong-for-another", "other")
    assert (early.outcome, other.outcome) == ("success", "success")
    while len(late := await late_entries(app, early)) < 2:
        await asyncio.sleep(0)
    assert "too late" in late[0].payload["message"]
    piece = await app.pieces.get("acme", "early")
    assert (piece.consecutive_failures, "too late" in piece.status) == (1, True)
    assert piece.next_run_at is not None
    assert (await app.pieces.get("acme", "other")).consecutive_failures == 0


@pytest.mark.engines("sqlite")
async def test_an_update_queues_a_job(app):
    """A job that an update queues runs in the update's space, and outlives the update."""
    run_id = (await add(app, "queues-a-job")).result
    assert (await app.runtime.wait(run_id, timeout_seconds=25)).ok
    (job,) = await app.runtime.list_all_runs(kind="job")
    assert (job.run_id, job.space, job.workflow_id) == (run_id, "acme", "count")


async def late_entries(app, run):
    """What a run's timeline says of failures after its end."""
    return [entry for entry in await app.runtime.timeline(run.run_id) if entry.type == "run:late"]


@pytest.mark.engines("sqlite")
@pytest.mark.covers("P45")
async def test_an_error_is_told_with_where_it_was(app, caplog):
    """The error of an update is logged with its space, piece, integration and run; its run has the trace."""
    caplog.set_level(logging.INFO)
    update = await add(app, "fails")
    (fields,) = lines(caplog, "piece.ended")
    told = [fields[name] for name in ("space", "piece_id", "workflow_id", "run_id", "error")]
    assert told == ["acme", "p", "fails", update.run_id, "RuntimeError: the feed is gone"]
    assert "in fails" in update.error["trace"]
