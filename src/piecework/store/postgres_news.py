"""What the processes of one store tell each other, and what time it is there: one connection for both.

Topics that are told while a message is on its way go together in the next one, whatever their number: a NOTIFY holds a
lock of the whole database while its transaction commits. Nothing depends on the arrival of a message, so a failure to
send one is only signalled; after a lost connection everybody looks at everything.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.clock import SystemClock
from piecework.ids import new_id
from piecework.store.postgres_commit import pause_seconds
from piecework.store.postgres_pool import close
from piecework.telemetry.signals import NODE_TROUBLE, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import asyncpg

    from piecework.clock import Clock
    from piecework.store.postgres_link import Link

EVERYTHING = frozenset({"*"})
"""What is heard when any topic may have been missed."""

_PAYLOAD_BYTES = 7900
_RUN, _ANY_RUN = "run:", "run:*"
_PLAIN = frozenset({"inbox"})
"""What is also heard as a word by itself: transactions of others send it."""

_MEASURE_SECONDS = 180
_SAMPLES = 5
_LONGEST_AWAY_SECONDS = 5.0
_LAST_WORDS_SECONDS = 5


class News:
    """Tells and hears topics, and measures the database's clock.

    Args:
        link: Makes the connection.
        clock: The one that is compared with the database's; its offset is 0 where it is not the machine's own.

    Attributes:
        clock_offset: What has to be added to the clock to get the database's, in microseconds.
        sent: How many messages have been sent.
    """

    def __init__(self, link: Link, clock: Clock) -> None:
        self._link = link
        self._clock = clock if isinstance(clock, SystemClock) else None
        self._name = new_id()
        self._outbox: dict[str, None] = {}
        self._ears: list[Callable[[frozenset[str]], None]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.clock_offset = 0
        self.sent = 0

    def tell(self, topics: Iterable[str]) -> None:
        """Has topics told to the other processes soon; what is told while the server is away waits for it."""
        self._outbox.update(dict.fromkeys(topics))
        self._wake.set()

    def listen(self, hear: Callable[[frozenset[str]], None]) -> None:
        """Has `hear` called with what others tell."""
        self._ears.append(hear)

    async def start(self, connection: asyncpg.Connection[Any]) -> None:
        """Listens from now on, on a connection that is this one's from now on.

        Raises:
            asyncpg.PostgresError: The server refused.
        """
        await self._attend(connection)
        self._task = asyncio.get_running_loop().create_task(self._serve(connection), name="piecework-news")

    async def close(self) -> None:
        """Sends what is still to be told, if the server is there, and ends."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=_LAST_WORDS_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.wait({self._task})

    async def _serve(self, connection: asyncpg.Connection[Any]) -> None:
        while True:
            try:
                await self._exchange(connection)
            except Exception as error:  # noqa: BLE001 - nothing depends on a message; the signal says that one failed
                emit(NODE_TROUBLE, level="warning", what="news", error=str(error) or repr(error))
            finally:
                await close(connection)
            if self._closing:
                return
            found = await self._reconnect()
            if found is None:
                return
            connection = found
            self._say(EVERYTHING)

    async def _reconnect(self) -> asyncpg.Connection[Any] | None:
        failed = 0
        while not self._closing:
            try:
                connection = await self._link.connect()
                await self._attend(connection)
            except Exception as error:  # noqa: BLE001 - it is tried again until the store is closed
                emit(NODE_TROUBLE, level="warning", what="news", error=str(error) or repr(error))
            else:
                return connection
            failed += 1
            await self._pause(pause_seconds(failed, _LONGEST_AWAY_SECONDS))
        return None

    async def _pause(self, seconds: float) -> None:
        """Waits, unless the store is being closed; what is told meanwhile does not cut it short."""
        deadline = time.monotonic() + seconds
        while not self._closing and (left := deadline - time.monotonic()) > 0:
            self._wake.clear()
            await self._wait(left)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _attend(self, connection: asyncpg.Connection[Any]) -> None:
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.add_listener(self._link.address.place.schema, self._heard)
        await self._measure(connection)

    async def _exchange(self, connection: asyncpg.Connection[Any]) -> None:
        """Sends what is told, until the connection goes or the store is closed."""
        measured = time.monotonic()
        while True:
            if connection.is_closed():
                raise ConnectionError("the connection on which the others are heard was lost")
            if self._outbox:
                await self._send(connection)
            elif self._closing:
                return
            elif time.monotonic() - measured >= _MEASURE_SECONDS:
                await self._measure(connection)
                measured = time.monotonic()
            else:
                self._wake.clear()
                await self._wait(measured + _MEASURE_SECONDS - time.monotonic())

    async def _send(self, connection: asyncpg.Connection[Any]) -> None:
        topics, self._outbox = self._outbox, {}
        try:
            for payload in payloads(self._name, list(topics)):
                await connection.execute("SELECT pg_notify($1, $2)", self._link.address.place.schema, payload)
                self.sent += 1
        except BaseException:
            self._outbox = topics | self._outbox
            raise

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        topics = read(self._name, payload)
        if topics:
            self._say(topics)

    def _say(self, topics: frozenset[str]) -> None:
        for hear in self._ears:
            try:
                hear(topics)
            except Exception as error:  # noqa: BLE001 - the other listeners hear it all the same
                emit(NODE_TROUBLE, level="error", what="listener", error=str(error) or repr(error))

    async def _measure(self, connection: asyncpg.Connection[Any]) -> None:
        """Of several looks at the database's clock the quickest counts, taken for the middle of its trip."""
        clock = self._clock
        if clock is None:
            return
        looks: list[tuple[int, int]] = []
        for _ in range(_SAMPLES):
            before = clock.now()
            theirs = await connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
            after = clock.now()
            looks.append((after - before, theirs - (before + after) // 2))
        self.clock_offset = min(looks)[1]


def payloads(sender: str, topics: Sequence[str]) -> list[str]:
    """The messages that tell topics: one, if they fit; of too many runs only that there were some is told.

    Args:
        sender: Named in each, so that it does not hear itself.
        topics: In any order.
    """
    whole = _encode([sender, *topics])
    if len(whole) <= _PAYLOAD_BYTES:
        return [whole.decode()]
    few = [topic for topic in topics if not topic.startswith(_RUN)]
    few += [_ANY_RUN] * (len(few) < len(topics))
    messages = [[sender]]
    for topic in few:
        if len(_encode([*messages[-1], topic])) > _PAYLOAD_BYTES:
            messages.append([sender])
        messages[-1].append(topic)
    return [_encode(message).decode() for message in messages]


def read(listener: str, payload: str) -> frozenset[str]:
    """The topics in a message; none if it is the listener's own, all if it is not to be understood."""
    if payload in _PLAIN:
        return frozenset({payload})
    try:
        sender, *topics = msgspec.json.decode(payload, type=list[str])
    except (msgspec.DecodeError, ValueError):
        return EVERYTHING
    return frozenset() if sender == listener else frozenset(topics)


def _encode(words: Sequence[str]) -> bytes:
    return msgspec.json.encode(words)
