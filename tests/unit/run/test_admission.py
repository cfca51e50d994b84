"""Promises about which events may start a run: the same on every node, from the slot's row alone."""

from __future__ import annotations

import pytest
from msgspec.structs import asdict, replace

from piecework.errors import StoreError
from piecework.run.admission import (
    Exclusive,
    Serialized,
    SingletonLoop,
    Transient,
    Verdict,
    admit,
    cleaned,
    closing,
    gone,
    governed,
    paused,
    promoted,
    queued,
    slot_of,
    startable,
    started,
    unqueued,
    woken,
)

DROP = SingletonLoop(on_busy="drop")
SIGNAL = SingletonLoop(on_busy="signal")
REPLACE = SingletonLoop(on_busy="replace")
REJECT = Exclusive(on_busy="reject")
QUEUE_SINGLE = Exclusive(on_busy="queue_single")
SINGLE = [DROP, SIGNAL, REPLACE, REJECT, QUEUE_SINGLE]
FIFO = [Transient(concurrency=1, capacity=2), Serialized(capacity=2)]


def a_slot(mode, active=None, pending=None, **counts):
    return replace(slot_of(mode, "k", "w"), active_run_id=active, pending_run_id=pending, **counts)


def verdict(slot):
    said = admit(slot)
    return str(said.admission), said.reason, said.supersedes


def moved(before, after):
    """What changed, column by column."""
    old, new = asdict(before), asdict(after)
    return {name: new[name] for name in new if new[name] != old[name]}


@pytest.mark.parametrize("mode", [*FIFO, *SINGLE, Transient(capacity=0), Serialized(capacity=0)])
def test_free(mode):
    """Where there is a place the event starts a run, in every mode, also in one without a queue."""
    assert admit(a_slot(mode)) == Verdict("started")


@pytest.mark.parametrize(
    ("mode", "pending", "expected"),
    [
        (DROP, None, ("dropped", "busy", False)),
        (SIGNAL, None, ("signalled", None, False)),
        (REPLACE, None, ("replaced", None, False)),
        (REPLACE, "p", ("replaced", None, True)),
        (REJECT, None, ("rejected", "BUSY", False)),
        (QUEUE_SINGLE, None, ("queued", None, False)),
        (QUEUE_SINGLE, "p", ("queued", None, True)),
    ],
)
@pytest.mark.parametrize("resting", [0, 1])
def test_busy_with_one_run_at_a_time(mode, pending, expected, resting):
    """Each mode does what it is named for, and a paused run is as busy as a running one."""
    slot = a_slot(mode, active="a", pending=pending, live=1, paused=resting, queued=int(pending is not None))
    assert verdict(slot) == expected


@pytest.mark.parametrize("mode", SINGLE)
@pytest.mark.parametrize("pending", [None, "p"])
def test_closing_with_one_run_at_a_time(mode, pending):
    """While a run is cleaned nothing is dropped, rejected, signalled or aborted: the newest event waits for it."""
    slot = a_slot(mode, pending=pending, closing=1, queued=int(pending is not None))
    assert verdict(slot) == ("queued", "closing", pending is not None)


@pytest.mark.parametrize("mode", SINGLE)
def test_a_paused_run_that_gave_its_place_up(mode):
    """A mode whose paused runs give their place up starts the next event beside them."""
    slot = a_slot(type(mode)(on_busy=mode.on_busy, hold_while_paused=False), live=1, paused=1)
    assert verdict(slot) == ("started", None, False)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (DROP, ("dropped", "busy", False)),
        (SIGNAL, ("queued", "busy", True)),
        (REPLACE, ("queued", "busy", True)),
        (REJECT, ("rejected", "BUSY", False)),
        (QUEUE_SINGLE, ("queued", None, True)),
    ],
)
def test_busy_with_a_run_that_nobody_can_name(mode, expected):
    """Without a run to signal or to abort the event waits for the place; the newest wins."""
    assert verdict(a_slot(mode, pending="p", live=1, queued=1)) == expected


@pytest.mark.parametrize(
    ("mode", "counts", "expected"),
    [
        (Transient(concurrency=1, capacity=1), {"live": 1}, ("queued", None)),
        (Transient(concurrency=1, capacity=1), {"live": 1, "queued": 1}, ("dropped", "capacity")),
        (Serialized(capacity=1), {"live": 1, "queued": 1}, ("dropped", "queue_full")),
        (Transient(concurrency=1, capacity=0), {"live": 1}, ("dropped", "capacity")),
        (Serialized(capacity=0), {"live": 1}, ("dropped", "queue_full")),
        (Transient(concurrency=3), {"live": 2}, ("started", None)),
        (Transient(concurrency=3), {"live": 3}, ("queued", None)),
        (Transient(concurrency=2), {"live": 5}, ("queued", None)),
        # A paused run: it keeps its place in a serialized workflow, and gives it up in a transient one.
        (Serialized(), {"live": 1, "paused": 1}, ("queued", None)),
        (Serialized(hold_while_paused=False), {"live": 1, "paused": 1}, ("started", None)),
        (Transient(concurrency=1), {"live": 1, "paused": 1}, ("started", None)),
        (Transient(concurrency=1), {"live": 2, "paused": 1}, ("queued", None)),
        (Transient(concurrency=1, hold_while_paused=True), {"live": 1, "paused": 1}, ("queued", None)),
        # A closing one: its place counts as free, so it takes up nothing of the queue, but nobody starts in it yet.
        (Serialized(capacity=0), {"closing": 1}, ("queued", "closing")),
        (Serialized(capacity=0), {"closing": 1, "queued": 1}, ("dropped", "queue_full")),
        (Serialized(capacity=1), {"closing": 1, "queued": 1}, ("queued", None)),
        (Serialized(capacity=1), {"closing": 1, "queued": 2}, ("dropped", "queue_full")),
        (Transient(concurrency=3), {"live": 2, "closing": 1}, ("queued", "closing")),
        (Transient(concurrency=3), {"live": 1, "closing": 1}, ("started", None)),
        (Transient(concurrency=3, capacity=0), {"live": 1, "closing": 2, "queued": 1}, ("queued", "closing")),
        (Transient(concurrency=3, capacity=0), {"live": 1, "closing": 2, "queued": 2}, ("dropped", "capacity")),
        (Transient(concurrency=1), {"live": 1, "closing": 1}, ("queued", None)),
        # Nobody overtakes those that wait, not even before they were given the place that they could have.
        (Transient(concurrency=3), {"live": 1, "queued": 1}, ("queued", "closing")),
    ],
)
def test_in_order_of_arrival(mode, counts, expected):
    """Free places start, busy ones queue, a full queue drops; nothing is dropped because somebody is being cleaned."""
    assert verdict(a_slot(mode, **counts)) == (*expected, False)


@pytest.mark.parametrize(
    ("mode", "counts", "places"),
    [
        (Serialized(), {"queued": 3}, 1),
        (Transient(concurrency=5), {"queued": 3}, 3),
        (Transient(concurrency=5), {"queued": 3, "live": 3}, 2),
        (Transient(concurrency=5), {"queued": 3, "live": 3, "closing": 1}, 1),
        (Transient(concurrency=2), {"queued": 3, "live": 5}, 0),
        (Transient(concurrency=1), {"queued": 3, "live": 1, "paused": 1}, 1),
        (Serialized(), {"queued": 3, "live": 1, "paused": 1}, 0),
        (Serialized(), {"queued": 1, "closing": 1}, 0),
        (REPLACE, {"queued": 1, "live": 1}, 0),
        (REPLACE, {"queued": 1, "closing": 1}, 0),
        (REPLACE, {"queued": 1}, 1),
        (Transient(concurrency=5), {}, 0),
    ],
)
def test_how_many_may_start(mode, counts, places):
    """As many of the queued runs may start as there are places that nobody holds and nobody cleans."""
    assert startable(a_slot(mode, **counts)) == places


@pytest.mark.parametrize(
    ("move", "counts", "change"),
    [
        (lambda slot: started(slot, "r"), {}, {"live": 1, "admitted": 1, "active_run_id": "r"}),
        (lambda slot: queued(slot, "r"), {"live": 1}, {"queued": 1, "admitted": 1, "pending_run_id": "r"}),
        (lambda slot: unqueued(slot, "p"), {"queued": 1, "pending": "p"}, {"queued": 0, "pending_run_id": None}),
        (lambda slot: unqueued(slot, "x"), {"queued": 2, "pending": "p"}, {"queued": 1}),
        (
            lambda slot: promoted(slot, "p"),
            {"queued": 1, "pending": "p"},
            {"queued": 0, "live": 1, "active_run_id": "p", "pending_run_id": None},
        ),
        (
            lambda slot: promoted(slot, "x"),
            {"queued": 2, "pending": "p"},
            {"queued": 1, "live": 1, "active_run_id": "x"},
        ),
        (lambda slot: paused(slot, "a"), {"live": 1, "active": "a"}, {"paused": 1}),
        (lambda slot: woken(slot, "a"), {"live": 1, "paused": 1, "active": "a"}, {"paused": 0}),
        (
            lambda slot: closing(slot, "a"),
            {"live": 1, "active": "a"},
            {"live": 0, "closing": 1, "active_run_id": None},
        ),
        (
            lambda slot: closing(slot, "a", was_paused=True),
            {"live": 1, "paused": 1, "active": "a"},
            {"live": 0, "paused": 0, "closing": 1, "active_run_id": None},
        ),
        (lambda slot: closing(slot, "x"), {"live": 2, "active": "a"}, {"live": 1, "closing": 1}),
        (cleaned, {"closing": 2}, {"closing": 1}),
        (lambda slot: gone(slot, "a"), {"live": 1, "active": "a"}, {"live": 0, "active_run_id": None}),
        (
            lambda slot: gone(slot, "a", was_paused=True),
            {"live": 1, "paused": 1, "active": "a"},
            {"live": 0, "paused": 0, "active_run_id": None},
        ),
    ],
)
def test_what_a_move_changes(move, counts, change):
    """Each move of a run changes its counts and ids, and nothing else."""
    slot = a_slot(QUEUE_SINGLE, **counts)
    assert moved(slot, move(slot)) == change


@pytest.mark.parametrize("mode", FIFO)
def test_ids_are_kept_by_modes_of_one_run_at_a_time_only(mode):
    """A mode with a queue names nobody."""
    slot = promoted(queued(started(slot_of(mode, "k", "w"), "a"), "b"), "b")
    slot = woken(paused(slot, "a"), "a")
    assert (slot.active_run_id, slot.pending_run_id) == (None, None)


def test_a_woken_run_takes_its_place_back_only_when_nobody_has_it():
    """A run that gave its place up is the active one again if the place is free, and else only lives beside it."""
    resting = paused(started(slot_of(SingletonLoop(hold_while_paused=False), "k", "w"), "a"), "a")
    assert (resting.active_run_id, woken(resting, "a").active_run_id) == (None, "a")
    taken = started(resting, "b")
    assert woken(taken, "a").active_run_id == "b"
    assert closing(woken(taken, "a"), "a").active_run_id == "b"


@pytest.mark.parametrize(
    "move",
    [
        lambda slot: unqueued(slot, "r"),
        lambda slot: promoted(slot, "r"),
        lambda slot: paused(slot, "r"),
        lambda slot: woken(slot, "r"),
        lambda slot: closing(slot, "r"),
        lambda slot: gone(slot, "r"),
        lambda slot: closing(started(slot, "r"), "r", was_paused=True),
        lambda slot: closing(paused(started(slot, "r"), "r"), "r"),
        cleaned,
    ],
)
def test_counts_that_cannot_be_are_refused(move):
    """A count below nothing, or more paused runs than live ones, is not written."""
    with pytest.raises(StoreError, match=r"slot k of workflow w .*cannot be"):
        move(slot_of(Serialized(), "k", "w"))


def test_a_new_registration_governs_at_once():
    """The numbers of the newest registration hold, and the counts go on: a lowered limit kills nobody."""
    slot = a_slot(Transient(concurrency=3), live=3, admitted=3)
    lowered = governed(slot, slot_of(Transient(concurrency=1), "k", "w"))
    assert moved(slot, lowered) == {"concurrency": 1}
    assert (verdict(lowered)[0], startable(queued(lowered, "d"))) == ("queued", 0)
    raised = governed(queued(lowered, "d"), slot_of(Transient(concurrency=4), "k", "w"))
    assert startable(raised) == 1


@pytest.mark.parametrize("mode", [*FIFO, *SINGLE])
def test_the_same_registration_changes_nothing(mode):
    """A slot that is under this mode already is answered as it is, so that nothing has to be written."""
    slot = a_slot(mode, active="a", pending="p", live=1, queued=1)
    assert governed(slot, slot_of(mode, "k", "w")) is slot


@pytest.mark.parametrize(
    ("before", "after", "ids"),
    [
        (QUEUE_SINGLE, REPLACE, ("a", "p")),
        (REPLACE, DROP, ("a", "p")),
        (QUEUE_SINGLE, Serialized(), (None, None)),
        (QUEUE_SINGLE, Transient(), (None, None)),
        (QUEUE_SINGLE, Exclusive(on_busy="queue_single", hold_while_paused=False), (None, "p")),
    ],
)
def test_what_a_new_registration_makes_of_the_ids(before, after, ids):
    """They stay where the new mode keeps ids, except that of a paused run that has no place under it."""
    slot = governed(a_slot(before, active="a", pending="p", live=1, paused=1, queued=1), slot_of(after, "k", "w"))
    assert (slot.active_run_id, slot.pending_run_id) == ids


def test_a_queue_that_outlives_its_mode():
    """Runs that wait from a time when the mode had a queue keep their turn; only the newest event is superseded."""
    slot = governed(a_slot(Serialized(), live=1, queued=3), slot_of(QUEUE_SINGLE, "k", "w"))
    assert verdict(slot) == ("queued", None, False)
    assert verdict(queued(slot, "p")) == ("queued", None, True)
