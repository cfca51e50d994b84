"""Promises about what people see of a run."""

from __future__ import annotations

from datetime import UTC, datetime

from piecework.run.info import run_info, timeline_entry


async def test_a_run_told_in_the_words_of_the_public_face(verbs):
    """Moments are aware datetimes, texts of JSON are values, and what is not there is None."""
    run = await verbs.paused(None, "order.paid", timeout_seconds=60)
    info = run_info(run, result=b'{"n":1}')
    assert info.created_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert (info.expires_at - info.paused_at).total_seconds() == 60
    assert (info.status, info.waiting_for, info.result, info.error) == ("paused", ["order.paid"], {"n": 1}, None)
    assert (info.kind, info.workflow_id, info.key, info.ended_at) == ("workflow", "orders", run.key_value, None)


async def test_an_error_told(verbs):
    """A failed run tells what it failed with."""
    run = await verbs.running()
    await verbs.settle(run, "failed", error='{"type":"E","code":"X","message":"no"}')
    await verbs.cleaned(run)
    assert run_info(await verbs.run(run.run_id)).error == {"type": "E", "code": "X", "message": "no"}


async def test_a_timeline_told(verbs):
    """A timeline's lines are numbered from one and carry their payload as a value."""
    run = await verbs.running()
    told = [timeline_entry(entry, seq) for seq, entry in enumerate(await verbs.timeline(run.run_id), start=1)]
    assert [(line.seq, line.type, line.source) for line in told] == [
        (1, "run:started", "pipeline"),
        (2, "run:claimed", "pipeline"),
    ]
    assert told[1].payload == {"attempt": 1, "epoch": 1}
