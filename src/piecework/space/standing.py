"""How spaces stand: which have a worker, what it takes, and why one has none."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from piecework.clock import as_datetime
from piecework.errors import NotFoundError, clean_text
from piecework.ids import new_id
from piecework.run.failure import Observed
from piecework.space.folds import ENABLED, decide_run_piece
from piecework.space.record import SpaceRecord
from piecework.store.items import RunPiece
from piecework.store.records import NodeRow, Piece, Run
from piecework.store.values import check_identifier
from piecework.store.verbs.pieces import run_piece

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from piecework.clock import Clock
    from piecework.run.node import Node
    from piecework.space.manager import Spaces
    from piecework.space.tenant import SpaceManager
    from piecework.store.contract import Store

BROKEN: Final = "broken"
"""What a space is that gets no worker but for a probe now and then."""

_TOLD = 500
_REASON_LENGTH = 2_000


class SpaceDoor:
    """The half of the door to pieces that is about their spaces.

    Its owner has the store, the node, the clock and the spaces of this process.
    """

    _store: Store
    _node: Node
    _clock: Clock
    _spaces: Spaces

    async def spaces(self) -> Sequence[SpaceRecord]:
        """The spaces that have a piece, a worker, or failures that are not forgotten, by name."""
        rows = await self._pieces_of(None)
        there = {row.space for row in rows} | (here := self._known_here()).keys()
        return await self._records_of(sorted(there), here, rows)

    async def space(self, space: str) -> SpaceRecord:
        """One space.

        Raises:
            NotFoundError: It has no piece and no worker; the message suggests near names.
        """
        check_identifier(space, "space")
        rows, here = await self._pieces_of(space), self._known_here()
        if space not in here and not rows:
            raise NotFoundError.among("space", space, [record.space for record in await self.spaces()])
        (record,) = await self._records_of([space], here, rows)
        return record

    async def resume_space(self, space: str) -> SpaceRecord:
        """Forgets that a space's workers have failed, and makes the updates due now that were put off for it.

        Raises:
            NotFoundError: It has no piece and no worker; the message suggests near names.
        """
        await self.space(space)
        if (manager := self._spaces.manager(space)) is not None:
            await self._node.until_given_back(manager.mend())
        now = self._clock.now()
        for row in await self._pieces_of(space):
            if row.desired == ENABLED and row.next_run_at is not None and row.next_run_at <= now:
                with contextlib.suppress(NotFoundError):  # somebody has removed it meanwhile
                    await self._make_due(space, row.piece_id)
        self._node.wake()
        return await self.space(space)

    async def _try_at_once(self, space: str, piece_id: str, run_id: str) -> None:
        """Has a space whose workers failed tried with a piece's update, also when that is just being put off."""
        if run_id in self._spaces.probe(space):
            await self._node.until_given_back([run_id])
            await self._make_due(space, piece_id)
            self._node.wake()

    async def _make_due(self, space: str, piece_id: str) -> None:
        item = RunPiece(space=space, piece_id=piece_id, run_id=new_id())
        await self._store.run(run_piece, item, decide_run_piece, self._clock.now())

    def _known_here(self) -> dict[str, SpaceManager]:
        return {manager.space: manager for manager in self._spaces.managers() if _is_noteworthy(manager)}

    async def _records_of(
        self, spaces: Iterable[str], here: Mapping[str, SpaceManager], rows: Sequence[Piece]
    ) -> list[SpaceRecord]:
        told, elsewhere = await self._told_elsewhere(), await self._at_work_elsewhere(rows)
        records = []
        for space in spaces:
            record = told.get(space)
            if space in here or record is None:
                record = _record(space, here.get(space), self._spaces.limits(space))
            if record.observed == "idle" and space in elsewhere:  # its node has not told yet of its worker
                record = replace(record, observed="running")
            records.append(record)
        return records

    async def _told_elsewhere(self) -> dict[str, SpaceRecord]:
        """What other nodes of this store say of their spaces; nothing on a file, which has only one."""
        if not self._store.shared:
            return {}
        nodes: list[NodeRow] = await self._store.read("living_nodes", {"now": self._clock.now()}, NodeRow)
        return told_by(node.spaces for node in nodes if node.node_id != self._node.node_id)

    async def _given_up(self, update: Run) -> str | None:
        """Why an update was put off that nobody carries out: its space is broken, here or where it was tried."""
        if self._node.executes(update.run_id):
            return None
        reason = self._spaces.broken(update.space, update.run_id)
        if reason is not None or update.owner is not None or (update.due_at or 0) <= self._clock.now():
            return reason
        record = (await self._told_elsewhere()).get(update.space)
        return None if record is None or record.observed != BROKEN else record.broken_reason

    async def _at_work_elsewhere(self, rows: Sequence[Piece]) -> set[str]:
        """The spaces of these pieces in which another node has updates under way; on a file there is no other."""
        ids = [row.run_id for row in rows if row.run_id is not None]
        if not ids or not self._store.shared:
            return set()
        runs: list[Run] = await self._store.read("runs_by_id", {"run_ids": ids}, Run)
        return {run.space for run in runs if run.owner is not None and run.owner != self._node.node_id}

    async def _pieces_of(self, space: str | None) -> list[Piece]:
        rows: list[Piece] = await self._store.read("list_pieces", {"space": space}, Piece)
        return rows


async def is_wanted(store: Store, space: str) -> bool:
    """Whether a space has a piece that is to be updated again.

    Args:
        store: Open.
        space: Its name.
    """
    rows: list[Piece] = await store.read("list_pieces", {"space": space}, Piece)
    return any(row.desired == ENABLED and row.observed != Observed.BROKEN for row in rows)


def _is_noteworthy(manager: SpaceManager) -> bool:
    return manager.occupied or manager.restarts > 0


def tell(spaces: Spaces) -> bytes:
    """What a node says of its spaces' workers in the store, for processes that cannot ask it; see `told_by`.

    In any thread.

    Args:
        spaces: Of this node.
    """
    known = [manager for manager in spaces.managers() if _is_noteworthy(manager)][:_TOLD]
    return msgspec.json.encode([_record(one.space, one, spaces.limits(one.space)) for one in known])


def told_by(nodes: Iterable[bytes]) -> dict[str, SpaceRecord]:
    """The spaces that nodes tell of; of one that several tell of, who has a worker is believed, then who knows more."""
    told: dict[str, SpaceRecord] = {}
    for node in nodes:
        for said in msgspec.json.decode(node):
            blocked_at = said["blocked_at"]
            since = None if blocked_at is None else datetime.fromisoformat(blocked_at)
            record = SpaceRecord(**said | {"blocked_at": since})
            known = told.get(record.space)
            if known is None or (known.pid is None, -known.restarts) > (record.pid is None, -record.restarts):
                told[record.space] = record
    return told


def _record(space: str, manager: SpaceManager | None, limits: Mapping[str, str]) -> SpaceRecord:
    controller = None if manager is None else manager.controller
    pid = None if controller is None else controller.pid
    reason = None if manager is None else manager.reason
    return SpaceRecord(
        space=space,
        observed="idle" if manager is None else manager.observed,
        pid=pid,
        memory_bytes=None if pid is None else _resident_bytes(pid),
        restarts=0 if manager is None else manager.restarts,
        broken_reason=None if reason is None else clean_text(reason, _REASON_LENGTH),
        blocked_at=None if controller is None else as_datetime(controller.blocked_at),
        limits=limits,
    )


def _resident_bytes(pid: int) -> int | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
