"""A shop for tests that kill it: a transaction in the application's database that promises one of each to the store.

    python orders.py FOLDER PLACE

The first time that the place is reached the process is gone. A process that finds the order placed places none; it
waits until everything is where it belongs and tells what there is in its last line, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from piecework import App, Settings, Stage, Workflow
from piecework.services.relay import Relay
from piecework.services.transactions import Transaction

folder, place = Path(sys.argv[1]), sys.argv[2]
marker = folder / "killed"
app = App(
    "shop",
    store=os.environ["STORE_OF_THE_TEST"],
    database=os.environ["DATABASE_OF_THE_TEST"],
    mail="outbox:",
    settings=Settings(lease_seconds=1, heartbeat_seconds=0.2),
)
accepted: list[str] = []


def reached(here: str) -> None:
    """Ends this process if it is to end here."""
    if here == place and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


async def note(ctx: Any) -> None:
    with (folder / "steps").open("a") as file:
        file.write(f"event {ctx.event.payload['n']}\n")


app.workflow(Workflow("told", on="ordered", stages=[Stage("only", steps=[note])]))


@app.job("ship")
async def ship(ws: Any, n: int) -> int:
    return n


def watch() -> None:
    """Makes the moments around the commit and around each row's way places to be killed at."""
    finish, deliver, forget = Transaction.finish, Relay.deliver, Relay._forget

    async def watched_finish(self: Any, *, keep: bool) -> Any:
        reached("before the commit")
        functions = await finish(self, keep=keep)
        reached("after the commit")
        return functions

    async def watched_deliver(self: Any, intent: Any) -> None:
        reached(f"before {intent.position}")
        await deliver(self, intent)
        reached(f"after {intent.position}")

    async def watched_forget(self: Any, database: Any) -> None:
        some = bool(self._relayed)
        if some:
            reached("before forgetting")
        await forget(self, database)
        if some:
            reached("after forgetting")

    Transaction.finish, Relay.deliver, Relay._forget = watched_finish, watched_deliver, watched_forget


async def place_order(ws: Any) -> None:
    async with ws.database.transaction():
        if await ws.database.orders.count():
            return
        await ws.database.orders.insert(id=1, name="Ada")
        for n in range(2):
            await ws.publish("ordered", {"n": n})
        await ws.enqueue_job("ship", n=1)
        await ws.send_mail(to="ada@example.org", subject="Order", text="Thanks")
        notify = await ws.require("notify")
        await notify({"email": "bob@example.org"}, "An order", force=True)


async def settled(ws: Any) -> list[Any]:
    """The runs, once nothing is left to do."""
    async with asyncio.timeout(20):
        while True:
            left = await ws.database.piecework_outbox.count()  # looked at first: what was forgotten has its run by now
            found = await app.runtime.list_all_runs()
            if not left and not any(run.status in {"queued", "running"} for run in found):
                return found
            await asyncio.sleep(0.01)


async def main() -> None:
    """Places one order, whatever came of it before."""
    app.bus.subscribe("ordered", lambda event: accepted.append(event.payload["n"]))
    async with app, app.workspace() as ws:
        await ws.database.run("create table if not exists orders (id integer primary key, name text)")
        await place_order(ws)
        runs = sorted(run.workflow_id for run in await settled(ws))
        told = {"runs": runs, "accepted": accepted, "orders": await ws.database.orders.count()}
        sys.stdout.write(json.dumps(told) + "\n")


watch()
asyncio.run(main())
