"""A job as an app declares it, and one attempt at it: a fresh workspace, the function, and what follows.

An attempt that raised is tried again as often as `retries` says; one that was cut off by a crash always is, so a job
may run more than once, with the same idempotency key. A timeout stops what is asynchronous for real. A synchronous
function cannot be stopped, so after its timeout it is not tried again beside itself.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from piecework.clock import check_duration
from piecework.errors import (
    CrashedError,
    ExecutionFailedError,
    PieceworkError,
    TimeoutExceededError,
    ValidationError,
    place_of,
)
from piecework.run.cron import Cron
from piecework.run.failure import job_delay
from piecework.run.outcome import Failed, RetryAfter, Skipped, Success
from piecework.run.schedule import Missed, Overlap
from piecework.services.arguments import Arguments
from piecework.services.job import Again, Done, GaveUp
from piecework.store.values import check_identifier, encode
from piecework.workspace.calls import open_workspace
from piecework.workspace.inject import call_injected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from piecework.services.job import Attempt, Verdict
    from piecework.workspace.context import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefinition:
    """A job as it was declared.

    Attributes:
        name: What it is asked for by.
        fn: Async or sync.
        arguments: What it takes.
        cron: When it is run by itself, or None.
        timeout_seconds: How long an attempt may take; None means without limit.
        retries: How many further attempts follow one that raises.
        missed: What becomes of times at which no node was there.
        overlap: What becomes of a time at which the run before has not ended.
        jitter: The largest delay of a scheduled run, as a part of what lies between its time and the next.
    """

    name: str
    fn: Callable[..., Any]
    arguments: Arguments = field(repr=False)
    cron: Cron | None = None
    timeout_seconds: float | None = None
    retries: int = 0
    missed: Missed = "once"
    overlap: Overlap = "skip"
    jitter: float = 0.0

    @property
    def is_async(self) -> bool:
        """Whether a timeout can stop it."""
        fn = self.fn
        return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - an object whose call is async


def define_job(
    name: str,
    fn: Callable[..., Any],
    *,
    schedule: str | Iterable[str] | None,
    tz: str | None,
    timeout_seconds: float | None,
    retries: int,
    missed: str,
    overlap: str,
    jitter: float,
) -> JobDefinition:
    """Checks a declaration; the arguments are those of `App.job`.

    Raises:
        ValidationError: Something of it is not acceptable.
    """
    what = f"job {name!r}"
    if timeout_seconds is not None:
        check_duration(f"{what}: timeout_seconds", timeout_seconds)
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValidationError(f"{what}: retries has to be a whole number from 0, not {retries!r}")
    for word, given, choices in (("missed", missed, get_args(Missed)), ("overlap", overlap, get_args(Overlap))):
        if given not in choices:
            raise ValidationError(f"{what}: {word} is one of {', '.join(choices)}, not {given!r}")
    if not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise ValidationError(f"{what}: jitter is a part from 0 to 1 of what lies between two times, not {jitter!r}")
    if tz is not None and schedule is None:
        raise ValidationError(f"{what}: tz={tz!r} says where a schedule's clock stands, and it has no schedule")
    return JobDefinition(
        name=check_identifier(name, "the name of a job"),
        fn=fn,
        arguments=Arguments(what, fn),
        cron=None if schedule is None else Cron(schedule, tz),
        timeout_seconds=timeout_seconds,
        retries=retries,
        missed=missed,  # type: ignore[arg-type]  # one of the choices
        overlap=overlap,  # type: ignore[arg-type]  # one of the choices
        jitter=jitter,
    )


class DeclaredJob:
    """Carries out attempts of one declared job.

    Args:
        definition: The job.
        host: Opens workspaces.
        crash_limit: How many attempts in a row may be cut off.
    """

    def __init__(self, definition: JobDefinition, host: Host, crash_limit: int) -> None:
        self._definition = definition
        self._host = host
        self._crash_limit = crash_limit

    async def __call__(self, attempt: Attempt) -> Verdict:
        """Calls the function once and decides what follows."""
        if attempt.cut_off >= self._crash_limit:
            return GaveUp(
                CrashedError(
                    f"job {self._definition.name!r} took its process down {attempt.cut_off} times in a row",
                    run_id=attempt.run_id,
                )
            )
        failures: int = attempt.state.get("failures", 0)
        try:
            return self._verdict(attempt, await self._work(attempt), failures)
        except _NotAgainError as error:
            return GaveUp(error.reason)
        except PieceworkError as error:
            return self._failed(error, failures)
        except Exception as error:  # noqa: BLE001 - becomes the run's own error
            text = f"{type(error).__name__}: {error}{place_of(error)}"
            return self._failed(ExecutionFailedError(text, type=_name_of(error)), failures)

    async def _work(self, attempt: Attempt) -> Any:
        job = self._definition
        task = asyncio.current_task()
        try:
            async with (
                asyncio.timeout(job.timeout_seconds) as limit,
                open_workspace(
                    self._host,
                    space=attempt.space,
                    params=attempt.args,
                    key=attempt.run_id,
                    run_id=attempt.run_id,
                    logger=attempt.logger,
                    overrides=attempt.overrides,
                ) as ws,
            ):
                try:
                    given = job.arguments.checked(attempt.args, ws.container.has)
                except ValidationError as error:  # queued by code that knew another form of it
                    raise _NotAgainError(error) from error
                ws.params.update(given)
                return await call_injected(job.fn, ws, (), given)
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._too_slow() from None
        except SystemExit as error:
            raise ExecutionFailedError(f"job {job.name!r} called sys.exit({error.code!r})") from None
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            # Nobody cancelled it but itself: handed on, the run would be given back and run again for ever.
            raise ExecutionFailedError(f"job {job.name!r} raised CancelledError") from None

    def _too_slow(self) -> Exception:
        job = self._definition
        text = f"job {job.name!r} took longer than {job.timeout_seconds:g} s"
        if job.is_async:
            return TimeoutExceededError(text, job=job.name)
        advice = "its synchronous function cannot be stopped and goes on: make it async, or call what is slow by "
        return _NotAgainError(
            TimeoutExceededError(f"{text}; {advice}ws.workspace(isolation='process').run(…)", job=job.name)
        )

    def _verdict(self, attempt: Attempt, returned: Any, failures: int) -> Verdict:
        match returned:
            case Success(data=data):
                return Done(self._kept(data), outcome=Success.name)
            case Skipped(reason=reason):
                return Done(outcome=Skipped.name, reason=reason)
            case RetryAfter(seconds=seconds):
                return Again(max(1.0, seconds), attempt.state)
            case Failed(permanent=True, error=text):
                return GaveUp(ExecutionFailedError(text))
            case Failed(error=text):
                return self._failed(ExecutionFailedError(text), failures)
            case _:
                return Done(self._kept(returned), outcome=Success.name)

    def _kept(self, value: Any) -> Any:
        try:
            encode(value, what=f"what job {self._definition.name!r} returned")
        except ValidationError as error:
            raise _NotAgainError(error) from error
        return value

    def _failed(self, error: PieceworkError, failures: int) -> Verdict:
        failures += 1
        if failures > self._definition.retries:
            return GaveUp(error)
        delay = job_delay(failures, random.random())  # noqa: S311 - spreads retries, keeps no secret
        return Again(delay, {"failures": failures}, error)


class _NotAgainError(Exception):
    """A failure that another attempt cannot mend."""

    def __init__(self, reason: PieceworkError) -> None:
        super().__init__(reason.message)
        self.reason = reason


def _name_of(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
