"""A registry that answers for another library's services too: their recipes are made when they are first asked for.

What that library does not know is asked again each time: it may be registered there later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING

from piecework.container.parameters import Unresolved
from piecework.container.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from piecework.container.registry import Key, Recipe


class ForeignRegistry(Registry, ABC):
    """Recipes of its own first, then one for each type that another library can give.

    A type is also found by its name, `Mailer`; by `shop.mail.Mailer` where that library has another `Mailer` too.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        super().__init__()
        # The same recipe each time: an instance belongs to its recipe.
        self._made: dict[type, Recipe] = {}

    def __bool__(self) -> bool:
        # Empty or not, it may know a service: who asks only registries that have something must ask this one.
        return True

    @abstractmethod
    def kinds(self) -> Iterable[type]:
        """The types that the library can give now."""

    @abstractmethod
    def knows(self, kind: type) -> bool:
        """Tells whether the library can give this type now."""

    @abstractmethod
    def recipe_for(self, kind: type, name: str) -> Recipe:
        """Makes the recipe that asks the library for a type, under the name that it is told by."""

    def get(self, key: Key) -> Recipe | None:
        """Finds a recipe by name or by type; None when neither we nor the library have one."""
        own = super().get(key)
        if own is not None:
            return own
        kind = self._kind(key)
        if kind is None:
            return None
        recipe = self._made.get(kind)
        if recipe is None:
            name = kind.__name__ if self._by_their_names().get(kind.__name__) is kind else _full_name(kind)
            recipe = self._made[kind] = self.recipe_for(kind, name)
        return recipe

    def names(self) -> set[str]:
        """The names of all that can be asked for, those of the library's types among them."""
        return super().names().union(self._by_their_names())

    def _kind(self, key: Key) -> type | None:
        if isinstance(key, str):
            return self._by_their_names().get(key)
        # Of a class that is imported for type checkers only, nothing but the name is known.
        if issubclass(key, Unresolved):
            return self._by_their_names().get(key.__name__)
        return key if self.knows(key) else None

    def _by_their_names(self) -> dict[str, type]:
        kinds = list(self.kinds())
        alike = Counter(kind.__name__ for kind in kinds)
        found: dict[str, list[type]] = {}
        for kind in kinds:
            name = kind.__name__ if alike[kind.__name__] == 1 else _full_name(kind)
            found.setdefault(name, []).append(kind)
        return {name: same[0] for name, same in found.items() if len(same) == 1}


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
