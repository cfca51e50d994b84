"""Of several processes that share a store file one is the node: who gets the file, and who follows when it goes.

The lock beside the file decides, and the kernel lets go of it when its owner dies. So nobody is voted for, and nobody
is declared dead who only stands still: as long as a stopped process has the lock, there is no other node.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from piecework.errors import NoNodeError, StoreLockedError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.client.node_link import NodeLink
    from piecework.store.contract import Store

_LOOK_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Standby:
    """A client that takes the node's place when the node has gone, unless another one was quicker.

    Args:
        link: To the node.
        make: Makes the store; it is not open yet.
        become: Makes this process the node, of the open store that it is given; the store is its own from then on. What
            it raises is shown, and it is tried again later, unless there is another node then.
    """

    def __init__(self, link: NodeLink, make: Callable[[], Store], become: Callable[[Store], Awaitable[None]]) -> None:
        self._link = link
        self._make = make
        self._become = become
        self._task: asyncio.Task[None] | None = None

    async def meet(self) -> Store | None:
        """Takes the store, open, where nobody has it; None as soon as another process is the node and answers.

        Raises:
            NoNodeError: Another process has the file, and has not answered for as long as a node is looked for.
            ProtocolError: The node speaks another version of the frames.
            StoreError: The store cannot be opened.
        """
        while True:
            store = self._make()
            try:
                await _open(store)
            except StoreLockedError:
                if await self._link.look(_LOOK_SECONDS):
                    return None
            else:
                return store

    def start(self) -> None:
        """Begins to watch over the node that was found."""
        self._task = asyncio.create_task(self._run(), name="piecework-standby")

    async def stop(self) -> None:
        """Ends it; what it was about to become is undone. Stopping twice, or before the start, is harmless."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        pause, said = _FIRST_PAUSE_SECONDS, False
        while True:
            await self._link.lost()
            if not said:
                said = True
                signals.emit(signals.NODE_LOST, store=str(self._link.path), pid=self._link.node_pid)
            try:
                store = await self.meet()
                if store is not None:
                    await self._become(store)
                    return
                pause, said = _FIRST_PAUSE_SECONDS, False
            except NoNodeError:
                # Somebody has the file and does not answer, or not yet: whoever asks is told. A client that is not to
                # wait for a node comes here at once each time.
                await asyncio.sleep(_LOOK_SECONDS)
            except Exception as error:  # noqa: BLE001 - shown, and tried again: nobody else might follow
                signals.emit(signals.NODE_TROUBLE, level="error", what="taking over", error=describe(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _open(store: Store) -> None:
    """Opens a store whole or not at all: who is cancelled meanwhile leaves no thread that still writes to the file."""
    opening = asyncio.ensure_future(store.open())
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait({opening})
        if opening.exception() is None:
            await store.close()
        raise
