"""Testing with clean state: a workspace that has a database of its own, with all tables and no rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model import app, run

if TYPE_CHECKING:
    from piecework import Workspace


async def test_user_creation(ws: Workspace) -> None:
    """Creates users in two workspaces, neither of which sees the other's."""
    # The main test workspace.
    await ws.database.users.insert(name="User 1")

    async def isolated(ws: Workspace) -> None:
        count = await ws.database.users.count()
        print("in the isolated workspace:", count)  # 0
        await ws.database.users.insert(name="User 2")
        # User 2 will not be visible in the main workspace.

    # The isolated test will not see User 1.
    await ws.workspace(data="clean").run(isolated)

    # Back in the main workspace: only User 1 is seen.
    main_count = await ws.database.users.count()
    print("in the main workspace:", main_count)  # 1


async def main() -> None:
    """Runs it as a test would."""
    await app.run_in_new_workspace(test_user_creation)


if __name__ == "__main__":
    run(main)
