"""One stage: its steps are run, each as often as it may be, and then it is asked what follows.

A step sees a copy of the state and of the event, in a fork of the run's workspace, and returns a patch. All steps of a
stage run to their ends; if any of them fails, no patch is kept.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Self

import msgspec

from piecework.bus.event import Event
from piecework.container.state import in_json
from piecework.errors import (
    AbortedError,
    ClosedError,
    CrashedError,
    ExecutionFailedError,
    PieceworkError,
    StoppedError,
    StoreError,
    TimeoutExceededError,
    ValidationError,
    describe,
    place_of,
)
from piecework.run.failure import step_delay
from piecework.run.logger import RunLogger
from piecework.store.values import encode_mapping
from piecework.workflow.context import StateView, StepContext
from piecework.workflow.definition import Instruction, Pipeline, Stage, Step, pause
from piecework.workflow.pause import WaitFor
from piecework.workflow.state import snapshot
from piecework.workspace.inject import call_injected, is_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.clock import Clock
    from piecework.workflow.flight import Flight
    from piecework.workspace.workspace import Workspace


class Stages:
    """Runs single stages.

    Args:
        clock: For the waits between a step's attempts.
        payload_limit_bytes: The largest encoded patch.
    """

    def __init__(self, clock: Clock, payload_limit_bytes: int) -> None:
        self._clock = clock
        self._limit = payload_limit_bytes

    async def run_steps(self, flight: Flight, ws: Workspace, stage: Stage) -> list[tuple[str, dict[str, Any]]]:
        """All steps of a stage, concurrently, to their ends; any failure fails the stage and discards all patches."""
        try:
            async with _limited(stage.timeout_seconds) as limit:
                if len(stage.steps) == 1:
                    results = [await _caught(flight, self._run_step(flight, ws, stage, stage.steps[0]))]
                else:
                    runs = (_caught(flight, self._run_step(flight, ws, stage, step)) for step in stage.steps)
                    results = await asyncio.gather(*runs)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutExceededError(
                f"stage {stage.id!r} took longer than {stage.timeout_seconds:g} s{_advice(*stage.steps)}",
                stage=stage.id,
            ) from None
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise _stage_failure(stage, failures)
        return [(step.id, patch) for step, patch in zip(stage.steps, results, strict=True) if isinstance(patch, dict)]

    async def _run_step(self, flight: Flight, ws: Workspace, stage: Stage, step: Step) -> dict[str, Any]:
        path = f"{stage.id}/{step.id}"
        attempt = 1
        while True:
            began = self._clock.monotonic()
            try:
                patch = await self._attempt(flight, ws, stage, step, attempt)
            except Exception as error:
                if attempt > step.retries or isinstance(error, TimeoutExceededError | ValidationError):
                    flight.note("step:failed", path, attempt=attempt, error=describe(error))
                    raise
                delay = step_delay(attempt, random.random())  # noqa: S311 - spreads retries, keeps no secret
                flight.note("step:retry", path, attempt=attempt, error=describe(error), delay_seconds=round(delay, 3))
                await self._clock.sleep(delay)
                attempt += 1
            else:
                flight.note("step:completed", path, attempt=attempt, seconds=round(self._clock.monotonic() - began, 3))
                return patch

    async def _attempt(self, flight: Flight, ws: Workspace, stage: Stage, step: Step, attempt: int) -> dict[str, Any]:
        run = flight.run
        key = f"{run.run_id}/{flight.visit}/{stage.id}/{step.id}"
        logger = RunLogger(flight.book, f"{stage.id}/{step.id}", run_id=run.run_id, workflow_id=run.workflow_id)
        try:
            async with _limited(step.timeout_seconds) as limit, ws.fork(key=key, logger=logger) as fork:
                ctx = StepContext(
                    run_id=run.run_id,
                    workflow_id=run.workflow_id,
                    pipeline_id=run.pipeline_id,
                    stage_id=stage.id,
                    step_id=step.id,
                    attempt=attempt,
                    state=snapshot(flight.state),
                    event=copy_of(flight.event),
                    workspace=fork,
                    logger=logger,
                    idempotency_key=key,
                    _aborting=lambda: flight.abort_reason is not None,
                    _book=flight.book,
                )
                value = await call_injected(step.action, fork, (ctx,), {})
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutExceededError(
                f"step {stage.id}/{step.id} took longer than {step.timeout_seconds:g} s{_advice(step)}", step=step.id
            ) from None
        except SystemExit as error:
            raise ExecutionFailedError(
                f"step {stage.id}/{step.id} called sys.exit({error.code!r})", step=step.id
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled it but itself: handed on, the run would be given back and run again for ever.
            raise ExecutionFailedError(f"step {stage.id}/{step.id} raised CancelledError", step=step.id) from None
        return self.checked(value, f"what step {stage.id}/{step.id} returned")

    def checked(self, value: Any, what: str) -> dict[str, Any]:
        """A patch of the user's as it will be read back; nothing for None.

        Raises:
            ValidationError: It is not JSON, or a key begins with two underscores.
        """
        if value is None:
            return {}
        encoded = encode_mapping(in_json(value), what=what, limit_bytes=self._limit)
        patch: dict[str, Any] = msgspec.json.decode(encoded)
        for key in patch:
            if key.startswith("__"):
                raise ValidationError(f"{what} has the key {key!r}: names with two underscores are the runtime's own")
        return patch

    def route(self, flight: Flight, stage: Stage, state: dict[str, Any]) -> tuple[Instruction, WaitFor | None]:
        """What follows a stage, and what is waited for; router and wait function are the user's."""
        if stage.wait is None and isinstance(stage.router, Instruction):
            return stage.router, None
        if isinstance(stage.wait, WaitFor):
            return pause(), stage.wait
        view = StateView(snapshot(state), flight.run.run_id, flight.run.workflow_id, copy_of(flight.event))
        if stage.wait is not None:
            wait_for = _ask(stage, "wait function", stage.wait, view)
            if not isinstance(wait_for, WaitFor):
                raise ValidationError(
                    f"the wait function of stage {stage.id!r} has to answer a WaitFor, not {wait_for!r:.80}"
                )
            return pause(), wait_for
        assert callable(stage.router)
        instruction = _ask(stage, "router", stage.router, view)
        if not isinstance(instruction, Instruction):
            raise ValidationError(
                f"the router of stage {stage.id!r} has to answer advance, terminate, jump(…) or pause(…), "
                f"not {instruction!r:.80}"
            )
        return instruction, None


def target_of(pipeline: Pipeline, stage: Stage, instruction: Instruction) -> str | None:
    """The stage that an instruction leads to; None is the end."""
    if instruction.action == "terminate":
        return None
    if instruction.stage is not None:
        pipeline.position(instruction.stage)
        return instruction.stage
    following = pipeline.position(stage.id) + 1
    return pipeline.stages[following].id if following < len(pipeline.stages) else None


class _NoLimit:
    """Stands for `asyncio.timeout(None)`, which costs a step more than calling it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def expired(self) -> bool:
        """Never."""
        return False


_NO_LIMIT = _NoLimit()


def _limited(seconds: float | None) -> asyncio.Timeout | _NoLimit:
    return _NO_LIMIT if seconds is None else asyncio.timeout(seconds)


def _advice(*steps: Step) -> str:
    """What to say of a timeout that cannot stop what it is about."""
    hung = [step.id for step in steps if not is_async(step.action)]
    if not hung:
        return ""
    return (
        f". What is synchronous ({', '.join(hung)}) cannot be stopped and may go on in its thread; what it returns is "
        'lost: run it with isolation="process", which ends it with its timeout'
    )


def copy_of(event: Event) -> Event:
    """An event that user code may do with what it likes."""
    # Spelled out: `dataclasses.replace` looks at every field, and each step gets a copy.
    return Event(event.type, snapshot(event.payload), id=event.id, space=event.space, at=event.at, hops=event.hops)


async def _caught(flight: Flight, step: Any) -> dict[str, Any] | Exception:
    """A step's patch, or its failure as a value, so that its neighbours go on."""
    try:
        patch: dict[str, Any] = await step
    except asyncio.CancelledError:
        if flight.body is None or flight.body.cancelling():
            raise
        # It cancelled the task that it had for itself: handed on, its neighbours would run on with nobody waiting.
        return ExecutionFailedError("a step cancelled its own task", run_id=flight.run.run_id)
    except Exception as error:  # noqa: BLE001 - collected and raised together with those of its neighbours
        return error
    return patch


def _ask(stage: Stage, what: str, fn: Callable[[StateView], Any], view: StateView) -> Any:
    """Calls a function of the user's that decides how a run goes on."""
    try:
        return fn(view)
    except (Exception, SystemExit) as error:
        if isinstance(error, PieceworkError) and not isinstance(error, _OF_OTHERS):
            raise
        raise ExecutionFailedError(
            f"the {what} of stage {stage.id!r} raised {type(error).__name__}: "
            f"{describe(error)['message']}{place_of(error)}",
            stage=stage.id,
        ) from error


# Raised by a step these are about something else that it used, not about its own run: as they are, they would end the
# run as aborted, or have it done again as if the store had failed under it.
_OF_OTHERS = (AbortedError, ClosedError, CrashedError, StoppedError, StoreError)


def _stage_failure(stage: Stage, failures: list[Exception]) -> Exception:
    """One failure as it is where it says more than EXECUTION_FAILED, else all of them in a sentence."""
    first = failures[0]
    if len(failures) == 1 and isinstance(first, PieceworkError) and not isinstance(first, _OF_OTHERS):
        return first
    causes = ", ".join(f"{type(f).__name__}: {describe(f)['message']}{place_of(f)}" for f in failures)
    error = ExecutionFailedError(
        f"{len(failures)} step(s) failed in {stage.label}:{stage.id}: {causes}", stage=stage.id
    )
    error.__cause__ = first if len(failures) == 1 else ExceptionGroup("steps", failures)
    return error
