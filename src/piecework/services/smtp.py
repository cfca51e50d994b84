"""Mail over SMTP. Needs the extra `[mail]`.

The commands are given one by one, not through the client's all-in-one call: whether a lost connection means "refused"
or "unknown" depends on whether the mail's data had been offered yet. Before DATA nothing can have been taken; from
DATA on a missing reply leaves it open. A connection serves one mail.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from email.policy import SMTP as HEADERS
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from piecework.errors import MailRefused, MailUnknown, MissingExtraError, ValidationError
from piecework.services.transport import compose

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.headerregistry import Address
    from urllib.parse import SplitResult

    import aiosmtplib

COMMAND_SECONDS = 60.0
"""How long a server may take to connect or to answer a command."""

GOODBYE_SECONDS = 5.0
"""How long it may take to answer QUIT: until then nobody else knows that it has the mail."""

FINAL_REPLY_SECONDS = 600.0
"""How long it may take to answer the data: impatience here makes second copies (RFC 5321, 4.5.3.2.6)."""

_STARTTLS = {None: None, "auto": None, "required": True, "never": False}


class Smtp:
    """Hands mails to an SMTP server; with STARTTLS where the server offers it, always encrypted with `smtps`.

    Args:
        parts: The URL; the port is 465 for `smtps`, else 587 with a user and 25 without one when it names none.
        sender: The address that mails come from when nobody says otherwise.
        starttls: `auto` (also when None), `required` or `never`.
        command_seconds: How long the server may take to answer a command.
        final_reply_seconds: How long it may take to answer the data.

    Raises:
        ValidationError: The URL names no host, or an encryption that there is not.
        MissingExtraError: The extra is not installed.
    """

    def __init__(
        self,
        parts: SplitResult,
        *,
        sender: str | None,
        starttls: str | None = None,
        command_seconds: float = COMMAND_SECONDS,
        final_reply_seconds: float = FINAL_REPLY_SECONDS,
    ) -> None:
        if importlib.util.find_spec("aiosmtplib") is None:
            raise MissingExtraError.needs("mail over SMTP", "mail")
        if not parts.hostname or parts.path not in {"", "/"}:
            raise ValidationError(f"the mail URL has to be {parts.scheme}://user:password@host:port?from=address")
        self.sender = sender
        self._host = parts.hostname
        self._encrypted = parts.scheme == "smtps"
        self._starttls = _starttls(starttls, encrypted=self._encrypted)
        self._user = None if parts.username is None else unquote(parts.username)
        self._password = None if parts.password is None else unquote(parts.password)
        self._port = _port_of(parts)
        self._command_seconds = command_seconds
        self._final_reply_seconds = final_reply_seconds

    async def deliver(self, message: Mapping[str, Any], *, message_id: str) -> dict[str, str]:
        """Hands a mail to the server, once.

        Args:
            message: What `mail.build` made.
            message_id: Its Message-ID, with the angle brackets.

        Returns:
            The recipients that were refused while others were accepted, each with what the server said.

        Raises:
            MailRefused: The server, or the way to it, certainly did not take it.
            MailUnknown: It was handed over, and the reply was lost.
        """
        import aiosmtplib

        sender = self.sender if message["sender"] is None else message["sender"]
        if sender is None:
            raise MailRefused("the mail has no sender: give ?from= in the mail URL, or sender=", permanent=True)
        try:
            data = compose(message, message_id=message_id, sender=sender).as_bytes()
        except ValueError as error:
            raise MailRefused(f"the mail cannot be written: {error}", permanent=True) from error
        recipients = list(dict.fromkeys(_bare(one) for name in ("to", "cc", "bcc") for one in message[name]))
        client = self._client()
        try:
            refused = await self._open_envelope(client, _bare(sender), recipients)
            await self._hand_over(client, data)
            # The mail is the server's now; how the goodbye goes changes nothing about it.
            with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=GOODBYE_SECONDS)
        finally:
            client.close()
        return refused

    def _client(self) -> aiosmtplib.SMTP:
        import aiosmtplib

        return aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=self._user,
            password=self._password,
            use_tls=self._encrypted,
            start_tls=False if self._encrypted else self._starttls,
            timeout=self._command_seconds,
            # Without it the client looks its own name up in a thread that a slow name server can hold for minutes.
            local_hostname=_own_name(),
        )

    async def _open_envelope(self, client: aiosmtplib.SMTP, sender: str, recipients: list[str]) -> dict[str, str]:
        import aiosmtplib

        refused: dict[str, aiosmtplib.SMTPResponseException] = {}
        try:
            await client.connect()
            await client.mail(sender)
            for recipient in recipients:
                try:
                    await client.rcpt(recipient)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused[recipient] = error
        except aiosmtplib.SMTPResponseException as error:
            raise MailRefused(f"{self._name}: {_said(error)}", permanent=_for_good(error)) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailRefused(f"{self._name}: {error}") from error
        said = {recipient: _said(error) for recipient, error in refused.items()}
        if len(refused) == len(recipients):
            all_of_it = "; ".join(f"{recipient}: {text}" for recipient, text in said.items())
            raise MailRefused(f"{self._name}: {all_of_it}", permanent=all(map(_for_good, refused.values())))
        return said

    async def _hand_over(self, client: aiosmtplib.SMTP, data: bytes) -> None:
        import aiosmtplib

        try:
            await client.data(data, timeout=self._final_reply_seconds)
        except aiosmtplib.SMTPResponseException as error:
            if 400 <= error.code < 600:
                raise MailRefused(f"{self._name}: {_said(error)}", permanent=_for_good(error)) from error
            raise MailUnknown(f"{self._name} answered the mail with what is no SMTP: {_said(error)}") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailUnknown(f"{self._name} was lost before it said whether it took the mail: {error}") from error

    @property
    def _name(self) -> str:
        return f"{self._host}:{self._port}"


def _starttls(word: str | None, *, encrypted: bool) -> bool | None:
    if word is not None and encrypted:
        raise ValidationError("smtps:// is encrypted from its first byte: leave starttls= out, or write smtp://")
    if word not in _STARTTLS:
        known = ", ".join(name for name in _STARTTLS if name)
        raise ValidationError(f"starttls={word} in the mail URL has to be one of {known}")
    return _STARTTLS[word]


def _port_of(parts: SplitResult) -> int:
    try:
        if parts.port is not None:
            return parts.port
    except ValueError as error:
        raise ValidationError(f"the port in the mail URL is no number below 65536 ({parts.hostname})") from error
    if parts.scheme == "smtps":
        return 465
    return 25 if parts.username is None else 587


def _own_name() -> str:
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "[127.0.0.1]"


def _bare(address: str) -> str:
    header: Any = HEADERS.header_factory("To", address)
    found: Address = header.addresses[0]
    return found.addr_spec


def _for_good(error: aiosmtplib.SMTPResponseException) -> bool:
    return 500 <= error.code < 600


def _said(error: aiosmtplib.SMTPResponseException) -> str:
    return f"{error.code} {error.message}"
