"""The application that the commands are tried on."""

from __future__ import annotations

import asyncio
import sys

from piecework import App, Failed, Skipped, Stage, Success, WaitFor, Workflow

app = App("shop", env={})
not_an_app = 42


def create_app():
    made = App("made-shop", env={})
    made.piece("feed")(feed)
    return made


async def pack(ctx):
    ctx.logger.info("packed", boxes=2)
    return {"packed": True}


async def check(ctx):
    if ctx.state.get("bad"):
        raise ValueError("the address is\nunknown")


app.workflow(
    Workflow(
        "order",
        on="order.placed",
        stages=[
            Stage("pack", steps=[pack]),
            Stage("review", wait=lambda ctx: WaitFor("order.approved", id=ctx.state["id"], timeout_seconds=3600)),
            Stage("check", steps=[check]),
        ],
    )
)


@app.piece("feed", every_seconds=3600)
async def feed(piece):
    if piece.config.get("broken"):
        return Failed("no such feed")
    if piece.config.get("old"):
        return Skipped("not modified")
    piece.logger.info("read", url=piece.config.get("url"))
    return Success({"articles": 3})


async def hang(ctx):
    sys.stdout.write("hanging\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


app.workflow(Workflow("hang", on="hang", stages=[Stage("hang", steps=[hang])]))
