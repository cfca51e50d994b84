"""Pieces, a kind of work: registered by people, updated in their space's worker, one commit for all that follows."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.bus.event import Event, hops_of_run
from piecework.clock import LONGEST_SECONDS, as_datetime, micros
from piecework.errors import (
    ClosedError,
    NotFoundError,
    PieceworkError,
    StaleEpochError,
    StoppedError,
    StoreError,
    ValidationError,
    clean_text,
)
from piecework.ids import new_id
from piecework.process import protocol
from piecework.run.failure import Observed
from piecework.run.info import RunInfo, run_info
from piecework.run.lifecycle import ENDED, Status
from piecework.run.logger import LEVELS
from piecework.run.outcome import Failed, RetryAfter, Skipped, Success
from piecework.run.schedule import is_missed
from piecework.space.coming import CRON, KIND
from piecework.space.controller import WorkerDied
from piecework.space.folds import (
    ENABLED,
    PAUSED,
    REMOVED,
    decide_finish_piece,
    decide_register_piece,
    decide_remove_piece,
    decide_run_piece,
    decide_set_desired,
)
from piecework.space.late import decide_late_failure
from piecework.space.piece import unpack_outcome
from piecework.space.standing import SpaceDoor
from piecework.space.timing import OFFER, Timing, offered, own_timing
from piecework.space.verdicts import BROKE
from piecework.store.items import (
    FinishPiece,
    LateFailure,
    PieceAsked,
    PieceFinished,
    PieceRemoved,
    Registered,
    RegisterPiece,
    RemovePiece,
    RunPiece,
    SetDesired,
)
from piecework.store.records import NodeRow, Piece, Run, RunValue
from piecework.store.values import check_identifier, decode, encode, encode_mapping
from piecework.store.verbs.late import late_failure
from piecework.store.verbs.pieces import finish_piece, register_piece, remove_piece, run_piece, set_desired
from piecework.telemetry import logs, signals
from piecework.telemetry.redaction import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.run.logger import LogBook
    from piecework.run.node import Node
    from piecework.run.outcome import Outcome
    from piecework.space.manager import Spaces
    from piecework.space.piece import PieceDefinition
    from piecework.store.contract import Decide, Store, Verb
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
        observed: What is: idle, waiting (for an event), queued, running; after a failure backoff, half-open or broken.
        status: The last outcome in words.
        next_run_at: When it is due.
        last_run_at: When it last ended.
        last_success_at: When it last succeeded.
        last_failure_at: When it last failed.
        consecutive_failures: In a row, up to now.
        last_error: `{type, code, message}` of the last failure.
        broken_at: Since when it has been out of order: half-open, or stopped for good, and not well again since.
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
    broken_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None


@dataclass(slots=True)
class _UnderWay:
    """An update that executes here: where its log goes, and what failed before its result was committed."""

    book: LogBook
    piece_id: str
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
        """The integrations whose pieces run here."""
        return list(self._definitions)

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
            fields["piece_id"] = under_way.piece_id
            under_way.book.write(level, line.message, line.fields, "", line.source)
        _log.log(LEVELS[level], redaction.text(line.message), fields)

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
        under_way = self._under_way[key] = _UnderWay(book, run.key_value or "")
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
        timing = self._definitions[run.workflow_id].timing
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
            failure=self._definitions[run.workflow_id].failure if run.workflow_id in self._definitions else None,
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
            self._spaces.doubt(run.space)


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
        known = await self._timings(integration)
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
        """Registered pieces, of one space or of all."""
        return [*await self._records(await self._rows(space))]

    async def get(self, space: str, piece_id: str) -> PieceRecord:
        """One piece.

        Raises:
            NotFoundError: There is no such piece.
        """
        row = await self._row(space, piece_id)
        return (await self._records([row]))[0]

    async def _row(self, space: str, piece_id: str) -> Piece:
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
        """
        await self.get(space, piece_id)
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
        news = self._node.news.expect(run_id)
        await self._try_at_once(space, piece_id, run_id)
        try:
            info = await self._info(run_id)
            while wait and info.ended_at is None:
                await self._spaces.unless_broken(space, run_id, self._node.news.after(news))
                info = await self._info(run_id)
                news = self._node.news.expect(run_id)
        finally:
            news.cancel()
        return info

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
        try:
            return await self._store.run(verb, item, decide, self._clock.now(), then)
        except NotFoundError:
            await self.get(item.space, item.piece_id)  # raises with near names
            raise

    def _wake(self, _outcome: Any) -> None:
        self._node.wake()

    def _follow_asked(self, asked: PieceAsked) -> None:
        if asked.aborting is not None:
            self._node.told_to_end(asked.aborting)
        self._node.wake()

    def _removed(self, outcome: PieceRemoved) -> None:
        if outcome.aborting is not None:
            self._node.told_to_end(outcome.aborting)

    async def _rows(self, space: str | None) -> Sequence[Piece]:
        return _there(await self._store.read("list_pieces", {"space": space}, Piece))

    async def _records(self, rows: Sequence[Piece]) -> Sequence[PieceRecord]:
        ids = [row.run_id for row in rows if row.run_id is not None]
        found: Sequence[Run] = await self._store.read("runs_by_id", {"run_ids": ids}, Run) if ids else ()
        updates, now = {run.run_id: run for run in found}, self._clock.now()
        known = await self._timings(*{row.integration for row in rows})
        return [_record(row, known.get(row.integration), updates.get(row.run_id or ""), now) for row in rows]

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


def _there(rows: Sequence[Piece]) -> Sequence[Piece]:
    """Without those that only stand there until their last update has been stopped."""
    return [row for row in rows if row.desired != REMOVED]


def _standing(row: Piece, update: Run | None, now: int) -> str:
    """What a piece is: beside what its updates came to, whether the next one is due or under way."""
    if Observed(row.observed).out_of_order or update is None:
        return row.observed
    if update.owner is not None:
        return Observed.RUNNING
    return Observed.QUEUED if update.due_at is not None and update.due_at <= now else row.observed


def _record(row: Piece, usual: Timing | None, update: Run | None, now: int) -> PieceRecord:
    timing = (Timing(every_seconds=None) if usual is None else usual).of_piece(row.every, row.schedule)
    return PieceRecord(
        space=row.space,
        piece_id=row.piece_id,
        integration=row.integration,
        config=decode(row.config),
        schedule=timing.words() or "unknown: no living node has its integration",
        desired=row.desired,
        desired_reason=row.desired_reason,
        observed=str(_standing(row, update, now)),
        status=row.status,
        next_run_at=as_datetime(row.next_run_at),
        last_run_at=as_datetime(row.last_run_at),
        last_success_at=as_datetime(row.last_success_at),
        last_failure_at=as_datetime(row.last_failure_at),
        consecutive_failures=row.consecutive_failures,
        last_error=None if row.last_error is None else msgspec.json.decode(row.last_error),
        broken_at=as_datetime(row.broken_at),
        created_at=as_datetime(row.created_at),
        updated_at=as_datetime(row.updated_at),
    )
