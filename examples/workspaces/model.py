"""What the six examples share: a small blog with its tables, and how their programs are run.

    python 01_background_notifications.py [ADDRESS OF AN EMPTY DATABASE]

Without an address everything is in a folder that is gone at the end; with one (`postgresql://…`, `sqlite:///…`) the
tables are made there, and dropped at the end.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKey
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable, DropTable

from piecework import App
from piecework.testing.clock import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from piecework import Workspace


class Base(DeclarativeBase):
    """What the tables are declared with."""


class User(Base):
    """Somebody who reads, or looks after the blog."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]
    role: Mapped[str] = mapped_column(server_default="reader")


class Comment(Base):
    """What somebody said."""

    __tablename__ = "comments"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class Post(Base):
    """What the blog says."""

    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    slug: Mapped[str]


class Subscription(Base):
    """What somebody reads: a user may have several."""

    __tablename__ = "subscriptions"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    tier: Mapped[str]


_folder = TemporaryDirectory(prefix="piecework-example-")
atexit.register(_folder.cleanup)

clock = VirtualClock()
"""Time that stands still until it is told to go on: notifications are collected for ten minutes."""

app = App(
    "blog",
    store=f"sqlite:///{_folder.name}/state.db",
    database=sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{_folder.name}/blog.db",
    mail="outbox:?from=blog@example.org",
    clock=clock,
)


async def create_tables(ws: Workspace) -> None:
    """Makes the tables in the workspace's database."""
    await _each_table(ws, CreateTable, Base.metadata.sorted_tables)


async def drop_tables(ws: Workspace) -> None:
    """Removes them again."""
    await _each_table(ws, DropTable, reversed(Base.metadata.sorted_tables))


async def _each_table(ws: Workspace, statement: Any, tables: Any) -> None:
    engine = postgresql if ws.database.url.startswith("postgresql") else sqlite
    for table in tables:
        await ws.database.run(str(statement(table).compile(dialect=engine.dialect())))


def redirect(**to: str) -> dict[str, str]:
    """Stands for what a web framework has a handler answer."""
    return {"redirect": next(iter(to.values()))}


async def mails() -> list[str]:
    """Lets ten minutes pass, has everything mailed that was to be mailed, and tells who got what."""
    await clock.advance(600)
    for job in ("deliver-notifications", "send-mail"):
        for run in await app.runtime.list_all_runs(workflow=job):
            (await app.runtime.wait(run.run_id)).unwrap()
    outbox: Any = app.mail
    return sorted(f"to {mail['to'][0]}: {mail['text']!r}" for mail in outbox.messages)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a program's `main` while the app is open and the tables are there."""

    async def opened() -> None:
        async with app:
            await app.run_in_new_workspace(create_tables)
            try:
                await main()
            finally:
                await app.run_in_new_workspace(drop_tables)

    asyncio.run(opened())
