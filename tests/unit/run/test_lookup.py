"""Promises about finding runs by their ids."""

from __future__ import annotations

import asyncio

import pytest

from piecework.errors import StoreError
from piecework.run.lookup import Lookup
from piecework.store.records import RunValue


class Shelf:
    """A store that answers when it is told to."""

    def __init__(self):
        self.asked = []
        self.state = b"1"
        self.go = asyncio.Event()

    async def read(self, name, params, into):
        assert (name, into) == ("values_of_runs", RunValue)
        ids, state = params["run_ids"], self.state
        self.asked.append(ids)
        await self.go.wait()
        if "trouble" in ids:
            raise StoreError("the disk is on fire")
        return [RunValue(run_id, "state", state) for run_id in ids if run_id != "stranger"]


def lookup(shelf):
    return Lookup(shelf, "values_of_runs", RunValue)


async def asked(shelf, times):
    while len(shelf.asked) < times:
        await asyncio.sleep(0)


async def test_together():
    """What is asked for at once goes in one query; everybody gets the rows of their run, if there are any."""
    shelf = Shelf()
    shelf.go.set()
    found = lookup(shelf)
    one, again, other, none = await asyncio.gather(
        found.of("r-1"), found.of("r-1"), found.of("r-2"), found.of("stranger")
    )
    assert shelf.asked == [["r-1", "r-2", "stranger"]]
    assert [row.run_id for row in (*one, *again, *other)] == ["r-1", "r-1", "r-2"]
    assert none == []


async def test_never_older_than_the_question():
    """Who asks while a query is under way is answered by the next one, which sees what was written meanwhile."""
    shelf = Shelf()
    found = lookup(shelf)
    first = asyncio.create_task(found.of("r-1"))
    await asked(shelf, 1)
    shelf.state = b"2"
    later = [asyncio.create_task(found.of(run_id)) for run_id in ("r-1", "r-2")]
    shelf.go.set()
    assert (await first)[0].data == b"1"
    assert [(await task)[0].data for task in later] == [b"2", b"2"]
    assert shelf.asked == [["r-1"], ["r-1", "r-2"]]


async def test_a_failure_is_told_to_those_who_asked():
    """A query that fails fails for all that it was for, and for nobody after them."""
    shelf = Shelf()
    shelf.go.set()
    found = lookup(shelf)
    told = await asyncio.gather(found.of("trouble"), found.of("r-1"), return_exceptions=True)
    assert [str(error) for error in told] == ["the disk is on fire"] * 2
    assert len(await found.of("r-1")) == 1


async def test_who_has_gone():
    """A caller that is cancelled takes nobody along, and is not asked for any more."""
    shelf = Shelf()
    found = lookup(shelf)
    first = asyncio.create_task(found.of("r-1"))
    await asked(shelf, 1)
    gone, stays = asyncio.create_task(found.of("r-2")), asyncio.create_task(found.of("r-3"))
    await asyncio.sleep(0)
    for task in (first, gone):
        task.cancel()
    shelf.go.set()
    assert len(await stays) == 1
    assert first.cancelled()
    assert gone.cancelled()
    assert shelf.asked == [["r-1"], ["r-3"]]


async def test_the_end_of_the_loop():
    """What ends the query ends the wait of those who asked and of those who came after."""
    shelf = Shelf()
    found = lookup(shelf)
    waits = [asyncio.create_task(found.of("r-1"))]
    await asked(shelf, 1)
    waits.append(asyncio.create_task(found.of("r-2")))
    await asyncio.sleep(0)
    found._asking.cancel()
    for wait in waits:
        with pytest.raises(asyncio.CancelledError):
            await wait
