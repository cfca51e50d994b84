"""What a type checker says of asking for services: read by mypy, never run.

Where a use is wrong, mypy has to say so: an ignore that nothing needs is an error itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from piecework import App

if TYPE_CHECKING:
    from piecework import Workspace
    from piecework.container.container import Container
    from piecework.container.context import FactoryContext
    from piecework.space.piece import PieceContext
    from piecework.workflow.context import Dependencies, StepContext

app = App("typed")


class Ledger:
    """A service."""

    def balance(self) -> int:
        """What is in it."""
        return 0


class Post:
    """Another."""


@app.service(scope="run", lazy=True, timeout_seconds=2.5, retries=2)
def ledger() -> Ledger:
    """A decorated factory keeps its type."""
    return Ledger()


assert_type(ledger(), Ledger)


async def in_a_step(ctx: StepContext) -> None:
    """What a step asks for."""
    assert_type(await ctx.require(Ledger), Ledger)
    assert_type((await ctx.require(Ledger)).balance(), int)
    assert_type(await ctx.require("ledger"), Any)
    await ctx.require(3)  # type: ignore[call-overload]
    (await ctx.require(Ledger)).post()  # type: ignore[attr-defined]
    wrong: Post = await ctx.require(Ledger)  # type: ignore[arg-type]
    del wrong


async def in_a_step_with_use(deps: Dependencies) -> None:
    """What the function of `ctx.use` asks for."""
    assert_type(await deps.require(Ledger), Ledger)
    assert_type(await deps.require("ledger"), Any)
    await deps.require(None)  # type: ignore[call-overload]


async def in_a_workspace(ws: Workspace) -> None:
    """What a workspace is asked for."""
    assert_type(await ws.require(Ledger), Ledger)
    assert_type(await ws.require("ledger"), Any)
    await ws.require(b"ledger")  # type: ignore[call-overload]
    with ws.override(Ledger, Ledger()), ws.override("ledger", object()):
        assert_type(await ws.require(Ledger), Ledger)
    ws.override(3, Ledger())  # type: ignore[arg-type]


async def in_a_piece(piece: PieceContext) -> None:
    """What an update asks for."""
    assert_type(await piece.require(Ledger), Ledger)
    assert_type(await piece.require("ledger"), Any)
    await piece.require(Ledger())  # type: ignore[call-overload]


async def in_a_factory(ctx: FactoryContext, container: Container) -> None:
    """What a factory and a container are asked for."""
    assert_type(await ctx.require(Ledger), Ledger)
    assert_type(await container.require(Ledger), Ledger)
    assert_type(await container.require("ledger"), Any)
