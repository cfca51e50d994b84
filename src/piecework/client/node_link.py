"""The connection of a client with the node that has a store file, or with that node's successor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

from piecework.errors import ClosedError, NoNodeError, PieceworkError, StoppedError
from piecework.run.link import LinkClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LOOK_SECONDS = 0.05


class NodeLink:
    """The connection with whichever node has a store file; a successor is found when the node goes away.

    Args:
        path: The store file.
        timeout_seconds: How long a node is looked for.

    Attributes:
        workflows: The workflows that the node had when it was found.
    """

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self.path = path
        self.workflows: list[str] = []
        self._timeout_seconds = timeout_seconds
        self._link: LinkClient | None = None
        self._finding: asyncio.Task[LinkClient] | None = None
        self._closed = False

    async def open(self) -> None:
        """Finds the node.

        Raises:
            NoNodeError: There is none in time; the message says how to start one.
            ProtocolError: It speaks another version of the frames.
        """
        await self._found()

    async def close(self) -> None:
        """Ends the connection. Closing twice is harmless."""
        self._closed = True
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.wait({self._finding})
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
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._find(), name="piecework-find-node")
            self._finding.add_done_callback(_seen)
        finding = self._finding
        await asyncio.wait({finding})  # who asks may be cancelled; the search goes on for the others
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
                self.workflows = (await link.ask("workflows.list"))["items"]
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
                return link


def _seen(task: asyncio.Task[LinkClient]) -> None:
    """Looks at how a search ended: whoever asked gets its error, and nobody may be left to ask."""
    if not task.cancelled():
        task.exception()
