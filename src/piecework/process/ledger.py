"""The accounts of a worker's runs, and who is charged for what happens beside the loop.

Once a worker keeps a ledger the interpreter tells it of every process and thread that is started, and of every
coroutine that was never awaited. The latter are mostly found when the last reference goes, in the very run that made
them, or by the collection at its end. What a collection in between finds may be of any run that is under way: then
all of them are told, and none is charged.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, TextIO

from piecework.process.accounting import Account, current, ending, place
from piecework.process.offspring import Offspring, Process

if TYPE_CHECKING:
    from piecework.process.accounting import Late, Tell

_POOLS = ("asyncio", "concurrent.futures", "multiprocessing", "anyio", "piecework")
"""Whose threads are no run's: they stay for the next one."""


class Ledger:
    """Opens accounts and closes them. For a process that is ours: nothing of this is ever undone.

    Args:
        grace_seconds: Between SIGTERM and SIGKILL of a process whose run is over.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        self._open: set[Account] = set()
        self._threads: weakref.WeakKeyDictionary[threading.Thread, tuple[Account, str]] = weakref.WeakKeyDictionary()
        self._collecting = False
        self._offspring = Offspring(grace_seconds=grace_seconds)

    def watch(self) -> None:
        """Begins to hear of processes, threads and forgotten coroutines."""
        self._offspring.watch()
        gc.callbacks.append(self._collects)
        self._watch_coroutines()
        self._watch_threads()

    def open(self, name: str, tell: Tell) -> Account:
        """Opens the account of a run that begins.

        Args:
            name: Its id.
            tell: Takes level and words about what is no failure but should be known.
        """
        account = Account(name, others=self, tell=tell)
        self._offspring.begin(account)
        self._open.add(account)
        return account

    def close(self, account: Account, late: Late) -> None:
        """Closes the account of a run that has settled; nothing may have been awaited since it was found clear.

        Args:
            account: Whose.
            late: Is told what fails from now on, in words and as it was raised.
        """
        self._open.discard(account)
        self._offspring.end(account)
        for thread, (owner, where) in list(self._threads.items()):
            if owner is account and thread.is_alive():
                words = "nobody waits for it, and its failure is nobody's: use asyncio.to_thread"
                account.tell("warning", f"the update left the thread {thread.name!r} behind, from {where}: {words}")
        account.close(late)

    def of(self, account: Account) -> list[Process]:
        """The processes that this run is to wait for."""
        return self._offspring.of(account)

    def forgotten(self, trouble: str) -> None:
        """Notes a coroutine that was never awaited."""
        account = current()
        if self._collecting and len(self._open) > 1 and not ending():
            for one in self._open:
                one.tell("warning", f"{trouble}: in this update, or in one that was under way beside it")
        elif account is not None:
            account.blame(trouble)

    def _collects(self, phase: str, _info: dict[str, int]) -> None:
        self._collecting = phase == "start"

    def _watch_coroutines(self) -> None:
        let_coroutines_be_told()
        show = warnings.showwarning

        def hear(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            """Stands for `warnings.showwarning`."""
            if issubclass(category, RuntimeWarning) and "was never awaited" in str(message):
                self.forgotten(f"{message} ({filename}:{lineno})")
            show(message, category, filename, lineno, file, line)

        warnings.showwarning = hear

    def _watch_threads(self) -> None:
        start = threading.Thread.start

        def note(self_: threading.Thread) -> None:
            """Stands for `Thread.start`."""
            account = current()
            if account is not None and not _of_pool(self_):
                self._threads[self_] = account, place()
            start(self_)

        threading.Thread.start = note  # type: ignore[assignment, method-assign]  # no event tells of it before 3.12


def let_coroutines_be_told() -> None:
    """Has each warning of a coroutine that was never awaited shown; once a line, which is the usual, is for one run."""
    warnings.filterwarnings("always", message="coroutine .* was never awaited", category=RuntimeWarning)


def _of_pool(thread: threading.Thread) -> bool:
    modules: tuple[Any, ...] = (type(thread).__module__, getattr(getattr(thread, "_target", None), "__module__", ""))
    return any(f"{module}.".startswith(tuple(f"{name}." for name in _POOLS)) for module in modules)
