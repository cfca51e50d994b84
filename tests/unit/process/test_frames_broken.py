"""Broken frames by the thousand: what the channel makes of them is what a plain reader does, and nothing else.

`PIECEWORK_FUZZ=1000000` looks at so many streams, other ones each time, instead of the few that are always the same.
"""

from __future__ import annotations

import asyncio
import os
import random
import traceback

import msgspec
import pytest

import frames
from piecework.errors import ProtocolError
from piecework.process import protocol
from piecework.process.protocol import Channel

FUZZ = int(os.environ.get("PIECEWORK_FUZZ", "0"))
STREAMS = FUZZ or 20_000
BUFFER_BYTES = 64 * 1024

pytestmark = pytest.mark.timeout(0 if FUZZ else 60)

DIRECTIONS = {
    "to the node": (protocol.ToNode, protocol.ToWorker, 0.4),
    "to a worker": (protocol.ToWorker, protocol.ToNode, 0.4),
    "to a callee": (protocol.ToCallee, protocol.ToCaller, 0.1),
    "to a caller": (protocol.ToCaller, protocol.ToCallee, 0.1),
}


class Wire(asyncio.Transport):
    """A transport that nothing goes out of: the test is the other side."""

    def __init__(self):
        super().__init__()
        self._closing = False

    def is_closing(self):
        return self._closing

    def abort(self):
        self._closing = True


class Reader:
    """A channel that is fed by hand, as an event loop feeds one."""

    def __init__(self, types):
        self.messages = []
        self.ends = []
        self._channel = Channel(types, self.messages.append, self.ends.append, limit_bytes=frames.LIMIT_BYTES)
        self._wire = Wire()
        self._channel.connection_made(self._wire)

    def feed(self, data):
        while data and not self._wire.is_closing():
            room = self._channel.get_buffer(-1)
            taken = min(len(room), len(data))
            room[:taken] = data[:taken]
            room.release()
            self._channel.buffer_updated(taken)
            data = data[taken:]

    def end(self):
        if not self._wire.is_closing():
            self._channel.eof_received()
        self._channel.connection_lost(None)
        return self.ends[0]

    def room_bytes(self):
        return len(self._channel._buffer)


def read(direction, pieces):
    """Feeds a stream in these pieces: what came of it, the error, and the channel."""
    reader = Reader(direction.types)
    for piece in pieces:
        reader.feed(piece)
    error = reader.end()
    assert len(reader.ends) == 1
    assert reader.room_bytes() <= BUFFER_BYTES
    messages = [msgspec.to_builtins(message, builtin_types=(bytes,)) for message in reader.messages]
    return frames.Read(messages, well=error is None), error


def cut(rng, stream):
    places = sorted(rng.randint(0, len(stream)) for _ in range(rng.choice((0, 0, 1, 3))))
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


@pytest.mark.covers("A22")
@pytest.mark.parametrize("name", DIRECTIONS)
async def test_broken_frames(name):
    """Whatever bytes come, in whatever pieces: the messages before what is broken arrive, then one ProtocolError."""
    types, others, share = DIRECTIONS[name]
    direction = frames.Direction(types, others)
    seed = random.randrange(2**32) if FUZZ else 8
    rng = random.Random(seed)
    ended_well = 0
    for number in range(round(STREAMS * share)):
        stream = direction.broken(rng)
        expected = direction.read(stream)
        got, error = read(direction, cut(rng, stream))
        where = f"stream {number} of seed {seed}: {stream!r}"
        assert frames.same(got.messages, expected.messages), where
        assert got.well == expected.well, f"{where} ended with {error!r}"
        assert error is None or type(error) is ProtocolError, f"{where} ended with {error!r}"
        if error is not None:
            assert frames.SECRET not in "".join(traceback.format_exception(error)), where
        ended_well += got.well
    assert 0.1 < ended_well / round(STREAMS * share) < 0.9


@pytest.mark.covers("P32", "P33", "P34", "P35", "P36")
@pytest.mark.parametrize(
    ("tag", "needed"),
    [
        ("hello", {"version", "pid"}),
        ("init", {"space"}),
        ("run", {"run_id", "epoch", "attempt", "piece_id", "integration", "deadline_seconds", "idempotency_key"}),
        ("cancel", {"run_id", "reason"}),
        ("stop", set()),
        ("begun", {"run_id", "epoch"}),
        ("result", {"run_id", "epoch", "outcome"}),
    ],
)
async def test_what_a_message_needs(tag, needed):
    """Each message has to have what its meaning stands on, each of its type, and nothing that it does not know."""
    names = ("to the node", "to a worker")
    direction = next(d for d in (frames.Direction(*DIRECTIONS[name][:2]) for name in names) if tag in d.tags)
    rng = random.Random(8)
    while (message := direction.good(rng))["type"] != tag or not needed <= message.keys():
        continue

    def refused(changed):
        return not read(direction, [frames.framed(msgspec.msgpack.encode(changed))])[0].well

    assert not refused(message)
    assert {name for name in message if refused({k: v for k, v in message.items() if k != name})} == {"type"} | needed
    assert all(refused(message | {name: object_of_no_field}) for name in needed for object_of_no_field in (None, [1]))
    assert refused(message | {"more": 1})
