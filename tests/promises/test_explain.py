"""Promises about explanations: why an event wakes a run or does not."""

from __future__ import annotations

import pytest

from piecework import Event, Stage, WaitFor, Workflow, pause
from piecework.errors import NotFoundError

from .flows import Gate, asks, ended, paused


def waiting(wait):
    """A workflow that waits at once and then ends."""
    return Workflow("flow", on="go", stages=[Stage("ask", wait=wait), Stage("end")])


async def explained(app, run_id, event):
    """The one answer that there is."""
    (answer,) = await app.runtime.explain(run_id, event)
    return answer


@pytest.mark.covers("N323")
async def test_explain_names_the_clause_that_failed(make_app):
    """`explain` tells each clause with what was expected and what there was, and says which one is not met."""
    async with make_app(waiting(WaitFor("paid", id=7, total__gt=10))) as app:
        run_id = await paused(app, await app.publish("go"))
        answer = await explained(app, run_id, Event("paid", {"id": 7, "total": "11"}))
        assert [(c.field, c.op, c.expected, c.actual, c.ok) for c in answer.clauses] == [
            ("id", "==", 7, 7, True),
            ("total", ">", 10, "11", False),
        ]
        assert (answer.matches, answer.in_bucket) == (False, False)
        assert answer.reason == "total > 10 is not met: the event has '11', str beside int"
        assert (await app.runtime.get(run_id)).status == "paused"


@pytest.mark.covers("N323")
async def test_explain_tells_what_would_match(make_app):
    """`explain` answers for each wait, and says of the one that an event meets that it would wake the run."""
    async with make_app(waiting(WaitFor("paid", "lost", total__gt=10))) as app:
        run_id = await paused(app, await app.publish("go"))
        lost, paid = await app.runtime.explain(run_id, Event("paid", {"total": 11}))
        assert (lost.event_type, lost.matches, paid.event_type, paid.matches) == ("lost", False, "paid", True)
        assert lost.reason == "it waits for 'lost', the event is 'paid'"
        assert f"would wake run {run_id}" in paid.reason
        assert paid.in_bucket
        assert "looked at for every 'paid'" in paid.reason


@pytest.mark.covers("N324")
async def test_explain_tells_what_became_of_an_event(make_app, gate):
    """`explain` of a published event says that it is kept, was dropped by a full buffer, or came too early."""

    async def ask(ctx):
        await asks(ctx, "more", max_buffer=1)

    late = Gate()
    stages = [Stage("a", steps=[gate]), Stage("b", steps=[ask]), Stage("c", steps=[late], router=pause()), Stage("d")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        receipt = await app.publish("go")
        run_id = await gate.reached.get()
        await app.publish("more", id="early")
        assert "waits for no event" in (await explained(app, run_id, "early")).reason
        gate.open.set()
        await late.reached.get()
        for name in ("first", "second"):
            await app.publish("more", id=name)
        reasons = {name: (await explained(app, run_id, name)).reason for name in ("early", "first", "second")}
        late.open.set()
        await ended(app, receipt)
        assert "came before the wait was registered" in reasons["early"]
        assert f"is kept for run {run_id}, which is running" in reasons["first"]
        assert "max_buffer" in reasons["second"]
        assert "not there any more" in (await explained(app, run_id, "first")).reason
        answer = await explained(app, run_id, Event("more"))
        assert (answer.wait_id, answer.reason) == ("", f"run {run_id} has ended completed and waits for no event")


@pytest.mark.covers("N324")
async def test_explain_tells_that_an_event_was_used(make_app):
    """`explain` of the event that woke a run says that it did."""
    async with make_app(waiting(WaitFor("more"))) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.publish("more", id="e1")
        await app.runtime.wait(run_id, timeout_seconds=20)
        assert "it woke run" in (await explained(app, run_id, "e1")).reason


async def test_explain_tells_which_types_are_missing(make_app):
    """Of a wait for all of its types `explain` says which are missing."""
    async with make_app(waiting(WaitFor("paid", "sent", "read", mode="all"))) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.publish("paid", id="e1")
        reasons = {a.event_type: a.reason for a in await app.runtime.explain(run_id, Event("sent"))}
        assert "would be kept: read are still missing" in reasons["sent"]
        reasons = {a.event_type: a.reason for a in await app.runtime.explain(run_id, "e1")}
        assert "others are still missing" in reasons["paid"]


async def test_explain_of_what_there_is_not(make_app):
    """A run or an event that there is not is NOT_FOUND."""
    async with make_app(waiting(WaitFor("more"))) as app:
        run_id = await paused(app, await app.publish("go"))
        with pytest.raises(NotFoundError, match="no event"):
            await app.runtime.explain(run_id, "nothing")
        with pytest.raises(NotFoundError, match="no run"):
            await app.runtime.explain("nothing", Event("more"))


@pytest.mark.covers("N325")
async def test_more_fields_than_are_looked_up(make_app):
    """Waits on more than fifty fields of one type are all met; the further ones are looked at one by one."""

    async def ask(ctx):
        for n in range(52):
            await asks(ctx, "more", conditions=[{"field": f"f{n:02}", "value": 1}])

    stages = [Stage("a", steps=[ask], router=pause()), Stage("b")]
    async with make_app(Workflow("flow", on="go", stages=stages)) as app:
        run_id = await paused(app, await app.publish("go"))
        answers = await app.runtime.explain(run_id, Event("more", {"f51": 1}))
        assert [a.in_bucket for a in answers] == [False] * 50 + [True] * 2
        assert [a.matches for a in answers] == [False] * 51 + [True]
        assert "looked at for every 'more'" in answers[-1].reason
        assert (await app.publish("more", {"f51": 1})).dispatched[0].run_id == run_id
