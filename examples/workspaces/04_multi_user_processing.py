"""Multi-user processing: all subscribers are told of a new post, page by page, in a workspace of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from model import app, mails, run

if TYPE_CHECKING:
    from piecework import Workspace


async def notify_subscribers(ws: Workspace) -> int | None:
    """Tells whoever subscribes to anything; answers how many pages of them there were."""
    post_id, base_url = ws.params["id"], ws.params["_url"]

    async def notify(ws: Workspace) -> int | None:
        post = await ws.database.posts.where(id=post_id).first()
        if post is None:
            return None

        title, slug = post.title, post.slug
        url = urljoin(base_url, f"/{slug}")

        # Process the subscribers in batches. (`async for user in ….iterate(100)` is the same loop in one line.)
        page = 1
        while True:
            users = await ws.database.users.where(subscriptions={"tier": ["free", "paid"]}).paginate(page, 100).all()

            if len(users) == 0:
                break

            for user in users:
                await user.notify(lambda mail: mail.line(f'New post: "{title}"').line(f"Read at: {url}"))

            page += 1
        return page - 1

    pages: int | None = await ws.run_in_new_workspace(notify)
    return pages


async def main() -> None:
    """Tells 250 subscribers of a post, one of whom subscribes twice, and a stranger of nothing."""
    async with app.workspace() as ws, ws.database.transaction():
        post = await ws.database.posts.insert(title="Tea", slug="tea")
        for number in range(1, 252):
            user = await ws.database.users.insert(name=f"Reader {number}", email=f"reader{number:03}@example.org")
            for tier in {1: ("free", "paid"), 251: ()}.get(number, ("free",)):
                await ws.database.subscriptions.insert(user_id=user.id, tier=tier)

    handler = app.workspace(params={"id": post.id, "_url": "https://blog.example.org/posts/new"})
    print("pages:", await handler.run(notify_subscribers))
    missing = app.workspace(params={"id": post.id + 1, "_url": "https://blog.example.org"})
    print("pages of a post that is not there:", await missing.run(notify_subscribers))
    async with asyncio.timeout(20):
        told = await mails()
    print(len(told), "mails; the first and the last:", told[0], told[-1], sep="\n")


if __name__ == "__main__":
    run(main)
