"""Where a key leads from containers of one shape, found once; and the quick way to make what needs no waiting.

Thousands of runs look for the same services in the same chain of containers. `Plans` belongs to a shape of chain, not
to one run: which recipe answers, in which container its instance lives, what its factory is given. A service whose
factory is synchronous, takes no context and needs only such services is made by a few function calls (`Plan.make`);
everything else goes by `building`.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from piecework.container.context import FactoryContext
from piecework.container.factory import call, context_parameter, injected, unyielded
from piecework.container.registry import Shape
from piecework.container.scope import Scope, home
from piecework.errors import CycleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from piecework.container.artifact import Made
    from piecework.container.container import Container
    from piecework.container.parameters import Parameter
    from piecework.container.registry import Key, Recipe, Registry

    Make = Callable[[Container], Any]
    Call = Callable[[Container, Made], Any]

MISSING: Final = object()
_BY_PLACE: Final = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


class NotNowError(Exception):
    """The quick way ends here: something has to be built by the long way first."""


class WaitsError(Exception):
    """A synchronous factory gave something to await.

    Attributes:
        recipe: Whose factory.
        made: What it gave.
    """

    def __init__(self, recipe: Recipe, made: Any) -> None:
        super().__init__(recipe.name)
        self.recipe = recipe
        self.made = made


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a key leads.

    Attributes:
        recipe: The nearest one.
        up: Which parent to take, step by step, to the container that the instance lives in.
        make: The quick way to make it in this container; None when there is none.
        call: The quick way to call its factory, where that takes the context, or gives what has to be awaited; None
            when there is none.
        bare: That this is a coroutine or an async generator which takes no context.
    """

    recipe: Recipe
    up: tuple[int, ...]
    make: Make | None = None
    call: Call | None = None
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a factory is given.

    Attributes:
        context: The parameter that gets the context, or None.
        needs: The parameters that services fill, each with the key of its service.
    """

    context: str | None
    needs: tuple[tuple[Parameter, Key], ...]


class Plans(dict["Key", Plan]):
    """The plans of containers that have the same level, recipes and parents; empty where nothing was asked yet.

    Args:
        level: How long what such a container holds lives.
        registry: Its own recipes, or None.
        parents: The plans of its parents.
    """

    __slots__ = (
        "__weakref__",
        "_awaited",
        "_below",
        "_dependents",
        "_here",
        "_wirings",
        "level",
        "owner",
        "parents",
        "registry",
    )

    def __init__(self, level: Scope, registry: Registry | None, parents: tuple[Plans, ...]) -> None:
        super().__init__()
        self.level = level
        self.registry = registry
        self.parents = parents
        self.owner: weakref.ref[Any] | None = None
        self._below: dict[Scope, Plans] = {}
        self._dependents: WeakSet[Plans] = WeakSet()
        self._wirings: dict[Recipe, Wiring] = {}
        self._here: dict[Recipe, Plan] = {}
        self._awaited: set[Recipe] = set()
        for parent in parents:
            parent._dependents.add(self)  # noqa: SLF001 - another of its own kind
        if registry is not None:
            registry.plans.add(self)

    # A dict would compare its items; these are kept in sets, each for itself.
    def __hash__(self) -> int:  # type: ignore[override]  # as above
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def below(self, level: Scope) -> Plans:
        """The plans of all containers of a level that have this one as only parent and no recipes of their own."""
        found = self._below.get(level)
        if found is None:
            found = self._below[level] = Plans(level, None, (self,))
        return found

    def note(self) -> None:
        """Has everything noted that was made by what stands here, before that changes."""
        owner = None if self.owner is None else self.owner()
        if owner is not None and not owner.closed:
            owner.note()

    def hang_on(self, parent: Plans) -> None:
        """Looks in another parent too, after the ones there are."""
        self.parents = (*self.parents, parent)
        parent._dependents.add(self)
        self.forget()

    def forget(self) -> None:
        """Forgets what was found, here and below: a recipe came or went."""
        self.clear()
        self._wirings.clear()
        self._here.clear()
        for plans in tuple(self._dependents):
            plans.forget()

    def look(self, key: Key) -> Plan | None:
        """The plan for a key; None when there is no recipe, or what it makes does not live as long as who asks."""
        plan = self.get(key)
        if plan is None:
            found = self.find(key)
            index = None if found is None else self._home(*found)
            if found is None or index is None:
                return None
            recipe, way = found
            plan = self[key] = Plan(recipe, way[:index]) if index else self._plan(recipe)
        return plan

    def find(self, key: Key) -> tuple[Recipe, tuple[int, ...]] | None:
        """Finds the nearest recipe, and which parent to take at each step to the container that has it."""
        if self.registry is not None and (recipe := self.registry.get(key)) is not None:
            return recipe, ()
        for index, parent in enumerate(self.parents):
            found = parent.find(key)
            if found is not None:
                return found[0], (index, *found[1])
        return None

    def has(self, key: Key) -> bool:
        """Tells whether there is a service of that name or type for who asks here."""
        return key in self or self.look(key) is not None

    def names(self) -> set[str]:
        """The names of all services that can be asked for here."""
        own = self.registry.names() if self.registry is not None else set()
        return own.union(*(parent.names() for parent in self.parents))

    def wiring(self, recipe: Recipe) -> Wiring:
        """What the factory of a service that lives here is given."""
        wiring = self._wirings.get(recipe)
        if wiring is None:
            context = context_parameter(recipe, self.has)
            needs = tuple((parameter, parameter.key(self.has)) for parameter in injected(recipe, context))
            wiring = Wiring(context, needs)
            if all(self.has(key) for _, key in needs):  # what is missing may be found by its type later
                self._wirings[recipe] = wiring
        return wiring

    def awaits(self, recipe: Recipe) -> None:
        """Notes that a synchronous factory gives something to await: there is no quick way to it."""
        self._awaited.add(recipe)
        self.forget()

    def _home(self, recipe: Recipe, way: tuple[int, ...]) -> int | None:
        levels, plans = [self.level], self
        for index in way:
            plans = plans.parents[index]
            levels.append(plans.level)
        return home(recipe.scope, levels, narrow=recipe.narrow)

    def _plan(self, recipe: Recipe) -> Plan:
        """The plan of a service that lives here."""
        plan = self._here.get(recipe)
        if plan is None:
            self._here[recipe] = Plan(recipe, ())  # while it is being found: what needs itself has no quick way
            plan = self._here[recipe] = self._quick(recipe)
        return plan

    def _quick(self, recipe: Recipe) -> Plan:
        if recipe.retries or recipe.param_key or recipe.exclusive or recipe in self._awaited:
            return Plan(recipe, ())
        wiring = self.wiring(recipe)
        fetches = []
        for parameter, key in wiring.needs:
            plan = self.look(key)
            if plan is None or plan.recipe.param_key or (plan.recipe.scope is Scope.TRANSIENT and plan.make is None):
                return Plan(recipe, ())
            fetches.append((parameter, _fetch(plan)))
        if recipe.shape is Shape.PLAIN and wiring.context is None:
            return Plan(recipe, (), make=_made(recipe, fetches))
        if recipe.shape is Shape.GENERATOR and wiring.context is None:
            return Plan(recipe, (), make=_yielded(recipe, fetches))
        if recipe.timeout_seconds is not None or recipe.scope is Scope.TRANSIENT:
            return Plan(recipe, ())
        bare = recipe.is_async and wiring.context is None
        return Plan(recipe, (), call=_called(recipe, wiring.context, fetches), bare=bare)


def _fetch(plan: Plan) -> Make:
    """Gets what a factory needs: from where it lives, or the quick way."""
    recipe, make, up = plan.recipe, plan.make, plan.up
    if recipe.scope is Scope.TRANSIENT and make is not None:
        return make
    if make is not None:

        def fetch(container: Container) -> Any:
            found = container.instances.get(recipe, MISSING)
            return make(container) if found is MISSING else found

    elif len(up) == 1:
        (step,) = up

        def fetch(container: Container) -> Any:
            found = container.parents[step].instances.get(recipe, MISSING)
            if found is MISSING:
                raise NotNowError
            return found

    else:

        def fetch(container: Container) -> Any:
            for index in up:
                container = container.parents[index]
            found = container.instances.get(recipe, MISSING)
            if found is MISSING:
                raise NotNowError
            return found

    return fetch


def _made(recipe: Recipe, fetches: list[tuple[Parameter, Make]]) -> Make:
    """Calls the factory with what it needs and keeps what it makes."""
    factory, keep = recipe.factory, recipe.scope is not Scope.TRANSIENT
    run = _run(recipe, fetches)
    # What a class makes is known beforehand; a function may give anything.
    if keep and isinstance(factory, type) and not hasattr(factory, "__await__"):
        return _kept(recipe, [fetch for _, fetch in fetches], run)

    def make(container: Container) -> Any:
        made = run(container)
        if hasattr(made, "__await__") and inspect.isawaitable(made):
            raise WaitsError(recipe, made)
        if keep:
            if recipe in container.instances:
                raise asked_for_itself(recipe.name)
            container.instances[recipe] = made
        return made

    return make


def _kept(recipe: Recipe, fetches: list[Make], run: Make) -> Make:
    """Calls a class and keeps what it makes; by one call less for the usual numbers of parameters."""
    factory: Any = recipe.factory
    if len(fetches) == 1 and _in_order(recipe, 1):
        (one,) = fetches

        def make(container: Container) -> Any:
            return container.instances.setdefault(recipe, factory(one(container)))

    elif len(fetches) == 2 and _in_order(recipe, 2):
        one, other = fetches

        def make(container: Container) -> Any:
            return container.instances.setdefault(recipe, factory(one(container), other(container)))

    else:

        def make(container: Container) -> Any:
            return container.instances.setdefault(recipe, run(container))

    return make


def _yielded(recipe: Recipe, fetches: list[tuple[Parameter, Make]]) -> Make:
    """Calls a factory that is a generator, and keeps what it yields, and itself to be ended."""
    run, keep, name = _run(recipe, fetches), recipe.scope is not Scope.TRANSIENT, recipe.name

    def make(container: Container) -> Any:
        generator = run(container)
        for made in generator:
            if keep and recipe in container.instances:
                generator.close()
                raise asked_for_itself(name)
            container.keep(recipe, generator)
            if keep:
                container.instances[recipe] = made
            return made
        raise unyielded(name)

    return make


def _called(recipe: Recipe, context: str | None, fetches: list[tuple[Parameter, Make]]) -> Call:
    """Calls the factory with what it needs, the context among it."""
    if context is None:
        run = _run(recipe, fetches)
        return lambda container, _: run(container)
    factory = recipe.factory
    if not fetches and recipe.parameters[0].name == context and recipe.parameters[0].kind in _BY_PLACE:
        return lambda _, made: factory(FactoryContext(made))

    def run_with_context(container: Container, made: Made) -> Any:
        values = {parameter.name: fetch(container) for parameter, fetch in fetches}
        return call(recipe, {**values, context: FactoryContext(made)})

    return run_with_context


def asked_for_itself(name: str) -> CycleError:
    """The refusal of a service that was made while its own factory ran, which asked past its context."""
    return CycleError(
        f"services need each other in a circle: {name} -> … -> {name}: its factory asked for what needs it. Let one of "
        "them ask later, at its first use",
        path=[name, name],
        name=name,
    )


def _run(recipe: Recipe, fetches: list[tuple[Parameter, Make]]) -> Make:
    factory = recipe.factory
    in_order = _in_order(recipe, len(fetches))
    if not fetches:
        return _calling_with_nothing(factory)
    if in_order and len(fetches) == 1:
        return _calling_with_one(factory, fetches[0][1])
    if in_order and len(fetches) == 2:
        return _calling_with_two(factory, fetches[0][1], fetches[1][1])
    return _calling(recipe, fetches)


def _in_order(recipe: Recipe, number: int) -> bool:
    """Whether what services fill are the first parameters, all of them given by place."""
    first = recipe.parameters[:number]
    return all(parameter.required and parameter.kind in _BY_PLACE for parameter in first)


def _calling_with_nothing(factory: Callable[[], Any]) -> Make:
    return lambda _: factory()


def _calling_with_one(factory: Callable[[Any], Any], fetch: Make) -> Make:
    return lambda container: factory(fetch(container))


def _calling_with_two(factory: Callable[[Any, Any], Any], one: Make, other: Make) -> Make:
    return lambda container: factory(one(container), other(container))


def _calling(recipe: Recipe, fetches: list[tuple[Parameter, Make]]) -> Make:
    return lambda container: call(recipe, {parameter.name: fetch(container) for parameter, fetch in fetches})
