"""How a mail leaves the process: a transport made from the app's mail URL.

`smtp://` and `smtps://` hand it to a server (`smtp`), `console:` prints it, `outbox:` keeps it for tests to look at.
"""

from __future__ import annotations

import sys
from collections import deque
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from piecework.errors import NotFoundError, ValidationError
from piecework.services import attachments
from piecework.services.addresses import CONTROL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

KEPT_LIMIT = 1000
"""How many mails an outbox keeps: an app that runs on with it must not grow for ever."""

# Servers without 8BITMIME are still about; seven bits pass everywhere.
_POLICY = SMTP.clone(cte_type="7bit")


class Transport(Protocol):
    """A way for mails out of the process.

    Attributes:
        sender: The address that mails come from when nobody says otherwise (`?from=` of the URL), or None.
    """

    sender: str | None

    async def deliver(self, message: Mapping[str, Any], *, message_id: str) -> dict[str, str]:
        """Hands a mail over, once.

        Args:
            message: What `mail.build` made.
            message_id: Its Message-ID, with the angle brackets.

        Returns:
            The recipients that were refused while others were accepted, each with what the server said.

        Raises:
            MailRefused: The mail was certainly not taken.
            MailUnknown: It was handed over, and whether it was taken is not known.
        """
        ...


class Outbox:
    """Keeps mails in memory.

    Args:
        sender: The address that mails come from when nobody says otherwise.
    """

    def __init__(self, sender: str | None = None) -> None:
        self.sender = sender
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT_LIMIT)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The mails so far, oldest first, each with its `message_id`; only the latest thousand are kept."""
        return list(self._kept)

    async def deliver(self, message: Mapping[str, Any], *, message_id: str) -> dict[str, str]:
        """Keeps the mail."""
        self._kept.append({**message, "message_id": message_id})
        return {}


class Console:
    """Prints mails to standard output.

    Args:
        sender: The address that mails come from when nobody says otherwise.
    """

    def __init__(self, sender: str | None = None) -> None:
        self.sender = sender

    async def deliver(self, message: Mapping[str, Any], *, message_id: str) -> dict[str, str]:
        """Prints the mail: its headers and what is attached, then its text, or its HTML where there is no text."""
        lines = [f"Message-ID: {message_id}"]
        sender = self.sender if message["sender"] is None else message["sender"]
        if sender is not None:
            lines.append(f"From: {sender}")
        lines += [f"{name.title()}: {', '.join(message[name])}" for name in ("to", "cc", "bcc") if message[name]]
        lines += [f"Attachment: {attachments.described(one)}" for one in message.get("attachments", ())]
        body = message["html"] if message["text"] is None else message["text"]
        lines += [f"Subject: {message['subject']}", "", body or "", ""]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        return {}


def transport_for(url: str) -> Transport:
    """Makes the transport that a mail URL names. Connects to nothing yet.

    Args:
        url: `smtp://user:password@host:port?from=address&starttls=auto`, `smtps://…`, `console:` or `outbox:`. With
            `starttls=required` a server that cannot encrypt gets no mail, with `never` nothing is encrypted; `auto`,
            the default, encrypts where the server offers it.

    Raises:
        ValidationError: The URL is none of these; it is not repeated, since it may hold a password.
        NotFoundError: It has an option that there is not.
        MissingExtraError: The part that speaks SMTP is not installed.
    """
    parts = urlsplit(url)
    server = parts.scheme in {"smtp", "smtps"}
    options = _options(parts, ["from", "starttls"] if server else ["from"])
    sender = options.get("from")
    if server:
        from piecework.services.smtp import Smtp

        return Smtp(parts, sender=sender, starttls=options.get("starttls"))
    if parts.scheme in {"console", "outbox"} and not parts.netloc and not parts.path:
        return Console(sender) if parts.scheme == "console" else Outbox(sender)
    raise ValidationError(
        f"the mail URL ({parts.scheme or 'without a scheme'}:…) has to be smtp://user:password@host:port?from=address, "
        "smtps://…, console: or outbox:"
    )


def compose(message: Mapping[str, Any], *, message_id: str, sender: str) -> EmailMessage:
    """Makes the mail that goes over the wire; hidden recipients are not in it.

    Args:
        message: What `mail.build` made.
        message_id: Its Message-ID, with the angle brackets.
        sender: Where it comes from.

    Raises:
        ValidationError: A header holds a line break, perhaps behind an encoding: it would become another header.
    """
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = sender
    mail["To"] = ", ".join(message["to"])
    for header, name in (("Cc", "cc"), ("Reply-To", "reply_to")):
        if message[name]:
            mail[header] = ", ".join(message[name])
    mail["Subject"] = message["subject"]
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = message_id
    for header, value in message["headers"].items():
        mail[header] = value
    _check_headers(mail)
    if message["html"] is None:
        mail.set_content(message["text"] or "")
    elif message["text"] is None:
        mail.set_content(message["html"], subtype="html")
    else:
        mail.set_content(message["text"])
        mail.add_alternative(message["html"], subtype="html")
    attachments.attach(mail, message.get("attachments", ()))
    return mail


def _check_headers(mail: EmailMessage) -> None:
    # EmailMessage decodes =?utf-8?q?a=0aBcc...?= when it is set and writes the line break out as it is.
    for name, value in mail.items():
        if CONTROL.search(str(value)):
            raise ValidationError(f"{name} {str(value)!r:.80} has a line break or control character: remove it")


def _options(parts: SplitResult, known: list[str]) -> dict[str, str]:
    options = dict(parse_qsl(parts.query))
    for name in options:
        if name not in known:
            raise NotFoundError.among("option of the mail URL", name, known)
    return options
