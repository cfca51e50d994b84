"""What was built in a container, what it was built from, and letting go of it in the right order.

An instance (`Made`) knows what it was made from. From that follows everything here: who goes stale with a service,
what has to be closed before it, and when an instance that was replaced may be closed (as soon as nothing alive was
made from it). Instances are completed after all they were made from, so the order of completion, backwards, is an
order in which everything may be closed.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from piecework.container import watching
from piecework.container.artifact import Artifact, Made
from piecework.container.building import obtain
from piecework.container.closing import IN_CLOSER, close_all, close_made, complain, of_instance, outlast
from piecework.container.eager import start
from piecework.container.scope import Scope
from piecework.errors import TimeoutExceededError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from piecework.container.artifact import Build
    from piecework.container.container import Container
    from piecework.container.registry import Recipe
    from piecework.container.state import State


MANY: Final = 256
"""With more services than this a container looks for what may be closed once a turn of the loop, not at each change."""


class Stack(dict[Made, None]):
    """Instances that have something to close, in the order of completion; complains when it is forgotten."""

    __slots__ = ("_title",)

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def __del__(self) -> None:
        names = [made.artifact.name for made in self if made.closers]
        if names:
            complain(self._title, names)


class Graph:
    """The services of one container, with their instances.

    Args:
        home: The container.

    Attributes:
        artifacts: By recipe; families apart.
        families: By recipe, then by what names each member; the least recently used first.
        stack: What has something to close.
        retired: Instances that were replaced, and something alive was made from them.
        builds: Under way.
        closing: Instances whose closers run now, each with who waits for their end.
        listeners: Who is told of events, by event.
        watchers: Who is told of a service's changes, by its name and what names it in its family.
        interrupted: What failed while builds that were cut off were cleaned up, for `close`.
        failed: Builds that nobody waited for and that failed, for `ready`.
    """

    __slots__ = (
        "__weakref__",
        "_followed",
        "_going",
        "_held",
        "_later",
        "_letting_go",
        "_sweeping",
        "artifacts",
        "builds",
        "closing",
        "failed",
        "families",
        "home",
        "interrupted",
        "listeners",
        "retired",
        "stack",
        "watchers",
    )

    def __init__(self, home: Container) -> None:
        self.home = home
        self.artifacts: dict[Recipe, Artifact] = {}
        self.families: dict[Recipe, dict[str, Artifact]] = {}
        self.stack = Stack(home.title)
        self.retired: dict[Made, None] = {}
        self.builds: set[Build] = set()
        self.closing: dict[Made, list[asyncio.Future[None]]] = {}
        self.listeners: dict[str, list[Callable[[Any], Any]]] = {}
        self.watchers: dict[tuple[str, str | None], list[Callable[[Any], Any]]] = {}
        self.failed: dict[Artifact, Exception] = {}
        self.interrupted: list[BaseException] = []
        self._followed: Callable[[], None] | None = None
        self._going: set[asyncio.Task[None]] = set()
        self._letting_go: set[asyncio.Task[None]] = set()
        self._sweeping = False
        self._held = 0
        self._later = False

    # -- what there is -------------------------------------------------------------------------------------------

    def artifact(self, recipe: Recipe, params: Any = None) -> Artifact:
        """The artifact of a service that lives here; made, and not built, where there was none."""
        if recipe.scope is Scope.TRANSIENT:
            return Artifact(recipe, self.home, params=params)
        if recipe.param_key is not None:
            return self.member(recipe, self.home.param_of(recipe, params), params)
        artifact = self.artifacts.get(recipe)
        if artifact is None:
            artifact = self.artifacts[recipe] = Artifact(recipe, self.home)
        if not artifact.fresh and recipe in self.home.instances:
            self.take_over_opened()  # it may have been made from that
            if not artifact.fresh:
                self._take_over(artifact)
        return artifact

    def __iter__(self) -> Iterator[Artifact]:
        yield from tuple(self.artifacts.values())
        for family in tuple(self.families.values()):
            yield from tuple(family.values())

    def promote(self) -> None:
        """Notes what was made the quick way, which leaves no record but the instance."""
        self.take_over_opened()
        for recipe in tuple(self.home.instances):
            self.artifact(recipe)
        for made in (*(a.made for a in self if a.made is not None), *self.stack, *(b.made for b in self.builds)):
            if not made.wired:
                made.wired = True
                made.uses += self._wired(made.artifact.recipe)

    def take_over_opened(self) -> None:
        """Notes what was opened the quick way, in its order."""
        opened, self.home.opened = self.home.opened, None
        for recipe, generator in opened or ():
            artifact = self.artifact(recipe)
            made = artifact.made
            if made is None:  # transient
                made = Made(artifact, None)
                made.wired = False
                made.complete(None)
            made.closers.append(generator)
            self.stack[made] = None
        if opened:
            opened.clear()

    def _take_over(self, artifact: Artifact) -> None:
        made = Made(artifact, None)
        made.uses = self._wired(artifact.recipe)
        made.complete(self.home.instances[artifact.recipe])
        artifact.made, artifact.fresh, artifact.error = made, True, None
        artifact.version += 1

    def _wired(self, recipe: Recipe) -> list[Made]:
        """What a service that was made the quick way was made from: what its parameters name."""
        uses: list[Made] = []
        for _, key in self.home.plans.wiring(recipe).needs:
            plan = self.home.plans.look(key)
            if plan is None:
                continue
            artifact = self.home.up(plan.up).graph.artifact(plan.recipe)
            if plan.recipe.scope is Scope.TRANSIENT:
                uses.append(Made(artifact, None))
                uses[-1].uses = self._wired(plan.recipe)
                continue
            made = artifact.made
            if made is not None:
                uses.append(made)
        return uses

    def member(self, recipe: Recipe, param: str, params: Any = None) -> Artifact:
        """The member of a family; now the most recently asked for."""
        family = self.families.setdefault(recipe, {})
        artifact = family.pop(param, None)
        if artifact is None:
            artifact = self._let_go_member(recipe, param) or Artifact(recipe, self.home, param, params)
        family[param] = artifact
        return artifact

    def _let_go_member(self, recipe: Recipe, param: str) -> Artifact | None:
        """Takes back an exclusive member that its family has let go and something was made from: there is only one."""
        for made in self.retired if recipe.exclusive else ():
            artifact = made.artifact
            if artifact.recipe is recipe and artifact.param == param and made.is_given and made.settled():
                del self.retired[made]
                return artifact
        return None

    def trim(self, recipe: Recipe) -> None:
        """Lets go of the members of a family that are too many, the least recently asked for first.

        Whoever asks calls this when he has been served: what is being made, or has not reached all who wait, stays,
        and does not count.
        """
        family = self.families.get(recipe, {})
        if len(family) > recipe.param_limit:
            there = [other for other in family.values() if not other.is_awaited]
            for idle in there[: max(0, len(there) - recipe.param_limit)]:
                del family[idle.param or ""]
                if idle.made is not None:
                    # It is not outdated: what is being made from it now need not be made anew.
                    self.retired[idle.made] = None
                    self.home.sweep()

    def served(self, artifact: Artifact) -> None:
        """Lets go of what nobody will ask for any more, when somebody was given a service or its build has ended."""
        if artifact.param is not None:
            self.trim(artifact.recipe)
        if artifact.gone and artifact.made is not None and not artifact.is_awaited:
            self._replace(artifact)

    def note(self) -> None:
        """Notes what was made the quick way here and below."""
        for _ in self._and_below():
            pass

    def _and_below(self, *, closing: bool = False) -> Iterator[Graph]:
        """The graphs of this container and of all live ones below it, with everything in them noted.

        Args:
            closing: Also those whose closers have not ended yet.
        """
        if not self.home.closed:
            self.promote()
        yield self
        for child in self.home.children(closing=closing):
            # An empty one may stand between this container and others that have something.
            if child.has_graph or (not child.closed and (child.instances or child.opened is not None or child.is_used)):
                yield from child.graph._and_below(closing=closing)  # noqa: SLF001 - another of its own kind

    def _alive(self, *, closing: bool = False) -> set[Made]:
        return {
            made
            for graph in self._and_below(closing=closing)
            for made in (*(a.made for a in graph if a.made is not None), *graph.stack, *graph.retired)
        }

    def _standing_on(self, origins: set[Made], *, closing: bool = False) -> list[Made]:
        """What is alive and was made from one of `origins`, at any remove; what was completed last comes first.

        Args:
            origins: Not among them.
            closing: Also in containers that are being closed.
        """
        return in_order(self._among(self._alive(closing=closing), origins))

    def _among(self, mades: Iterable[Made], origins: set[Made]) -> list[Made]:
        """Those of some instances that were made from one of `origins`, at any remove, and are not among these."""
        known: dict[Made, bool] = {}

        def stands(made: Made) -> bool:
            if made not in known:
                known[made] = False
                known[made] = any(used in origins or stands(used) for used in made.uses)
            return known[made]

        return [made for made in mades if made not in origins and stands(made)]

    # -- what happens --------------------------------------------------------------------------------------------

    def tell(self, event: str, artifact: Artifact | None, **fields: Any) -> None:
        """Tells those who listen to an event here."""
        listeners = self.listeners.get(event)
        if listeners:
            key, param = (None, None) if artifact is None else (artifact.recipe.name, artifact.param)
            watching.tell(listeners, watching.Event(event=event, key=key, param=param, **fields))

    def complete(self, artifact: Artifact, made: Made, instance: Any) -> None:
        """Puts a new instance in place of what was there."""
        if made.closers:
            self.take_over_opened()  # it may have been made from that
        made.complete(instance)
        before = artifact.made
        artifact.made, artifact.fresh, artifact.error = made, True, None
        artifact.version += 1
        self.failed.pop(artifact, None)
        if made.closers:
            self.stack[made] = None
        if made.is_transient:
            return
        if artifact.param is None and not artifact.gone:
            self.home.instances[artifact.recipe] = instance
        if made.readings and self._followed is None and self.home.state is not None:
            self._followed = _follow(self.home.state, self)
        if made.stream is not None:
            made.stream.begin()
        if before is not None:
            self.retired[before] = None

    def publish(self, made: Made, value: Any) -> None:
        """Puts the next value of a stream in place; what was made from the one before is stale."""
        artifact = made.artifact
        if artifact.made is not made:
            return
        made.instance = value
        artifact.version += 1
        if artifact.fresh and artifact.param is None and not artifact.gone:
            self.home.instances[artifact.recipe] = value
        for graph in self._and_below():
            for build in graph.builds:
                build.made.spoiled = build.made.spoiled or build.made.stands_on({made})
        self.home.observe()
        self.tell(watching.STREAM_EMIT, artifact, value=value, version=artifact.version)
        watching.tell_watchers(artifact, "stream")
        _rebuild_wanted(self._go_stale(_present(self._standing_on({made}))))

    def fail(self, made: Made, error: Exception) -> None:
        """Notes that the stream of an instance broke: the next who asks builds it anew."""
        artifact = made.artifact
        if artifact.made is not made:
            return
        artifact.error = error
        self.tell(watching.BUILD_ERROR, artifact, error=error)
        self.go_stale([artifact])
        watching.tell_watchers(artifact, "error", error)

    def look_at_state(self) -> None:
        """After a commit: who selected another value than there is now is stale, with all that was made from it."""
        state = self.home.state
        if state is None or self.home.closed:
            return
        changed = [
            artifact
            for artifact in self
            if artifact.fresh
            and artifact.made is not None
            and any(reading.changed(state.data) for reading in artifact.made.readings or ())
        ]
        # Somebody counts on them, and their rebuild after an earlier commit failed: this one may heal them.
        broken = [a for a in self if a.error is not None and a.build is None and a.wanted and a.reacts and not a.fresh]
        wanted = self.go_stale(changed)
        if wanted or broken:
            # When all that this commit makes stale is so, in other containers too: else it would be made of that.
            state.afterwards(lambda: _rebuild_wanted([*wanted, *broken]))

    def go_stale(self, artifacts: list[Artifact]) -> list[Artifact]:
        """Marks services as outdated, with all that was made from them; instances stay until they are replaced.

        Returns:
            Which were not so before; what was made from others comes after them.
        """
        mades = {artifact.made for artifact in artifacts if artifact.made is not None}
        return self._go_stale(_present([*self._standing_on(mades), *in_order(mades)])) if mades else []

    def _go_stale(self, affected: list[Artifact]) -> list[Artifact]:
        changed = [a for a in affected if a.fresh and a.recipe.scope is not Scope.TRANSIENT]
        for artifact in changed:
            _outdate(artifact)
        changed = [artifact for artifact in changed if _is_known(artifact)]
        for artifact in changed:
            artifact.home.graph.tell(watching.INVALIDATED, artifact, version=artifact.version)
            watching.tell_watchers(artifact, "invalidated")
        return changed[::-1]

    def rebuild(self, artifact: Artifact) -> None:
        """Builds a service anew without anybody waiting; a failure is told by a signal, and raised by `ready`."""
        self._start(self._rebuild(artifact), f"rebuild {artifact.name}", self._going)

    async def _rebuild(self, artifact: Artifact) -> None:
        try:
            if not artifact.fresh:
                await obtain(artifact)
        except Exception as error:  # noqa: BLE001 - told, and raised to whoever waits until all is ready
            if not artifact.gone:
                self.failed[artifact] = error
            signals.emit(signals.SERVICE_FAILED, level="warning", service=artifact.name, error=describe(error))
        finally:
            self.served(artifact)

    def wanted_with(self, artifacts: list[Artifact]) -> list[Artifact]:
        """What was made from some services, and is watched or not lazy; what it needs comes first."""
        mades = {artifact.made for artifact in artifacts if artifact.made is not None}
        standing = reversed(_present(self._standing_on(mades)))
        return [artifact for artifact in standing if artifact.wanted and _is_known(artifact)]

    # -- letting go ----------------------------------------------------------------------------------------------

    def drop(self, recipe: Recipe) -> None:
        """Lets go of all that a recipe has built which is gone; what was made from it is stale."""
        for artifact in self.members(recipe):
            self.go_stale([artifact])
            self._replace(artifact)
            artifact.gone = True  # what is being made of it is let go when it has reached all who wait
            self.failed.pop(artifact, None)
        self.artifacts.pop(recipe, None)
        self.families.pop(recipe, None)

    def _replace(self, artifact: Artifact) -> None:
        """Lets go of an instance as soon as nothing alive was made from it."""
        made = artifact.made
        _outdate(artifact)
        artifact.made = None
        if made is not None:
            self.retired[made] = None
            self.home.sweep()

    def sweep(self) -> None:
        """Closes the instances here that were replaced and that nothing alive was made from; see `Container.sweep`."""
        if not self.retired or self._held or self._later or self.home.closed:
            return
        loop = asyncio._get_running_loop()  # noqa: SLF001 - documented; the public one raises
        if loop is None:
            return
        if len(self.artifacts) > MANY:
            # To look through so many for each of them would take the square of their number.
            self._later = True
            loop.call_soon(self._sweep_soon)
        else:
            self._begin_sweep()

    def _sweep_soon(self) -> None:
        self._later = False
        self._begin_sweep()

    def _begin_sweep(self) -> None:
        if self.retired and not self._sweeping and not self.home.closed:
            self._sweeping = True
            self._start(self._sweep(), f"close what was replaced in {self.home.name}", self._letting_go)

    def hold(self) -> None:
        """Puts off looking for what may be closed, until `unhold`."""
        self._held += 1

    def unhold(self) -> None:
        """Looks for what may be closed, as often as it was put off."""
        self._held -= 1
        self.home.sweep()

    async def let_go_ended(self, artifact: Artifact) -> None:
        """Waits until what is let go here, and what there was of a service, is closed, whoever does so."""
        while tasks := self._letting_go - {asyncio.current_task()}:
            await asyncio.wait(tasks)
        while going := [made for made in self.closing if made.artifact.name == artifact.name]:
            await self._ended(going[0])

    def predecessors(self, artifact: Artifact) -> list[Artifact]:
        """What there is of a service: its instance, and one that its family has let go and something was made from."""
        let_go = [made.artifact for made in self.retired]
        same = [other for other in let_go if other.recipe is artifact.recipe and other.param == artifact.param]
        return [other for other in dict.fromkeys((*same, artifact)) if other.made is not None]

    @property
    def is_letting_go(self) -> bool:
        """Whether something is being closed."""
        return bool(self._letting_go or self.closing)

    async def _sweep(self) -> None:
        try:
            while mades := self._releasable():
                for made in mades:
                    await self._release(made)
        finally:
            self._sweeping = False

    def _releasable(self) -> list[Made]:
        """The replaced instances that nothing alive, and nothing that is being made, was made from; in their order."""
        if any(self.home.closing_unnoted()):
            return []  # nobody knows what that was made from; it looks here again when it is closed
        needed: set[Made] = set()
        going = [
            made
            for graph in self._and_below(closing=True)
            for made in (
                *(artifact.made for artifact in graph if artifact.made is not None),
                *(made for made in graph.stack if made not in self.retired),
                *(made for made in graph.retired if graph is not self),
                *graph.closing,
                *(build.made for build in graph.builds),
            )
        ]
        while going:
            for used in going.pop().uses:
                if used not in needed and not used.closed:
                    needed.add(used)
                    going.append(used)
        return in_order(made for made in self.retired if made not in needed)

    async def _release(self, made: Made) -> None:
        failures = await self.close_one(made)
        self.tell(watching.DISPOSED, made.artifact)
        self.told(failures, made.artifact.name)
        for parent in self.home.parents:
            parent.sweep()

    async def let_go(self, artifacts: list[Artifact], successor: Build | None = None) -> list[BaseException]:
        """Closes services at once, and all that was made from them before them; tells what failed.

        It goes on to its end however often the caller is cancelled.

        Args:
            artifacts: Which.
            successor: The build that wants this; what others are building of them now is discarded.
        """
        origins = {artifact.made for artifact in artifacts if artifact.made is not None}
        for build in self.builds:
            if build.artifact in artifacts and build is not successor:
                build.made.spoiled = True
        failures: list[BaseException] = []
        mades = in_order([*origins, *self._standing_on(origins, closing=True)])
        cancelled = await self._outlast(self._take_away(mades, origins, failures), "invalidate")
        if cancelled is not None:
            self.told(failures, "invalidate")
            raise cancelled
        return failures

    async def _take_away(self, mades: list[Made], origins: set[Made], failures: list[BaseException]) -> None:
        """Closes instances in their order; from the beginning on nobody is given one of them.

        Args:
            mades: Which.
            origins: What they were made from, if they are not these themselves.
            failures: Takes what failed.
        """
        gone = [made.artifact for made in mades if made.artifact.made is made and not made.is_transient]
        fresh = [artifact for artifact in gone if artifact.fresh and not artifact.home.closed and _is_known(artifact)]
        for artifact in gone:
            _outdate(artifact)
            artifact.made = None
        # Whoever waits there until all is closed waits for this.
        task, graphs = asyncio.current_task(), {made.artifact.home.graph for made in mades}
        assert task is not None
        for graph in graphs:
            graph._letting_go.add(task)  # noqa: SLF001 - another of its own kind
        try:
            # Cut off, because the loop ends, it waits for nobody; all the more it closes what it has taken.
            with suppress(asyncio.CancelledError):
                await self._users_ended(origins)
            for made in mades:
                failures += await made.artifact.home.graph.close_one(made)
        finally:
            for graph in graphs:
                graph._letting_go.discard(task)  # noqa: SLF001 - as above
        for artifact in fresh:
            artifact.home.graph.tell(watching.INVALIDATED, artifact, version=artifact.version)
            watching.tell_watchers(artifact, "invalidated")
        for home in {made.artifact.home for made in mades}:
            home.sweep()

    async def close_one(self, made: Made) -> list[BaseException]:
        """Closes an instance that lives here; what it was made from is used until that has ended."""
        self.retired.pop(made, None)
        self.stack.pop(made, None)
        if made in self.closing:
            if not IN_CLOSER.get():
                await self._ended(made)
            return []
        self.closing[made] = []
        try:
            return await close_made(made, self.home.close_timeout_seconds)
        finally:
            self._has_ended(made)

    def _has_ended(self, made: Made) -> None:
        """Tells who waits for it that an instance is closed."""
        for waiter in self.closing.pop(made):
            if not waiter.done():
                waiter.set_result(None)

    async def _ended(self, made: Made) -> None:
        """Waits until an instance is closed whose closers run now."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closing[made].append(waiter)
        await waiter

    async def _users_ended(self, origins: set[Made]) -> None:
        """Waits until nothing that was made from `origins`, or is one of them, is being closed by others."""
        while not IN_CLOSER.get():
            unnoted = [*self.home.closing_unnoted()]
            graphs = {made: graph for graph in self._and_below(closing=True) for made in graph.closing}
            going = [made for made in graphs if made in origins] or self._among(graphs, origins)
            if unnoted:
                await asyncio.wait(unnoted)
            elif going:
                await graphs[going[0]]._ended(going[0])  # noqa: SLF001 - another of its own kind
            else:
                return

    def told(self, failures: list[BaseException], name: str) -> None:
        """Tells by a signal what failed while closing, where nobody is left to raise it to."""
        if failures:
            errors = [describe(failure) for failure in failures]
            signals.emit(signals.CLOSE_FAILED, level="error", service=name, errors=errors)

    async def _outlast(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.CancelledError | None:
        task = self._start(coroutine, f"{name} in {self.home.name}", self._letting_go)
        return None if task is None else await outlast(task)

    async def quiet(self) -> None:
        """Waits until what is rebuilt and closed by itself has ended."""
        while True:
            if self._later:
                self._sweep_soon()
            tasks = {*self._going, *self._letting_go} - {asyncio.current_task()}
            if not tasks:
                return
            await asyncio.wait(tasks)

    def _start(
        self, coroutine: Coroutine[Any, Any, None], name: str, kept: set[asyncio.Task[None]]
    ) -> asyncio.Task[None] | None:
        task = start(coroutine, name=name, context=contextvars.copy_context())
        if task is not None:
            kept.add(task)
            task.add_done_callback(kept.discard)
        return task

    @property
    def at_rest(self) -> bool:
        """Whether closing has nothing to do here that takes time, and nobody listens."""
        under_way = self.builds or self._going or self._letting_go or self.closing
        return not (self.stack or self.home.opened or under_way or self.listeners)

    def unhook(self) -> None:
        """Lets go of what is outside: the state, and what was replaced up there and still used here."""
        if self._followed is not None:
            self._followed()
            self._followed = None

    async def close(self) -> list[BaseException]:
        """Ends what is under way and closes everything, the last completed first; tells what failed."""
        failures = await self._end_builds() if self.builds or self._going else []
        while (tasks := self._letting_go - {asyncio.current_task()}) and not IN_CLOSER.get():
            await asyncio.wait(tasks)
        failures += await self._close_below()
        told = [artifact for artifact in self if artifact.made is not None] if self.listeners else []
        failures += await close_all(self._closers(), self.home.close_timeout_seconds)
        failures += self.interrupted
        for made in in_order(artifact.made for artifact in told if artifact.made is not None):
            self.tell(watching.DISPOSED, made.artifact)
        self.tell(watching.CONTAINER_DISPOSE, None)
        return failures

    def _closers(self) -> Iterator[tuple[str, Any]]:
        while self.stack:
            made, _ = self.stack.popitem()
            self.closing[made] = []
            yield from of_instance(made)
            self._has_ended(made)

    async def _close_below(self) -> list[BaseException]:
        """Closes what was made, in containers below, from what will be closed here."""
        failures: list[BaseException] = []
        if self.closing or self.home.is_used:
            mades = {artifact.made for artifact in self if artifact.made is not None}
            origins = {*mades, *self.stack, *self.retired, *self.closing}
            standing = self._standing_on(origins, closing=True)
            await self._take_away([made for made in standing if made.artifact.home is not self.home], origins, failures)
        return failures

    async def _end_builds(self) -> list[BaseException]:
        limit_seconds = self.home.close_timeout_seconds
        names = {build.task: build.name for build in self.builds if build.task is not None}
        tasks = {*names, *self._going} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        stuck: set[asyncio.Task[None]] = set()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=limit_seconds)
        return [
            TimeoutExceededError(
                f"the factory of service {names[task]!r} went on for {limit_seconds:g} s after it had been cancelled: "
                "let it pass CancelledError on",
                name=names[task],
            )
            for task in stuck
            if task in names
        ]

    def clear(self) -> None:
        """Forgets everything, after it was closed."""
        # What knows each other in a circle would wait for the garbage collector.
        for artifact in self:
            if artifact.made is not None:
                artifact.made.uses = []
                artifact.made = None
        self.failed.clear()
        self.artifacts.clear()
        self.families.clear()
        self.retired.clear()

    # -- to look at ----------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, dict[str, Any]]:
        """Tells each service, what it was made from and what was made from it, as JSON values."""
        self.promote()
        alive = {
            artifact.made: artifact for graph in self._and_below() for artifact in graph if artifact.made is not None
        }
        told: dict[str, dict[str, Any]] = {}
        for artifact in self:
            made = artifact.made
            told[artifact.name] = {
                "scope": self.home.scope_name(artifact.recipe),
                "status": artifact.status,
                "version": artifact.version,
                "dependencies": [] if made is None else list(dict.fromkeys(used.artifact.name for used in made.uses)),
                "dependents": [other.name for user, other in alive.items() if made is not None and made in user.uses],
                "state_paths": _paths(made),
            }
        return told

    def members(self, recipe: Recipe) -> list[Artifact]:
        """All artifacts of a service here: one, or a family."""
        if recipe.param_key is not None:
            return list(self.families.get(recipe, {}).values())
        return [self.artifact(recipe)]


def _follow(state: State, graph: Graph) -> Callable[[], None]:
    """Has a graph look at each commit of a state, which does not keep the graph alive."""
    ended: list[Callable[[], None]] = []
    reference = weakref.ref(graph, lambda _: [end() for end in ended])

    def look() -> None:
        found = reference()
        if found is not None:
            found.look_at_state()

    ended.append(state.subscribe(look))
    return ended[0]


def in_order(mades: Iterable[Made]) -> list[Made]:
    """Orders instances: each before all that it was made from, else what was completed last comes first."""
    wanted = sorted(mades, key=lambda made: made.order)
    chosen, seen = set(wanted), set()
    found: list[Made] = []

    def visit(made: Made) -> None:
        if made not in seen:
            seen.add(made)
            for used in made.uses:
                visit(used)
            if made in chosen:
                found.append(made)

    for made in wanted:
        visit(made)
    return found[::-1]


def _present(mades: Iterable[Made]) -> list[Artifact]:
    """The services of which some instances are the newest; an older one that is kept for its users tells nothing."""
    return [made.artifact for made in mades if made.artifact.made is made]


def _is_known(artifact: Artifact) -> bool:
    """Whether it can be asked for: a member that its family has let go cannot, and is kept for its users only."""
    return artifact.made not in artifact.home.graph.retired


def _rebuild_wanted(artifacts: list[Artifact]) -> None:
    """Rebuilds what somebody counts on; what is replaced by it is looked through once, at the end."""
    wanted = [artifact for artifact in artifacts if artifact.wanted and not artifact.home.closed]
    graphs = {artifact.home.graph for artifact in wanted}
    for graph in graphs:
        graph.hold()
    try:
        for artifact in wanted:
            artifact.home.graph.rebuild(artifact)
    finally:
        for graph in graphs:
            graph.unhold()


def _outdate(artifact: Artifact) -> None:
    artifact.fresh = False
    artifact.home.observe()
    if artifact.param is None:
        artifact.home.instances.pop(artifact.recipe, None)


def _paths(made: Made | None) -> list[str]:
    readings = () if made is None else made.readings or ()
    return sorted({".".join(path) for reading in readings for path in reading.paths})
