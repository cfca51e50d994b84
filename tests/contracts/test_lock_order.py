"""The watch over the order of locks, with which `test_sqlite` keeps every promise of a store, sees what is wrong."""

from __future__ import annotations

import pytest

from contracts.lock_order import check
from piecework.store.contract import Lock
from piecework.store.records import Run, Slot


def test_the_watch_sees_what_is_late():
    """A verb that locks a slot after a run, or runs twice, is found out."""

    def slot_after_run(_items, _decide, _now):
        yield Lock(Run, [("r",)])
        yield Lock(Slot, [("s",)])

    def runs_twice(_items, _decide, _now):
        yield Lock(Run, [("r",)])
        yield Lock(Run, [("q",)])

    for verb, words in ((slot_after_run, "Slot after Run"), (runs_twice, "Run twice")):
        with pytest.raises(AssertionError, match=words):
            list(check(verb([], None, 0), verb.__name__))
