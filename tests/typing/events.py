"""What a type checker says of publishing: read by mypy, never run.

Where a use is wrong, mypy has to say so: an ignore that nothing needs is an error itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from piecework import App

if TYPE_CHECKING:
    from collections.abc import Sequence

app = App("typed")


async def main(connection: Sequence[int]) -> None:
    """Publishes."""
    receipt = await app.publish("order.placed", {"id": 7}, id="order-7", space="acme")
    assert_type(receipt.dispatched[0].run_id, str | None)
    promised = await app.publish("order.placed", connection=connection)
    assert_type(promised.event_id, str)
    promised.dispatched[0]  # type: ignore[index]  # nothing is decided before the commit
