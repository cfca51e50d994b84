"""What a type checker says of declared jobs: read by mypy, never run.

Where a use is wrong, mypy has to say so: an ignore that nothing needs is an error itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from piecework import App

if TYPE_CHECKING:
    from piecework import Workspace

app = App("typed")


@app.job("deliver", schedule="*/5 * * * *", retries=3)
async def deliver(ws: Workspace, limit: int = 100) -> list[str]:
    """Has types of its own."""
    return [ws.id] * limit


@app.job("count")
def count(ws: Workspace, name: str) -> int:
    """Is synchronous."""
    return len(name)


@app.job("nightly")
async def nightly() -> None:
    """Takes no workspace."""


@app.command("report")
async def report(ws: Workspace, user_id: int) -> str:
    """Stays the function that it is."""
    return f"{ws.id} {user_id}"


async def main(ws: Workspace) -> None:
    """Has jobs run."""
    assert_type(await deliver.enqueue(limit=5), str)
    assert_type(await deliver.run(limit=5), list[str])
    assert_type(await deliver.options(delay_seconds=60, dedup="x").run(7), list[str])
    assert_type(await count.run("Ada"), int)
    assert_type(await nightly.run(), Any)
    assert_type(await report(ws, 7), str)
    await deliver.run(limit="many")  # type: ignore[arg-type]  # it takes a number
    await deliver.enqueue(size=5)  # type: ignore[call-arg]  # it takes no such argument
