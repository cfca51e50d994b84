"""The application of the benchmarks of spaces: pieces that behave, and pieces that do not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from piecework import App, Success

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

app = App("bench", import_path="spaces_app:app")
ALL_THE_TIME = 0.001
AT_ONCE = 16
BLOCK_BYTES = 32 * 1024 * 1024


@app.piece("echo")
async def echo(piece: Any) -> Success:
    """Does nothing, and says so."""
    return Success({"config": piece.config})


@app.piece("neighbour", every_seconds=0.5)
async def neighbour(_piece: Any) -> Success:
    """Tells when it began."""
    return Success({"began": time.time()})


@app.piece("quiet", every_seconds=3600)
async def quiet(_piece: Any) -> None:
    """Has nothing to do."""


@app.piece("segfault", every_seconds=3600)
async def segfault(_piece: Any) -> None:
    """Takes its worker down as a broken library does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    await asyncio.Event().wait()


@app.piece("exits", every_seconds=3600)
async def exits(_piece: Any) -> None:
    """Takes its worker down without a word."""
    os._exit(3)


@app.piece("computes", every_seconds=3600)
async def computes(piece: Any) -> None:
    """Takes a whole core."""
    end = time.monotonic() + piece.config["seconds"]
    while time.monotonic() < end:
        pass


@app.piece("deaf", every_seconds=3600, timeout_seconds=0.2)
async def deaf(_piece: Any) -> None:
    """Takes a whole core, and ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.monotonic()


@app.piece("hoards", every_seconds=3600)
async def hoards(piece: Any) -> None:
    """Fills a quarter of a gigabyte, again and again."""
    end = time.monotonic() + piece.config["seconds"]
    while time.monotonic() < end:
        kept: list[bytes] = []
        while len(kept) < 8 and time.monotonic() < end:
            kept.append(b"x" * BLOCK_BYTES)
            await asyncio.sleep(0)


@app.piece("forks", every_seconds=3600)
async def forks(piece: Any) -> None:
    """Starts processes as fast as it can, sixteen at a time: a fork bomb that does not go off."""
    end = time.monotonic() + piece.config["seconds"]
    children: set[int] = set()
    while time.monotonic() < end or children:
        while len(children) < AT_ONCE and time.monotonic() < end:
            pid = os.fork()
            if not pid:
                os._exit(0)
            children.add(pid)
        pid, _ = os.waitpid(-1, 0)  # noqa: ASYNC222 - it is to be a nuisance
        children.discard(pid)


@app.piece("blocks", every_seconds=3600)
async def blocks(piece: Any) -> None:
    """Keeps its worker's loop from turning."""
    time.sleep(piece.config["seconds"])  # noqa: ASYNC251 - that is what it is for


def arrived(connection: Connection) -> None:
    """What a spawned process calls: everything is imported by now."""
    connection.send(b"ready")
