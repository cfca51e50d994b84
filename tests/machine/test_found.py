"""Histories of a few steps: what the long ones have found, and what they seldom come to; see `test_histories`."""

from __future__ import annotations

import pytest

from piecework import Event, roles
from piecework.run import folds, parts

from .history import Call, History
from .loop import VirtualLoop


@pytest.fixture
def history(engine, request, monkeypatch):
    """A history that the test tells."""
    monkeypatch.setattr(roles, "store_for", roles.store_for)  # put back afterwards
    loop = VirtualLoop()
    told = History(loop, request.getfixturevalue(engine), 0)
    yield told
    loop.run_until_complete(told.tidy())
    loop.close()


async def begin(history, **shapes):
    """Opens a node with workflows of these shapes."""
    for name, shape in shapes.items():
        history.world.add(name, "many", shape)
        history.there[name] = True
    await history.open()


async def invoke(history, name, **payload):
    """Starts a run; answers its id when nothing moves any more."""
    run_id = f"invoked {history.truth.mark()}"
    event = Event(f"go.{name}", {"k": 0, **payload}, id=run_id)

    async def call(app):
        return await app.runtime.invoke(name, "own", event, run_id=run_id, wait=False)

    history.call(Call(f"invoke {name}", call, history.truth.nothing))
    await history.go_on()
    return run_id


@pytest.mark.covers("N241")
def test_a_run_that_nobody_can_take_makes_no_other_late(history):
    """However long a due run lies there whose workflow is not registered, another's deadline is kept to the moment."""

    async def story():
        await begin(history, gone="plain", here="waits")
        await invoke(history, "gone", gated=True)
        history.toggle("gone")
        await history.pass_time(35)
        waiting = await invoke(history, "here")
        await history.look()
        assert history.truth.runs[waiting].status == "paused"
        await history.pass_time(20)
        await history.look()
        assert history.truth.runs[waiting].status == "completed"

    history.loop.run_until_complete(story())


async def cut_off_and_come_back(history):
    """A node is cut off in mid-step, its run is taken over, and then what it made of the run arrives."""
    await begin(history, one="waits")
    run_id = await invoke(history, "one", gated=True)
    await history.cut_off()
    await history.pass_time(45)
    late, _taken_over = history.world.gates
    late.future.set_result("fail")
    await history.go_on()
    await history.come_back(20)
    await history.go_on()
    await history.look()
    assert history.truth.runs[run_id].status == "running"
    await history.finish()
    assert history.truth.runs[run_id].status == "completed"


@pytest.mark.engines("postgres")
def test_what_a_node_says_late_changes_nothing(history):
    """A run that was taken over goes on, whatever the one who had it wanted to write."""
    history.loop.run_until_complete(cut_off_and_come_back(history))


@pytest.mark.engines("postgres")
def test_a_claim_without_an_epoch_is_found(history, monkeypatch):
    """A store that takes the late writes of an owner whose lease has ended does not pass."""
    monkeypatch.setattr(folds, "owned", lambda draft, run_id, _epoch: parts.known(draft, run_id))
    with pytest.raises(AssertionError, match="the node has 0 runs and executes 1"):
        history.loop.run_until_complete(cut_off_and_come_back(history))
