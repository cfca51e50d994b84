"""Promises about time that moves when told to."""

from __future__ import annotations

import asyncio

import pytest

from piecework.clock import SECOND
from piecework.testing.clock import VirtualClock


async def sleeper(clock, seconds, log):
    await clock.sleep(seconds)
    log.append((seconds, clock.monotonic()))


async def test_nobody_wakes_by_itself():
    """A sleeper sleeps until the clock has been advanced far enough."""
    clock, log = VirtualClock(), []
    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper(clock, 5, log))
        await clock.until_asleep()
        await clock.advance(4.999999)
        assert log == []
        await clock.advance(0.000001)
        assert log == [(5, 5.0)]


async def test_sleepers_wake_in_order_each_at_its_moment():
    """However far time moves at once, everybody wakes at the right moment, the earliest first."""
    clock, log = VirtualClock(), []
    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2, 1):
            group.create_task(sleeper(clock, seconds, log))
        await clock.until_asleep(4)
        await clock.advance(10)
    assert log == [(1, 1.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert clock.monotonic() == 10.0


async def test_a_loop_runs_as_often_as_it_would():
    """Who sleeps again within the span is woken again."""
    clock, ticks = VirtualClock(), []

    async def tick():
        for _ in range(3):
            await clock.sleep(2)
            ticks.append(clock.monotonic())

    async with asyncio.TaskGroup() as group:
        group.create_task(tick())
        await clock.advance(7)
    assert ticks == [2.0, 4.0, 6.0]


async def test_a_cancelled_sleeper_is_forgotten():
    """A sleeper that was cancelled keeps nobody up."""
    clock = VirtualClock()
    task = asyncio.ensure_future(clock.sleep(1))
    await clock.until_asleep()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.sleeping == 0
    await clock.advance(2)


async def test_no_time_is_one_turn():
    """Sleeping for no time ends without anybody's help."""
    await VirtualClock().sleep(0)


async def test_the_wall_clock_moves_along():
    """Both clocks move together."""
    clock = VirtualClock(now=1000)
    await clock.advance(2)
    assert (clock.now(), clock.monotonic()) == (1000 + 2 * SECOND, 2.0)


async def test_the_wall_clock_can_be_stepped():
    """A step of the wall clock is not felt by those who sleep."""
    clock, log = VirtualClock(now=1000), []
    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper(clock, 1, log))
        await clock.until_asleep()
        clock.set(0)
        await clock.advance(1)
    assert (clock.now(), log) == (SECOND, [(1, 1.0)])


async def test_time_does_not_run_backwards():
    """Advancing by less than nothing is refused."""
    with pytest.raises(ValueError, match="cannot be advanced"):
        await VirtualClock().advance(-1)
