"""Recipes: how each service is made and how long it lives. They live as long as the app; instances do not."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from piecework.clock import check_duration
from piecework.container.parameters import Parameter, parameters_of, produced_type, stands_for
from piecework.container.scope import Scope, is_wider, parse, refusal
from piecework.errors import DuplicateKeyError, InvalidScopeError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from piecework.container.plan import Plans

Key = str | type
"""A service is asked for by its name or by its type."""

RESERVED: Final = frozenset({"__env__", "__pause_service__"})
"""Ids of the services that every app has; nobody else may take them."""


class Shape(Enum):
    """What a factory gives when it is called."""

    PLAIN = auto()
    ASYNC = auto()
    GENERATOR = auto()
    ASYNC_GENERATOR = auto()
    MANAGER = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How one service is made.

    Attributes:
        name: What it is asked for by.
        factory: Takes nothing, one context, or services as parameters; plain, async, generator, async generator, or
            decorated with `contextmanager` or `asynccontextmanager`. What comes after `yield` is its clean-up.
        scope: How long an instance lives; None means as long as the container that has the recipe.
        provides: The type it is asked for by; None means what the factory says to return or to yield.
        lazy: False builds it when its container is made `ready`, not at the first use.
        timeout_seconds: How long one build may take, its dependencies included; None means without limit.
        client: True when clients may call it from outside.
        retries: How many further attempts follow one that raises.
        param_key: Names an instance by what it is asked for with: one singleton for each name. None: there is one.
        param_limit: How many of these are kept; the least recently used goes first.
        serialize: Turns an instance into what `export` keeps; None leaves it out.
        deserialize: Makes an instance of what `serialize` gave.
        exclusive: An instance is closed before its successor is made, as ports and locks need it.
        narrow: That a transient service is for runs: containers above do not know it.
        parameters: What the factory takes.
        shape: What the factory gives.
        is_async: Whether the factory needs the event loop to finish.
    """

    name: str
    factory: Callable[..., Any]
    scope: Scope | None
    provides: type | None = None
    lazy: bool = True
    timeout_seconds: float | None = None
    client: bool = False
    retries: int = 0
    param_key: Callable[[Any], str] | None = None
    param_limit: int = 1000
    serialize: Callable[[Any], Any] | None = None
    deserialize: Callable[[Any], Any] | None = None
    exclusive: bool = False
    narrow: bool = False
    parameters: tuple[Parameter, ...] = field(init=False, repr=False)
    shape: Shape = field(init=False, repr=False)
    is_async: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_numbers(self)
        if not callable(self.factory):
            raise ValidationError(
                f"the factory of service {self.name!r} is {self.factory!r}, which cannot be called: give a function",
                name=self.name,
            )
        object.__setattr__(self, "parameters", parameters_of(self.factory))
        shape = _shape(self.factory)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "is_async", shape in {Shape.ASYNC, Shape.ASYNC_GENERATOR})

    @property
    def product(self) -> type | None:
        """The type that it is asked for by, or None."""
        return produced_type(self.factory) if self.provides is None else self.provides


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValidationError(f"a service needs a name, a non-empty text, not {name!r}", name=name)


def _check_numbers(recipe: Recipe) -> None:
    name = recipe.name
    if recipe.timeout_seconds is not None:
        check_duration(f"timeout_seconds of service {name!r}", recipe.timeout_seconds, name=name)
    for what, number, least in (("retries", recipe.retries, 0), ("param_limit", recipe.param_limit, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValidationError(
                f"{what} of service {name!r} has to be a whole number from {least} on, not {number!r}", name=name
            )
    for what in ("param_key", "serialize", "deserialize"):
        given = getattr(recipe, what)
        if given is not None and not callable(given):
            raise ValidationError(f"{what} of service {name!r} has to be a function, not {given!r:.80}", name=name)
    if recipe.scope is Scope.TRANSIENT and recipe.serialize is not None:
        raise ValidationError(
            f"service {name!r} is transient, so there is no instance to serialize: leave serialize out", name=name
        )


def _shape(factory: Callable[..., Any]) -> Shape:
    if inspect.isasyncgenfunction(factory):
        return Shape.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(factory):
        return Shape.GENERATOR
    if inspect.iscoroutinefunction(factory):
        return Shape.ASYNC
    # Only what `contextmanager` made is entered: an object that merely happens to be a context manager (a lock, a
    # database connection) means something else by it.
    inner = inspect.unwrap(factory)
    if inner is not factory and (inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)):
        return Shape.MANAGER
    return Shape.PLAIN


@dataclass(frozen=True, slots=True)
class Service:
    """Declares a service in a list: of an app or a runtime (one per process), or of a workflow.

    Attributes:
        id: What it is asked for by.
        factory: As in `Recipe`.
        scope: "workflow" (when omitted), "run" or "transient" in a workflow's list; refused in the other lists.
        client: True when clients may call it from outside.
        lazy: False builds it before the first use.
        timeout_seconds: How long one attempt to build it may take; None means without limit.
        retries: How many further attempts follow one that raises.
    """

    id: str
    factory: Callable[..., Any]
    scope: str | None = field(default=None, kw_only=True)
    client: bool = field(default=False, kw_only=True)
    lazy: bool = field(default=True, kw_only=True)
    timeout_seconds: float | None = field(default=None, kw_only=True)
    retries: int = field(default=0, kw_only=True)

    def recipe(self, owner: Scope) -> Recipe:
        """Makes the recipe for the registry of an app or of a workflow.

        Args:
            owner: Whose list it is in: `Scope.APP` or `Scope.WORKFLOW`.

        Raises:
            ValidationError: A scope was given where there is none, or one that does not exist there.
        """
        if owner is Scope.APP and self.scope is not None:
            raise ValidationError(
                f"service {self.id!r} has scope {self.scope!r}, but the services of an app's or a runtime's list live "
                "as long as it does: leave the scope out, or declare it with @app.service",
                name=self.id,
            )
        scope = owner if self.scope is None else parse(self.scope)
        if owner is Scope.WORKFLOW and scope is Scope.APP:
            raise ValidationError(
                f"service {self.id!r} of a workflow cannot have scope 'app': declare it on the app", name=self.id
            )
        if not self.lazy and scope is not owner:
            raise ValidationError(
                f"service {self.id!r} has scope {str(scope)!r}, so there is nothing to build it for before it is asked "
                "for: leave lazy=False out",
                name=self.id,
            )
        return Recipe(
            self.id,
            self.factory,
            scope,
            lazy=self.lazy,
            timeout_seconds=self.timeout_seconds,
            client=self.client,
            retries=self.retries,
            narrow=owner is Scope.WORKFLOW,
        )


class Registry:
    """The recipes of one app, one workflow or one container, by name and by type."""

    __slots__ = ("_by_name", "_by_type", "_shadows", "plans")

    def __init__(self, recipes: Iterable[Recipe] = ()) -> None:
        self._by_name: dict[str, Recipe] = {}
        self._by_type: dict[type, list[Recipe]] | None = None
        self._shadows: dict[str, list[Recipe | None]] = {}
        self.plans: WeakSet[Plans] = WeakSet()
        for recipe in recipes:
            self.add(recipe)

    def __iter__(self) -> Iterator[Recipe]:
        return iter(tuple(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, recipe: Recipe, *, replace: bool = False, internal: bool = False) -> Callable[[], None]:
        """Takes a recipe in; containers that are open already find it from now on.

        Args:
            recipe: What to add.
            replace: Take the place of a recipe of the same name.
            internal: Allow a reserved name; for Piecework's own services.

        Returns:
            A function that takes it out again.

        Raises:
            DuplicateKeyError: The name is reserved, or taken and `replace` was not asked for.
            InvalidScopeError: It needs, by name, a service that does not live as long, or is needed by one that lives
                longer.
        """
        name = recipe.name
        if name in RESERVED and not internal:
            raise DuplicateKeyError(
                f"service {name!r} is built in and cannot be redefined: choose another id", key=name
            )
        if name in self._by_name and not replace:
            raise DuplicateKeyError(
                f"there is a service {name!r} already: choose another id, or say replace=True", key=name
            )
        for other in (*self._by_name.values(), recipe):
            _check_lives(recipe, other)
            _check_lives(other, recipe)
        self._set(name, recipe)

        def remove() -> None:
            stack = self._shadows.get(name)
            if stack is not None and recipe in stack:
                stack[stack.index(recipe)] = None  # what shadows it has nothing to give way to
            elif self._by_name.get(name) is recipe:
                self._set(name, None)

        return remove

    def shadow(self, recipe: Recipe) -> Callable[[], None]:
        """Lets a recipe stand in front of the one of its name, if there is one, until it is taken away.

        Returns:
            A function that takes it away; what it hid is back then.
        """
        name = recipe.name
        stack = self._shadows.setdefault(name, [self._by_name.get(name)])
        stack.append(recipe)
        self._set(name, recipe)

        def remove() -> None:
            if recipe in stack:
                stack.remove(recipe)
                if self._by_name.get(name) is recipe:
                    self._set(name, stack[-1])
                if len(stack) == 1:
                    self._shadows.pop(name, None)

        return remove

    def _set(self, name: str, recipe: Recipe | None) -> None:
        for plans in tuple(self.plans):
            plans.note()
        if recipe is None:
            del self._by_name[name]
        else:
            self._by_name[name] = recipe
        self._by_type = None
        for plans in tuple(self.plans):
            plans.forget()

    def get(self, key: Key) -> Recipe | None:
        """Finds a recipe by name or by type; None when there is none.

        Raises:
            ValidationError: Several services are of that type; the message names them.
        """
        if isinstance(key, str):
            return self._by_name.get(key)
        types = self._types()
        found = types.get(key) or [recipe for made in types if stands_for(made, key) for recipe in types[made]]
        if len(found) > 1:
            names = " and ".join(repr(recipe.name) for recipe in found)
            raise ValidationError(
                f"{len(found)} services are of type {key.__name__}: {names}. Ask for one of them by name", key=key
            )
        return found[0] if found else None

    def names(self) -> set[str]:
        """The names of all recipes."""
        return set(self._by_name)

    def _types(self) -> dict[type, list[Recipe]]:
        # Read late: an annotation may name a class that its module defines further down.
        if self._by_type is None:
            self._by_type = {}
            for recipe in self._by_name.values():
                if recipe.product is not None:
                    self._by_type.setdefault(recipe.product, []).append(recipe)
        return self._by_type


def _check_lives(recipe: Recipe, other: Recipe) -> None:
    """Refuses, as far as names tell, that a service needs one that does not live as long."""
    wide, narrow = recipe.scope, other.scope
    if wide is None or narrow is None or Scope.TRANSIENT in {wide, narrow}:
        return
    if is_wider(wide, narrow) and any(
        parameter.required and (parameter.use or parameter.name) == other.name for parameter in recipe.parameters
    ):
        raise InvalidScopeError(
            refusal(other.name, narrow, wide, [recipe.name]), name=other.name, path=[recipe.name, other.name]
        )
