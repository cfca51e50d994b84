"""An app whose pieces do to their node what no piece should."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from piecework import App

app = App("wild")


@app.piece("garbles", every_seconds=3600)
async def garbles(piece):
    """Writes to every socket that its process has, once; looks on from then on."""
    if piece.config["quiet"]:
        return
    loop = asyncio.get_running_loop()
    for descriptor in set(range(3, 256)) - {loop._ssock.fileno(), loop._csock.fileno()}:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as found:
            found.sendall(b"\x00\x00\x00\x03abc")
    await asyncio.Event().wait()


@app.piece("says", every_seconds=3600)
async def says(piece):
    """Logs fields whose names the node has for something else."""
    piece.logger.info("hello", event="e", level="l", space="mine", run_id="other")
