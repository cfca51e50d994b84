"""Hands events to the pieces of the integrations that they are for.

Whoever accepts an event leaves it, in the same commit, for each integration that was registered for its type; any node
that has the integration makes the updates of its pieces due, so many in one commit, and then the event waits no longer.
A node that dies in the middle of very many pieces leaves it to another, which begins again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.errors import PieceworkError, StoreError, describe
from piecework.ids import new_id
from piecework.run.folds_nodes import decide_routes
from piecework.space.folds_wake import decide_wake_pieces
from piecework.space.timing import OFFER
from piecework.store.items import RegisterRoutes, WakePieces
from piecework.store.records import Delivery, RouteRow
from piecework.store.verbs.nodes import register_routes
from piecework.store.verbs.pieces import wake_pieces
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.run.node import Node
    from piecework.space.piece import PieceDefinition
    from piecework.store.contract import Store
    from piecework.store.items import PiecesWoken

_AT_ONCE = 200
_PIECES_AT_ONCE = 100


class PieceEvents:
    """Wakes pieces by events.

    Args:
        definitions: By integration.
        store: Open.
        node: Told what is due.
    """

    def __init__(self, definitions: Mapping[str, PieceDefinition], store: Store, node: Node) -> None:
        self._definitions = {f"{OFFER}{name}": definition for name, definition in definitions.items()}
        self._store = store
        self._node = node

    async def register(self) -> None:
        """Has events left for the integrations of this node from now on; what they are for outlives it."""
        names = sorted(self._definitions)
        rows: list[RouteRow] = []
        if names:
            rows = await self._store.read("routes_of_workflows", {"workflow_ids": names}, RouteRow)
        for name in names:
            wanted = self._definitions[name].timing.on
            if set(wanted) != {row.event_type for row in rows if row.workflow_id == name}:
                item = RegisterRoutes(workflow_id=name, version=None, event_types=wanted)
                await self._store.run(register_routes, item, decide_routes, self._node.now())

    async def look(self) -> bool:
        """Hands over every event that waits for an integration of this node; answers whether there was one.

        Raises:
            StoreError: The store failed; what was not done is done at the next look.
        """
        names = sorted(name for name, definition in self._definitions.items() if definition.timing.on)
        after, after_id, some = 0, "", False
        while names:
            params = {"workflow_ids": names, "after": after, "after_id": after_id, "limit": _AT_ONCE}
            rows: list[Delivery] = await self._store.read("pending_deliveries", params, Delivery)
            if not rows:
                break
            after, after_id = rows[-1].event_seq, rows[-1].workflow_id
            for row in rows:
                some = await self._hand_over(row) or some
        return some

    async def _hand_over(self, row: Delivery) -> bool:
        name = row.workflow_id
        last: tuple[str, str] | None = ("", "")
        try:
            while last is not None:
                item = WakePieces(
                    event_seq=row.event_seq,
                    workflow_id=name,
                    integration=name.removeprefix(OFFER),
                    overlap=self._definitions[name].timing.overlap,
                    run_ids=tuple(new_id() for _ in range(_PIECES_AT_ONCE)),
                    after=last,
                )
                woken: PiecesWoken = await self._store.run(
                    wake_pieces, item, decide_wake_pieces, self._node.now(), self._follow
                )
                last = woken.more
        except StoreError:
            raise
        except PieceworkError as error:  # it stays where it is
            signals.emit(signals.NODE_TROUBLE, level="error", what="waking pieces", error=describe(error))
            return False
        return True

    def _follow(self, woken: PiecesWoken) -> None:
        for told in woken.aborting:
            self._node.told_to_end(told)
        if woken.run_ids:
            self._node.wake()
