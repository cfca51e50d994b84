"""An app whose functions are called in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from piecework import App
from workers_seen import who

app = App("calls", config={"site": "News"})


@app.service(scope="run")
async def place(ctx):
    """Where it was made, and by its end a line in a file."""
    yield who()
    log = ctx.workspace.params.get("log")
    if log:
        Path(log).write_text("closed")


def add(a, b=0):
    """A plain function."""
    return a + b


def nothing():
    """Returns None."""


async def tell(ws, place):
    """What the workspace over there is like."""
    return {
        "process": who(),
        "place": place,
        "space": ws.space,
        "user": ws.user,
        "params": dict(ws.params),
        "site": ws.config["site"],
    }


async def order(ws, n):
    """Publishes with a transaction, and queues a mail that is never sent."""
    async with ws.database.transaction():
        receipt = await ws.publish("ordered", {"n": n})
    with suppress(ZeroDivisionError):
        async with ws.database.transaction():
            await ws.send_mail(to="ada@example.org", subject="Order", text="Thanks")
            raise ZeroDivisionError
    return receipt.event_id


async def announce(ws, number):
    """Publishes from over there."""
    receipt = await ws.publish("told", {"number": number}, id=f"told-{number}")
    return receipt.event_id


def fail(word):
    """Raises an error of its own."""
    raise ZeroDivisionError(word)


def no_json():
    """Returns what is no JSON value."""
    return object()


def die():
    """Is killed, as by the kernel that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    """Exits, as a library may."""
    os._exit(3)


def hang(pids):
    """Starts a program, writes down its pid, and never comes back."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(f"{pids}.new").write_text(str(program.pid))
    Path(f"{pids}.new").rename(pids)
    while True:
        pass


def hoard():
    """Takes memory as long as there is some."""
    held = []
    while True:
        held.append(bytearray(1 << 20))


def hoard_together():
    """Has other programs take memory, each less than one may."""
    program = "held = bytearray(30 << 20); import signal; signal.pause()"
    for child in [subprocess.Popen([sys.executable, "-c", program]) for _ in range(5)]:
        child.wait()


def start_many():
    """Starts more programs than it may."""
    for child in [subprocess.Popen(["sleep", "600"]) for _ in range(20)]:
        child.wait()


def spin():
    """Uses a processor, and never ends."""
    while True:
        pass


def here():
    """Its working folder."""
    return os.getcwd()  # noqa: PTH109 - as a text


async def wait_for_cancel(ws, place, begun):
    """Waits for ever, on the loop."""
    import asyncio

    Path(begun).write_text("begun")
    await asyncio.Event().wait()


async def nested(ws):
    """Wants a process inside a process."""
    return await ws.workspace(isolation="process").run(add, 1)


@app.job("double")
async def double(n: int):
    """A job that others wait for."""
    return 2 * n


async def wait_for_a_job(ws, n):
    """Has a job run by the node, and gives what it came to."""
    return await ws.run_background_job("double", n=n)


async def notify(ws, email):
    """Has somebody told."""
    tell = await ws.require("notify")
    return await tell({"email": email}, "Hello")
