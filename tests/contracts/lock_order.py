"""Whatever a verb does, it asks for its locks in one order: else two of them could wait for each other for ever.

`test_sqlite` keeps every promise of a store with its verbs watched like this.
"""

from __future__ import annotations

from functools import cache

from piecework.store.contract import InsertMissing, Lock
from piecework.store.records import (
    Delivery,
    Digest,
    EventRow,
    Fanout,
    Inbox,
    NodeRow,
    Notification,
    Occurrence,
    Piece,
    Run,
    RunValue,
    Slot,
    Space,
    WorkflowRow,
)

ORDER = (
    *(Digest, Notification, Occurrence, EventRow, Inbox, WorkflowRow, Delivery, Fanout, NodeRow),
    *(Slot, Piece, Run, RunValue, Space),
)
"""The order of locks; `docs/store.md` draws it."""


class Watched:
    """A store whose verbs are watched."""

    def __init__(self, store):
        self._store = store
        self.watched = cache(self._watch)

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def run(self, verb, item, decide, now, then=None):
        """Runs a watched verb."""
        return await self._store.run(self.watched(verb), item, decide, now, then)

    def _watch(self, verb):
        def seen(items, decide, now):
            return check(verb(items, decide, now), getattr(verb, "__name__", "verb"))

        return seen


def check(script, name):
    """Passes a verb's requests on and fails it where a lock comes too late."""
    taken, answer = [], None
    while True:
        try:
            request = script.send(answer)
        except StopIteration as done:
            return done.value
        record = _locked(request)
        if record is not None:
            late = [other.__name__ for other in taken if ORDER.index(other) > ORDER.index(record)]
            assert not late, f"{name} locks {record.__name__} after {', '.join(late)}"
            # A second statement of locks on one table is out of order with the first: all rows have to be in one.
            again = isinstance(request, Lock) and taken.count(record) and record in {Run, Slot}
            assert not again or _made_before(taken, record), f"{name} locks {record.__name__} twice"
            taken.append(record)
        answer = yield request


def _locked(request):
    if isinstance(request, Lock):
        return request.record
    return type(request.records[0]) if isinstance(request, InsertMissing) else None


def _made_before(taken, record):
    return record is Slot and taken.count(Slot) == 1  # those that were missing have been made first
