"""A road to a PostgreSQL server that can be cut at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib
import re

_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Proxy:
    """Passes bytes on; once told to, it keeps the answer to a COMMIT for itself and cuts that connection.

    Attributes:
        cuts: How many answers are still to be lost.
        passable: Whether new connections get through.
    """

    def __init__(self, url):
        host, port = re.search(r"@([^:/]+):(\d+)/", url).groups()
        self._target = (host, int(port))
        self._url = url
        self._roads = set()
        self.cuts = 0
        self.passable = True

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for road in list(self._roads):
            road.cancel()
        await asyncio.gather(*self._roads, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self):
        """The server's address by this road."""
        return re.sub(r"@[^/]+/", f"@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/", self._url)

    async def _serve(self, reader, writer):
        road = asyncio.current_task()
        self._roads.add(road)
        try:
            if self.passable:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._roads.discard(road)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _join(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        answer = asyncio.ensure_future(self._pass(there_reader, writer))
        try:
            while data := await reader.read(65536):
                losing = self.cuts > 0 and _COMMIT in data
                if losing:
                    answer.cancel()
                    await asyncio.wait({answer})
                there_writer.write(data)
                await there_writer.drain()
                if losing:
                    self.cuts -= 1
                    await there_reader.read(1)  # it is committed now, and nobody will hear of it
                    return
        finally:
            answer.cancel()
            await asyncio.wait({answer})
            there_writer.close()
            with contextlib.suppress(OSError):
                await there_writer.wait_closed()

    async def _pass(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
