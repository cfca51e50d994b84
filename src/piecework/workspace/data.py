"""Which data a workspace works on: the app's own, a copy of its tables that are empty, or a transaction that is undone.

What stands for the app's database is handed down like any override: to forks, to the workspaces that are opened inside,
to what is spawned, and to the jobs that are queued and run in this process.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework.errors import InvalidStateError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.workspace.supervise import Handle

SHARED = "shared"
ROLLBACK = "rollback"
CLEAN = "clean"
MODES = (SHARED, ROLLBACK, CLEAN)

DATABASE = "application_database"
"""The service that something else stands for where data is not shared."""


class Data:
    """What stands for the app's database in a workspace whose data is not shared, and in those below it.

    Attributes:
        mode: `rollback` or `clean`.
    """

    mode: str = ""

    def __init__(self) -> None:
        self._spawned: set[Handle] = set()

    def joined_by(self, handle: Handle) -> None:
        """Notes a child that nobody awaits: what it works on is not taken away while it runs."""
        self._spawned.add(handle)

    async def drain(self) -> None:
        """Waits for the children that nobody awaits, and for theirs."""
        while self._spawned:
            handle = self._spawned.pop()
            await asyncio.wait((handle.task,))


def check_data(mode: str) -> str:
    """Checks the name of a mode.

    Raises:
        ValidationError: There is no such mode.
    """
    if mode not in MODES:
        raise ValidationError(f"data={mode!r}: choose among {', '.join(map(repr, MODES))}", data=mode)
    return mode


def data_of(overrides: Mapping[str, Any] | None) -> Data | None:
    """What is worked on where these stand for services; None: the app's own database."""
    found = overrides.get(DATABASE) if overrides else None
    return found if isinstance(found, Data) else None


def without(overrides: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The same overrides, with the app's own database."""
    if data_of(overrides) is None:
        return overrides
    return {name: value for name, value in (overrides or {}).items() if name != DATABASE} or None


def check_reach(overrides: Mapping[str, Any] | None, where: str) -> None:
    """Refuses to let another process work for a workspace whose data only this process knows.

    Args:
        overrides: What stands for services in the workspace.
        where: Who would do the work, in words.

    Raises:
        InvalidStateError: Its data is not shared.
    """
    data = data_of(overrides)
    if data is not None:
        raise InvalidStateError(
            f"{where} would work on the app's own database, and this workspace has data={data.mode!r}, which only this "
            "process knows: do it here, or from ws.workspace(data='shared'), which says that it is meant",
            data=data.mode,
        )
