"""Pieces, a kind of work: registered by people, updated in their space's worker, one commit for all that follows."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.clock import LONGEST_SECONDS, SECOND, as_datetime, check_duration, micros
from piecework.errors import NotFoundError, PieceworkError, StoppedError, clean_text
from piecework.ids import new_id
from piecework.process import protocol
from piecework.run.info import RunInfo, run_info
from piecework.run.lifecycle import ENDED, Status
from piecework.run.outcome import Failed, RetryAfter, Skipped, Success
from piecework.space.controller import WorkerDied
from piecework.space.folds import KIND, decide_finish_piece, decide_register_piece, decide_run_piece
from piecework.space.piece import unpack_outcome
from piecework.store.items import FinishPiece, PieceFinished, Registered, RegisterPiece, RunPiece
from piecework.store.records import NodeRow, Piece, Run, RunValue
from piecework.store.values import check_identifier, decode, encode, encode_mapping
from piecework.store.verbs.pieces import finish_piece, register_piece, run_piece
from piecework.telemetry import logs, signals
from piecework.telemetry.redaction import PLAIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from piecework.bus.event import Event
    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.run.logger import LogBook
    from piecework.run.node import Node
    from piecework.run.outcome import Outcome
    from piecework.space.manager import Spaces
    from piecework.space.piece import PieceDefinition
    from piecework.store.contract import Store
    from piecework.store.items import Claimed, Definition, Route
    from piecework.store.records import EventRow, Wait

_log = logs.get_logger("piecework.user")


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRecord:
    """A registered piece as it stands.

    Attributes:
        space: The tenant.
        piece_id: Unique in its space.
        integration: Which update function it has.
        config: What the update is given.
        schedule: When it runs, in words.
        desired: enabled or paused: what people want.
        desired_reason: Why.
        observed: idle, backoff or broken: what is.
        status: The last outcome in words.
        next_run_at: When it is due.
        last_run_at: When it last ended.
        last_success_at: When it last succeeded.
        last_failure_at: When it last failed.
        consecutive_failures: In a row, up to now.
        last_error: `{type, code, message}` of the last failure.
        created_at: When it was registered.
        updated_at: When it was last registered.
    """

    space: str
    piece_id: str
    integration: str
    config: dict[str, Any]
    schedule: str
    desired: str
    desired_reason: str | None
    observed: str
    status: str
    next_run_at: datetime | None
    last_run_at: datetime | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    consecutive_failures: int
    last_error: dict[str, Any] | None
    created_at: datetime | None
    updated_at: datetime | None


OFFER = "piece:"
"""What an integration begins with among the offers of a node."""


class PieceKind:
    """The kind `piece`: hands runs to their space's worker and commits what they came to.

    Args:
        definitions: By integration.
        spaces: The workers; None in an app that runs no pieces.
        settings: Limits.
        node: Gives the node that commits.
    """

    name = KIND

    def __init__(self, definitions: Mapping[str, PieceDefinition], spaces: Spaces, settings: Settings) -> None:
        self._definitions = definitions
        self._spaces = spaces
        self._settings = settings
        self._node: Node | None = None
        self._tasks: dict[str, asyncio.Task[protocol.Result]] = {}
        self._books: dict[str, LogBook] = {}

    def attach(self, node: Node) -> None:
        """Says which node commits."""
        self._node = node

    def known(self) -> list[str]:
        """The integrations whose pieces run here."""
        return list(self._definitions)

    def versions(self) -> dict[str, str | None]:
        """None: no event starts an update."""
        return {}

    def definitions(self) -> dict[str, Definition]:
        """None: an update has no stages that another definition could lack."""
        return {}

    def offers(self) -> list[str]:
        """The integrations with their intervals, for processes that do not declare them."""
        return [f"{OFFER}{name}={one.every_seconds:g}" for name, one in self._definitions.items()]

    def routes(self, event: Event) -> list[Route]:  # noqa: ARG002 - pieces are polled
        """None: pieces run by their schedule."""
        return []

    def matches(self, wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 - pieces do not wait
        """None: a piece waits for no event."""
        return None

    def abort(self, run_id: str, reason: str) -> None:  # noqa: ARG002 - the store keeps the reason
        """Stops an update that is under way, for real."""
        task = self._tasks.get(run_id)
        if task is not None:
            task.cancel()

    def on_log(self, line: protocol.Log, space: str) -> None:
        """Takes a log line of a worker: into the process's log and the run's timeline."""
        level = line.level if line.level in {"debug", "info", "warning", "error"} else "info"
        redaction = PLAIN if self._node is None else self._node.timelines.redaction
        fields = redaction.fields(line.fields) | {"space": space, "run_id": line.run_id}
        getattr(_log, level)(redaction.text(line.message), **fields)
        book = self._books.get(line.run_id or "")
        if book is not None:
            book.write(level, line.message, line.fields, "")

    async def execute(self, claimed: Claimed) -> None:
        """Has one update carried out and commits its outcome, the piece's counters and its next due time at once."""
        run, piece = claimed.run, claimed.piece
        if Status(run.status) in ENDED:
            return
        assert self._node is not None
        book = self._node.timelines.book(run)
        self._books[run.run_id] = book
        try:
            with logs.bind(piece_id=run.key_value):
                outcome, state = await self._update(run, piece)
                await book.flush()
                await self._finish(run, outcome, state)
        finally:
            del self._books[run.run_id]

    async def _update(self, run: Run, piece: Piece | None) -> tuple[Outcome, dict[str, Any] | None]:
        if piece is None:
            return Failed("the piece was removed before its update began", permanent=True, code="NOT_FOUND"), None
        assert self._node is not None
        reason = self._node.abort_reason(run)
        if reason is not None:
            return Failed(f"aborted: {reason}", code="ABORTED"), None
        if run.attempt > self._settings.crash_limit:
            text = f"the update took its process down {self._settings.crash_limit} times in a row"
            return Failed(text, code="CRASHED"), None
        definition = self._definitions[run.workflow_id]
        task = asyncio.ensure_future(
            self._spaces.run(run.space, _order(run, piece, definition), definition.timeout_seconds)
        )
        self._tasks[run.run_id] = task
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            del self._tasks[run.run_id]
        return _judge(task)

    async def _finish(self, run: Run, outcome: Outcome, state: dict[str, Any] | None) -> None:
        assert self._node is not None
        redaction = self._node.timelines.redaction
        error, reason = None, redaction.text(_reason(outcome))
        if isinstance(outcome, Failed):
            told = {"type": outcome.type, "code": outcome.code, "message": clean_text(outcome.error)}
            if outcome.trace:
                told["trace"] = clean_text(outcome.trace, 16_000)
            error = msgspec.json.encode(redaction.fields(told)).decode()
        item = FinishPiece(
            run_id=run.run_id,
            epoch=run.epoch,
            outcome=outcome.name,
            result=_kept(outcome),
            error=error,
            reason=reason,
            permanent=isinstance(outcome, Failed) and outcome.permanent,
            retry_after=micros(min(outcome.seconds, LONGEST_SECONDS)) if isinstance(outcome, RetryAfter) else None,
            state=None if state is None else encode_mapping(state, what="piece.state"),
            next_run_id=new_id(),
            spread=random.random(),  # noqa: S311 - spreads load, keeps no secret
            history_limit=self._settings.piece_history_limit,
            skipped_limit=self._settings.skipped_history_limit,
        )
        finished: PieceFinished = await self._node.commit(finish_piece, item, decide_finish_piece)
        if isinstance(outcome, Failed):
            signals.emit(signals.PIECE_ENDED, level="warning", outcome=outcome.name, error=reason)
        else:
            signals.emit(signals.PIECE_ENDED, outcome=outcome.name, reason=reason or None)
        self._node.news.announce(run.run_id, finished.status)
        self._node.wake()


class PieceService:
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
    ) -> bool:
        """Registers a piece, or enables it again with a new configuration; its first update is due at once.

        Args:
            space: The tenant.
            piece_id: Unique in its space.
            integration: Of one of the app's `@app.piece` functions.
            config: JSON values that the update is given.
            every_seconds: From the end of one update to the next; the integration's own when omitted.

        Returns:
            True when it is new, False when it was there.

        Raises:
            NotFoundError: The app has no such integration; the message suggests near names.
            ValidationError: An id or the configuration is not acceptable.
        """
        usual = await self._interval(integration)
        every = usual if every_seconds is None else check_duration("every_seconds", every_seconds)
        piece = Piece(
            space=check_identifier(space, "space"),
            piece_id=check_identifier(piece_id, "piece_id"),
            integration=integration,
            config=encode_mapping({} if config is None else config, what="config"),
            every=round(every * SECOND),
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
            created_at=0,
            updated_at=0,
        )
        item = RegisterPiece(piece=piece, run_id=new_id())
        outcome: Registered = await self._store.run(
            register_piece, item, decide_register_piece, self._clock.now(), self._wake
        )
        return outcome.added

    async def _interval(self, integration: str) -> float:
        """The usual interval of an integration that is declared here or on a living node."""
        known = {name: one.every_seconds for name, one in self._definitions.items()}
        if integration not in known:
            for node in await self._store.read("living_nodes", {"now": self._clock.now()}, NodeRow):
                offers = [offer.removeprefix(OFFER) for offer in decode(node.workflows) if offer.startswith(OFFER)]
                known |= {name: float(every) for name, _, every in (offer.rpartition("=") for offer in offers)}
        if integration not in known:
            raise NotFoundError.among("integration", integration, known)
        return known[integration]

    async def list(self, *, space: str | None = None) -> list[PieceRecord]:
        """Registered pieces, of one space or of all."""
        return [_record(row) for row in await self._store.read("list_pieces", {"space": space}, Piece)]

    async def get(self, space: str, piece_id: str) -> PieceRecord:
        """One piece.

        Raises:
            NotFoundError: There is no such piece.
        """
        rows = await self._store.read("get_piece", {"space": space, "piece_id": piece_id}, Piece)
        if not rows:
            pieces = await self._store.read("list_pieces", {"space": space}, Piece)
            raise NotFoundError.among(f"piece in space {space!r} named", piece_id, [row.piece_id for row in pieces])
        return _record(rows[0])

    async def runs(self, space: str, piece_id: str, *, limit: int = 50) -> Sequence[RunInfo]:
        """A piece's updates, the newest first; a queued one stands for the next.

        Raises:
            NotFoundError: There is no such piece.
        """
        await self.get(space, piece_id)
        params = {"space": space, "piece_id": piece_id, "limit": limit}
        rows = await self._store.read("piece_runs", params, Run)
        values = await self._store.read("values_of_runs", {"run_ids": [row.run_id for row in rows]}, RunValue)
        results = {value.run_id: value.data for value in values if value.name == "result"}
        return [run_info(row, result=results.get(row.run_id)) for row in rows]

    async def run_now(self, space: str, piece_id: str, *, wait: bool = False) -> RunInfo:
        """Makes a piece's next update due now; one that is under way is that update.

        Args:
            space: The tenant.
            piece_id: Which piece.
            wait: Return only when the update has ended.

        Raises:
            NotFoundError: There is no such piece.
        """
        item = RunPiece(space=space, piece_id=piece_id, run_id=new_id())
        run_id: str = await self._store.run(run_piece, item, decide_run_piece, self._clock.now(), self._wake)
        news = self._node.news.expect(run_id)
        try:
            info = await self._info(run_id)
            while wait and info.ended_at is None:
                await self._node.news.after(news)
                info = await self._info(run_id)
                news = self._node.news.expect(run_id)
        finally:
            news.cancel()
        return info

    def _wake(self, _outcome: Any) -> None:
        self._node.wake()

    async def _info(self, run_id: str) -> RunInfo:
        rows = await self._store.read("runs_by_id", {"run_ids": [run_id]}, Run)
        values = await self._store.read("values_of_runs", {"run_ids": [run_id]}, RunValue)
        return run_info(rows[0], result=next((v.data for v in values if v.name == "result"), None))


def _judge(task: asyncio.Task[protocol.Result]) -> tuple[Outcome, dict[str, Any] | None]:
    """What an update came to, also when its worker died or could not be started."""
    if task.cancelled():
        return Failed("aborted while it was under way", code="ABORTED"), None
    error = task.exception()
    if error is None:
        result = task.result()
        return unpack_outcome(result.outcome), result.state
    if isinstance(error, WorkerDied) and not error.charged:
        raise StoppedError(error.message) from error  # not this run's doing: it is only interrupted
    if isinstance(error, StoppedError):
        raise error
    if isinstance(error, PieceworkError):
        return Failed(error.message, code=error.code, type=type(error).__qualname__), None
    raise error


def _order(run: Run, piece: Piece, definition: PieceDefinition) -> protocol.Run:
    return protocol.Run(
        run_id=run.run_id,
        epoch=run.epoch,
        attempt=run.attempt,
        piece_id=piece.piece_id,
        integration=piece.integration,
        deadline_seconds=definition.timeout_seconds,
        idempotency_key=run.run_id,
        config=decode(piece.config),
        state=decode(piece.state),
    )


def _kept(outcome: Outcome) -> bytes | None:
    return encode(outcome.data) if isinstance(outcome, Success) and outcome.data is not None else None


def _reason(outcome: Outcome) -> str:
    match outcome:
        case Failed(error=text) | Skipped(reason=text):
            return clean_text(text, 500)
        case RetryAfter(seconds=seconds):
            return f"in {seconds:g} s"
        case _:
            return ""


def _record(row: Piece) -> PieceRecord:
    return PieceRecord(
        space=row.space,
        piece_id=row.piece_id,
        integration=row.integration,
        config=decode(row.config),
        schedule=f"every {row.every / SECOND:g} s",
        desired=row.desired,
        desired_reason=row.desired_reason,
        observed=row.observed,
        status=row.status,
        next_run_at=as_datetime(row.next_run_at),
        last_run_at=as_datetime(row.last_run_at),
        last_success_at=as_datetime(row.last_success_at),
        last_failure_at=as_datetime(row.last_failure_at),
        consecutive_failures=row.consecutive_failures,
        last_error=None if row.last_error is None else msgspec.json.decode(row.last_error),
        created_at=as_datetime(row.created_at),
        updated_at=as_datetime(row.updated_at),
    )
