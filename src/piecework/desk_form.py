"""What every form of the desk is made of: what it needs of the app, and pages that a frame carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import msgspec

from piecework.process import protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.clock import Clock
    from piecework.config import Settings
    from piecework.run.intake import Receipt
    from piecework.run.node import Node
    from piecework.services.bot import Bot
    from piecework.space.manager import Spaces
    from piecework.space.service import PieceService
    from piecework.store.contract import Store
    from piecework.workflow.runtime import Runtime

_PAGE_BYTES = protocol.FRAME_LIMIT_BYTES // 2

Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class OpenApp(Protocol):
    """What the desk needs of the app; there while it is open."""

    name: str
    clock: Clock

    @property
    def node(self) -> Node:
        """What runs runs."""
        ...

    @property
    def store(self) -> Store:
        """Where they are."""
        ...

    @property
    def settings(self) -> Settings:
        """The numbers in force."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Workflows and runs."""
        ...

    @property
    def pieces(self) -> PieceService:
        """Pieces."""
        ...

    @property
    def spaces(self) -> Spaces:
        """The workers of spaces."""
        ...

    @property
    def integrations(self) -> list[str]:
        """The integrations that pieces may name."""
        ...

    async def publish(self, type: str, payload: dict[str, Any], *, id: str | None, space: str | None) -> Receipt:  # noqa: A002 - the words of the field
        """Publishes an event."""
        ...

    @property
    def bot(self) -> Bot:
        """Jobs and their schedules."""
        ...

    async def enqueue(
        self,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None,
        delay_seconds: float | None,
        dedup: str | None,
        space: str | None,
    ) -> str:
        """Queues a job."""
        ...

    async def keep_notification(
        self,
        *,
        notification_id: str,
        email: str,
        body: str,
        subject: str | None,
        frequency: str,
        force: bool,
        space: str | None,
        once: bool,
    ) -> None:
        """Keeps what somebody is to be told."""
        ...


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an op is asked with; `op` is its name."""

    op: ClassVar[str]

    async def answer(self, app: OpenApp) -> Any:
        """Does what is asked and tells what came of it."""
        raise NotImplementedError


def page(items: Sequence[Any], *, next_cursor: Any = None) -> dict[str, Any]:
    """Tells things of a list; `next_cursor` asks for those behind them."""
    return {"items": msgspec.to_builtins(items), "next_cursor": next_cursor}


def as_many(found: Sequence[Any], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The first of what was found, at least one, as many as a page may hold, and whether there are more."""
    items: list[dict[str, Any]] = []
    room = _PAGE_BYTES
    for item in found[:limit]:
        told = msgspec.to_builtins(item)
        room -= len(msgspec.msgpack.encode(told))
        if items and room < 0:
            break
        items.append(told)
    return items, len(items) < len(found)
