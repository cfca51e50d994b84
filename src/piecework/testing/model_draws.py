"""What the machine draws: small worlds in which things meet often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from piecework.clock import SECOND
from piecework.store.records import Slot

NODES = ("node-1", "node-2")
WORKFLOWS = ("orders", "mail")
TYPES = ("paid", "placed", "lost")
SPACES = (None, "acme", "zeta")
VERSIONS = ("1", "2", "10")
KNOWN = ("workflow:orders", "workflow:mail", "job:tidy")
STAGES = {"ask": ("paid",), "wait": ("paid", "lost")}
"""The stages that pause with a wait of their own, and for which event types."""

MODES = (
    ("transient", "", 1, 2, 0),
    ("transient", "", 2, 0, 0),
    ("transient", "", 3, 1, 1),
    ("serialized", "", 1, 2, 1),
    ("serialized", "", 1, 1000, 0),
    ("singleton_loop", "drop", 1, 0, 1),
    ("singleton_loop", "signal", 1, 0, 1),
    ("singleton_loop", "signal", 1, 0, 0),
    ("singleton_loop", "replace", 1, 1, 1),
    ("singleton_loop", "replace", 1, 1, 0),
    ("exclusive", "reject", 1, 0, 1),
    ("exclusive", "queue_single", 1, 1, 1),
    ("exclusive", "queue_single", 1, 1, 0),
)

_Clauses = tuple[dict[str, Any], ...]
_CLAUSES: tuple[_Clauses, ...] = (
    (),
    ({"field": "id", "op": "==", "value": 1},),
    ({"field": "id", "op": "==", "value": True},),
    ({"field": "n", "op": ">", "value": 3},),
    ({"field": "id", "op": "==", "value": 2}, {"field": "n", "op": "exists", "value": True}),
    ({"field": "n", "op": "exists", "value": False},),
)
_PAYLOADS: tuple[dict[str, Any], ...] = (
    {"id": 1},
    {},
    {"id": 1.0, "n": 5},
    {"id": True},
    {"id": 2, "n": "x"},
    {"id": None, "n": 2},
)


@dataclass(frozen=True, slots=True)
class DrawnWait:
    """What a run is to wait for."""

    types: tuple[str, ...]
    clauses: _Clauses
    timeout: bool
    max_buffer: int
    patch: bool
    mode: str


@dataclass(frozen=True, slots=True)
class DrawnEvent:
    """What is to be published; `again` repeats the id of an event that was published so many events ago."""

    type: str
    payload: dict[str, Any]
    space: str | None
    routes: tuple[tuple[str, str], ...]
    known: str | None
    again: int


@dataclass(frozen=True, slots=True)
class DrawnEnd:
    """How a stage is to end."""

    then: str
    stage: str
    wait: DrawnWait
    timeout: bool
    signals: bool
    lines: int


picks = st.integers(0, 29)
"""Which of several: counted round and round."""

several = st.lists(picks, min_size=1, max_size=3)
few = st.lists(picks, min_size=1, max_size=2)
modes = st.integers(0, len(MODES) - 1)
versions = st.sampled_from(VERSIONS)
waits = st.builds(
    DrawnWait,
    types=st.sampled_from((("paid",), ("paid", "lost"))),
    clauses=st.sampled_from(_CLAUSES),
    timeout=st.booleans(),
    max_buffer=st.sampled_from((1000, 1, 2)),
    patch=st.booleans(),
    mode=st.sampled_from(("any", "any", "all")),
)
targets = st.tuples(st.sampled_from(WORKFLOWS), st.sampled_from(("a", "b")))
"""A workflow and one of its keys."""

routes = st.lists(targets, max_size=2).map(tuple)
events = st.lists(
    st.builds(
        DrawnEvent,
        type=st.sampled_from(TYPES),
        payload=st.sampled_from(_PAYLOADS),
        space=st.sampled_from(SPACES),
        routes=routes,
        known=st.sampled_from((*VERSIONS, None)),
        again=st.sampled_from((0, 0, 0, 0, 0, 1, 2)),
    ),
    min_size=1,
    max_size=3,
)


def _ends(*then: str) -> st.SearchStrategy[DrawnEnd]:
    return st.builds(
        DrawnEnd,
        then=st.sampled_from(then),
        stage=st.sampled_from(tuple(STAGES)),
        wait=waits,
        timeout=st.booleans(),
        signals=st.booleans(),
        lines=st.integers(0, 2),
    )


ends = _ends("continue", "park", "stage", "defer")
pauses = _ends("stage", "park")
EVERYTHING = (100, KNOWN)
claims = st.sampled_from((EVERYTHING, (1, KNOWN), (2, KNOWN), (100, KNOWN[1:])))
"""How many runs a node asks for, and which it knows."""

delays = st.sampled_from((0, 3 * SECOND))
moments = st.sampled_from((1, SECOND, 7 * SECOND, 40 * SECOND))


def slot_like(workflow: str, key: str, mode: int) -> Slot:
    """A slot as the registration of one of the modes would make it."""
    name, on_busy, concurrency, capacity, hold = MODES[mode]
    return Slot(f"{workflow}/{key}", workflow, name, on_busy, concurrency, capacity, hold)
