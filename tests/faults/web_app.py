"""A web application whose App every worker of a server opens by its lifespan; tells which process answered."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI

from piecework import App, Settings, Stage, Workflow
from piecework.telemetry import logs

FOLDER = Path(os.environ["WEB_FOLDER"])

logs.configure(json=True)
app = App(
    "shop",
    store=f"sqlite:///{FOLDER / 'state.db'}",
    database=f"sqlite:///{FOLDER / 'shop.db'}",
    env={},
    settings=Settings(connect_timeout_seconds=25, close_timeout_seconds=5),
)
api = FastAPI(lifespan=app.lifespan)


async def handle(ctx):
    await ctx.workspace.database.orders.where(number=ctx.state["number"]).update(handled=1)


app.workflow(Workflow("order", on="order.placed", stages=[Stage("handle", steps=[handle])]))


@app.command("write-down")
async def write_down(ws, number: int):
    if not await ws.database.orders.where(number=number).count():
        await ws.database.orders.insert(number=number)


@api.post("/orders/{number}")
async def place(number: int):
    """Works in a workspace with a function of its own, by a command and the database, and publishes."""
    written = []

    async def handler(ws):
        await ws.run_command("write-down", number=number)
        written.append(await ws.database.orders.where(number=number).count())

    await app.run_in_new_workspace(handler)
    receipt = await app.publish("order.placed", {"number": number}, id=f"order-{number}")
    return {"pid": os.getpid(), "written": written, "event_id": receipt.event_id}


@api.get("/")
async def look():
    """Which process this is, and what it is."""
    return {"pid": os.getpid(), "role": app.role}


@api.get("/runs")
async def runs():
    """Every run: what it came to."""
    found = await app.runtime.list_all_runs(workflow="order")
    return {run.run_id: run.status for run in found}


@api.get("/orders")
async def orders():
    """How many orders there are, and how many were handled."""
    async with app.workspace() as ws:
        table = ws.database.orders
        return {"orders": await table.count(), "handled": await table.where(handled=1).count()}
