"""A node of one version of a workflow: says when it is ready, and stops in order when its input ends.

    python versioned_node.py STORE VERSION

The second version has a trigger and a stage that the first lacks.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from piecework import App, Pipeline, Settings, Stage, Transient, Trigger, WaitFor, Workflow
from piecework.telemetry import logs


async def step(ctx: Any) -> dict[str, Any]:
    return {"seen": ctx.event.payload["n"]}


def flow(version: str) -> Workflow:
    ask, done = Stage("ask", steps=[step], wait=WaitFor("yes")), Stage("done", steps=[step])
    if version == "1":
        return Workflow("flow", on="go", stages=[ask, done], version="1")
    review = Stage("review", steps=[step])
    return Workflow(
        "flow",
        triggers={"default": Trigger("go"), "extra": Trigger("go")},
        pipelines={"default": Pipeline([ask, review, done]), "extra": Pipeline([review, done])},
        version="2",
    )


async def main(store: str, version: str) -> None:
    app = App("versions", store=store, env={}, settings=Settings(lease_seconds=2, heartbeat_seconds=0.4))
    app.workflow(flow(version), mode=Transient(concurrency=2000, capacity=20_000))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with app:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await reader.read()


logs.configure()
asyncio.run(main(*sys.argv[1:]))
