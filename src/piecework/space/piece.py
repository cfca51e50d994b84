"""A piece: what the application defines, what one update of it is handed, and what it may answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from piecework.errors import ProtocolError, ValidationError, clean_text
from piecework.process import accounting
from piecework.process.protocol import complaint
from piecework.run.failure import USUAL
from piecework.run.outcome import Failed, Outcome, RetryAfter, Skipped, Success
from piecework.space.timing import Timing
from piecework.store import values

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime

    from piecework.bus.event import Event
    from piecework.run.failure import FailurePolicy
    from piecework.workspace.workspace import Workspace

T = TypeVar("T")

_OUTCOMES: dict[str, type[Outcome]] = {kind.name: kind for kind in (Success, Skipped, RetryAfter, Failed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceDefinition:
    """How the pieces of one integration are updated.

    Attributes:
        integration: The name that pieces are registered under.
        fn: The update; takes a `PieceContext`, may be a plain function.
        timing: When they are updated.
        timeout_seconds: How long one may take, all that it started included.
        accounting: "join" awaits what an update left behind, "strict" fails it.
        failure: What follows failures of it.
    """

    integration: str
    fn: Callable[[PieceContext], Any]
    timing: Timing = field(default_factory=Timing)
    timeout_seconds: float = 600
    accounting: Literal["join", "strict"] = "join"
    failure: FailurePolicy = USUAL


class PieceContext:
    """What one update of a piece sees and may do. Services of its workspace are attributes too.

    Attributes:
        space: The tenant.
        piece_id: Which piece.
        config: Its configuration, as registered.
        state: Its own JSON mapping: change it in place; it is committed with any outcome but a failure.
        attempt: Counts from 1.
        event: What made the update due; None where it was no event. Of several it is the newest.
        deadline: When the update will be stopped, an aware datetime.
        logger: Writes lines that carry space, piece and run: `logger.info("fetched", pages=3)`.
        workspace: The fresh workspace of this update.
    """

    def __init__(
        self,
        *,
        space: str,
        piece_id: str,
        config: dict[str, Any],
        state: dict[str, Any],
        attempt: int,
        deadline: datetime,
        logger: PieceLogger,
        workspace: Workspace,
        event: Event | None = None,
        on_progress: Callable[[float, str | None], None] = lambda _fraction, _message: None,
    ) -> None:
        self.space = space
        self.piece_id = piece_id
        self.config = config
        self.state = state
        self.attempt = attempt
        self.deadline = deadline
        self.logger = logger
        self.workspace = workspace
        self.event = event
        self._on_progress = on_progress

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Tells how far the update is: people see it while it runs, and it stands in the timeline.

        It is committed soon and holds nothing up: `piece.progress(0.4, "page 2 of 5")`.

        Args:
            fraction: From 0 to 1.
            message: In words; shortened to 200 characters.

        Raises:
            ValidationError: The fraction is not a number from 0 to 1, or the message is no text.
        """
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if not number or not 0 <= fraction <= 1:
            raise ValidationError(f"progress is a number from 0 to 1, not {fraction!r:.80}: 0.4 is two of five")
        if message is not None and not isinstance(message, str):
            raise ValidationError(f"progress: the message has to be a text, not {message!r:.80}")
        self._on_progress(float(fraction), None if message is None else clean_text(message, 200))

    async def publish(self, type: str, payload: dict[str, Any], id: str | None = None) -> Any:  # noqa: A002 - the event's own words
        """Publishes an event of this space; returns when it is durable, in a transaction when that commits.

        Args:
            type: A dotted name.
            payload: JSON values.
            id: Names this very occurrence; a second one of the same id is a duplicate. Made when not given.
        """
        return await self.workspace.publish(type, payload, id=id)

    @overload
    async def require(self, key: type[T]) -> T: ...
    @overload
    async def require(self, key: str) -> Any: ...
    async def require(self, key: str | type) -> Any:
        """Gives a service by name or by type; what its factory starts is not this update's."""
        with accounting.uncharged():
            return await self.workspace.require(key)

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a task of this update: the update is done only when it is, and fails when it fails."""
        return asyncio.get_running_loop().create_task(coro)

    def detached(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a task that outlives this update, while its worker lives; a failure of it is logged as an error."""
        with accounting.uncharged():
            task = asyncio.get_running_loop().create_task(coro)
        _detached.add(task)
        task.add_done_callback(self._detached_ended)
        return task

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "workspace":
            raise AttributeError(name)
        return getattr(self.workspace, name)

    def _detached_ended(self, task: asyncio.Task[Any]) -> None:
        _detached.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.error("a detached task failed", error=f"{type(error).__name__}: {error}")


_detached: set[asyncio.Task[Any]] = set()


async def end_detached() -> None:
    """Cancels what was detached in this process and waits for it; its worker calls this before it closes."""
    while _detached:
        for task in _detached:
            task.cancel()
        await asyncio.wait(_detached)


class PieceLogger:
    """Sends log lines to the node.

    Args:
        send: Takes level, message and fields that are JSON.
    """

    def __init__(self, send: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._send = send

    def debug(self, message: str, **fields: Any) -> None:
        """Writes a line for those who look closely."""
        self._send("debug", message, _loggable(fields))

    def info(self, message: str, **fields: Any) -> None:
        """Writes a line."""
        self._send("info", message, _loggable(fields))

    def warning(self, message: str, **fields: Any) -> None:
        """Writes a line about something that may become trouble."""
        self._send("warning", message, _loggable(fields))

    def error(self, message: str, **fields: Any) -> None:
        """Writes a line about trouble."""
        self._send("error", message, _loggable(fields))


def as_outcome(returned: Any) -> Outcome:
    """Reads what an update returned: None is a success, a verdict is itself, anything else a failure that says so."""
    if returned is None:
        return Success()
    if not isinstance(returned, Success | Skipped | RetryAfter | Failed):
        return Failed(
            f"the update returned a {type(returned).__qualname__}: return None, Success(data), Skipped(reason), "
            "RetryAfter(seconds=…) or Failed(error)",
            code=ValidationError.code,
        )
    try:
        pack_outcome(returned)
    except (ValidationError, ProtocolError) as error:
        return Failed(f"the update returned a {type(returned).__name__} that cannot be kept: {error}", code=error.code)
    return returned


def pack_outcome(outcome: Outcome) -> dict[str, Any]:
    """Tells an outcome as a JSON mapping: its `name` and its fields.

    Raises:
        ValidationError: It holds something that is not JSON; the path says where.
        ProtocolError: A field is of the wrong type.
    """
    packed = {"name": outcome.name} | {name: getattr(outcome, name) for name in outcome.__slots__}
    values.encode(packed, what=type(outcome).__name__)
    unpack_outcome(packed)
    return packed


def unpack_outcome(packed: dict[str, Any]) -> Outcome:
    """Reads what `pack_outcome` told.

    Raises:
        ProtocolError: It is no outcome.
    """
    name = packed.get("name")
    kind = _OUTCOMES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"an outcome is none of those that there are: {', '.join(_OUTCOMES)}")
    try:
        return msgspec.convert({key: value for key, value in packed.items() if key != "name"}, kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"an outcome {kind.name!r} is not of its form: {complaint(error)}") from None


def _loggable(fields: dict[str, Any]) -> dict[str, Any]:
    told = {}
    for name, value in fields.items():
        try:
            values.encode(value)
            told[name] = value
        except ValidationError:
            told[name] = repr(value)
    return told
