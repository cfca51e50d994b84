"""What the verbs of nodes decide: whose routes hold, and which numbers a slot goes by. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from piecework.run import admission
from piecework.run.parts import start_successors
from piecework.store.items import Definition
from piecework.store.records import RouteRow, Slot

if TYPE_CHECKING:
    from piecework.store.draft import Draft
    from piecework.store.items import RegisterRoutes
    from piecework.store.records import NodeRow, Run, WorkflowRow

FINGERPRINT = "#"
"""What the version of a workflow begins with where nobody named one."""

_PARTS = re.compile(r"\d+|[^\d.]+")


def decide_routes(
    asked: tuple[RegisterRoutes, WorkflowRow, list[RouteRow]], _: None, now: int
) -> tuple[WorkflowRow, list[RouteRow]]:
    """The routes of a workflow from now on: those of the newest version, and of the last to register it.

    A node of an older version changes nothing: events wait for a node of the newest one.
    """
    item, workflow, stored = asked
    if is_newer(workflow.version, item.version):
        return workflow, stored
    since = {row.event_type: row.registered_at for row in stored}
    wanted = [
        RouteRow(event_type, item.workflow_id, item.version, since.get(event_type, now))
        for event_type in sorted(set(item.event_types))
    ]
    return replace(workflow, version=item.version), stored if wanted == stored else wanted


def carries(definition: Definition, run: Run) -> bool:
    """Whether a run can go on under a definition: one with its trigger and its stage that is not older than it."""
    stages = definition.stages.get(run.trigger_id)
    there = stages is not None and (run.stage is None or run.stage in stages)
    return there and not is_newer(run.version, definition.version)


def definition_at(node: NodeRow, workflow_id: str) -> Definition | None:
    """What a node has of a workflow by its own word; None where it has nothing, or is about to."""
    told = msgspec.json.decode(node.workflows)
    found = told.get(workflow_id) if isinstance(told, dict) else None
    return None if found is None else msgspec.convert(found, Definition)


def no_decision(_draft: object, _item: object, _now: int) -> None:
    """For verbs in which nothing has to be decided."""


def is_newer(version: str | None, than: str | None) -> bool:
    """Whether a workflow's version is newer than another: numbers inside are compared as numbers, none is the oldest.

    So 1.10 is newer than 1.9, 2026-11-02 than 2026-10-31, and two names that only differ in words go by the alphabet.
    A fingerprint, which stands where nobody named a version, is neither newer nor older than anything.
    """
    if FINGERPRINT in {(version or "")[:1], (than or "")[:1]}:
        return False
    return _rank(version) > _rank(than)


def _rank(version: str | None) -> tuple[tuple[int, int, str], ...]:
    if version is None:
        return ()
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in _PARTS.findall(version))


def decide_raise_limit(draft: Draft, asked: tuple[str, Slot], now: int) -> int:
    """Gives a slot the numbers of its workflow's newest registration; answers how many of its queue start."""
    slot_key, like = asked
    draft.put(admission.governed(draft.get(Slot, slot_key), like))
    return start_successors(draft, slot_key, now)
