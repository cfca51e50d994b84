"""Promises about what a run started, on a loop of ours."""

from __future__ import annotations

import asyncio
import threading

import pytest

from piecework.errors import ExecutionFailedError, TimeoutExceededError
from piecework.process import accounting
from piecework.process.accounting import Account
from piecework.process.loop import AccountedLoop, in_thread


def carry(update, *, policy="join", seconds=60.0):
    """Runs an update under an account of its own, on a loop of ours, and gives what it returns or raises."""
    account = Account("r1", policy=policy)

    async def main():
        loop = asyncio.get_running_loop()

        async def body():
            async with account.settled(loop.time() + seconds):
                return await update()

        return await account.start(loop.create_task, body())

    with asyncio.Runner(loop_factory=AccountedLoop) as runner:
        return runner.run(main())


def test_grandchildren_are_joined():
    """Tasks that tasks started are awaited too."""
    done = []

    async def grandchild():
        await asyncio.sleep(0)
        done.append("grandchild")

    async def child():
        asyncio.get_running_loop().create_task(grandchild())

    async def update():
        asyncio.get_running_loop().create_task(child())

    carry(update)
    assert done == ["grandchild"]


def test_handled_failure_is_no_failure():
    """A task whose exception its starter has caught does not fail the run."""

    async def fails():
        raise ValueError("caught")

    async def update():
        with pytest.raises(ValueError, match="caught"):
            await asyncio.create_task(fails())
        return 1

    assert carry(update) == 1


def test_held_failure_is_a_failure():
    """A failed task fails the run also while somebody holds on to it, and the message names the line."""
    held = []

    async def fails():
        raise ValueError("unseen")

    async def update():
        held.append(asyncio.create_task(fails()))

    with pytest.raises(ExecutionFailedError, match=r"unseen.*test_accounting\.py:\d+ in update"):
        carry(update)


def test_failed_update_takes_its_tasks_along():
    """When the update itself fails, what it started is cancelled and the failures are told together."""
    cancelled = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def update():
        asyncio.get_running_loop().create_task(waits())
        await asyncio.sleep(0)
        raise LookupError("first")

    with pytest.raises(LookupError, match="first"):
        carry(update)
    assert cancelled == [True]


def test_deadline():
    """Leftovers are cancelled at the deadline, and the message names the line that started them."""

    async def update():
        asyncio.get_running_loop().create_task(asyncio.Event().wait())

    with pytest.raises(TimeoutExceededError, match=r"test_accounting\.py:\d+ in update"):
        carry(update, seconds=0)


def test_strict():
    """Under the strict policy anything left behind fails the run."""

    async def update():
        asyncio.get_running_loop().create_task(asyncio.Event().wait())

    with pytest.raises(ExecutionFailedError, match="left behind the task Event"):
        carry(update, policy="strict")


def test_cancelled_thread_is_waited_for():
    """A call in a thread that was cancelled still counts as long as its thread is at it."""
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        may_end.wait()
        ended.append(True)

    async def update():
        item = asyncio.get_running_loop().run_in_executor(None, work)
        begun.wait()
        item.cancel()
        asyncio.get_running_loop().call_soon(may_end.set)

    carry(update)
    assert ended == [True]


def test_failing_executor_item():
    """An executor item that fails unseen fails the run."""

    def fails():
        raise ValueError("in a thread")

    async def update():
        update.held = asyncio.get_running_loop().run_in_executor(None, fails)

    with pytest.raises(ExecutionFailedError, match="in a thread"):
        carry(update)


def test_in_thread():
    """A synchronous function in a thread gives its value, and its exception."""

    async def update():
        with pytest.raises(ZeroDivisionError):
            await in_thread(divmod, 1, 0)
        return await in_thread(divmod, 7, 2)

    assert carry(update) == (3, 1)


def test_uncharged():
    """What is started uncharged is not the run's."""
    others = []

    async def update():
        with accounting.uncharged():
            others.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))

    carry(update, policy="strict")
    assert others[0].cancelled()  # by the end of the loop


def test_stray_callback():
    """A callback that fails fails the run that set it up."""

    async def update():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)

    with pytest.raises(ExecutionFailedError, match=r"the callback .* failed with ZeroDivisionError"):
        carry(update)


def test_late():
    """What fails when the account is closed is told as late, unless somebody looks at it at once."""
    told = []

    async def fails(word):
        raise ValueError(word)

    async def looks():
        with pytest.raises(ValueError, match="seen"):
            await asyncio.create_task(fails("seen"))

    async def main():
        account = Account("r1")
        account.close(lambda trouble, error: told.append(error.args))
        with accounting.charged(account):
            held = asyncio.create_task(fails("unseen"))
            await asyncio.gather(asyncio.create_task(looks()), asyncio.sleep(0))
        for _ in range(5):
            await asyncio.sleep(0)
        return held

    with asyncio.Runner(loop_factory=AccountedLoop) as runner:
        held = runner.run(main())
    assert str(held.exception()) == "unseen"
    assert told == [("unseen",)]


def test_what_threads_start_is_the_runs():
    """A task that an executor item starts is its run's."""

    async def update():
        loop = asyncio.get_running_loop()

        async def fails():
            raise ValueError("from over there")

        loop.run_in_executor(None, lambda: loop.call_soon_threadsafe(loop.create_task, fails()))

    with pytest.raises(ExecutionFailedError, match="from over there"):
        carry(update)
