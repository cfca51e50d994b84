"""The application that the commands are tried on."""

from __future__ import annotations

import asyncio
import sys

from piecework import App, Exclusive, Failed, Skipped, Stage, Success, WaitFor, Workflow

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
    if piece.config.get("slow"):
        await asyncio.Event().wait()
    piece.logger.info("read", url=piece.config.get("url"))
    return Success({"articles": 3})


async def hang(ctx):
    sys.stdout.write("hanging\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


app.workflow(Workflow("hang", on="hang", stages=[Stage("hang", steps=[hang])]))
app.workflow(
    Workflow("audit", on="audit.asked", stages=[Stage("ask", wait=WaitFor("audit.done")), Stage("end")]),
    mode=Exclusive(),
)


@app.service(scope="run", client=True)
def greeting():
    return "Hello"


@app.service(scope="run")
async def slow_greeting():
    return "Good morning"


@app.command("greet")
async def greet(ws, user_id: int, *, loud: bool = False, tags: list[str] | None = None):
    """Greets somebody."""
    text = f"{ws.greeting} {user_id} {tags}"
    return text.upper() if loud else text


@app.command("fails")
def fails():
    raise LookupError("nobody\nthere")


@app.command("queue")
async def queue(ws, n: int):
    return await ws.run_background_job("double", n=n)


@app.job("double", schedule="0 8 * * 1", tz="Europe/Berlin", timeout_seconds=60, retries=2)
async def double(ws, n: int = 0):
    if n < 0:
        raise ValueError("too small")
    return 2 * n
