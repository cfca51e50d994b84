"""Does a store contradict itself? One named read a rule, each of which answers what breaks it.

What has to be true at every commit, whatever was done to the store: a run is in one state, a slot's counts are those of
its runs, nobody waits who has ended, nothing that is to come is forgotten. Rules count and compare inside the engine
and answer at most `LIMIT` rows, so that a store of a million runs can be asked as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT: Final = 100
"""At most so many findings of each rule."""

FILE_RULES: Final[Mapping[str, str]] = {
    "integrity": "file",
    "foreign_keys": "table",
}
"""Rules about a SQLite file itself, in the order in which they are asked, with what their subjects are."""

RULES: Final[Mapping[str, str]] = {
    "run_owned_and_due": "run",
    "run_cleaned_alive": "run",
    "run_end_without_moment": "run",
    "run_lost": "run",
    "run_never_cleaned": "run",
    "run_queued_owned": "run",
    "run_queued_nowhere": "run",
    "run_paused_held": "run",
    "run_deadline_unpaused": "run",
    "run_in_two_states": "run",
    "run_without_slot": "run",
    "run_without_event": "run",
    "run_without_patch": "run",
    "slot_counts": "slot",
    "slot_overfull": "slot",
    "slot_idle_queue": "slot",
    "slot_active_run": "slot",
    "slot_pending_run": "slot",
    "slot_place_twice": "slot",
    "wait_without_run": "run",
    "buffer_without_run": "run",
    "signal_without_run": "run",
    "signal_count": "run",
    "value_without_run": "run",
    "timeline_without_run": "run",
    "buffered_while_paused": "run",
    "waiting_for": "run",
    "piece_without_run": "piece",
    "piece_broken_and_due": "piece",
    "piece_after_nothing": "piece",
    "piece_removed": "piece",
    "space_asleep": "space",
    "delivery_without_event": "event",
    "fanout_without_event": "event",
    "notification_without_digest": "digest",
    "digest_without_notification": "digest",
    "owner_without_node": "node",
}
"""The other rules, in the order in which they are asked, with what their subjects are; each is `sql/check_NAME.sql`."""


class Readable(Protocol):
    """What is looked at: an open store that nobody else is using, or a `looking.Look` at one in use."""

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    async def read(self, name: str, params: dict[str, Any]) -> list[Any]:
        """Runs a named query."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One contradiction.

    Attributes:
        rule: The rule that is broken.
        subject: What breaks it, such as "run 0198…".
        message: How.
    """

    rule: str
    subject: str
    message: str


async def check(store: Readable) -> list[Finding]:
    """Answers what contradicts itself, at most `LIMIT` findings of each rule; nothing is changed.

    A damaged file is not asked any further: what its tables say is of no use then.

    Args:
        store: Its reads have to be of one moment, or what is being written meanwhile looks like a contradiction.

    Raises:
        StoreError: It cannot be read.
    """
    found: list[Finding] = []
    if store.url.startswith("sqlite:"):
        for rule, kind in FILE_RULES.items():
            found += await _ask(store, rule, kind)
        if found:
            return found
    for rule, kind in RULES.items():
        found += await _ask(store, rule, kind)
    return found


async def _ask(store: Readable, rule: str, kind: str) -> list[Finding]:
    rows = await store.read(f"check_{rule}", {"limit": LIMIT})
    return [Finding(rule, f"{kind} {subject}", message) for subject, message in rows]
