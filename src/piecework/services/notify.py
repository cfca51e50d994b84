"""What `row.notify` does: the words are made here, and kept in the store until the digest of their address is due.

Nothing is mailed here, and no mail is ever sent for a notification alone: see `notifications`, which delivers digests.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from piecework.errors import ValidationError
from piecework.ids import new_id
from piecework.services.addresses import one_address, one_line
from piecework.services.digest import check_frequency
from piecework.services.text import Builder, render
from piecework.store import values

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Body = str | Awaitable[Any] | Callable[[Builder], Any]

BODY_LIMIT_BYTES = 65_536
"""How long the words of one notification may be: a mail tells many of them."""


class Keep(Protocol):
    """What makes a notification durable; one of the same id that is there already stays as it is."""

    async def __call__(
        self, *, notification_id: str, email: str, body: str, subject: str | None, frequency: str, force: bool
    ) -> None:
        """Returns when it is committed."""
        ...


class Notify:
    """Tells people something, by and by; one for each attempt of a step, or one for a workspace without a run.

    Args:
        keep: Makes a notification durable.
        key: What stays the same when the work around is tried again: the same notifications get the same ids then, and
            are not told twice as long as they wait. None outside of runs: each call is a notification of its own.
    """

    def __init__(self, keep: Keep, *, key: str | None) -> None:
        self._keep = keep
        self._key = key
        self._told: Counter[str] = Counter()

    async def __call__(self, who: Any, text: Body, *, subject: str | None = None, force: bool = False) -> str | None:
        """Notifies the person that a row is about. Commits.

        Args:
            who: A row, or a mapping, with an `email`, and perhaps a `notify_frequency`: `asap` (ten minutes later, with
                all that comes until then; what it is where there is none), `daily` (at the next midnight) or `none`.
            text: The words: themselves, or a function of a `Builder`, sync or async.
            subject: One line; that of the mail where nothing else is told in it.
            force: Tells it at once, with all that has been waiting; not to who wants to hear nothing.

        Returns:
            The notification's id; None for who wants to hear nothing, and then `text` is not even called.

        Raises:
            ValidationError: The row has no mail address, its frequency is none, or the words are too long.
            Exception: Whatever `text` raises.
        """
        row: Mapping[str, Any] = who if isinstance(who, Mapping) else who.as_dict()
        frequency = row.get("notify_frequency")
        frequency = "asap" if frequency is None else frequency
        check_frequency(frequency)
        if frequency == "none":
            return None
        email = _email(row)
        line = None if subject is None else one_line(subject, "subject")
        body = await render(text)
        values.encode(body, what="the text of the notification", limit_bytes=BODY_LIMIT_BYTES)
        notification_id = self._id(email, body)
        await self._keep(
            notification_id=notification_id, email=email, body=body, subject=line, frequency=frequency, force=force
        )
        return notification_id

    def _id(self, email: str, body: str) -> str:
        if self._key is None:
            return new_id()
        told = json.dumps([self._key, email, body])
        self._told[told] += 1
        return hashlib.sha256(f"{told}#{self._told[told]}".encode()).hexdigest()[:32]


def _email(row: Mapping[str, Any]) -> str:
    email = row.get("email")
    if email is None:
        there = ", ".join(row) or "nothing"
        raise ValidationError(
            f"notify needs a mail address in the column email, and this row has none (it has {there}): "
            "read it with its email, or give it one",
            path="email",
        )
    return one_address(email, "email")
