"""Frames: length-prefixed msgpack maps between processes, versioned, bounded and schema checked.

A frame is four bytes (its length, big endian) and one msgpack map whose `type` names a message below and whose other
keys are that message's fields, no more and no fewer than it allows; what a field of any value holds is JSON. Anything
else ends the connection with a `ProtocolError`: after a malformed frame nothing that follows can be trusted. The error
says what was wrong and where, never what came: a frame may carry secrets.
"""

from __future__ import annotations

import asyncio
import re
import struct
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import msgspec

from piecework import errors
from piecework.errors import ClosedError, PieceworkError, ProtocolError, RemoteError, ValidationError
from piecework.store import values

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

VERSION = 1
FRAME_LIMIT_BYTES = 17 * 1024 * 1024
_HEADER = struct.Struct(">I")
_BUFFER_BYTES = 16 * 1024
_encoder = msgspec.msgpack.Encoder()
# What msgspec says of form and place only; its other complaints quote what came.
_HARMLESS = re.compile(r"(?:Expected|Object missing|Input data|MessagePack data|Invalid MessagePack) [^'\"]*")

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=str.lower):
    """What one frame carries; its `type` is the class's name in small letters."""


class Hello(Message, frozen=True):
    """The first word of a peer: which version of the frames it speaks, and its own idea of its pid."""

    version: int
    pid: int


class Init(Message, frozen=True):
    """What is in force on the node; it wins over the module's own values.

    Attributes:
        space: The tenant that this worker is for.
        env: The application's and the space's environment layers, merged.
        database: URL of the application's database, or None.
        settings: Fields of `Settings` that differ from their defaults.
        config: The application's `config`.
        sender: The address that its mails come from, or None.
        folder: The space's own folder; None for what is of no space, and stays where it is.
        store_file: Where the store is, when it is a file: not to be read by mistake.
    """

    space: str
    env: dict[str, str] = {}
    database: str | None = None
    settings: dict[str, Any] = {}
    config: dict[str, Any] = {}
    sender: str | None = None
    folder: str | None = None
    store_file: str | None = None


class Ready(Message, frozen=True):
    """The worker takes runs from here on."""


class Run(Message, frozen=True):
    """One update to carry out.

    Attributes:
        run_id: Which run.
        epoch: Which owner of it; comes back with the result.
        attempt: Counts from 1.
        piece_id: Which piece.
        integration: Which definition of the worker's app carries it out.
        config: The piece's configuration.
        state: Its state as of the last commit.
        deadline_seconds: How long it may take from now on.
        idempotency_key: The same for every attempt.
        event: What made it due: `type payload id space at hops`; None where it was no event.
        hops: How many runs that event came by: what the update publishes has come by one more.
    """

    run_id: str
    epoch: int
    attempt: int
    piece_id: str
    integration: str
    deadline_seconds: float
    idempotency_key: str
    config: dict[str, Any] = {}
    state: dict[str, Any] = {}
    event: dict[str, Any] | None = None
    hops: int = 0


class Begun(Message, frozen=True):
    """The worker has that run; whatever it does from here on is the run's doing.

    Attributes:
        run_id: Which run.
        epoch: Its owner's, as it came.
    """

    run_id: str
    epoch: int


class Cancel(Message, frozen=True):
    """Stop that run; its result comes only when nothing of it is left.

    Attributes:
        run_id: Which run.
        reason: Why, as an error code: TIMEOUT or ABORTED.
    """

    run_id: str
    reason: str


class Ping(Message, frozen=True):
    """Asks whether the worker's loop turns; answered by a `Pong` with the same `id`."""

    id: int


class Drain(Message, frozen=True):
    """No more runs come: close everything and exit when those under way are over."""


class Stop(Message, frozen=True):
    """Cancel what is under way, close everything and exit; no more results."""


class Result(Message, frozen=True):
    """What became of a run: own result, children joined, workspace closed.

    Attributes:
        run_id: Which run.
        epoch: Its owner's, as it came.
        outcome: The verdict's `name` and fields.
        state: The piece's state after it; None when it failed.
    """

    run_id: str
    epoch: int
    outcome: dict[str, Any]
    state: dict[str, Any] | None = None


class Unknown(Message, frozen=True):
    """The worker's code has no such integration: nothing of the run was carried out, and it is no verdict on it.

    Attributes:
        run_id: Which run.
        epoch: Its owner's, as it came.
        message: What there is instead, in words.
    """

    run_id: str
    epoch: int
    message: str


class Left(Message, frozen=True):
    """What a run had begun and not ended when it was told to stop, in words; most of it ends with it.

    Attributes:
        run_id: Which run.
        epoch: Its owner's, as it came.
        what: Tasks, processes and calls in threads.
        making: The names of services of a wider scope that were being made, which goes on when an asker is stopped.
    """

    run_id: str
    epoch: int
    what: str = ""
    making: str = ""


class Log(Message, frozen=True):
    """A log line of user code.

    Attributes:
        level: debug, info, warning or error.
        message: What happened.
        fields: JSON values that belong to it.
        run_id: The run that wrote it, where known.
        source: "logger", or "print" for what the run printed.
    """

    level: str
    message: str
    fields: dict[str, Any] = {}
    run_id: str | None = None
    source: Literal["logger", "print"] = "logger"


class Progress(Message, frozen=True):
    """How far a run says that it is.

    Attributes:
        run_id: Which run.
        fraction: From 0 to 1.
        message: In words.
    """

    run_id: str
    fraction: Annotated[float, msgspec.Meta(ge=0, le=1)]
    message: str | None = None


class Late(Message, frozen=True):
    """Something that a run started has failed after the run's result was sent.

    Attributes:
        run_id: Which run.
        epoch: Its owner's, as it came.
        error: `type`, `code`, `message` and `trace`.
    """

    run_id: str
    epoch: int
    error: dict[str, Any]


class Pong(Message, frozen=True):
    """The worker's loop turns: the `id` of the ping that it has read."""

    id: int


class Fatal(Message, frozen=True):
    """The worker cannot go on, and says why: `type`, `code`, `message` and `trace`."""

    error: dict[str, Any]


class Ask(Message, frozen=True):
    """A question to the other side.

    Attributes:
        id: Comes back with the reply; unique on this connection and direction.
        op: What is asked for.
        args: With what.
        run_id: The run that asks, where there is one.
    """

    id: int
    op: str
    args: dict[str, Any] = {}
    run_id: str | None = None


class Reply(Message, frozen=True):
    """The answer: a value, or an error as `errors.describe` tells it."""

    id: int
    value: Any = None
    error: dict[str, Any] | None = None


class Call(Message, frozen=True):
    """One function to call in a process of its own.

    Attributes:
        function: "module:qualified name".
        given: JSON: `args`, `kwargs`, and what its workspace is like: `space user params key`.
        fields: What its log lines carry.
    """

    function: str
    given: bytes
    fields: dict[str, Any] = {}


class Returned(Message, frozen=True):
    """What became of a call; everything of it is closed.

    Attributes:
        value: What it returned, as JSON.
        error: `type`, `code`, `message` and `trace`, where it failed.
        raised: True when the function itself raised that, or what it opened did.
    """

    value: bytes = b"null"
    error: dict[str, Any] | None = None
    raised: bool = False


ToWorker = Init | Run | Cancel | Ping | Drain | Stop | Reply
"""What a node sends to a worker."""
ToNode = Hello | Ready | Begun | Result | Unknown | Left | Log | Progress | Late | Ask | Pong | Fatal
"""What a worker sends to its node."""

ToCallee = Init | Call | Cancel | Reply
"""What a process that calls one function is sent."""
ToCaller = Returned | Ask
"""What it sends."""


def revive(error: dict[str, Any]) -> PieceworkError:
    """Turns a described error of a peer back into one to raise: its own class where it is ours, else `RemoteError`.

    Args:
        error: `type`, `code` and `message`, perhaps `trace`.
    """
    name, message = str(error.get("type", "")), str(error.get("message", ""))
    own = (
        getattr(errors, name.removeprefix("piecework.errors."), None) if name.startswith("piecework.errors.") else None
    )
    if isinstance(own, type) and issubclass(own, PieceworkError):
        return own(message)
    return RemoteError(
        f"{name}: {message}", type=name, trace=str(error.get("trace", "")), remote_code=error.get("code")
    )


def complaint(error: Exception) -> str:
    """Tells why msgspec refused something, without a word of what that was."""
    text = str(error)
    if isinstance(error, msgspec.MsgspecError) and _HARMLESS.fullmatch(text):
        return text
    if "unknown field" in text:
        return "it has a field that it may not have"
    if text.endswith("at `$.type`"):
        return "its type is none of those that may come"
    return "it is nested too deep" if isinstance(error, RecursionError) else "it is not msgpack of that form"


@cache
def _decoder(types: Any) -> msgspec.msgpack.Decoder[Any]:
    """Reads these messages; made once, however many connections there are."""
    return msgspec.msgpack.Decoder(types)


_decoder(ToWorker)  # in the zygote, for all of its workers


@cache
def _free_fields(kind: type[Message]) -> tuple[str, ...]:
    """The fields of a message that hold whatever its sender likes."""
    return tuple(name for name, hint in kind.__annotations__.items() if "Any" in hint)


class Channel(asyncio.BufferedProtocol, Generic[M]):
    """One end of a connection: sends messages, hands each one received to `on_message`.

    Open it on a connected socket with `open`, or give `Channel(...)` to a server as what its factory returns.

    Args:
        types: The union of messages that may come in.
        on_message: Called on the loop with each of them, in order. An exception that it raises ends the connection.
        on_closed: Called once: None after an orderly end, else why it ended.
        limit_bytes: The largest frame, in both directions.
        last_word: Makes the message that the peer is sent when the connection ends for what came; none when omitted.
    """

    def __init__(
        self,
        types: Any,
        on_message: Callable[[M], None],
        on_closed: Callable[[Exception | None], None],
        *,
        limit_bytes: int = FRAME_LIMIT_BYTES,
        last_word: Callable[[Exception], Message] | None = None,
    ) -> None:
        self._last_word = last_word
        self._decoder: msgspec.msgpack.Decoder[M] = _decoder(types)
        self._on_message = on_message
        self._on_closed = on_closed
        self._limit = limit_bytes
        self._buffer = bytearray(_BUFFER_BYTES)
        self._filled = 0
        self._transport: asyncio.Transport | None = None
        self._ended = False
        self._failure: Exception | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        types: Any,
        on_message: Callable[[M], None],
        on_closed: Callable[[Exception | None], None],
        *,
        limit_bytes: int = FRAME_LIMIT_BYTES,
        last_word: Callable[[Exception], Message] | None = None,
    ) -> Channel[M]:
        """Takes a connected stream socket over and starts to read from it; arguments as of the class."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(
            lambda: cls(types, on_message, on_closed, limit_bytes=limit_bytes, last_word=last_word), sock=sock
        )
        return channel

    @property
    def closed(self) -> bool:
        """True when nothing can be sent any more."""
        return self._ended or self._transport is None or self._transport.is_closing()

    def send(self, message: Message) -> None:
        """Queues one message; `drain` waits until the peer keeps up.

        Raises:
            ClosedError: The connection has ended.
            ValidationError: The message is larger than a frame may be, or holds what msgpack cannot carry.
        """
        if self.closed or self._transport is None:
            raise ClosedError(f"a {type(message).__name__} cannot be sent: the connection has ended")
        try:
            frame = _encoder.encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValidationError(f"a {type(message).__name__} holds what a frame cannot carry: {error}") from error
        if len(frame) > self._limit:
            raise ValidationError(
                f"a {type(message).__name__} takes {len(frame)} bytes, more than the {self._limit} of a frame: "
                "keep large data elsewhere and send a reference"
            )
        self._transport.writelines((_HEADER.pack(len(frame)), frame))

    async def drain(self) -> None:
        """Waits until what was sent has mostly gone out.

        Raises:
            ClosedError: The connection has ended before.
        """
        await self._writable.wait()
        if self._ended:
            raise ClosedError("the connection ended before all was sent")

    def close(self) -> None:
        """Ends the connection after what was sent has gone out; `on_closed` follows."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, once."""
        self._ended = True
        self._writable.set()
        self._on_closed(self._failure or exc)

    def pause_writing(self) -> None:
        """Called by the loop when the peer reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the loop when the peer has caught up."""
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's guess; our own buffer knows better
        """Called by the loop for room to read into."""
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop after it has read."""
        self._filled += nbytes
        try:
            self._make_room(self._take_frames())
        except Exception as error:  # noqa: BLE001 - told to on_closed: an owner that cannot read a message is done for
            self._fail(error)

    def eof_received(self) -> bool:
        """Called by the loop when the peer has closed its end."""
        if self._filled and self._failure is None:
            self._fail(ProtocolError("the connection ended in the middle of a frame"))
        return False

    def _take_frames(self) -> int:
        """Hands over all whole frames; what the next one takes in all, header included, as far as it is known."""
        start = 0
        wanted = _HEADER.size
        view = memoryview(self._buffer)[: self._filled]
        while not self.closed:
            wanted = _HEADER.size
            if self._filled - start < wanted:
                break
            (length,) = _HEADER.unpack_from(view, start)
            if not 0 < length <= self._limit:
                raise ProtocolError(f"a frame of {length} bytes came; from 1 to {self._limit} are allowed")
            wanted += length
            if self._filled - start < wanted:
                break
            message = self._decode(view[start + _HEADER.size : start + wanted])
            start += wanted
            self._on_message(message)
        if start:
            rest = bytes(view[start:])
            self._buffer[: len(rest)] = rest
            self._filled = len(rest)
        return wanted

    def _decode(self, frame: memoryview) -> M:
        try:
            message = self._decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, MemoryError) as error:
            told = f"a frame came that is no message of this connection: {complaint(error)} ({len(frame)} bytes)"
            raise ProtocolError(told) from None  # the error of msgspec may quote it
        kind: Any = type(message)
        for name in _free_fields(kind):
            if not values.is_json(getattr(message, name)):
                raise ProtocolError(f"a {kind.__name__} came whose {name} is not JSON")
        return message

    def _make_room(self, wanted: int) -> None:
        # The length that a header claims is not believed at once: the buffer only doubles as bytes really come.
        if self._filled == len(self._buffer):
            grown = bytearray(min(max(wanted, _BUFFER_BYTES), 2 * len(self._buffer)))
            grown[: self._filled] = self._buffer
            self._buffer = grown
        elif not self._filled and len(self._buffer) > _BUFFER_BYTES:
            self._buffer = bytearray(_BUFFER_BYTES)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        if self._transport is not None:
            if self._last_word is not None and not self.closed:
                self.send(self._last_word(error))  # goes out at once, unless the peer does not read anyway
            self._transport.abort()
