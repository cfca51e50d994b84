"""A gate that several pass together, or one alone: how a suspect is run again by itself."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Gate:
    """Lets several pass together, or one alone; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._inside = 0
        self._wanting_alone = 0
        self._alone = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def passing(self, *, alone: bool) -> AsyncIterator[None]:
        """Waits for its turn and passes; `alone` means with nobody else inside."""
        async with self._changed:
            self._wanting_alone += alone
            try:
                await self._changed.wait_for(self._free_for_one if alone else self._free_for_several)
            finally:
                self._wanting_alone -= alone
                self._changed.notify_all()  # who gave up waiting may have stood in others' way
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            # Not under the condition's lock: leaving must not wait, also when cancelled; nothing else runs in between.
            self._inside -= 1
            self._alone = False
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _free_for_one(self) -> bool:
        return self._inside == 0

    def _free_for_several(self) -> bool:
        return not self._alone and not self._wanting_alone
