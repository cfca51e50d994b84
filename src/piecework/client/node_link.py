"""The connection of a client with the node that has a store file, or with that node's successor."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

from piecework.errors import ClosedError, NoNodeError, PieceworkError, StoppedError
from piecework.run.link import LinkClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LOOK_SECONDS = 0.05
_LEAST_SILENCE_SECONDS = 1.0
"""So long a node may be busy with something else, however short a client's patience is."""


class NodeLink:
    """The connection with whichever node has a store file; a successor is found when the node goes away.

    Args:
        path: The store file.
        timeout_seconds: How long a node is looked for.

    Attributes:
        workflows: The workflows that the node had when it was last asked.
        here: Whether this very app takes the node's place, or has taken it: then what it asks, it asks itself.
    """

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self.path = path
        self.workflows: list[str] = []
        self.here = False
        self._timeout_seconds = timeout_seconds
        self._silence_seconds = max(timeout_seconds, _LEAST_SILENCE_SECONDS)
        self._link: LinkClient | None = None
        self._finding: asyncio.Task[LinkClient] | None = None
        self._feeling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether there is a node that was found and has not gone away."""
        return self._link is not None and not self._link.closed

    @property
    def node_pid(self) -> int | None:
        """The process that is, or was, the node; None before one was found."""
        return None if self._link is None else self._link.node_pid

    async def open(self) -> None:
        """Finds the node.

        Raises:
            NoNodeError: There is none in time; the message says how to start one.
            ProtocolError: It speaks another version of the frames.
        """
        await self._found()

    async def look(self, seconds: float) -> bool:
        """Whether there is a node, or one is found within some seconds; the search goes on for others who ask.

        Args:
            seconds: How long to wait for it.

        Raises:
            NoNodeError: A search has ended in vain; the next look begins another.
            ProtocolError: The node speaks another version of the frames.
            ClosedError: This client has been closed.
        """
        if self.connected:
            return True
        finding = self._search()
        await asyncio.wait({finding}, timeout=seconds)
        return finding.done() and not self._outcome(finding).closed

    async def lost(self) -> None:
        """Returns when the node that was found has gone away; at once where there is none."""
        if self._link is not None:
            await self._link.ended()

    async def close(self) -> None:
        """Ends the connection. Closing twice is harmless."""
        self._closed = True
        going = {task for task in (self._finding, self._feeling) if task is not None}
        for task in going:
            task.cancel()
        if going:
            await asyncio.wait(going)
        if self._link is not None:
            await self._link.close()

    async def ask(self, op: str, args: Mapping[str, Any], *, again: bool = True) -> Any:
        """Asks the node; when it goes away before it has answered, its successor.

        Args:
            op: What for; see `piecework.desk`.
            args: With what; JSON values.
            again: Whether to ask again is harmless, because the question names what it is about.

        Raises:
            NoNodeError: There is no node, or none that comes in time; `unknown` says whether it may have been done.
            ClosedError: This client has been closed.
            PieceworkError: The node's own error.
        """
        ends_at: float | None = None
        while True:
            try:
                link = await self._found()
            except NoNodeError as error:
                if ends_at is None:
                    raise
                self._give_up(op, error)
            asked_at = asyncio.get_running_loop().time()
            try:
                return await link.ask(op, **args)
            except NoNodeError as error:
                if not error.data.get("unknown"):
                    continue  # it went away since it was found: nothing was sent
                if error.data.get("silent"):
                    raise  # it has the store still, so no other can be asked
                lost: PieceworkError = error
            except StoppedError as error:
                lost = error
                await link.close()
            now = asyncio.get_running_loop().time()
            if ends_at is None or now - asked_at > self._timeout_seconds:
                ends_at = now + self._timeout_seconds
            if not again or now >= ends_at:
                self._give_up(op, lost)
            await asyncio.sleep(_LOOK_SECONDS)  # a node that goes on answering that it stops is not to be hammered

    def _give_up(self, op: str, error: PieceworkError) -> NoReturn:
        raise NoNodeError(
            f"the node of {self.path} went away before it answered, and there is no other that could be asked again: "
            f"whether {op} was done is unknown, look before repeating it",
            op=op,
            unknown=True,
        ) from error

    async def _found(self) -> LinkClient:
        """The connection that there is, else one search for all who ask meanwhile."""
        if self._closed:
            raise self._is_closed()
        if self._link is not None and not self._link.closed:
            return self._link
        finding = self._search()
        await asyncio.wait({finding})  # who asks may be cancelled; the search goes on for the others
        return self._outcome(finding)

    def _search(self) -> asyncio.Task[LinkClient]:
        if self._closed:
            raise self._is_closed()
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find(), name="piecework-find-node")
            self._finding.add_done_callback(_seen)
        return self._finding

    def _outcome(self, finding: asyncio.Task[LinkClient]) -> LinkClient:
        if finding.cancelled():
            raise self._is_closed()
        error = finding.exception()
        if isinstance(error, NoNodeError):  # to each who asked an error of their own
            raise NoNodeError(error.message, **error.data) from error
        return finding.result()

    def _is_closed(self) -> ClosedError:
        return ClosedError(f"the connection with the node of {self.path} has been closed")

    async def _find(self) -> LinkClient:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._timeout_seconds
        while True:
            link = await LinkClient.connect(self.path, timeout_seconds=max(0.0, ends_at - loop.time()))
            try:
                await self._greet(link)
            except (NoNodeError, StoppedError) as error:  # found in the moment of its end
                await link.close()
                if loop.time() >= ends_at:
                    raise NoNodeError(
                        f"the node of {self.path} goes away, and there is no other yet: start one with "
                        f"`piecework serve MODULE:APP --store sqlite:///{self.path}`"
                    ) from error
                await asyncio.sleep(_LOOK_SECONDS)
            except BaseException:
                await link.close()
                raise
            else:
                self._link = link
                await self._feel_anew(link)
                return link

    async def _feel_anew(self, link: LinkClient) -> None:
        if self._feeling is not None:
            self._feeling.cancel()
            await asyncio.wait({self._feeling})
        self._feeling = asyncio.create_task(self._feel(link), name="piecework-feel-node")

    async def _feel(self, link: LinkClient) -> None:
        """Asks a node that owes answers for a sign of life now and then, and gives up one that gives none.

        Its process may have been stopped: then the kernel keeps the connection, and no answer ever comes.
        """
        while not link.closed:
            await asyncio.sleep(self._silence_seconds / 2)
            if link.asking:
                with contextlib.suppress(PieceworkError):  # it is alive, or has gone away: whoever asked is told
                    await self._greet(link)

    async def _greet(self, link: LinkClient) -> None:
        asking = asyncio.ensure_future(link.ask("workflows.list"))
        try:
            done, _ = await asyncio.wait({asking}, timeout=self._silence_seconds)
            if not done:
                link.give_up(self._silence_seconds)
            self.workflows = (await asking)["items"]
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


def _seen(task: asyncio.Task[LinkClient]) -> None:
    """Looks at how a search ended: whoever asked gets its error, and nobody may be left to ask."""
    if not task.cancelled():
        task.exception()
