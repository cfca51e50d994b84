"""Background user notifications: a handler answers at once, and tells the admins of a comment in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model import app, mails, redirect, run

if TYPE_CHECKING:
    from piecework import Workspace
    from piecework.workspace.supervise import Handle

background: list[Handle] = []
"""What was started and not awaited: kept here only for this program to wait for it at its end."""


async def success(ws: Workspace, comment_id: int) -> dict[str, str]:
    """Answers who has written a comment."""
    # Trigger notifications in the background without affecting the response. What is not awaited is spawned.
    child = ws.spawn_in_new_workspace(notify_users, comment_id=comment_id, current_user_id=ws.user["id"])
    background.append(child)

    print("the handler answers; everybody is notified:", child.done)
    return redirect(target="_top")


async def notify_users(ws: Workspace, comment_id: int, current_user_id: int) -> None:
    """Tells all admins but the one who wrote it."""
    # Runs in an isolated context: nothing of the main request is affected.
    comment = await ws.database.comments.where(id=comment_id).first()
    if comment is None:
        return

    users = await ws.database.users.where(id__ne=current_user_id, role="admin").all()

    for user in users:
        await user.notify(lambda mail: mail.line(f"New comment: {comment.body}"))


async def main() -> None:
    """Has Ada, an admin herself, write a comment."""
    async with app.workspace() as ws:
        ada, *_ = [
            await ws.database.users.insert(name=name, email=f"{name.lower()}@example.org", role=role)
            for name, role in (("Ada", "admin"), ("Bob", "admin"), ("Cleo", "admin"), ("Dan", "reader"))
        ]
        # What is to be seen in another workspace has to be committed: without a transaction it is, at once.
        comment = await ws.database.comments.insert(body="Well said!")

    print(await app.workspace(user={"id": ada.id}).run(success, comment.id))
    print(await app.workspace(user={"id": ada.id}).run(success, comment.id + 1))
    for child in background:
        await child.result()
    print(*await mails(), sep="\n")


if __name__ == "__main__":
    run(main)
