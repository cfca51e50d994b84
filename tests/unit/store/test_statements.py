"""Promises about the SQL that is made of records and named queries."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.store import statements
from piecework.store.migrate import migrations
from piecework.store.records import TABLES

QUERIES = sorted(path.stem for path in (Path(statements.__file__).parent / "sql").glob("*.sql"))


@pytest.fixture
def database():
    connection = sqlite3.connect(":memory:")
    for _, text in migrations():
        connection.executescript(text)
    yield connection
    connection.close()


@pytest.mark.parametrize("record", TABLES, ids=lambda record: record.table)
def test_a_record_is_its_table(database, record):
    """The fields of a record are the columns of its table, in their order; its key is the primary key."""
    rows = database.execute(f"PRAGMA table_info({record.table})").fetchall()
    assert tuple(row[1] for row in rows) == record.__struct_fields__
    assert tuple(row[1] for row in sorted(rows, key=lambda row: row[5]) if row[5]) == record.key


@pytest.mark.parametrize("name", QUERIES)
def test_a_named_query_says_what_it_is_for(name):
    """Every query begins with a sentence about itself."""
    assert statements.named(name).startswith("-- ")


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_a_list_is_one_parameter(values):
    """A list of any length is bound as one value and stands for the same values."""
    flat, lists = statements.spread({"ids": values, "limit": 3})
    assert flat["limit"] == 3
    assert lists == ("ids",)
    with closing(sqlite3.connect(":memory:")) as connection:
        found = connection.execute("SELECT value FROM json_each(?)", [flat["ids"]]).fetchall()
    assert [row[0] for row in found] == values


def test_an_empty_list_matches_nothing(database):
    """No values are no rows, not all of them."""
    flat, sizes = statements.spread({"run_ids": []})
    text = statements.named_for("slots_of_runs", None, sizes)
    assert database.execute(text, flat).fetchall() == []
