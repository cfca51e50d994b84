"""A tiny application for real zygotes: pieces that behave, and pieces that do not."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from piecework.errors import NotFoundError
from piecework.process import inside
from piecework.process.protocol import Result
from piecework.run.outcome import RetryAfter, Skipped, Success
from piecework.space.piece import PieceDefinition

PIECES = {}
GENERATOR = random.Random()
MAKING = []


def say(text):
    sys.stdout.write(f"{text}\n")


def piece(name, **options):
    def define(fn):
        PIECES[name] = PieceDefinition(integration=name, fn=fn, **options)
        return fn

    return define


class StubWorkspace:
    def __init__(self, ask):
        self._ask = ask

    async def publish(self, type, payload, *, id=None):  # noqa: A002 - the event's own words
        return await self._ask("publish", {"type": type, "payload": payload, "id": id})

    async def require(self, name):
        return {"name": name}


class StubHost:
    def __init__(self, ask):
        self._ask = ask

    def piece(self, integration):
        if integration not in PIECES:
            raise NotFoundError.among("piece kind", integration, PIECES)
        return PIECES[integration]

    def being_made(self, integration):
        return MAKING

    @contextlib.asynccontextmanager
    async def workspace(self, *, space, key, integration=None, params=None):
        yield StubWorkspace(self._ask)


class StubApp:
    @contextlib.asynccontextmanager
    async def worker_side(self, init, ask):
        if init.config.get("exits"):
            os._exit(7)
        if init.config.get("broken"):
            raise RuntimeError("the database is not there")
        if init.config.get("slow"):
            await ask("publish", {"type": "told", "payload": {"word": "opening"}})
            await asyncio.Event().wait()
        say(f"open {init.space}")
        yield StubHost(ask)
        say(f"closed {init.space}")


app = StubApp()


def create_app():
    return StubApp()


async def told(piece, word):
    await piece.publish("told", {"word": word, "pid": os.getpid()})


@piece("plain")
async def plain(piece):
    piece.state["count"] = piece.state.get("count", 0) + 1
    return Success({"config": piece.config, "attempt": piece.attempt})


@piece("makes")
async def makes(piece):
    """Waits for a service that others would wait for as well."""
    MAKING.append("session")
    await asyncio.Event().wait()


@piece("sync")
def sync(piece):
    return Skipped("not modified")


@piece("later")
async def later(piece):
    return RetryAfter(seconds=5)


@piece("returns-coroutine")
def returns_coroutine(piece):
    return plain(piece)


@piece("junk")
async def junk(piece):
    return 42


@piece("unjson")
async def unjson(piece):
    return Success(object())


@piece("raises")
async def raises(piece):
    piece.state["count"] = 99
    raise LookupError("no such feed")


@piece("spawns")
async def spawns(piece):
    async def child():
        await told(piece, "child began")
        await told(piece, "child ended")

    piece.spawn(child())


@piece("strict", accounting="strict")
async def strict(piece):
    asyncio.get_running_loop().create_task(asyncio.sleep(3600))


@piece("spawns-failing")
async def spawns_failing(piece):
    async def child():
        await asyncio.sleep(0)
        raise ValueError("boom in a child")

    piece.kept = asyncio.ensure_future(child())


@piece("never-awaited")
async def never_awaited(piece):
    told(piece, "never")


@piece("detaches")
async def detaches(piece):
    async def child():
        await told(piece, "detached")

    piece.detached(child())


@piece("thread")
async def thread(piece):
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, lambda: asyncio.run_coroutine_threadsafe(told(piece, "thread"), loop).result())


@piece("forever")
async def forever(piece):
    await told(piece, "began")
    await asyncio.Event().wait()


@piece("multiprocesses")
async def multiprocesses(piece):
    child = multiprocessing.get_context("spawn").Process(target=abs, args=(1,))
    child.start()
    await asyncio.to_thread(child.join, 20)
    return Success(child.exitcode)


@piece("stubborn")
async def stubborn(piece):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    await told(piece, child.pid)
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@piece("litters")
async def litters(piece):
    """Leaves a program in a session of its own and a daemon behind."""
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    subprocess.run(["sh", "-c", "setsid sleep 3600 >/dev/null 2>&1 &"], check=True)
    await told(piece, "littered")
    await asyncio.Event().wait()


@piece("forks")
async def forks(piece):
    """Forks a process that does not end by itself, but comes back from the update, and tells how it ended."""
    how, pid = piece.config["how"], os.fork()
    if not pid:
        if how == "raises":
            raise LookupError("in the child")
        if how == "awaits":
            await asyncio.sleep(0.01)
        if how == "is terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        return Success({"ended": "by the child"})
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    return Success({"ended": os.waitstatus_to_exitcode(status)})


@piece("flees")
async def flees(piece):
    """Starts a process that is never the same for long: each forks the next one and ends; thousands, then no more."""
    if not os.fork():
        for _ in range(5000):
            if os.fork():
                os._exit(0)
        Path(piece.config["escaped"]).touch()
        os._exit(0)
    await told(piece, "fleeing")
    await asyncio.Event().wait()


@piece("busy")
async def busy(piece):
    await told(piece, "began")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.monotonic()


@piece("cleans-up")
async def cleans_up(piece):
    try:
        say("working")
        while True:
            time.monotonic()
    finally:
        say("cleaned up")


@piece("exits")
async def exits(piece):
    await told(piece, "exiting")
    os._exit(3)


@piece("segfaults")
async def segfaults(piece):
    os.kill(os.getpid(), signal.SIGSEGV)


@piece("blocks")
async def blocks(piece):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    await told(piece, "blocking")
    signal.sigwait({signal.SIGUSR1})
    await asyncio.sleep(0)


@piece("together")
async def together(piece):
    await piece.publish("together", {"who": piece.config["who"]})
    if piece.config["who"] == "culprit":
        os._exit(3)


@piece("held")
async def held(piece):
    await piece.publish("held", {"word": "held"})


@piece("forges")
async def forges(piece):
    late = Result(run_id="r1", epoch=1, outcome={"name": "success", "data": "late"})
    frame = msgspec.msgpack.encode(late)
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=os.dup(descriptor))
            if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
                sock.sendall(len(frame).to_bytes(4, "big") + frame)
    return Success("in time")


@piece("garbage")
async def garbage(piece):
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=os.dup(descriptor))
            sock.sendall(b"\x00\x00\x00\x03abc")
    await asyncio.Event().wait()


@piece("meets")
async def meets(piece):
    await piece.publish("meet", {})


@piece("asks-wrongly")
async def asks_wrongly(piece):
    await piece.publish("refused", {})


@piece("logs")
async def logs(piece):
    piece.logger.info("hello", pages=3, thing=object)
    piece.logger.info("half a \ud800 pair", half="\ud800")
    say("printed")


@piece("environment")
async def environment(piece):
    return Success(dict(os.environ))


@piece("privileges")
async def privileges(piece):
    """What the kernel lets this process do, and which processes it sees."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split(":")[1].strip() for line in lines if line.startswith("Cap")}
    seen = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    core = resource.getrlimit(resource.RLIMIT_CORE)
    return Success({"capabilities": found, "seen": seen, "pid": os.getpid(), "core": list(core)})


@piece("tidies")
async def tidies(piece):
    untidy = sys.modules["untidy_app"]
    return Success([untidy.THREAD.is_alive(), untidy.SEEN])


@piece("inside")
async def is_inside(piece):
    return Success(inside())


@piece("random")
async def shuffled(piece):
    return Success(str(GENERATOR.random()))
