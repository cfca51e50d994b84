"""An app with one kind of piece for each thing that an update may do, good and bad."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from piecework import App, Backoff, Failed, RetryAfter, Skipped, Success, ThreeStrikes
from workers_seen import who

app = App("kinds", env={"LAYER": "app"}, config={"site": "News"})


@app.service(scope="app")
def shared():
    """One for each process."""
    return object()


@app.piece("plain", every_seconds=3600)
async def plain(piece):
    """Counts its updates, tells of itself, and shows what it was given."""
    piece.state["count"] = piece.state.get("count", 0) + 1
    piece.logger.info("looked", url=piece.config.get("url"))
    await piece.publish("told", {"piece_id": piece.piece_id, "pid": os.getpid()}, id=piece.config.get("event_id"))
    return Success({"count": piece.state["count"], "space": piece.space, "process": who()})


@app.job("double")
async def double(ws, n: int):
    """Where it ran, and twice a number."""
    return [os.getpid(), ws.space, 2 * n]


@app.piece("has-a-job", every_seconds=3600)
async def has_a_job(piece):
    """Awaits a job, which the node runs."""
    return Success(await piece.workspace.run_background_job("double", n=4))


@app.piece("sync", every_seconds=3600)
def sync(piece):
    """A plain function."""
    return Skipped(f"nothing new for {piece.piece_id}")


@app.piece("later", every_seconds=3600)
async def later(piece):
    """Wants to come back soon."""
    piece.state["asked"] = True
    return RetryAfter(seconds=30)


@app.piece("told-to", every_seconds=3600)
async def told_to(piece):
    """Fails as long as its configuration says so."""
    piece.state["touched"] = True
    if piece.config.get("fail"):
        raise RuntimeError("the feed is gone")


class BusyError(Exception):
    """A server that says when to come again."""

    retry_after = 100_000


def ail(piece):
    """Fails as a file says that its configuration names; not at all where that is empty."""
    ailment = Path(piece.config["ails"]).read_text()
    if ailment:
        raise {"down": ConnectionError, "forbidden": PermissionError, "busy": BusyError}[ailment](ailment)
    return Success()


app.piece("ails", every_seconds=3600, failure=Backoff(failures_limit=2, probe_seconds=1800))(ail)
app.piece("strikes", every_seconds=3600, failure=ThreeStrikes())(ail)


@app.piece("gives-up", every_seconds=3600)
async def gives_up(piece):
    """Fails for good."""
    return Failed("410 Gone", permanent=True)


@app.piece("odd", every_seconds=3600)
async def odd(piece):
    """Returns what is no outcome."""
    return 42


@app.piece("leaves-a-task", every_seconds=3600)
async def leaves_a_task(piece):
    """Returns while a task of it is still at work."""

    async def work():
        for _ in range(50):  # turns of the loop: the update has returned long before
            await asyncio.sleep(0)
        piece.state["joined"] = True
        await piece.publish("told", {"by": "the task"})
        if piece.config.get("fail"):
            raise RuntimeError("the task failed")

    piece.spawn(work())
    return Success({"returned": True})


@app.piece("returns-awaitable", every_seconds=3600)
def returns_awaitable(piece):
    """Returns what can be awaited."""

    async def work():
        await asyncio.sleep(0)
        return Success({"awaited": True})

    return work()


@app.piece("forgets", every_seconds=3600)
async def forgets(piece):
    """Makes a coroutine and never awaits it."""
    asyncio.sleep(0)  # the mistake that is to be found


@app.piece("stubborn", every_seconds=3600, timeout_seconds=0.5)
def stubborn(piece):
    """Starts a program, ignores SIGTERM, and never ends."""
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0, flush=True); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    Path(piece.config["started"]).write_text(str(child.pid))
    while True:
        pass


@app.piece("dies", every_seconds=3600)
async def dies(piece):
    """Takes its process down."""
    os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.Event().wait()


@app.piece("held", every_seconds=3600)
def held(piece):
    """Calls up the test, says which process it is, and goes on when it is answered."""
    with socket.create_connection(("127.0.0.1", piece.config["port"])) as line:
        line.sendall(f"{who()}\n".encode())
        return Success({"answer": line.recv(100).decode()})


@app.piece("mails", every_seconds=3600)
async def mails(piece):
    """Sends a mail and writes a row."""
    await piece.database.seen.insert(piece_id=piece.piece_id)
    await piece.send_mail(to="ada@example.org", subject="News", text=lambda mail: mail.line("fresh"))


@app.piece("tells", every_seconds=3600)
async def tells(piece):
    """Notifies everybody that the database knows, at once."""
    for person in await piece.database.people.all():
        await person.notify(lambda mail: mail.line("fresh"), force=True)


@app.piece("looks-around", every_seconds=3600)
async def looks_around(piece):
    """Shows what a worker sees."""
    env = await piece.require("__env__")
    return Success(
        {
            "layer": env.get("LAYER"),
            "secret": env.get("PROMISE_SECRET"),
            "environ": sorted(os.environ),
            "site": piece.workspace.config["site"],
            "shared": (await piece.require("shared")) is (await piece.require("shared")),
        }
    )
