from __future__ import annotations

import asyncio

import pytest

from piecework import Step
from piecework.errors import ValidationError

from .flows import ended, flow


async def delivered(app, run_id):
    return await app.runtime.wait(run_id, timeout_seconds=20)


@pytest.mark.covers("W34", "W36")
async def test_a_mail_from_a_function_of_one_line(make_app, mail_server):
    """`run_in_new_workspace(lambda send_mail: send_mail(…))` sends a mail: recipient, subject and text as given."""
    async with make_app(mail=mail_server.url) as app:
        await app.run_in_new_workspace(
            lambda send_mail: send_mail(
                to="ada@example.org", subject="Hello", text=lambda mail: mail.line("Welcome to our platform!")
            )
        )
        (mail,) = await mail_server.mails()
    assert (mail["to"], mail["subject"], mail["from"]) == ("ada@example.org", "Hello", "news@example.org")
    assert mail.get_content().strip() == "Welcome to our platform!"


@pytest.mark.covers("W36")
@pytest.mark.parametrize("to", ["", [], None, "nobody", "a@b.c\nBcc: x@y.z"])
async def test_a_mail_needs_a_recipient(make_app, to):
    """A mail without a recipient, or with one that is none, is refused where it is asked for; nothing is enqueued."""
    async with make_app() as app:
        async with app.workspace() as ws:
            with pytest.raises(ValidationError, match="to "):
                await ws.send_mail(to=to, subject="Hello", text="x")
        assert await app.runtime.list_all_runs() == []


@pytest.mark.covers("W35")
async def test_a_spawned_mail_holds_nothing_up(make_app, mail_server):
    """A mail from a spawned workspace: the caller goes on at once, and the mail arrives afterwards."""
    release = asyncio.Event()

    async def welcome(ws):
        await release.wait()
        await ws.send_mail(to="ada@example.org", subject="Welcome", text="x")

    async with make_app(mail=mail_server.url) as app:
        app.spawn_in_new_workspace(welcome)
        redirect = "/home"
        assert (redirect, mail_server.taken) == ("/home", [])
        release.set()
        assert (await mail_server.mails())[0]["subject"] == "Welcome"


@pytest.mark.covers("W37")
async def test_a_refused_mail_fails_nobody_and_is_tried_again(make_app, mail_server, clock):
    """A mail that the server refuses for now fails nobody: the run says why, and it is tried again later."""
    mail_server.replies = ["451 not now"]
    async with make_app(mail=mail_server.url, clock=clock) as app:
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to="ada@example.org", subject="Welcome", text="x")
        refused = asyncio.ensure_future(_refused(app, run_id))
        while not refused.done():
            await asyncio.wait({refused, asyncio.ensure_future(clock.until_asleep())}, return_when="FIRST_COMPLETED")
            await clock.advance(0.5)
        assert "451 not now" in await refused
        waiting = asyncio.ensure_future(delivered(app, run_id))
        while not waiting.done():
            await clock.advance(10)
        assert (await waiting).ok
    assert len(mail_server.taken) == 1


async def _refused(app, run_id):
    while True:
        for entry in await app.runtime.timeline(run_id):
            if entry.type == "job:again":
                return entry.payload["error"]["message"]


@pytest.mark.covers("N20")
async def test_a_mail_that_is_refused_for_good_fails(make_app, mail_server):
    """A mail that the server refuses for good fails with MAIL_REFUSED and the server's words; it is not tried again."""
    mail_server.replies = ["550 no such user"]
    async with make_app(mail=mail_server.url) as app:
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to="ada@example.org", subject="Welcome", text="x")
        result = await delivered(app, run_id)
        assert (await app.runtime.get(run_id)).error["code"] == "MAIL_REFUSED"
        assert "550 no such user" in result.error.message
    assert mail_server.taken == []


@pytest.mark.covers("N21")
async def test_a_step_that_runs_again_sends_its_mail_once(make_app, mail_server):
    """A step that runs again sends the same mails again under the same ids: each arrives once."""

    async def sends(ctx):
        for n in range(2):
            await ctx.workspace.send_mail(to="ada@example.org", subject="Digest", text=f"part {n}")
        if ctx.attempt == 1:
            raise RuntimeError("after the mails")

    async with make_app(flow(Step(sends, retries=1)), mail=mail_server.url) as app:
        assert (await ended(app, await app.publish("go"))).ok
        for info in await app.runtime.list_all_runs(kind="job"):
            assert (await delivered(app, info.run_id)).ok
    assert sorted(mail.get_content().strip() for mail in mail_server.taken) == ["part 0", "part 1"]


@pytest.mark.covers("N22")
async def test_a_mail_survives_a_restart(make_app, mail_server, clock):
    """A mail that `send_mail` answered for is durable: when it could not be sent, a node that starts later sends it."""
    async with make_app(mail="smtp://127.0.0.1:9?from=news@example.org", clock=clock) as app, app.workspace() as ws:
        run_id = await ws.send_mail(to="ada@example.org", subject="Later", text="x")
    await clock.advance(10)
    async with make_app(mail=mail_server.url, clock=clock) as app:
        assert (await delivered(app, run_id)).ok
    assert run_id in mail_server.taken[0]["message-id"]


@pytest.mark.covers("N23")
async def test_an_unknown_job_is_refused(app):
    """Enqueueing a job that there is not raises NOT_FOUND; no run is made."""
    from piecework.errors import NotFoundError

    with pytest.raises(NotFoundError, match="send-mial"):
        await app.enqueue("send-mial", {})
    assert await app.runtime.list_all_runs() == []
