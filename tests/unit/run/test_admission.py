"""Promises about which events may start a run: the same on every node, from the slot's row alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from piecework.errors import ValidationError
from piecework.run.admission import MODES, Admission, Serialized, Transient, admit, startable
from piecework.store.records import Slot


def a_slot(mode="transient", concurrency=1, capacity=1, hold=1, **counts):
    return Slot("k", "w", mode, concurrency, capacity, hold, **counts)


@pytest.mark.parametrize(
    ("slot", "admission", "reason"),
    [
        (a_slot(), "started", None),
        (a_slot(live=1), "queued", None),
        (a_slot(live=1, queued=1), "dropped", "capacity"),
        (a_slot("serialized", live=1, queued=1), "dropped", "queue_full"),
        (a_slot(capacity=0, live=1), "dropped", "capacity"),
        (a_slot(capacity=0), "started", None),
        (a_slot(closing=1), "queued", "closing"),
        (a_slot(capacity=0, closing=1), "queued", "closing"),
        (a_slot(capacity=0, closing=1, queued=1), "dropped", "capacity"),
        (a_slot(live=1, paused=1), "queued", None),
        (a_slot(hold=0, live=1, paused=1), "started", None),
        (a_slot(hold=0, live=2, paused=1), "queued", None),
        (a_slot(queued=1), "dropped", "capacity"),
        (a_slot(capacity=2, queued=1), "queued", None),
        (a_slot(concurrency=3, live=2), "started", None),
        (a_slot(concurrency=3, live=2, closing=1), "queued", "closing"),
    ],
)
def test_admission(slot, admission, reason):
    """Free places start, busy ones queue, full queues drop; a closing place counts as free but does not start."""
    verdict = admit(slot)
    assert (verdict.admission, verdict.reason) == (admission, reason)


@pytest.mark.parametrize(
    ("slot", "places"),
    [
        (a_slot(queued=3), 1),
        (a_slot(concurrency=5, queued=3), 3),
        (a_slot(concurrency=5, queued=3, live=3), 2),
        (a_slot(concurrency=5, queued=3, live=3, closing=1), 1),
        (a_slot(concurrency=2, queued=3, live=5), 0),
        (a_slot(hold=0, queued=3, live=1, paused=1), 1),
        (a_slot(hold=1, queued=3, live=1, paused=1), 0),
        (a_slot(concurrency=5), 0),
    ],
)
def test_how_many_may_start(slot, places):
    """As many of the queued runs may start as there are places that nobody holds and nobody cleans."""
    assert startable(slot) == places


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.sampled_from(["event", "settle", "cleaned", "abort"]), max_size=60),
)
def test_a_slot_never_holds_more_than_its_mode_allows(concurrency, capacity, steps):
    """Whatever comes in whatever order: at most `concurrency` at once, and nobody waits beside a free place."""
    slot = a_slot(concurrency=concurrency, capacity=capacity)
    for step in steps:
        if step == "event":
            admission = admit(slot).admission
            slot = replace(
                slot,
                live=slot.live + (admission is Admission.START),
                queued=slot.queued + (admission is Admission.QUEUE),
            )
            assert admission is not Admission.DROP or slot.queued >= capacity
        elif step == "settle" and slot.live:
            slot = replace(slot, live=slot.live - 1, closing=slot.closing + 1)
        elif step == "cleaned" and slot.closing:
            slot = replace(slot, closing=slot.closing - 1)
        elif step == "abort" and slot.queued:
            slot = replace(slot, queued=slot.queued - 1)
        ready = startable(slot)
        slot = replace(slot, live=slot.live + ready, queued=slot.queued - ready)
        assert slot.live + slot.closing <= concurrency
        assert slot.queued == 0 or slot.live + slot.closing == concurrency


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None, "3"])
def test_concurrency_is_checked_when_the_mode_is_built(number):
    """A mode without room for a single run is refused, with the name and the value."""
    with pytest.raises(ValidationError, match=f"concurrency .*{number!r}"):
        Transient(concurrency=number)


@pytest.mark.parametrize("mode", [Transient, Serialized])
@pytest.mark.parametrize("number", [-1, 0.5, False, None])
def test_capacity_is_checked_when_the_mode_is_built(mode, number):
    """A queue cannot be shorter than nothing."""
    with pytest.raises(ValidationError, match=f"capacity .*{number!r}"):
        mode(capacity=number)


def test_a_queue_may_be_left_out():
    """No waiting room at all is a choice."""
    assert (Transient(capacity=0).capacity, Serialized(capacity=0).capacity) == (0, 0)


def test_defaults():
    """Ten at once where nobody says anything; a serialized run keeps its place while it is paused."""
    assert (Transient().concurrency, Transient().capacity, Transient().hold_while_paused) == (10, 1000, False)
    assert (Serialized().concurrency, Serialized().capacity, Serialized().hold_while_paused) == (1, 1000, True)


def test_every_mode_can_be_found_by_name():
    """What stands in a slot names its mode."""
    assert {name: mode.name for name, mode in MODES.items()} == {name: name for name in MODES}
