"""Email sending in the background: whoever signs in is answered while the welcome mail is on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model import app, mails, redirect, run

if TYPE_CHECKING:
    from piecework import Workspace
    from piecework.workspace.supervise import Handle

background: list[Handle] = []
"""What was started and not awaited: kept here only for this program to wait for it at its end."""


async def sign_in_user(ws: Workspace, email: str) -> dict[str, str]:
    """Signs somebody in and welcomes them."""
    user = await ws.database.users.where(email=email).first()

    # Send the welcome email in the background. Parameters of the function are services of the new workspace.
    child = ws.spawn_in_new_workspace(
        lambda send_mail: send_mail(
            to=user.email,
            subject="Welcome!",
            text=lambda mail: mail.line("Welcome to our platform!"),
        )
    )
    background.append(child)

    # Continue with the main flow immediately.
    return redirect(url="/dashboard")


async def main() -> None:
    """Has Ada sign in."""
    async with app.workspace() as ws:
        await ws.database.users.insert(name="Ada", email="ada@example.org")

    print(await app.run_in_new_workspace(sign_in_user, "ada@example.org"))
    for child in background:
        await child.result()
    print(*await mails(), sep="\n")


if __name__ == "__main__":
    run(main)
