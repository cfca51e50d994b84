"""Small workflows that tests run, and how they look at what became of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework import Stage, Workflow

if TYPE_CHECKING:
    from piecework import App


class Gate:
    """A step that tells when it has been reached and goes on when it is let go."""

    def __init__(self) -> None:
        self.reached: asyncio.Queue[str] = asyncio.Queue()
        self.open = asyncio.Event()

    async def __call__(self, ctx: Any) -> None:
        """The step."""
        self.reached.put_nowait(ctx.run_id)
        await self.open.wait()


async def nothing(ctx: Any) -> None:
    """A step without effect."""


def flow(*steps: Any, id: str = "flow", on: str = "go", **options: Any) -> Workflow:  # noqa: A002 - the word of the field
    """A workflow of one stage."""
    return Workflow(id, on=on, stages=[Stage("only", steps=steps or (nothing,))], **options)


def run_id_of(receipt: Any) -> str:
    """The id of the one run that an event started."""
    (result,) = [result for result in receipt.dispatched if result.outcome != "pending"]
    assert result.outcome in {"started", "queued"}, result
    return result.run_id


async def ended(app: App, receipt: Any) -> Any:
    """What the one run that an event started came to."""
    return await app.runtime.wait(run_id_of(receipt), timeout_seconds=20)


async def paused(app: App, receipt: Any) -> str:
    """The id of the one run that an event started, once it has paused."""
    run_id = run_id_of(receipt)
    result = await app.runtime.wait(run_id, until="paused", timeout_seconds=20)
    assert result.unwrap().status == "paused"
    return run_id


async def asks(ctx: Any, *events: str, **options: Any) -> str:
    """Registers a wait from within a step; answers its handle."""
    pauses = await ctx.require("__pause_service__")
    handle: str = await pauses.register(list(events), **options)
    return handle


def keep(seen: list[Any], read: Any) -> Any:
    """A step that appends what `read(ctx)` gives to a list."""

    async def step(ctx: Any) -> None:
        value = read(ctx)
        seen.append(await value if asyncio.iscoroutine(value) else value)

    return step
