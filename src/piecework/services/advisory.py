"""Locks between the processes of one PostgreSQL database: advisory locks, on one session that does nothing else.

The server lets go when the session ends. A session holds any number of names, so that many locks take no connections
from anybody.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.services.session import Backend, Session

ANSWER_SECONDS = 5
"""How long the server may take to answer, since nobody who waits for a lock can be cancelled meanwhile."""


class AdvisoryLocks:
    """What this process holds in one database; see `locks.External`.

    Args:
        backend: Opens the session.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._session: Session | None = None
        self._held: dict[str, Session] = {}
        self._turn = asyncio.Lock()
        self._closed = False

    async def take(self, name: str, holder: str) -> bool:  # noqa: ARG002 - the server knows its sessions by their own names
        """Takes a lock that nobody of this process has; False when another process has it."""
        async with self._turn:
            session = await self._connected()
            if not await self._ask(session, "pg_try_advisory_lock", name):
                return False
            self._held[name] = session
            return True

    async def give_back(self, name: str) -> None:
        """Gives a lock back; nothing happens when it was not taken.

        Raises:
            DatabaseError: The session was lost meanwhile: others may have had the lock too.
        """
        async with self._turn:
            session = self._held.pop(name, None)
            if session is not None and not await self._unlock(session, name):
                raise DatabaseError(
                    f"lock {name!r} was lost while it was held: the connection to {self._backend.url} ended, so "
                    "another process may have had it too; look at what was done under it",
                    lock=name,
                )

    async def holder(self, name: str) -> str:
        """Which session has it."""
        import sqlalchemy as sa

        locks = sa.table("pg_locks", *map(sa.column, ("pid", "locktype", "classid", "objid", "granted")))
        sessions = sa.table("pg_stat_activity", *map(sa.column, ("pid", "application_name")))
        key = _key(name) & 0xFFFFFFFFFFFFFFFF
        found = (
            sa.select(sessions.c.application_name, sessions.c.pid)
            .join_from(locks, sessions, locks.c.pid == sessions.c.pid)
            .where(
                locks.c.locktype == sa.literal_column("'advisory'"),
                locks.c.granted,
                sa.cast(sa.cast(locks.c.classid, sa.Text), sa.BigInteger) == key >> 32,
                sa.cast(sa.cast(locks.c.objid, sa.Text), sa.BigInteger) == key & 0xFFFFFFFF,
            )
        )
        async with self._turn:
            session = await self._connected()
            with _cut_when_silent(session):
                answer = await session.execute(found)
        words = [f"{application or 'a session'} (PostgreSQL's pid {pid})" for application, pid in answer.rows]
        return ", ".join(words) or "another process"

    async def close(self) -> None:
        """Ends the session, and with it everything that it holds."""
        async with self._turn:
            self._closed = True
            session, self._session = self._session, None
            self._held.clear()
            if session is not None:
                await session.close()

    async def _connected(self) -> Session:
        if self._closed:
            raise ClosedError(f"the database {self._backend.url} was closed: its app has stopped")
        if self._session is None or self._session.lost:
            self._session = await self._backend.connect()
        return self._session

    async def _unlock(self, session: Session, name: str) -> bool:
        if session.lost:
            return False
        try:
            return bool(await self._ask(session, "pg_advisory_unlock", name))
        except Exception:
            if session.lost:
                return False
            raise

    async def _ask(self, session: Session, function: str, name: str) -> Any:
        import sqlalchemy as sa

        call = getattr(sa.func, function)(sa.literal(_key(name), sa.BigInteger()), type_=sa.Boolean())
        with _cut_when_silent(session):
            return (await session.execute(sa.select(call.label("done")))).rows[0][0]


@contextmanager
def _cut_when_silent(session: Session) -> Iterator[None]:
    """Ends a session whose server does not answer: what is asked of it in the body fails then."""
    timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, session.abandon)
    try:
        yield
    finally:
        timer.cancel()


def _key(name: str) -> int:
    digest = hashlib.sha256(b"piecework\x00" + name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
