"""Promises about pieces while their code changes under a node: a definition that is gone for a while is no verdict."""

from __future__ import annotations

import importlib
import sys

import pytest

from piecework import Settings
from piecework.process import linux
from piecework.telemetry import signals

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
HALF = "from piecework import App, Success\napp = App('edited')\n"
WHOLE = HALF + "@app.piece('feed', every_seconds=3600)\nasync def feed(piece):\n    return Success()\n"


@pytest.fixture
def edited(tmp_path, monkeypatch, make_app, store):
    """Makes the app of a module of the test's own, with what writes that module anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name):
        file = tmp_path / f"{name}.py"
        file.write_text(WHOLE)
        monkeypatch.delitem(sys.modules, name, raising=False)
        app = importlib.import_module(name).app
        app.configure(store=store, settings=Settings(space_grace_seconds=0.2))
        return app, file.write_text

    yield make
    for name in ("edited_shop", "edited_twin"):
        sys.modules.pop(name, None)


@pytest.fixture
def lacking(monkeypatch):
    """What is told of workers whose code lacks something."""
    told, emit = [], signals.emit

    def hear(name, **fields):
        if name == signals.NODE_TROUBLE:
            told.append(f"{fields['what']}: {fields['error']}")
        emit(name, **fields)

    monkeypatch.setattr(signals, "emit", hear)
    return told


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N524")
async def test_a_definition_that_is_gone_for_a_while_is_waited_for(edited, lacking):
    """A piece whose definition is missing after a reload is not charged: it waits, and goes on when that is back."""
    app, write = edited("edited_shop")
    async with app:
        await app.pieces.register(space="acme", piece_id="p", integration="feed")
        await app.pieces.run_now("acme", "p", wait=True)
        write(HALF)
        await app.spaces.reload()
        run = await app.pieces.run_now("acme", "p")
        while not lacking:
            news = app._parts.node.news.expect(run.run_id)
            await app._parts.node.news.after(news)
        piece = await app.pieces.get("acme", "p")
        assert (piece.status, piece.consecutive_failures, piece.last_failure_at) == ("Success", 0, None)
        assert piece.observed in {"idle", "queued"}
        write(WHOLE)
        await app.spaces.reload()
        ended = await app.pieces.until_ended("acme", run.run_id)
        assert (ended.outcome, ended.attempt, len(lacking)) == ("success", 1, 1)


@pytest.mark.engines("postgres")
@pytest.mark.covers("N525")
async def test_a_node_without_the_definition_leaves_it_to_another(edited, lacking):
    """During a rolling deploy a node whose workers lack an integration leaves its pieces to the node that has it."""
    (app, write), (twin, _) = edited("edited_shop"), edited("edited_twin")
    async with app:
        write(HALF)
        await app.spaces.reload()
        for space in ("acme", "beta"):
            await app.pieces.register(space=space, piece_id="p", integration="feed")
            (run,) = await app.pieces.runs(space, "p")
            while not any(space in what for what in lacking):
                news = app._parts.node.news.expect(run.run_id)
                await app._parts.node.news.after(news)
        assert app.spaces.lacks("feed")
        async with twin:
            for space in ("acme", "beta"):
                run = (await twin.pieces.runs(space, "p"))[-1]
                assert (await twin.pieces.until_ended(space, run.run_id)).outcome == "success"
                assert (await twin.pieces.get(space, "p")).consecutive_failures == 0
