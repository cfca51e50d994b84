"""An event that goes along with somebody's own transaction, or is sent: checked as where it is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.bus.event import hops_of_event
from piecework.errors import InvalidStateError
from piecework.run.intake import check_event
from piecework.store.inbox import put_into_inbox
from piecework.store.records import Inbox
from piecework.workspace.context import Promised

if TYPE_CHECKING:
    from piecework.bus.event import Event
    from piecework.store.contract import Store


async def publish_within(connection: Any, event: Event, store: Store, *, limit_bytes: int, now: int) -> Promised:
    """Publishes an event together with what the caller's transaction commits, or not at all.

    Args:
        connection: To the store's own database, inside a transaction; see `store.inbox`.
        event: What happened.
        store: Whose nodes will decide about it.
        limit_bytes: The largest payload.
        now: Microseconds since the epoch.

    Raises:
        ValidationError: Something of the event is not acceptable, or it is no such connection; nothing was sent.
        InvalidStateError: The store is a file, or the connection is not inside a transaction.
        StoreError: The store is not in that database.
    """
    row = inbox_row(event, limit_bytes=limit_bytes, now=now)
    if not store.shared:
        raise no_transactions(store.url)
    from piecework.store.postgres import PostgresStore  # its driver is an extra

    assert isinstance(store, PostgresStore)
    await put_into_inbox(connection, row, schema=store.link.address.place.schema)
    return Promised(row.event_id)


def no_transactions(store: str) -> InvalidStateError:
    """Why an event cannot go along with a transaction where the store is a file."""
    return InvalidStateError(
        f"publish(connection=…) needs a store on PostgreSQL, in the database of that connection; this one is {store}. "
        "Publish when the transaction has committed, without connection=, and give an id= that is made from what was "
        "committed: then it can be repeated, and happens once"
    )


def inbox_row(event: Event, *, limit_bytes: int, now: int) -> Inbox:
    """An event that is ready to be sent, with an id of its own: checked as where it is accepted.

    Raises:
        ValidationError: Its type, id, space or payload is not acceptable.
    """
    event_id, payload = check_event(event, limit_bytes=limit_bytes)
    return Inbox(None, event_id, event.type, event.space, payload, now, hops_of_event(event))
