"""The event: something that happened, told once, in JSON values."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_hops: ContextVar[int | None] = ContextVar("piecework_hops", default=None)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        type: A dotted name such as `invoice.received`.
        payload: A mapping of JSON values.
        id: Names this very occurrence: a second event of the same id is a duplicate. Made when not given.
        space: The tenant it belongs to, or None.
        at: Microseconds since the epoch; None until it is accepted.
        hops: How many runs it came by, each of which published the event that started the next.
    """

    type: str
    payload: dict[str, Any] = field(default_factory=dict)
    id: str | None = field(default=None, kw_only=True)
    space: str | None = field(default=None, kw_only=True)
    at: int | None = field(default=None, kw_only=True)
    hops: int = field(default=0, kw_only=True)


@contextmanager
def within_run(hops: int | None) -> Iterator[None]:
    """Makes the calling code, and what it starts, part of a run of so many hops; None means of no run."""
    token = _hops.set(hops)
    try:
        yield
    finally:
        _hops.reset(token)


def hops_of_run() -> int | None:
    """The hops of the run that the calling code is part of; None outside of runs."""
    return _hops.get()


def hops_of_event(event: Event) -> int:
    """The hops that an event has when the calling code publishes it."""
    hops = _hops.get()
    return event.hops if hops is None else max(event.hops, hops + 1)
