"""Publishing one value after another of a service without building it anew."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Generator

    from piecework.container.artifact import Made


class Stream:
    """The values that follow the one a factory returns. Awaited, it gives the first value, to be returned.

    Args:
        made: What the values become.
        values: Where they come from.
    """

    def __init__(self, made: Made, values: AsyncIterable[Any]) -> None:
        self._made = made
        self._values: AsyncIterator[Any] = aiter(values)
        self._task: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._first().__await__()

    async def _first(self) -> Any:
        try:
            return await anext(self._values)
        except StopAsyncIteration:
            raise ValidationError(
                f"the stream of service {self._made.artifact.name!r} ended before its first value: return an instance "
                "from the factory instead of awaiting the stream",
                name=self._made.artifact.name,
            ) from None

    def begin(self) -> None:
        """Goes on with the values, until the instance is let go."""
        self._task = asyncio.create_task(self._publish(), name=f"stream {self._made.artifact.name}")

    async def end(self) -> None:
        """Stops, and closes where the values come from."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait((task,))
        if inspect.isasyncgen(self._values):
            await self._values.aclose()

    async def _publish(self) -> None:
        artifact = self._made.artifact
        try:
            async for value in self._values:
                artifact.home.graph.publish(self._made, value)
        except Exception as error:  # noqa: BLE001 - told to watchers, by an event and a signal; the next asker builds anew
            artifact.home.graph.fail(self._made, error)
            signals.emit(signals.SERVICE_FAILED, level="warning", service=artifact.name, error=describe(error))
