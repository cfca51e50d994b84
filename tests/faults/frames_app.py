"""The stub application, with pieces and workers that break the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import msgspec
from stub_app import StubApp, piece, told

from piecework.process import protocol

app = StubApp()


def channels():
    """The sockets that this worker's frames may go over: all stream sockets but the loop's own."""
    loop = asyncio.get_running_loop()
    own = {loop._ssock.fileno(), loop._csock.fileno()}
    for descriptor in set(range(3, 256)) - own:
        with contextlib.suppress(OSError):
            found = socket.socket(fileno=os.dup(descriptor))
            if found.type == socket.SOCK_STREAM:
                yield found


@piece("sends")
async def sends(piece):
    """Sends what it is told to, past the channel, and hangs up."""
    for channel in channels():
        with channel, contextlib.suppress(OSError):
            channel.sendall(bytes.fromhex(piece.config["stream"]))
            channel.shutdown(socket.SHUT_WR)
    await asyncio.Event().wait()


@piece("counts")
async def counts(piece):
    """Tells that it runs, and lets others run meanwhile."""
    await told(piece, "counted")
    await asyncio.sleep(0)


def _say(sock, *messages):
    for message in messages:
        body = msgspec.msgpack.encode(message)
        sock.sendall(len(body).to_bytes(4, "big") + body)
    time.sleep(3600)


def from_another_time(sock, app):
    """A worker that speaks another version of the frames."""
    _say(sock, protocol.Hello(version=protocol.VERSION + 1, pid=os.getpid()))


def hasty(sock, app):
    """A worker that is ready before it has said hello."""
    _say(sock, protocol.Ready())


def greets_twice(sock, app):
    """A worker that says hello twice."""
    hello = protocol.Hello(version=protocol.VERSION, pid=os.getpid())
    _say(sock, hello, hello)
