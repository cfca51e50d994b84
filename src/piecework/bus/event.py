"""The event: something that happened, told once, in JSON values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        type: A dotted name such as `invoice.received`.
        payload: A mapping of JSON values.
        id: Names this very occurrence: a second event of the same id is a duplicate. Made when not given.
        space: The tenant it belongs to, or None.
        at: Microseconds since the epoch; None until it is accepted.
    """

    type: str
    payload: dict[str, Any] = field(default_factory=dict)
    id: str | None = field(default=None, kw_only=True)
    space: str | None = field(default=None, kw_only=True)
    at: int | None = field(default=None, kw_only=True)
