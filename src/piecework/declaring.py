"""What an app declares: services, pieces, workflows, commands and jobs, by decorators. Nothing is opened here."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from piecework.clock import check_duration
from piecework.container.registry import Recipe, Registry, Service
from piecework.container.scope import Scope, parse
from piecework.errors import DuplicateKeyError, InvalidStateError, ValidationError
from piecework.run.admission import check_mode
from piecework.run.failure import USUAL, FailurePolicy
from piecework.services.command import Commands
from piecework.services.declared_job import define_job
from piecework.services.job_handle import Job
from piecework.services.mailing import JOB as SEND_MAIL
from piecework.space.piece import PieceDefinition
from piecework.space.timing import check_timing
from piecework.store.values import check_identifier
from piecework.workflow.definition import Workflow
from piecework.workflow.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from piecework.run.admission import Mode
    from piecework.services.declared_job import JobDefinition
    from piecework.services.job_handle import DeclareJob, JobOptions

F = TypeVar("F", bound="Callable[..., Any]")


class Declarations:
    """Collects what an app consists of.

    Args:
        name: The app's.
        services: One instance of each per process.

    Raises:
        DuplicateKeyError: Two services have one id, or one is reserved.
    """

    def __init__(self, name: str, services: Iterable[Service]) -> None:
        self.name = name
        self._registry = Registry(service.recipe(Scope.APP) for service in services)
        self._definitions: dict[str, PieceDefinition] = {}
        self._workflows: list[tuple[Workflow, Mode | None, Hooks]] = []
        self._commands = Commands()
        self._jobs: dict[str, JobDefinition] = {}

    @property
    def services(self) -> list[Recipe]:
        """The services that are declared, by their names."""
        return sorted(self._registry, key=lambda recipe: recipe.name)

    @property
    def commands(self) -> Commands:
        """The commands that are declared."""
        return self._commands

    @property
    def _is_open(self) -> bool:
        raise NotImplementedError

    def service(
        self,
        *,
        scope: str,
        name: str | None = None,
        provides: type | None = None,
        client: bool = False,
        lazy: bool = True,
        timeout_seconds: float | None = None,
        retries: int = 0,
    ) -> Callable[[F], F]:
        """Declares a service; the function's name is its own unless another is given.

        Args:
            scope: app, workflow, run (one per root workspace) or transient.
            name: What it is asked for by.
            provides: Its type, where the function's annotation does not say.
            client: Recorded for clients.
            lazy: False, for scope app, builds it when the app opens, which fails when it does. One that is declared
                while the app is open is built at its first use all the same.
            timeout_seconds: How long one attempt to build it may take; None means without limit.
            retries: How many further attempts follow one that raises.

        Raises:
            DuplicateKeyError: The id is taken or reserved.
            ValidationError: There is no such scope, a number is out of range, or lazy=False is not possible in that
                scope.
        """
        lives = parse(scope)
        if not lazy and lives is not Scope.APP:
            raise ValidationError(
                f"a service of scope {scope!r} is built at its first use: leave lazy=False out, or give scope='app'"
            )

        def declare(factory: F) -> F:
            recipe = Recipe(
                name or factory.__name__,
                factory,
                lives,
                provides=provides,
                client=client,
                lazy=lazy,
                timeout_seconds=timeout_seconds,
                retries=retries,
            )
            self._registry.add(recipe)
            return factory

        return declare

    def piece(
        self,
        integration: str,
        *,
        every_seconds: float | None = None,
        schedule: str | Iterable[str] | None = None,
        tz: str | None = None,
        on: Iterable[str] = (),
        overlap: str | None = None,
        missed: str = "once",
        jitter: float | None = None,
        timeout_seconds: float = 600,
        accounting: str = "join",
        failure: FailurePolicy | None = None,
    ) -> Callable[[F], F]:
        """Declares how pieces of an integration are updated, in their space's own process.

        Args:
            integration: What pieces name.
            every_seconds: From the end of one update to the next; 60 without this, a schedule and events.
            schedule: Cron expressions: five fields, six with seconds first, or a name such as `@hourly`.
            tz: Where the schedule's clock stands, such as "Europe/Berlin"; UTC when omitted.
            on: Event types, or patterns such as `feed.*`, that make an update due: an event of a space its pieces', one
                without a space those of every space. With this alone nothing else does, and there is no first update.
            overlap: Of what is asked for while an update is under way: "skip" nothing, "queue" one more right after,
                "cancel" stops it and starts the next. "queue" when omitted with `on`, else "skip".
            missed: Of a schedule's times at which no node was there: "once" one update, "skip" none, "all" one each.
            jitter: By which part of what lies between two updates the next may be later, by chance; a tenth of an
                interval when omitted, nothing of a schedule.
            timeout_seconds: After that an update is stopped, for real.
            accounting: "join" awaits tasks that an update left behind, "strict" fails the update for them.
            failure: What follows failures: a `Backoff(…)`, as when omitted, or `ThreeStrikes()`.

        Raises:
            DuplicateKeyError: There is such an integration.
            ValidationError: Something of it is not acceptable, or failure is no policy.
        """
        if not isinstance(integration, str):
            raise ValidationError("@app.piece needs the integration's name: @app.piece('feed', every_seconds=60)")
        check_identifier(integration, "integration")
        timing = check_timing(
            f"piece {integration!r}",
            every_seconds=every_seconds,
            schedule=schedule,
            tz=tz,
            on=on,
            overlap=overlap,
            missed=missed,
            jitter=jitter,
        )
        check_duration(f"piece {integration!r}: timeout_seconds", timeout_seconds)
        if accounting not in {"join", "strict"}:
            raise ValidationError(f"piece {integration!r}: accounting is 'join' or 'strict', not {accounting!r}")
        policy = USUAL if failure is None else failure
        if not isinstance(policy, FailurePolicy):
            raise ValidationError(f"piece {integration!r}: failure is Backoff(…) or ThreeStrikes(), not {failure!r}")

        def declare(fn: F) -> F:
            _check_update(integration, fn)
            if integration in self._definitions:
                raise DuplicateKeyError(f"there is a piece {integration!r} already: name another", key=integration)
            self._definitions[integration] = PieceDefinition(
                integration=integration,
                fn=fn,
                timing=timing,
                timeout_seconds=timeout_seconds,
                accounting="strict" if accounting == "strict" else "join",
                failure=policy,
            )
            return fn

        return declare

    def workflow(
        self,
        workflow: Workflow,
        *,
        mode: Mode | None = None,
        on_prepare: Callable[..., Any] | None = None,
        on_complete: Callable[..., Any] | None = None,
        on_resume: Callable[..., Any] | None = None,
        on_cleanup: Callable[..., Any] | None = None,
        on_dispatch: Callable[..., Any] | None = None,
    ) -> Workflow:
        """Declares a workflow: registered when the app opens.

        Args:
            workflow: The definition.
            mode: How many runs may be live; Transient() when omitted.
            on_prepare: See `Runtime.register`, as for the other hooks.
            on_complete: Hears of the end of a run.
            on_resume: Sees a resumed run before it goes on.
            on_cleanup: Is called when a run has let go of everything.
            on_dispatch: Hears what became of events.

        Raises:
            DuplicateKeyError: A workflow of that id is declared.
            ValidationError: It is no workflow, or the mode or a hook is none.
            InvalidStateError: The app is open: use `app.runtime.register`.
        """
        if self._is_open:
            raise InvalidStateError(f"app {self.name!r} is open: await app.runtime.register({workflow.id!r}, …)")
        if not isinstance(workflow, Workflow):
            raise ValidationError(f"app.workflow needs a Workflow, not {workflow!r:.80}")
        check_mode(mode)
        hooks = Hooks(
            on_prepare=on_prepare,
            on_complete=on_complete,
            on_resume=on_resume,
            on_cleanup=on_cleanup,
            on_dispatch=on_dispatch,
        )
        if any(workflow.id == other.id for other, *_ in self._workflows):
            raise DuplicateKeyError(f"there is a workflow {workflow.id!r} already: name another", key=workflow.id)
        self._workflows.append((workflow, mode, hooks))
        return workflow

    def command(self, name: str) -> Callable[[F], F]:
        """Declares a command: `ws.run_command(name, …)`, `app.run_command(name, …)`, `piecework command NAME`.

        Its parameters are the function's, but for the workspace (`ws`) and those that services fill. Values are checked
        and converted by their annotations.

        Args:
            name: What it is called by.

        Raises:
            DuplicateKeyError: There is such a command.
            ValidationError: The name is not acceptable, or a parameter could not be given by name.
        """
        if not isinstance(name, str):
            raise ValidationError("@app.command needs the command's name: @app.command('generate-user-report')")

        def declare(fn: F) -> F:
            self._commands.add(name, fn)
            return fn

        return declare

    def job(
        self,
        name: str,
        *,
        schedule: str | Iterable[str] | None = None,
        tz: str | None = None,
        timeout_seconds: float | None = None,
        retries: int = 0,
        missed: str = "once",
        overlap: str = "skip",
        jitter: float = 0.0,
    ) -> DeclareJob:
        """Declares a job: a function that a node runs durably in a workspace of its own, when asked to or by the clock.

        What it returns is JSON values, or Success, Skipped, RetryAfter or Failed. It may run more than once: an attempt
        that a crash cut off is made again, with the same `ws.key`.

        Args:
            name: What it is asked for by.
            schedule: Cron expressions: five fields, six with seconds first, or a name such as `@hourly`.
            tz: Where the schedule's clock stands, such as "Europe/Berlin"; UTC when omitted.
            timeout_seconds: How long an attempt may take; then it is stopped and counts as failed.
            retries: How many further attempts follow one that failed, each after a longer wait.
            missed: Of times at which no node was there: "once" one run for all of them, "skip" none, "all" one each.
            overlap: Of a time at which the run before has not ended: "skip" none, "queue" when it has, "allow" beside.
            jitter: By which part of what lies between its time and the next a scheduled run may be later, by chance.

        Returns:
            What makes a Job of the function: `await job.enqueue(…)`, `await job.run(…)`, `job.options(…)`.

        Raises:
            DuplicateKeyError: There is such a job.
            InvalidStateError: The app is open.
            ValidationError: Something of it is not acceptable.
        """
        if not isinstance(name, str):
            raise ValidationError("@app.job needs the job's name: @app.job('deliver-notifications')")

        def declare(fn: Callable[..., Any]) -> Job[..., Any]:
            if self._is_open:
                raise InvalidStateError(f"app {self.name!r} is open: declare job {name!r} before")
            if name in self._jobs or name == SEND_MAIL:
                raise DuplicateKeyError(f"there is a job {name!r} already: name another", key=name)
            definition = self._jobs[name] = define_job(
                name,
                fn,
                schedule=schedule,
                tz=tz,
                timeout_seconds=timeout_seconds,
                retries=retries,
                missed=missed,
                overlap=overlap,
                jitter=jitter,
            )
            return Job(self, definition)

        return cast("DeclareJob", declare)  # what it says of types no plain function can

    async def queue_job(
        self, definition: JobDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], options: JobOptions
    ) -> str:
        """Makes a run of a job durable and answers its id."""
        raise NotImplementedError

    def refuse_running_here(self, name: str) -> None:
        """Refuses to wait for a job inside an open transaction of the current workspace."""
        raise NotImplementedError

    async def job_value(self, run_id: str) -> Any:
        """Waits for the end of a job's run and gives what it returned, or raises what it failed with."""
        raise NotImplementedError

    def _check_jobs(self) -> None:
        """Refuses scheduled jobs that nobody could give what they need.

        Raises:
            ValidationError: A parameter has no default and is no service.
        """
        for job in self._jobs.values():
            missing = job.arguments.required(self.has_service) if job.cron is not None else []
            if missing:
                raise ValidationError(
                    f"job {job.name!r} runs by a schedule, so nobody gives its {', '.join(missing)}: give a default",
                    job=job.name,
                )

    def has_service(self, key: str | type) -> bool:
        """Whether a service of that name or type is declared."""
        return self._registry.get(key) is not None


def _check_update(integration: str, fn: Any) -> None:
    try:
        inspect.signature(fn).bind(None)
    except TypeError:
        raise ValidationError(
            f"the update function of piece {integration!r} has to take one argument, the piece: async def update(piece)"
        ) from None
