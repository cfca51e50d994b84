from __future__ import annotations

import asyncio

import pytest

from piecework import Settings, Step
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


@pytest.mark.covers("W67")
async def test_a_slow_server_holds_no_answer_up(make_app, mail_server):
    """A handler has answered, and its workspace has closed, while the server has still to answer for the mail."""
    reached, answer = asyncio.Event(), asyncio.Event()
    mail_server.on_data = reached.set
    mail_server.before_answer = answer.wait

    async def handler(ws):
        return await ws.send_mail(to="ada@example.org", subject="Welcome", text="x")

    async with make_app(mail=mail_server.url) as app:
        run_id = await app.run_in_new_workspace(handler)
        await reached.wait()
        assert (await app.runtime.get(run_id)).status == "running"
        answer.set()
        assert (await delivered(app, run_id)).ok


@pytest.mark.covers("W96")
async def test_a_child_mails_the_address_of_the_callers_row(make_app, database, mail_server):
    """A child awaits its mail to an address that was taken from the caller's row as a plain value."""
    async with make_app(mail=mail_server.url, database=database) as app, app.workspace() as ws:
        await ws.database.run("create table users (id integer primary key, email text)")
        email = (await ws.database.users.insert(email="ada@example.org")).email
        run_id = await ws.run_in_new_workspace(lambda send_mail: send_mail(to=email, subject="Welcome!", text="x"))
        assert (await delivered(app, run_id)).ok
    assert [mail["to"] for mail in mail_server.taken] == ["ada@example.org"]


async def test_a_mail_carries_files(make_app, mail_server, tmp_path):
    """A mail takes files along, by path or as bytes, as they were when it was asked for."""
    report = tmp_path / "report.csv"
    report.write_bytes(b"a;b")
    async with make_app(mail=mail_server.url) as app:
        async with app.workspace() as ws:
            files = [report, ("logo.png", bytes(range(256)))]
            run_id = await ws.send_mail(to="ada@example.org", subject="Report", text="see there", attachments=files)
        report.unlink()
        assert (await delivered(app, run_id)).ok
    found = [(file.get_filename(), file.get_payload(decode=True)) for file in mail_server.taken[0].iter_attachments()]
    assert found == [("report.csv", b"a;b"), ("logo.png", bytes(range(256)))]


async def test_a_mail_that_is_too_large_is_refused(make_app):
    """Files beyond what a mail may carry are refused where it is asked for: five eighths of a payload."""
    async with make_app(settings=Settings(payload_limit_bytes=1600)) as app, app.workspace() as ws:
        with pytest.raises(ValidationError, match="1000 bytes"):
            await ws.send_mail(to="a@b.c", subject="x", attachments=[("a.bin", b"x" * 1001)])
        await ws.send_mail(to="a@b.c", subject="x", attachments=[("a.bin", b"x" * 700)])
        assert len(await app.runtime.list_all_runs()) == 1


@pytest.mark.parametrize("args", [{"subject": "x"}, {"to": "a@b.c", "subject": "x", "txt": "y"}])
async def test_a_mail_that_is_queued_by_hand_is_checked(make_app, args):
    """`send-mail` can be queued like any job: what it lacks, or does not know, is refused there; the rest is sent."""
    async with make_app() as app:
        with pytest.raises(ValidationError, match="send-mail"):
            await app.enqueue("send-mail", args)
        assert await app.runtime.list_all_runs() == []
        run_id = await app.enqueue("send-mail", {"to": "a@b.c", "subject": "x", "text": "y"})
        assert (await delivered(app, run_id)).ok
        assert [(mail["to"], mail["message_id"]) for mail in app.mail.messages] == [
            (["a@b.c"], f"<{run_id}@piecework.invalid>")
        ]


async def test_a_mail_that_is_lost_twice_is_given_up(make_app, mail_server, clock):
    """A server that takes the mail and drops the line twice leaves it unknown: two with one id, then it has failed."""
    mail_server.drops = 2
    async with make_app(mail=mail_server.url, clock=clock) as app:
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to="ada@example.org", subject="Welcome", text="x")
        waiting = asyncio.ensure_future(delivered(app, run_id))
        while not waiting.done():
            await clock.advance(1)
        assert (await waiting).error.code == "DELIVERY_UNKNOWN"
    assert [mail["message-id"] for mail in mail_server.taken] == [f"<{run_id}@example.org>"] * 2


async def test_a_mail_that_is_lost_once_is_sent_again(make_app, mail_server, clock):
    """A mail whose outcome is unknown once is sent once more, under the same id, and is done."""
    mail_server.drops = 1
    async with make_app(mail=mail_server.url, clock=clock) as app:
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to="ada@example.org", subject="Welcome", text="x")
        waiting = asyncio.ensure_future(delivered(app, run_id))
        while not waiting.done():
            await clock.advance(1)
        assert (await waiting).ok
    assert [mail["message-id"] for mail in mail_server.taken] == [f"<{run_id}@example.org>"] * 2
