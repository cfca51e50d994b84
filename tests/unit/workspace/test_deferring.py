"""What waits for the commit of a transaction; the transactions themselves are the database's."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from piecework.errors import StoppedError
from piecework.workspace.calls import open_workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Host  # type: ignore[import-not-found]  # pytest puts the folder on the path


class Transaction:
    """What a host has to give while one is open."""

    def __init__(self) -> None:
        self.committed: list[Callable[[], Any]] = []
        self.undone: list[Callable[[], Any]] = []
        self.promised: list[tuple[Any, ...]] = []

    def after_commit(self, fn: Callable[[], Any]) -> None:
        self.committed.append(fn)

    def after_rollback(self, fn: Callable[[], Any]) -> None:
        self.undone.append(fn)

    async def commit(self) -> None:
        for fn in self.committed:
            result = fn()
            if inspect.isawaitable(result):
                await result


@pytest.fixture
def transaction(host: Host) -> Transaction:
    """One that is open on every workspace's database."""
    host.transaction = Transaction()
    return host.transaction


async def test_events_and_jobs_go_with_the_commit(host: Host, transaction: Transaction) -> None:
    """Events and jobs of an open transaction are promised in it, in order, under the ids told; nothing is sent."""
    async with open_workspace(host, space="acme") as ws:
        receipt = await ws.publish("told", {"n": 1})
        run_id = await ws.enqueue_job("send", to="ada")
        assert (host.sent, receipt.dispatched) == ([], None)
        assert transaction.promised == [
            (ws.id, "told", {"n": 1}, receipt.event_id, "acme"),
            (ws.id, "send", {"to": "ada"}, run_id, "acme"),
        ]


async def test_a_spawned_child_waits_for_the_commit(host: Host, transaction: Transaction) -> None:
    """A child that is spawned inside a transaction starts with its commit; a rollback drops it."""
    async with open_workspace(host) as ws:
        kept = ws.spawn_in_new_workspace(lambda: "kept")
        assert not kept.done
        await transaction.commit()
        assert await kept.result() == "kept"
        dropped = ws.spawn_in_new_workspace(lambda: "dropped")
        for fn in transaction.undone:
            fn()
        with pytest.raises(StoppedError):
            await dropped.result()


async def test_after_commit_waits_too_and_harms_nobody(host: Host, transaction: Transaction) -> None:
    """`after_commit` calls after the commit; what it raises is told and harms nobody who commits."""
    done: list[str] = []

    def breaks() -> None:
        raise RuntimeError("after all")

    async with open_workspace(host) as ws:
        ws.after_commit(lambda: done.append("now"))
        ws.after_commit(breaks)
        assert done == []
        await transaction.commit()
    assert (done, host.supervisor.failed) == (["now"], 1)
