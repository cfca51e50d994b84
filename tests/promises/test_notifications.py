from __future__ import annotations

import asyncio

import pytest

from piecework import Step
from piecework.clock import SECOND
from piecework.errors import InvalidStateError, ValidationError
from piecework.services.notifications import Notifications

from .flows import ended, flow

USERS = "create table users (id integer primary key, email text, role text, notify_frequency text)"
PEOPLE = (
    {"email": "ada@example.org", "role": "admin", "notify_frequency": None},
    {"email": "bob@example.org", "role": "admin", "notify_frequency": "daily"},
    {"email": "eve@example.org", "role": "admin", "notify_frequency": "none"},
    {"email": "joe@example.org", "role": "reader", "notify_frequency": "asap"},
)


@pytest.fixture
def make_news(make_app, database, clock):
    """Makes apps with users."""

    def make(*workflows, **options):
        return make_app(*workflows, database=database, clock=clock, config={"title": "News"}, **options)

    return make


async def with_users(app):
    async with app.workspace() as ws:
        await ws.database.run(USERS)
        for person in PEOPLE:
            await ws.database.users.insert(**person)


async def user(ws, name="ada"):
    """The row of somebody."""
    return await ws.database.users.where(email=f"{name}@example.org").first()


async def mails(app, clock, count, *, seconds=0):
    """Lets time pass, and waits until so many mails were sent; answers who was told what."""
    await clock.advance(seconds)
    async with asyncio.timeout(20):
        while len(app.mail.messages) < count:
            await asyncio.sleep(0.001)
            await clock.advance(0.01)  # a node that found a row locked looks again a second later
    return sorted((mail["to"][0], mail["subject"], mail["text"]) for mail in app.mail.messages)


async def delivered(app):
    """Waits until every run that is due has ended."""
    for info in await app.runtime.list_all_runs(kind="job"):
        if info.status != "queued":
            assert (await app.runtime.wait(info.run_id, timeout_seconds=20)).ok


@pytest.mark.covers("W30", "W16")
async def test_each_admin_is_told_of_a_comment(make_news, clock):
    """A child notifies each admin in turn: each of them gets one notification with the comment's body."""

    async def notify_users(ws, comment):
        for admin in await ws.database.users.where(role="admin").all():
            await admin.notify(lambda mail: mail.line(f"New comment: {comment}"))
        return ws.user

    async with make_news() as app:
        await with_users(app)
        async with app.workspace(user={"id": 9}) as ws:
            assert await ws.run_in_new_workspace(notify_users, "well said") is None
        assert app.mail.messages == []
        told = ("News: 1 notification", "New comment: well said")
        assert await mails(app, clock, 1, seconds=600) == [("ada@example.org", *told)]
        assert await mails(app, clock, 2, seconds=86_400) == [("ada@example.org", *told), ("bob@example.org", *told)]


@pytest.mark.covers("W48")
async def test_two_lines_of_a_notification(make_news, clock):
    """A notification of two lines, a title and an address, has them joined by one line break."""
    async with make_news() as app:
        await with_users(app)
        async with app.workspace() as ws:
            await (await user(ws)).notify(
                lambda mail: mail.line('New post: "Tea"').line("Read at: https://example.org/tea")
            )
        ((_, _, text),) = await mails(app, clock, 1, seconds=600)
    assert text == 'New post: "Tea"\nRead at: https://example.org/tea'


async def test_notifications_are_collected(make_news, clock):
    """What comes within ten minutes goes in one mail: what is alike counted, the rest divided, in its order."""
    async with make_news() as app:
        await with_users(app)
        async with app.workspace() as ws:
            ada = await user(ws)
            for text in ("one", "two", "one"):
                await ada.notify(text, subject="Comment")
                await clock.advance(100)
        told = await mails(app, clock, 1, seconds=300)
        assert told == [
            ("ada@example.org", "News: 3 notifications", "Comment\n\none\n(2 times)\n\n---\n\nComment\n\ntwo")
        ]
        await delivered(app)
        assert app.store is not None
        counts = await app.store.read("info_tables", {})
        assert {name: number for name, number in counts if name in {"digests", "notifications"}} == {
            "digests": 0,
            "notifications": 0,
        }


async def test_a_forced_notification_is_told_at_once(make_news, clock):
    """`force=True` tells it at once, with all that has been waiting; not to who wants to hear nothing."""
    async with make_news() as app:
        await with_users(app)
        async with app.workspace() as ws:
            ada = await user(ws)
            await ada.notify("first")
            assert await (await user(ws, "eve")).notify("never", force=True) is None
            await ada.notify("now", force=True)
        told = await mails(app, clock, 1)
        await clock.advance(3600)
        await delivered(app)
        assert (
            await mails(app, clock, 1) == told == [("ada@example.org", "News: 2 notifications", "first\n\n---\n\nnow")]
        )


async def test_a_notification_survives_a_restart(make_news, clock):
    """A notification that `notify` answered for is durable: a node that starts later tells it."""
    async with make_news() as app:
        await with_users(app)
        async with app.workspace() as ws:
            await (await user(ws)).notify("later")
    clock.set(clock.now() + 3600 * SECOND)
    async with make_news() as app:
        assert [text for _, _, text in await mails(app, clock, 1)] == ["later"]


async def test_a_step_that_runs_again_notifies_once(make_news, clock):
    """A step that runs again tells the same notifications under the same ids: each is told once."""

    async def tells(ctx):
        for reader in await ctx.workspace.database.users.where(role="reader").all():
            await reader.notify("once")
        if ctx.attempt == 1:
            raise RuntimeError("after the notifications")

    async with make_news(flow(Step(tells, retries=1))) as app:
        await with_users(app)
        run = asyncio.ensure_future(ended(app, await app.publish("go")))
        while not run.done():
            await clock.advance(0.1)
        assert (await run).ok
        assert [text for _, _, text in await mails(app, clock, 1, seconds=600)] == ["once"]


async def test_spaces_are_told_apart(make_news, clock):
    """What is told to one address in two spaces goes in two mails, each a run of its space."""
    async with make_news() as app:
        await with_users(app)
        for space in ("acme", "other"):
            async with app.workspace(space=space) as ws:
                await (await user(ws)).notify(f"in {space}")
        assert [text for _, _, text in await mails(app, clock, 2, seconds=600)] == ["in acme", "in other"]
        sent = [info for info in await app.runtime.list_all_runs() if info.workflow_id == "send-mail"]
        assert {info.space for info in sent} == {"acme", "other"}


async def test_many_people_are_told_by_one_delivery(make_news, clock):
    """However many people are told something at one moment, one run delivers it, one mail each."""
    async with make_news() as app:
        await with_users(app)

        async def tell(ws, number):
            await (await ws.database.users.insert(email=f"user-{number}@example.org")).notify("hello")

        await app.map_in_workspaces(tell, range(120))
        assert len(await mails(app, clock, 120, seconds=600)) == 120
        runs = await app.runtime.list_all_runs(kind="job")
        assert sum(info.workflow_id == "deliver-notifications" for info in runs) == 1


async def test_a_client_s_notification_is_told_by_the_node(make_news, clock):
    """A client keeps a notification in the node's store; the node tells it."""
    async with make_news() as app:
        await with_users(app)
        async with make_news().open(role="client") as client, client.workspace() as ws:
            row = await ws.database.users.where(role="reader").first()
            await row.notify("from afar")
        assert [text for _, _, text in await mails(app, clock, 1, seconds=600)] == ["from afar"]


async def test_a_row_without_an_address_is_not_notified(make_news):
    """`notify` on a row without an `email` is refused, and so is one outside of a workspace; nothing is kept."""
    async with make_news() as app:
        await with_users(app)
        async with app.workspace() as ws:
            ada = await user(ws)
            await ws.database.run("create table posts (id integer primary key)")
            post = await ws.database.posts.insert()
            with pytest.raises(ValidationError, match="column email"):
                await post.notify("x")
        with pytest.raises(InvalidStateError, match="no current workspace"):
            await ada.notify("x")
        assert await app.runtime.list_all_runs() == []


async def test_a_job_of_the_users_can_deliver(make_news, clock):
    """Where a job of the user's delivers, notifications only wait, until it awaits `notifications.deliver()`."""
    async with make_news() as app:
        kept = Notifications(
            app.store, app.clock, lambda: None, title="News", sender="news@example.org", delivers=lambda: False
        )
        for number in range(5):
            await kept.add(
                notification_id=f"n-{number}",
                email=f"user-{number}@example.org",
                body="Hello",
                subject="Hello",
                frequency="asap",
                force=False,
                space=None,
            )
        assert (await kept.deliver(), await app.runtime.list_all_runs()) == (0, [])
        await clock.advance(600)
        assert await kept.deliver(limit=2) == 5
        told = [info.workflow_id for info in await app.runtime.list_all_runs()]
        assert told == ["send-mail"] * 5
        assert await kept.deliver() == 0


async def test_the_delivery_can_be_asked_for(make_news, clock):
    """The job `deliver-notifications` can be queued like any other; it mails what is due and says how much."""
    async with make_news() as app:
        await with_users(app)
        with pytest.raises(ValidationError, match="limit"):
            await app.enqueue("deliver-notifications", {"limit": 0})
        run_id = await app.enqueue("deliver-notifications", {"limit": 5})
        assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok
        assert await app.notifications.deliver() == 0
