"""What `ws.send_mail` does: it makes the mail a JSON mapping and a durable run that will send it.

Nothing is sent here. The mapping holds all that an attempt needs, its Message-ID included, so that every attempt of
this mail, by whatever process, hands over the same one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from email.headerregistry import Address
from email.policy import SMTP
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import ValidationError
from piecework.ids import new_id
from piecework.services.mailing import JOB
from piecework.services.text import Builder, render
from piecework.services.transport import CONTROL, compose
from piecework.store import values

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Body = str | Awaitable[Any] | Callable[[Builder], Any]
    Addresses = str | Iterable[str] | None

_HEADER_NAME = re.compile(r"[!-9;-~]+")
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
    """

    def __init__(self, enqueue: Enqueue, *, sender: str | None, key: str | None, domain: str | None = None) -> None:
        self._enqueue = enqueue
        self._sender = sender
        self._key = key
        self._domain = domain
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

        Returns:
            The id of the run that sends it.

        Raises:
            ValidationError: An address, the subject or a header is not acceptable; nothing was enqueued.
        """
        recipients = _addresses(to, "to")
        run_id = self._run_id(recipients, _one_line(subject, "subject"))
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
        )
        domain = _domain_of(mail["sender"]) if self._domain is None else self._domain
        mail["message_id"] = message_id(run_id, domain)
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
) -> dict[str, Any]:
    """Makes a mail a mapping of JSON values; the arguments are those of `SendMail`.

    Returns:
        `to`, `cc`, `bcc`, `reply_to` (lists of addresses), `sender`, `subject`, `text`, `html` and `headers`.

    Raises:
        ValidationError: An address, the subject or a header is not acceptable.
    """
    mail: dict[str, Any] = {
        "to": _addresses(to, "to"),
        "cc": _addresses(cc, "cc"),
        "bcc": _addresses(bcc, "bcc"),
        "reply_to": _addresses(reply_to, "reply_to"),
        "sender": None if sender is None else _one_address(sender, "sender"),
        "subject": _one_line(subject, "subject"),
        "headers": _headers(headers or {}),
    }
    if not mail["to"]:
        raise ValidationError("to is empty: a mail needs at least one address", path="to")
    _check_composed(mail)
    mail["text"] = None if text is None else await render(text)
    mail["html"] = None if html is None else await render(html)
    values.encode(mail, what="mail")
    return mail


def _check_composed(mail: dict[str, Any]) -> None:
    # What is durable has to be deliverable: the headers are made once now, where the caller hears of it.
    sender = "nobody@piecework.invalid" if mail["sender"] is None else mail["sender"]
    compose({**mail, "text": None, "html": None}, message_id="<0@piecework.invalid>", sender=sender).as_bytes()


def message_id(run_id: str, domain: str) -> str:
    """The Message-ID that every attempt of the run's mail carries."""
    return f"<{run_id}@{domain}>"


def _domain_of(sender: str | None) -> str:
    return "piecework.invalid" if sender is None else sender.rsplit("@", 1)[1].rstrip(">")


def _one_address(value: Any, what: str) -> str:
    found = _addresses(value, what)
    if len(found) != 1:
        raise ValidationError(f"{what} has to be one address, not {len(found)}: {value!r:.80}", path=what)
    return found[0]


def _addresses(value: Any, what: str) -> list[str]:
    if value is not None and not isinstance(value, Iterable):
        raise ValidationError(f"{what} has to be an address or several, not {value!r:.80}", path=what)
    texts = [value] if isinstance(value, str) else list(value or ())
    return [str(address) for text in texts for address in _parsed(_one_line(text, what), what)]


def _parsed(text: str, what: str) -> list[Address]:
    try:
        header: Any = SMTP.header_factory("To", text)
        found = [_addressable(address) for address in header.addresses]
        wrong = header.defects or not found
    except Exception as error:  # the parser raises what it happens to trip over
        raise _no_address(text, what) from error
    if wrong:
        raise _no_address(text, what)
    return found


def _addressable(address: Address) -> Address:
    if not address.username or not address.domain or not address.username.isascii():
        raise ValueError(address)
    domain = address.domain if address.domain.isascii() else address.domain.encode("idna").decode("ascii")
    return Address(address.display_name, address.username, domain)


def _no_address(text: str, what: str) -> ValidationError:
    return ValidationError(
        f"{what} has {text!r:.80}, which is no mail address: write name@example.org or Name <name@example.org>, "
        "in ASCII before the @",
        path=what,
    )


def _one_line(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise ValidationError(f"{what} has to be a text, not {text!r:.80}", path=what)
    if CONTROL.search(text):
        raise ValidationError(f"{what} {text!r:.80} has a line break or control character: remove it", path=what)
    return text


def _headers(given: Mapping[str, str]) -> dict[str, str]:
    for name in given:
        if not _HEADER_NAME.fullmatch(name):
            raise ValidationError(
                f"the header name {name!r:.80} is not one of visible ASCII without a colon", path=name
            )
        if name.lower() in _OURS or name.lower().startswith("content-"):
            raise ValidationError(f"the header {name} is made from the mail itself: use the argument for it", path=name)
    return {name: _one_line(value, f"header {name}") for name, value in given.items()}
