"""Sees to it that due times of pieces survive restarts and clocks that are set.

After a start, and after the wall clock has jumped, very many pieces may be overdue at once: they are spread over a few
seconds, those that have waited longest since their last update first. And where the clock was set back, what was due a
minute after an update is due in a minute at the latest, not in an hour; by a schedule, at the first of its times then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from piecework.clock import SECOND
from piecework.errors import ClosedError, describe
from piecework.run.schedule import in_turn, set_back
from piecework.space.folds_wake import decide_move_piece
from piecework.store.items import MovePiece
from piecework.store.records import Piece
from piecework.store.verbs.pieces import move_piece
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.clock import Clock
    from piecework.run.node import Node
    from piecework.space.piece import PieceDefinition
    from piecework.store.contract import Store

LOOK_SECONDS = 30.0
"""How often a node looks whether its clock has been set."""

JUMP_SECONDS = 2.0
"""What counts as a clock that was set, and not as one that is corrected little by little."""

_AT_ONCE = 200


class Overdue:
    """Moves the due times of pieces where they are no use as they stand.

    Args:
        store: Open.
        node: Tells the store's time.
        clock: Sleeps, and tells whether the wall clock has jumped.
        definitions: By integration: what is due by their schedules is moved only to another time of theirs.
    """

    def __init__(
        self, store: Store, node: Node, clock: Clock, definitions: Mapping[str, PieceDefinition] | None = None
    ) -> None:
        self._definitions = {} if definitions is None else definitions
        self._store = store
        self._node = node
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._ahead = 0.0

    async def start(self) -> None:
        """Looks once, before anything is claimed, and again whenever the clock has been set."""
        self._ahead = self._wall_ahead()
        await self.look()
        self._task = asyncio.create_task(self._run(), name="piecework-overdue")

    async def stop(self) -> None:
        """Looks no more. Stopping twice, or before the start, is harmless."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> int:
        """Spreads what is overdue, and brings nearer what a clock that was set back has made late; answers how many.

        Raises:
            StoreError: The store failed.
        """
        now = self._node.now()
        rows: list[Piece] = await self._store.read("pieces_due_oddly", {"now": now}, Piece)
        late = [row for row in rows if row.next_run_at is not None and row.next_run_at <= now]
        moments = dict(zip(((row.space, row.piece_id) for row in late), in_turn(now, len(late)), strict=True))
        items = []
        for row in rows:
            assert row.next_run_at is not None
            moment, occurrence = moments.get((row.space, row.piece_id)), None
            if moment is None:
                since = row.last_run_at or row.created_at
                moment = set_back(row.next_run_at, since, now)
                if row.occurrence is not None:  # what tries again after a pause is for a time that has been
                    moment = occurrence = self._time_from(moment, row) if row.occurrence > since else moment
            if moment is not None and moment != row.next_run_at:
                items.append(
                    MovePiece(
                        space=row.space,
                        piece_id=row.piece_id,
                        was=row.next_run_at,
                        due_at=moment,
                        occurrence=occurrence,
                    )
                )
        for first in range(0, len(items), _AT_ONCE):
            part = items[first : first + _AT_ONCE]
            await asyncio.gather(*(self._store.run(move_piece, item, decide_move_piece, now) for item in part))
        return len(items)

    def _time_from(self, moment: int, row: Piece) -> int | None:
        """The first time of a piece's schedule from a moment on; None where that is no sooner, or is not known here."""
        definition = self._definitions.get(row.integration)
        if definition is None or row.next_run_at is None:
            return None
        found = definition.timing.of_piece(row.every, row.schedule).from_then_on(moment)
        return found if found is not None and found < row.next_run_at else None

    def _wall_ahead(self) -> float:
        return self._clock.now() / SECOND - self._clock.monotonic()

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            ahead = self._wall_ahead()
            if abs(ahead - self._ahead) < JUMP_SECONDS:
                self._ahead = ahead
                continue
            try:
                await self.look()
                self._ahead = ahead
                self._node.wake()
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001 - shown, and tried again
                signals.emit(signals.NODE_TROUBLE, level="error", what="looking after due times", error=describe(error))
