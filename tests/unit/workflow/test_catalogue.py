"""Promises about which triggers an event reaches."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import msgspec
import pytest

from piecework.bus.event import Event
from piecework.errors import ConflictError, NotFoundError
from piecework.run.admission import Serialized, Transient
from piecework.workflow.catalogue import Catalogue, Registered
from piecework.workflow.definition import Pipeline, Stage, Trigger, Workflow


def registered(name="orders", mode=None, **triggers):
    triggers = triggers or {"placed": Trigger("order.placed")}
    workflow = Workflow(name, triggers=triggers, pipelines={key: Pipeline([Stage("one")]) for key in triggers})
    return Registered(workflow, mode or Transient(), SimpleNamespace())


@pytest.fixture
def catalogue():
    catalogue = Catalogue()
    catalogue.add(registered())
    return catalogue


def test_an_event_reaches_the_triggers_of_its_type(catalogue):
    """Every trigger of the event's type is a route, in order of registration; others are not."""
    catalogue.add(registered("other", both=Trigger("order.placed"), lost=Trigger("order.lost")))
    routes = catalogue.routes(Event("order.placed"))
    assert [(route.workflow_id, route.trigger_id) for route in routes] == [("orders", "placed"), ("other", "both")]
    assert catalogue.routes(Event("nothing")) == []


def test_a_predicate_decides():
    """A trigger with a predicate sees only the events that it is true for."""
    catalogue = Catalogue()
    catalogue.add(registered(big=Trigger("order.placed", when=lambda event: event.payload["total"] > 10)))
    assert [len(catalogue.routes(Event("order.placed", {"total": total}))) for total in (10, 11)] == [0, 1]


def test_a_predicate_that_raises_is_no_match(caplog):
    """A predicate that fails keeps nobody else's event back, and is shown with its event."""
    catalogue = Catalogue()
    catalogue.add(
        registered(bad=Trigger("order.placed", when=lambda event: event.payload["gone"]), good=Trigger("order.placed"))
    )
    with caplog.at_level(logging.WARNING, logger="piecework"):
        routes = catalogue.routes(Event("order.placed", id="e-1"))
    assert [route.trigger_id for route in routes] == ["good"]
    assert "e-1" in caplog.text
    assert "KeyError" in caplog.text


def test_a_route_carries_the_mode(catalogue):
    """The slot of a route has the numbers of the workflow's mode."""
    (route,) = catalogue.routes(Event("order.placed"))
    assert (route.slot.mode, route.slot.concurrency, route.slot.capacity, route.slot.hold_while_paused) == (
        "transient",
        10,
        1000,
        0,
    )
    assert (route.kind, route.pipeline_id, route.key) == ("workflow", "placed", None)


def test_every_key_has_a_slot_of_its_own():
    """Slots of different workflows or keys never meet, however the names are chosen."""
    catalogue = Catalogue()
    by_space = Serialized(key=lambda event: event.space)
    for name in ("a", 'a","b'):
        catalogue.add(registered(name, by_space))
    keys = [
        route.slot.slot_key
        for space in (None, "null", "b", '"', "")
        if space != ""
        for route in catalogue.routes(Event("order.placed", space=space))
    ]
    assert len(set(keys)) == len(keys) == 8
    assert msgspec.json.decode(keys[0]) == ["a", None]


@pytest.mark.parametrize("key", [lambda event: event.payload["gone"], lambda event: 3.5, lambda event: ""])
def test_a_key_that_cannot_be_refuses_its_own_route_only(key):
    """A slot is never guessed: where the key fails or is no text, that trigger starts nothing, and it is told why."""
    catalogue = Catalogue()
    catalogue.add(registered(mode=Serialized(key=key)))
    (route,) = catalogue.routes(Event("order.placed"))
    assert route.refused is not None
    assert "key function raised" in route.refused


def test_every_route_has_a_run_id_of_its_own(catalogue):
    """A run's id is made before the event is sent, a new one each time."""
    ids = {catalogue.routes(Event("order.placed"))[0].run_id for _ in range(3)}
    assert len(ids) == 3


def test_an_id_that_is_taken(catalogue):
    """A workflow's id is unique here; the error says what to do."""
    with pytest.raises(ConflictError, match="'orders' is registered already: deregister it first"):
        catalogue.add(registered())
    assert len(catalogue.routes(Event("order.placed"))) == 1


def test_taking_a_workflow_out(catalogue):
    """From its removal on no event reaches a workflow; its neighbours stay, and it may come again."""
    catalogue.add(registered("other"))
    assert catalogue.remove("orders") is not None
    assert [route.workflow_id for route in catalogue.routes(Event("order.placed"))] == ["other"]
    assert ("orders" in catalogue, catalogue.ids(), catalogue.remove("orders")) == (False, ["other"], None)
    catalogue.add(registered())
    assert len(catalogue.routes(Event("order.placed"))) == 2


def test_an_unknown_workflow(catalogue):
    """Asking for a workflow that is not there names near ones."""
    assert catalogue.get("orders").workflow.id == "orders"
    with pytest.raises(NotFoundError, match="did you mean 'orders'"):
        catalogue.get("order")
