"""How many workspaces of an app may be open at once, and who hears of them.

Whoever comes when all places are taken waits, first come first served. A workspace that is opened inside another one
must not wait for the place of its own ancestor: so when every open workspace waits for one inside it, the first of
those gets a place beyond the limit. As long as one of them has no such child, it will end and make room.
"""

# ruff: noqa: SLF001 - a workspace and its place are one thing in two parts

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from piecework.clock import SystemClock
from piecework.errors import ValidationError, WorkspacesLimitError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.clock import Clock
    from piecework.workspace.workspace import Workspace

EVENTS = ("created", "called", "closing", "closed")
_TOLD = 3


class Workspaces:
    """The open workspaces of an app; forks are part of the one that they are forks of, and do not count.

    Args:
        limit: How many may be open at once.
        wait_seconds: How long one waits for a place.
        clock: Measures how long they are open.

    Attributes:
        limit: How many may be open at once.
        holders: The workspaces that have a place, the longest open first.
        queue: Who waits for one.
    """

    def __init__(self, limit: int = 1000, *, wait_seconds: float = 30, clock: Clock | None = None) -> None:
        if limit < 1:
            raise ValidationError(f"workspaces_limit is {limit}: at least one place is needed", limit=limit)
        self.limit = limit
        self.monotonic: Callable[[], float] = (
            time.monotonic if clock is None or type(clock) is SystemClock else clock.monotonic
        )
        self.listeners: dict[str, list[Callable[[Workspace], Any]]] | None = None
        self._wait_seconds = wait_seconds
        self.holders: dict[Workspace, None] = {}
        self.queue: deque[tuple[Workspace, asyncio.Future[None]]] = deque()
        self._busy = 0

    @property
    def open(self) -> int:
        """How many are open now."""
        return len(self.holders)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not future.done() for _, future in self.queue)

    def all(self) -> list[Workspace]:
        """Those that are open, the longest open first."""
        return list(self.holders)

    def on(self, event: str, fn: Callable[[Workspace], Any]) -> Callable[[], None]:
        """Has a plain function called whenever a workspace or a fork comes so far.

        Args:
            event: created, called (its body begins), closing or closed (`ws.report` is there).
            fn: Gets the workspace; what it raises is logged and reaches nobody.

        Returns:
            A function that ends it.

        Raises:
            ValidationError: There is no such event.
        """
        if event not in EVENTS:
            raise ValidationError(f"a workspace has no event {event!r}: choose among {', '.join(EVENTS)}", event=event)
        if self.listeners is None:
            self.listeners = {}
        listeners = self.listeners.setdefault(event, [])
        listeners.append(fn)

        def off() -> None:
            if fn in listeners:
                listeners.remove(fn)
            if self.listeners is not None and not any(self.listeners.values()):
                self.listeners = None

        return off

    def tell(self, event: str, ws: Workspace) -> None:
        """Calls who wants to hear of it."""
        for fn in tuple((self.listeners or {}).get(event, ())):
            try:
                fn(ws)
            except Exception as error:  # noqa: BLE001 - told; whoever opens or closes a workspace is not to blame
                signals.emit(
                    signals.LISTENER_FAILED, level="error", event_name=event, workspace_id=ws.id, error=describe(error)
                )

    def take(self, ws: Workspace, above: Workspace | None) -> bool:
        """Takes a place if there is one and nobody waits; False where it has to be waited for.

        Args:
            ws: Who wants it.
            above: The open workspace that it is opened inside of, or None.
        """
        if self.queue or len(self.holders) >= self.limit:
            return False
        self.holders[ws] = None
        if above is not None:
            self._add_below(above)
        return True

    async def wait(self, ws: Workspace, above: Workspace | None) -> None:
        """Waits for a place.

        Raises:
            WorkspacesLimitError: There was none in time; the message names who has them.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (ws, future)
        self.queue.append(entry)
        if above is not None:
            ws._above = above
            self._add_below(above)
        try:
            self._hand_on()
            async with asyncio.timeout(self._wait_seconds) as limit:
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self.leave(ws, above)  # the place came together with the end of the waiting
            else:
                if entry in self.queue:  # not when a place came free after the cancel, and passed this one by
                    self.queue.remove(entry)
                self._forget_below(above)
                self._hand_on()
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._none_left() from error
            raise

    def leave(self, ws: Workspace, above: Workspace | None) -> None:
        """Gives the place back; the last thing that a workspace does."""
        del self.holders[ws]
        if above is not None:
            self._forget_below(above)
        self.left(ws)

    def left(self, ws: Workspace) -> None:
        """Does what has to follow when a place was given back."""
        if ws._below:
            self._busy -= 1
        if self.queue:
            self._hand_on()

    def holds(self, ws: Workspace) -> bool:
        """Tells whether it has a place."""
        return ws in self.holders

    def _add_below(self, above: Workspace) -> None:
        above._below += 1
        if above._below == 1 and above in self.holders:
            self._busy += 1

    def _forget_below(self, above: Workspace | None) -> None:
        if above is None:
            return
        above._below -= 1
        if not above._below and above in self.holders:
            self._busy -= 1

    def _hand_on(self) -> None:
        """Gives places to those who wait: in their order while there is room, beyond the limit when nobody can end."""
        while self.queue:
            if len(self.holders) < self.limit:
                entry = self.queue[0]
            elif self._busy == len(self.holders):
                nested = next((entry for entry in self.queue if entry[0]._above is not None), None)
                if nested is None:
                    return
                entry = nested
            else:
                return
            self.queue.remove(entry)
            ws, future = entry
            if not future.done():
                self.holders[ws] = None
                future.set_result(None)

    def _none_left(self) -> WorkspacesLimitError:
        now = self.monotonic()
        longest = [f"{ws.id} for {now - (ws._opened or now):.1f} s ({ws._what})" for ws in list(self.holders)[:_TOLD]]
        return WorkspacesLimitError(
            f"no workspace could be opened within {self._wait_seconds:g} s: {self.open} are open, workspaces_limit is "
            f"{self.limit}, and {self.waiting} more wait. The longest open: {', '.join(longest)}. Await what is open, "
            "open fewer at once (map_in_workspaces has a limit), or raise workspaces_limit",
            limit=self.limit,
            open=self.open,
            waiting=self.waiting,
            holders=[ws.id for ws in self.holders],
        )
