"""Templates: the tables of the app's database without their rows, made once, copied for whoever wants a clean one.

The tables are those that the app's database has now, or what `App(migrate=…)` makes in an empty one.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import DatabaseError, ValidationError

if TYPE_CHECKING:
    import sqlalchemy as sa

Migrate = Any
"""A function that gets the URL of an empty database and makes its tables, or SQLAlchemy's MetaData of them; or None."""


class Copy(Protocol):
    """A backend of a database that is copied from the template at its first connection; see `session.Backend`."""

    url: str
    dialect: str
    one_writer: bool

    @property
    def address(self) -> str:
        """The URL, with all that it takes to connect."""
        ...

    async def connect(self) -> Any:
        """Opens one more session."""
        ...

    def kind_of(self, error: Exception) -> tuple[str, str]:
        """What an error of the driver means, and what to do about it."""
        ...

    async def make(self) -> None:
        """Copies it, if nobody did yet."""
        ...

    async def known(self) -> list[sa.Table] | None:
        """The tables of a copy that nobody has used yet; None where they have to be read."""
        ...

    async def drop(self) -> None:
        """Removes it; again is nothing."""
        ...


class Templates(Protocol):
    """What clean databases are copied from."""

    def copy(self) -> Copy:
        """A database that is made at its first use."""
        ...

    async def close(self) -> None:
        """Removes what is left."""
        ...


def templates_of(url: str, migrate: Migrate = None) -> Templates:
    """Opens what clean copies of a database are made from; nothing is read before the first.

    Args:
        url: The app's database.
        migrate: What makes the tables; None: those that the database has.
    """
    if url.startswith("sqlite:"):
        from piecework.services.templates_sqlite import SqliteTemplates

        return SqliteTemplates(url, migrate)
    from piecework.services.templates_postgres import PostgresTemplates

    return PostgresTemplates(url, migrate)


def check_migrate(migrate: Migrate) -> Migrate:
    """Checks what makes the tables.

    Raises:
        ValidationError: It is neither a function nor MetaData.
    """
    if migrate is not None and not callable(migrate) and not hasattr(migrate, "create_all"):
        raise ValidationError(
            f"App(migrate={migrate!r:.80}): give a function of the URL of an empty database, or the MetaData of your "
            "tables"
        )
    return migrate


async def migrated(migrate: Migrate, url: str) -> None:
    """Has the tables made in an empty database: by the user's function, in a thread if it is synchronous.

    Raises:
        DatabaseError: It failed; the cause has the reason.
    """
    try:
        if hasattr(migrate, "create_all"):
            await _create_all(migrate, url)
            return
        if inspect.iscoroutinefunction(migrate):
            await migrate(url)
            return
        value = await asyncio.to_thread(migrate, url)
        if inspect.isawaitable(value):
            await value
    except Exception as error:
        raise DatabaseError(
            f"App(migrate=…) could not make the tables of an empty database: {type(error).__name__}: {error}. Look at "
            "the cause; the app's own database was not touched"
        ) from error


async def _create_all(metadata: Any, url: str) -> None:
    if url.startswith("sqlite:"):
        await asyncio.to_thread(_create_in_file, metadata, url)
        return
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(f"postgresql+asyncpg:{url.partition(':')[2]}", poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    finally:
        await engine.dispose()


def _create_in_file(metadata: Any, url: str) -> None:
    import sqlalchemy as sa
    from sqlalchemy.pool import NullPool

    engine = sa.create_engine(url, poolclass=NullPool)
    try:
        metadata.create_all(engine)
    finally:
        engine.dispose()
