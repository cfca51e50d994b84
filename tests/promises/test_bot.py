"""The bot: jobs that run by the clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from piecework import Settings
from piecework.clock import SECOND
from piecework.services.bot import TRIGGER
from piecework.store.verbs.retention import forget_ids
from piecework.testing.clock import VirtualClock

LIMIT = 20
START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE = 60
ON_THE_MINUTE = "* * * * *"


@pytest.fixture
def clock():
    """A clock that stands half a minute after noon."""
    return VirtualClock(round(START.timestamp()) * SECOND)


class Ticks:
    """What a scheduled job did: when it began, by the clock, in seconds after noon."""

    def __init__(self, clock):
        self.clock = clock
        self.times = []
        self.changed = asyncio.Event()

    def add(self):
        self.times.append((self.clock.now() // SECOND) - round(START.timestamp()) + 30)
        self.changed.set()

    async def reach(self, count):
        """Moves time on, a little each time, until it has been called so often."""
        async with asyncio.timeout(LIMIT):
            while len(self.times) < count:
                await self.clock.advance(1)
                await asyncio.sleep(0.001)


@pytest.fixture
def ticks(clock):
    return Ticks(clock)


def ticking(make_app, clock, ticks, schedule=ON_THE_MINUTE, hold=None, **options):
    """An app whose job `tick` runs by a schedule."""
    app = make_app(clock=clock)

    @app.job("tick", schedule=schedule, **options)
    async def tick(ws):
        ticks.add()
        if hold is not None:
            await hold.wait()

    return app


async def scheduled(app):
    return [run for run in await app.runtime.list_all_runs(kind="job") if run.trigger_id == TRIGGER]


async def settled(app, count):
    """Waits until so many scheduled runs have ended."""
    async with asyncio.timeout(LIMIT):
        while True:
            done = [run for run in await scheduled(app) if run.ended_at is not None]
            if len(done) >= count:
                return done
            await app.clock.advance(0.1)
            await asyncio.sleep(0.005)


@pytest.mark.engines("sqlite")
@pytest.mark.covers("W95")
async def test_a_scheduled_job_runs_at_its_times(make_app, clock, ticks):
    """A job runs at each time of its schedule, never before, each time in a workspace of its own."""
    app = ticking(make_app, clock, ticks)
    async with app:
        await ticks.reach(3)
    assert [at // MINUTE for at in ticks.times] == [1, 2, 3]
    assert all(at % MINUTE < 30 for at in ticks.times)


@pytest.mark.engines("sqlite")
@pytest.mark.covers("W95")
async def test_jobs_do_not_stop_each_other(make_app, clock, ticks):
    """A job that fails, and one that hangs, hold up no other, and a failed one comes again at its next time."""
    app, calls, hold = ticking(make_app, clock, ticks), Counter(), asyncio.Event()

    @app.job("fails", schedule=ON_THE_MINUTE)
    async def fails(ws):
        calls["fails"] += 1
        raise RuntimeError("no")

    @app.job("hangs", schedule=ON_THE_MINUTE)
    async def hangs(ws):
        calls["hangs"] += 1
        await hold.wait()

    async with app:
        await ticks.reach(3)
        hold.set()
    assert calls["fails"] >= 2
    assert calls["hangs"] == 1


@pytest.mark.engines("postgres")
@pytest.mark.covers("W95")
async def test_two_nodes_fire_once(make_app):
    """Of two nodes on one database one runs a job at each of its times."""
    seen, enough = [], asyncio.Event()

    def node(name):
        app = make_app(settings=Settings(lease_seconds=1.5, heartbeat_seconds=0.3))

        @app.job("tick", schedule="* * * * * *", overlap="allow")
        async def tick(ws):
            seen.append(ws.run_id)
            if len(seen) >= 4:
                enough.set()

        return app

    async with node("one") as one, node("two"):
        await asyncio.wait_for(enough.wait(), LIMIT)
        runs = await scheduled(one)
    times = Counter(run.key for run in runs)
    assert set(times.values()) == {1}
    assert len(seen) == len(set(seen))


@pytest.mark.covers("N168")
async def test_a_node_that_starts_again_keeps_the_schedule(make_app, clock, ticks, store):
    """The next time stands in the store: a restart neither repeats a time nor makes another."""
    async with ticking(make_app, clock, ticks):
        pass
    async with ticking(make_app, clock, ticks) as app:
        (run,) = await scheduled(app)
        assert (run.status, run.key) == ("queued", "2026-03-01T12:01:00+00:00")
        (job,) = [job for job in await app.bot.jobs() if job.schedule]
        assert (job.name, job.next_run_at, job.run_id) == ("tick", datetime(2026, 3, 1, 12, 1, tzinfo=UTC), run.run_id)
    assert ticks.times == []


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N169")
@pytest.mark.parametrize(("missed", "count"), [("once", 1), ("skip", 0), ("all", 10)])
async def test_missed_times(make_app, clock, ticks, missed, count):
    """Of ten times at which no node was there follow one run, none, or ten, as `missed` says; then the next time."""
    async with ticking(make_app, clock, ticks, missed=missed):
        pass
    await clock.advance(10 * MINUTE)  # to half past: the times 1 to 10 have gone
    async with ticking(make_app, clock, ticks, missed=missed) as app:
        ended = await settled(app, max(count, 1))
        assert len(ticks.times) == count
        assert {run.outcome for run in ended} == {"success" if count else "skipped"}
        await ticks.reach(count + 1)
    assert ticks.times[-1] // MINUTE == 11


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N170")
@pytest.mark.parametrize(("overlap", "beside", "after"), [("skip", 1, 1), ("queue", 1, 2), ("allow", 4, 4)])
async def test_overlapping_times(make_app, clock, ticks, overlap, beside, after):
    """A time at which the run before still works is left out, waits for its end, or runs beside it."""
    hold = asyncio.Event()
    async with ticking(make_app, clock, ticks, hold=hold, overlap=overlap) as app:
        await ticks.reach(1)
        if overlap == "allow":
            await ticks.reach(4)
        else:
            await clock.advance(3 * MINUTE)
        assert len(ticks.times) == beside
        now = ticks.times[0] + 3 * MINUTE
        hold.set()
        await settled(app, after)
        assert len(ticks.times) == after
        await ticks.reach(after + 1)
        assert ticks.times[after] // MINUTE > now // MINUTE


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N168")
async def test_an_aborted_time_is_left_out(make_app, clock, ticks):
    """Aborting the run that is queued for the next time leaves that time out; the schedule goes on."""
    async with ticking(make_app, clock, ticks) as app:
        (run,) = await scheduled(app)
        assert await app.runtime.abort(run.run_id)
        (ended,) = await settled(app, 1)
        assert (ended.run_id, ended.status) == (run.run_id, "aborted")
        await ticks.reach(1)
    assert ticks.times[0] // MINUTE == 2


@pytest.mark.engines("sqlite")
async def test_an_abort_that_crosses_the_beginning_holds(make_app, clock, ticks, monkeypatch):
    """A run that is aborted after its claim, while the next time is put into the store, calls no function."""
    async with ticking(make_app, clock, ticks, overlap="allow") as app:
        (run,) = await scheduled(app)
        begins = app.bot.begins

        async def crossed(claimed):
            verdict = await begins(claimed)
            if claimed.run_id == run.run_id:
                assert await app.runtime.abort(run.run_id)
            return verdict

        monkeypatch.setattr(app.bot, "begins", crossed)
        await ticks.reach(1)
        (ended,) = [one for one in await settled(app, 1) if one.run_id == run.run_id]
        assert ended.status == "aborted"
    assert ticks.times[0] // MINUTE == 2


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N168")
async def test_a_changed_schedule(make_app, clock, ticks):
    """A job with another schedule runs by the new one; what was queued by the old one is left out and says why."""
    async with ticking(make_app, clock, ticks):
        pass
    async with ticking(make_app, clock, ticks, schedule="*/2 * * * *") as app:
        await ticks.reach(2)
        (old,) = [run for run in await scheduled(app) if run.version == ON_THE_MINUTE]
        assert (old.status, old.outcome) == ("completed", "skipped")
    assert [at // MINUTE for at in ticks.times] == [2, 4]


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N168")
async def test_a_job_that_lost_its_schedule(make_app, clock, ticks):
    """A job without a schedule any more runs by none; what was queued is left out."""
    async with ticking(make_app, clock, ticks):
        pass
    async with ticking(make_app, clock, ticks, schedule=None) as app:
        await clock.advance(MINUTE)
        (run,) = await settled(app, 1)
        assert run.outcome == "skipped"
        assert len(await scheduled(app)) == 1
    assert ticks.times == []


@pytest.mark.covers("N168")
async def test_a_time_that_waits_for_long_is_not_forgotten(make_app, clock, ticks):
    """What keeps a time from coming twice stays as long as its run waits, however long that is."""
    async with ticking(make_app, clock, ticks, schedule="@yearly"):
        pass
    await clock.advance(40 * 86400)
    async with ticking(make_app, clock, ticks, schedule="@yearly") as app:
        from piecework.run.folds_nodes import no_decision
        from piecework.store.items import Retain

        assert await app.store.run(forget_ids, Retain(before=clock.now(), limit=10), no_decision, clock.now()) == 0
        assert len(await scheduled(app)) == 1


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N168")
async def test_chance_makes_a_time_later_only(make_app, clock, ticks):
    """With jitter a run begins some part of the way to the next time later, never before its time."""
    async with ticking(make_app, clock, ticks, jitter=0.5) as app:
        (row,) = await app.store.read("scheduled_runs", {"trigger_id": TRIGGER}, _run())
        moment = round(datetime.fromisoformat(row.key_value).timestamp()) * SECOND
        assert moment <= row.due_at <= moment + 30 * SECOND


def _run():
    from piecework.store.records import Run

    return Run


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N168")
async def test_a_client_keeps_no_schedule(make_app, clock, ticks, store):
    """Schedules are kept by nodes: without one no run is queued."""
    async with make_app(clock=clock), ticking(make_app, clock, ticks).open(role="client") as client:
        assert await client.runtime.list_all_runs() == []


@pytest.mark.covers("N168")
async def test_a_time_that_an_older_node_took_does_not_end_the_schedule(make_app, clock, ticks):
    """A run that a node left out which knew the job without its schedule is followed by another one all the same."""
    async with ticking(make_app, clock, ticks) as app:
        job = app.bot._definitions["tick"]
        app.bot._definitions["tick"] = replace(job, cron=None)  # as a node of the version before knows it
        await clock.advance(MINUTE)
        await settled(app, 1)
        assert await app.store.read("scheduled_runs", {"trigger_id": TRIGGER}, _run()) == []
        app.bot._definitions["tick"] = job
        await ticks.reach(1)
