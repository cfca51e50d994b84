from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time

import pytest

from piecework.errors import StoppedError, ValidationError
from piecework.workspace.threads import SyncThreads


async def test_a_function_runs_beside_the_loop_with_the_callers_variables() -> None:
    """The call runs in a daemon thread of ours and sees the caller's context variables."""
    variable = contextvars.ContextVar("variable", default="")
    variable.set("mine")
    threads = SyncThreads()
    name, daemon, seen = await threads.run(
        lambda: (threading.current_thread().name, threading.current_thread().daemon, variable.get())
    )
    assert name.startswith("piecework-sync")
    assert (daemon, seen) == (True, "mine")
    threads.close()


async def test_what_it_raises_is_raised_to_the_caller() -> None:
    """An error crosses as itself; StopIteration, which cannot, as a RuntimeError."""
    threads = SyncThreads()
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, iter(()))
    threads.close()


async def test_no_more_threads_than_the_limit() -> None:
    """Calls beyond the limit wait for their turn, and all are made."""
    threads, gate, names = SyncThreads(2), threading.Event(), set()

    def call(number: int) -> int:
        names.add(threading.current_thread().name)
        gate.wait()
        return number

    calls = [asyncio.ensure_future(threads.run(call, n)) for n in range(8)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*calls) == list(range(8))
    assert len(names) == 2
    threads.close()


async def test_threads_are_used_again() -> None:
    """Calls one after the other need one thread."""
    threads = SyncThreads()
    assert len({await threads.run(threading.get_ident) for _ in range(20)}) <= 2
    threads.close()


async def test_a_cancelled_caller_goes_on_at_once() -> None:
    """Cancelling the caller leaves the call to itself and gives the caller its CancelledError."""
    threads, begun, gate = SyncThreads(1), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        gate.wait()

    caller = asyncio.ensure_future(threads.run(hang))
    await asyncio.to_thread(begun.wait)
    never = asyncio.ensure_future(threads.run(pytest.fail, "was made"))
    await asyncio.sleep(0)
    for task in (never, caller):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert threads.busy == 1
    gate.set()
    assert await threads.run(lambda: "next") == "next"
    threads.close()


async def test_closed_threads_take_nothing() -> None:
    """After close a call is refused."""
    threads = SyncThreads()
    await threads.run(int)
    threads.close()
    with pytest.raises(StoppedError):
        await threads.run(int)


def test_at_least_one_thread() -> None:
    """A limit below one is refused."""
    with pytest.raises(ValidationError):
        SyncThreads(0)


def test_a_hung_call_holds_up_neither_loop_nor_interpreter() -> None:
    """A process ends though one of its synchronous calls never returns."""
    code = """
import asyncio, threading
from piecework.workspace.threads import SyncThreads
begun = threading.Event()
def hang():
    begun.set()
    threading.Event().wait()
async def main():
    task = asyncio.ensure_future(SyncThreads().run(hang))
    await asyncio.to_thread(begun.wait)
    task.cancel()
asyncio.run(main())
print("ended")
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert time.monotonic() - started < 20
