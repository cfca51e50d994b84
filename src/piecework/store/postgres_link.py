"""How a PostgreSQL server is reached, and what its errors mean to us.

An address is checked when it is given; its password appears in no message. Every connection is set up alike: our schema
alone on its search path, bounded waits for locks, nobody who sits in an open transaction for ever.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from piecework.errors import PieceworkError, StoreError, StoreFullError, StoreUnavailableError, ValidationError
from piecework.store.postgres_schema import Place

SCHEMES = ("postgresql", "postgres")
_SCHEMA = "piecework"
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_SECRET = frozenset({"password", "passfile", "sslpassword"})
_CONTENDED = frozenset({"40P01", "40001", "55P03", "23505"})
"""A deadlock, a lost race, a lock that did not come, two creators of one row: all go away when it is tried again."""

_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "25P03", "25006"})
"""Shut down, crashed, starting, too many sessions, cut for being idle; read-only: a replica until it takes over."""

_UNKNOWN_OPTION = "42704"
_DISK_FULL = frozenset({"53100"})
_WRONG_PASSWORD = frozenset({"28P01", "28000"})
_NO_DATABASE = frozenset({"3D000"})
_NOT_ALLOWED = frozenset({"42501"})
_STARTING = frozenset({"57P03"})
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is, and how it is reached.

    Attributes:
        dsn: For the driver, with its secrets; never shown.
        place: The schema, and the address as it may be shown.
    """

    dsn: str
    place: Place

    def __repr__(self) -> str:
        return f"Address({self.place.url!r})"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `postgresql://[user[:password]@]host[:port]/database[?schema=NAME&…]`.

        Raises:
            ValidationError: It is no such address, or the schema's name is not a plain word.
        """
        try:
            parts = urlsplit(url)
            options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise ValidationError(f"the store's address cannot be read: {error}") from None
        schema = dict(options).get("schema", _SCHEMA)
        if parts.scheme not in SCHEMES:
            raise ValidationError("a PostgreSQL store is named postgresql://USER@HOST/DATABASE[?schema=NAME]")
        if not _PLAIN.fullmatch(schema) or schema.lower().startswith("pg_") or schema == "information_schema":
            raise ValidationError(
                f"{schema!r} cannot be a store's schema: a word of letters, digits and _ is needed, at most 63 long "
                "and not PostgreSQL's own",
                schema=schema,
            )
        theirs = [(name, value) for name, value in options if name != "schema"]
        dsn = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(theirs), ""))
        shown = [(name, value) for name, value in theirs if name not in _SECRET]
        if schema != _SCHEMA:
            shown.append(("schema", schema))
        place = urlunsplit((parts.scheme, _without_password(parts.netloc), parts.path, urlencode(shown), ""))
        return cls(dsn, Place(schema, place))


def _without_password(netloc: str) -> str:
    user, at, host = netloc.rpartition("@")
    name = quote(unquote(user.partition(":")[0]), safe="")
    return f"{name}{at}{host}"


@dataclass(frozen=True, slots=True)
class Link:
    """Makes connections to one address, all set up alike. May be used from any event loop.

    Attributes:
        address: Where to.
        connect_seconds: How long the making of one may take.
        lock_seconds: How long a statement waits for a lock.
        idle_seconds: How long a transaction may stand still before the server ends it.
        silence_seconds: How long a server that does not acknowledge what is sent counts as alive.
    """

    address: Address
    connect_seconds: float = 10
    lock_seconds: float = 5
    idle_seconds: float = 30
    silence_seconds: float = 30

    async def connect(self) -> asyncpg.Connection[Any]:
        """Makes a connection.

        Raises:
            OSError: The server cannot be reached; also a TimeoutError.
            asyncpg.PostgresError: It refused.
            asyncpg.InterfaceError: The address makes no sense to the driver.
        """
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            self.address.dsn,
            timeout=self.connect_seconds,
            statement_cache_size=500,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            server_settings={"application_name": "piecework"},
        )
        try:
            self._keep_alive(connection)
            await connection.execute(self._setup(), timeout=self.connect_seconds)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def first(self) -> asyncpg.Connection[Any]:
        """Makes a connection when a store is opened, waiting for a server that is just starting.

        Raises:
            StoreUnavailableError: The server cannot be reached.
            StoreError: It can, and refuses: the password, the role, the database; trying again does not help.
        """
        deadline = asyncio.get_running_loop().time() + self.connect_seconds
        while True:
            try:
                return await self.connect()
            except Exception as error:
                starting = getattr(error, "sqlstate", None) in _STARTING
                if not starting or asyncio.get_running_loop().time() >= deadline:
                    raise self._refusal(error) from error
            await asyncio.sleep(_PAUSE_SECONDS)

    def _setup(self) -> str:
        settings = {
            "search_path": f"{self.address.place.quoted}, pg_temp",
            "lock_timeout": f"{round(self.lock_seconds * 1000)}",
            "idle_in_transaction_session_timeout": f"{round(self.idle_seconds * 1000)}",
            "statement_timeout": "0",
            "default_transaction_isolation": "'read committed'",
            "client_min_messages": "warning",
            "jit": "off",
        }
        return ";".join(f"SET {name} = {value}" for name, value in settings.items())

    def _keep_alive(self, connection: asyncpg.Connection[Any]) -> None:
        """Has the kernel find out that a server is gone which said nothing: a power cut, a broken network."""
        transport: Any = getattr(connection, "_transport", None)  # asyncpg has no other door to its socket
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        seconds = max(2, round(self.silence_seconds))
        options = {"TCP_KEEPIDLE": seconds // 2, "TCP_KEEPINTVL": 1, "TCP_USER_TIMEOUT": seconds * 1000}
        for name, value in options.items():
            option = getattr(socket, name, None)  # not every system has all of them
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def _refusal(self, error: Exception) -> Exception:
        state, url = getattr(error, "sqlstate", None), self.address.place.url
        if isinstance(error, PieceworkError):
            return error
        if state in _WRONG_PASSWORD:
            return StoreError(f"{url} refuses the role or its password ({error}): correct them in the store's address")
        if state in _NO_DATABASE:
            return StoreError(f"{url} has no such database ({error}): create it, or correct the store's address")
        if state in _NOT_ALLOWED:
            return StoreError(f"{url} does not let this role in ({error}): GRANT CONNECT ON DATABASE to it")
        if state == _UNKNOWN_OPTION:
            return StoreError(f"{url} does not know an option of the store's address ({error}): remove it")
        if isinstance(error, asyncpg.InterfaceError | ValueError):
            return StoreError(f"the store's address {url} cannot be used ({error}): correct it")
        why = str(error) or f"no answer within {self.connect_seconds:g} seconds"
        return StoreUnavailableError(
            f"{url} cannot be reached ({why}): is the server running, and are host and port right?", path=url
        )


def is_contended(error: BaseException) -> bool:
    """Whether somebody else was in the way, so that the same may go through when it is tried again."""
    return getattr(error, "sqlstate", None) in _CONTENDED or isinstance(error, asyncpg.InvalidCachedStatementError)


def is_lost(error: BaseException, connection: asyncpg.Connection[Any]) -> bool:
    """Whether the server or this connection has gone, so that another connection may help."""
    if isinstance(error, PieceworkError):
        return False
    gone = isinstance(error, asyncpg.PostgresConnectionError) or getattr(error, "sqlstate", None) in _LOST
    return gone or connection.is_closed()


def translate(error: BaseException, url: str) -> Exception:
    """What a caller is told: our own errors and the user's as they are, the database's with the address."""
    told: StoreError
    if getattr(error, "sqlstate", None) in _DISK_FULL:
        told = StoreFullError(f"the disk under {url} is full: make room, nothing was lost", path=url)
    elif isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError):
        told = StoreError(f"the store {url} failed: {error}", path=url)
    elif isinstance(error, asyncio.CancelledError | StopIteration) or not isinstance(error, Exception):
        told = StoreError(f"a decision of the store {url} ended with {error!r}", path=url)
    else:
        return error
    told.__cause__ = error
    return told
