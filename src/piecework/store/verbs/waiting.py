"""How a verb finds the runs that wait for an event, a bounded number in one commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.store.contract import Read
from piecework.store.records import EventRow, Fanout, Wait
from piecework.store.verbs.probes import probes_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Request

FANOUT_LIMIT = 500
"""How many waits one commit looks at for one event; the rest follows in commits of its own."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Waits that an event may match, and where the next part begins when there are more."""

    waits: tuple[Wait, ...] = ()
    rest: Fanout | None = None


def first_waits(
    events: Sequence[tuple[EventRow, dict[str, Any]]],
) -> Generator[Request, Any, dict[int, Candidates]]:
    """Peeks at the waits that each event may match.

    Args:
        events: Stored, with their payloads.

    Returns:
        By the events' numbers.
    """
    fields = yield from wait_fields({event.type for event, _ in events})
    wanted = {
        event.seq or 0: probes_of(event.type, payload, fields[event.type])
        for event, payload in events
        if fields[event.type]
    }
    if not wanted:
        return {}
    probes = sorted({probe for found in wanted.values() for probe in found})
    rows: list[Wait] = yield Read("waits_by_probe", {"probes": probes, "limit": FANOUT_LIMIT + 1}, Wait)
    by_probe: dict[str, list[Wait]] = {}
    for row in rows:
        by_probe.setdefault(row.probe, []).append(row)
    return {
        seq: _cut(seq, [wait for probe in sorted(set(mine)) for wait in by_probe.get(probe, ())])
        for seq, mine in wanted.items()
    }


def more_waits(event: EventRow, payload: dict[str, Any], behind: Fanout) -> Generator[Request, Any, Candidates]:
    """Peeks at the waits that an event may match behind those that were looked at."""
    fields = yield from wait_fields({event.type})
    found: list[Wait] = []
    for probe in sorted(set(probes_of(event.type, payload, fields[event.type]))):
        if probe < behind.probe or len(found) > FANOUT_LIMIT:
            continue
        after = behind.wait_id if probe == behind.probe else ""
        found += yield Read(
            "waits_after", {"probe": probe, "after": after, "limit": FANOUT_LIMIT + 1 - len(found)}, Wait
        )
    return _cut(behind.event_seq, found)


def wait_fields(event_types: set[str]) -> Generator[Request, Any, dict[str, list[str]]]:
    """The fields that somebody waits on under each event type."""
    fields: dict[str, list[str]] = {}
    for event_type in sorted(event_types):
        rows = yield Read("wait_fields", {"type": event_type})
        fields[event_type] = [row[0] for row in rows]
    return fields


def still_there(found: dict[int, Candidates], event: EventRow, there: set[tuple[object, ...]]) -> Candidates:
    """What is left of the candidates, now that their runs are locked."""
    candidates = found.get(event.seq or 0, Candidates())
    return Candidates(tuple(wait for wait in candidates.waits if wait.identity() in there), candidates.rest)


def _cut(seq: int, waits: list[Wait]) -> Candidates:
    """The first part; a run's waits under one probe may be parted: the fold knows what it has woken."""
    if len(waits) <= FANOUT_LIMIT:
        return Candidates(tuple(waits))
    last = waits[FANOUT_LIMIT - 1]
    return Candidates(tuple(waits[:FANOUT_LIMIT]), Fanout(seq, last.probe, last.wait_id))
