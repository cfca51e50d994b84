"""A node of its own for tests that kill it: starts a worker, tells all pids on standard output, waits for its end."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from piecework.config import Settings
from piecework.process.launch import Zygote
from piecework.process.protocol import Init, Run
from piecework.space.controller import Controller
from piecework.telemetry import logs


async def main():
    zygote = Zygote("stub_app:app", paths=[str(Path(__file__).parent), *sys.path], on_output=lambda line, space: None)
    await zygote.start()
    told = asyncio.get_running_loop().create_future()

    async def on_ask(op, args, run_id):
        told.set_result(args["payload"]["word"])

    controller = Controller(zygote, "acme", Init(space="acme"), Settings(), on_ask, lambda log: None)
    await controller.start()
    run = Run(
        run_id="r1",
        epoch=1,
        attempt=1,
        piece_id="p",
        integration="stubborn",
        deadline_seconds=600,
        idempotency_key="r1",
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(controller.run(run, 600))
        pids = {"child": await told, "zygote": zygote.pid, "worker": controller.pid, "keeper": controller.keeper_pid}
        sys.stdout.write(json.dumps(pids) + "\n")
        sys.stdout.flush()


logs.configure()
asyncio.run(main())
