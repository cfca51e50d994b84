"""The workflows that are registered here, and which of their triggers an event matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from piecework.container.state import in_json
from piecework.errors import ConflictError, NotFoundError, clean_text, describe
from piecework.ids import new_id
from piecework.run.admission import SingletonLoop, slot_of
from piecework.store.items import Definition, Route
from piecework.store.values import check_identifier, encode_mapping
from piecework.telemetry import signals
from piecework.workflow.hooks import NO_HOOKS

if TYPE_CHECKING:
    from piecework.bus.event import Event
    from piecework.container.container import Container
    from piecework.run.admission import Mode
    from piecework.workflow.definition import Trigger, Workflow
    from piecework.workflow.hooks import Hooks

KIND = "workflow"


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A workflow that takes events here.

    Attributes:
        workflow: Its definition.
        mode: How many of its runs may be live.
        container: What its services of scope workflow live in.
        hooks: What it wants to hear of its runs.
    """

    workflow: Workflow
    mode: Mode
    container: Container
    hooks: Hooks = NO_HOOKS


class Catalogue:
    """Registered workflows by id and by event type.

    One that leaves gets no more events, while its runs may still be carried to their ends.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Registered] = {}
        self._leaving: dict[str, Registered] = {}
        self._by_event: dict[str, list[tuple[Registered, Trigger]]] = {}
        self._versions: dict[str, str | None] = {}
        self._definitions: dict[str, Definition] = {}

    def __contains__(self, workflow_id: object) -> bool:
        return workflow_id in self._by_id

    def ids(self) -> list[str]:
        """The ids of all workflows, in order of registration."""
        return list(self._by_id)

    def versions(self) -> dict[str, str | None]:
        """The version of each workflow, as of now: what was answered before never changes."""
        return self._versions

    def definitions(self) -> dict[str, Definition]:
        """What tells of each workflow which runs it can carry, as of now: what was answered before never changes."""
        return self._definitions

    def get(self, workflow_id: str) -> Registered:
        """A workflow by id.

        Raises:
            NotFoundError: It is not registered here.
            ValidationError: It is no text.
        """
        if not isinstance(workflow_id, str) or workflow_id not in self._by_id:
            raise NotFoundError.among("workflow", workflow_id, self._by_id)
        return self._by_id[workflow_id]

    def find(self, workflow_id: str) -> Registered | None:
        """A workflow whose runs can be carried here: it is registered, or just leaves."""
        return self._by_id.get(workflow_id) or self._leaving.get(workflow_id)

    def carried(self) -> list[str]:
        """The ids of the workflows whose runs can be carried here."""
        return [*self._by_id, *self._leaving]

    def check_free(self, workflow_id: str) -> None:
        """Refuses an id that is taken.

        Raises:
            ConflictError: The workflow is registered already, or it is just leaving.
        """
        if workflow_id in self._leaving:
            raise ConflictError(
                f"workflow {workflow_id!r} is being deregistered, and its last runs are still ending: wait for "
                "deregister to return",
                id=workflow_id,
            )
        if workflow_id in self._by_id:
            raise ConflictError(f"workflow {workflow_id!r} is registered already: deregister it first", id=workflow_id)

    def add(self, registered: Registered) -> None:
        """Takes a workflow in: from now on its triggers see events."""
        self.check_free(registered.workflow.id)
        self._by_id[registered.workflow.id] = registered
        self._versions = self._versions | {registered.workflow.id: registered.workflow.version}
        self._definitions = self._definitions | {registered.workflow.id: definition_of(registered.workflow)}
        for trigger in registered.workflow.triggers.values():
            self._by_event.setdefault(trigger.event, []).append((registered, trigger))

    def leave(self, workflow_id: str) -> Registered | None:
        """Takes a workflow out as far as events go: its runs are carried on until it is removed. Answers what it is."""
        leaving = self._by_id.get(workflow_id)
        if leaving is not None:
            self.remove(workflow_id)
            self._leaving[workflow_id] = leaving
        return leaving

    def remove(self, workflow_id: str) -> Registered | None:
        """Takes a workflow out: from now on no event reaches it and no run is carried. Answers what it was."""
        leaving = self._leaving.pop(workflow_id, None)
        gone = self._by_id.pop(workflow_id, None)
        if gone is None:
            return leaving
        self._versions = {name: version for name, version in self._versions.items() if name != workflow_id}
        self._definitions = {name: known for name, known in self._definitions.items() if name != workflow_id}
        for event_type in {trigger.event for trigger in gone.workflow.triggers.values()}:
            left = [entry for entry in self._by_event[event_type] if entry[0] is not gone]
            if left:
                self._by_event[event_type] = left
            else:
                del self._by_event[event_type]
        return gone

    def routes(self, event: Event) -> list[Route]:
        """The triggers that an event matches, with their slots; predicates and keys of the user run here."""
        return [
            _route(registered, trigger, event)
            for registered, trigger in self._by_event.get(event.type, ())
            if _matches(registered, trigger, event)
        ]

    def route(self, workflow_id: str, trigger_id: str, event: Event, run_id: str) -> Route:
        """One trigger with its slot, whatever its predicate says; the key function of the user runs here.

        Raises:
            NotFoundError: It is not registered here.
        """
        registered = self.get(workflow_id)
        return replace(_route(registered, registered.workflow.triggers[trigger_id], event), run_id=run_id)


def definition_of(workflow: Workflow) -> Definition:
    """What tells which runs of a workflow can go on here."""
    stages = {key: tuple(stage.id for stage in pipeline.stages) for key, pipeline in workflow.pipelines.items()}
    return Definition(version=workflow.version, stages=stages)


def _matches(registered: Registered, trigger: Trigger, event: Event) -> bool:
    if trigger.when is None:
        return True
    try:
        return bool(trigger.when(event))
    except Exception as error:  # noqa: BLE001 - a predicate that raises is no match, and is shown
        _show_failure(registered, trigger, event, error)
        return False


def _route(registered: Registered, trigger: Trigger, event: Event) -> Route:
    workflow, mode = registered.workflow, registered.mode
    refused = key = patch = None
    what = "key function"
    try:
        given = None if mode.key is None else mode.key(event)
        if given is not None:  # numbers are the usual ids
            told = str(given) if type(given) is int else given
            key = check_identifier(told, f"key of workflow {workflow.id!r}")
        if isinstance(mode, SingletonLoop) and mode.mapper is not None:
            what = "mapper"
            patch = encode_mapping(
                in_json(mode.mapper(event)), what=f"what the mapper of workflow {workflow.id!r} made"
            )
    except Exception as error:  # noqa: BLE001 - to guess a slot could break what the mode promises: no run, and it is told
        _show_failure(registered, trigger, event, error)
        key, refused = None, f"its {what} raised {type(error).__name__}: {clean_text(str(error), 200)}"
    return Route(
        kind=KIND,
        workflow_id=workflow.id,
        trigger_id=trigger.id,
        pipeline_id=workflow.pipelines[trigger.id].id,
        run_id=new_id(),
        slot=slot_of(mode, msgspec.json.encode([workflow.id, key]).decode(), workflow.id),
        key=key,
        version=workflow.version,
        patch=patch,
        refused=refused,
        telling=registered.hooks.of_end,
    )


def _show_failure(registered: Registered, trigger: Trigger, event: Event, error: Exception) -> None:
    signals.emit(
        signals.PREDICATE_FAILED,
        level="warning",
        workflow_id=registered.workflow.id,
        trigger_id=trigger.id,
        event_id=event.id,
        error=describe(error),
    )
