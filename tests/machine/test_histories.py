"""Whatever is done to a runtime, and wherever its node dies: what it has promised is kept, on both engines.

`PIECEWORK_FUZZ=2500` looks at so many histories on each engine, other ones each time, instead of the few that are
always the same.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace

from piecework.run import admission, folds, intake
from piecework.run.node import Node
from piecework.store.records import Buffered, Run
from piecework.workflow import endings, executor
from piecework.workflow.flight import Flight

from .rules import runtime_machine

FUZZ = int(os.environ.get("PIECEWORK_FUZZ", "0"))

pytestmark = pytest.mark.timeout(0 if FUZZ else 300)  # it is a failure that takes long: it is shrunk


def profile(examples, *, steps=16, **rest):
    """The same histories every time, unless others are asked for."""
    return settings(
        max_examples=FUZZ or examples,
        stateful_step_count=40 if FUZZ else steps,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **rest,
    )


@pytest.mark.covers("N240")
def test_sqlite(sqlite):
    """Every promise is kept in every history on SQLite."""
    run_state_machine_as_test(runtime_machine(sqlite), settings=profile(120))


@pytest.mark.covers("N240")
def test_postgres(postgres):
    """Every promise is kept in every history on PostgreSQL."""
    run_state_machine_as_test(runtime_machine(postgres), settings=profile(80))


# -- what the machine has to see -----------------------------------------------------------------------------------


def _no_successor(draft, item, now):
    folds.decide_cleaned(draft, item, now)
    return 0


def _beside_the_buffer(park):
    class Blind:
        def __init__(self, draft):
            self._draft = draft

        def of_run(self, cls, run_id):
            return [] if cls is Buffered else self._draft.of_run(cls, run_id)

        def __getattr__(self, name):
            return getattr(self._draft, name)

    return lambda draft, *rest: park(Blind(draft), *rest)


def _over_the_abort(draft, item, now):
    run = draft.get(Run, item.run_id)
    draft.put(replace(run, abort_reason=None))
    return folds.decide_settle(draft, item, now)


async def _nobody(_node):
    return 0


def _forget(flight, sent):
    """Signals that count as taken, and are not."""
    flight.signalled = max([flight.signalled, *(number for number, _ in sent)])


BROKEN = {
    "a node that forgets to wake a successor": (endings, "decide_cleaned", _no_successor),
    "a park that does not look into the buffer": (folds, "_park", _beside_the_buffer(folds._park)),
    "an end that forgets the abort": (executor, "decide_settle", _over_the_abort),
    "a node that takes nothing over": (Node, "take_over", _nobody),
    "an executor that forgets signals": (Flight, "take_signals", _forget),
    "a wake-up that nobody hears of": (intake, "_WORK", frozenset({"started", "replaced"})),
    "a slot with room for everybody": (admission, "startable", lambda slot: slot.queued),
}


@pytest.mark.skipif(FUZZ, reason="the runtime is what is looked at")
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_runtime_is_found(sqlite, monkeypatch, how):
    """A runtime that breaks a promise does not pass."""
    where, name, instead = BROKEN[how]
    monkeypatch.setattr(where, name, instead)
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(runtime_machine(sqlite), settings=profile(200, steps=25, phases=[Phase.generate]))
