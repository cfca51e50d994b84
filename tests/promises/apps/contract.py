"""Pieces that use all that a piece may, and some that break their contract."""

from __future__ import annotations

import asyncio
import contextvars
from pathlib import Path

from piecework import App, Success

app = App("contract")
LEFT = []
MADE = {"app": 0, "workflow": 0, "run": 0, "transient": 0}


def thing(scope):
    """Declares a service of that scope, which says the how-many-eth of its kind it is."""

    def make():
        MADE[scope] += 1
        return MADE[scope]

    app.service(scope=scope, name=f"of_{scope}")(make)


for name in MADE:
    thing(name)


@app.piece("uses-services", every_seconds=3600)
async def uses_services(piece):
    """Shows which instance of each scope it gets, asking twice."""
    return Success({name: [await piece.require(f"of_{name}") for _ in range(2)] for name in MADE})


@app.piece("uses-services-too", every_seconds=3600)
async def uses_services_too(piece):
    """The same, of another integration."""
    return await uses_services(piece)


@app.piece("is-refused", every_seconds=3600)
async def is_refused(piece):
    """Writes what its database accepts, and refuses at the commit."""
    piece.state["touched"] = True
    async with piece.database.transaction():
        await piece.database.run("insert into entries (id, feed_id) values (1, 99)")


@app.piece("goes-on", every_seconds=3600)
async def goes_on(piece):
    """Says how far it is, prints, and waits until the test has seen it."""
    piece.progress(0.4, "page 2")
    print("page 2", flush=True)  # noqa: T201 - what is tried
    piece.logger.info("looked", page=2)
    reader, writer = await asyncio.open_connection("127.0.0.1", piece.config["port"])
    writer.write(b"0\n")
    await reader.read(100)
    writer.close()


@app.piece("leaves", every_seconds=3600)
async def leaves(piece):
    """Leaves its context behind."""
    LEFT.append(contextvars.copy_context())


@app.piece("goes-wrong-for-another", every_seconds=3600)
async def goes_wrong_for_another(piece):
    """Has two callbacks fail that another update, which has ended, had set up."""

    def callback():
        raise ValueError("too late")

    context = LEFT.pop()
    for _ in range(2):
        asyncio.get_running_loop().call_soon(callback, context=context)


@app.piece("fails", every_seconds=3600)
async def fails(piece):
    """Fails."""
    raise RuntimeError("the feed is gone")


@app.job("count")
async def count(ws):
    """Says where it ran."""
    return ws.space


@app.piece("queues-a-job", every_seconds=3600)
async def queues_a_job(piece):
    """Queues a job and does not wait for it."""
    return Success(await piece.enqueue_job("count"))


@app.service(scope="workflow", name="session")
async def session():
    """A login that hangs the first time, whichever process tries it: what it notes stays in the space's folder."""
    tried = Path("tried")
    if not tried.exists():
        tried.touch()
        await asyncio.Event().wait()
    return "logged in"


@app.piece("logs-in", every_seconds=3600, timeout_seconds=0.5)
async def logs_in(piece):
    """Needs what its integration shares."""
    return Success(await piece.require("session"))
