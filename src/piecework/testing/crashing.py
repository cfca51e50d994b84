"""A verb that dies at every request, before its COMMIT and after it, and is then asked for again.

    report = await crash_everywhere(SqliteGround(folder), setup)
    assert (report.first, report.again) == ("started", "duplicate")

A death before the COMMIT has to leave the store as it was, one after it as if nothing had happened; asking again brings
about what an undisturbed call does, once. On SQLite the file and its log are taken at the moment of the death, as a
kill leaves them, and opened by a new store. On PostgreSQL the server ends the session in the middle.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, Self

from piecework.errors import ValidationError
from piecework.store import proving
from piecework.store.sqlite import SqliteStore
from piecework.store.sqlite_requests import Hands
from piecework.testing.proof_calls import Call, ConnectionStore, check_everything, difference, in_words, told
from piecework.testing.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from piecework.store.contract import Store

    Setup = Callable[[Verbs], Awaitable[Call]]

AFTER_COMMIT = -1
"""The death that comes when everything is durable and nobody has been told."""


@dataclass(frozen=True, slots=True)
class Survived:
    """What was tried.

    Attributes:
        requests: How many requests the verb made; it died after each, and before the first.
        first: The outcomes of an undisturbed call, in a word each.
        again: Those of the same call when the reply to the first was lost.
    """

    requests: int
    first: str
    again: str


class Ground(Protocol):
    """Where a verb may die."""

    def prepare(self) -> AbstractAsyncContextManager[Store]:
        """An empty store; what stands in it afterwards is what every death begins with."""
        ...

    async def die(self, call: Call, requests: int) -> bool:
        """Puts the store back and lets a call die after so many requests; False when it makes fewer."""
        ...

    def survivor(self) -> AbstractAsyncContextManager[Store]:
        """The store as it stands after the death, or as it was prepared when there was none."""
        ...

    async def put_back(self) -> None:
        """Makes the store what it was prepared to be."""
        ...

    async def rows(self) -> proving.Rows:
        """Everything that stands there; no survivor may be open."""
        ...


async def crash_everywhere(ground: Ground, setup: Setup, *, goes_on: bool = False) -> Survived:
    """Lets the call that `setup` answers die everywhere, each time from the same rows, and asks for it again.

    Args:
        ground: The engine.
        setup: Brings the store into its first state and answers the call.
        goes_on: Whether asking again, after all is done, may rightly do more: the next batch of something.

    Raises:
        AssertionError: A death left something behind, or asking again did not come to the same.
    """
    async with ground.prepare() as store:
        verbs = Verbs(store)
        call = await setup(verbs)
    before = told(await ground.rows())
    # Whether these two can be is looked at once: every later state has to be one of them.
    await _look(ground)
    first = await _ask(ground, call)
    await _look(ground)
    after = told(await ground.rows())
    requests = 0
    while True:
        await ground.put_back()
        if not await ground.die(call, requests):
            break
        _same(before, told(await ground.rows()), f"a death after {requests} requests of {call.name} left something")
        words = await _ask(ground, call)
        _same(after, told(await ground.rows()), f"{call.name}, again after a death after {requests} requests")
        assert words == first, f"{call.name}, again after a death after {requests} requests: {words}, not {first}"
        requests += 1
    await ground.put_back()
    await ground.die(call, AFTER_COMMIT)
    _same(after, told(await ground.rows()), f"a death after the COMMIT of {call.name}")
    again = await _ask(ground, call)
    if not goes_on:
        _same(after, told(await ground.rows()), f"{call.name}, again after its reply was lost")
    await _look(ground)
    return Survived(requests - 1, first, again)


async def _ask(ground: Ground, call: Call) -> str:
    """Makes a call in a store as it was left; answers its outcomes in words."""
    async with ground.survivor() as store:
        verbs = Verbs(store)
        verbs.now = call.now
        return in_words([await verbs.together(call.verb, call.items, call.decide)])


async def _look(ground: Ground) -> None:
    async with ground.survivor() as store:
        await check_everything(store)


def _same(wanted: dict[str, list[Any]], found: dict[str, list[Any]], what: str) -> None:
    wrong = difference(wanted, found)
    if wrong:
        raise AssertionError(f"{what}:\n{wrong}")


class SqliteGround:
    """Files in a folder of their own.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = (folder / f"{number}.db" for number in count(1))
        self._prepared = next(self._names)
        self._path = self._prepared

    @asynccontextmanager
    async def prepare(self) -> AsyncIterator[Store]:
        """An empty store."""
        store = SqliteStore(self._prepared)
        await store.open()
        try:
            yield store
        finally:
            await store.close()
        await self.put_back()

    async def put_back(self) -> None:
        """Goes on with a copy of what was prepared."""
        self._path = next(self._names)
        shutil.copy(self._prepared, self._path)

    async def die(self, call: Call, requests: int) -> bool:
        """Takes the files at the moment of the death, as a kill leaves them, and goes on with those."""
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            if not _drive(Hands(connection, at_once=False), call, requests):
                return False
            if requests == AFTER_COMMIT:
                connection.execute("COMMIT")
            left = next(self._names)
            shutil.copy(self._path, left)
            log = self._path.with_name(f"{self._path.name}-wal")
            if log.exists():
                shutil.copy(log, left.with_name(f"{left.name}-wal"))
        finally:
            connection.close()
        self._path = left
        return True

    @asynccontextmanager
    async def survivor(self) -> AsyncIterator[Store]:
        """A new store on the files as they were left."""
        store = SqliteStore(self._path)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    async def rows(self) -> proving.Rows:
        """Everything that stands in the file."""
        connection = sqlite3.connect(self._path)
        try:
            return proving.dump_file(connection)
        finally:
            connection.close()


def _drive(hands: Hands, call: Call, requests: int) -> bool:
    script = call.verb(call.items, call.decide, call.now)
    answer, made = None, 0
    try:
        while made != requests:
            answer = hands.carry_out(script.send(answer))
            made += 1
    except StopIteration:
        return requests == AFTER_COMMIT
    return True


class PostgresGround:
    """A PostgreSQL schema of its own: every row of it is deleted. Use it as a context. Needs the extra `postgres`.

    Args:
        url: Of a store in which nothing stands.
    """

    def __init__(self, url: str) -> None:
        from piecework.store.postgres_link import Address, Link

        self._link = Link(Address.parse(url))
        self._prepared: proving.Rows = {}

    async def __aenter__(self) -> Self:
        """Connects and makes the schema.

        Raises:
            ValidationError: Something stands in it.
            StoreError: The server or the role refuses.
        """
        from piecework.store.postgres_schema import migrate_postgres

        self._connection: asyncpg.Connection[Any] = await self._link.first()
        await migrate_postgres(self._connection, self._link.address.place)
        if any((await self.rows()).values()):
            await self._connection.close()
            raise ValidationError(f"{self._link.address.place.url} holds rows, and a proof would delete them")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Empties the schema and disconnects."""
        try:
            await proving.put_back(self._connection, {})
        finally:
            await self._connection.close()

    @asynccontextmanager
    async def prepare(self) -> AsyncIterator[Store]:
        """The emptied store."""
        await proving.put_back(self._connection, {}, anew=True)
        yield ConnectionStore(self._connection)
        self._prepared = await self.rows()

    async def put_back(self) -> None:
        """Puts the rows back that were prepared."""
        await proving.put_back(self._connection, self._prepared)

    async def die(self, call: Call, requests: int) -> bool:
        """Has the server end the session of a call."""
        from piecework.store.postgres_requests import Transaction

        victim = await self._link.connect()
        try:
            transaction = Transaction(victim, merge=False)
            await transaction.begin()
            script = call.verb(call.items, call.decide, call.now)
            answer, made, ended = None, 0, False
            while made != requests and not ended:
                try:
                    request = script.send(answer)
                except StopIteration:
                    ended = True
                else:
                    answer = await transaction.carry_out(request)
                    made += 1
            if ended and requests != AFTER_COMMIT:
                return False
            if ended:
                await transaction.commit()
            await proving.terminate(self._connection, victim.get_server_pid())
        finally:
            victim.terminate()
        return True

    @asynccontextmanager
    async def survivor(self) -> AsyncIterator[Store]:
        """The store on a session that lives."""
        yield ConnectionStore(self._connection)

    async def rows(self) -> proving.Rows:
        """Everything that stands there."""
        return await proving.dump(self._connection)
