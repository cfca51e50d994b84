from __future__ import annotations

import asyncio
import email
import email.policy
import smtplib
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import MissingExtraError, NotFoundError, ValidationError
from piecework.services.delivery import MailRefused, MailUnknown
from piecework.services.mail import build
from piecework.services.transport import compose, transport_for

ID = "<1@example.org>"


async def mail(**parts):
    return await build(**({"to": "ada@example.org", "subject": "Hello", "text": "Hello Ada"} | parts))


def smtp(server, login=""):
    return transport_for(f"smtp://{login}127.0.0.1:{server.port}?from=news@example.org")


async def deliver(server, **parts):
    return await smtp(server).deliver(await mail(**parts), message_id=ID)


def parsed(envelope):
    return email.message_from_bytes(envelope.content, policy=email.policy.default)


async def test_a_server_takes_a_mail(mail_server):
    """What the server takes is the mail, its Message-ID, and every recipient, the hidden ones only on the envelope."""
    refused = await deliver(
        mail_server, cc="Jörg <j@example.org>", bcc="boss@example.org", reply_to="desk@example.org", text="Grüße\n.\nx"
    )
    (taken,) = mail_server.taken
    content = parsed(taken)
    assert refused == {}
    assert (taken.mail_from, taken.rcpt_tos) == (
        "news@example.org",
        ["ada@example.org", "j@example.org", "boss@example.org"],
    )
    assert (content["Message-ID"], content["Cc"], content["Bcc"]) == (ID, "Jörg <j@example.org>", None)
    assert content.get_content().splitlines() == ["Grüße", ".", "x"]


async def test_text_and_html_are_alternatives(mail_server):
    """A mail with both bodies carries both; own headers are there."""
    await deliver(mail_server, html="<p>Hello</p>", headers={"X-Kind": "digest"})
    content = parsed(mail_server.taken[0])
    assert [part.get_content_type() for part in content.iter_parts()] == ["text/plain", "text/html"]
    assert content["X-Kind"] == "digest"


async def test_some_refused_recipients_do_not_keep_the_mail_from_the_others(mail_server):
    """A mail that some recipients are refused for is sent to the rest, and the answer says who was refused."""
    mail_server.refused = {"bob@example.org": "550 unknown"}
    refused = await deliver(mail_server, to=["ada@example.org", "bob@example.org"])
    assert refused == {"bob@example.org": "550 unknown"}
    assert mail_server.taken[0].rcpt_tos == ["ada@example.org"]


@pytest.mark.parametrize(("replies", "permanent"), [(("550 no", "550 no"), True), (("550 no", "450 later"), False)])
async def test_a_mail_that_every_recipient_is_refused_for_is_refused(mail_server, replies, permanent):
    """All recipients refused is a refusal; for good only when each of them is."""
    mail_server.refused = dict(zip(["a@example.org", "b@example.org"], replies, strict=True))
    with pytest.raises(MailRefused, match=r"a@example.org: 550 no; b@") as caught:
        await deliver(mail_server, to=list(mail_server.refused))
    assert caught.value.permanent is permanent


@pytest.mark.parametrize(("reply", "permanent"), [("451 later", False), ("554 spam", True)])
async def test_refused_data_is_a_refusal(mail_server, reply, permanent):
    """A 4xx to the data is a refusal for now, a 5xx one for good."""
    mail_server.data_reply = reply
    with pytest.raises(MailRefused, match=reply) as caught:
        await deliver(mail_server)
    assert caught.value.permanent is permanent


async def test_a_connection_lost_after_the_data_leaves_it_unknown(mail_server):
    """When the connection is lost after the data nobody knows: the server may have taken it, as here."""
    mail_server.drop_on_data = True
    with pytest.raises(MailUnknown, match=f"127.0.0.1:{mail_server.port}"):
        await deliver(mail_server)
    assert len(mail_server.taken) == 1


async def test_a_reply_that_does_not_come_leaves_it_unknown(mail_server):
    """A server that takes the data and does not answer in time leaves it unknown."""
    hold = asyncio.Event()
    mail_server.before_reply = hold.wait
    transport = smtp(mail_server)
    transport._final_reply_seconds = 0.05
    with pytest.raises(MailUnknown):
        await transport.deliver(await mail(), message_id=ID)
    hold.set()


async def test_a_reply_that_is_no_smtp_leaves_it_unknown(mail_server):
    """A server that answers the data with nonsense leaves it unknown."""
    mail_server.data_reply = "fine, thanks"
    with pytest.raises(MailUnknown, match="no SMTP"):
        await deliver(mail_server)


async def test_a_server_that_is_not_there_is_a_refusal():
    """A connection that is refused is a refusal for now."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        transport = transport_for(f"smtp://127.0.0.1:{closed.getsockname()[1]}?from=a@b.c")
        with pytest.raises(MailRefused) as caught:
            await transport.deliver(await mail(), message_id=ID)
    assert caught.value.permanent is False


async def test_a_password_is_given(guarded_mail_server):
    """User and password of the URL, percent-encoded there, are what the server gets."""
    await smtp(guarded_mail_server, "ada:s3cret%2F%40@").deliver(await mail(), message_id=ID)
    assert len(guarded_mail_server.taken) == 1


@pytest.mark.parametrize("login", ["", "ada:wrong@"])
async def test_a_wrong_password_is_a_refusal_for_good(guarded_mail_server, login):
    """Without the right password nothing is taken, and the error does not repeat it."""
    with pytest.raises(MailRefused) as caught:
        await smtp(guarded_mail_server, login).deliver(await mail(), message_id=ID)
    assert caught.value.permanent is True
    assert "wrong" not in str(caught.value)


async def test_smtps_is_never_plain(mail_server):
    """With smtps nothing is said to a server that does not encrypt."""
    transport = transport_for(f"smtps://127.0.0.1:{mail_server.port}?from=a@b.c")
    with pytest.raises(MailRefused):
        await transport.deliver(await mail(), message_id=ID)
    assert mail_server.taken == []


async def test_a_mail_without_a_sender_is_refused(mail_server):
    """Without a sender anywhere the refusal says where to give one."""
    transport = transport_for(f"smtp://127.0.0.1:{mail_server.port}")
    with pytest.raises(MailRefused, match="from="):
        await transport.deliver(await mail(), message_id=ID)
    await transport.deliver(await mail(sender="Ed <ed@example.org>"), message_id=ID)
    assert mail_server.taken[0].mail_from == "ed@example.org"


async def test_a_cancelled_delivery_leaves_no_connection(mail_server):
    """Cancelling a delivery closes its connection and is passed on."""
    reached, hold = asyncio.Event(), asyncio.Event()

    async def wait():
        reached.set()
        await hold.wait()

    mail_server.before_reply = wait
    delivery = asyncio.create_task(deliver(mail_server))
    await reached.wait()
    delivery.cancel()
    await asyncio.wait([delivery])
    hold.set()
    assert delivery.cancelled()


async def test_an_outbox_keeps_what_was_sent():
    """outbox: keeps each mail with its Message-ID."""
    outbox = transport_for("outbox:?from=news@example.org")
    await outbox.deliver(await mail(), message_id=ID)
    assert outbox.sender == "news@example.org"
    assert [(one["to"], one["text"], one["message_id"]) for one in outbox.messages] == [
        (["ada@example.org"], "Hello Ada", ID)
    ]


async def test_the_console_shows_what_was_sent(capsys):
    """console: prints headers and text."""
    await transport_for("console:").deliver(await mail(), message_id=ID)
    assert capsys.readouterr().out == f"Message-ID: {ID}\nTo: ada@example.org\nSubject: Hello\n\nHello Ada\n\n"


@pytest.mark.parametrize(
    "url",
    ["", "mail.example.org", "http://u:geheim@h", "smtp://", "smtp://u:geheim@h:99999", "outbox://x", "smtp://h/p"],
)
def test_a_mail_url_of_another_kind_is_refused(url):
    """A URL that is none of the four kinds is refused, and a password in it is not repeated."""
    with pytest.raises(ValidationError) as caught:
        transport_for(url)
    assert "geheim" not in str(caught.value)


def test_an_unknown_option_is_refused():
    """An option that there is not is told with the one there is."""
    with pytest.raises(NotFoundError, match=r"'form'.*'from'"):
        transport_for("outbox:?form=a@b.c")


@pytest.mark.parametrize(("url", "port"), [("smtp://h", 25), ("smtp://u@h", 587), ("smtps://u@h", 465)])
def test_the_port_follows_from_the_kind(url, port):
    """Without a port it is 465 for smtps, 587 with a user, else 25."""
    assert transport_for(url)._port == port


def test_smtp_without_its_extra_says_what_to_install(monkeypatch):
    """Without the extra an smtp URL is refused when the transport is made, with the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"piecework\[mail\]"):
        transport_for("smtp://h")


def test_the_extra_is_imported_on_first_use_only():
    """Making an SMTP transport does not import the part that speaks SMTP."""
    code = "import sys; from piecework.services import transport; transport.transport_for('smtp://h'); "
    code += "print('aiosmtplib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=200), st.text(max_size=200))
async def test_every_mail_can_be_put_into_bytes(subject, text):
    """Whatever subject and text were accepted, the mail is seven-bit, and its headers end where they should."""
    text = text.encode("utf-8", "replace").decode()
    message = await mail(subject=subject, text=text)
    data = compose(message, message_id=ID, sender="news@example.org").as_bytes()
    back = email.message_from_bytes(data, policy=email.policy.default)
    assert data.isascii()
    assert sorted(name.lower() for name in back) == sorted(
        ["from", "to", "subject", "date", "message-id", "content-type", "content-transfer-encoding", "mime-version"]
    )
    assert smtplib._fix_eols(data.decode()).encode() == data


async def test_a_password_and_a_mail_go_encrypted(encrypting_mail_server):
    """With STARTTLS, which is used where a server offers it, user, password and mail go encrypted."""
    await smtp(encrypting_mail_server, "ada:s3cret%2F%40@").deliver(await mail(), message_id=ID)
    assert len(encrypting_mail_server.taken) == 1
    assert encrypting_mail_server.encrypted == [True]


async def test_encryption_can_be_required(mail_server, encrypting_mail_server):
    """With starttls=required a server that offers no encryption gets nothing, one that does gets the mail."""
    for server, taken in ((mail_server, 0), (encrypting_mail_server, 1)):
        url = f"smtp://ada:s3cret%2F%40@127.0.0.1:{server.port}?from=a@b.c&starttls=required"
        if taken:
            await transport_for(url).deliver(await mail(), message_id=ID)
        else:
            with pytest.raises(MailRefused, match="STARTTLS"):
                await transport_for(url).deliver(await mail(), message_id=ID)
        assert len(server.taken) == taken


async def test_encryption_can_be_left_out(encrypting_mail_server):
    """With starttls=never nothing is encrypted, and a server that wants it to be refuses for good."""
    url = f"smtp://127.0.0.1:{encrypting_mail_server.port}?from=a@b.c&starttls=never"
    with pytest.raises(MailRefused, match="STARTTLS") as caught:
        await transport_for(url).deliver(await mail(), message_id=ID)
    assert caught.value.permanent is True


async def test_a_certificate_of_nobody_is_a_refusal(encrypting_mail_server, monkeypatch):
    """A server whose certificate nobody vouches for gets no mail."""
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(MailRefused, match="certificate"):
        await deliver(encrypting_mail_server)
    assert encrypting_mail_server.taken == []


@pytest.mark.parametrize("options", ["smtp://h?starttls=yes", "smtps://h?starttls=required"])
def test_an_encryption_that_there_is_not_is_refused(options):
    """Another word than auto, required and never, or one beside smtps, is refused."""
    with pytest.raises(ValidationError, match="starttls="):
        transport_for(options)


@pytest.mark.parametrize("at", ["EHLO", "MAIL", "RCPT"])
async def test_a_connection_lost_before_the_data_is_a_refusal(mail_server, at):
    """A line that is dropped before the mail was offered leaves no doubt: it was not taken, and may be tried again."""
    mail_server.drop_at = at
    with pytest.raises(MailRefused) as caught:
        await deliver(mail_server)
    assert (caught.value.permanent, mail_server.taken) == (False, [])


async def test_a_server_that_never_says_a_word_is_a_refusal():
    """A server that takes the connection and is silent is given up after a while, and nothing was taken."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        transport = transport_for(f"smtp://127.0.0.1:{silent.getsockname()[1]}?from=a@b.c")
        transport._command_seconds = 0.05
        with pytest.raises(MailRefused) as caught:
            await transport.deliver(await mail(), message_id=ID)
    assert caught.value.permanent is False


async def test_the_console_names_what_is_attached(capsys):
    """What is printed has a line for each file."""
    await transport_for("console:").deliver(await mail(attachments=[("a.png", b"xyz")]), message_id=ID)
    assert "Attachment: a.png (image/png, 3 bytes)" in capsys.readouterr().out
