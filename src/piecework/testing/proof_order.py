"""Which orders of steps are worth trying: one of each set that only differ by steps that do not touch each other.

Two transactions notice each other in few places: where both take one row, where one looks at what the other has
committed, where the store numbers what both insert. Steps that meet nowhere may be swapped and nothing is different. So
after each schedule the pairs are found that did meet, and for each the schedule is tried in which they meet the other
way round (dynamic partial order reduction with sleep sets, after Flanagan and Godefroid). What it leaves out ends like
one that was tried. Pure: no database.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from piecework.store import postgres_sql
from piecework.store.contract import Change, Delete, Insert, InsertMissing, Lock, Put, Read, Update
from piecework.store.records import TABLES
from piecework.store.statements import named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from piecework.store.contract import Request
    from piecework.store.records import Record

Rows: TypeAlias = "dict[str, frozenset[tuple[object, ...]] | None]"
"""Tables, each with the keys of the rows concerned; None where it may be any row."""

_CHANGES = 0.3
"""How often somebody else goes on, in schedules taken at random."""


@dataclass(slots=True)
class Footprint:
    """What a step has to do with.

    Attributes:
        takes: Rows that it locks for itself, or creates.
        shares: Rows that it locks so that nobody changes them.
        sees: Rows whose committed state it looks at.
        draws: Tables whose next number it takes.
        shows: Rows whose new state others see from now on.
        frees: Rows whose locks it gives up.
    """

    takes: Rows = field(default_factory=dict)
    shares: Rows = field(default_factory=dict)
    sees: Rows = field(default_factory=dict)
    draws: frozenset[str] = frozenset()
    shows: Rows = field(default_factory=dict)
    frees: Rows = field(default_factory=dict)

    def meets(self, other: Footprint) -> bool:
        """Whether it matters which of two steps comes first."""
        return (
            _meet(self.takes, other.takes)
            or _meet(self.takes, other.shares)
            or _meet(self.shares, other.takes)
            or bool(self.draws & other.draws)
            or self._ends_before(other)
            or other._ends_before(self)
        )

    def _ends_before(self, other: Footprint) -> bool:
        return _meet(self.shows, other.sees) or _meet(self.frees, other.takes) or _meet(self.frees, other.shares)


def footprint(writes: Sequence[Request], request: Request | None) -> Footprint:
    """What a step has to do with that sends writes and then, perhaps, asks for something."""
    step = Footprint()
    for write in writes:
        for table, keys in _written(write).items():
            add(step.takes, table, keys)
    match request:
        case Lock():
            wanted = frozenset(request.keys)
            add(step.shares if request.share else step.takes, request.record.table, wanted)
            add(step.sees, request.record.table, wanted)
        case Read(name):
            locks = "FOR NO KEY UPDATE" in named(name, "postgres")
            for table in postgres_sql.tables_of(name):
                add(step.sees, table, None)
                if locks:
                    add(step.takes, table, None)
        case InsertMissing(records, unique):
            record = type(records[0])
            table = record.table if (unique,) == record.key else f"{record.table}.{unique}"
            values = frozenset((getattr(one, unique),) for one in records)
            add(step.takes, table, values)
            add(step.sees, table, values)
            if record.serial is not None:
                step.draws |= {record.table}
    return step


def shown(requests: Sequence[Request]) -> Rows:
    """The rows that a transaction's requests change."""
    rows: Rows = {}
    for request in requests:
        if not isinstance(request, Lock | Read):
            for table, keys in _written(request).items():
                add(rows, table, keys)
    return rows


def add(rows: Rows, table: str, keys: frozenset[tuple[object, ...]] | None) -> None:
    """Adds rows to others."""
    known = rows.get(table, frozenset())
    rows[table] = None if known is None or keys is None else known | keys


def _written(request: Request) -> Rows:
    match request:
        case Change(name):
            tables = postgres_sql.tables_of(name)
            rows: Rows = dict.fromkeys(tables)
            for record in TABLES:
                if record.table in tables:
                    rows |= _unique(record)
            return rows
        case Delete(record, keys):
            return {record.table: frozenset(keys)} | _unique(record)
        case InsertMissing(records, unique):
            values = frozenset((getattr(one, unique),) for one in records)
            made = type(records[0])
            if (unique,) == made.key:
                return {made.table: values}
            return {made.table: None, f"{made.table}.{unique}": values}
        case Insert(records) | Put(records) | Update(records) if records:
            return {records[0].table: frozenset(row.identity() for row in records)} | _unique(type(records[0]))
    return {}


def _unique(record: type[Record]) -> Rows:
    """A numbered table has another unique column: who writes its rows may meet somebody there."""
    return {f"{record.table}.event_id": None} if record.serial is not None else {}


def _meet(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    for table, keys in one.items():
        if table in other:
            theirs = other[table]
            if (keys is None or keys) and (theirs is None or theirs) and _share(keys, theirs):
                return True
    return False


def _share(keys: frozenset[tuple[object, ...]] | None, others: frozenset[tuple[object, ...]] | None) -> bool:
    return keys is None or others is None or not keys.isdisjoint(others)


# -- which schedule comes next -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A point of the current schedule: who could go on, who did, who is still to be tried here."""

    nexts: dict[int, Footprint]
    asleep: set[int]
    chosen: int = -1
    done: set[int] = field(default_factory=set)
    wanted: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Step:
    who: int
    footprint: Footprint
    clock: dict[int, int]
    before: dict[int, int]


class Orders:
    """Walks through the schedules of some participants, depth first.

    Args:
        reduce: Whether to leave out what only differs by steps that do not meet.
    """

    def __init__(self, *, reduce: bool = True) -> None:
        self._reduce = reduce
        self._nodes: list[_Node] = []
        self._steps: list[_Step] = []
        self._clocks: dict[int, dict[int, int]] = {}
        self._counts: dict[int, int] = {}
        self._kept = 0
        self.strayed = 0
        """How many schedules did not go as they went before: who gets a lock first is the server's decision."""

    def choose(self, nexts: dict[int, Footprint]) -> int | None:
        """Who takes the next step; None where every way on from here has been tried.

        Args:
            nexts: Who can, and what the step would have to do with.
        """
        depth = len(self._steps)
        if depth == len(self._nodes):
            self._nodes.append(self._new_node(nexts))
        node = self._nodes[depth]
        if node.chosen not in nexts:
            if node.chosen >= 0:  # it was possible before
                self.strayed += 1
                del self._nodes[depth:]
                self._nodes.append(node := self._new_node(nexts))
            free = [who for who in sorted(nexts) if who not in node.asleep]
            if not free:
                self._nodes.pop()
                return None
            last = self._steps[-1].who if self._steps else -1
            node.chosen = last if last in free else free[0]
            node.wanted = {node.chosen} if self._reduce else set(nexts)
        self._record(node.chosen, nexts[node.chosen])
        return node.chosen

    def woken(self, who: int, by: int) -> None:
        """One that waited goes on because of the last step of another."""
        clock = self._clocks.setdefault(who, {})
        for other, count in self._clocks[by].items():
            clock[other] = max(clock.get(other, 0), count)

    def another(self) -> bool:
        """Goes on to the next schedule; False when there is none left."""
        if self._reduce:
            self._find_meetings()
        self._steps, self._clocks, self._counts = [], {}, {}
        while self._nodes:
            node = self._nodes[-1]
            node.done.add(node.chosen)
            left = sorted(node.wanted - node.done - node.asleep)
            if left:
                node.chosen = left[0]
                self._kept = len(self._nodes) - 1
                return True
            self._nodes.pop()
        return False

    def _new_node(self, nexts: dict[int, Footprint]) -> _Node:
        if not self._nodes or not self._reduce:
            return _Node(nexts, set())
        above = self._nodes[-1]
        chosen = above.nexts[above.chosen]
        quiet = {who for who in above.asleep | above.done if who != above.chosen}
        return _Node(nexts, {who for who in quiet if who in nexts and not above.nexts[who].meets(chosen)})

    def _record(self, who: int, mark: Footprint) -> None:
        before = dict(self._clocks.get(who, {}))
        clock = dict(before)
        if self._reduce:
            for step in self._steps:
                if step.who != who and step.clock[step.who] > clock.get(step.who, 0) and step.footprint.meets(mark):
                    for other, count in step.clock.items():
                        clock[other] = max(clock.get(other, 0), count)
        self._counts[who] = clock[who] = self._counts.get(who, 0) + 1
        self._clocks[who] = clock
        self._steps.append(_Step(who, mark, clock, before))

    def _find_meetings(self) -> None:
        """Wants the other order of every two steps that met and that nothing else had put in order."""
        for late in range(self._kept, len(self._steps)):
            step = self._steps[late]
            for early in range(late):
                other = self._steps[early]
                known = step.before.get(other.who, 0)
                if (
                    other.who == step.who
                    or other.clock[other.who] <= known
                    or not other.footprint.meets(step.footprint)
                ):
                    continue
                node = self._nodes[early]
                node.wanted |= {step.who} if step.who in node.nexts else set(node.nexts)


class Samples:
    """Takes schedules at random: some of each kind where there are too many to try them all.

    Who took the last step mostly takes the next one too, because that is how long stretches of one verb come about
    between two steps of another.

    Args:
        number: How many.
        seed: The same one takes the same schedules.
    """

    strayed = 0

    def __init__(self, number: int, seed: int) -> None:
        self._left = number
        self._random = random.Random(seed)  # noqa: S311 - nothing secret
        self._last = -1

    def choose(self, nexts: dict[int, Footprint]) -> int:
        """Who takes the next step."""
        if self._last not in nexts or self._random.random() < _CHANGES:
            self._last = self._random.choice(sorted(nexts))
        return self._last

    def woken(self, who: int, by: int) -> None:
        """Nothing follows from it."""

    def another(self) -> bool:
        """Goes on to the next schedule; False when there were enough."""
        self._left -= 1
        self._last = -1
        return self._left > 0


class Replay:
    """Takes one schedule again.

    Args:
        taken: Who took its steps; where it ends, or cannot be followed, the first who can goes on.
    """

    strayed = 0

    def __init__(self, taken: Sequence[int]) -> None:
        self._taken = iter(taken)

    def choose(self, nexts: dict[int, Footprint]) -> int:
        """Who takes the next step."""
        wished = next(self._taken, min(nexts))
        return wished if wished in nexts else min(nexts)

    def woken(self, who: int, by: int) -> None:
        """Nothing follows from it."""

    def another(self) -> bool:
        """There is one only."""
        return False
