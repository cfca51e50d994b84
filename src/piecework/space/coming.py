"""The update of a piece that is to come, and the one that follows right after what is under way. Pure.

A piece has one update that is queued or under way, `run_id`. Where its overlap says so, what is asked for while one is
under way stands behind it as a second run that is not due yet, `after_run_id`: the end of the first makes it due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from piecework.run.failure import Observed
from piecework.run.lifecycle import ENDED, Status, check_move
from piecework.run.parts import encode, tell_to_end, write_entries
from piecework.store.items import NewEntry
from piecework.store.records import Run

if TYPE_CHECKING:
    from piecework.store.draft import Draft
    from piecework.store.items import Aborting
    from piecework.store.records import EventRow, Piece

KIND = "piece"
INTERRUPTED = "interrupted"

REGISTERED, INTERVAL, CRON, EVENT, MANUAL, RETRY = "registered", "interval", "cron", "event", "manual", "retry"
"""What made an update due: `Run.trigger_id`."""


def update_to_come(draft: Draft, piece: Piece) -> Run | None:
    """The update that is queued or under way, where there is one."""
    run = None if piece.run_id is None else draft.find(Run, piece.run_id)
    return None if run is None or Status(run.status) in ENDED else run


def ask(
    draft: Draft,
    piece: Piece,
    fresh_run_id: str,
    now: int,
    *,
    trigger: str,
    overlap: str,
    event: EventRow | None = None,
    hops: int = 0,
) -> tuple[str, Aborting | None]:
    """Makes an update due now, or does what the overlap says where one is under way; answers which update it will be.

    Args:
        draft: Has the piece and its runs.
        piece: As it stands.
        fresh_run_id: Used where an update has to be queued.
        now: Microseconds since the epoch.
        trigger: What asks for it.
        overlap: skip, queue or cancel.
        event: What is handed to the update; of several the newest.
        hops: How many runs asked for one another before this one was asked for.
    """
    run = update_to_come(draft, piece)
    if run is None or run.owner is None:
        return bring_forward(draft, piece, fresh_run_id, now, trigger=trigger, event=event, hops=hops), None
    if overlap == "skip":
        return run.run_id, None
    after = _queue_behind(draft, piece, fresh_run_id, now, trigger=trigger, event=event, hops=hops)
    if overlap != "cancel" or run.abort_reason is not None or _waits_for_probe(piece, trigger):
        return after.run_id, None
    return after.run_id, tell_to_end(draft, run, f"replaced by update {after.run_id}", now)


def bring_forward(
    draft: Draft,
    piece: Piece,
    fresh_run_id: str,
    now: int,
    *,
    trigger: str = REGISTERED,
    event: EventRow | None = None,
    hops: int = 0,
) -> str:
    """Makes the queued update due now, or queues one where there is none, or behind the one that is under way.

    Puts the piece. A cron time that has passed already stays what the update is for. An event for a half-open piece
    does not bring its next probe nearer, which is handed it.
    """
    run = update_to_come(draft, piece)
    if run is None:
        queue(draft, piece, fresh_run_id, now, now, trigger=trigger, event=event, hops=hops)
        observed = Observed.IDLE if piece.observed == Observed.WAITING else piece.observed
        draft.put(replace(piece, run_id=fresh_run_id, next_run_at=now, observed=observed))
        return fresh_run_id
    if run.owner is None:
        due_at = now if run.due_at is None else min(run.due_at, now)
        if run.due_at is not None and _waits_for_probe(piece, trigger):
            due_at = run.due_at
        later = replace(run, due_at=due_at, workflow_id=piece.integration, hops=max(run.hops, hops))
        if event is not None:
            later = _for_event(later, trigger, event)
        elif run.due_at is None or run.due_at > now:
            later = replace(later, trigger_id=trigger)
        draft.put(later)
        occurrence = None if piece.occurrence is None else min(piece.occurrence, now)
        draft.put(replace(piece, next_run_at=due_at, occurrence=occurrence))
        return run.run_id
    return _queue_behind(draft, piece, fresh_run_id, now, trigger=trigger, event=event, hops=hops).run_id


def _queue_behind(
    draft: Draft, piece: Piece, fresh_run_id: str, now: int, *, trigger: str, event: EventRow | None, hops: int
) -> Run:
    """The update that follows right after the one under way; there is one at most."""
    if piece.after_run_id is None:
        after = queue(draft, piece, fresh_run_id, None, now, trigger=trigger, event=event, hops=hops)
        draft.put(replace(piece, after_run_id=after.run_id))
        return after
    after = draft.get(Run, piece.after_run_id)
    after = replace(after, hops=max(after.hops, hops))
    later = after if event is None else _for_event(after, trigger, event)
    if REGISTERED in {trigger, after.trigger_id}:
        later = replace(later, trigger_id=REGISTERED)
    elif MANUAL in {trigger, after.trigger_id} and piece.observed == Observed.HALF_OPEN:
        later = replace(later, trigger_id=MANUAL)  # who asks by hand waits for no probe
    draft.put(later)
    draft.put(piece)
    return later


def _waits_for_probe(piece: Piece, trigger: str) -> bool:
    """Whether what asks for an update has to wait until the piece is tried again: what is down is not called on."""
    return piece.observed == Observed.HALF_OPEN and trigger == EVENT


def rest(draft: Draft, piece: Piece, now: int) -> None:
    """Puts a piece that no time makes due: what a time had made due of it is called off, what is due now stays.

    Where an update is under way the piece is waiting already: none follows it.
    """
    run = update_to_come(draft, piece)
    if run is not None and run.owner is not None:
        draft.put(replace(piece, observed=Observed.WAITING))
        return
    if run is not None and (run.due_at or 0) <= now:
        draft.put(replace(run, workflow_id=piece.integration))
        draft.put(piece)
        return
    if run is not None:
        end_uncharged(draft, run, "its piece has no times any more", now)
    draft.put(replace(piece, run_id=None, next_run_at=None, occurrence=None, observed=Observed.WAITING))


def start_after(draft: Draft, piece: Piece, now: int, *, probe_at: int | None = None) -> Piece:
    """The piece whose second update is due, since the one before it has ended: now, or as its next probe.

    Args:
        draft: Has both.
        piece: As the end of the first leaves it.
        now: Microseconds since the epoch.
        probe_at: When a piece that is half-open is tried again.
    """
    after = draft.get(Run, piece.after_run_id)
    due_at = probe_at if probe_at is not None and _waits_for_probe(piece, after.trigger_id) else now
    draft.put(replace(after, due_at=due_at, workflow_id=piece.integration))
    observed = Observed.IDLE if piece.observed == Observed.WAITING else piece.observed
    return replace(piece, run_id=after.run_id, after_run_id=None, next_run_at=due_at, observed=observed)


def drop_after(draft: Draft, piece: Piece, why: str, now: int) -> Piece:
    """The piece without its second update, which ends uncharged; itself, where there is none."""
    if piece.after_run_id is None:
        return piece
    end_uncharged(draft, draft.get(Run, piece.after_run_id), why, now)
    return replace(piece, after_run_id=None)


def end_uncharged(draft: Draft, run: Run, why: str, now: int) -> None:
    """Ends an update that nobody has: it was never carried out, or not to its end."""
    status = check_move(run.run_id, run.status, Status.ABORTED)
    told = encode({"outcome": INTERRUPTED, "reason": why})
    run = write_entries(draft, run, (NewEntry(type=f"run:{status}", payload=told),), now)
    draft.put(replace(run, status=status, ended_at=now, cleaned=1, due_at=None, outcome=INTERRUPTED))


def queue(
    draft: Draft,
    piece: Piece,
    run_id: str,
    due_at: int | None,
    now: int,
    *,
    trigger: str,
    event: EventRow | None = None,
    again: Run | None = None,
    hops: int = 0,
) -> Run:
    """Adds an update of a piece, due at a moment or not yet.

    Args:
        draft: Gets it.
        piece: Whose.
        run_id: Its id.
        due_at: When; None means that something else makes it due.
        now: Microseconds since the epoch.
        trigger: What asks for it.
        event: What it is handed.
        again: The update that it repeats: it is handed the same event.
        hops: How many runs asked for one another before this one was asked for.
    """
    run = Run(
        run_id=run_id,
        kind=KIND,
        workflow_id=piece.integration,
        trigger_id=trigger,
        pipeline_id="",
        slot_key=None,
        place=None,
        key_value=piece.piece_id,
        space=piece.space,
        status=Status.QUEUED,
        stage=None,
        version=None,
        event_seq=None if again is None else again.event_seq,
        hops=hops if again is None else again.hops,
        due_at=due_at,
        created_at=now,
    )
    if event is not None:
        run = _for_event(run, trigger, event)
    run = write_entries(draft, run, (NewEntry(type="run:queued"),), now)
    draft.add(run)
    return run


def _for_event(run: Run, trigger: str, event: EventRow) -> Run:
    return replace(run, trigger_id=trigger, event_seq=event.seq, hops=event.hops)
