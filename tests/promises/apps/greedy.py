"""An app whose pieces take more than they may, one in each way, and look around."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import importlib
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zoneinfo import ZoneInfo

from piecework import App, Success

app = App("greedy")
MEBIBYTE = 1024 * 1024


@app.piece("modest", every_seconds=3600)
async def modest(piece):
    """Takes nothing, and counts how often it was asked."""
    piece.state["count"] = piece.state.get("count", 0) + 1
    return Success({"count": piece.state["count"], "pid": os.getpid()})


@app.piece("hoards", every_seconds=3600)
async def hoards(piece):
    """Takes 2 GiB in small steps."""
    held = [bytearray(MEBIBYTE) for _ in range(2048)]
    return Success(len(held))


@app.piece("hoards-together", every_seconds=3600)
async def hoards_together(piece):
    """Takes memory in several processes, each of them less than one may."""
    children = [
        start("held = bytearray(30 << 20); print(0, flush=True); import signal; signal.pause()") for _ in range(6)
    ]
    await asyncio.gather(*(asyncio.to_thread(child.stdout.readline) for child in children))
    await asyncio.Event().wait()


@app.piece("shares", every_seconds=3600)
def shares(piece):
    """Takes some memory and forks: what the processes share is there once."""
    held = bytearray(os.urandom(1)) * (50 * MEBIBYTE)
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            time.sleep(0.5)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return Success(len(held))


@app.piece("forks", every_seconds=3600)
def forks(piece):
    """Forks, and has each child do the same, as long as a count that they share has not come to its end."""
    left = mmap.mmap(-1, 8)
    left[:4] = (200).to_bytes(4, "little")
    while count := int.from_bytes(left[:4], "little"):
        left[:4] = (count - 1).to_bytes(4, "little")
        os.fork()
    signal.pause()


@app.piece("spins", every_seconds=3600)
async def spins(piece):
    """Uses a processor and never yields."""
    while True:
        time.monotonic()


@app.piece("spins-elsewhere", every_seconds=3600)
async def spins_elsewhere(piece):
    """Has another program use a processor."""
    start("while True: pass")
    await asyncio.Event().wait()


@app.piece("sleeps", every_seconds=3600)
async def sleeps(piece):
    """Does nothing, until it is told so by a file in its folder."""
    Path("sleeping").touch()
    while not Path("wake").exists():
        await asyncio.sleep(0.02)
    Path("wake").unlink()
    return Success()


@app.piece("opens", every_seconds=3600)
async def opens(piece):
    """Opens file after file."""
    held = [Path("/dev/null").open() for _ in range(10_000)]  # noqa: SIM115 - that is the point
    return Success(len(held))


@app.piece("fills", every_seconds=3600)
async def fills(piece):
    """Writes more than there is room for."""
    with open(piece.config.get("at", "large"), "wb") as file:  # noqa: PTH123 - a name may be relative
        for _ in range(piece.config.get("mebibytes", 64)):  # noqa: FURB122 - one after the other
            file.write(bytes(MEBIBYTE))


@app.piece("looks", every_seconds=3600)
async def looks(piece):
    """Tries to read, and to write, what it is told to."""
    return Success(
        {
            "read": {path: attempt(lambda path=path: Path(path).read_bytes()) for path in piece.config.get("read", ())},
            "write": {
                path: attempt(lambda path=path: Path(path).write_text("x")) for path in piece.config.get("write", ())
            },
            "cwd": str(Path.cwd()),
            "temporary": tempfile.gettempdir(),
        }
    )


@app.piece("works", every_seconds=3600)
async def works(piece):
    """Does what pieces do: rows, modules, times, certificates, names, programs, pools."""
    import ssl
    from concurrent.futures import ProcessPoolExecutor

    await piece.workspace.database.run("create table if not exists seen (id integer primary key, name text)")
    await piece.workspace.database.run("insert into seen (name) values ('a')")
    module = importlib.import_module("wave")
    with ProcessPoolExecutor(1) as pool:
        squared = await asyncio.get_running_loop().run_in_executor(pool, abs, -4)
    return Success(
        {
            "rows": (await piece.workspace.database.run("select count(*) as n from seen"))[0].n,
            "module": module.__name__,
            "zone": str(ZoneInfo("Europe/Paris")),
            "certificates": len(ssl.create_default_context().get_ca_certs()) >= 0,
            "name": socket.getaddrinfo("localhost", 80)[0][4][0],
            "program": subprocess.run(["true"], check=False).returncode,
            "pool": squared,
        }
    )


@app.piece("meddles", every_seconds=3600)
async def meddles(piece):
    """Tries what only the machine's owner should do."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = piece.config["node"]
    return Success(
        {
            "signal": attempt(lambda: os.kill(parent, 0)),
            "ptrace": errno.errorcode[ctypes.get_errno()] if libc.ptrace(16, parent, 0, 0) else "done",
            "mount": errno.errorcode[ctypes.get_errno()] if libc.mount(b"x", b"/tmp", b"tmpfs", 0, None) else "done",
            "tasks": resource.getrlimit(resource.RLIMIT_NPROC)[0],
            "new_privileges": Path("/proc/self/status").read_text().split("NoNewPrivs:\t")[1][0],
        }
    )


@app.piece("tells-all", every_seconds=3600)
async def tells_all(piece):
    """Reads all that it finds about itself and the processes above it, and answers where a word stands."""
    word = piece.config["half"] + piece.config["other_half"]
    places = {"os.environ": repr(dict(os.environ)).encode(), "argv": repr(sys.argv).encode()}
    for pid in ("self", str(os.getppid()), *(entry for entry in listed("/proc") if entry.isdigit())):
        for name in ("environ", "cmdline", "status", "maps"):
            places[f"{pid}/{name}"] = content(f"/proc/{pid}/{name}")
        for descriptor in listed(f"/proc/{pid}/fd"):
            places[f"{pid}/fd/{descriptor}"] = link(f"/proc/{pid}/fd/{descriptor}")
    return Success({"found": [place for place, text in places.items() if word.encode() in text], "looked": len(places)})


def start(program):
    """Starts a program of Python's."""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)


def attempt(action):
    """What an action comes to: "done", or the name of its error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def listed(path):
    """The names in a folder; none where it may not be read."""
    try:
        return [entry.name for entry in Path(path).iterdir()]
    except OSError:
        return []


def content(path):
    """What stands in a file; nothing where it may not be read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def link(path):
    """Where a link leads."""
    try:
        return str(Path(path).readlink()).encode()
    except OSError:
        return b""
