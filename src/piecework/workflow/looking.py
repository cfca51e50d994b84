"""Looking at workflows and their runs: nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.bus.event import Event
from piecework.errors import (
    ExpiredDefinitionError,
    NotFoundError,
    ValidationError,
    describe,
)
from piecework.ids import new_id
from piecework.run.barred import expired
from piecework.run.folds_nodes import carries, definition_at
from piecework.run.info import RunInfo, TimelineEntry, WorkflowInfo, run_info, timeline_entry
from piecework.run.intake import check_payload
from piecework.run.lifecycle import ENDED, Status
from piecework.run.lookup import Lookup
from piecework.run.parts import encode
from piecework.store.records import (
    PIECES,
    Buffered,
    Delivery,
    Entry,
    EventRow,
    NodeRow,
    RouteRow,
    Run,
    Wait,
    WorkflowRow,
)
from piecework.store.records import RunValue as StoredValue
from piecework.store.values import check_identifier, check_limit, decode, encode_mapping
from piecework.workflow.catalogue import KIND, Catalogue
from piecework.workflow.deltas import changed_places, state_after
from piecework.workflow.explain import Explanation, explain
from piecework.workflow.pipeline_registry import PipelineRegistry

if TYPE_CHECKING:
    from piecework.clock import Clock
    from piecework.run.node import Node
    from piecework.store.contract import Store
    from piecework.store.items import Definition

_PAGE = 1000


class Looking:
    """What may be asked of a runtime.

    Args:
        store: Open.
        node: Running.
        catalogue: Where registered workflows stand.
        clock: Tells the time.
        serving: Whether registered workflows run here.
    """

    def __init__(self, store: Store, node: Node, catalogue: Catalogue, clock: Clock, *, serving: bool) -> None:
        self._store = store
        self._node = node
        self._catalogue = catalogue
        self._clock = clock
        self._serving = serving
        self._runs = Lookup(store, "runs_by_id", Run)
        self._stored = Lookup(store, "values_of_runs", StoredValue)

    def has_workflow(self, workflow_id: str) -> bool:
        """Whether a workflow is registered."""
        return workflow_id in self._catalogue

    def list_workflows(self) -> list[str]:
        """The ids of the registered workflows."""
        return self._catalogue.ids()

    def registry(self, workflow_id: str) -> PipelineRegistry | None:
        """The live and paused runs of a workflow; None where it is not registered."""
        return PipelineRegistry(self, workflow_id) if self.has_workflow(workflow_id) else None

    async def registered(self) -> list[WorkflowInfo]:
        """The workflows that events find, on whatever node they are registered."""
        found: list[WorkflowRow] = await self._store.read("list_workflows", {}, WorkflowRow)
        rows = [row for row in found if not row.workflow_id.startswith(PIECES)]
        ids = [row.workflow_id for row in rows]
        routes: list[RouteRow] = await self._store.read("routes_of_workflows", {"workflow_ids": ids}, RouteRow)
        pending = dict(await self._store.read("pending_counts", {}))
        living = await self._living()
        nodes = {node.node_id: decode(node.workflows) for node in living}
        return [
            WorkflowInfo(
                workflow_id=row.workflow_id,
                version=row.version,
                events=[route.event_type for route in routes if route.workflow_id == row.workflow_id],
                nodes=[node_id for node_id, names in nodes.items() if row.workflow_id in names],
                versions={
                    node.node_id: definition.version
                    for node in living
                    if (definition := definition_at(node, row.workflow_id)) is not None
                },
                pending=pending.get(row.workflow_id, 0),
            )
            for row in rows
        ]

    async def get(self, run_id: str) -> RunInfo:
        """One run, of any kind, with its result.

        Raises:
            NotFoundError: There is no such run.
        """
        run = await self._shown(await self._run(run_id))
        values = await self._values(run_id)
        return run_info(run, result=values.get("result"))

    async def watch(self, workflow_id: str, run_id: str) -> RunInfo | None:
        """One run of a workflow as it stands now; None when there is none."""
        rows = await self._rows(run_id)
        return run_info(await self._shown(rows[0])) if rows and rows[0].workflow_id == workflow_id else None

    async def list_all_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        space: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> list[RunInfo]:
        """Runs, the newest first.

        Args:
            status: Only those of a status.
            workflow: Only those of a workflow, job or integration.
            space: Only those of a tenant.
            kind: Only workflow, job or piece runs.
            limit: At most so many; None means all.
            cursor: Behind this run id.

        Raises:
            ValidationError: The limit is below one, or there is no such status.
            NotFoundError: The cursor is no run.
        """
        if limit is not None:
            check_limit(limit)
        if status is not None and status not in list(Status):
            raise ValidationError(f"there is no status {status!r}; there are {', '.join(Status)}")
        last = None if cursor is None else await self._run(cursor)
        found: list[RunInfo] = []
        while limit is None or len(found) < limit:
            size = _PAGE if limit is None else min(_PAGE, limit - len(found))
            params = {
                "status": status,
                "workflow": workflow,
                "space": space,
                "kind": kind,
                "created_at": None if last is None else last.created_at,
                "run_id": None if last is None else last.run_id,
                "limit": size,
            }
            live = status is not None and Status(status) not in ENDED
            rows = await self._store.read("list_live_runs" if live else "list_runs", params, Run)
            found += [run_info(row) for row in rows]
            if len(rows) < size:
                break
            last = rows[-1]
        return found

    async def count_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        space: str | None = None,
        kind: str | None = None,
    ) -> int:
        """How many runs there are; see `list_all_runs` for what is counted.

        Raises:
            ValidationError: There is no such status.
        """
        if status is not None and status not in set(Status):
            raise ValidationError(f"there is no status {status!r}; there are {', '.join(Status)}")
        live = status is not None and Status(status) not in ENDED
        params = {"status": status, "workflow": workflow, "space": space, "kind": kind}
        rows = await self._store.read("count_live_runs" if live else "count_runs", params)
        return int(rows[0][0])

    async def state(self, run_id: str) -> dict[str, Any]:
        """A run's data as of its last commit; empty before the first.

        Raises:
            NotFoundError: There is no such run.
        """
        await self._run(run_id)
        return decode((await self._values(run_id)).get("state")) or {}

    async def timeline(self, run_id: str) -> list[TimelineEntry]:
        """What happened to a run, oldest first.

        Raises:
            NotFoundError: There is no such run.
        """
        rows = await self._entries(run_id)
        return [timeline_entry(row, seq, changed_places(row.delta)) for seq, row in enumerate(rows, start=1)]

    async def seek(self, run_id: str, seq: int) -> dict[str, Any]:
        """A run's data as it was committed with an entry of its timeline; empty before the first commit.

        Values are as they were, also those that a log line would not show.

        Args:
            run_id: The run.
            seq: The entry's place in the timeline, from 1.

        Raises:
            NotFoundError: There is no such run, or its timeline has no such entry.
            ValidationError: It is a job or an update of a piece: only what it has now is kept.
        """
        rows, kind = await self._entries(run_id), (await self._run(run_id)).kind
        if kind != KIND:
            raise ValidationError(
                f"run {run_id} is of kind {kind}: only runs of workflows keep their earlier states; `state` has the "
                "one of now",
                run_id=run_id,
            )
        if not isinstance(seq, int) or not 1 <= seq <= len(rows):
            raise NotFoundError(
                f"the timeline of run {run_id} has no entry {seq!r}: it has 1 to {len(rows)}", run_id=run_id, seq=seq
            )
        return state_after([row.delta for row in rows[:seq]])

    async def explain(self, run_id: str, event: Event | str) -> list[Explanation]:
        """Why an event did, or did not, or would wake a run: an answer for each of its waits.

        Args:
            run_id: The run.
            event: The id of an event that was published, or an event that might be.

        Returns:
            One answer a wait, in the order of registration; a single one without a wait where the run waits for none.

        Raises:
            NotFoundError: There is no such run, or no event of that id (any more).
            ValidationError: The event's type or payload is not acceptable.
        """
        run = await self._run(run_id)
        row = await self._event(event)
        waits: list[Wait] = await self._store.read("waits_of_runs", {"run_ids": [run_id]}, Wait)
        kept: list[Buffered] = await self._store.read("buffers_of_runs", {"run_ids": [run_id]}, Buffered)
        told: list[Delivery] = []
        if row.seq is not None:
            told = await self._store.read("deliveries_of", {"seqs": [row.seq]}, Delivery)
        mine = next((each for each in told if each.run_id == run_id and not each.trigger_id), None)
        return explain(run, waits, kept, row, decode(row.payload), mine)

    # -- parts ---------------------------------------------------------------------------------------------------

    async def _living(self) -> list[NodeRow]:
        nodes: list[NodeRow] = await self._store.read("living_nodes", {"now": self._clock.now()}, NodeRow)
        return nodes

    async def _entries(self, run_id: str) -> list[Entry]:
        await self._run(run_id)
        rows: list[Entry] = await self._store.read("timeline_of", {"run_id": run_id}, Entry)
        return rows

    async def _stuck(self, run: Run) -> ExpiredDefinitionError | None:
        """Why no living node can carry a run, if that is so.

        Raises:
            NotFoundError: No living node has its workflow.
        """
        mine = self._catalogue.definitions().get(run.workflow_id) if self._serving else None
        if mine is not None and carries(mine, run):
            return None
        there = await self._there(run.workflow_id)
        return None if any(carries(definition, run) for definition in there) else expired(run, there)

    async def _there(self, workflow_id: str) -> list[Definition]:
        """What the living nodes have of a workflow.

        Raises:
            NotFoundError: None has it.
        """
        if not self._store.shared:
            self._catalogue.get(workflow_id)
            return [self._catalogue.definitions()[workflow_id]]
        living = await self._living()
        known = {name for node in living for name in decode(node.workflows)}
        if workflow_id not in known:
            raise NotFoundError.among("workflow", workflow_id, known, hint="No node has it registered")
        found = (definition_at(node, workflow_id) for node in living)
        return [definition for definition in found if definition is not None]

    async def _shown(self, run: Run) -> Run:
        """A run as it is shown: one that is due and that no living node can carry tells so as its error."""
        due = run.kind == KIND and run.owner is None and run.due_at is not None and run.status not in ENDED
        if not due or run.error is not None:
            return run
        try:
            error = await self._stuck(run)
        except NotFoundError as missing:
            return replace(run, error=encode(describe(missing)).decode())
        return run if error is None else replace(run, error=encode(describe(error)).decode())

    async def _event(self, event: Event | str) -> EventRow:
        """A published event as it is stored, or one that might be published as it would be."""
        if isinstance(event, str):
            check_identifier(event, "event id")
            rows: list[EventRow] = await self._store.read("events_by_id", {"ids": [event]}, EventRow)
            if not rows:
                raise NotFoundError(f"there is no event {event!r}, or it is so old that its id is forgotten", id=event)
            return rows[0]
        told = told_event(event)
        payload = encode_mapping(told["payload"], what="the payload")
        return EventRow(None, told["id"], told["type"], told["space"], payload, self._clock.now())

    async def _run(self, run_id: str) -> Run:
        rows = await self._rows(run_id)
        if not rows:
            raise NotFoundError(
                f"there is no run {run_id!r}: `piecework runs list` shows those there are", run_id=run_id
            )
        found: Run = rows[0]
        return found

    async def _rows(self, run_id: str) -> list[Run]:
        """The run of an id, if there is one; what cannot be an id is none."""
        try:
            check_identifier(run_id, "run_id")
        except ValidationError:
            return []
        return await self._runs.of(run_id)

    async def _values(self, run_id: str) -> dict[str, bytes]:
        return {row.name: row.data for row in await self._stored.of(run_id)}


def told_event(event: Event) -> dict[str, Any]:
    """An event as an invoked run is given it.

    Raises:
        ValidationError: It is no event, or its type or payload is not acceptable.
    """
    if not isinstance(event, Event):
        raise ValidationError(f"invoke needs an Event, not {event!r:.80}: Event('invoice.received', {{…}})")
    check_identifier(event.type, "event type")
    check_payload(event.payload)
    return {"id": event.id or new_id(), "type": event.type, "payload": event.payload, "space": event.space}
