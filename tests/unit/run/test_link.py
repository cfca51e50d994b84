"""Promises about the link between a node and those that ask it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from piecework.errors import (
    InvalidStateError,
    NoNodeError,
    NotFoundError,
    ProtocolError,
    RemoteError,
    StoppedError,
    StoreError,
    ValidationError,
)
from piecework.process import protocol
from piecework.process.protocol import Ask, Channel, Hello, Reply
from piecework.run.link import LinkClient
from piecework.run.link_server import LinkServer, socket_path
from piecework.store.lockfile import LockFile


class Node:
    """A node as far as the link sees one: it holds the lock, and answers."""

    def __init__(self, store):
        self.store = store
        self.lock = LockFile(store)
        self.server = LinkServer(self.answer, beside=store)
        self.asked = asyncio.Queue()
        self.go_on = asyncio.Event()
        self.done = []

    async def start(self):
        self.lock.acquire()
        self.lock.describe(socket=str(await self.server.start()))
        return self

    async def stop(self):
        await self.server.stop()
        if self.lock.note:
            self.lock.release()

    async def answer(self, op, args):
        self.asked.put_nowait(op)
        match op:
            case "echo":
                return args
            case "wait":
                await self.go_on.wait()
                self.done.append(op)
                return "waited"
            case "refuse":
                raise NotFoundError("there is no such thing")
            case "break":
                raise KeyError("a fault of ours")
            case "large":
                return "x" * (protocol.FRAME_LIMIT_BYTES + 1)
        return None


@pytest.fixture
async def node(tmp_path):
    node = await Node(tmp_path / "store.db").start()
    yield node
    await node.stop()


@pytest.fixture
async def client(node):
    async with await LinkClient.connect(node.store, timeout_seconds=0) as client:
        yield client


@pytest.fixture
async def raw(node):
    """A channel to the node that says only what the test says."""
    got, ended = asyncio.Queue(), asyncio.get_running_loop().create_future()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(node.lock.note["socket"])
    channel = await Channel.open(sock, Hello | Reply, got.put_nowait, ended.set_result)
    channel.got, channel.ended = got, ended
    yield channel
    channel.close()
    await ended


async def test_a_question_is_answered(client):
    """What is asked goes to the node, what it returns comes back."""
    assert await client.ask("echo", text="hello", number=7) == {"text": "hello", "number": 7}


async def test_an_error_arrives_as_what_it_was(client):
    """An error of ours is raised at the client as its own class, with its words."""
    with pytest.raises(NotFoundError, match="there is no such thing"):
        await client.ask("refuse")


async def test_a_fault_is_told_with_its_type(client, caplog):
    """Any other exception is a RemoteError that names its type; the node goes on."""
    with pytest.raises(RemoteError, match="KeyError: 'a fault of ours'"):
        await client.ask("break")
    assert await client.ask("echo") == {}


async def test_a_slow_answer_holds_up_nobody(node, client):
    """Questions on one connection are answered side by side."""
    waiting = asyncio.ensure_future(client.ask("wait"))
    assert await node.asked.get() == "wait"
    assert await client.ask("echo", n=1) == {"n": 1}
    node.go_on.set()
    assert await waiting == "waited"


async def test_many_clients_are_served(node):
    """Clients have connections of their own."""
    clients = [await LinkClient.connect(node.store, timeout_seconds=0) for _ in range(5)]
    assert await asyncio.gather(*(client.ask("echo", n=n) for n, client in enumerate(clients))) == [
        {"n": n} for n in range(5)
    ]
    for client in clients:
        await client.close()


async def test_an_answer_too_large_for_a_frame_is_told(client):
    """What no frame carries is an error for the one who asked, not the end of the connection."""
    with pytest.raises(ValidationError, match="more than the"):
        await client.ask("large")
    assert await client.ask("echo") == {}


async def test_a_question_too_large_is_refused_here(client):
    """Arguments that no frame carries are not sent."""
    with pytest.raises(ValidationError, match="more than the"):
        await client.ask("echo", text="x" * (protocol.FRAME_LIMIT_BYTES + 1))


async def test_the_socket_lies_beside_the_store_and_is_its_users_alone(node):
    """It is named after the store file, with mode 0600."""
    path = Path(f"{node.store}.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert node.lock.note["socket"] == str(path)


async def test_a_stopped_node_leaves_no_socket(tmp_path):
    """The socket file goes with the node; stopping twice is harmless."""
    node = await Node(tmp_path / "store.db").start()
    await node.stop()
    await node.server.stop()
    assert not Path(f"{node.store}.sock").exists()


async def test_a_dead_nodes_socket_is_replaced(tmp_path):
    """What a killed node left behind is in nobody's way."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "store.db.sock"))
    node = await Node(tmp_path / "store.db").start()
    async with await LinkClient.connect(node.store, timeout_seconds=0) as client:
        assert await client.ask("echo") == {}
    await node.stop()


async def test_a_file_of_somebodys_is_not_replaced(tmp_path):
    """A file at the socket's place that is no socket is left alone."""
    other = tmp_path / "store.db.sock"
    other.write_text("mine")
    server = LinkServer(None, beside=tmp_path / "store.db")
    with pytest.raises(StoreError, match="cannot be served"):
        await server.start()
    assert other.read_text() == "mine"


async def test_a_link_starts_once(node):
    """A second start is refused."""
    with pytest.raises(InvalidStateError):
        await node.server.start()


async def test_a_long_path_gets_a_socket_in_a_folder_of_its_users(tmp_path, monkeypatch):
    """Where the path beside the store is longer than an address, the socket lies in a 0700 folder; clients find it."""
    with tempfile.TemporaryDirectory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folder = tmp_path / ("long" * 30)
        folder.mkdir()
        node = await Node(folder / "store.db").start()
        path = Path(node.lock.note["socket"])
        assert path.parent == Path(runtime, "piecework")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        async with await LinkClient.connect(node.store, timeout_seconds=0) as client:
            assert await client.ask("echo") == {}
        await node.stop()


def test_a_folder_that_others_can_enter_is_not_used(tmp_path, monkeypatch):
    """A folder for sockets that is not this user's alone is refused."""
    with tempfile.TemporaryDirectory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        folder = Path(runtime, "piecework")
        folder.mkdir()
        folder.chmod(0o755)
        with pytest.raises(StoreError, match="not a folder of this user's alone"):
            socket_path(tmp_path / ("long" * 30) / "store.db")


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path, monkeypatch):
    """A symbolic link at the folder's place is refused, wherever it leads."""
    with tempfile.TemporaryDirectory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        Path(runtime, "piecework").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="not a folder of this user's alone"):
            socket_path(tmp_path / ("long" * 30) / "store.db")


async def test_without_a_node_it_is_said_how_to_start_one(tmp_path):
    """No node is an error that tells the command to start one."""
    with pytest.raises(NoNodeError, match=r"piecework serve MODULE:APP --store sqlite:///.*store.db"):
        await LinkClient.connect(tmp_path / "store.db", timeout_seconds=0)


async def test_a_client_waits_for_a_node_that_is_coming(tmp_path):
    """Within its time limit a client waits until a node answers."""
    connecting = asyncio.ensure_future(LinkClient.connect(tmp_path / "store.db", timeout_seconds=20))
    await asyncio.sleep(0)
    node = await Node(tmp_path / "store.db").start()
    async with await connecting as client:
        assert await client.ask("echo") == {}
    await node.stop()


async def test_an_owner_that_answers_nobody_is_named(tmp_path):
    """A process that holds the store without serving clients is named by its pid."""
    lock = LockFile(tmp_path / "store.db")
    lock.acquire()
    with pytest.raises(NoNodeError, match=f"process {os.getpid()} has the store"):
        await LinkClient.connect(tmp_path / "store.db", timeout_seconds=0)
    lock.release()


async def test_a_stopping_node_finishes_its_answers(node, client):
    """What is being answered when the node stops still gets its answer, if it takes no longer than the grace."""
    waiting = asyncio.ensure_future(client.ask("wait"))
    await node.asked.get()
    stopping = asyncio.ensure_future(node.server.stop(grace_seconds=20))
    await asyncio.sleep(0)
    node.go_on.set()
    assert await waiting == "waited"
    await stopping


async def test_a_stopping_node_tells_whom_it_cannot_answer(node, client):
    """What takes longer than the grace gets STOPPED."""
    waiting = asyncio.ensure_future(client.ask("wait"))
    await node.asked.get()
    await node.server.stop(grace_seconds=0)
    with pytest.raises(StoppedError, match="wait was done is unknown"):
        await waiting


async def test_after_the_end_nothing_is_sent(node, client):
    """A question on a connection that has ended is refused as not sent."""
    await node.server.stop()
    await client.close()
    with pytest.raises(NoNodeError, match="was not sent"):
        await client.ask("echo")


async def test_what_was_asked_is_done_though_the_asker_went(node):
    """A client that goes away does not stop what it asked for."""
    client = await LinkClient.connect(node.store, timeout_seconds=0)
    waiting = asyncio.ensure_future(client.ask("wait"))
    await node.asked.get()
    await client.close()
    with pytest.raises(NoNodeError, match="unknown"):
        await waiting
    node.go_on.set()
    await node.server.stop(grace_seconds=20)
    assert node.done == ["wait"]


async def test_a_client_of_another_version_is_parted_with(raw):
    """Both say hello; with a version that is not its own the node speaks no further."""
    raw.send(Hello(version=protocol.VERSION + 1, pid=1))
    raw.send(Ask(id=1, op="echo"))
    await raw.ended
    assert raw.got.get_nowait().version == protocol.VERSION
    assert raw.got.empty()


async def test_a_node_of_another_version_is_told(tmp_path):
    """A client that meets a node of another version says so and asks nothing."""
    lock = LockFile(tmp_path / "store.db")
    lock.acquire()
    peers = []

    async def greet(_reader, writer):
        message = protocol._encoder.encode(Hello(version=99, pid=7))
        writer.write(len(message).to_bytes(4, "big") + message)
        peers.append(writer)

    server = await asyncio.start_unix_server(greet, tmp_path / "other.sock")
    lock.describe(socket=str(tmp_path / "other.sock"))
    with pytest.raises(ProtocolError, match=r"process 7.*version 99"):
        await LinkClient.connect(tmp_path / "store.db", timeout_seconds=0)
    for writer in peers:
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
    lock.release()


async def test_a_question_before_the_hello_ends_the_connection(raw, node):
    """Who does not say hello is not answered."""
    raw.send(Ask(id=1, op="echo"))
    await raw.ended
    assert node.asked.empty()


async def test_garbage_ends_that_connection_only(node, client):
    """Bytes that are no frame end their connection; the others go on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(node.lock.note["socket"])
        sock.sendall(b"\xff" * 64)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                if not await loop.sock_recv(sock, 4096):
                    break
            except ConnectionResetError:
                break
    assert await client.ask("echo") == {}


async def run_python(code, *args, **options):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, **options
    )


CLIENT = """
import asyncio, sys
from pathlib import Path
from piecework.run.link import LinkClient

async def main():
    async with await LinkClient.connect(Path(sys.argv[1]), timeout_seconds=0) as client:
        print(await client.ask("echo", text="from afar"), client.node_pid)

asyncio.run(main())
"""

NODE = """
import asyncio, sys
from pathlib import Path
from piecework.run.link_server import LinkServer
from piecework.store.lockfile import LockFile

async def answer(op, args):
    print("asked", flush=True)
    await asyncio.Event().wait()

async def main():
    lock = LockFile(Path(sys.argv[1]))
    lock.acquire()
    server = LinkServer(answer, beside=Path(sys.argv[1]))
    lock.describe(socket=str(await server.start()))
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_another_process_is_answered(node):
    """A client in a process of its own finds the node by the note in the lock file."""
    process = await run_python(CLIENT, str(node.store))
    output, _ = await process.communicate()
    assert output.decode() == f"{{'text': 'from afar'}} {os.getpid()}\n"
    assert process.returncode == 0


async def test_a_node_that_dies_leaves_an_unknown(tmp_path):
    """When the node is killed before it answered, the client hears that the outcome is unknown."""
    store = tmp_path / "store.db"
    process = await run_python(NODE, str(store))
    try:
        assert await process.stdout.readline() == b"ready\n"
        async with await LinkClient.connect(store, timeout_seconds=0) as client:
            waiting = asyncio.ensure_future(client.ask("publish"))
            assert await process.stdout.readline() == b"asked\n"
            process.kill()
            with pytest.raises(
                NoNodeError, match=rf"process {process.pid}.*whether publish was done is unknown"
            ) as told:
                await waiting
        assert told.value.unknown
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.stdin.close()
        await process.communicate()
    with pytest.raises(NoNodeError, match="no node runs"):
        await LinkClient.connect(store, timeout_seconds=0)


STRANGER = """
import os, socket, sys
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
data = b""
while chunk := sock.recv(4096):
    data += chunk
sys.stdout.buffer.write(data)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_refused():
    """Whoever reaches the socket as another user is told so and not served."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        node = await Node(Path(folder, "store.db")).start()
        Path(node.lock.note["socket"]).chmod(0o666)
        process = await run_python(STRANGER, node.lock.note["socket"])
        output, _ = await process.communicate()
        assert b"not to user 65534" in output
        await node.stop()
