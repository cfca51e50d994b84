"""The door to pieces: people register them, have them run, pause and remove them, and look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.bus.event import hops_of_run
from piecework.errors import AbortedError, CrashedError, NotFoundError, ValidationError, clean_text
from piecework.ids import new_id
from piecework.run.info import RunInfo, run_info
from piecework.space.folds import (
    ENABLED,
    PAUSED,
    REMOVED,
    decide_register_piece,
    decide_remove_piece,
    decide_run_piece,
    decide_set_desired,
)
from piecework.space.record import PieceRecord, piece_record
from piecework.space.standing import SpaceDoor
from piecework.space.timing import Timing, offered, own_timing
from piecework.store.items import (
    PieceAsked,
    PieceRemoved,
    Registered,
    RegisterPiece,
    RemovePiece,
    RunPiece,
    SetDesired,
)
from piecework.store.records import NodeRow, Piece, Run, RunValue
from piecework.store.values import check_identifier, check_limit, decode, encode_mapping
from piecework.store.verbs.pieces import register_piece, remove_piece, run_piece, set_desired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from piecework.clock import Clock
    from piecework.run.node import Node
    from piecework.space.manager import Spaces
    from piecework.space.piece import PieceDefinition
    from piecework.store.contract import Decide, Store, Verb


class PieceService(SpaceDoor):
    """The door to pieces: register them, have them run, look at them.

    Args:
        definitions: By integration.
        store: Open.
        node: Running.
        clock: Tells the time.
        spaces: The workers.
    """

    def __init__(
        self, definitions: Mapping[str, PieceDefinition], store: Store, node: Node, clock: Clock, spaces: Spaces
    ) -> None:
        self._definitions = definitions
        self._store = store
        self._node = node
        self._clock = clock
        self._spaces = spaces

    async def register(
        self,
        *,
        space: str,
        piece_id: str,
        integration: str,
        config: dict[str, Any] | None = None,
        every_seconds: float | None = None,
        schedule: str | Iterable[str] | None = None,
    ) -> bool:
        """Registers a piece, or enables it again with a new configuration; its first update is due at once.

        One that waits for events alone has no first update. Registering begins anew: a pause is over whoever asked for
        it, what had stopped goes on, no failure is counted.

        Args:
            space: The tenant.
            piece_id: Unique in its space.
            integration: Of one of the app's `@app.piece` functions.
            config: JSON values that the update is given.
            every_seconds: From the end of one update to the next; the integration's own when omitted.
            schedule: Cron expressions in place of an interval, in the integration's time zone.

        Returns:
            True when it is new, False when it was there.

        Raises:
            NotFoundError: The app has no such integration; the message suggests near names.
            ValidationError: An id, the configuration, the interval or the schedule is not acceptable.
        """
        known = await self._timings(check_identifier(integration, "integration"))
        if integration not in known:
            raise NotFoundError.among("integration", integration, known)
        own = own_timing(known[integration], every_seconds, schedule)
        piece = Piece(
            space=check_identifier(space, "space"),
            piece_id=check_identifier(piece_id, "piece_id"),
            integration=integration,
            config=encode_mapping({} if config is None else config, what="config"),
            every=own["every"],
            schedule=own["schedule"],
            occurrence=None,
            after_run_id=None,
            desired="enabled",
            desired_reason=None,
            observed="idle",
            status="Initializing",
            state=b"{}",
            run_id=None,
            next_run_at=None,
            last_run_at=None,
            last_success_at=None,
            last_failure_at=None,
            consecutive_failures=0,
            last_error=None,
            broken_at=None,
            created_at=0,
            updated_at=0,
        )
        at_once = known[integration].of_piece(piece.every, piece.schedule).at_once
        item = RegisterPiece(piece=piece, run_id=new_id(), at_once=at_once, hops=hops_of_run() or 0)
        outcome: Registered = await self._store.run(
            register_piece, item, decide_register_piece, self._clock.now(), self._wake
        )
        self._spaces.probe(space)
        return outcome.added

    async def _timings(self, *wanted: str) -> dict[str, Timing]:
        """What is declared here, and, where not all that is wanted is, what living nodes declare."""
        known = {name: one.timing for name, one in self._definitions.items()}
        if known.keys() >= set(wanted):
            return known
        for node in await self._store.read("living_nodes", {"now": self._clock.now()}, NodeRow):
            told = (offered(offer) for offer in decode(node.workflows))
            known = dict(one for one in told if one is not None) | known
        return known

    async def pause(self, space: str, piece_id: str, *, reason: str | None = None) -> bool:
        """Lets no update of a piece follow until it is resumed or registered again; one that is under way goes on.

        Args:
            space: The tenant.
            piece_id: Which piece.
            reason: Why; it stands on the piece.

        Returns:
            False when it was paused already; nothing of it has changed then.

        Raises:
            NotFoundError: There is no such piece; the message suggests near names.
            ValidationError: The reason is no text.
        """
        paused = await self._desire(space, piece_id, PAUSED, reason)
        self._spaces.doubt(space)
        return paused

    async def resume(self, space: str, piece_id: str, *, reason: str | None = None) -> bool:
        """Enables a piece that is paused or out of order: its failures are forgotten, its next update is due at once.

        Args:
            space: The tenant.
            piece_id: Which piece.
            reason: Why; it stands on the piece.

        Returns:
            False when it is enabled, and neither stopped nor half-open; nothing of it has changed then.

        Raises:
            NotFoundError: There is no such piece; the message suggests near names.
            ValidationError: The reason is no text.
        """
        return await self._desire(space, piece_id, ENABLED, reason)

    async def remove(self, space: str, piece_id: str) -> None:
        """Ends a piece. An update that was to come is gone; one that is under way is stopped, and none follows it.

        What its updates came to can be looked at by their run ids until it is forgotten, as of all runs that ended.

        Args:
            space: The tenant.
            piece_id: Which piece.

        Raises:
            NotFoundError: There is no such piece; the message suggests near names.
        """
        item = RemovePiece(space=space, piece_id=piece_id)
        await self._ask(remove_piece, item, decide_remove_piece, self._removed)
        self._spaces.doubt(space)

    async def list(self, *, space: str | None = None) -> list[PieceRecord]:
        """Registered pieces, of one space or of all.

        Raises:
            ValidationError: The space is none that a store can hold.
        """
        if space is not None:
            check_identifier(space, "space")
        return [*await self._records(await self._rows(space))]

    async def get(self, space: str, piece_id: str) -> PieceRecord:
        """One piece.

        Raises:
            NotFoundError: There is no such piece.
        """
        row = await self._row(space, piece_id)
        return (await self._records([row]))[0]

    async def _row(self, space: str, piece_id: str) -> Piece:
        check_identifier(space, "space")
        check_identifier(piece_id, "piece_id")
        rows = _there(await self._store.read("get_piece", {"space": space, "piece_id": piece_id}, Piece))
        if not rows:
            names = [row.piece_id for row in await self._rows(space)]
            raise NotFoundError.among(
                f"piece in space {space!r} named", piece_id, names, space=space, piece_id=piece_id
            )
        return rows[0]

    async def runs(self, space: str, piece_id: str, *, limit: int = 50) -> Sequence[RunInfo]:
        """A piece's updates, the newest first; a queued one stands for the next.

        Raises:
            NotFoundError: There is no such piece.
            ValidationError: The limit is no whole number from 1.
        """
        check_limit(limit)
        await self._row(space, piece_id)
        params = {"space": space, "piece_id": piece_id, "limit": limit}
        rows = await self._store.read("piece_runs", params, Run)
        values = await self._store.read("values_of_runs", {"run_ids": [row.run_id for row in rows]}, RunValue)
        results = {value.run_id: value.data for value in values if value.name == "result"}
        return [run_info(row, result=results.get(row.run_id)) for row in rows]

    async def run_now(self, space: str, piece_id: str, *, wait: bool = False) -> RunInfo:
        """Makes a piece's next update due now; where one is under way, the piece's overlap says which one it is.

        Args:
            space: The tenant.
            piece_id: Which piece.
            wait: Return only when the update has ended.

        Raises:
            NotFoundError: There is no such piece.
            CrashedError: It was waited for, and its space is broken: no worker for it could be started.
            AbortedError: The update was called off before it began: its piece was paused or removed.
        """
        piece = await self._row(space, piece_id)
        timing = (await self._timings(piece.integration)).get(piece.integration)
        item = RunPiece(
            space=space,
            piece_id=piece_id,
            run_id=new_id(),
            overlap="skip" if timing is None else timing.overlap,
            hops=hops_of_run() or 0,
        )
        asked: PieceAsked = await self._ask(run_piece, item, decide_run_piece, self._follow_asked)
        run_id = asked.run_id
        await self._try_at_once(space, piece_id, run_id)
        return await self.until_ended(space, run_id) if wait else await self._info(await self._update(run_id))

    async def until_ended(self, space: str, run_id: str) -> RunInfo:
        """Waits until an update has ended, unless its space gets no worker.

        Args:
            space: The tenant.
            run_id: Which update.

        Raises:
            CrashedError: The space is broken: no worker could be started. The update stays queued.
            AbortedError: The update was called off before it began: its piece was paused or removed.
        """
        check_identifier(run_id, "run_id")
        while True:
            news = self._node.news.expect(run_id)  # before the look: what is told meanwhile counts
            try:
                update = await self._update(run_id)
                if update.ended_at is not None:
                    return await self._info(update)
                if (reason := await self._given_up(update)) is not None:
                    raise CrashedError(
                        f"space {space!r} is broken, run {run_id} waits: {reason}. `resume_space` tries anew",
                        space=space,
                        run_id=run_id,
                    )
                await self._node.news.after(news)
            finally:
                news.cancel()

    async def _desire(self, space: str, piece_id: str, desired: str, reason: str | None) -> bool:
        if reason is not None and not isinstance(reason, str):
            raise ValidationError(f"the reason has to be a text, not a {type(reason).__name__}")
        item = SetDesired(
            space=space,
            piece_id=piece_id,
            desired=desired,
            reason=None if reason is None else clean_text(reason),
            run_id=new_id(),
            hops=hops_of_run() or 0,
        )
        changed: bool = await self._ask(set_desired, item, decide_set_desired, self._wake)
        return changed

    async def _ask(
        self,
        verb: Verb,
        item: SetDesired | RunPiece | RemovePiece,
        decide: Decide,
        then: Callable[[Any], None],
    ) -> Any:
        """Submits what is asked of a piece; where there is none, near names are suggested."""
        check_identifier(item.space, "space")
        check_identifier(item.piece_id, "piece_id")
        try:
            return await self._store.run(verb, item, decide, self._clock.now(), then)
        except NotFoundError:
            await self.get(item.space, item.piece_id)  # raises with near names
            raise

    def _wake(self, _outcome: Any) -> None:
        self._node.news.look(None)  # an update that somebody waits for may have been called off
        self._node.wake()

    def _follow_asked(self, asked: PieceAsked) -> None:
        if asked.aborting is not None:
            self._node.told_to_end(asked.aborting)
        self._node.wake()

    def _removed(self, outcome: PieceRemoved) -> None:
        self._node.news.look(None)
        if outcome.aborting is not None:
            self._node.told_to_end(outcome.aborting)

    async def _rows(self, space: str | None) -> Sequence[Piece]:
        return _there(await self._store.read("list_pieces", {"space": space}, Piece))

    async def _records(self, rows: Sequence[Piece]) -> Sequence[PieceRecord]:
        ids = [row.run_id for row in rows if row.run_id is not None]
        found: Sequence[Run] = await self._store.read("runs_by_id", {"run_ids": ids}, Run) if ids else ()
        updates, now = {run.run_id: run for run in found}, self._clock.now()
        known = await self._timings(*{row.integration for row in rows})
        return [piece_record(row, known.get(row.integration), updates.get(row.run_id or ""), now) for row in rows]

    async def _update(self, run_id: str) -> Run:
        rows: list[Run] = await self._store.read("runs_by_id", {"run_ids": [run_id]}, Run)
        if not rows:
            raise AbortedError(
                f"update {run_id} was called off before it began: its piece was paused or removed", run_id=run_id
            )
        return rows[0]

    async def _info(self, update: Run) -> RunInfo:
        values = await self._store.read("values_of_runs", {"run_ids": [update.run_id]}, RunValue)
        return run_info(update, result=next((v.data for v in values if v.name == "result"), None))


def _there(rows: Sequence[Piece]) -> Sequence[Piece]:
    """Without those that only stand there until their last update has been stopped."""
    return [row for row in rows if row.desired != REMOVED]
