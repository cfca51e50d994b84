"""A real mail server inside the test: what it took is there to look at, and what it answers can be said."""

from __future__ import annotations

import asyncio
from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from email.message import EmailMessage


class MailServer:
    """Takes mails on a free port of this machine.

    Attributes:
        url: For `App(mail=…)`.
        taken: The mails that were accepted, parsed.
        replies: What the next mails are answered with; 250 when there is nothing.
        on_data: Called when a mail's data is here and before the answer; None for nothing.
        before_answer: Awaited then; None for nothing.
        drops: How many of the next mails are taken and then, instead of an answer, the line is dropped.
    """

    def __init__(self) -> None:
        self.url = ""
        self.taken: list[EmailMessage] = []
        self.replies: list[str] = []
        self.on_data: Callable[[], Any] | None = None
        self.before_answer: Callable[[], Awaitable[Any]] | None = None
        self.drops = 0
        self._arrived = asyncio.Event()
        self._made: list[SMTP] = []

    async def start(self) -> None:
        """Listens."""
        loop = asyncio.get_running_loop()

        def protocol() -> SMTP:
            self._made.append(SMTP(self, loop=loop, hostname="mail.test"))
            return self._made[-1]

        self._server = await loop.create_server(protocol, "127.0.0.1", 0)
        self.url = f"smtp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}?from=news@example.org"

    async def stop(self) -> None:
        """Ends every conversation and listens no more."""
        self._server.close()
        for each in self._made:
            if each.transport is not None:
                each.transport.abort()
        await self._server.wait_closed()

    async def mails(self, count: int = 1) -> list[EmailMessage]:
        """Waits until that many mails were taken, and answers them all."""
        async with asyncio.timeout(20):
            while len(self.taken) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.taken

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        """Takes a mail, or answers what it was told to."""
        reply = self.replies.pop(0) if self.replies else "250 taken"
        if reply.startswith("250"):
            self.taken.append(message_from_bytes(envelope.content, policy=policy.default))
            self._arrived.set()
        if self.on_data is not None:
            self.on_data()
        if self.before_answer is not None:
            await self.before_answer()
        if self.drops:
            self.drops -= 1
            server.transport.abort()
        return reply
