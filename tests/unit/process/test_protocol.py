"""Promises about frames and channels."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework.errors import ClosedError, NotFoundError, ProtocolError, RemoteError, ValidationError, describe
from piecework.process import protocol
from piecework.process.protocol import Ask, Channel, Hello, Init, Log, Ready, Reply, Run, revive


class End:
    """One end of a connection, with all that it got."""

    def __init__(self):
        self.got = asyncio.Queue()
        self.ended = asyncio.get_running_loop().create_future()

    async def open(self, sock, types=protocol.ToNode, **options):
        self.channel = await Channel.open(sock, types, self.got.put_nowait, self.ended.set_result, **options)
        return self


@pytest.fixture
async def ends():
    left, right = socket.socketpair()
    one, two = await End().open(left), await End().open(right)
    yield one, two
    one.channel.close()
    two.channel.close()
    await one.ended
    await two.ended


@pytest.fixture
async def raw():
    """A channel, and the bare socket at its other end."""
    left, right = socket.socketpair()
    end = await End().open(left, limit_bytes=1000)
    with right:
        yield end, right
        end.channel.close()
        await end.ended


def frame(message):
    body = msgspec.msgpack.encode(message)
    return struct.pack(">I", len(body)) + body


async def test_messages_arrive_in_order(ends):
    """What is sent arrives as what it was, in order."""
    one, two = ends
    sent = [Hello(version=1, pid=7), Log(level="info", message="m", fields={"a": [1, None]}), Ready()]
    for message in sent:
        one.channel.send(message)
    assert [await two.got.get() for _ in sent] == sent


async def test_large_message(ends):
    """A message of megabytes arrives whole, and small ones after it."""
    one, two = ends
    one.channel.send(Ask(id=1, op="publish", args={"text": "x" * 5_000_000}))
    one.channel.send(Ready())
    await one.channel.drain()
    assert len((await two.got.get()).args["text"]) == 5_000_000
    assert await two.got.get() == Ready()


async def test_orderly_end(ends):
    """When the peer closes, on_closed gets None, once."""
    one, two = ends
    one.channel.close()
    assert await asyncio.shield(two.ended) is None
    with pytest.raises(ClosedError):
        two.channel.send(Ready())


async def test_byte_by_byte(raw):
    """A frame may come in any pieces."""
    end, peer = raw
    for byte in frame(Ready()):
        peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await end.got.get() == Ready()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x00\x00\x03abc", "no message of this connection"),
        (b"\xff\xff\xff\xff", "from 1 to 1000"),
        (b"\x00\x00\x00\x00", "from 1 to 1000"),
        (frame({"type": "unknown"}), "no message"),
        (frame({"type": "hello", "version": 1}), "no message"),
        (frame({"type": "hello", "version": "1", "pid": 2}), "no message"),
        (frame({"type": "ready", "more": 1}), "no message"),
        (frame([1, 2]), "no message"),
        (frame(Init(space="acme")), "no message"),
    ],
)
async def test_malformed_frame(raw, data, words):
    """A frame that is no message of this direction ends the connection with a named error."""
    end, peer = raw
    peer.send(data)
    error = await asyncio.shield(end.ended)
    assert isinstance(error, ProtocolError)
    assert words in str(error)


async def test_truncated_frame(raw):
    """An end in the middle of a frame is not an orderly one."""
    end, peer = raw
    peer.send(frame(Ready())[:-1])
    peer.shutdown(socket.SHUT_WR)
    assert isinstance(await asyncio.shield(end.ended), ProtocolError)


async def test_too_large_to_send(raw):
    """A message beyond the limit is refused where it is sent, and the connection goes on."""
    end, _ = raw
    with pytest.raises(ValidationError, match="more than the 1000"):
        end.channel.send(Log(level="info", message="x" * 1000))
    assert not end.channel.closed


async def test_failing_receiver():
    """An owner that cannot take a message ends the connection, and is told its own error."""
    left, right = socket.socketpair()
    ended = asyncio.get_running_loop().create_future()

    def refuse(message):
        raise RuntimeError("not in this state")

    with right:
        await Channel.open(left, protocol.ToNode, refuse, ended.set_result)
        right.send(frame(Ready()))
        assert str(await ended) == "not in this state"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    """Whatever bytes come, they are messages or a ProtocolError, nothing else."""
    channel = Channel(protocol.ToNode | protocol.ToWorker, lambda message: None, lambda error: None)
    with contextlib.suppress(ProtocolError):
        channel._decode(memoryview(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_frames(data):
    """A frame with bytes changed is a message or a ProtocolError, nothing else."""
    good = Run(run_id="r", epoch=1, attempt=1, piece_id="p", integration="i", deadline_seconds=1.5, idempotency_key="k")
    body = bytearray(msgspec.msgpack.encode(good))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    test_any_bytes.hypothesis.inner_test(bytes(body))


def test_revived_error_of_ours():
    """An error of ours comes over as its own class."""
    error = revive(describe(NotFoundError("no piece 'x'")))
    assert isinstance(error, NotFoundError)
    assert str(error) == "no piece 'x'"


def test_revived_error_of_others():
    """Any other error comes over as RemoteError with its type."""
    error = revive(describe(KeyError("x")))
    assert isinstance(error, RemoteError)
    assert error.type == "KeyError"


def test_reply_without_value():
    """A reply of None is told apart from no reply by its id alone."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Reply(id=3)), type=protocol.ToWorker) == Reply(id=3)
