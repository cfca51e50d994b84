"""Promises about how a timeline is drawn."""

from __future__ import annotations

import pytest

from piecework.cli.timeline import lines_of, show_timeline

RUN = {"run_id": "r-1", "kind": "workflow", "workflow_id": "order", "status": "paused", "stage": "check"}
RUN |= {"ended_at": None, "waiting_for": ["approved"], "paused_at": None, "expires_at": None}


def entry(type_, path="", *, at=0.0, source="pipeline", changed=(), **payload):
    told = {"type": type_, "path": path, "source": source, "payload": payload or None, "changed": list(changed)}
    return told | {"at": f"2026-01-02T03:04:{at:06.3f}+00:00"}


def drawn(*entries):
    return [(line.depth, line.text, line.detail) for line in lines_of(entries)]


def test_a_stage_stands_above_what_happened_in_it():
    """A stage is drawn with its time and what it changed, beneath it its steps, and beneath those their own lines."""
    assert drawn(
        entry("run:claimed", at=1),
        entry("log.info", "pack/box", at=2, source="logger", message="packed", fields={"run_id": "r-1", "boxes": 2}),
        entry("build:complete", "session", at=2, source="container", seconds=0.1),
        entry("step:retry", "pack/box", at=3, delay_seconds=0.5, error={"code": "E", "message": "no"}),
        entry("step:completed", "pack/box", at=3, attempt=2, seconds=0.25),
        entry("stage:completed", "pack", at=3, changed=["n"], next="ship", instruction="advance"),
        entry("run:paused", at=3.5, waiting_for=["approved"]),
    ) == [
        (0, "run:claimed", ""),
        (0, "stage pack", "2.000 s, then ship, changed n"),
        (1, "box", "0.250 s, 2 attempts"),
        (2, "again after 0.5 s", "E: no"),
        (2, "packed", "boxes=2"),
        (1, "service session built", "seconds=0.1"),
        (0, "run:paused", 'waiting_for=["approved"]'),
    ]


def test_a_stage_that_was_not_committed_says_so():
    """Steps of a stage that failed, or that is not over, are drawn beneath it all the same."""
    assert drawn(
        entry("step:failed", "pack/box", error={"code": "E", "message": "no"}),
        entry("run:failed", code="E", message="1 step failed"),
        entry("log.info", "ship/call", source="logger", message="calling", fields={}),
    ) == [
        (0, "stage pack", "not committed"),
        (1, "box", "E: no"),
        (0, "run:failed", "E: 1 step failed"),
        (0, "stage ship", "not committed"),
        (1, "call", ""),
        (2, "calling", ""),
    ]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({}, "waits for approved"),
        ({"status": "running", "started_at": None}, "is at check"),
        ({"status": "queued", "created_at": None}, "waits for its turn"),
    ],
)
def test_where_the_run_stands_is_the_last_line(capsys, run, said):
    """A run that has not ended ends the picture with what it waits for; nothing is coloured where nobody looks."""
    show_timeline([entry("run:started")], RUN | run)
    out = capsys.readouterr().out
    assert said in out.splitlines()[-1]
    assert "\x1b" not in out


def test_control_characters_do_not_reach_the_terminal(capsys):
    """What users wrote is shown escaped."""
    line = entry("log.info", "pack/box", source="logger", message="\x1b[2J\nboo", fields={"k": "\x07"})
    show_timeline([line], RUN | {"ended_at": "2026-01-02T03:04:09+00:00"})
    out = capsys.readouterr().out
    assert "\\x1b[2J\\nboo" in out
    assert "\x07" not in out
