"""Pieces that start all kinds of things, for real workers."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

from stub_app import StubApp, piece, told

from piecework.run.outcome import Success

app = StubApp()
HELD = []
WAITS = "import sys; open(sys.argv[1]).read(); open(sys.argv[2], 'w').close()"
DAEMON = f"import os; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); {WAITS}"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0, flush=True); signal.pause()"


def wait_and_leave(fifo, done):
    """What the programs do, as a function."""
    Path(fifo).read_text()
    Path(done).touch()


async def start(how, fifo, done):
    """Starts a process that ends when the fifo is written to, and makes a file then."""
    command = [sys.executable, "-c", WAITS, fifo, done]
    if how == "popen":
        HELD.append(subprocess.Popen(command))
    elif how == "in a thread":
        HELD.append(await asyncio.to_thread(subprocess.Popen, command))
    elif how == "asyncio":
        HELD.append(await asyncio.create_subprocess_exec(*command))
    elif how == "system":
        os.system(f"{shlex.join(command)} &")
    elif how == "spawn":
        os.posix_spawn(sys.executable, command, os.environ)
    elif how == "fork":
        if not os.fork():
            wait_and_leave(fifo, done)
            os._exit(0)
    elif how == "multiprocessing":
        process = multiprocessing.get_context("spawn").Process(target=wait_and_leave, args=(fifo, done))
        process.start()
        HELD.append(process)
    else:
        subprocess.run([sys.executable, "-c", DAEMON, fifo, done], check=True)


@piece("program")
async def program(piece):
    await start(**piece.config)


@piece("strict-program", accounting="strict")
async def strict_program(piece):
    child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    await told(piece, child.pid)


@piece("deaf-program")
async def deaf_program(piece):
    child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    await told(piece, child.pid)
    await asyncio.Event().wait()


@piece("short-programs")
async def short_programs(piece):
    done = [subprocess.run(["true"], check=False).returncode, os.system("true")]
    done.append(await (await asyncio.create_subprocess_exec("true")).wait())
    return Success(done)


@piece("abandons")
async def abandons(piece):
    async def rows():
        try:
            yield 1
            yield 2
        finally:
            await told(piece, "closed")
            if piece.config.get("fail"):
                raise ValueError("while closing")

    async for row in rows():
        if row:
            break


@piece("stray")
async def stray(piece):
    def callback():
        raise ValueError("in a callback")

    asyncio.get_running_loop().call_soon(callback)


@piece("stray-thread")
async def stray_thread(piece):
    async def fails():
        raise ValueError("from a thread")

    def work():
        loop.call_soon_threadsafe(loop.create_task, fails())

    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, work)


@piece("leaves-its-context")
async def leaves_its_context(piece):
    HELD.append(contextvars.copy_context())


@piece("goes-on-for-another")
async def goes_on_for_another(piece):
    def callback():
        raise ValueError("in a late callback")

    async def task():
        raise ValueError("in a late task")

    loop, context = asyncio.get_running_loop(), HELD.pop()
    loop.call_soon(callback, context=context)
    HELD.append(context.run(loop.create_task, task()))


@piece("forgets-in-a-circle")
async def forgets_in_a_circle(piece):
    circle = [told(piece, "never")]
    circle.append(circle)


@piece("leaves-a-thread")
async def leaves_a_thread(piece):
    threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()


@piece("exits-politely")
async def exits_politely(piece):
    sys.exit("enough")


@piece("prints")
def prints(piece):
    for word in piece.config["words"]:
        print(word, end="")  # noqa: T201 - what is tried


@piece("raises-without-words")
async def raises_without_words(piece):
    raise LookupError


@piece("tells-progress")
def tells_progress(piece):
    piece.progress(0.5, "half")


@piece("ignores")
async def ignores(piece):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@piece("strict-stubborn", accounting="strict")
async def strict_stubborn(piece):
    """Leaves a task behind that will not end."""

    async def stubborn_task():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    asyncio.get_running_loop().create_task(stubborn_task())


@piece("leaves-a-program")
async def leaves_a_program(piece):
    """Returns at once, and leaves a program behind that does not end by itself."""
    subprocess.Popen(["sleep", "3600"])
