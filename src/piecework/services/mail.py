"""What `ws.send_mail` does: it makes the mail a JSON mapping and a durable run that will send it.

Nothing is sent here. The mapping holds all that an attempt needs, its Message-ID included, so that every attempt of
this mail, by whatever process, hands over the same one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import NotFoundError, ValidationError
from piecework.ids import new_id
from piecework.services import attachments as files
from piecework.services.addresses import addresses, one_address, one_line
from piecework.services.mailing import JOB
from piecework.services.text import Builder, render
from piecework.services.transport import compose
from piecework.store import values

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from piecework.services.attachments import Attachment

    Body = str | Awaitable[Any] | Callable[[Builder], Any]
    Addresses = str | Iterable[str] | None

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_MESSAGE_ID = re.compile(r"<[!-;=?A-~]+@[!-;=?A-~]+>")
_OURS = frozenset({"bcc", "cc", "date", "from", "message-id", "mime-version", "reply-to", "sender", "subject", "to"})


class Enqueue(Protocol):
    """What makes a run durable under an id; one of the same id that is there already stays as it is."""

    async def __call__(self, name: str, args: dict[str, Any], /, *, run_id: str) -> str:
        """Returns the run's id when it is committed."""
        ...


class SendMail:
    """Sends mails durably; one for each attempt of a step, or one for a workspace without a run.

    Args:
        enqueue: Makes the run.
        sender: The address that mails come from unless a call gives one; None leaves it to the transport.
        key: What stays the same when the work around is tried again: the same mails get the same ids then, and are
            not sent twice. None outside of runs: each call is a mail of its own.
        domain: The right side of Message-IDs; None means the sender's.
        limit_bytes: How large the files that are attached to one mail may be together.
    """

    def __init__(
        self,
        enqueue: Enqueue,
        *,
        sender: str | None,
        key: str | None,
        domain: str | None = None,
        limit_bytes: int = files.LIMIT_BYTES,
    ) -> None:
        self._enqueue = enqueue
        self._sender = sender
        self._key = key
        self._domain = domain
        self._limit_bytes = limit_bytes
        self._sent: Counter[str] = Counter()

    async def __call__(
        self,
        *,
        to: Addresses,
        subject: str,
        text: Body | None = None,
        html: Body | None = None,
        cc: Addresses = None,
        bcc: Addresses = None,
        reply_to: Addresses = None,
        sender: str | None = None,
        headers: Mapping[str, str] | None = None,
        attachments: Iterable[Attachment] = (),
    ) -> str:
        """Makes a mail durable; a run named `send-mail` sends it. Commits.

        Args:
            to: One address or several, plain or as `Ada <ada@example.org>`.
            subject: One line.
            text: The plain text: itself, or a function of a `Builder`, sync or async.
            html: The same as HTML; nothing is escaped.
            cc: Further addresses that everybody sees.
            bcc: Further addresses that nobody sees.
            reply_to: Where answers go.
            sender: Where it comes from; None means the app's.
            headers: Further headers by name.
            attachments: Files, each a path, `(name, bytes)` or `(name, bytes, "image/png")`; they are read now.

        Returns:
            The id of the run that sends it.

        Raises:
            ValidationError: An address, the subject, a header or a file is not acceptable; nothing was enqueued.
        """
        recipients = addresses(to, "to")
        run_id = self._run_id(recipients, one_line(subject, "subject"))
        mail = await build(
            to=recipients,
            subject=subject,
            text=text,
            html=html,
            cc=cc,
            bcc=bcc,
            reply_to=reply_to,
            sender=self._sender if sender is None else sender,
            headers=headers,
            attachments=attachments,
            limit_bytes=self._limit_bytes,
        )
        mail["message_id"] = message_id(run_id, domain_of(mail["sender"]) if self._domain is None else self._domain)
        return await self._enqueue(JOB, mail, run_id=run_id)

    def _run_id(self, to: list[str], subject: str) -> str:
        if self._key is None:
            return new_id()
        # Counted when the call is made: the order of calls is what a second attempt of the same work repeats.
        mail = json.dumps([self._key, to, subject])
        self._sent[mail] += 1
        return hashlib.sha256(f"{mail}#{self._sent[mail]}".encode()).hexdigest()[:32]


async def build(
    *,
    to: Addresses,
    subject: str,
    text: Body | None = None,
    html: Body | None = None,
    cc: Addresses = None,
    bcc: Addresses = None,
    reply_to: Addresses = None,
    sender: str | None = None,
    headers: Mapping[str, str] | None = None,
    attachments: Iterable[Attachment] = (),
    limit_bytes: int = files.LIMIT_BYTES,
) -> dict[str, Any]:
    """Makes a mail a mapping of JSON values; the arguments are those of `SendMail`.

    Returns:
        `to`, `cc`, `bcc`, `reply_to` (lists of addresses), `sender`, `subject`, `text`, `html`, `headers`, and
        `attachments` where there are some.

    Raises:
        ValidationError: An address, the subject, a header or a file is not acceptable.
    """
    mail = _headed(to=to, subject=subject, cc=cc, bcc=bcc, reply_to=reply_to, sender=sender, headers=headers)
    mail["text"] = None if text is None else await render(text)
    mail["html"] = None if html is None else await render(html)
    values.encode(mail, what="mail")
    read = await files.read(attachments, limit_bytes=limit_bytes)
    return {**mail, "attachments": read} if read else mail


def checked(args: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """Checks the arguments of a run of `send-mail`, and fills in what it was not given.

    Args:
        args: Those of `send_mail`, as JSON values, and perhaps a `message_id`.
        run_id: The run: its mail's Message-ID is made of it.

    Returns:
        What `build` makes, and the `message_id`.

    Raises:
        ValidationError: An argument is unknown, missing, or not acceptable.
    """
    for name in args:
        if name not in _ARGUMENTS:
            unknown = NotFoundError.among("argument of send-mail", name, _ARGUMENTS)
            raise ValidationError(unknown.message, path=name)
    missing = [name for name in ("to", "subject") if name not in args]
    if missing:
        raise ValidationError(f"send-mail needs {' and '.join(missing)}", path=missing[0])
    bodies = {name: args.get(name) for name in ("text", "html")}
    for name, body in bodies.items():
        if not isinstance(body, str | None):
            raise ValidationError(f"{name} of a stored mail has to be a text, not {body!r:.80}", path=name)
    given = {name: value for name, value in args.items() if name not in {*bodies, "attachments", "message_id"}}
    mail = _headed(**given) | bodies
    if args.get("attachments"):
        mail["attachments"] = files.check(args["attachments"])
    told = args.get("message_id")
    mail["message_id"] = message_id(run_id, domain_of(mail["sender"])) if told is None else _message_id(told)
    return mail


_ARGUMENTS = frozenset(
    {"to", "cc", "bcc", "reply_to", "sender", "subject", "headers", "text", "html", "attachments", "message_id"}
)


def _message_id(told: Any) -> str:
    if not isinstance(told, str) or not _MESSAGE_ID.fullmatch(told):
        raise ValidationError(f"message_id has to be <something@domain>, not {told!r:.80}", path="message_id")
    return told


def _headed(
    *,
    to: Addresses,
    subject: str,
    cc: Addresses = None,
    bcc: Addresses = None,
    reply_to: Addresses = None,
    sender: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All of a mail but its bodies."""
    mail: dict[str, Any] = {
        "to": addresses(to, "to"),
        "cc": addresses(cc, "cc"),
        "bcc": addresses(bcc, "bcc"),
        "reply_to": addresses(reply_to, "reply_to"),
        "sender": None if sender is None else one_address(sender, "sender"),
        "subject": one_line(subject, "subject"),
        "headers": _headers(headers or {}),
    }
    if not mail["to"]:
        raise ValidationError("to is empty: a mail needs at least one address", path="to")
    _check_composed(mail)
    return mail


def _check_composed(mail: dict[str, Any]) -> None:
    # What is durable has to be deliverable: the headers are made once now, where the caller hears of it.
    sender = "nobody@piecework.invalid" if mail["sender"] is None else mail["sender"]
    compose({**mail, "text": None, "html": None}, message_id="<0@piecework.invalid>", sender=sender).as_bytes()


def message_id(run_id: str, domain: str) -> str:
    """The Message-ID that every attempt of the run's mail carries."""
    return f"<{run_id}@{domain}>"


def domain_of(sender: str | None) -> str:
    """The right side of the Message-IDs of who sends; of nobody one that cannot exist."""
    return "piecework.invalid" if sender is None else sender.rsplit("@", 1)[1].rstrip(">")


def _headers(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValidationError(f"headers has to be a mapping of texts, not {given!r:.80}", path="headers")
    for name in given:
        if not _HEADER_NAME.fullmatch(name):
            raise ValidationError(
                f"the header name {name!r:.80} is not one of visible ASCII without a colon", path=name
            )
        if name.lower() in _OURS or name.lower().startswith("content-"):
            raise ValidationError(f"the header {name} is made from the mail itself: use the argument for it", path=name)
    return {name: one_line(value, f"header {name}") for name, value in given.items()}
