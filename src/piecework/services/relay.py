"""The relay: takes rows of the outbox to the store, and forgets them there.

Who commits a transaction hands over its rows from memory, before its `async with` ends. Nodes look for what others left
behind: when they start, and now and then. Two that relay at once are harmless, because the store knows every id; each
goes through a transaction's rows in order and stops at the first that does not get through, so that order is kept.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from contextlib import nullcontext
from contextvars import Context
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from piecework.bus.event import within_run
from piecework.clock import SECOND, as_datetime
from piecework.errors import (
    ClosedError,
    DatabaseError,
    NoNodeError,
    StoppedError,
    StoreError,
    ValidationError,
    clean_text,
    describe,
)
from piecework.services.outbox import EVENT, JOB, NOTIFICATION, TABLE, Intent, after_refusal
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from datetime import datetime

    from piecework.clock import Clock
    from piecework.services.database import Database
    from piecework.services.session import Session

_AT_ONCE = 100
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_END_SECONDS = 2.0
_TROUBLE = (StoreError, DatabaseError, NoNodeError, ClosedError, StoppedError, OSError)
"""What is the store's or the database's trouble, and no single row's."""


class Doors(Protocol):
    """How things get into the store: the app. What is there under the same id already stays as it is."""

    async def publish(self, type: str, payload: dict[str, Any], *, id: str | None, space: str | None) -> Any:  # noqa: A002 - the words of the field
        """Publishes an event."""
        ...

    async def enqueue(
        self,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None,
        delay_seconds: float | None,
        dedup: str | None,
        space: str | None,
        overrides: Mapping[str, Any] | None,
    ) -> str:
        """Queues a job."""
        ...

    async def keep_notification(
        self,
        *,
        notification_id: str,
        email: str,
        body: str,
        subject: str | None,
        frequency: str,
        force: bool,
        space: str | None,
        once: bool,
    ) -> None:
        """Keeps what somebody is to be told."""
        ...


class Relay:
    """Relays the rows of one application database.

    Args:
        doors: Where they go.
        database: Gives the database, or None as long as there is none to look into.
        clock: Tells the time, and sleeps between looks.
        sweep_seconds: How often a node looks for what others left behind.
    """

    def __init__(
        self,
        doors: Doors,
        database: Callable[[], Awaitable[Database | None]],
        clock: Clock,
        *,
        sweep_seconds: float,
    ) -> None:
        self._doors = doors
        self._database = database
        self._clock = clock
        self._sweep_seconds = sweep_seconds
        self._in_hand: set[str] = set()
        self._relayed: dict[str, int] = {}
        self._forgetting: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._serving = False
        self._stopping = False

    # -- what was committed here ---------------------------------------------------------------------------------

    async def hand_over(self, intents: Sequence[Intent]) -> None:
        """Takes a committed transaction's rows to the store, and forgets them by and by. Raises nothing of theirs."""
        which = intents[0].transaction_id
        self._in_hand.add(which)
        done = -1
        try:
            for intent in intents:
                await self.deliver(intent)
                done = intent.position
        except Exception as error:  # noqa: BLE001 - it is shown, and the rows are there to be tried again
            signals.emit(
                signals.OUTBOX_LEFT,
                level="warning",
                transaction_id=which,
                rows=sum(intent.position > done for intent in intents),
                error=describe(error),
            )
            self._look_soon()
        finally:
            self._in_hand.discard(which)
            if done >= 0:
                self._relayed[which] = done
                self._forget_soon()

    # -- what others left behind ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to look, on a node; also after a stop."""
        self._serving, self._stopping = True, False
        self._look_soon()

    async def stop(self) -> None:
        """Looks no more. Stopping twice, or before the start, is harmless."""
        self._stopping = True
        self._wanted.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_END_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Looks no more and waits, but not for long, until what was relayed is forgotten; the next node forgets it."""
        await self.stop()
        if self._forgetting is not None:
            await asyncio.wait({self._forgetting}, timeout=_END_SECONDS)
            self._forgetting.cancel()
            await asyncio.gather(self._forgetting, return_exceptions=True)

    async def sweep(self) -> float | None:
        """Relays all rows that are due; tells in how many seconds the next one is, None where none waits.

        Raises:
            StoreError: The store failed; what was not relayed is relayed at the next look.
            DatabaseError: The application's database did.
        """
        database = await self._database()
        if database is None or not await _has_table(database):
            return None
        await self._forget(database)
        while True:
            rows = await self._due(database)
            bundles = _bundled(rows)
            mine = [found for which, found in bundles.items() if which not in self._in_hand]
            failures = await asyncio.gather(*(self._relay(database, found) for found in mine), return_exceptions=True)
            for failure in failures:
                if failure is not None:
                    raise failure
            if not mine or len(rows) < _AT_ONCE:
                return await self._next(database)

    async def _relay(self, database: Database, intents: Sequence[Intent]) -> None:
        """Relays what is due of one transaction, to the first row that does not get through."""
        which, done = intents[0].transaction_id, -1
        self._in_hand.add(which)
        try:
            for intent in intents:
                try:
                    await self.deliver(intent)
                except _TROUBLE:
                    raise
                except Exception as error:  # noqa: BLE001 - it is shown, and kept with the row
                    if await self._refused(database, intent, error):
                        continue
                    break
                done = intent.position
        finally:
            self._in_hand.discard(which)
            if done >= 0:
                self._relayed[which] = done
                await self._forget(database)

    async def _refused(self, database: Database, intent: Intent, error: Exception) -> bool:
        """Keeps what a row was refused with; whether it is dead, and those behind it have their turn."""
        from piecework.services import outbox_rows

        attempts, now = intent.attempts + 1, self._now()
        seconds = after_refusal(attempts)
        said = clean_text(f"{type(error).__name__}: {error}")
        kept = {"which": intent.row_id, "tried": attempts, "said": said, "died": now if seconds is None else None}
        statements: list[tuple[Any, dict[str, Any]]] = [(outbox_rows.REFUSED, kept)]
        if seconds is not None:
            later = {"which": intent.transaction_id, "later": now + timedelta(seconds=seconds)}
            statements.append((outbox_rows.POSTPONE, later))
        await _write(database, statements, "refuse")
        signals.emit(
            signals.OUTBOX_DEAD if seconds is None else signals.OUTBOX_REFUSED,
            level="error" if seconds is None else "warning",
            row_id=intent.row_id,
            kind=intent.kind,
            item_id=intent.item_id,
            attempts=attempts,
            error=describe(error),
            retry_in_seconds=seconds,
        )
        return seconds is None

    async def deliver(self, intent: Intent) -> None:
        """Hands one row to the store.

        Raises:
            PieceworkError: It was not taken.
        """
        told = dict(intent.told)
        if not told:
            raise ValidationError(
                f"row {intent.row_id} of {TABLE} has no JSON object in `told`: put it right, or delete the row"
            )
        with within_run(told.pop("run_hops", None)):
            await self._hand_over(intent, told)

    async def _hand_over(self, intent: Intent, told: dict[str, Any]) -> None:
        if intent.kind == EVENT:
            await self._doors.publish(told["type"], told["payload"], id=told["id"], space=told["space"])
        elif intent.kind == JOB:
            due_at = told.pop("due_at")
            left = None if due_at is None else max(0.0, (due_at - self._clock.now()) / SECOND)
            await self._doors.enqueue(**told, delay_seconds=left or None, overrides=intent.overrides)
        elif intent.kind == NOTIFICATION:
            await self._doors.keep_notification(**told, once=True)
        else:
            raise ValidationError(f"the outbox has a row of the unknown kind {intent.kind!r}: is a newer app at work?")

    async def _due(self, database: Database) -> list[Intent]:
        from piecework.services import outbox_rows

        asked = {"now": self._now(), "row_limit": _AT_ONCE}
        answer = await database.execute(outbox_rows.DUE, asked, verb="relay", table=TABLE, holder="the outbox")
        return [
            Intent(row_id=row_id, transaction_id=which, position=place, kind=kind, told=_read(told), attempts=tried)
            for row_id, which, place, kind, told, tried in answer.rows
            if place > self._relayed.get(which, -1)
        ]

    async def _next(self, database: Database) -> float | None:
        from piecework.services import outbox_rows

        answer = await database.execute(outbox_rows.NEXT, verb="relay", table=TABLE, holder="the outbox")
        due_at: datetime | None = answer.rows[0][0]
        return None if due_at is None else max(0.0, (due_at - self._now()).total_seconds())

    # -- what was relayed ----------------------------------------------------------------------------------------

    def _forget_soon(self) -> None:
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = _task(self._forget_all(), "piecework-outbox-forget")

    async def _forget_all(self) -> None:
        """Forgets what was relayed, as long as there is some: what comes meanwhile shares a commit."""
        try:
            database = await self._database()
            while database is not None and self._relayed:
                await self._forget(database)
        except Exception as error:  # noqa: BLE001 - it is shown; the rows are relayed again, which changes nothing
            signals.emit(signals.OUTBOX_TROUBLE, level="warning", what="forgetting", error=describe(error))
            self._look_soon()

    async def _forget(self, database: Database) -> None:
        from piecework.services import outbox_rows

        some = dict(self._relayed)
        if some:
            gone = [(outbox_rows.FORGET, {"which": which, "last": last}) for which, last in sorted(some.items())]
            await _write(database, gone, "forget")
            for which, last in some.items():
                if self._relayed.get(which) == last:
                    del self._relayed[which]

    # -- its loop ------------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        if self._stopping:
            return
        self._wanted.set()
        if self._task is None or self._task.done():
            self._task = _task(self._run(), "piecework-outbox")

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping:
            self._wanted.clear()
            try:
                waits = await self.sweep()
                pause = _FIRST_PAUSE_SECONDS
            except Exception as error:  # noqa: BLE001 - shown, and tried again: a loop that ended would lose promises
                signals.emit(signals.OUTBOX_TROUBLE, level="warning", what="relaying", error=describe(error))
                waits, pause = pause, min(pause * 2, _LONGEST_PAUSE_SECONDS)
            if waits is None and not self._serving:
                return  # nothing of ours is left, and looking for what others left is a node's
            longest = self._sweep_seconds
            await self._rest(longest if waits is None else min(max(waits, _FIRST_PAUSE_SECONDS), longest))

    async def _rest(self, seconds: float) -> None:
        wanted = asyncio.ensure_future(self._wanted.wait())
        asleep = asyncio.ensure_future(self._clock.sleep(seconds))
        await asyncio.wait({wanted, asleep}, return_when=asyncio.FIRST_COMPLETED)
        for task in (wanted, asleep):
            task.cancel()
        await asyncio.gather(wanted, asleep, return_exceptions=True)

    def _now(self) -> datetime:
        moment = as_datetime(self._clock.now())
        assert moment is not None, "there is a time"
        return moment


def _task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task of the relay's own: it knows nothing of the workspace in which somebody happened to commit."""
    return asyncio.get_running_loop().create_task(work, name=name, context=Context())


def _read(told: str) -> Mapping[str, Any]:
    """What a row says; nothing where it cannot be read, so that it is refused by itself and holds up no other."""
    try:
        found = json.loads(told)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _bundled(rows: Sequence[Intent]) -> dict[str, list[Intent]]:
    found: dict[str, list[Intent]] = {}
    for intent in rows:
        found.setdefault(intent.transaction_id, []).append(intent)
    return found


async def _has_table(database: Database) -> bool:
    # Off the loop: importing SQLAlchemy takes too long for it.
    await asyncio.to_thread(importlib.import_module, "piecework.services.outbox_rows")
    from piecework.services import outbox_rows

    statement = outbox_rows.there(database.dialect)
    return bool((await database.execute(statement, verb="look for", table=TABLE, holder="the outbox")).rows)


async def _write(database: Database, statements: Sequence[tuple[Any, dict[str, Any]]], verb: str) -> None:
    """Writes in one commit, when it is our turn."""

    async def work(session: Session) -> None:
        await session.begin()
        for statement, params in statements:
            await session.execute(statement, params)
        await session.commit()

    turn = nullcontext() if database.writing is None else database.writing.turn(f"{verb} {TABLE} of the outbox")
    async with turn:
        try:
            await database.pool.run(work, holder="the outbox")
        except Exception as error:  # noqa: BLE001 - explain() raises it again, in our words
            database.explain(error, verb, TABLE)
