"""What has to come to its end whatever happens to whoever waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Waits for the end of `work`, however often the caller is cancelled meanwhile; then the cancel goes on.

    Raises:
        CancelledError: The caller was cancelled; what `work` came to is dropped.
        Exception: Whatever it raised.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen: the cancel is what the caller hears
    raise cancelled
