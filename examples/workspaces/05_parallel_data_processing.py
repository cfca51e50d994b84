"""Parallel data processing: each user is worked on in an isolated workspace, all at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from model import app, run

if TYPE_CHECKING:
    from piecework import Workspace


@app.command("generate-user-report")
async def generate_user_report(ws: Workspace, user_id: int) -> None:
    """Writes down what there is to say of a user."""
    user = await ws.database.users.where(id=user_id).first()
    await ws.database.comments.insert(body=f"report of {user.name}")


@app.command("update-user-metrics")
async def update_user_metrics(ws: Workspace, user_id: int) -> None:
    """Counts the reports of a user."""
    user = await ws.database.users.where(id=user_id).first()
    reports = await ws.database.comments.where(body=f"report of {user.name}").count()
    await user.update(role=f"reports: {reports}")


async def process_user(ws: Workspace, user_id: int) -> dict[str, Any]:
    """Works on one user."""
    user = await ws.database.users.where(id=user_id).first()

    # Complex processing that might conflict if shared.
    await ws.run_command("generate-user-report", user_id=user.id)
    await ws.run_command("update-user-metrics", user_id=user.id)

    return {"user_id": user_id, "processed": True}


async def process_user_data(ws: Workspace, user_ids: list[int]) -> list[dict[str, Any]]:
    """Works on many users; the results come in the order of the ids."""
    # Process each user in an isolated workspace to prevent conflicts.
    results: list[dict[str, Any]] = await asyncio.gather(
        *(ws.run_in_new_workspace(process_user, user_id) for user_id in user_ids)
    )
    return results


async def process_in_batches(ws: Workspace, user_ids: list[int]) -> list[dict[str, Any]]:
    """The same with at most ten workspaces open at once: right for any number of ids."""
    return await ws.map_in_workspaces(process_user, user_ids, limit=10)


async def main() -> None:
    """Works on five users, and then on one of them again."""
    async with app.workspace() as ws:
        ids = [(await ws.database.users.insert(name=name)).id for name in ("Ada", "Bob", "Cleo", "Dan", "Eve")]
        print(*await process_user_data(ws, ids), sep="\n")
        print(*await process_in_batches(ws, ids[:1]), sep="\n")
        print(*sorted([f"{user.name}, {user.role}" for user in await ws.database.users.all()]), sep="\n")


if __name__ == "__main__":
    run(main)
