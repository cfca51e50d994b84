"""What nodes say of themselves and of their workflows.

`renew` and `leave` for the node, `register_routes` and `retire_workflow` for what finds its workflow late,
`raise_limit` for slots whose mode has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from piecework.store.contract import (
    Change,
    Delete,
    Failure,
    InsertMissing,
    Lock,
    Put,
    Read,
    StartAgain,
    Tell,
    Update,
)
from piecework.store.draft import Draft
from piecework.store.items import Raised, Retired
from piecework.store.records import Delivery, NodeRow, RouteRow, Slot, WorkflowRow
from piecework.store.verbs.loading import HEADS_LIMIT, conclude, lock_runs, lock_slots

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script
    from piecework.store.items import Leave, RaiseLimit, RegisterRoutes, Renew, RetireWorkflow

_PAGE = 500


def renew(items: Sequence[Renew], _decide: Decide, _now: int) -> Script:
    """Says that nodes live; where one is alone all others are dead, and forgotten. An older word changes nothing."""
    newest: dict[str, NodeRow] = {}
    for item in items:
        row = newest.get(item.node.node_id, item.node)
        newest[row.node_id] = max(row, item.node, key=lambda node: node.renewed_at)
    if any(item.alone for item in items):
        yield Change("delete_other_nodes", {"node_ids": sorted(newest)})
    stored: list[NodeRow] = yield Lock(NodeRow, [(key,) for key in sorted(newest)])
    later = {row.node_id for row in stored if row.renewed_at > newest[row.node_id].renewed_at}
    rows = [newest[key] for key in sorted(newest) if key not in later]
    if rows:
        yield Put(rows)
    return [True for _ in items]


def leave(items: Sequence[Leave], _decide: Decide, _now: int) -> Script:
    """Forgets nodes that stop: what they still have may be taken over at once."""
    yield Change("delete_nodes", {"node_ids": sorted({item.node_id for item in items})})
    yield Tell(["due"])
    return [True for _ in items]


def register_routes(items: Sequence[RegisterRoutes], decide: Decide, now: int) -> Script:
    """Makes events of some types reach a workflow from now on, wherever they are accepted; outlives the node.

    The decision is told the routes that stand and answers those that shall: the newest version's.
    """
    ids = sorted({item.workflow_id for item in items})
    # One row a workflow, locked before its routes are read: of two versions at once the second sees the first.
    there: list[WorkflowRow] = yield Lock(WorkflowRow, [(name,) for name in ids])
    missing = sorted(set(ids) - {row.workflow_id for row in there})
    if missing:
        yield InsertMissing([WorkflowRow(name, None, now) for name in missing], "workflow_id")
        there = yield Lock(WorkflowRow, [(name,) for name in ids])
        if len(there) < len(ids):
            yield StartAgain()
    rows: list[RouteRow] = yield Read("routes_of_workflows", {"workflow_ids": ids}, RouteRow)
    stored = {row.workflow_id: (row, [r for r in rows if r.workflow_id == row.workflow_id]) for row in there}
    for item in items:
        before = stored[item.workflow_id]
        after: tuple[WorkflowRow, list[RouteRow]] = decide((item, *before), None, now)
        if after != before:
            yield from _write_routes(after)
            stored[item.workflow_id] = after
    yield Tell(["pending"])
    return [True for _ in items]


def _write_routes(wanted: tuple[WorkflowRow, list[RouteRow]]) -> Generator[Request, Any, None]:
    workflow, routes = wanted
    types = [row.event_type for row in routes]
    yield Update([workflow])
    yield Change("delete_routes_but", {"workflow_id": workflow.workflow_id, "types": types})
    if routes:
        yield Put(routes)


def retire_workflow(items: Sequence[RetireWorkflow], _decide: Decide, now: int) -> Script:
    """Ends a workflow's routes and drops what is pending for it, unless a living node has it."""
    ids = sorted({item.workflow_id for item in items})
    # Whoever is about to leave an event for one of them commits first, or sees that it has gone.
    there: list[WorkflowRow] = yield Lock(WorkflowRow, [(name,) for name in ids])
    known = {row.workflow_id for row in there}
    outcomes: list[Retired] = []
    nodes: list[NodeRow] = yield Read("living_nodes", {"now": now}, NodeRow)
    for item in items:
        holders = tuple(
            node.node_id
            for node in nodes
            if node.node_id != item.node_id and item.workflow_id in msgspec.json.decode(node.workflows)
        )
        dropped = 0
        if not holders and item.workflow_id in known:
            known.discard(item.workflow_id)
            dropped = yield from _drop_pending(item.workflow_id)
            yield Change("delete_routes_but", {"workflow_id": item.workflow_id, "types": []})
            yield Delete(WorkflowRow, [(item.workflow_id,)])
        outcomes.append(Retired(nodes=holders, dropped=dropped))
    return outcomes


def _drop_pending(workflow_id: str) -> Generator[Request, Any, int]:
    """Ends the pending deliveries of a workflow, page by page; answers how many."""
    dropped, after = 0, 0
    while True:
        params = {"workflow_ids": [workflow_id], "after": after, "after_id": workflow_id, "limit": _PAGE}
        peeked: list[Delivery] = yield Read("pending_deliveries", params, Delivery)
        if not peeked:
            return dropped
        after = peeked[-1].event_seq
        rows: list[Delivery] = yield Lock(Delivery, [row.identity() for row in peeked])
        doomed = [replace(row, outcome="dropped", reason="deregistered") for row in rows if row.outcome == "pending"]
        if doomed:
            yield Update(doomed)
        dropped += len(doomed)


def raise_limit(items: Sequence[RaiseLimit], decide: Decide, now: int) -> Script:
    """Gives slots the numbers of their workflow's newest registration, and starts those of their queues that may."""
    draft = Draft()
    pages: list[list[Slot]] = []
    for item in items:
        params = {"workflow_id": item.like.workflow_id, "after": item.after, "limit": item.limit}
        pages.append((yield Read("slots_of_workflow", params, Slot)))
    peeked = [slot for page in pages for slot in page]
    yield from lock_slots(draft, peeked, ())
    yield from lock_runs(draft, (), places=HEADS_LIMIT)
    wanted = [(slot.slot_key, item.like) for item, page in zip(items, pages, strict=True) for slot in page]
    folded = draft.fold(wanted, decide, now)
    yield from conclude(draft)
    return list(_told(items, pages, folded))


def _told(
    items: Sequence[RaiseLimit], pages: Sequence[list[Slot]], folded: list[Any]
) -> Generator[Raised | Failure, None, None]:
    answers = iter(folded)
    for item, page in zip(items, pages, strict=True):
        mine = [next(answers) for _ in page]
        failed = next((answer for answer in mine if isinstance(answer, Failure)), None)
        last = page[-1].slot_key if len(page) == item.limit else None
        yield failed or Raised(started=sum(mine), last=last)
