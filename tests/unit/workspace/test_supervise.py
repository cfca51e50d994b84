from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from piecework.errors import StoppedError
from piecework.workspace.supervise import Drained, Supervisor


async def test_drain_waits_for_children_that_end_in_time() -> None:
    """Within the grace children end by themselves."""
    supervisor, gate = Supervisor(), asyncio.Event()
    handle = supervisor.spawn(gate.wait, name="waits")
    draining = asyncio.ensure_future(supervisor.drain(5))
    gate.set()
    assert await draining == Drained(ended=1)
    assert await handle.result() is True


async def test_drain_cancels_children_after_the_grace() -> None:
    """A child that goes on is cancelled, and its clean-up is waited for."""
    supervisor, log = Supervisor(), []

    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cleaned up")

    handle = supervisor.spawn(child, name="hangs")
    assert await supervisor.drain(0.01) == Drained(cancelled=1)
    assert log == ["cleaned up"]
    with pytest.raises(StoppedError, match="'hangs'"):
        await handle.result()


async def test_drain_gives_up_on_a_child_that_ignores_the_cancel() -> None:
    """A child that does not stop is told as abandoned; nobody waits for it for ever."""
    supervisor, gate = Supervisor(), asyncio.Event()

    async def child() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    handle = supervisor.spawn(child, name="stubborn")
    assert await supervisor.drain(0.01) == Drained(abandoned=1)
    gate.set()
    await handle.result()


async def test_nothing_is_started_while_the_app_ends() -> None:
    """After `drain` a spawn is refused."""
    supervisor = Supervisor()
    assert await supervisor.drain(1) == Drained()
    with pytest.raises(StoppedError, match="'late' was not started"):
        supervisor.spawn(asyncio.Event().wait, name="late")


async def test_what_comes_after_a_commit_too_late_is_told_once() -> None:
    """An async function that is called when the app ends is refused, and its coroutine is not left behind."""
    supervisor, made = Supervisor(), []
    await supervisor.drain(1)

    def later() -> Any:
        made.append(asyncio.Event().wait())
        return made[0]

    with pytest.raises(StoppedError, match="was not started"):
        supervisor.call(later)
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED


async def test_who_is_cancelled_while_waiting_does_not_cancel_the_child() -> None:
    """Cancelling a wait for the result leaves the child running."""
    supervisor, gate = Supervisor(), asyncio.Event()
    handle = supervisor.spawn(gate.wait, name="child")
    waiter = asyncio.ensure_future(handle.result())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert supervisor.running == 1
    gate.set()
    assert await handle.result() is True
