"""How a process that is not the node asks the one that is: a Unix socket beside the store file.

Its path stands in the note of the store's lock; `link_server` has the node's side. Both sides say hello first: peers
that speak different frames part there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from typing import TYPE_CHECKING, Any, Self

import msgspec

from piecework.errors import NoNodeError, ProtocolError, ValidationError
from piecework.process import protocol
from piecework.process.protocol import Ask, Channel, Hello, Reply
from piecework.run.link_errors import REFUSED, revived_error
from piecework.store.lockfile import read_note
from piecework.store.values import encode_mapping, is_json

if TYPE_CHECKING:
    from pathlib import Path

_ANY_SIZE = 2**62  # a frame has a limit of its own
_GRACE_SECONDS = 1.0
_HELLO_SECONDS = 5.0
_LOOK_SECONDS = 0.05

_ToClient = Hello | Reply


class LinkClient:
    """Asks the node of a store. Made by `connect`; questions may be under way side by side."""

    def __init__(self, store_path: Path) -> None:
        self._store = store_path
        self._ids = itertools.count(REFUSED + 1)
        self._asked: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._channel: Channel[_ToClient] | None = None
        self._socket: socket.socket | None = None
        loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Hello] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self.node_pid: int | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._channel is None or self._channel.closed

    @property
    def asking(self) -> bool:
        """Whether a question is under way."""
        return bool(self._asked)

    async def ended(self) -> None:
        """Returns when the connection has ended, whoever ended it."""
        await asyncio.wait({self._ended})

    @classmethod
    async def connect(cls, store_path: Path, *, timeout_seconds: float) -> LinkClient:
        """Finds the node of a store file and greets it.

        Args:
            store_path: The store file.
            timeout_seconds: How long to wait for a node to appear; 0 looks once.

        Raises:
            NoNodeError: No node runs, or none answers; the message says how to start one.
            ProtocolError: The node speaks another version of the frames.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_seconds
        while True:
            note = read_note(store_path)
            sock = await _dial(note.get("socket"))
            if sock is not None:
                try:
                    return await cls._greet(store_path, sock, note.get("pid"))
                except NoNodeError as error:
                    # A node that is just stopping: its successor may come in time.
                    if not error.data.get("gone") or loop.time() >= ends_at:
                        raise
            if loop.time() >= ends_at:
                raise _no_node(store_path, note.get("pid"))
            await asyncio.sleep(_LOOK_SECONDS)

    async def ask(self, op: str, **args: Any) -> Any:
        """Asks the node and waits for the answer, however long it takes.

        Args:
            op: What for.
            **args: With what; JSON values.

        Raises:
            PieceworkError: The node's own error, of its own class.
            NoNodeError: The connection ended before the answer came; whether it was done is unknown.
            ValidationError: The arguments are more than a frame carries, or no JSON: the message says which.
        """
        _check(op, args)
        if self._channel is None or self._channel.closed:
            raise NoNodeError(
                f"{op} was not sent: the connection with the node of {self._store} has ended, open a new one",
                op=op,
                unknown=False,
            )
        ident = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[ident] = (op, answer)
        try:
            self._channel.send(Ask(id=ident, op=op, args=args))
            return await answer
        finally:
            self._asked.pop(ident, None)

    def give_up(self, silent_seconds: float) -> None:
        """Ends the connection with a node that answers nothing; whoever asked is told that the outcome is unknown.

        Args:
            silent_seconds: For how long it has been silent.
        """
        for op, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(
                    NoNodeError(
                        f"the node of {self._store} (process {self.node_pid}) has answered nothing for "
                        f"{silent_seconds:g} s: is it stopped or blocked? Whether {op} was done is unknown, look "
                        "before repeating it",
                        op=op,
                        unknown=True,
                        silent=True,
                        pid=self.node_pid,
                    )
                )
        self._cut()

    async def close(self) -> None:
        """Ends the connection, also with a node that does not read. Closing twice is harmless."""
        if self._channel is not None:
            self._channel.close()
            await asyncio.wait({self._ended}, timeout=_GRACE_SECONDS)
            if not self._ended.done():
                self._cut()
                await self._ended

    def _cut(self) -> None:
        if self._socket is not None and not self._ended.done():
            with contextlib.suppress(OSError):  # it has gone by itself
                self._socket.shutdown(socket.SHUT_RDWR)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @classmethod
    async def _greet(cls, store_path: Path, sock: socket.socket, pid: int | None) -> LinkClient:
        client = cls(store_path)
        client.node_pid = pid
        client._socket = sock
        client._channel = await Channel.open(sock, _ToClient, client._heard, client._closed)
        try:
            client._channel.send(Hello(version=protocol.VERSION, pid=os.getpid()))
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = await client._hello
            if hello.version != protocol.VERSION:
                raise ProtocolError(
                    f"the node of {store_path} (process {hello.pid}) speaks version {hello.version} of the frames, "
                    f"this program {protocol.VERSION}: use the Piecework that the node was started with"
                )
        except TimeoutError:
            await client.close()
            raise NoNodeError(
                f"process {pid} is the node of {store_path}, but does not answer: is it stopped or blocked?", pid=pid
            ) from None
        except BaseException:
            await client.close()
            raise
        return client

    def _heard(self, message: _ToClient) -> None:
        if isinstance(message, Hello):
            if not self._hello.done():
                self._hello.set_result(message)
        elif message.id == REFUSED:
            self._fail_hello(revived_error(message.error or {}))
        elif message.id in self._asked:
            _, answer = self._asked[message.id]
            if answer.done():
                return
            if message.error is not None:
                answer.set_exception(revived_error(message.error))
            else:
                answer.set_result(message.value)

    def _closed(self, error: Exception | None) -> None:
        who = f"the node of {self._store}" + (f" (process {self.node_pid})" if self.node_pid else "")
        why = f": {error}" if isinstance(error, ProtocolError) else ""
        self._fail_hello(NoNodeError(f"{who} ended the connection at once{why}", pid=self.node_pid, gone=not why))
        for op, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(
                    NoNodeError(
                        f"{who} went away before it answered{why}: whether {op} was done is unknown, "
                        "look before repeating it",
                        op=op,
                        unknown=True,
                    )
                )
        if not self._ended.done():
            self._ended.set_result(None)

    def _fail_hello(self, error: Exception) -> None:
        if not self._hello.done():
            self._hello.set_exception(error)
            self._hello.exception()  # marks it as seen: nobody waits for it when greeting has been given up


async def _dial(path: object) -> socket.socket | None:
    """A connected socket; None when nobody listens there."""
    if not isinstance(path, str):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _no_node(store: Path, pid: int | None) -> NoNodeError:
    if pid is not None:
        text = f"process {pid} has the store {store} open, but answers no clients: wait until it is ready, or stop it"
        return NoNodeError(text, pid=pid, path=str(store))
    return NoNodeError(
        f"no node runs on {store}: start one with `piecework serve MODULE:APP --store sqlite:///{store}`, "
        "or name its store with --store",
        path=str(store),
    )


def _check(op: str, args: dict[str, Any]) -> None:
    """Refuses what is no JSON when it arrives: a node ends the connection of who sends that.

    Raises:
        ValidationError: Which of it is none.
    """
    try:
        encode_mapping(args, what=op, limit_bytes=_ANY_SIZE)
    except ValidationError:
        try:  # a member of an enumeration of texts arrives as a text
            arrives = msgspec.msgpack.decode(msgspec.msgpack.encode(args))
        except (TypeError, ValueError, OverflowError, RecursionError):
            arrives = None
        if not is_json(arrives) or arrives is None:
            raise
