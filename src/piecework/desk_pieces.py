"""The desk's forms of pieces and spaces."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from piecework.desk_form import Form, Limit, OpenApp, Seconds, as_many, page

if TYPE_CHECKING:
    from piecework.space.record import PieceRecord

_SHOWN_RUNS = 10
_ALL_RUNS = 2**31


class AddPiece(Form, frozen=True):
    """Registers a piece: its PieceRecord, and whether it is `added` or was there."""

    op: ClassVar[str] = "pieces.add"
    space: str
    piece_id: str
    integration: str
    config: dict[str, Any] = {}
    every_seconds: float | None = None
    schedule: str | list[str] | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Its first update is due at once."""
        added = await app.pieces.register(
            space=self.space,
            piece_id=self.piece_id,
            integration=self.integration,
            config=self.config,
            every_seconds=self.every_seconds,
            schedule=self.schedule,
        )
        record = msgspec.to_builtins(await app.pieces.get(self.space, self.piece_id))
        return record | {"added": added}


class ListPieces(Form, frozen=True):
    """Lists pieces: `{items, next_cursor}`.

    Attributes:
        limit: At most so many; all of them when there is none.
        cursor: Behind the piece of this space and id.
    """

    op: ClassVar[str] = "pieces.list"
    space: str | None = None
    limit: Limit | None = None
    cursor: tuple[str, str] = ("", "")

    async def answer(self, app: OpenApp) -> Any:
        """What a page cannot hold follows on the next."""
        found = await app.pieces.list(space=self.space)
        if self.limit is None:
            return page(found)
        found = sorted(found, key=_place)
        items, more = as_many([piece for piece in found if _place(piece) > self.cursor], self.limit)
        return page(items, next_cursor=[items[-1]["space"], items[-1]["piece_id"]] if more else None)


class GetPiece(Form, frozen=True):
    """Tells a piece: its PieceRecord."""

    op: ClassVar[str] = "pieces.get"
    space: str
    piece_id: str

    async def answer(self, app: OpenApp) -> Any:
        """As of the last commit."""
        return await app.pieces.get(self.space, self.piece_id)


class PieceRuns(Form, frozen=True):
    """Lists a piece's updates, the newest first: `{items, next_cursor}`.

    Attributes:
        limit: At most so many.
        cursor: Behind this run.
    """

    op: ClassVar[str] = "pieces.runs"
    space: str
    piece_id: str
    limit: Limit = 50
    cursor: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """What a page cannot hold follows on the next."""
        most = self.limit + 1 if self.cursor is None else _ALL_RUNS
        found = list(await app.pieces.runs(self.space, self.piece_id, limit=most))
        if self.cursor is not None:
            ids = [run.run_id for run in found]
            found = found[ids.index(self.cursor) + 1 :] if self.cursor in ids else []
        items, more = as_many(found, self.limit)
        return page(items, next_cursor=items[-1]["run_id"] if more else None)


class ShowPiece(Form, frozen=True):
    """Shows a piece: its PieceRecord and its latest `runs`."""

    op: ClassVar[str] = "pieces.show"
    space: str
    piece_id: str
    limit: Limit = _SHOWN_RUNS

    async def answer(self, app: OpenApp) -> Any:
        """The newest run first."""
        record = msgspec.to_builtins(await app.pieces.get(self.space, self.piece_id))
        runs = await app.pieces.runs(self.space, self.piece_id, limit=self.limit)
        return record | {"runs": msgspec.to_builtins(runs)}


class RunPiece(Form, frozen=True):
    """Makes a piece's update due now: its RunInfo.

    Attributes:
        wait: Answer only when the update has ended.
    """

    op: ClassVar[str] = "pieces.run"
    space: str
    piece_id: str
    wait: bool = True

    async def answer(self, app: OpenApp) -> Any:
        """An update that is under way is that update."""
        return await app.pieces.run_now(self.space, self.piece_id, wait=self.wait)


class AwaitUpdate(Form, frozen=True):
    """Waits for an update for a while: its RunInfo, or null when it has not ended yet.

    Attributes:
        seconds: How long; who wants to wait for longer asks again.
    """

    op: ClassVar[str] = "pieces.wait"
    space: str
    run_id: str
    seconds: Seconds

    async def answer(self, app: OpenApp) -> Any:
        """An error where its space gets no worker: it would be waited for in vain."""
        try:
            async with asyncio.timeout(self.seconds):
                return await app.pieces.until_ended(self.space, self.run_id)
        except TimeoutError:
            return None


class ListSpaces(Form, frozen=True):
    """Lists spaces: `{items, next_cursor}`.

    Attributes:
        limit: At most so many; all of them when there is none.
        cursor: Behind the space of this name.
    """

    op: ClassVar[str] = "spaces.list"
    limit: Limit | None = None
    cursor: str = ""

    async def answer(self, app: OpenApp) -> Any:
        """What a page cannot hold follows on the next."""
        found = await app.pieces.spaces()
        if self.limit is None:
            return page(found)
        items, more = as_many([record for record in found if record.space > self.cursor], self.limit)
        return page(items, next_cursor=items[-1]["space"] if more else None)


class ShowSpace(Form, frozen=True):
    """Tells a space: its SpaceRecord."""

    op: ClassVar[str] = "spaces.show"
    space: str

    async def answer(self, app: OpenApp) -> Any:
        """As it is now."""
        return await app.pieces.space(self.space)


class ResumeSpace(Form, frozen=True):
    """Forgets that a space's workers have failed: its SpaceRecord."""

    op: ClassVar[str] = "spaces.resume"
    space: str

    async def answer(self, app: OpenApp) -> Any:
        """What was put off for it is due now."""
        return await app.pieces.resume_space(self.space)


class PausePiece(Form, frozen=True):
    """Lets no update of a piece follow: `{changed}`.

    Attributes:
        reason: Why; it stands on the piece.
    """

    op: ClassVar[str] = "pieces.pause"
    space: str
    piece_id: str
    reason: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """An update that is under way goes on to its end."""
        return {"changed": await app.pieces.pause(self.space, self.piece_id, reason=self.reason)}


class ResumePiece(Form, frozen=True):
    """Enables a piece that is paused or out of order: `{changed}`.

    Attributes:
        reason: Why; it stands on the piece.
    """

    op: ClassVar[str] = "pieces.resume"
    space: str
    piece_id: str
    reason: str | None = None

    async def answer(self, app: OpenApp) -> Any:
        """Its next update is due at once."""
        return {"changed": await app.pieces.resume(self.space, self.piece_id, reason=self.reason)}


class RemovePiece(Form, frozen=True):
    """Ends a piece: nothing."""

    op: ClassVar[str] = "pieces.remove"
    space: str
    piece_id: str

    async def answer(self, app: OpenApp) -> Any:
        """An update that is under way is stopped."""
        await app.pieces.remove(self.space, self.piece_id)


def _place(piece: PieceRecord) -> tuple[str, str]:
    return piece.space, piece.piece_id


PIECE_FORMS: tuple[type[Form], ...] = (
    AddPiece,
    ListPieces,
    GetPiece,
    ShowPiece,
    PieceRuns,
    RunPiece,
    AwaitUpdate,
    ListSpaces,
    ShowSpace,
    ResumeSpace,
    PausePiece,
    ResumePiece,
    RemovePiece,
)
"""All of them."""
