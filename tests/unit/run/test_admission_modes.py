"""Promises about the execution modes as values: what they default to, what they refuse, which slot they make."""

from __future__ import annotations

import functools

import pytest

from piecework.errors import ValidationError
from piecework.run.admission import MODES, Exclusive, Serialized, SingletonLoop, Transient, slot_of

EVERY = [Transient, Serialized, SingletonLoop, Exclusive]


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


@pytest.mark.parametrize(
    ("mode", "value", "advice"),
    [
        (SingletonLoop, "replce", "SingletonLoop has no on_busy='replce': did you mean 'replace'?"),
        (SingletonLoop, "Signal", "did you mean 'signal'?"),
        (SingletonLoop, "queue_single", "there are: 'drop', 'signal', 'replace'"),
        (SingletonLoop, "", "there are: "),
        (SingletonLoop, None, "there are: "),
        (SingletonLoop, ["drop"], "there are: "),
        (Exclusive, "queue-single", "Exclusive has no on_busy='queue-single': did you mean 'queue_single'?"),
        (Exclusive, "drop", "there are: 'reject', 'queue_single'"),
    ],
)
def test_what_to_do_when_busy_is_checked(mode, value, advice):
    """A way that the mode does not have is refused, with the nearest one or all there are."""
    with pytest.raises(ValidationError) as caught:
        mode(on_busy=value)
    assert advice in caught.value.message
    assert caught.value.name == "on_busy"


@pytest.mark.parametrize("on_busy", ["drop", "replace"])
def test_a_mapper_without_a_signal(on_busy):
    """A mapper that would never be called is refused."""
    with pytest.raises(ValidationError, match=f"on_busy='{on_busy}'.*leave it out"):
        SingletonLoop(on_busy=on_busy, mapper=lambda event: event.payload)


async def _late(event):
    return event.type


@pytest.mark.parametrize("function", [_late, functools.partial(_late), "space"])
@pytest.mark.parametrize(
    "build",
    [
        *(functools.partial(lambda mode, function: mode(key=function), mode) for mode in EVERY),
        lambda function: SingletonLoop(on_busy="signal", mapper=function),
    ],
)
def test_functions_are_checked_when_the_mode_is_built(build, function):
    """A key and a mapper are plain functions: they run while an event is decided, where nothing can be awaited."""
    with pytest.raises(ValidationError, match="plain function"):
        build(function)


@pytest.mark.parametrize("mode", EVERY)
@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_hold_while_paused_is_checked(mode, value):
    """Yes or no, nothing that merely looks like it."""
    with pytest.raises(ValidationError, match=f"hold_while_paused .*{value!r}"):
        mode(hold_while_paused=value)


@pytest.mark.parametrize(
    ("mode", "columns"),
    [
        (Transient(), ("transient", "", 10, 1000, 0)),
        (Transient(concurrency=3, capacity=0, hold_while_paused=True), ("transient", "", 3, 0, 1)),
        (Serialized(), ("serialized", "", 1, 1000, 1)),
        (Serialized(capacity=0), ("serialized", "", 1, 0, 1)),
        (SingletonLoop(), ("singleton_loop", "drop", 1, 0, 1)),
        (SingletonLoop(on_busy="signal"), ("singleton_loop", "signal", 1, 0, 1)),
        (SingletonLoop(on_busy="replace"), ("singleton_loop", "replace", 1, 1, 1)),
        (Exclusive(), ("exclusive", "reject", 1, 0, 1)),
        (Exclusive(on_busy="queue_single", hold_while_paused=False), ("exclusive", "queue_single", 1, 1, 0)),
    ],
)
def test_a_slot_of_a_mode(mode, columns):
    """The defaults are those of the documentation, and a slot carries all that decides; it begins empty."""
    slot = slot_of(mode, "k", "w")
    assert (slot.mode, slot.on_busy, slot.concurrency, slot.capacity, slot.hold_while_paused) == columns
    assert (slot.slot_key, slot.workflow_id) == ("k", "w")
    assert (slot.live, slot.queued, slot.closing, slot.paused, slot.admitted) == (0, 0, 0, 0, 0)
    assert (slot.active_run_id, slot.pending_run_id) == (None, None)


def test_every_mode_can_be_found_by_name():
    """What stands in a slot names its mode."""
    assert {mode.name: mode for mode in EVERY} == MODES
