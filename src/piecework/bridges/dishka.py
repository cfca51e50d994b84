"""What a dishka container gives, inside a Piecework container.

Promises: every type that the dishka container can give is found; the dishka container stays its owner's, who opens
and closes it. Its scope is the one that counts: of an APP container a service lives as long as the application, of a
REQUEST container as long as that request. What dishka keeps is kept here too, until the parent is disposed; what
dishka makes anew each time (`cache=False`) is made anew here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.bridges.foreign import ForeignRegistry
from piecework.container.container import Container
from piecework.container.registry import Recipe
from piecework.container.scope import Scope
from piecework.errors import MissingExtraError, ValidationError

try:
    import dishka
    from dishka.entities.component import DEFAULT_COMPONENT
    from dishka.entities.key import DependencyKey
except ModuleNotFoundError as error:
    if error.name != "dishka":
        raise
    raise MissingExtraError.needs("the bridge to dishka", "dishka") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dishka.dependency_source import Factory


def dishka_parent(
    container: dishka.AsyncContainer | dishka.Container, *, component: str = DEFAULT_COMPONENT, name: str = "dishka"
) -> Container:
    """Makes a container that answers for every type that dishka can give: `container.extend(parent)`.

    Dispose it, and the containers that look in it, before the dishka container is closed: dishka does not tell anyone
    that it was.

    Args:
        container: An open dishka container, asynchronous or not, of any scope. It is not closed here.
        component: The dishka component to ask; its default one when omitted.
        name: What the container is called in errors.

    Raises:
        ValidationError: `container` is none of dishka's.
    """
    if not isinstance(container, dishka.AsyncContainer | dishka.Container):
        raise ValidationError(
            f"dishka_parent needs a dishka container, as make_async_container() makes it, not {container!r:.80}"
        )
    return Container(name, registry=DishkaServices(container, component))


class DishkaServices(ForeignRegistry):
    """The types that a dishka container can give, each with a recipe that asks it.

    Args:
        container: The dishka container.
        component: The dishka component to ask.
    """

    __slots__ = ("_component", "_container")

    def __init__(self, container: dishka.AsyncContainer | dishka.Container, component: str) -> None:
        super().__init__()
        self._container = container
        self._component = component

    def kinds(self) -> Iterable[type]:
        """The types that the container or one that it was opened from provides."""
        keys = {key for level in self._levels() for key in level.registry.factories}
        return {
            key.type_hint
            for key in keys
            if key.component == self._component and key.depth == 0 and isinstance(key.type_hint, type)
        }

    def knows(self, kind: type) -> bool:
        """Tells whether the container can give a type; of a narrower scope it cannot."""
        return self._factory(kind) is not None

    def recipe_for(self, kind: type, name: str) -> Recipe:
        """Makes the recipe that asks the container: a transient one where dishka keeps no instance either."""
        factory = self._factory(kind)
        assert factory is not None, kind
        return Recipe(name, self._asks(kind), None if factory.cache else Scope.TRANSIENT, provides=kind)

    def _asks(self, kind: type) -> Callable[[], Any]:
        container, component = self._container, self._component
        if isinstance(container, dishka.Container):
            return lambda: container.get(kind, component)

        async def make() -> Any:
            """Asks dishka for it."""
            return await container.get(kind, component)

        return make

    def _factory(self, kind: type) -> Factory | None:
        key = DependencyKey(kind, self._component)
        return next((found for level in self._levels() if (found := level.registry.get_factory(key))), None)

    def _levels(self) -> Iterator[dishka.AsyncContainer | dishka.Container]:
        level: dishka.AsyncContainer | dishka.Container | None = self._container
        while level is not None:
            yield level
            level = level.parent_container
