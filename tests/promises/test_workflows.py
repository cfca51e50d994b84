"""Which workflows events find, and how one that nobody has any more comes to its end."""

from __future__ import annotations

import pytest

from piecework.errors import InvalidStateError, NotFoundError

from .flows import flow


@pytest.mark.covers("N60")
async def test_a_workflow_is_known_until_it_is_retired(make_app):
    """Events are kept for a workflow that no node has; when it is retired they are dropped, and no more are kept."""
    async with make_app(flow(on="go", id="old")) as app:
        (info,) = await app.runtime.registered()
        assert (info.workflow_id, info.events, info.nodes, info.pending) == ("old", ["go"], [app.node_id], 0)
        with pytest.raises(InvalidStateError, match=app.node_id):
            await app.runtime.retire("old")
    async with make_app() as app:
        outcomes = [(await app.publish("go")).dispatched[0].outcome for _ in range(2)]
        (info,) = await app.runtime.registered()
        assert (outcomes, info.nodes, info.pending) == (["pending"] * 2, [], 2)
        assert await app.runtime.retire("old") == 2
        assert await app.runtime.registered() == []
        assert (await app.publish("go")).dispatched == []
        with pytest.raises(NotFoundError):
            await app.runtime.retire("old")


@pytest.mark.covers("N61")
async def test_what_waited_starts_when_the_workflow_is_there(make_app):
    """An event that was published while no node had its workflow starts its run when one has it again."""
    async with make_app(flow(id="late")):
        pass
    async with make_app() as app:
        (result,) = (await app.publish("go", {"n": 1})).dispatched
        assert (result.outcome, result.workflow_id) == ("pending", "late")
    async with make_app(flow(id="late")) as app:
        while not (runs := await app.runtime.list_all_runs(workflow="late")):
            await app.runtime.registered()
        assert (await app.runtime.wait(runs[0].run_id, timeout_seconds=20)).unwrap().state["n"] == 1
        assert len(await app.runtime.list_all_runs()) == 1
