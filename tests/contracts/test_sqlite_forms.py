"""Requests reach a SQLite file row by row or at once: both have the same effect, and the cheaper form is picked."""

from __future__ import annotations

import sqlite3

import msgspec
import pytest
from msgspec.structs import replace

from piecework.errors import StoreError
from piecework.store import statements
from piecework.store.contract import Delete, Insert, InsertMissing, Lock, Put, Read, StartAgain, Tell, Update
from piecework.store.migrate import migrate_sqlite
from piecework.store.records import TABLES, Entry, EventRow, Run, Space
from piecework.store.sqlite_crowd import Crowd, Waiting, Watch, observe
from piecework.store.sqlite_requests import Hands

TEXTS = ("plain", "", "é\u2028\U0001f600", "'\"\\", '{"a":[1]}', "\x00\x1f\n", "NULL", "12")
BYTES = (b"{}", b"", bytes(range(256)), b"\xff\x00")
NUMBERS = (0, 1, 2**63 - 1, 2**53 + 1)


def value(field, number, salt):
    """Something that a column takes, different from row to row."""
    kinds = getattr(field.type, "__args__", (field.type,))
    if field.name == "status":
        return ("queued", "running", "paused")[(number + salt) % 3]
    if type(None) in kinds and (number + salt) % 3 == 0:
        return None
    if str in kinds:
        return f"{TEXTS[(number + salt) % len(TEXTS)]}{field.name}"
    return (BYTES if bytes in kinds else NUMBERS)[(number + salt) % 4]


def row(record, number, salt=0):
    """A row of a table whose key is its number; another salt makes it another row with that key."""
    cells = {field.name: value(field, number, salt) for field in msgspec.structs.fields(record)}
    for field in msgspec.structs.fields(record):
        if field.name in record.key or field.name in {"event_id", "notification_id"}:
            kinds = getattr(field.type, "__args__", (field.type,))
            cells[field.name] = f"{TEXTS[number % len(TEXTS)]}{number:05}" if str in kinds else number + 1
    return record(**cells)


def fresh():
    """An empty store in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate_sqlite(connection, 0)
    return connection


@pytest.fixture
def both():
    """The two forms, each on a store of its own: (row by row, at once)."""
    connections = fresh(), fresh()
    yield tuple(Hands(one, at_once=form) for one, form in zip(connections, (False, True), strict=True))
    for connection in connections:
        connection.close()


def contents(hands, record):
    return hands._connection.execute(f"SELECT * FROM {record.table} ORDER BY {', '.join(record.key)}").fetchall()


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 300])
@pytest.mark.parametrize("record", TABLES, ids=lambda record: record.table)
def test_every_write_has_the_same_effect(both, record, count):
    """Whatever is inserted, replaced, put and deleted, in whatever number: both forms leave the same rows."""
    old = [row(record, number) for number in range(count)]
    new = [row(record, number, salt=1) for number in range(0, count, 2)]
    puts = [row(record, number, salt=2) for number in range(count // 2, count + 5)]
    gone = [one.identity() for one in old[::3]] + [row(record, count + 99).identity()]
    for hands in both:
        for request in (Insert(old), Update(new), Put(puts), Delete(record, gone)):
            hands.carry_out(request)
    assert contents(both[0], record) == contents(both[1], record)
    assert len(contents(both[0], record)) == count + 5 - len(gone) + 1


@pytest.mark.parametrize("record", TABLES, ids=lambda record: record.table)
def test_every_row_is_read_as_it_was_written(both, record):
    """Rows are answered with every value as it was, bytes and odd text too, in the order of their keys."""
    rows = [row(record, number) for number in range(70)]
    keys = [one.identity() for one in rows] + [row(record, 999).identity()]
    for hands in both:
        hands.carry_out(Insert(rows))
        assert hands.carry_out(Lock(record, [*keys, keys[0]])) == sorted(rows, key=lambda one: one.identity())


@pytest.mark.parametrize("count", [1, 3, 65])
@pytest.mark.parametrize("columns", Run.together)
def test_only_some_columns_are_replaced(both, columns, count):
    """A write of some columns leaves the others as they are, in both forms; a row that is not there fails it."""
    old = [row(Run, number) for number in range(count)]
    new = [row(Run, number, salt=1) for number in range(count)]
    mixed = [replace(was, **{name: getattr(now, name) for name in columns}) for was, now in zip(old, new, strict=True)]
    for hands in both:
        hands.carry_out(Insert(old))
        hands.carry_out(Update(new, columns))
        assert hands.carry_out(Lock(Run, [one.identity() for one in old])) == sorted(mixed, key=lambda one: one.run_id)
        with pytest.raises(StoreError, match="1 of 2 rows of runs are gone"):
            hands.carry_out(Update([new[0], row(Run, 999)], columns))


@pytest.mark.parametrize("write", [Update, Put, Insert, Delete, Lock])
@pytest.mark.parametrize("record", TABLES, ids=lambda record: record.table)
def test_no_statement_looks_at_every_row(both, record, write):
    """What is addressed by key is found by its key in both forms, however large the table is."""
    plans = {
        Update: statements.update_many(record, 4),
        Put: statements.put_many(record, 4),
        Insert: statements.insert_many(record, 4),
        Delete: statements.delete_many(record, 4),
        Lock: statements.by_keys(record, 4),
    }
    text = plans[write]
    steps = both[1]._connection.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?")).fetchall()
    assert not [detail for *_, detail in steps if detail.startswith("SCAN") and record.table in detail.split()]


def test_of_two_rows_with_one_key_the_later_is_put(both):
    """A put of one key twice leaves the second row in both forms."""
    for hands in both:
        hands.carry_out(Put([Space("a", 1), Space("b", 1), Space("a", 2)]))
        assert contents(hands, Space) == [("a", 2, 1), ("b", 1, 1)]


def test_a_row_that_is_gone_fails_the_update(both):
    """An update of a row that is not there fails in both forms."""
    for hands in both:
        hands.carry_out(Insert([Space("a", 1), Space("c", 1)]))
        with pytest.raises(StoreError, match="1 of 3 rows of spaces are gone"):
            hands.carry_out(Update([Space("a", 2), Space("b", 2), Space("c", 2)]))


def test_a_row_that_is_there_fails_the_insert(both):
    """An insert of a key that exists fails in both forms."""
    for hands in both:
        hands.carry_out(Insert([Space("b", 1)]))
        with pytest.raises(sqlite3.IntegrityError):
            hands.carry_out(Insert([Space("a", 2), Space("b", 2)]))


@pytest.mark.parametrize("write", [Insert, Put])
def test_a_row_without_its_key_is_not_swallowed(both, write):
    """A row with nothing in a column that needs something fails in both forms, never silently."""
    for hands in both:
        with pytest.raises((sqlite3.IntegrityError, StoreError)):
            hands.carry_out(write([Space("a", 1), Space(None, 1)]))


def test_missing_rows_are_inserted_and_numbered_in_order(both):
    """Of events only the new ones are answered, the first of two with one id, numbered as they were given."""
    old, *rest = (msgspec.structs.replace(row(EventRow, number), seq=None) for number in range(6))
    again = msgspec.structs.replace(rest[0], type="again")
    answers = []
    for hands in both:
        hands.carry_out(Insert([old]))
        answers.append(hands.carry_out(InsertMissing([rest[3], old, rest[0], again, *rest], "event_id")))
    for answer, hands in zip(answers, both, strict=True):
        assert [msgspec.structs.replace(one, seq=None) for one in answer] == [
            rest[number] for number in (3, 0, 1, 2, 4)
        ]
        stored = contents(hands, EventRow)
        assert [EventRow(*one) for one in stored[1:]] == answer
        assert stored[0][1] == old.event_id


def test_missing_rows_without_a_number(both):
    """Rows that the store does not number are answered as they are; when all are there, nothing is."""
    for hands in both:
        assert hands.carry_out(InsertMissing([Space("b", 1), Space("a", 2)], "space")) == [Space("b", 1), Space("a", 2)]
        assert hands.carry_out(InsertMissing([Space("a", 3), Space("b", 3)], "space")) == []


def test_events_whose_ids_were_forgotten_are_all_inserted(both):
    """Rows with nothing in the unique column never clash."""
    nameless = [msgspec.structs.replace(row(EventRow, number), seq=None, event_id=None) for number in range(3)]
    for hands in both:
        assert [one.seq for one in hands.carry_out(InsertMissing(nameless, "event_id"))] == [1, 2, 3]


def test_named_queries_answer_the_same(both):
    """A query of a record's rows keeps its order in both forms."""
    lines = [msgspec.structs.replace(row(Entry, number), run_id="one", decision=99 - number) for number in range(50)]
    for hands in both:
        hands.carry_out(Insert(lines))
        assert hands.carry_out(Read("timeline_of", {"run_id": "one"}, Entry)) == lines[::-1]


def test_a_query_of_no_record_answers_every_kind_of_value(both, monkeypatch):
    """Text, numbers, fractions, bytes, nothing and JSON in text come out of both forms alike, in their order."""
    text = """-- Everything that a column can hold.
    SELECT column1 AS "a ""b", column1 FROM (
        VALUES (1), (NULL), (0.1 + 0.2), (x'00ff'), ('{"a":1}'), (json_array('real', '1')), (char(0, 31, 8232))
    ) WHERE 1 IN (:list);
    """
    monkeypatch.setattr(statements, "named", lambda _name, _engine: text)
    read = Read("everything of every kind", {"list": [1, 2]})
    row_by_row, at_once = (hands.select(read) for hands in both)
    assert row_by_row == at_once
    assert [type(first).__name__ for first, _ in at_once] == ["int", "NoneType", "float", "bytes", "str", "str", "str"]


def test_json_in_a_text_stays_a_text(both, monkeypatch):
    """What a query makes with JSON functions is text for its reader in both forms."""
    monkeypatch.setattr(
        statements, "named", lambda _name, _engine: "SELECT json_array('real', '1') AS made FROM spaces"
    )
    for hands in both:
        hands.carry_out(Insert([Space("a", 1)]))
        assert hands.select(Read("made of JSON", {})) == [('["real","1"]',)]


def test_at_once_takes_few_steps(both):
    """Fifty rows read, replaced and inserted: two steps a row in one form, a few in all in the other."""
    for hands in both:
        hands.carry_out(Insert([row(Run, number) for number in range(50)]))
        hands.carry_out(Update(hands.carry_out(Lock(Run, [row(Run, number).identity() for number in range(50)]))))
    assert both[0].steps > 150
    assert both[1].steps < 10


def test_other_processes_are_told_nothing(both):
    """There is nobody to tell, and no verb needs to start again."""
    assert both[0].carry_out(Tell(["due"])) is None
    with pytest.raises(StoreError, match="start again"):
        both[0].carry_out(StartAgain())


US, MS = 1_000, 1_000_000


@pytest.mark.parametrize(
    ("story", "crowded"),
    [
        pytest.param([], False, id="nothing is known"),
        pytest.param([(0, 100)] * 5, False, id="nobody waits"),
        pytest.param([(100 * US, 100)] * 50, False, id="a microsecond a step"),
        pytest.param([(50 * MS, 10)], True, id="a switch interval a step"),
        pytest.param([(4 * MS, 100)], False, id="one wait that the machine caused"),
        pytest.param([(4 * MS, 100)] * 9, True, id="such a wait each time"),
        pytest.param([(1000 * US, 100)] * 50, False, id="between the bounds, from below"),
        pytest.param([(50 * MS, 10), *[(1000 * US, 100)] * 50], True, id="between the bounds, from above"),
        pytest.param([(50 * MS, 10)] * 9 + [(0, 10)] * 3, True, id="a moment of quiet"),
        pytest.param([(50 * MS, 10)] * 99 + [(0, 10)] * 12, False, id="the crowd has gone"),
        pytest.param([(50 * MS, 10), (50 * MS, 0)], True, id="a transaction without steps"),
        pytest.param([(-5, 10)] * 3, False, id="clocks that disagree a little"),
    ],
)
def test_the_form_follows_how_long_steps_wait(story, crowded):
    """Long waits at steps turn to the form of few steps, soon and not for a single hiccup; quiet turns back."""
    waiting = Waiting()
    for waited, steps in story:
        waiting = observe(waiting, waited, steps)
    assert waiting.crowded is crowded


def test_a_crowd_learns_from_its_threads():
    """What one thread of a store has found out the others know too."""
    crowd = Crowd()
    watch = Watch()
    watch._passed -= 50 * MS
    crowd.observe(watch, 10)
    assert crowd.crowded
