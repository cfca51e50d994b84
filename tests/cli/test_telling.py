"""Promises about what people see of tables."""

from __future__ import annotations

import re

import pytest

from piecework.cli.telling import show_table

_COLUMNS = ("run", "status", "space", "note")
_ROWS = [("0123456789abcdef", "completed", "default", None), ("fedcba9876543210", "failed", "acme", "a long story")]


@pytest.fixture
def terminal(monkeypatch):
    """Makes the output a terminal of so many columns."""

    def make(width):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))

    return make


def _shown(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in lines]


def test_a_table_that_has_room_is_a_table(terminal, capsys):
    """On a wide terminal each row is one line."""
    terminal(80)
    show_table(_COLUMNS, _ROWS, nothing="none")
    assert [line.split()[0] for line in _shown(capsys)] == ["run", "0123456789abcdef", "fedcba9876543210"]


def test_a_table_without_room_is_told_row_by_row(terminal, capsys):
    """On a narrow terminal no word is broken and no column is lost: the fields of a row stand beneath each other."""
    terminal(40)
    show_table(_COLUMNS, _ROWS, nothing="none")
    assert [line.split(maxsplit=1) for line in _shown(capsys)] == [
        ["run", "0123456789abcdef"],
        ["status", "completed"],
        ["space", "default"],
        [],
        ["run", "fedcba9876543210"],
        ["status", "failed"],
        ["space", "acme"],
        ["note", "a long story"],
    ]


def test_what_is_piped_is_one_line_a_row(monkeypatch, capsys):
    """Programs get a row a line, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", "20")
    show_table(_COLUMNS, _ROWS, nothing="none")
    assert len(capsys.readouterr().out.splitlines()) == 3
