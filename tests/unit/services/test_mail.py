from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import PieceworkError, ValidationError
from piecework.services.mail import SendMail, build


class Queue:
    """Keeps what is enqueued, by id."""

    def __init__(self) -> None:
        self.runs: dict[str, dict] = {}

    async def __call__(self, name, args, /, *, run_id):
        assert name == "send-mail"
        self.runs.setdefault(run_id, json.loads(json.dumps(args)))
        return run_id


def sender(queue: Queue, key: str | None = None) -> SendMail:
    return SendMail(queue, sender="News <news@example.org>", key=key)


async def test_a_mail_is_a_durable_run():
    """send_mail returns the id of a run that holds all of the mail, its Message-ID too."""
    queue = Queue()
    run_id = await sender(queue)(
        to="a@b.c", subject="Welcome!", text=lambda mail: mail.line("Welcome to our platform!"), cc=["Ada <ada@b.c>"]
    )
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    assert queue.runs[run_id] == {
        "to": ["a@b.c"],
        "cc": ["Ada <ada@b.c>"],
        "bcc": [],
        "reply_to": [],
        "sender": "News <news@example.org>",
        "subject": "Welcome!",
        "headers": {},
        "text": "Welcome to our platform!",
        "html": None,
        "message_id": f"<{run_id}@example.org>",
    }


async def test_the_same_work_sends_the_same_mails():
    """Mails of the same key, tried again in the same order, get the same ids; the second of two alike is another."""
    queue = Queue()
    first, again = [
        [await send(to="a@b.c", subject=subject) for subject in ("x", "x", "y")]
        for send in (sender(queue, key="run/step"), sender(queue, key="run/step"))
    ]
    assert first == again
    assert len(queue.runs) == len(set(first)) == 3


async def test_mails_of_other_work_are_others():
    """Another key makes another mail, and without one each call is a mail of its own."""
    queue = Queue()
    for key in ("one", "two", None, None):
        await sender(queue, key=key)(to="a@b.c", subject="x")
    assert len(queue.runs) == 4


async def test_the_domain_of_message_ids_can_be_given():
    """The domain is the given one, else the sender's, else one that cannot exist."""
    queue = Queue()
    await SendMail(queue, sender=None, key=None, domain="news.test")(to="a@b.c", subject="x")
    await SendMail(queue, sender=None, key=None)(to="a@b.c", subject="x")
    domains = {run["message_id"].rpartition("@")[2] for run in queue.runs.values()}
    assert domains == {"news.test>", "piecework.invalid>"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": []},
        {"to": None},
        {"to": 7},
        {"to": "a@b.c\nBcc: x@y.z"},
        {"to": "nobody"},
        {"to": "@b.c"},
        {"to": "ä@b.c"},
        {"to": "a@b.c>"},
        {"cc": ["a@b.c\r"]},
        {"reply_to": "a@b.c, "},
        {"sender": "a@b.c, d@e.f"},
        {"subject": "x\r\nBcc: x@y.z"},
        {"subject": "x\u2028y"},
        {"subject": "=?utf-8?q?x=0aBcc: x@y.z?="},
        {"to": "=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=3D0aBcc=3A=3F=3D?= <a@b.c>"},
        {"headers": {"X-A": "=?utf-8?b?YQpCY2M6?="}},
        {"subject": 7},
        {"text": b"x"},
        {"text": "\ud800"},
        {"headers": {"X-A": "1\n2"}},
        {"headers": {"X A": "1"}},
        {"headers": {"Bcc": "x@y.z"}},
        {"headers": {"Content-Type": "x"}},
    ],
)
async def test_what_could_forge_or_lose_a_mail_is_refused(wrong):
    """A line break in a header, a wrong address or a text that cannot be stored is refused; nothing is enqueued."""
    queue = Queue()
    with pytest.raises(ValidationError):
        await sender(queue)(**({"to": "a@b.c", "subject": "x"} | wrong))
    assert queue.runs == {}


async def test_addresses_may_come_in_every_usual_form():
    """One address, several in a text or a list, names and domains with accents."""
    mail = await build(to=("Ada <ada@b.c>, bob@b.c", "Jörg <j@bücher.example>"), subject="")
    assert mail["to"] == ["Ada <ada@b.c>", "bob@b.c", "Jörg <j@xn--bcher-kva.example>"]


@given(st.text(max_size=60))
async def test_any_address_is_taken_or_refused(text):
    """Whatever is given as an address is taken as one without line breaks, or refused by an error of ours."""
    try:
        mail = await build(to=text, subject="x")
    except PieceworkError:
        return
    assert all("@" in address and not re.search(r"[\r\n]", address) for address in mail["to"])
    assert (await build(to=mail["to"], subject="x"))["to"] == mail["to"]
