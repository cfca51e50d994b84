"""What a workflow is made of. Everything is checked when it is built, so a wrong one never meets an event."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from piecework.clock import check_duration
from piecework.errors import DuplicateKeyError, NotFoundError, ValidationError
from piecework.store.values import check_identifier

if TYPE_CHECKING:
    from piecework.bus.event import Event
    from piecework.container.registry import Service
    from piecework.workflow.pause import WaitFor


@dataclass(frozen=True, slots=True)
class Instruction:
    """What follows a stage: `advance`, `terminate`, or what `jump` and `pause` make.

    Attributes:
        action: advance, terminate, jump or pause.
        stage: Where to, for jump and pause; None after a pause means the next stage.
        timeout_seconds: How long a pause lasts at most; None means for ever.
    """

    action: str
    stage: str | None = None
    timeout_seconds: float | None = None


advance = Instruction("advance")
"""Go on with the next stage; behind the last one the run completes."""

terminate = Instruction("terminate")
"""Complete the run now."""


def jump(stage: str) -> Instruction:
    """Go on with another stage, earlier or later."""
    return Instruction("jump", check_identifier(stage, "stage"))


def pause(then: str | None = None, timeout_seconds: float | None = None) -> Instruction:
    """Pause the run until an event that it registered for, a call, or a deadline.

    Args:
        then: The stage to go on with; None means the next one.
        timeout_seconds: When to go on without an event; None means never.

    Raises:
        ValidationError: The timeout is not a positive number.
    """
    return Instruction("pause", then, check_seconds("pause(timeout_seconds)", timeout_seconds))


Router: TypeAlias = Instruction | Callable[[Any], Instruction]


@dataclass(frozen=True, slots=True, init=False)
class Step:
    """One action of a stage; the steps of a stage run concurrently.

    Args:
        action: A function of one argument, the StepContext; what it returns is merged into the run's state.
        id: Unique in its stage; the function's name when omitted.
        label: For people; the id when omitted.
        retries: Extra attempts after the first has raised.
        timeout_seconds: For each attempt; None means no limit.

    Raises:
        ValidationError: The action cannot be called, or a number is out of range.
    """

    action: Callable[..., Any]
    id: str
    label: str
    retries: int
    timeout_seconds: float | None

    def __init__(
        self,
        action: Callable[..., Any],
        *,
        id: str | None = None,  # noqa: A002 - the word of the field
        label: str | None = None,
        retries: int = 0,
        timeout_seconds: float | None = None,
    ) -> None:
        if not callable(action):
            raise ValidationError(f"a step needs a function, not {action!r:.80}")
        name = id if id is not None else getattr(action, "__name__", type(action).__name__)
        name = check_identifier(name, "step id")
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise ValidationError(f"step {name!r}: retries has to be a whole number from 0, not {retries!r}")
        set_ = object.__setattr__
        set_(self, "action", action)
        set_(self, "id", name)
        set_(self, "label", label or name)
        set_(self, "retries", retries)
        set_(self, "timeout_seconds", check_seconds(f"step {name!r}: timeout_seconds", timeout_seconds))


@dataclass(frozen=True, slots=True, init=False)
class Stage:
    """Steps that belong together, and what follows them: one commit ends a stage.

    Args:
        id: Unique in its pipeline.
        steps: Functions or Steps, run concurrently.
        label: For people; the id when omitted.
        timeout_seconds: For all attempts of all steps together; None means no limit.
        router: An instruction, or a function of one argument with `.state` that answers one; advance when omitted.
        wait: A WaitFor, or a function of one argument with `.state` that answers one: the run's steps run, it waits,
            and goes on with the next stage.
        merge: What it means that two steps write different values to one place: "conflict" fails the run with
            CONFLICT, "last" takes the value of the step that the stage declares later.

    Raises:
        ValidationError: Both router and wait are given, one of them is async, or something is of the wrong type.
        DuplicateKeyError: Two steps have one id.
    """

    id: str
    steps: tuple[Step, ...]
    label: str
    timeout_seconds: float | None
    router: Router
    wait: WaitFor | Callable[[Any], WaitFor] | None
    merge: Literal["conflict", "last"]

    def __init__(
        self,
        id: str,  # noqa: A002 - the word of the field
        steps: Sequence[Step | Callable[..., Any]] = (),
        *,
        label: str | None = None,
        timeout_seconds: float | None = None,
        router: Router | None = None,
        wait: WaitFor | Callable[[Any], WaitFor] | None = None,
        merge: Literal["conflict", "last"] = "conflict",
    ) -> None:
        from piecework.workflow.pause import WaitFor

        name = check_identifier(id, "stage id")
        if router is not None and wait is not None:
            raise ValidationError(f"stage {name!r} has both a router and a wait: use one of them")
        if router is not None and not isinstance(router, Instruction) and not callable(router):
            raise ValidationError(f"stage {name!r}: router has to be an instruction or a function, not {router!r:.80}")
        if wait is not None and not isinstance(wait, WaitFor) and not callable(wait):
            raise ValidationError(f"stage {name!r}: wait has to be a WaitFor or a function, not {wait!r:.80}")
        _check_sync(name, "router", router)
        _check_sync(name, "wait", wait)
        if merge not in ("conflict", "last"):
            raise ValidationError(f"stage {name!r}: merge has to be 'conflict' or 'last', not {merge!r:.80}")
        made = tuple(_step(name, step) for step in _listed(f"stage {name!r}: steps", steps))
        _unique(f"stage {name!r}", "step", [step.id for step in made])
        set_ = object.__setattr__
        set_(self, "id", name)
        set_(self, "steps", made)
        set_(self, "label", label or name)
        set_(self, "timeout_seconds", check_seconds(f"stage {name!r}: timeout_seconds", timeout_seconds))
        set_(self, "router", advance if router is None else router)
        set_(self, "wait", wait)
        set_(self, "merge", merge)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages in order.

    Attributes:
        stages: At least one.
        id: The trigger's id when omitted.
        label: For people; the id when omitted.
        max_stage_visits: How many stages a run may run without a pause between them; a run whose routers jump for ever
            fails there.

    Raises:
        ValidationError: There is no stage, or the number is not a whole one from 1.
        NotFoundError: A jump or pause names a stage that is not there.
        DuplicateKeyError: Two stages have one id.
    """

    stages: Sequence[Stage]
    id: str = field(default="", kw_only=True)
    label: str = field(default="", kw_only=True)
    max_stage_visits: int = field(default=10_000, kw_only=True)

    def __post_init__(self) -> None:
        where = f"pipeline {self.id!r}" if self.id else "the pipeline"
        limit = self.max_stage_visits
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValidationError(f"{where}: max_stage_visits has to be a whole number from 1, not {limit!r}")
        given = self.stages if isinstance(self.stages, Sequence) else ()
        if not given or not all(isinstance(stage, Stage) for stage in given):
            raise ValidationError(f"{where} needs a list of at least one Stage")
        object.__setattr__(self, "stages", tuple(self.stages))
        ids = [stage.id for stage in self.stages]
        _unique(where, "stage", ids)
        for stage in self.stages:
            target = stage.router.stage if isinstance(stage.router, Instruction) else None
            if target is not None and target not in ids:
                raise NotFoundError.among("stage", target, ids, hint=f"stage {stage.id!r} wants to go there")

    def position(self, stage_id: str) -> int:
        """The place of a stage, from 0.

        Raises:
            NotFoundError: There is no such stage.
        """
        for index, stage in enumerate(self.stages):
            if stage.id == stage_id:
                return index
        raise NotFoundError.among("stage", stage_id, [stage.id for stage in self.stages])


@dataclass(frozen=True, slots=True)
class Trigger:
    """Which events start a run.

    Attributes:
        event: The event type.
        when: A predicate of the event; one that raises counts as no match and is shown.
        id: The key under which the workflow has it, when omitted.

    Raises:
        ValidationError: The type is empty or the predicate cannot be called.
    """

    event: str
    when: Callable[[Event], bool] | None = None
    id: str = ""

    def __post_init__(self) -> None:
        check_identifier(self.event, "trigger event")
        if self.when is not None and (not callable(self.when) or inspect.iscoroutinefunction(self.when)):
            raise ValidationError(
                f"trigger on {self.event!r}: when has to be a plain function (not async), not {self.when!r:.80}"
            )


@dataclass(frozen=True, slots=True, init=False)
class Workflow:
    """Triggers and the pipelines that they start, under one id.

    The short form `Workflow(id, on=…, stages=…)` has one trigger and one pipeline, both named "default".

    Args:
        id: Unique in the runtime.
        label: For people; the id when omitted.
        triggers: By id.
        pipelines: By the id of the trigger that starts them.
        services: What only this workflow's runs see.
        env: Variables that only this workflow's runs see; they win over the app's.
        version: Of the definition; a digest of its shape when omitted, which begins with "#" and has no order.
        on: The short form: the event type.
        when: The short form: the predicate.
        stages: The short form: the stages.

    Raises:
        ValidationError: A part is missing, or both forms are mixed.
        NotFoundError: A pipeline is keyed by an id that is no trigger's.
    """

    id: str
    label: str
    triggers: Mapping[str, Trigger]
    pipelines: Mapping[str, Pipeline]
    services: tuple[Service, ...]
    env: Mapping[str, str | None]
    version: str

    def __init__(
        self,
        id: str,  # noqa: A002 - the word of the field
        *,
        label: str | None = None,
        triggers: Mapping[str, Trigger] | None = None,
        pipelines: Mapping[str, Pipeline] | None = None,
        services: Sequence[Service] = (),
        env: Mapping[str, str | None] | None = None,
        version: str | None = None,
        on: str | None = None,
        when: Callable[[Event], bool] | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        name = check_identifier(id, "workflow id")
        if on is not None or stages is not None or when is not None:
            if triggers or pipelines:
                raise ValidationError(f"workflow {name!r} mixes on=/stages= with triggers=/pipelines=: use one form")
            if on is None or stages is None:
                raise ValidationError(f"workflow {name!r} needs both on= and stages=")
            triggers = {"default": Trigger(on, when)}
            pipelines = {"default": Pipeline(stages)}
        if not triggers or not pipelines:
            raise ValidationError(f"workflow {name!r} needs at least one trigger and its pipeline")
        set_ = object.__setattr__
        set_(self, "id", name)
        set_(self, "label", label or name)
        set_(self, "triggers", {key: _keyed(name, key, trigger) for key, trigger in triggers.items()})
        set_(self, "pipelines", {key: _named(pipeline, key) for key, pipeline in pipelines.items()})
        set_(self, "services", tuple(services))
        set_(self, "env", dict(env or {}))
        self._check()
        set_(self, "version", version or self._fingerprint())

    def _check(self) -> None:
        for key in self.pipelines:
            if key not in self.triggers:
                hint = f"workflow {self.id!r} keys its pipelines by their triggers' ids"
                raise NotFoundError.among("trigger", key, self.triggers, hint=hint)
        for key in self.triggers:
            if key not in self.pipelines:
                raise ValidationError(f"workflow {self.id!r}: trigger {key!r} has no pipeline of that key")

    def _fingerprint(self) -> str:
        shape = {
            "triggers": {key: trigger.event for key, trigger in self.triggers.items()},
            "pipelines": {
                key: [[stage.id, [step.id for step in stage.steps]] for stage in pipeline.stages]
                for key, pipeline in self.pipelines.items()
            },
        }
        # Marked, because of two fingerprints none is newer.
        return f"#{hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]}"


def check_seconds(what: str, value: float | None) -> float | None:
    """Checks a duration.

    Raises:
        ValidationError: It is neither None nor a positive number of at most a hundred years.
    """
    return None if value is None else check_duration(what, value)


def _step(stage: str, step: Step | Callable[..., Any]) -> Step:
    if not isinstance(step, Step) and not callable(step):
        raise ValidationError(f"stage {stage!r}: a step has to be a function or a Step, not {step!r:.80}")
    return step if isinstance(step, Step) else Step(step)


def _check_sync(stage: str, what: str, fn: object) -> None:
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004 - an object's own call may be async
        raise ValidationError(
            f"stage {stage!r}: {what} has to be a plain function (not async), not {fn!r:.80}: "
            "do the asking in a step and let the function look at the state"
        )


def _listed(what: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValidationError(f"{what} has to be a list, not {value!r:.80}")
    return value


def _keyed(workflow: str, key: str, trigger: Trigger) -> Trigger:
    check_identifier(key, f"trigger id of workflow {workflow!r}")
    if not isinstance(trigger, Trigger):
        raise ValidationError(f"workflow {workflow!r}: trigger {key!r} has to be a Trigger, not {trigger!r:.80}")
    return replace(trigger, id=key)


def _named(pipeline: Pipeline, key: str) -> Pipeline:
    if not isinstance(pipeline, Pipeline):
        raise ValidationError(f"pipeline {key!r} has to be a Pipeline, not {pipeline!r:.80}")
    name = pipeline.id or key
    return replace(pipeline, id=name, label=pipeline.label or name)


def _unique(where: str, what: str, ids: Sequence[str]) -> None:
    for name in ids:
        if ids.count(name) > 1:
            raise DuplicateKeyError(f"{where} has two {what}s {name!r}: give one another id", name=name)
