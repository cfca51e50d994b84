"""Who watches events in this process: at most once, after they are durable, and without a say in what happens."""

from __future__ import annotations

import asyncio
import inspect
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from piecework.errors import StoppedError, ValidationError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework.bus.event import Event


class EventBus:
    """In-process observers of events, and the door through which events are published."""

    def __init__(self) -> None:
        self._observers: list[tuple[str, Callable[[Event], Any]]] = []
        self._publish: Callable[[Event], Awaitable[Any]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def subscribe(self, pattern: str, fn: Callable[[Event], Any]) -> Callable[[], None]:
        """Calls `fn(event)` for every event of this process whose type matches.

        Args:
            pattern: An event type, or one with `*` in it, such as `invoice.*`.
            fn: Synchronous or asynchronous. What it raises is shown as a signal and reaches nobody else.

        Returns:
            A function that ends the subscription; calling it twice is harmless.

        Raises:
            ValidationError: The pattern is empty or `fn` cannot be called.
        """
        if not pattern or not callable(fn):
            raise ValidationError(f"subscribe({pattern!r}, …) needs a pattern and a function")
        entry = (pattern, fn)
        self._observers.append(entry)

        def unsubscribe() -> None:
            if entry in self._observers:
                self._observers.remove(entry)

        return unsubscribe

    async def emit(self, event: Event) -> Any:
        """Publishes an event: durable, with everything that follows, exactly as `App.publish` does.

        Raises:
            StoppedError: No app has been opened with this bus.
        """
        if self._publish is None:
            raise StoppedError("this bus belongs to no open app: open the app first")
        return await self._publish(event)

    @property
    def connected(self) -> bool:
        """Whether it belongs to an open app or runtime."""
        return self._publish is not None

    def connect(self, publish: Callable[[Event], Awaitable[Any]] | None) -> None:
        """Says where `emit` goes; None takes it away."""
        self._publish = publish

    def tell(self, event: Event) -> None:
        """Tells the observers of an event that has become durable."""
        for pattern, fn in list(self._observers):
            if fnmatchcase(event.type, pattern):
                self._call(pattern, fn, event)

    async def drain(self, grace_seconds: float) -> None:
        """Waits for asynchronous observers that are still at it, then cancels them.

        Args:
            grace_seconds: How long they may still go on.
        """
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=grace_seconds)

    def _call(self, pattern: str, fn: Callable[[Event], Any], event: Event) -> None:
        try:
            result = fn(event)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it never reaches the emitter; it is shown
            _failed(pattern, event, error)
            return
        if inspect.isawaitable(result):
            task = asyncio.create_task(_finish(pattern, event, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _finish(pattern: str, event: Event, result: Awaitable[Any]) -> None:
    try:
        await result
    except Exception as error:  # noqa: BLE001 - as above
        _failed(pattern, event, error)


def _failed(pattern: str, event: Event, error: BaseException) -> None:
    signals.emit(
        signals.OBSERVER_FAILED,
        level="error",
        pattern=pattern,
        event_id=event.id,
        type=event.type,
        error=describe(error),
    )
