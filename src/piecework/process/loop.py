"""An event loop that charges what is started on it to the run that started it (see `accounting`)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.process import accounting
from piecework.process.accounting import Account, current

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import AsyncGeneratorType

T = TypeVar("T")


class AccountedLoop(asyncio.SelectorEventLoop):
    """Charges every task, executor item, async generator and failing callback to the run that started it."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(thread_name_prefix="piecework")
        self._generators: dict[int, Account] = {}
        self.set_default_executor(self._pool)
        self.set_task_factory(_make_task)

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:  # type: ignore[override]  # as BaseEventLoop has it
        """Uses `executor` for items that name none."""
        super().set_default_executor(executor)
        self._pool = executor

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # variadic there
        """Runs `func` in the executor; the item is charged to the current run until its thread is done with it."""
        account = current()
        if account is None:
            return super().run_in_executor(executor, func, *args)
        chosen = self._pool if executor is None else executor
        if isinstance(chosen, ThreadPoolExecutor):  # what it starts over there is the run's too
            item = chosen.submit(_charged_call, account, func, *args)
        else:
            item = chosen.submit(func, *args)
        future = asyncio.wrap_future(item, loop=self)
        ended = self.create_future()
        account.charge(future, ended)
        item.add_done_callback(lambda _: _finish(self, ended))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Charges a failed callback to the run that set it up, whoever had it called; the rest is asyncio's."""
        error, handle = context.get("exception"), context.get("handle")
        account = None if handle is None or error is None else accounting.of_context(handle._context)  # noqa: SLF001 - it is nowhere else
        if account is not None:
            name = getattr(handle, "_callback", None)
            account.blame(f"the callback {getattr(name, '__qualname__', name)!s} failed with {error!r}", error)
            if self.get_exception_handler() is None:
                return
        super().call_exception_handler(context)

    def forget(self, account: Account) -> None:
        """Drops what is known of a settled run's generators, but for those that are still there."""
        alive = {id(generator) for generator in self._asyncgens}
        self._generators = {key: one for key, one in self._generators.items() if one is not account or key in alive}

    def leave_to_parent(self) -> None:
        """Ends this process, which was forked from the loop's own, when it comes back to the loop: a copy is none's.

        It would share what the loop waits at, and take from its parent what that is told.
        """
        self._ready = _CameBack()

    # Both hooks are asyncio's own methods, which it hands to the interpreter by these names. A generator cannot be
    # looked up by a weak reference when it is finalized, those are cleared before; its id is still its own then, and
    # whoever gets that id next passes the first hook.

    def _asyncgen_firstiter_hook(self, agen: AsyncGeneratorType[Any, Any]) -> None:
        super()._asyncgen_firstiter_hook(agen)  # type: ignore[misc]  # not in the stubs
        self._generators.pop(id(agen), None)
        if (account := current()) is not None:
            self._generators[id(agen)] = account

    def _asyncgen_finalizer_hook(self, agen: AsyncGeneratorType[Any, Any]) -> None:
        account = self._generators.pop(id(agen), None)
        if account is None or self.is_closed():
            with accounting.uncharged():
                super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]  # not in the stubs
            return
        self._asyncgens.discard(agen)
        self.call_soon_threadsafe(self._close_abandoned, agen, account)

    def _close_abandoned(self, agen: AsyncGeneratorType[Any, Any], account: Account) -> None:
        code = agen.ag_code
        with accounting.charged(account):
            task = asyncio.Task(_closing(agen), loop=self)
        account.charge(task, where=f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}")

    _asyncgens: Any  # asyncio's own set of those that are under way
    _ready: Any  # asyncio's own queue of what is to be called next


class _CameBack(deque[Any]):
    """Stands for what is to be called next: there is always something, and to take it ends the process."""

    def __len__(self) -> int:
        return 1

    def popleft(self) -> Any:
        with contextlib.suppress(OSError):
            os.write(2, b"a process that an update has forked came back from it: it was ended, use os._exit() there\n")
        os._exit(1)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls a synchronous function in a daemon thread of its own, charged to the current run while it lasts.

    A thread cannot be stopped: a caller that is cancelled is free at once, the account is not.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    ended: asyncio.Future[None] = loop.create_future()
    if (account := current()) is not None:
        account.charge(future, ended)
    context = contextvars.copy_context()

    def call() -> None:
        """Runs in the thread; tells the loop how it went, and that it is over."""
        settle: Callable[[], None]
        try:
            value = context.run(function, *args)
            settle = lambda: future.set_result(value)  # noqa: E731 - one of two endings
        except BaseException as error:  # noqa: BLE001 - raised where the caller awaits
            # A future refuses StopIteration, and a loop ends on SystemExit: neither is what the caller waits for.
            fits = isinstance(error, Exception) and not isinstance(error, StopIteration)
            failure = error if fits else RuntimeError(f"{type(error).__name__} in a thread: {error}")
            settle = lambda: future.set_exception(failure)  # noqa: E731 - the other
        _finish(loop, future, settle)
        _finish(loop, ended)

    threading.Thread(target=call, name="piecework-sync", daemon=True).start()
    return await future


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    account = current() if context is None else accounting.of_context(context)
    if account is not None:
        account.charge(task)
    return task


def _charged_call(account: Account, func: Callable[..., T], *args: Any) -> T:
    # Not in a context of its own: what the thread's initializer has put into the thread's stays visible.
    with accounting.charged(account):
        return func(*args)


async def _closing(agen: AsyncGeneratorType[Any, Any]) -> None:
    await agen.aclose()


def _finish(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], settle: Callable[[], None] | None = None
) -> None:
    end = settle or (lambda: future.set_result(None))
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(lambda: future.done() or end())
