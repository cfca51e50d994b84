"""Pieces, a kind of work: updated in their space's worker, one commit for all that follows."""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.bus.event import Event
from piecework.clock import LONGEST_SECONDS, micros
from piecework.errors import (
    ClosedError,
    NotFoundError,
    PieceworkError,
    StaleEpochError,
    StoppedError,
    StoreError,
    clean_text,
)
from piecework.ids import new_id
from piecework.process import protocol
from piecework.run.lifecycle import ENDED, Status
from piecework.run.logger import LEVELS
from piecework.run.outcome import Failed, RetryAfter, Skipped, Success
from piecework.run.schedule import is_missed
from piecework.space.coming import CRON, KIND
from piecework.space.controller import WorkerDied
from piecework.space.folds import decide_finish_piece
from piecework.space.late import decide_late_failure
from piecework.space.piece import unpack_outcome
from piecework.space.timing import OFFER
from piecework.space.verdicts import BROKE
from piecework.store.items import FinishPiece, LateFailure, PieceFinished
from piecework.store.values import decode, encode, encode_mapping
from piecework.store.verbs.late import late_failure
from piecework.store.verbs.pieces import finish_piece
from piecework.telemetry import logs, signals
from piecework.telemetry.redaction import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.config import Settings
    from piecework.run.logger import LogBook
    from piecework.run.node import Node
    from piecework.run.outcome import Outcome
    from piecework.space.manager import Spaces
    from piecework.space.piece import PieceDefinition
    from piecework.store.items import Claimed, Definition, Route
    from piecework.store.records import EventRow, Piece, Run, Wait

_log = logs.get_logger("piecework.user")


@dataclass(slots=True)
class _UnderWay:
    """An update that executes here: where its log goes, and what failed before its result was committed."""

    book: LogBook
    piece_id: str
    integration: str
    late: list[protocol.Late] = field(default_factory=list)


_LATE_RUNS_LIMIT = 1000
"""For how many runs late failures are numbered; behind that they would begin at 1 again."""


class PieceKind:
    """The kind `piece`: hands runs to their space's worker and commits what they came to.

    Args:
        definitions: By integration.
        spaces: The workers; None in an app that runs no pieces.
        settings: Limits.
        node: Gives the node that commits.

    Attributes:
        on_told: Called when an event about a piece went into the inbox with the end of its update.
    """

    name = KIND

    def __init__(self, definitions: Mapping[str, PieceDefinition], spaces: Spaces, settings: Settings) -> None:
        self._definitions = definitions
        self._spaces = spaces
        self._settings = settings
        self.on_told: Callable[[], None] = _nobody
        self._node: Node | None = None
        self._tasks: dict[str, asyncio.Task[protocol.Result]] = {}
        self._under_way: dict[tuple[str, str], _UnderWay] = {}
        self._late: dict[str, int] = {}

    def attach(self, node: Node) -> None:
        """Says which node commits."""
        self._node = node

    def known(self) -> list[str]:
        """The integrations whose pieces run here: those of the node's code that its workers are not known to lack."""
        return [name for name in self._definitions if not self._spaces.lacks(name)]

    def versions(self) -> dict[str, str | None]:
        """None: events wait for pieces under names of their own, see `waking`."""
        return {}

    def definitions(self) -> dict[str, Definition]:
        """None: an update has no stages that another definition could lack."""
        return {}

    def offers(self) -> list[str]:
        """The integrations with their timing, for processes that do not declare them."""
        told = [one.timing.offer(name) for name, one in self._definitions.items()]
        return told + [f"{OFFER}{name}" for name, one in self._definitions.items() if one.timing.on]

    def routes(self, event: Event) -> list[Route]:  # noqa: ARG002 - see `waking`
        """None: an event makes updates due that are there, it starts none."""
        return []

    def matches(self, wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 - pieces do not wait
        """None: a piece waits for no event."""
        return None

    def abort(self, run_id: str, reason: str) -> None:  # noqa: ARG002 - the store keeps the reason
        """Stops an update that is under way, for real."""
        task = self._tasks.get(run_id)
        if task is not None:
            task.cancel()

    def on_log(self, said: protocol.Log | protocol.Progress | protocol.Late, space: str) -> None:
        """Takes what a worker's user code says beside its results: into the process's log and the run's timeline."""
        under_way = self._under_way.get((space, said.run_id or ""))
        match said:
            case protocol.Log():
                self._write_line(said, space, under_way)
            case protocol.Progress():
                if under_way is not None:
                    under_way.book.progress(said.fraction, said.message, "")
            case protocol.Late():
                if under_way is not None:  # its result has come, but is not committed yet
                    under_way.late.append(said)
                elif self._node is not None:
                    self._node.look_after(self._write_late(said, space))

    def _write_line(self, line: protocol.Log, space: str, under_way: _UnderWay | None) -> None:
        level = line.level if line.level in LEVELS else "info"
        redaction = PLAIN if self._node is None else self._node.timelines.redaction
        fields = redaction.fields(line.fields) | {"space": space, "run_id": line.run_id}
        if under_way is not None:
            fields |= {"piece_id": under_way.piece_id, "workflow_id": under_way.integration}
            under_way.book.write(level, line.message, line.fields, "", line.source)
        # The connection was opened by the space's first update, and would put what was bound there on every line.
        Context().run(_log.log, LEVELS[level], redaction.text(line.message), fields)

    async def _write_late(self, late: protocol.Late, space: str) -> None:
        assert self._node is not None
        redaction = self._node.timelines.redaction
        told = {
            name: clean_text(str(late.error.get(name, "")), 16_000) for name in ("type", "code", "message", "trace")
        }
        error = redaction.fields({name: text for name, text in told.items() if text})
        reason = str(error.get("message", ""))[:500]
        self._late[late.run_id] = number = self._late.pop(late.run_id, 0) + 1
        while len(self._late) > _LATE_RUNS_LIMIT:
            del self._late[next(iter(self._late))]
        signals.emit(signals.PIECE_LATE, level="warning", space=space, run_id=late.run_id, error=reason)
        item = LateFailure(
            run_id=late.run_id,
            epoch=late.epoch,
            space=space,
            number=number,
            error=msgspec.json.encode(error).decode(),
            reason=reason,
        )
        try:
            await self._node.commit(late_failure, item, decide_late_failure)
        except (NotFoundError, StaleEpochError, StoreError, ClosedError) as failure:  # the line above has told of it
            what = f"a late failure of run {late.run_id}"
            signals.emit(signals.NODE_TROUBLE, level="warning", what=what, error=failure.message)

    async def execute(self, claimed: Claimed) -> None:
        """Has one update carried out and commits its outcome, the piece's counters and its next due time at once."""
        run, piece = claimed.run, claimed.piece
        if Status(run.status) in ENDED:
            return
        assert self._node is not None
        book = self._node.timelines.book(run)
        key = run.space, run.run_id
        under_way = self._under_way[key] = _UnderWay(book, run.key_value or "", run.workflow_id)
        try:
            with logs.bind(piece_id=run.key_value):
                missed = self._is_missed(run, piece)
                outcome, state = (
                    (Skipped("no node was there at its time"), None) if missed else await self._update(claimed)
                )
                await book.flush()
                await self._finish(run, piece, outcome, state, missed=missed)
        finally:
            del self._under_way[key]
            for late in under_way.late:
                self._node.look_after(self._write_late(late, run.space))

    def _is_missed(self, run: Run, piece: Piece | None) -> bool:
        """Whether an update comes too late for the time that it is for, where such are left out."""
        if piece is None or piece.occurrence is None or run.trigger_id != CRON or run.attempt > 1:
            return False
        missed = self._definitions[run.workflow_id].timing.missed
        return is_missed(piece.occurrence, run.started_at or 0, missed)

    async def _update(self, claimed: Claimed) -> tuple[Outcome, dict[str, Any] | None]:
        run, piece = claimed.run, claimed.piece
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
            self._spaces.run(run.space, _order(claimed, piece, definition), definition.timeout_seconds)
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

    async def _finish(
        self, run: Run, piece: Piece | None, outcome: Outcome, state: dict[str, Any] | None, *, missed: bool
    ) -> None:
        assert self._node is not None
        redaction = self._node.timelines.redaction
        error, reason = None, redaction.text(_reason(outcome))
        if isinstance(outcome, Failed):
            told = {"type": outcome.type, "code": outcome.code, "message": clean_text(outcome.error)}
            if outcome.trace:
                told["trace"] = clean_text(outcome.trace, 16_000)
            error = msgspec.json.encode(redaction.fields(told)).decode()
        spread = random.random()  # noqa: S311 - spreads load, keeps no secret
        definition = self._definitions[run.workflow_id]
        timing = definition.timing
        coming = None
        if piece is not None:
            timing = timing.of_piece(piece.every, piece.schedule)
            coming = timing.after(piece.occurrence, run.started_at or 0, self._node.now(), spread)
        item = FinishPiece(
            run_id=run.run_id,
            epoch=run.epoch,
            outcome=outcome.name,
            result=_kept(outcome),
            error=error,
            reason=reason,
            permanent=isinstance(outcome, Failed) and outcome.permanent,
            retry_after=_asked(outcome),
            state=None if state is None else encode_mapping(state, what="piece.state"),
            next_run_id=new_id(),
            spread=spread,
            every=timing.every,
            jitter=timing.spread,
            due_at=None if coming is None else coming[0],
            occurrence=None if coming is None else coming[1],
            missed=missed,
            history_limit=self._settings.piece_history_limit,
            skipped_limit=self._settings.skipped_history_limit,
            failure=definition.failure,
        )
        finished: PieceFinished = await self._node.commit(finish_piece, item, decide_finish_piece)
        if isinstance(outcome, Failed):
            signals.emit(signals.PIECE_ENDED, level="warning", outcome=outcome.name, error=reason)
        else:
            signals.emit(signals.PIECE_ENDED, outcome=outcome.name, reason=reason or None)
        if finished.told is not None:
            broke = finished.told == BROKE
            signals.emit(
                signals.PIECE_BROKEN if broke else signals.PIECE_RECOVERED,
                level="error" if broke else "info",
                error=reason if broke else None,
            )
            self.on_told()
        self._node.news.announce(run.run_id, finished.status)
        self._node.wake()
        if finished.next_run_at is None:
            self._node.news.look(None)  # the one behind it has been called off
            self._spaces.doubt(run.space)


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


def _order(claimed: Claimed, piece: Piece, definition: PieceDefinition) -> protocol.Run:
    run = claimed.run
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
        event=None if claimed.event is None else _event(claimed.event),
        hops=run.hops,
    )


def _event(row: EventRow) -> dict[str, Any]:
    event = Event(row.type, decode(row.payload), id=row.event_id, space=row.space, at=row.accepted_at, hops=row.hops)
    return asdict(event)


def _asked(outcome: Outcome) -> int | None:
    """What an update asks to be waited for before the next, in microseconds."""
    match outcome:
        case RetryAfter(seconds=float() | int() as seconds) | Failed(retry_after_seconds=float() | int() as seconds):
            return micros(min(seconds, LONGEST_SECONDS))
        case _:
            return None


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


def _nobody() -> None:
    """Nobody moves what is in the inbox: a node will."""
