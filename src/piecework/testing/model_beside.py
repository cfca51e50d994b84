"""A store beside the model of it: both are given the same, and have to come to the same."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis.stateful import RuleBasedStateMachine
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import PieceworkError
from piecework.run import folds, folds_nodes
from piecework.store import items
from piecework.store.contract import Failure
from piecework.store.records import EventRow
from piecework.store.verbs import runs
from piecework.testing import model_draws as draws
from piecework.testing.invariants import check_invariants
from piecework.testing.model_look import differences, looking, plain
from piecework.testing.model_runs import Model
from piecework.testing.model_world import ModelRun, Refused, data
from piecework.testing.verbs import Verbs
from piecework.workflow.pause import WaitFor, waits_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from piecework.store.contract import Decide, Store, Verb
    from piecework.store.records import Wait

_LOOK_EVERY = 4
_WAITED = ("queued", "replaced", "superseded")
"""What a duplicate may be told of a run that waited: it may have been superseded in between."""


class Beside(RuleBasedStateMachine):
    """A store and the model of it, and how the two are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        try:
            self.store = self.runner.run(self._open())
        except BaseException:
            self.runner.close()
            raise
        self.verbs = Verbs(self.store)
        self.model = Model()
        self.modes = dict.fromkeys(draws.WORKFLOWS, 0)
        self.same_modes = True
        self.event_ids: list[str] = []
        self.run_ids: set[str] = set()
        self.last: tuple[Any, ...] | None = None
        self.last_seq = 0
        self.names = 0
        self.steps = 0

    def opened(self) -> Awaitable[Store]:
        """The store of this history."""
        raise NotImplementedError

    async def _open(self) -> Store:
        return await self.opened()

    def teardown(self) -> None:
        """Compares everything once more; no store and no loop is left."""
        try:
            self.look(lines=True)
        finally:
            try:
                self.runner.run(self.store.close())
            finally:
                self.runner.close()

    # -- both do the same --------------------------------------------------------------------------------------------

    def act(
        self, verb: Verb, batch: Sequence[Any], decide: Decide, expect: Callable[[Any, Any], Any], *, echo: bool = False
    ) -> list[Any]:
        """Has the store decide a batch, and then the model; both have to come to the same.

        Args:
            verb: For the store.
            batch: Its items; one transaction decides them.
            decide: For the store.
            expect: What the model answers to an item, given what the store did.
            echo: Whether a repeat is answered like the first time.
        """
        found = self._submit(verb, batch, decide)
        for item, outcome in zip(batch, found, strict=True):
            expected = _of_model(expect, item, outcome)
            assert in_words(outcome) == in_words(expected), (
                f"{verb.__name__} {item}: the store says {outcome}, the model {expected}"
            )
        self.last = (verb, batch, decide, expect, echo, found)
        self.steps += 1
        if self.steps % _LOOK_EVERY == 0:
            self.look()
        return found

    def _submit(self, verb: Verb, batch: Sequence[Any], decide: Decide) -> list[Any]:
        if len(batch) > 1:
            return self.runner.run(self.verbs.together(verb, batch, decide))
        try:
            return [self.runner.run(self.verbs.do(verb, batch[0], decide))]
        except PieceworkError as error:
            return [Failure(error)]

    def look(self, *, lines: bool = False) -> None:
        """Compares all rows, timelines only with `lines`, and looks for what contradicts itself."""
        look = looking(self.model, self.run_ids, lines=lines)
        rows = self.runner.run(self.store.run(look, None, folds_nodes.no_decision, self.now))
        wrong = differences(self.model, rows)
        assert not wrong, "\n".join(wrong)
        if self.same_modes:  # a lowered limit ends nobody: there may be more runs than it allows
            self.runner.run(check_invariants(self.store))

    # -- names and choices -------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The moment of both."""
        return self.verbs.now

    def name(self, kind: str) -> str:
        """A fresh id. Their order says nothing of the order in which they were made."""
        self.names += 1
        return f"{kind}{self.names * 389 % 1009:04}"

    def run_name(self) -> str:
        """A fresh id of a run."""
        run_id = self.name("r")
        self.run_ids.add(run_id)
        return run_id

    def held(self) -> list[ModelRun]:
        """The runs that somebody has and that have not ended."""
        return self.those(lambda run: run.owner is not None and run.status == "running")

    def those(self, wanted: Callable[[ModelRun], bool]) -> list[ModelRun]:
        """Some of the runs, in the order in which they were made."""
        return [run for run in self.model.runs.values() if wanted(run)]

    def soon(self) -> int:
        """A time limit that no other has."""
        self.names += 1
        return 5 * SECOND + self.names * 1000

    # -- items -------------------------------------------------------------------------------------------------------

    def routes(self, targets: Sequence[tuple[str, str]]) -> tuple[items.Route, ...]:
        """Triggers that an event meets, each at a key of a workflow under the workflow's mode."""
        return tuple(
            items.Route(
                kind="workflow",
                workflow_id=workflow,
                trigger_id=f"t{number}",
                pipeline_id=f"t{number}",
                run_id=self.run_name(),
                slot=draws.slot_like(workflow, key, self.modes[workflow]),
                key=key,
                version="1",
                patch=data({"signalled": number}) if number else None,
                telling=key == "b",
            )
            for number, (workflow, key) in enumerate(targets)
        )

    def event(
        self,
        type_: str,
        payload: dict[str, Any],
        space: str | None,
        targets: Sequence[tuple[str, str]],
        *,
        event_id: str | None = None,
    ) -> items.Accept:
        """An event with the triggers that it meets."""
        name = event_id or self.name("e")
        self.event_ids.append(name)
        count = len(self.event_ids)
        hops = 32 if count % 7 == 0 else count % 3  # some have come by too many runs to start another
        row = EventRow(None, name, type_, space, data(payload), self.now, hops)
        return items.Accept(event=row, payload=payload, routes=self.routes(targets))

    def awaited(self) -> list[Wait]:
        """What runs wait for."""
        return [wait for run in self.model.runs.values() for wait in run.waits.values()]

    def at_once(self, of_model: Callable[[Any, int], Any]) -> Callable[[Any, Any], Any]:
        """What the model answers to an item now, whatever the store did."""
        return lambda item, _: of_model(item, self.now)

    def waits(self, run_id: str, drawn: draws.DrawnWait, stage: str = "") -> tuple[Wait, ...]:
        """The rows of one registration."""
        wait_for = WaitFor(
            *(draws.STAGES[stage] if stage else drawn.types),
            mode=drawn.mode,
            conditions=drawn.clauses,
            timeout_seconds=self.soon() / SECOND if drawn.timeout else None,
            patch={"w": 1} if drawn.patch else None,
        )
        rows = waits_of(wait_for, run_id, max_buffer=drawn.max_buffer, stage=stage)
        name = rows[0].wait_id if stage else self.name("w")
        return tuple(replace(row, wait_id=name) for row in rows)

    def stage_end(self, run: ModelRun, drawn: draws.DrawnEnd, epoch: int) -> items.CommitStage:
        """The end of a stage."""
        then: items.Continue | items.Park | items.Defer
        if drawn.then == "continue":
            then = items.Continue(stage=self.name("s"))
        elif drawn.then == "defer":
            then = items.Defer(due_at=self.now + (3 * SECOND if drawn.timeout else 0))
        else:
            waits = self.waits(run.run_id, drawn.wait, drawn.stage) if drawn.then == "stage" else ()
            then = items.Park(stage="on", waits=waits, timeout=self.soon() if drawn.timeout else None)
        return items.CommitStage(
            run_id=run.run_id,
            epoch=epoch,
            visit=run.visit,
            state=data({"visit": run.visit}),
            signalled=max(run.signals, default=0) if drawn.signals else 0,
            entries=tuple(items.NewEntry(type=f"stage:{n}") for n in range(drawn.lines)),
            then=then,
        )

    def written(
        self, kind: str, run: ModelRun, epoch: int, drawn: draws.DrawnEnd
    ) -> tuple[Verb, Any, Decide, Callable[[Any, int], Any]]:
        """One of the writes that only a run's owner may make, as if made by one of an epoch."""
        run_id = run.run_id
        match kind:
            case "commit":
                return (
                    runs.commit_stage,
                    self.stage_end(run, drawn, epoch),
                    folds.decide_commit_stage,
                    self.model.commit_stage,
                )
            case "settle":
                item: Any = items.Settle(
                    run_id=run_id,
                    epoch=epoch,
                    status="completed" if drawn.timeout else "failed",
                    telling=drawn.signals,
                    state=data({"settled": 1}) if drawn.timeout else None,
                    result=b"1",
                )
                return runs.settle, item, folds.decide_settle, self.model.settle
            case "told":
                return runs.end_told, items.EndTold(run_id=run_id, epoch=epoch), folds.decide_end_told, self.model.hear
            case "cleaned":
                return runs.cleaned, items.Cleaned(run_id=run_id, epoch=epoch), folds.decide_cleaned, self.model.clean
            case "release":
                item = items.Release(run_id=run_id, epoch=epoch, due_at=self.now, counted=drawn.timeout)
                return runs.release, item, folds.decide_release, self.model.release
            case "unresume":
                item = items.Unresume(run_id=run_id, epoch=epoch, due_at=self.now + self.soon())
                return runs.unresume, item, folds.decide_unresume, self.model.unresume
            case "register":
                item = items.Register(run_id=run_id, epoch=epoch, waits=self.waits(run_id, drawn.wait))
                return runs.register_waits, item, folds.decide_register, self.model.register_waits
        line = items.NewEntry(source="logger", type="log.info", path="hello")
        item = items.Append(
            run_id=run_id,
            epoch=epoch,
            decision=len(run.lines),
            attempt=run.attempt,
            first=1,
            entries=(line,),
            progress=(0.5, "half") if drawn.timeout else None,
        )
        return runs.append, item, folds.decide_append, self.model.append


def in_words(outcome: Any) -> Any:
    """An outcome in comparable words; what became of an event at several places has no order."""
    if isinstance(outcome, list):
        return [in_words(one) for one in outcome]
    if isinstance(outcome, Failure):
        return type(outcome.error)
    if isinstance(outcome, Refused):
        return outcome.error
    told = plain(outcome)
    if isinstance(outcome, items.Accepted):
        for one in told["dispatched"]:
            if outcome.duplicate and one["reason"] in _WAITED:
                one["reason"] = "queued"
        told["dispatched"].sort(key=repr)
    return told


def _of_model(expect: Callable[[Any, Any], Any], item: Any, found: Any) -> Any:
    try:
        return expect(item, found)
    except Refused as refused:
        return refused
