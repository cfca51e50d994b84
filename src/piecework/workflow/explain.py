"""Why an event did, or did not, or would wake a run: one answer for each of its waits, in words and clause by clause.

Pure: it looks at rows that somebody has read, and decides with the same `holds` that decided about the event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.run.lifecycle import ENDED, Status
from piecework.store.verbs.probes import BUCKET, MISSING, value_at
from piecework.workflow.pause import holds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.records import Buffered, Delivery, EventRow, Run, Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseAnswer:
    """One condition of a wait beside an event.

    Attributes:
        field: The dotted path.
        op: The operator.
        expected: What the field is compared with.
        actual: What the event has there; None where it has nothing.
        ok: Whether the condition holds.
    """

    field: str
    op: str
    expected: Any
    actual: Any
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What an event is to one wait of a run.

    Attributes:
        wait_id: The registration's handle; empty where the run waits for nothing.
        event_type: The type that the wait is for.
        mode: "any" or "all".
        matches: Whether type and conditions are met.
        reason: A sentence: why it does not match, or what becomes of it because the run does not stand there waiting.
        clauses: Each condition by itself.
        in_bucket: The wait has no `==` that finds it: it is compared with every event of its type.
    """

    wait_id: str
    event_type: str
    mode: str
    matches: bool
    reason: str
    clauses: tuple[ClauseAnswer, ...]
    in_bucket: bool


def explain(
    run: Run,
    waits: Sequence[Wait],
    kept: Sequence[Buffered],
    event: EventRow,
    payload: dict[str, Any],
    told: Delivery | None,
) -> list[Explanation]:
    """Explains an event to a run.

    Args:
        run: The run as it stands.
        waits: What it waits for.
        kept: The events that are kept for it.
        event: The event; without a number where it has not been published.
        payload: Its payload.
        told: What became of the event at this run; None where nothing did.

    Returns:
        One answer for each wait, in the order of their registration; one without a wait where there is none.
    """
    fate = _fate(run, kept, event, told)
    if not waits:
        state = "has ended" if Status(run.status) in ENDED else "is"
        rest = "" if Status(run.status) in ENDED else ": only `resume` or a time limit lets it go on"
        reason = fate or f"run {run.run_id} {state} {run.status} and waits for no event{rest}"
        return [_answer(None, (), matches=False, reason=reason)]
    found = sorted(waits, key=lambda wait: (wait.registered_at, wait.wait_id, wait.event_type))
    return [_of_wait(run, wait, waits, kept, event, payload, fate) for wait in found]


def _of_wait(
    run: Run,
    wait: Wait,
    waits: Sequence[Wait],
    kept: Sequence[Buffered],
    event: EventRow,
    payload: dict[str, Any],
    fate: str | None,
) -> Explanation:
    clauses = tuple(_clause(payload, *told) for told in msgspec.json.decode(wait.clauses))
    if wait.event_type != event.type:
        return _answer(
            wait, clauses, matches=False, reason=f"it waits for {wait.event_type!r}, the event is {event.type!r}"
        )
    failed = [clause for clause in clauses if not clause.ok]
    if failed:
        reason = "; ".join(_why_not(clause) for clause in failed)
        return _answer(wait, clauses, matches=False, reason=reason + _where(wait))
    return _answer(wait, clauses, matches=True, reason=(fate or _would(run, wait, waits, kept, event)) + _where(wait))


def _answer(wait: Wait | None, clauses: tuple[ClauseAnswer, ...], *, matches: bool, reason: str) -> Explanation:
    return Explanation(
        wait_id="" if wait is None else wait.wait_id,
        event_type="" if wait is None else wait.event_type,
        mode="any" if wait is None else wait.mode,
        matches=matches,
        reason=reason,
        clauses=clauses,
        in_bucket=wait is not None and wait.field == BUCKET,
    )


def _clause(payload: dict[str, Any], field: str, op: str, expected: Any) -> ClauseAnswer:
    actual = value_at(payload, field)
    return ClauseAnswer(
        field=field,
        op=op,
        expected=expected,
        actual=None if actual is MISSING else actual,
        ok=holds(payload, field, op, expected),
    )


def _why_not(clause: ClauseAnswer) -> str:
    wanted = f"{clause.field} {clause.op} {clause.expected!r:.80}"
    if clause.op == "exists":
        there = "does not have it" if clause.actual is None else f"has {clause.actual!r:.80}"
        return f"{wanted} is not met: the event {there}"
    if clause.actual is None:
        return f"{wanted} is not met: the event has no {clause.field}, or null"
    kinds = type(clause.actual).__name__, type(clause.expected).__name__
    odd = f", {kinds[0]} beside {kinds[1]}" if kinds[0] != kinds[1] and set(kinds) != {"int", "float"} else ""
    return f"{wanted} is not met: the event has {clause.actual!r:.80}{odd}"


def _where(wait: Wait) -> str:
    if wait.field != BUCKET:
        return ""
    return f" (the wait is looked at for every {wait.event_type!r}: no field of its own finds it)"


def _fate(run: Run, kept: Sequence[Buffered], event: EventRow, told: Delivery | None) -> str | None:
    """What became of a published event at this run."""
    if told is None:
        return None
    if told.outcome == "resumed":
        return f"the event was used already: it woke run {run.run_id}"
    if told.outcome == "dropped":
        return f"the event met run {run.run_id} while its buffer (max_buffer) was full, and was dropped"
    if any(row.event_seq == event.seq for row in kept):
        return f"the event is kept for run {run.run_id}, {_until(run)}"
    return f"the event was kept for run {run.run_id} and is not there any more: it was used, or forgotten"


def _until(run: Run) -> str:
    if run.status == Status.PAUSED and not run.patched:
        return "which waits for one of each type: others are still missing"
    return f"which is {run.status}: it is used at the next pause"


def _would(run: Run, wait: Wait, waits: Sequence[Wait], kept: Sequence[Buffered], event: EventRow) -> str:
    """What becomes of an event that meets a wait and has not come to the run."""
    if event.seq is not None and event.accepted_at <= wait.registered_at:
        return "it matches, but the event came before the wait was registered"
    if event.seq is not None:
        return "it matches and has not come to this run yet: more runs wait for it than one commit reaches"
    missing = _missing(wait, waits, kept)
    kept_for = run.status != Status.PAUSED if wait.mode == "any" else event.type not in missing
    if kept_for and len(kept) >= wait.max_buffer:
        return f"it matches, and would be dropped: {len(kept)} events are kept, max_buffer is {wait.max_buffer}"
    left = sorted(missing - {event.type})
    if wait.mode == "all" and left:
        return f"it matches, and would be kept: {', '.join(left)} are still missing"
    if run.status != Status.PAUSED:
        return f"it matches, and would be kept: run {run.run_id} is {run.status}, and uses it at its next pause"
    return f"it matches, and would wake run {run.run_id}"


def _missing(wait: Wait, waits: Sequence[Wait], kept: Sequence[Buffered]) -> set[str]:
    there = {row.event_type for row in kept if row.wait_id == wait.wait_id}
    return {other.event_type for other in waits if other.wait_id == wait.wait_id} - there
