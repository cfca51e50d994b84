from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult

from piecework.services.database import Database
from piecework.services.tables import WorkspaceDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database file of its own; none of its threads is left when the test has ended."""
    database = Database(f"sqlite:///{tmp_path / 'app.db'}", pool_size=3)
    yield database
    await database.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "piecework-database"]


@pytest.fixture
async def db(database: Database) -> WorkspaceDatabase:
    """The database as a workspace sees it, with a table of users."""
    db = WorkspaceDatabase(database, closed=lambda: False, workspace_id="w1")
    await db.run(
        "create table users (id integer primary key, name text not null, email text unique, role text default 'reader',"
        " born_at datetime, settings json)"
    )
    return db


class MailServer:
    """Rules for a real SMTP server: set what it answers, look at what it took."""

    def __init__(self) -> None:
        self.port = 0
        self.taken: list[Any] = []
        self.data_reply = "250 taken"
        self.refused: dict[str, str] = {}
        self.drop_on_data = False
        self.before_reply: Callable[[], Awaitable[Any]] | None = None
        self.drop_at = ""
        self.encrypted: list[bool] = []

    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str, responses: Any) -> Any:  # noqa: N802 - aiosmtpd calls it so
        session.host_name = hostname
        self._drop(server, "EHLO")
        return responses

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        self._drop(server, "MAIL")
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 fine"

    def _drop(self, server: Any, at: str) -> None:
        if self.drop_at == at:
            server.transport.abort()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        self._drop(server, "RCPT")
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 fine"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        if self.data_reply.startswith("250"):
            self.taken.append(envelope)
            self.encrypted.append(session.ssl is not None)
        if self.drop_on_data:
            server.transport.abort()
        if self.before_reply is not None:
            await self.before_reply()
        return self.data_reply


@asynccontextmanager
async def serving(rules: MailServer, **options: Any) -> AsyncIterator[MailServer]:
    loop = asyncio.get_running_loop()
    made: list[SMTP] = []

    def protocol() -> SMTP:
        with warnings.catch_warnings():  # it warns of passwords without TLS, which is what is wanted here
            warnings.simplefilter("ignore", UserWarning)
            made.append(SMTP(rules, loop=loop, hostname="mail.test", **options))
        return made[-1]

    server = await loop.create_server(protocol, "127.0.0.1", 0)
    rules.port = server.sockets[0].getsockname()[1]
    try:
        yield rules
    finally:
        server.close()
        for each in made:
            if each.transport is not None:
                each.transport.abort()
        await server.wait_closed()


@pytest.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    """A mail server on a free port that takes everything until told otherwise."""
    async with serving(MailServer()) as rules:
        yield rules


def only_ada(server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(handled=False, success=data.login == b"ada" and data.password == b"s3cret/@")


@pytest.fixture
async def guarded_mail_server() -> AsyncIterator[MailServer]:
    """A mail server that only takes mails of ada, whose password is `s3cret/@`."""
    async with serving(MailServer(), authenticator=only_ada, auth_required=True, auth_require_tls=False) as rules:
        yield rules


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine that vouches for itself, and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mail.test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.fixture
async def encrypting_mail_server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MailServer]:
    """A mail server that takes mails only after STARTTLS; its certificate is trusted in this test."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    options = {"tls_context": context, "require_starttls": True, "authenticator": only_ada, "auth_required": False}
    async with serving(MailServer(), **options) as rules:
        yield rules
