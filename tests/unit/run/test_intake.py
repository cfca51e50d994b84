"""Promises about the door: what is acceptable is durable when the caller hears of it."""

from __future__ import annotations

import pytest

from piecework.bus.event import Event
from piecework.bus.subscriptions import EventBus
from piecework.config import Settings
from piecework.errors import ValidationError
from piecework.run.intake import Intake
from piecework.run.news import News
from piecework.run.node import Node
from piecework.store.records import Run
from piecework.testing.clock import VirtualClock
from piecework.testing.verbs import route, slot
from piecework.workflow.pause import resume_patch


class Orders:
    """A kind of work with one trigger."""

    name = "workflow"

    def versions(self):
        return {}

    def definitions(self):
        return {}

    def known(self):
        return ["orders"]

    def routes(self, event):
        return [route(slot())] if event.type == "order.placed" else []

    def matches(self, wait, event, payload):
        return resume_patch(wait, event, payload)


@pytest.fixture
def seen():
    return []


@pytest.fixture
def bus(seen):
    bus = EventBus()
    bus.subscribe("*", seen.append)
    return bus


@pytest.fixture
def intake(store, bus):
    clock, kinds = VirtualClock(), {"workflow": Orders()}
    node = Node("node-1", store, kinds, clock, News())
    return Intake(store, kinds, node, bus, clock, Settings(payload_limit_bytes=1000))


async def test_publishing(intake, verbs):
    """The receipt names the event and what became of it; both are in the store by then."""
    receipt = await intake.publish(Event("order.placed", {"id": 7}, space="acme"))
    (result,) = receipt.dispatched
    run = await verbs.run(result.run_id)
    assert (result.outcome, run.space, len(receipt.event_id)) == ("started", "acme", 32)


async def test_publishing_again(intake, seen):
    """An event of an id that is known is a duplicate: it names the first run, and observers see it once."""
    first = await intake.publish(Event("order.placed", id="e-1"))
    again = await intake.publish(Event("order.placed", id="e-1"))
    assert [(r.outcome, r.run_id) for r in again.dispatched] == [("duplicate", first.dispatched[0].run_id)]
    assert [event.id for event in seen] == ["e-1"]


async def test_an_observer_sees_what_was_accepted(intake, seen):
    """Observers are told of an event once it is durable, with its id and moment."""
    receipt = await intake.publish(Event("order.lost", {"id": 7}))
    (event,) = seen
    assert (event.id, event.payload, event.at) == (receipt.event_id, {"id": 7}, VirtualClock().now())


async def test_a_waiting_run_is_woken(intake, verbs):
    """An event reaches the runs that wait for it by the same door."""
    run = await verbs.paused(None, "order.paid", id=7)
    receipt = await intake.publish(Event("order.paid", {"id": 7}))
    assert [(r.outcome, r.run_id) for r in receipt.dispatched] == [("resumed", run.run_id)]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (Event(""), "event type"),
        (Event("a\x00"), "event type"),
        (Event("order.placed", id=""), "event id"),
        (Event("order.placed", id="\ud800"), "event id"),
        (Event("order.placed", space=""), "space"),
        (Event("order.placed", [1]), "payload is a list"),
        (Event("order.placed", None), "payload is a NoneType"),
        (Event("order.placed", {"a": {"b": float("nan")}}), r"payload\.a\.b"),
        (Event("order.placed", {3: 1}), "key 3"),
        (Event("order.placed", {"__run_meta__": 1}), "'__run_meta__' is reserved"),
        (Event("order.placed", {"a": "x" * 1000}), "more than the 1000"),
    ],
)
async def test_an_event_that_is_not_acceptable(intake, store, seen, event, words):
    """A bad event is refused with what is wrong, and nothing of it is stored or seen."""
    with pytest.raises(ValidationError, match=words):
        await intake.publish(event)
    everything = dict.fromkeys(("status", "workflow", "space", "kind", "created_at", "run_id"))
    rows = await store.read("list_runs", everything | {"limit": 1}, Run)
    assert (rows, seen) == ([], [])


async def test_enqueueing(intake, verbs):
    """A run may be made without an event, once an id, in a space of its own, for later."""
    first = await intake.enqueue("job", "tidy", {"limit": 5}, run_id="job-1", space="acme", due_at=5)
    again = await intake.enqueue("job", "tidy", {"limit": 6}, run_id="job-1")
    run = await verbs.run("job-1")
    assert (first.duplicate, again.duplicate, run.space, run.due_at) == (False, True, "acme", 5)
    assert (await verbs.values("job-1"))["args"] == {"limit": 5}


@pytest.mark.parametrize("args", [{"a": {1}}, [1], {"a": "x" * 1000}])
async def test_arguments_that_are_not_acceptable(intake, args):
    """Arguments have to be a mapping of JSON values; the error names whose they are."""
    with pytest.raises(ValidationError, match="the arguments of tidy"):
        await intake.enqueue("job", "tidy", args)
