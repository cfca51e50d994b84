"""The node's side of the link: who it listens to, where, and how it answers.

The socket belongs to whoever holds the store's lock, and its path stands in the lock's note; so a socket file that is
there when a node starts is a dead one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import struct
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.errors import (
    ClosedError,
    InvalidStateError,
    NoNodeError,
    PieceworkError,
    ProtocolError,
    StoppedError,
    StoreError,
    ValidationError,
    describe,
)
from piecework.process import protocol
from piecework.process.protocol import Ask, Channel, Hello, Reply
from piecework.run.link_errors import REFUSED, told_error
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# The room for a path in a socket's address, its closing NUL not counted.
_PATH_LIMIT_BYTES = 107 if sys.platform == "linux" else 103
_BACKLOG = 128
_GRACE_SECONDS = 1.0
_TROUBLE_PAUSE_SECONDS = 1.0

_ToServer = Hello | Ask


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
        self.channel.send(Reply(id=REFUSED, error=describe(NoNodeError(why))))
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
