"""A node of its own for tests that kill it: `python node_driver.py namespaces|session`, then words on standard input.

`start SPACE` starts a worker with a run that leaves a program and a daemon behind, `lease` has the node renew a short
lease from now on, `release` no more, and `orphan SPACE` kills the zygote above that space's worker. Each word is
answered with a line of JSON; the pids are as the node numbers them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from piecework.config import Settings
from piecework.process import linux
from piecework.process.launch import Zygote
from piecework.process.lease import Lease
from piecework.process.protocol import Init, Run
from piecework.space.controller import Controller
from piecework.store.lock_beat import LockHeartbeat
from piecework.telemetry import logs

_LEASE_SECONDS = 2


class Node:
    """What a node does around workers, as far as these tests go."""

    def __init__(self, *, namespaces):
        self._namespaces = namespaces
        self._lease = Lease()
        self._zygote = self._make_zygote()
        self._runs = set()
        self._controllers = {}

    async def obey(self):
        """Does what is said on standard input, for ever."""
        await self._zygote.start()
        self._say(zygote=self._zygote.pid, mode=self._zygote.mode)
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            await getattr(self, words[0])(*words[1:])

    async def start(self, space):
        if not self._zygote.alive:
            await self._zygote.stop()
            self._zygote = self._make_zygote()
            await self._zygote.start()
        littered = asyncio.get_running_loop().create_future()

        async def on_ask(op, args, run_id):
            littered.set_result(None)

        controller = Controller(self._zygote, space, Init(space=space), Settings(), on_ask, lambda log: None)
        await controller.start()
        self._controllers[space] = controller
        names = {"run_id": "r1", "piece_id": "p", "integration": "litters", "idempotency_key": "r1"}
        run = Run(epoch=1, attempt=1, deadline_seconds=600, **names)
        self._runs.add(asyncio.ensure_future(asyncio.gather(controller.run(run, 600), return_exceptions=True)))
        await littered
        under = sorted(linux.descendants(controller.keeper_pid))
        self._say(zygote=self._zygote.pid, keeper=controller.keeper_pid, worker=controller.pid, under=under)

    async def orphan(self, space):
        controller = self._controllers[space]
        os.kill(self._zygote.pid, signal.SIGKILL)
        await controller.dead()
        await self._zygote.stop()
        self._say(pid=os.getpid(), children=sorted(linux.children(os.getpid())))

    async def lease(self):
        self._heartbeat = LockHeartbeat(
            every_seconds=0.2, stall_seconds=60, on_held=lambda began: self._lease.renew(began, _LEASE_SECONDS)
        )
        await self._heartbeat.start()
        self._say()

    async def release(self):
        await self._heartbeat.stop()
        self._lease.release()
        self._say()

    def _make_zygote(self):
        return Zygote(
            "stub_app:app",
            paths=[str(Path(__file__).parent), *sys.path],
            lease=self._lease,
            namespaces=self._namespaces,
            on_output=lambda line, space: sys.stderr.write(f"{space}: {line}\n"),
        )

    def _say(self, **fields):
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


logs.configure()
asyncio.run(Node(namespaces=sys.argv[1] == "namespaces").obey())
