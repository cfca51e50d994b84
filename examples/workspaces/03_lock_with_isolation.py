"""Database locking with isolation: a lock in this workspace and the same in another do not stand in each other's way.

Both are had, one after the other: a lock has one holder at a time. What does not happen is that two on one connection
get in a muddle, or wait for each other for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from model import app, run

if TYPE_CHECKING:
    from piecework import Workspace

holders: list[str] = []
"""Who has the lock now: never two."""


async def hold(ws: Workspace, name: str) -> None:
    """Holds the lock for 100 ms."""
    async with ws.database.lock():
        holders.append(name)
        print(f"{name} holds the lock, with it {len(holders) - 1} others")
        await asyncio.sleep(0.1)
        holders.remove(name)


async def database_lock_with_workspace_isolation(ws: Workspace) -> None:
    """Takes a lock twice at once, in two workspaces."""
    await asyncio.gather(
        # Lock in the current workspace.
        hold(ws, "this workspace"),
        # Lock in a separate workspace: it will not conflict.
        ws.run_in_new_workspace(hold, "the other workspace"),
    )


async def main() -> None:
    """Runs it as a test would."""
    await app.run_in_new_workspace(database_lock_with_workspace_isolation)
    print("both are done")


if __name__ == "__main__":
    run(main)
