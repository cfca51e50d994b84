"""From a store's address to the store: which engine it is, and whether that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.errors import MissingExtraError, ValidationError

if TYPE_CHECKING:
    from piecework.clock import Clock
    from piecework.store.contract import Store

_KINDS = "sqlite:///FILE (four slashes for an absolute path) or postgresql://USER@HOST/DATABASE[?schema=NAME]"


def store_for(
    url: str,
    *,
    clock: Clock | None = None,
    pool_size: int = 10,
    connect_seconds: float = 10,
    reconnect_seconds: float = 30,
    create: bool = True,
) -> Store:
    """Makes the store that an address names; it is not open yet.

    Args:
        url: `sqlite:///FILE`, or `postgresql://…` (also `postgres://…`).
        clock: What the node goes by; None means the machine's own.
        pool_size: Connections to a server; a file needs none.
        connect_seconds: How long the making of one may take.
        reconnect_seconds: How long a server may be away before what waits for it fails.
        create: Whether a schema that is not there is made; a file always is.

    Raises:
        ValidationError: It names no kind of store that there is.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    check_kind(url)
    if url.startswith("sqlite:"):
        from piecework.store.sqlite import SqliteStore, sqlite_path

        return SqliteStore(sqlite_path(url))
    try:
        from piecework.store.postgres import PostgresStore
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise MissingExtraError.needs("a store in PostgreSQL", "postgres") from error
    return PostgresStore(
        url,
        clock=clock,
        pool_size=pool_size,
        connect_seconds=connect_seconds,
        reconnect_seconds=reconnect_seconds,
        create=create,
    )


def check_kind(url: str) -> None:
    """Refuses an address that names no kind of store that there is.

    Raises:
        ValidationError: It does not begin with one.
    """
    scheme = url.partition(":")[0]
    if scheme in {"sqlite", "postgresql", "postgres"}:
        return
    if scheme.startswith(("postgresql+", "postgres+")):
        raise ValidationError(f"a store has a driver of its own: begin with postgresql:, without {scheme[10:]!r:.40}")
    # The address may hold a password, so it is not repeated.
    raise ValidationError(f"a store that begins with {scheme!r:.40} is not known: use {_KINDS}")
