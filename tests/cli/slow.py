"""An application that never gets ready."""

from __future__ import annotations

import asyncio
import sys

from piecework import App, Service


async def never():
    sys.stdout.write("opening\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


app = App("slow", env={}, services=[Service("never", never, lazy=False)])
