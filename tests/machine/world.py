"""The workflows that histories run: what outlives every death, what steps tell it, what the test lets them do."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from piecework import (
    Exclusive,
    Serialized,
    SingletonLoop,
    Stage,
    Step,
    Transient,
    WaitFor,
    Workflow,
    advance,
    jump,
    pause,
)
from piecework.workflow.definition import Pipeline, Trigger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from piecework.run.admission import Mode

ROUNDS = 3
"""How often the stage of a flow that jumps is visited."""


def key_of(event: Any) -> str:
    """The key of a slot."""
    return str(event.payload["k"])


MODES: dict[str, Mode] = {
    "many": Transient(concurrency=2, capacity=1, key=key_of),
    "many held": Transient(concurrency=2, capacity=1, hold_while_paused=True),
    "line": Serialized(capacity=3, key=key_of),
    "line not held": Serialized(capacity=3, hold_while_paused=False),
    "loop drop": SingletonLoop(key=key_of),
    "loop signal": SingletonLoop(on_busy="signal", key=key_of),
    "loop replace": SingletonLoop(on_busy="replace", key=key_of),
    "loop replace not held": SingletonLoop(on_busy="replace", hold_while_paused=False),
    "one reject": Exclusive(key=key_of),
    "one queue": Exclusive(on_busy="queue_single", key=key_of),
    "one queue not held": Exclusive(on_busy="queue_single", hold_while_paused=False),
}

EDGES: dict[str, dict[str | None, set[str | None]]] = {
    "plain": {None: {"a"}, "a": {"b"}, "b": {None}},
    "waits": {None: {"a"}, "a": {"b"}, "b": {"c"}, "c": {None}},
    "asks": {None: {"a"}, "a": {"b"}, "b": {None}},
    "jumps": {None: {"a"}, "a": {"a", "b"}, "b": {None}},
    "naps": {None: {"a"}, "a": {"b"}, "b": {"a", None}},
}
"""From each stage of a shape where a run may go; None is the beginning and the end."""


@dataclass(eq=False)
class Gate:
    """A step that waits to be told what to do."""

    run_id: str
    place: str
    future: asyncio.Future[str]


@dataclass(eq=False)
class Flow:
    """One of a history's workflows."""

    workflow: Workflow
    mode: Mode
    shape: str
    event: str


@dataclass(eq=False)
class World:
    """What steps see and tell.

    Attributes:
        gates: The steps that wait, in the order in which they came.
        free: Whether no step waits any more.
        wrong: What cannot be, in words.
        failed: The runs of which a step was told to fail for good, or took too long.
    """

    gates: list[Gate] = field(default_factory=list)
    free: bool = False
    wrong: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    flows: dict[str, Flow] = field(default_factory=dict)
    _inside: dict[tuple[str, str | None], set[tuple[str, object]]] = field(default_factory=lambda: defaultdict(set))

    def add(self, name: str, mode: str, shape: str) -> Flow:
        """Makes a workflow."""
        triggers = {"own": Trigger(f"go.{name}"), "all": Trigger("go.all")}
        pipelines = {trigger: Pipeline(self._stages(shape)) for trigger in triggers}
        workflow = Workflow(name, triggers=triggers, pipelines=pipelines)
        flow = self.flows[name] = Flow(workflow, MODES[mode], shape, f"go.{name}")
        return flow

    def _stages(self, shape: str) -> list[Stage]:
        step = self.visit
        match shape:
            case "plain":
                return [Stage("a", steps=[Step(step, retries=1)]), Stage("b", steps=[step, self.beside])]
            case "waits":
                waits = lambda view: WaitFor("news", n=view.state["k"], timeout_seconds=20)  # noqa: E731
                return [Stage("a", steps=[step]), Stage("b", steps=[step], wait=waits), Stage("c", steps=[step])]
            case "asks":
                return [Stage("a", steps=[self.ask], router=pause()), Stage("b", steps=[step])]
            case "jumps":
                again = lambda view: jump("a") if len(view.state["trail"]) < ROUNDS else advance  # noqa: E731
                return [Stage("a", steps=[step], router=again), Stage("b", steps=[step], timeout_seconds=5)]
            case _:
                again = lambda view: pause("a") if len(view.state["trail"]) < 2 * ROUNDS else advance  # noqa: E731
                nap = pause(timeout_seconds=7)
                return [Stage("a", steps=[step], router=nap), Stage("b", steps=[step], router=again)]

    # -- steps -----------------------------------------------------------------------------------------------------

    async def visit(self, ctx: Any) -> dict[str, Any]:
        """A step that waits to be told, where its event says so, and leaves its stage's name behind."""
        with self._counted(ctx):
            if not self.free and ctx.state.get("gated"):
                await self._wait(ctx)
        return {"trail": [*ctx.state.get("trail", []), ctx.stage_id]}

    async def beside(self, ctx: Any) -> dict[str, Any]:
        """A step of the same stage that leaves a mark of its own."""
        await asyncio.sleep(0)
        return {"beside": ctx.idempotency_key}

    async def ask(self, ctx: Any) -> dict[str, Any]:
        """A step that asks for an event before its run pauses, and may then be kept waiting."""
        pauses = await ctx.require("__pause_service__")
        await pauses.register("news", conditions=[{"field": "n", "value": ctx.state["k"]}], max_buffer=2)
        return await self.visit(ctx)

    async def _wait(self, ctx: Any) -> None:
        gate = Gate(ctx.run_id, f"{ctx.stage_id} of {ctx.workflow_id}", asyncio.get_running_loop().create_future())
        self.gates.append(gate)
        try:
            told = await gate.future
        except asyncio.CancelledError:
            self.failed.add(ctx.run_id)  # where it was a timeout
            raise
        finally:
            self.gates.remove(gate)
        if told == "fail":
            self.failed.add(ctx.run_id)
            raise RuntimeError("this step was told to fail")

    @contextmanager
    def _counted(self, ctx: Any) -> Iterator[None]:
        """Counts a run while it is inside of a step, as far as its mode bounds it."""
        flow = self.flows[ctx.workflow_id]
        bounded = flow.mode.hold_while_paused or "__resume_reason__" not in ctx.state
        if ctx.run_id.startswith("invoked") or not bounded:
            yield
            return
        slot = (ctx.workflow_id, None if flow.mode.key is None else key_of(ctx.event))
        visit = (ctx.run_id, object())
        inside = self._inside[slot]
        inside.add(visit)
        if len({run_id for run_id, _ in inside}) > flow.mode.concurrency:
            self.wrong.append(f"{len(inside)} steps of {slot} are under way at once")
        try:
            yield
        finally:
            inside.discard(visit)

    def forget(self) -> None:
        """Counts those no more that are inside: their node is given up, and they cannot know it yet."""
        for inside in self._inside.values():
            inside.clear()

    # -- what has to be ----------------------------------------------------------------------------------------------

    def check_trail(self, workflow_id: str, trail: list[str]) -> None:
        """Whether a run that has completed went a way that its stages allow: none lost, none twice."""
        edges = EDGES[self.flows[workflow_id].shape]
        way = [None, *trail, None]
        for here, there in pairwise(way):
            assert there in edges[here], f"a run of {workflow_id} went {trail}"
        if self.flows[workflow_id].shape == "jumps":
            assert trail == ["a"] * ROUNDS + ["b"], trail
        if self.flows[workflow_id].shape == "naps":
            assert trail == ["a", "b"] * ROUNDS, trail
