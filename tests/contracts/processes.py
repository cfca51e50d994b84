"""Processes that hold or write a store, and are gone when their test ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

HOLD = """
import asyncio, sys
from pathlib import Path
from piecework.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    print("holding", flush=True)
    sys.stdin.readline()
    await store.close()
    print("released", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""

WRITE = """
import asyncio, sys
from pathlib import Path
from piecework.store.sqlite import SqliteStore
from piecework.testing.verbs import Verbs, event, route, slot

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    verbs = Verbs(store)
    for number in range(int(sys.argv[2])):
        await verbs.accept(event(event_id=f"e-{number}", routes=[route(slot(f"s-{number}"))]))
    print("acknowledged", flush=True)
    while True:  # and goes on writing, so that the kill comes at no particular moment
        await verbs.accept(event())

asyncio.run(main())
"""

REFUSED = """
import asyncio, sys
from pathlib import Path
from piecework.errors import StoreLockedError
from piecework.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    try:
        await store.open()
    except StoreLockedError as error:
        print(error.code, error.pid, flush=True)
    else:
        await store.close()
        print("opened", flush=True)

asyncio.run(main())
"""


class Process:
    """A child that runs one of the programs above."""

    def __init__(self, program, *arguments):
        self._popen = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._popen.pid

    def line(self):
        """What it says next."""
        return self._popen.stdout.readline().strip()

    def go_on(self):
        """Lets it take its next step."""
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    def kill(self):
        """Ends it with SIGKILL and reaps it."""
        self._popen.kill()
        self._popen.wait()

    def end(self):
        """Ends it however it stands, and proves that it is gone."""
        if self._popen.poll() is None:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        self._popen.stdout.close()
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return
        raise AssertionError(f"process {self.pid} is still there")
