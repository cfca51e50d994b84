"""Broken frames between a real node and real workers: the worker ends, with an error that names why, and nothing else.

`PIECEWORK_FUZZ` (any number but 0) breaks a thousand connections, other ones each time, instead of a few.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import traceback
from functools import partial
from pathlib import Path

import msgspec
import pytest

import frames
from piecework.config import Settings
from piecework.errors import ProtocolError
from piecework.process import linux, protocol
from piecework.process.launch import Zygote
from piecework.process.protocol import Cancel, Channel, Fatal, Hello, Init, Ready, Reply, Result, Run, Stop
from piecework.space.controller import Controller, WorkerDied

FUZZ = int(os.environ.get("PIECEWORK_FUZZ", "0"))
CONNECTIONS = 500 if FUZZ else 25  # in each direction
QUICK = Settings(space_grace_seconds=0.5)

pytestmark = [
    pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds"),
    pytest.mark.timeout(600 if FUZZ else 60),
]


class Node:
    """A zygote, and controllers over it."""

    def __init__(self):
        paths = [str(Path(__file__).parent), *sys.path]
        self.lines = []
        self.asked = asyncio.Queue()
        self.zygote = Zygote("frames_app:app", paths=paths, on_output=lambda line, space: self.lines.append(line))

    async def on_ask(self, op, args, run_id):
        self.asked.put_nowait(op)  # no await: the answer goes out before anybody can take this

    async def controller(self, space="acme"):
        made = Controller(self.zygote, space, Init(space=space), QUICK, self.on_ask, lambda log: None)
        await made.start()
        return made


@pytest.fixture
async def node():
    before = linux.children(os.getpid())
    node = Node()
    await node.zygote.start()
    yield node
    await node.zygote.stop()
    assert linux.children(os.getpid()) <= before


class Peer:
    """A worker that is spoken to by hand: what it said, and how it ended."""

    def __init__(self):
        self.heard = asyncio.Queue()

    @classmethod
    async def meet(cls, node):
        peer = cls()
        peer.child = await node.zygote.fork("acme")
        peer.channel = await Channel.open(
            peer.child.channel_socket, protocol.ToNode, peer.heard.put_nowait, peer.heard.put_nowait
        )
        assert isinstance(await peer.heard.get(), Hello)
        return peer

    async def says(self, *messages):
        """Sends messages and answers all that the worker said until its end, and its exit status."""
        for message in messages:
            self.channel.send(message)
        heard = []
        while isinstance(one := await self.heard.get(), protocol.Message):
            heard.append(one)
        return heard, await self.child.dead()


def a_run(integration, run_id="r1", **fields):
    given = {"epoch": 1, "attempt": 1, "piece_id": "p1", "deadline_seconds": 60, "idempotency_key": run_id}
    return Run(run_id=run_id, integration=integration, **given | fields)


def told(error):
    return "".join(traceback.format_exception(error))


@pytest.fixture
def rng():
    seed = random.randrange(2**32) if FUZZ else 8
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    return random.Random(seed)


@pytest.mark.covers("A22", "P29")
async def test_workers_that_send_broken_frames(node, rng):
    """A worker that sends what is no frame ends with that, named, and its run is charged; other workers serve on."""
    bystander = await node.controller("bystander")
    direction = frames.Direction(protocol.ToNode, protocol.ToWorker, protocol.FRAME_LIMIT_BYTES)
    for number in range(CONNECTIONS):
        worker = await node.controller()
        assert (await worker.run(a_run("plain"), 60)).outcome["name"] == "success"
        stream = direction.surely_broken(rng)
        with pytest.raises(WorkerDied) as died:
            await worker.run(a_run("sends", "ours", config={"stream": stream.hex()}), 60)
        assert died.value.charged, f"stream {number}: {stream!r}"
        assert isinstance(died.value.__cause__, ProtocolError), f"stream {number}: {stream!r}"
        assert frames.SECRET not in told(died.value) + "".join(node.lines), f"stream {number}: {stream!r}"
    assert (await bystander.run(a_run("plain"), 60)).outcome["name"] == "success"
    await bystander.stop()


@pytest.mark.covers("A22", "P37")
async def test_workers_that_are_sent_broken_frames(node, rng):
    """A worker that is sent what is no frame says so and ends; neither its words nor its output have what came."""
    bystander = await node.controller("bystander")
    direction = frames.Direction(protocol.ToWorker, protocol.ToNode, protocol.FRAME_LIMIT_BYTES)
    for number in range(CONNECTIONS):
        worker = await node.controller()
        running = asyncio.ensure_future(worker.run(a_run("forever", "ours"), 60))
        await node.asked.get()
        stream = direction.surely_broken(rng)
        wire = worker._channel._transport
        wire.write(stream)
        wire.write_eof()
        with pytest.raises(WorkerDied) as died:
            await running
        assert died.value.status == 1, f"stream {number}: {stream!r}"
        assert isinstance(died.value.__cause__, ProtocolError), f"stream {number}: {stream!r}"
        assert frames.SECRET not in told(died.value) + "".join(node.lines), f"stream {number}: {stream!r}"
    assert (await bystander.run(a_run("plain"), 60)).outcome["name"] == "success"
    await bystander.stop()


READY = Init(space="acme")


@pytest.mark.covers("P39", "A22")
@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([a_run("plain")], "a Run came before"),
        ([READY, READY], "an Init came twice"),
        ([READY, a_run("forever"), a_run("forever", epoch=2)], "under another owner"),
    ],
)
async def test_messages_out_of_turn(node, messages, why):
    """A run before the init, a second init, a run under way that gets a later epoch: the worker says so and ends."""
    peer = await Peer.meet(node)
    if len(messages) > 2:  # a run has to find the worker ready
        peer.channel.send(messages.pop(0))
        assert isinstance(await peer.heard.get(), Ready)
    heard, status = await peer.says(*messages)
    assert isinstance(heard[-1], Fatal)
    assert (heard[-1].error["code"], why in heard[-1].error["message"], status) == ("PROTOCOL", True, 1)


@pytest.mark.covers("P39", "P32")
@pytest.mark.parametrize("messages", [[Stop()], [Stop(), Stop()], [READY, Stop()]])
async def test_stop_at_any_time(node, messages):
    """A stop ends a worker in order, whether or not it has begun, and once more changes nothing."""
    heard, status = await (await Peer.meet(node)).says(*messages)
    assert (status, [message for message in heard if isinstance(message, Fatal)]) == (0, [])


@pytest.mark.covers("P38")
async def test_init_that_is_refused(node):
    """A well-formed init that the application cannot be opened with ends the worker, which says why."""
    heard, status = await (await Peer.meet(node)).says(Init(space="acme", config={"broken": True}))
    assert (heard[-1].error["message"], status) == ("the database is not there", 1)


@pytest.mark.covers("P29", "P34", "P39", "A22")
async def test_duplicates_and_strangers(node):
    """The same run twice is one run, a stale epoch none; a cancel or a reply of something unknown changes nothing."""
    peer = await Peer.meet(node)
    peer.channel.send(READY)
    assert isinstance(await peer.heard.get(), Ready)
    once = a_run("counts", epoch=2)
    stale = msgspec.structs.replace(once, epoch=1)
    strangers = [Cancel(run_id="unknown", reason="TIMEOUT"), Reply(id=99, value=1)]
    for message in (once, once, stale, *strangers, a_run("unknown", "r2")):
        peer.channel.send(message)
    said = []
    while sum(isinstance(message, Result | protocol.Unknown) for message in said) < 2:
        said.append(message := await peer.heard.get())
        if isinstance(message, protocol.Ask):
            peer.channel.send(Reply(id=message.id, value=None))
    (result,) = [message for message in said if isinstance(message, Result)]
    (unknown,) = [message for message in said if isinstance(message, protocol.Unknown)]
    assert (result.run_id, result.outcome["name"], unknown.run_id) == ("r1", "success", "r2")
    assert len([message for message in said if isinstance(message, protocol.Ask)]) == 1
    assert await peer.says(Stop()) == ([], 0)


@pytest.mark.covers("P36")
@pytest.mark.parametrize(
    ("entry", "why"),
    [("from_another_time", "speaks version 2"), ("hasty", "a Ready came out of turn"), ("greets_twice", "out of turn")],
)
async def test_first_words(node, monkeypatch, entry, why):
    """A worker's first word is its hello, of our version, then ready when it has its init; else it is ended, named."""
    monkeypatch.setattr(node.zygote, "fork", partial(node.zygote.fork, entry=f"frames_app:{entry}"))
    with pytest.raises(WorkerDied, match=why) as died:
        await node.controller()
    assert isinstance(died.value.__cause__, ProtocolError)


@pytest.mark.covers("P29")
async def test_results_of_strangers(node):
    """A result of a run that the node does not wait for, or of another epoch of it, changes nothing."""
    results = [
        {"type": "result", "run_id": run_id, "epoch": epoch, "outcome": {"name": "skipped", "reason": ""}}
        for run_id, epoch in (("unknown", 1), ("ours", 7))
    ]
    results += [{"type": "unknown", "run_id": "ours", "epoch": 7, "message": ""}]
    results += [{"type": "left", "run_id": run_id, "epoch": 7, "making": "x"} for run_id in ("unknown", "ours")]
    stream = b"".join(frames.framed(msgspec.msgpack.encode(one)) for one in results)
    worker = await node.controller()
    with pytest.raises(WorkerDied, match=r"^the worker of space 'acme' ended \(") as died:
        await worker.run(a_run("sends", "ours", config={"stream": stream.hex()}), 60)
    assert died.value.__cause__ is None
