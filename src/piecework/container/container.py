"""The container: one live scope (an app, a workflow, a run) and the services that live in it.

Recipes are found in the container's own registry first, then in its parents, in order. An instance lives in the
container of its recipe's scope on that way, and is closed with it. Opening one costs a few fields: a run that uses
no service pays for none, and only what needs waiting, closing, a state or an audience is kept a record of (`graph`).
"""

# ruff: noqa: SLF001 - a container reads the private parts of its parents: they are one chain

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from piecework.container import bundle as bundles
from piecework.container import state as states
from piecework.container import watching
from piecework.container.building import begin, needs_loop, obtain
from piecework.container.closing import Opened, close_all, note_failures, of_opened, outlast
from piecework.container.eager import start
from piecework.container.ends import outcome
from piecework.container.graph import Graph
from piecework.container.place import Place
from piecework.container.plan import MISSING, NotNowError, Plan, WaitsError
from piecework.container.quick import begin_quickly, open_quickly
from piecework.container.registry import Recipe
from piecework.container.scope import Scope, home, is_wider, refusal
from piecework.errors import (
    ClosedError,
    DisposedError,
    InvalidScopeError,
    NotFoundError,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from piecework.container.artifact import Made
    from piecework.container.registry import Key

T = TypeVar("T")
_NONE: Final[dict[Recipe, Any]] = {}
"""What a closed container holds."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of asking for a service.

    Attributes:
        ok: True when there is an instance.
        instance: The service, or None.
        error: Why its factory failed, or None.
        version: How often it has been built in its container.
    """

    ok: bool
    instance: Any = None
    error: Exception | None = None
    version: int = 0


class Container(Place):
    """Services by name and by type: built once, shared by concurrent askers, closed in reverse.

    Args:
        name: What it is, in errors.
        id: Which one it is, in errors.
        state: What factories select from; None where there is none.
        level: How long it lives: app, workflow or run. A fork is one of level transient: only what was made for it
            lives there.
        registry: Its own recipes; None until the first `register`.
        parents: Where it looks for what it does not know, in order.
        clock: What pauses between attempts are measured with; its first parent's when not given.
        close_timeout_seconds: How long one closer may take.
        run_id: The run it belongs to, or None.
    """

    State = states.State
    close_failures: tuple[BaseException, ...] = ()
    opened: Opened | None = None
    _closing: asyncio.Task[None] | None = None
    _restoring: bool = False
    _scopes: dict[str, Container] | None = None
    _overrides: tuple[tuple[str, Any], ...] = ()
    _scope_name: str | None = None

    # -- recipes -------------------------------------------------------------------------------------------------

    def register(
        self,
        key: Key,
        factory: Callable[..., Any],
        *,
        scope: str = "singleton",
        lazy: bool = True,
        timeout_seconds: float | None = None,
        retries: int = 0,
        param_key: Callable[[Any], str] | None = None,
        param_limit: int = 1000,
        serialize: Callable[[Any], Any] | None = None,
        deserialize: Callable[[Any], Any] | None = None,
        exclusive: bool = False,
        replace: bool = False,
    ) -> Callable[[], None]:
        """Adds a recipe of this container's own.

        Args:
            key: A name, or the type that the service has.
            factory: Takes nothing, one context, or services as parameters.
            scope: "singleton" keeps one instance in this container; "transient" makes one at each call.
            lazy: False builds it now, as far as nothing has to be awaited; `ready` waits for the rest.
            timeout_seconds: How long one attempt to build it may take, what it needs included; None means no limit.
            retries: How many further attempts follow one that raises, with pauses from 0.05 s that double to 2 s.
            param_key: Names an instance by the params that it is asked for with: one singleton for each name.
            param_limit: How many of these are kept; the least recently used is let go first.
            serialize: Turns an instance into what `export` keeps; without it the service is not exported.
            deserialize: Makes an instance of that again, for `from_`.
            exclusive: Closes an instance before its successor is made, for ports, locks and the like.
            replace: Take the place of an earlier recipe; what that one built is let go.

        Returns:
            A function that takes the recipe out again; what it built is let go as soon as nothing was made from it.

        Raises:
            DuplicateKeyError: The name is taken or reserved.
            ValidationError: An argument is not acceptable.
            ClosedError: The container is closed.
            Exception: Whatever a factory raised that was called at once; then nothing is registered.
        """
        self.check_open()
        if scope not in {"singleton", "transient"}:
            raise ValidationError(f"scope {scope!r} of {key!r}: choose 'singleton' or 'transient'", key=key)
        recipe = Recipe(
            key if isinstance(key, str) else f"{key.__module__}.{key.__qualname__}",
            factory,
            Scope.TRANSIENT if scope == "transient" else None,
            provides=None if isinstance(key, str) else key,
            lazy=lazy,
            timeout_seconds=timeout_seconds,
            retries=retries,
            param_key=param_key,
            param_limit=param_limit,
            serialize=serialize,
            deserialize=deserialize,
            exclusive=exclusive,
        )
        before = self.registry.get(recipe.name) if replace else None
        remove = self.registry.add(recipe, replace=replace)
        if self._graph is not None:
            self.graph.tell(watching.REGISTERED, self.graph.artifact(recipe) if param_key is None else None)
        if not lazy and not self._restoring:
            try:
                self._build_eagerly(recipe)
            except BaseException:
                remove()
                if before is not None:
                    self.registry.add(before)
                raise
        if before is not None:
            self._let_go_of(before)

        def unregister() -> None:
            remove()
            if not self._closed:
                self._let_go_of(recipe)

        return unregister

    def scope(self, name: str) -> Container:
        """A container below this one, for recipes of its own: nobody here or beside it knows them.

        It is closed with this one, and before what lives here, unless it was closed by itself.

        Args:
            name: The same name gives the same container, as long as that is open.
        """
        self.check_open()
        if self._scopes is None:
            self._scopes = {}
        found = self._scopes.get(name)
        if found is None or found.closed:
            found = self._scopes[name] = Container(
                f"{self.name}/{name}",
                state=self._state,
                level=self.level,
                parents=(self,),
                close_timeout_seconds=self.close_timeout_seconds,
                run_id=self.run_id,
            )
            found._scope_name = name
        return found

    def override(self, key: Key, value: Any) -> Callable[[], None]:
        """Lets `value` stand for a service, here and below, for all who ask from now on.

        What was made from the service before keeps it.

        Args:
            key: The service's name or type.
            value: What they get; it is not closed.

        Returns:
            A function that ends it.

        Raises:
            NotFoundError: There is no such service.
        """
        plan, _ = self._seek(key, None)
        recipe = Recipe(plan.recipe.name, lambda: value, None, provides=plan.recipe.product)
        remove = self.registry.shadow(recipe)
        self.instances[recipe] = value
        entry = (recipe.name, value)
        self._overrides = (*self._overrides, entry)

        def restore() -> None:
            remove()
            self.instances.pop(recipe, None)
            if self._graph is not None:
                self._graph.artifacts.pop(recipe, None)
            self._overrides = tuple(other for other in self._overrides if other is not entry)

        return restore

    @property
    def overridden(self) -> dict[str, Any] | None:
        """What stands for services here, by name, what is inherited from a run's container included; None: nothing."""
        above = self.parents[0].overridden if self.level is Scope.TRANSIENT and self.parents else None
        return {**(above or {}), **dict(self._overrides)} if self._overrides else above

    def has(self, key: Key) -> bool:
        """Tells whether there is a service of that name or type, here or in a parent."""
        return self._way_to(key) is not None

    # -- services ------------------------------------------------------------------------------------------------

    @overload
    async def require(self, key: type[T], params: Any = None) -> T: ...
    @overload
    async def require(self, key: str, params: Any = None) -> Any: ...
    async def require(self, key: Key, params: Any = None) -> Any:
        """Gives a service, and builds it first if need be; concurrent callers share one build.

        Args:
            key: Its name or its type.
            params: Which one of a family (see `param_key`).

        Raises:
            NotFoundError: Nobody registered it, or it lives shorter than this container; the message has near names.
            CycleError: Services need each other in a circle; the message draws it.
            TimeoutExceededError: Its build took longer than it may.
            UnstableError: What it reads went on changing while it was built.
            ClosedError: The container, or the one that the service lives in, is closed.
            Exception: Whatever its factory raised; the next call tries again.
        """
        plans = self._plans
        plan = None if plans is None else plans.get(key)
        if plan is not None and params is None:
            owner = self
            for index in plan.up:
                owner = owner.parents[index]
            instance = owner.instances.get(plan.recipe, MISSING)
            if instance is not MISSING:
                return instance
            if self.quick:
                if plan.make is not None:
                    try:
                        return plan.make(self)
                    except (NotNowError, WaitsError) as end:
                        return await self._go_on(key, end)
                if plan.bare:
                    instance = open_quickly(self, plan)
                    if instance is not MISSING:
                        return instance
                elif plan.call is not None:
                    build = begin_quickly(self, plan)
                    if build is not None and build.made.order:
                        return build.made.instance
                    if build is not None and build.error is not None:
                        raise build.error
        return (await self._made(key, None, params)).instance

    async def resolve(self, key: Key, params: Any = None) -> Resolution:
        """Gives a service as a `Resolution`, whose `error` tells why its factory failed.

        Raises:
            NotFoundError: Nobody registered it.
            ClosedError: The container, or the one that the service lives in, is closed.
        """
        return await self.resolve_for(key, None, params)

    def peek(self, key: Key, params: Any = None) -> Any:
        """Gives a service that is built already, without ever building; else None."""
        plan = self._way_to(key)
        if plan is None:
            return None
        owner = self.up(plan.up)
        if plan.recipe in owner.instances:
            return owner.instances[plan.recipe]
        if owner._graph is None:
            return None
        if plan.recipe.param_key is not None:
            artifact = owner.graph.families.get(plan.recipe, {}).get(owner.param_of(plan.recipe, params))
        else:
            artifact = owner.graph.artifacts.get(plan.recipe)
        return None if artifact is None or artifact.made is None else artifact.made.instance

    @overload
    def require_now(self, key: type[T]) -> T: ...
    @overload
    def require_now(self, key: str) -> Any: ...
    def require_now(self, key: Key) -> Any:
        """Gives a service without awaiting: one that is built, or whose factory and all it needs are synchronous.

        In a thread other than the event loop's any service can be had: the loop builds it, and the thread waits.

        Raises:
            InvalidStateError: It has to be awaited; the message says how.
            NotFoundError: Nobody registered it; the message has the nearest names.
        """
        plan, owner = self._seek(key, None)
        if plan.recipe in owner.instances:
            return owner.instances[plan.recipe]
        loop = self.loop
        if loop is not None and asyncio._get_running_loop() is None and loop.is_running():
            # Everything is built in one thread: two that ask at once share one build there.
            return asyncio.run_coroutine_threadsafe(self.require(key), loop).result()
        return self.at_once(key, None, in_loop=False)

    async def invalidate(self, key: Key, params: Any = None, *, rebuild: bool = False) -> None:
        """Closes a service at once, and before it all that was made from it; whoever asks next has it built anew.

        Args:
            key: Its name or its type.
            params: Which one of a family; all of them when omitted.
            rebuild: Build it anew before this returns, and of what was made from it whatever is watched or not lazy.

        Raises:
            NotFoundError: Nobody registered it.
            ExceptionGroup: What failed while closing, after everything was closed.
            Exception: Whatever its factory raised, with `rebuild`.
        """
        plan, owner = self._seek(key, None)
        owner.observe()
        found = owner.graph.members(plan.recipe)
        if params is not None:
            param = owner.param_of(plan.recipe, params)
            found = [artifact for artifact in found if artifact.param == param]
        wanted = owner.graph.wanted_with(found) if rebuild else []
        failures = await owner.graph.let_go(found)
        if rebuild:
            for artifact in (*found, *wanted):
                if not artifact.fresh:
                    await obtain(artifact)
                    artifact.home.graph.served(artifact)
        if failures:
            raise BaseExceptionGroup(f"{owner.name} invalidate {plan.recipe.name}", failures)

    def watch(self, key: Key, params: Any = None) -> watching.Watch:
        """Looks at a service without building it; with a subscriber it is rebuilt as soon as it goes stale.

        Raises:
            NotFoundError: Nobody registered it.
        """
        plan, owner = self._seek(key, None)
        param = None if plan.recipe.param_key is None else owner.param_of(plan.recipe, params)
        return watching.Watch(owner, (plan.recipe.name, param), params)

    def on(self, event: str, fn: Callable[[watching.Event], Any]) -> Callable[[], None]:
        """Has a plain function called whenever something happens here.

        Args:
            event: build:start, build:complete, build:error, artifact:invalidated, artifact:disposed,
                artifact:registered, stream:emit or container:dispose.
            fn: Gets an object with `event`, `key` and what belongs to the event.

        Returns:
            A function that ends it.

        Raises:
            ValidationError: There is no such event, or it is no plain function.
        """
        self.check_open()
        watching.check_event(event)
        watching.check_listener(fn, f"on({event!r})", event=event)
        self.observe()
        listeners = self.graph.listeners.setdefault(event, [])
        listeners.append(fn)

        def off() -> None:
            if fn in listeners:
                listeners.remove(fn)

        return off

    async def ready(self) -> None:
        """Builds the services of its own that were declared with `lazy=False`, and waits for rebuilds under way.

        Raises:
            InvalidScopeError: One of its own needs something that does not live as long.
            Exception: Whatever the first failing factory raised.
        """
        self.check_open()
        self.loop = asyncio.get_running_loop()
        for recipe in self.registry:
            if recipe.scope in {None, self.level}:
                self._check_needs(recipe)
        if self._graph is not None:
            await self._graph.quiet()
        for recipe in self.registry:
            if not recipe.lazy and recipe.scope in {None, self.level} and recipe.param_key is None:
                self._raise_failed(recipe)
                await self.require(recipe.name)
        if self._graph is not None:
            await self._graph.quiet()
            for artifact in tuple(self._graph.failed):
                raise self._graph.failed.pop(artifact)

    def export(self) -> dict[str, Any]:
        """What is built here and can be serialized, to make a container of by `from_`.

        Returns:
            `{"version": 1, "artifacts": [{"key": …, "value": …}, …]}`, members of families with "param"; sorted.
        """
        self.check_open()
        return bundles.export(self)

    @classmethod
    def from_(
        cls,
        state: states.State | None = None,
        bundle: Mapping[str, Any] | None = None,
        templates: Iterable[Mapping[str, Any]] = (),
    ) -> Container:
        """Makes a container with services that were exported.

        Args:
            state: What its factories select from.
            bundle: What `export` gave. What is in it counts as built: its factory is not called. What cannot be used
                is told by a warning, and built when it is asked for.
            templates: The arguments of `register`, a mapping for each service, in order.

        Raises:
            ValidationError: A template or the bundle is not well-formed.
        """
        container = cls(state=state)
        container._restoring = True
        for template in templates:
            bundles.register(container, template)
        if bundle is not None:
            bundles.restore(container, bundle)
        container._restoring = False
        for recipe in container.registry:
            if not recipe.lazy and container.peek(recipe.name) is None:
                container._build_eagerly(recipe)
        return container

    def debug_info(self) -> dict[str, dict[str, Any]]:
        """Tells of each service here its scope, status, version, and what it depends on, as JSON values."""
        told = {} if self._graph is None and not self.instances else self.graph.describe()
        for recipe in self._registry or ():
            if recipe.param_key is None and recipe.name not in told and self._lives_here(recipe):
                told[recipe.name] = {
                    "scope": self.scope_name(recipe),
                    "status": "disposed" if self._closed else "idle",
                    "version": 0,
                    "dependencies": [],
                    "dependents": [],
                    "state_paths": [],
                }
        return told

    # -- closing -------------------------------------------------------------------------------------------------

    async def dispose(self) -> None:
        """Closes all that lives here, the last built first; every closer runs, and none is cut short by a cancel.

        A second call, also a concurrent one, waits for the first to end and does nothing else.

        Raises:
            ExceptionGroup: What failed, after all closers ran; also for a single failure.
        """
        await self.finish(None)

    async def finish(self, error: BaseException | None) -> None:
        """Closes like `dispose`, after a body that ended with `error`.

        Args:
            error: It wins: what fails while closing is written onto it as notes. None raises that as a group.

        Raises:
            ExceptionGroup: What failed, when the body did not.
            asyncio.CancelledError: The caller was cancelled meanwhile; it wins over all, after the last closer.
        """
        if self._closed:
            await self._join()
            return
        if self._closed_at_once():
            return
        if self._graph is not None or self.opened is not None:
            if self.is_used:
                # While the way from below still leads here: what was made there of this goes first.
                self.graph.note()
            elif self._graph is not None or self.waited_for():
                self.graph.promote()
        self._closed = True
        self._plans = None
        self.instances = _NONE
        graph, cancelled = self._graph, None
        if graph is not None:
            graph.unhook()
        if graph is None or self._scopes or not graph.at_rest:
            self._closing = start(self._close(), name=f"close {self.name}")
        if self._closing is not None:
            cancelled = await outlast(self._closing)
        if graph is not None:
            self._graph = None
            graph.clear()
        self._leave()
        winner = cancelled or error
        if winner is not None:
            note_failures(winner, self.close_failures)
        if cancelled is not None:
            raise cancelled
        if self.close_failures and error is None:
            raise BaseExceptionGroup(f"{self.name} close", self.close_failures)

    async def __aenter__(self) -> Self:
        if self._closed:
            self.check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed or not self._closed_at_once():
            await self.finish(error)

    def _closed_at_once(self) -> bool:
        """Closes a container that has nothing to close."""
        if self._graph is not None or self.opened is not None or self._scopes is not None:
            return False
        self._closed = True
        self._plans = None
        self.instances = _NONE
        self._leave()
        return True

    async def _close(self) -> None:
        failures: list[BaseException] = []
        for scope in reversed([*(self._scopes or {}).values()]):
            try:
                await scope.dispose()
            except BaseExceptionGroup as group:
                failures += group.exceptions
        if self._graph is not None:
            failures += await self._graph.close()
        elif self.opened is not None:
            failures += await close_all(of_opened(self.opened), self.close_timeout_seconds)
        if failures:
            self.close_failures = tuple(failures)

    async def _join(self) -> None:
        # A closer that closes its own container would wait for itself.
        if self._closing is None or self._closing is asyncio.current_task():
            return
        cancelled = await outlast(self._closing)
        if cancelled is not None:
            raise cancelled

    # -- for those who build -------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """What was built here, with its history."""
        if self._graph is None:
            self._graph = Graph(self)
            if self.level is Scope.TRANSIENT:
                self._hook()
        return self._graph

    def closing_names(self) -> list[str]:
        """The services that have something to be closed, by name, in the order in which they will be."""
        if self._graph is not None:
            self._graph.promote()
            return [made.artifact.name for made in reversed(self._graph.stack)]
        return [recipe.name for recipe, _ in reversed(self.opened or ())]

    def keep(self, recipe: Recipe, generator: Any) -> None:
        """Keeps a generator that was opened the quick way, to be ended when the container is closed."""
        if self.opened is None:
            self.opened = Opened()
            self.opened.title = self.name
            if self.level is Scope.TRANSIENT:
                self._hook()
        self.opened.append((recipe, generator))

    def note(self) -> None:
        """Notes all that was made here and below the quick way, with what it was made from."""
        if self.instances or self.opened is not None or self._graph is not None or self._children:
            self.graph.note()

    def closing_unnoted(self) -> Iterator[asyncio.Task[None]]:
        """What closes containers below that keep no record of what they made."""
        for child in self.children(closing=True):
            unnoted = child.opened is not None and child._graph is None
            if unnoted and child._closing is not None and not child._closing.done():
                yield child._closing
            yield from child.closing_unnoted()

    @property
    def has_graph(self) -> bool:
        """Whether anything here has a history."""
        return self._graph is not None

    def param_of(self, recipe: Recipe, params: Any) -> str:
        """What names a member of a family.

        Raises:
            ValidationError: `param_key` gave no text.
        """
        assert recipe.param_key is not None
        param = recipe.param_key(params)
        if not isinstance(param, str):
            raise ValidationError(
                f"param_key of service {recipe.name!r} has to give a text, and gave {param!r:.80} for {params!r:.80}",
                name=recipe.name,
            )
        return param

    def takes_params(self, recipe: Recipe) -> bool:
        """Whether a service may be asked for with params; what stands for another one may, and ignores them."""
        if recipe.param_key is not None or recipe.scope is Scope.TRANSIENT:
            return True
        return any(name == recipe.name for name, _ in self._overrides)

    def scope_name(self, recipe: Recipe) -> str:
        """How long a service lives, as `debug_info` tells it."""
        return "singleton" if recipe.scope is None else str(recipe.scope)

    async def require_for(self, key: Key, asker: Made | None, params: Any = None) -> Any:
        """Does what `require` does, on behalf of the factory that asks."""
        return (await self._made(key, asker, params)).instance

    async def resolve_for(self, key: Key, asker: Made | None, params: Any = None) -> Resolution:
        """Does what `resolve` does, on behalf of the factory that asks."""
        self._seek(key, asker)
        try:
            made = await self._made(key, asker, params)
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller, who asked for it as a value
            return Resolution(ok=False, error=error)
        return Resolution(ok=True, instance=made.instance, version=made.artifact.version)

    def at_once(self, key: Key, asker: Made | None, *, in_loop: bool) -> Any:
        """Gives a service as far as that goes without waiting.

        Args:
            key: Its name or its type.
            asker: What is being made that needs it, or None.
            in_loop: True answers `MISSING` for what has to be awaited, and lets it begin; False refuses it.

        Raises:
            InvalidStateError: It has to be awaited, and must not.
        """
        plan, owner = self._seek(key, asker)
        recipe = plan.recipe
        if asker is None:
            if recipe in owner.instances:
                return owner.instances[recipe]
            if plan.make is not None and self.quick:
                try:
                    return plan.make(self)
                except NotNowError:
                    pass
                except WaitsError as waits:
                    self.plans.awaits(waits.recipe)
                    if asyncio.iscoroutine(waits.made):
                        waits.made.close()
                    raise needs_loop(waits.recipe.name) from None
        if recipe.scope is Scope.TRANSIENT and in_loop:
            return MISSING  # what it came to could not be kept until the rest is there
        artifact = owner.graph.artifact(recipe)
        made = artifact.made if artifact.fresh else None
        if made is None:
            if artifact.build is not None:
                if asker is not None and asker.build is not None:
                    artifact.build.refuse_circle(asker.build)
                if in_loop:
                    return MISSING
                raise needs_loop(artifact.name)
            if recipe.is_async and not in_loop:
                raise needs_loop(artifact.name)
            build = begin(artifact, asker, apart=is_wider(owner.level, self.level), in_loop=in_loop)
            if not build.ended:
                return MISSING
            made = outcome(build)
        if asker is not None:
            asker.uses.append(made)
        owner.graph.served(artifact)
        return made.instance

    async def _made(self, key: Key, asker: Made | None, params: Any) -> Made:
        plan, owner = self._seek(key, asker)
        if params is not None and not owner.takes_params(plan.recipe):
            raise ValidationError(
                f"service {plan.recipe.name!r} takes no params, and was asked for with {params!r:.80}: register it "
                "with param_key, or as transient",
                name=plan.recipe.name,
            )
        artifact = owner.graph.artifact(plan.recipe, params)
        made = artifact.made if artifact.fresh else None
        try:
            if made is None:
                made = await obtain(artifact, asker, apart=is_wider(owner.level, self.level))
            if asker is not None:
                asker.uses.append(made)
        finally:
            owner.graph.served(artifact)
        return made

    async def _go_on(self, key: Key, end: NotNowError | WaitsError) -> Any:
        """Goes on by the long way where the quick one ended."""
        if isinstance(end, WaitsError):
            self.plans.awaits(end.recipe)
            artifact = self.graph.artifact(end.recipe)
            await obtain(artifact, given=end.made)
            self.graph.served(artifact)
        return (await self._made(key, None, None)).instance

    def _seek(self, key: Key, asker: Made | None) -> tuple[Plan, Container]:
        """Finds the plan for a key and the container that its instance lives in; both have to be open."""
        self.check_open()
        plan = self.plans.look(key)
        if plan is None:
            raise self._unknown(key, asker)
        owner = self.up(plan.up)
        if owner is not self and owner.closed:
            raise DisposedError(
                f"service {plan.recipe.name!r} lived in {owner.title}, which is closed: open a new one",
                name=plan.recipe.name,
                id=owner.id,
            )
        return plan, owner

    def _way_to(self, key: Key) -> Plan | None:
        return None if self._closed else self.plans.look(key)

    def _unknown(self, key: Key, asker: Made | None) -> Exception:
        name = key if isinstance(key, str) else key.__qualname__
        chain = [] if asker is None or asker.build is None else asker.build.chain()
        found = self.plans.find(key)
        if found is not None:
            recipe = found[0]
            scope = Scope.RUN if recipe.scope in {None, Scope.TRANSIENT} else recipe.scope
            assert scope is not None
            text = refusal(recipe.name, scope, self.level, chain)
            if chain:
                return InvalidScopeError(text, name=recipe.name, path=[*chain, recipe.name])
            return NotFoundError(text, kind="service", name=recipe.name)
        hint = f"Needed by {' -> '.join([*chain, name])}" if chain else ""
        return NotFoundError.among("service", name, self.names(), hint=hint, path=[*chain, name])

    def _check_needs(self, recipe: Recipe) -> None:
        for _, key in self.plans.wiring(recipe).needs:
            found = None if self.plans.look(key) is not None else self.plans.find(key)
            if found is not None and found[0].scope is not None:
                raise InvalidScopeError(
                    refusal(found[0].name, found[0].scope, self.level, [recipe.name]),
                    name=found[0].name,
                    path=[recipe.name, found[0].name],
                )

    def _lives_here(self, recipe: Recipe) -> bool:
        return home(recipe.scope, [self.level], narrow=recipe.narrow) is not None

    def _build_eagerly(self, recipe: Recipe) -> None:
        if recipe.scope is Scope.TRANSIENT or recipe.param_key is not None:
            raise ValidationError(
                f"service {recipe.name!r} cannot be built before it is asked for: leave lazy=False to singletons "
                "without param_key",
                name=recipe.name,
            )
        if asyncio._get_running_loop() is None:  # documented; the public one raises
            return
        artifact = self.graph.artifact(recipe)
        self.graph.rebuild(artifact)
        error = self.graph.failed.pop(artifact, None)
        if error is not None:
            self.graph.artifacts.pop(recipe, None)
            raise error

    def _raise_failed(self, recipe: Recipe) -> None:
        artifact = None if self._graph is None else self._graph.artifacts.get(recipe)
        if artifact is not None and self._graph is not None and artifact in self._graph.failed:
            raise self._graph.failed.pop(artifact)

    def _let_go_of(self, recipe: Recipe) -> None:
        """Lets go of what a recipe that is gone has built, as soon as nothing was made from it."""
        if recipe not in self.instances and self._graph is None:
            return
        self.observe()
        self.graph.drop(recipe)

    def _leave(self) -> None:
        """Has those above forget it, and close what was replaced and nothing else was made from."""
        for parent in self.parents:
            children = parent._children
            if children is not None:
                children.pop(id(self), None)
            graph = parent._graph
            if parent.parents or (graph is not None and graph.retired):
                parent.sweep()
        if self._children is not None or self._scope_name is not None:
            for parent in self.parents:
                for child in self.children():
                    parent._adopt(child)
                if parent._scopes:
                    parent._scopes.pop(self._scope_name or "", None)
