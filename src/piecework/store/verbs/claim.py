"""`claim` and `take_over`: a node takes what is due, or what owners had that are gone.

Neither takes a slot, so they only take over: they never end, park or resume a run. The epoch is raised, so whoever had
a run before can write no more; the attempt is counted before the run starts. What the node's definitions cannot carry
is answered too, as left alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from piecework.store.contract import Failure, Lock, Read, Update
from piecework.store.draft import Draft
from piecework.store.items import Claim, Claimed, LeftAlone, TakeOver, Taking
from piecework.store.records import EventRow, Piece, Run, RunValue, Signal, Space
from piecework.store.verbs.loading import conclude, load_runs

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script

_WINDOW = 256
"""How many due spaces are looked at by their due times; where there are more, they are served in the order of names."""


def claim(items: Sequence[Claim], decide: Decide, now: int) -> Script:
    """Gives each node up to its limit of due runs, with their events and values; spaces are served in turn."""
    draft, batch = Draft(), _Batch()
    picked: list[list[str]] = []
    for item in items:
        ids = yield from _pick(item, batch, now)
        picked.append(ids)
    wanted = [
        Taking(owner=item.owner, run_id=run_id, definitions=item.definitions)
        for item, ids in zip(items, picked, strict=True)
        for run_id in ids
    ]
    runs = yield from _take(draft, wanted, decide, now)
    if batch.emptied:
        yield from _raise_spaces(batch.emptied)
    return (yield from _hand_over(picked, runs))


def take_over(items: Sequence[TakeOver], decide: Decide, now: int) -> Script:
    """Gives nodes the runs of owners that are gone or whose lease has ended, without looking at spaces."""
    draft = Draft()
    picked: list[list[str]] = []
    wanted: list[Taking] = []
    for item in items:
        params = {
            "owner": item.owner,
            "known": item.known,
            "limit": item.limit,
            "now": now,
            "forsaken": item.forsaken,
        }
        rows: list[Run] = yield Read("orphaned_runs", params, Run)
        mine = [row for row in rows if row.run_id not in {taking.run_id for taking in wanted}]
        wanted += [
            Taking(owner=item.owner, run_id=row.run_id, had=row.owner, definitions=item.definitions) for row in mine
        ]
        picked.append([row.run_id for row in mine])
    runs = yield from _take(draft, wanted, decide, now)
    return (yield from _hand_over(picked, runs))


def _take(draft: Draft, wanted: Sequence[Taking], decide: Decide, now: int) -> Generator[Request, Any, dict[str, Run]]:
    yield from load_runs(draft, [taking.run_id for taking in wanted])
    outcomes = draft.fold(wanted, decide, now)
    yield from conclude(draft)
    # A run that somebody else was faster with is no failure of the claim.
    return {run.run_id: run for run in outcomes if not isinstance(run, Failure)}


# -- which runs --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Batch:
    """What the claims of one transaction know of each other.

    Attributes:
        taken: The runs that were picked, each with its space.
        emptied: Spaces in which less was found than was asked for.
        after: The space up to which somebody has looked: the next begins behind it.
    """

    taken: dict[str, str] = field(default_factory=dict)
    emptied: set[str] = field(default_factory=set)
    after: str | None = None


def _pick(item: Claim, batch: _Batch, now: int) -> Generator[Request, Any, list[str]]:
    """Picks due runs for one claim, from the due spaces in turn, until it has enough or has looked at all of them."""
    places = {space: item.places - count for space, count in item.taken.items()}
    picked: list[str] = []
    looked: set[str] = set()
    more = True
    while more and len(picked) < item.limit:
        after = item.after if batch.after is None else batch.after
        spaces, more = yield from _spaces_in_turn(item.limit, after, looked, now)
        if not spaces:
            break
        looked |= spaces.keys()
        batch.after = list(spaces)[-1]
        yield from _pick_from(spaces, item, batch, places, picked, now)
    return picked


def _pick_from(
    spaces: dict[str, int], item: Claim, batch: _Batch, places: dict[str, int], picked: list[str], now: int
) -> Generator[Request, Any, None]:
    """Picks an equal share of every space, by its weight, then more from those that have more."""
    asked: dict[str, int] = {}
    before_us = Counter(batch.taken.values())  # those that the same transaction gives to others
    while spaces and len(picked) < item.limit:
        share = -(-(item.limit - len(picked)) // sum(spaces.values()))
        asked = {space: asked.get(space, before_us[space]) + share * weight for space, weight in spaces.items()}
        rows = yield Read(
            "due_runs",
            {
                "spaces": list(asked),
                "counts": list(asked.values()),
                "most": max(asked.values()),
                "now": now,
                "known": item.known,
                "forsaken": item.forsaken,
                "barred": item.barred,
                "full": [space for space, left in places.items() if left <= 0],
            },
        )
        found: dict[str, int] = dict.fromkeys(asked, 0)
        before = len(picked), sum(left > 0 for left in places.values())
        for run_id, space, kind in rows:
            found[space] += 1
            if run_id in batch.taken or len(picked) == item.limit or found[space] > asked[space]:
                continue
            if kind == "piece":
                left = places.get(space, item.places)
                if left <= 0:
                    continue
                places[space] = left - 1
            batch.taken[run_id] = space
            picked.append(run_id)
        batch.emptied |= {space for space, count in found.items() if count < asked[space]}
        stuck = before == (len(picked), sum(left > 0 for left in places.values()))
        spaces = {space: weight for space, weight in spaces.items() if found[space] >= asked[space] and not stuck}


def _spaces_in_turn(
    limit: int, after: str, looked: set[str], now: int
) -> Generator[Request, Any, tuple[dict[str, int], bool]]:
    """Due spaces with their weights, those behind `after` first, and whether there may be more of them."""
    rows: list[Space] = yield Read("due_spaces", {"now": now, "limit": _WINDOW}, Space)
    if len(rows) == _WINDOW:
        rows = yield Read("due_spaces_after", {"now": now, "limit": limit, "after": after}, Space)
        if len(rows) < limit:
            first = yield Read("due_spaces_after", {"now": now, "limit": limit, "after": ""}, Space)
            rows = [*rows, *first]
    else:
        rows = sorted(rows, key=lambda row: (row.space <= after, row.space))
    fresh = {row.space: max(1, row.weight) for row in rows if row.space not in looked}
    return dict(islice(fresh.items(), limit)), len(fresh) > limit or len(rows) >= limit


def _raise_spaces(names: set[str]) -> Generator[Request, Any, None]:
    """Says of spaces in which too little was found when there will be more. The row is locked before it is looked."""
    keys = [(name,) for name in sorted(names)]
    spaces: list[Space] = yield Lock(Space, keys)
    rows = yield Read("next_due_of_spaces", {"spaces": sorted(names)})
    moments = {row[0]: row[1] for row in rows}
    later = [
        Space(row.space, moments.get(row.space), row.weight) for row in spaces if row.next_due != moments.get(row.space)
    ]
    if later:
        yield Update(later)


# -- what goes with them -----------------------------------------------------------------------------------------


def _hand_over(picked: Sequence[list[str]], runs: dict[str, Run]) -> Generator[Request, Any, list[Any]]:
    """Each node's runs with all that is needed to go on."""
    if not runs:
        return [[] for _ in picked]
    ids = sorted(run_id for run_id, run in runs.items() if run.owner is not None)
    values: dict[str, dict[str, bytes]] = {}
    rows: list[RunValue] = yield Read("values_of_runs", {"run_ids": ids}, RunValue)
    for value in rows:
        values.setdefault(value.run_id, {})[value.name] = value.data
    events: dict[int | None, EventRow] = {}
    seqs = sorted({run.event_seq for run in runs.values() if run.event_seq is not None})
    if seqs:
        found: list[EventRow] = yield Read("events_by_seq", {"seqs": seqs}, EventRow)
        events = {row.seq: row for row in found}
    pieces: dict[tuple[str, str | None], Piece] = {}
    if any(run.kind == "piece" for run in runs.values()):
        owners: list[Piece] = yield Read("pieces_of_runs", {"run_ids": ids}, Piece)
        pieces = {(row.space, row.piece_id): row for row in owners}
    signals = yield from _signals(runs)
    return [
        [_handed(runs[run_id], events, values, pieces, signals) for run_id in mine if run_id in runs] for mine in picked
    ]


def _handed(
    run: Run,
    events: dict[int | None, EventRow],
    values: dict[str, dict[str, bytes]],
    pieces: dict[tuple[str, str | None], Piece],
    signals: dict[str, tuple[tuple[int, bytes], ...]],
) -> Claimed | LeftAlone:
    if run.owner is None:
        return LeftAlone(run=run)
    return Claimed(
        run=run,
        event=events.get(run.event_seq),
        values=values.get(run.run_id, {}),
        piece=pieces.get((run.space, run.key_value)) if run.kind == "piece" else None,
        signals=signals.get(run.run_id, ()),
    )


def _signals(runs: dict[str, Run]) -> Generator[Request, Any, dict[str, tuple[tuple[int, bytes], ...]]]:
    ids = sorted(run.run_id for run in runs.values() if run.signals)
    found: dict[str, tuple[tuple[int, bytes], ...]] = {}
    if ids:
        rows: list[Signal] = yield Read("signals_of_runs", {"run_ids": ids}, Signal)
        for row in rows:
            found[row.run_id] = (*found.get(row.run_id, ()), (row.number, row.patch))
    return found
