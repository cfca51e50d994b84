"""How a process that is not the node asks the one that is: a Unix socket beside the store file.

The socket belongs to whoever holds the store's lock, and its path stands in the lock's note; so a socket file that is
there when a node starts is a dead one's. Both sides say hello first: peers that speak different frames part there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import socket
import stat
import struct
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from piecework.errors import (
    ClosedError,
    InvalidStateError,
    NoNodeError,
    PieceworkError,
    ProtocolError,
    StoppedError,
    StoreError,
    ValidationError,
    clean_text,
    describe,
)
from piecework.process import protocol
from piecework.process.protocol import Ask, Channel, Hello, Reply, revive
from piecework.store.lockfile import read_note
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# The room for a path in a socket's address, its closing NUL not counted.
_PATH_LIMIT_BYTES = 107 if sys.platform == "linux" else 103
_BACKLOG = 128
_GRACE_SECONDS = 1.0
_HELLO_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_TROUBLE_PAUSE_SECONDS = 1.0
_BOUND = 2**63
_REFUSED = 0
"""The id of a reply that nobody asked for: why the connection is refused."""

_ToServer = Hello | Ask
_ToClient = Hello | Reply


class LinkServer:
    """The node's side: answers whoever asks over the socket.

    What a client asked for is carried out even when the client goes away meanwhile.

    Args:
        answer: Called with op and args; what it returns goes back, what it raises is raised at the client.
        beside: The store file.
    """

    def __init__(self, answer: Callable[[str, dict[str, Any]], Awaitable[Any]], *, beside: Path) -> None:
        self._answer = answer
        self._beside = beside
        self._path: Path | None = None
        self._socket: socket.socket | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._receiving: set[asyncio.Task[None]] = set()
        self._peers: set[_Peer] = set()
        self._answers: set[asyncio.Task[None]] = set()

    async def start(self) -> Path:
        """Starts to listen and tells where.

        Raises:
            StoreError: There is no place for the socket; the message says what to do.
            InvalidStateError: It was started before.
        """
        if self._socket is not None:
            raise InvalidStateError(f"the link at {self._path} was started before")
        path = socket_path(self._beside)
        self._socket = _listen(path)
        self._path = path
        asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)
        return path

    async def stop(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Takes no more questions, lets answers be finished for a while, tells the rest that the node stops.

        Args:
            grace_seconds: How long answers may still take. Stopping twice, or before the start, is harmless.
        """
        if self._socket is not None and self._path is not None:
            if self._resting is not None:
                self._resting.cancel()
            asyncio.get_running_loop().remove_reader(self._socket)
            self._path.unlink(missing_ok=True)
            self._socket.close()
            self._socket = None
        for task in self._receiving:
            task.cancel()
        await asyncio.gather(*self._receiving, return_exceptions=True)
        for peer in self._peers:
            peer.deaf = True
        if self._answers:
            _, late = await asyncio.wait(self._answers, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._part(grace_seconds)

    async def _part(self, grace_seconds: float) -> None:
        """Ends every connection, also with clients that do not read what is sent to them."""
        ended = {peer.ended: peer for peer in self._peers}
        for peer in ended.values():
            peer.channel.close()
        if ended:
            _, stuck = await asyncio.wait(ended, timeout=grace_seconds)
            for future in stuck:
                ended[future].cut()
            await asyncio.gather(*stuck)

    def _accept(self, listener: socket.socket) -> None:
        """Called by the loop when somebody connects. No task awaits it: one that is cancelled would lose a socket."""
        loop = asyncio.get_running_loop()
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # out of descriptors, say: those who wait in line are served when there is room
            signals.emit(signals.NODE_TROUBLE, level="error", what="accepting a client", error=str(error))
            loop.remove_reader(listener)
            self._resting = loop.call_later(_TROUBLE_PAUSE_SECONDS, loop.add_reader, listener, self._accept, listener)
            return
        task = loop.create_task(self._greet(sock), name="piecework-link")
        self._receiving.add(task)
        task.add_done_callback(lambda done: self._greeted(done, sock))

    def _greeted(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._receiving.discard(task)
        if task.cancelled():
            sock.close()

    async def _greet(self, sock: socket.socket) -> None:
        try:
            await self._receive(sock)
        except OSError as error:
            sock.close()
            signals.emit(signals.NODE_TROUBLE, level="warning", what="greeting a client", error=str(error))

    async def _receive(self, sock: socket.socket) -> None:
        peer = _Peer(self, sock)
        refusal = _refusal(sock)
        peer.deaf = refusal is not None
        peer.channel = await Channel.open(sock, _ToServer, peer.heard, peer.closed)
        self._peers.add(peer)
        peer.ended.add_done_callback(lambda _: self._peers.discard(peer))
        if refusal is None:
            peer.channel.send(Hello(version=protocol.VERSION, pid=os.getpid()))
        else:
            peer.refuse(refusal)

    def take(self, peer: _Peer, ask: Ask) -> None:
        """Starts to answer one question."""
        task = asyncio.create_task(self._reply(peer, ask), name=f"piecework-link-{ask.op}")
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _reply(self, peer: _Peer, ask: Ask) -> None:
        try:
            reply = await self._outcome(ask)
        except asyncio.CancelledError:
            stopped = StoppedError(f"the node is stopping: whether {ask.op} was done is unknown, look before repeating")
            peer.reply(Reply(id=ask.id, error=describe(stopped)))
            raise
        peer.reply(reply)

    async def _outcome(self, ask: Ask) -> Reply:
        try:
            return Reply(id=ask.id, value=await self._answer(ask.op, ask.args))
        except PieceworkError as error:
            return Reply(id=ask.id, error=told_error(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours: shown here and at the client
            told = describe(error)
            signals.emit(signals.NODE_TROUBLE, level="error", what=f"answering {ask.op}", error=told)
            return Reply(id=ask.id, error=told | {"trace": traceback.format_exc()})


class _Peer:
    """A client, as the node sees it."""

    def __init__(self, server: LinkServer, sock: socket.socket) -> None:
        self.channel: Channel[_ToServer]
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deaf = False
        self._server = server
        self._socket = sock
        self._greeted = False

    def heard(self, message: _ToServer) -> None:
        if self.deaf:
            return
        if isinstance(message, Hello):
            self._greeted = True
            if message.version != protocol.VERSION:
                self.deaf = True
                self.channel.close()  # our own hello has told it why
        elif self._greeted:
            self._server.take(self, message)
        else:
            raise ProtocolError("a question came before the hello")

    def closed(self, _error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def refuse(self, why: str) -> None:
        self.channel.send(Reply(id=_REFUSED, error=describe(NoNodeError(why))))
        self.channel.close()

    def cut(self) -> None:
        with contextlib.suppress(OSError):  # it has gone by itself
            self._socket.shutdown(socket.SHUT_RDWR)

    def reply(self, reply: Reply) -> None:
        """Sends a reply, or why it cannot be sent; a client that has gone gets none."""
        try:
            self.channel.send(reply)
        except ClosedError:
            return
        except ValidationError as error:
            self.reply(Reply(id=reply.id, error=describe(error)))


class LinkClient:
    """The other side: asks the node of a store. Made by `connect`; questions may be under way side by side."""

    def __init__(self, store_path: Path) -> None:
        self._store = store_path
        self._ids = itertools.count(_REFUSED + 1)
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
            ValidationError: The arguments are more than a frame carries.
        """
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
        elif message.id == _REFUSED:
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


def told_error(error: PieceworkError) -> dict[str, Any]:
    """An error of ours as it crosses: as `describe` tells it, with the values that it is about, as far as they can."""
    data = {name: value for name, value in error.data.items() if _is_plain(value)}
    return describe(error) | ({"data": data} if data else {})


def revived_error(told: dict[str, Any]) -> PieceworkError:
    """The error that `told_error` told, of its own class where that is ours."""
    error = revive(told)
    error.data.update(told.get("data", {}))
    return error


def socket_path(store: Path) -> Path:
    """Where the socket of a store file belongs: beside it, or in a folder of this user's where the path is too long.

    Raises:
        StoreError: The folder is somebody else's, or its path too is longer than an address may be.
    """
    beside = Path(f"{store}.sock").absolute()
    if len(os.fsencode(beside)) <= _PATH_LIMIT_BYTES:
        return beside
    name = hashlib.sha256(os.fsencode(beside)).hexdigest()[:32]
    path = _own_folder() / f"{name}.sock"
    if len(os.fsencode(path)) > _PATH_LIMIT_BYTES:
        raise StoreError(
            f"{path} is too long for a socket: set XDG_RUNTIME_DIR to a short folder of your own", path=str(path)
        )
    return path


def _own_folder() -> Path:
    import tempfile  # brings half of the archive formats along, and is hardly ever needed

    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "piecework") if runtime else Path(tempfile.gettempdir(), f"piecework-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Not followed: a link in a folder that all may write to could be anybody's.
        found = folder.lstat()
    except OSError as error:
        raise StoreError(f"no folder for sockets can be made at {folder}: {error}", path=str(folder)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StoreError(
            f"{folder} is not a folder of this user's alone (mode 700): remove it, or set XDG_RUNTIME_DIR to another",
            path=str(folder),
        )
    return folder


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o600)  # before it listens, so that nobody connects while it is wider
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise StoreError(f"clients cannot be served at {path}: {error}", path=str(path)) from error
    sock.setblocking(False)
    return sock


def _refusal(sock: socket.socket) -> str | None:
    """Why the peer of a connection is not served; None when it is. Without peer credentials the file's mode decides."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    layout = struct.Struct("3i")
    _, uid, _ = layout.unpack(sock.getsockopt(socket.SOL_SOCKET, option, layout.size))
    if uid == os.getuid():
        return None
    return f"the node belongs to user {os.getuid()}, not to user {uid}: ask it as that user"


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


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return clean_text(value) == value
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or (isinstance(value, int | float) and -_BOUND <= value < _BOUND)
