"""Promises about what a step is given."""

from __future__ import annotations

from dataclasses import astuple

from piecework.bus.event import Event
from piecework.workflow.stages import copy_of


def test_a_copy_of_an_event():
    """It has all that the event has, and may be changed without changing it."""
    event = Event("invoice.received", {"lines": [1]}, id="e-1", space="eu", at=5, hops=2)
    assert None not in astuple(event)
    copied = copy_of(event)
    assert copied == event
    copied.payload["lines"].append(2)
    assert event.payload == {"lines": [1]}
