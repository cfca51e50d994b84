"""A node for the clients of tests: says when it is ready and when a run is in its step; goes on when told."""

from __future__ import annotations

import asyncio
import sys

from piecework import App, Settings, Stage, Workflow
from piecework.telemetry import logs


async def main(url):
    go_on = asyncio.Event()

    async def hold(ctx):
        say(f"in {ctx.run_id}")
        await go_on.wait()

    app = App("held", store=url, env={}, settings=Settings(lease_seconds=1, heartbeat_seconds=0.2))
    app.workflow(Workflow("held", on="go", stages=[Stage("only", steps=[hold])]))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with app:
        say("ready")
        await reader.readline()
        go_on.set()
        await reader.read()


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


logs.configure()
asyncio.run(main(sys.argv[1]))
