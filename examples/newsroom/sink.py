"""A mail server that takes everything in and shows what arrived: real SMTP on loopback, nobody else gets a letter."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default as modern
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import SMTP

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class Mail:
    """One letter that arrived.

    Attributes:
        to: Its recipients, as the envelope names them.
        subject: Its subject, decoded.
        message_id: Its Message-ID: two letters of one id are one letter sent twice.
        text: Its plain text.
    """

    to: tuple[str, ...]
    subject: str
    message_id: str
    text: str


class Sink:
    """Listens on a free port of 127.0.0.1 while the context lasts, in the loop that opened it.

    Attributes:
        mails: What arrived, oldest first.
    """

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.BaseTransport] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._session, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for transport in self._sessions:
            transport.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """What an app is given as `mail`."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"smtp://127.0.0.1:{port}?from=newsroom@newsroom.example"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd looks for it
        """Takes one letter in; called by the SMTP session."""
        del server, session
        message = message_from_bytes(envelope.content, policy=modern)
        body = message.get_body(("plain", "html"))
        text = body.get_content() if body is not None else ""
        found = Mail(tuple(envelope.rcpt_tos), message["subject"] or "", message["message-id"] or "", text)
        self.mails.append(found)
        return "250 Taken in"

    def _session(self) -> SMTP:
        sink = self

        class Session(SMTP):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sink._sessions.add(transport)
                super().connection_made(transport)

            def connection_lost(self, error: Exception | None) -> None:
                sink._sessions.discard(self.transport)
                super().connection_lost(error)

        return Session(self, hostname="localhost", enable_SMTPUTF8=True, ident="newsroom")
