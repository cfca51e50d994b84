from __future__ import annotations

import pytest

from piecework import Settings
from piecework.process import linux

from .apps.wild import app as wild

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")


@pytest.fixture
async def app(store):
    """The app of `apps/wild`, open."""
    wild.configure(store=store, settings=Settings(space_grace_seconds=0.2))
    async with wild as app:
        yield app


async def add(app, integration, **config):
    """Registers the piece, or does it again, and answers its update, ended."""
    await app.pieces.register(space="acme", piece_id=integration, integration=integration, config=config)
    return await app.pieces.run_now("acme", integration, wait=True)


@pytest.mark.covers("N486")
@pytest.mark.engines("sqlite")
async def test_after_a_broken_frame_there_is_another_worker(app):
    """An update whose process breaks the protocol fails and says so; the next one of its space has a new worker."""
    await add(app, "garbles", quiet=False)
    failed = next(run for run in await app.pieces.runs("acme", "garbles") if run.outcome == "failed")
    assert (failed.error["code"], "broke the protocol" in failed.error["message"]) == ("CRASHED", True)
    assert (await add(app, "garbles", quiet=True)).outcome == "success"


@pytest.mark.covers("N487")
@pytest.mark.engines("sqlite")
async def test_fields_of_a_log_line_have_any_names(app):
    """A log line may have fields that are called like something of the node's: it arrives, and the update goes on."""
    update = await add(app, "says")
    assert update.outcome == "success"
    lines = [entry.payload for entry in await app.runtime.timeline(update.run_id) if entry.source == "logger"]
    assert lines[0]["fields"]["event"] == "e"
