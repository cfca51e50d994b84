"""The services of a svcs registry, inside a Piecework container.

Promises: what is registered with svcs, now or later, is found by its type; each is made once, however many ask at
the same time; all are closed by svcs, in svcs' order (the last begun first), when the parent is disposed. svcs logs
what fails in its own clean-ups (logger `svcs`) and raises none of it.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from piecework.bridges.foreign import ForeignRegistry
from piecework.container.container import Container
from piecework.container.registry import Recipe
from piecework.errors import MissingExtraError

try:
    import svcs
except ModuleNotFoundError as error:
    if error.name != "svcs":
        raise
    raise MissingExtraError.needs("the bridge to svcs", "svcs") from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from piecework.container.context import FactoryContext

_building: Final[ContextVar[tuple[SvcsServices, ...]]] = ContextVar("piecework_svcs_building", default=())


def svcs_parent(registry: svcs.Registry, *, name: str = "svcs", close_timeout_seconds: float = 10.0) -> Container:
    """Makes a container that answers for every type that is registered with svcs: `container.extend(parent)`.

    Its services live in one `svcs.Container`, made at the first use and closed when the parent is disposed: dispose
    it after the containers that look in it. `await parent.require(svcs.Container)` gives that container. The registry
    stays its owner's.

    Args:
        registry: Recipes of svcs; what is registered later is found too.
        name: What the container is called in errors.
        close_timeout_seconds: How long the clean-ups of svcs may take, all together.
    """
    return Container(name, registry=SvcsServices(registry), close_timeout_seconds=close_timeout_seconds)


class SvcsServices(ForeignRegistry):
    """The types of a svcs registry, each with a recipe that asks one `svcs.Container` for it.

    Args:
        registry: The svcs registry.
    """

    __slots__ = ("_registry", "_turn")

    def __init__(self, registry: svcs.Registry) -> None:
        super().__init__()
        self._registry = registry
        self._turn = asyncio.Lock()
        self.add(Recipe("svcs.Container", self._container, None, provides=svcs.Container))

    def kinds(self) -> Iterable[type]:
        """The types that are registered; what svcs knows by other type forms is not among them."""
        return [service.svc_type for service in self._registry if isinstance(service.svc_type, type)]

    def knows(self, kind: type) -> bool:
        """Tells whether a type is registered."""
        return kind in self._registry

    def recipe_for(self, kind: type, name: str) -> Recipe:
        """Makes the recipe that asks the `svcs.Container`; every svcs service is closed before that one is."""

        async def make(ctx: FactoryContext) -> Any:
            """Asks svcs for it."""
            return await self._get(await ctx.require(svcs.Container), kind)

        return Recipe(name, make, None, provides=kind)

    async def _container(self) -> AsyncIterator[svcs.Container]:
        async with svcs.Container(self._registry) as services:
            yield services

    async def _get(self, services: svcs.Container, kind: type) -> Any:
        # svcs lets two askers make one service twice, and its factories ask it for what they need: so one of them at
        # a time. A factory that asks Piecework in turn, by whatever way, must not wait for itself.
        before = _building.get()
        if self in before:
            return await services.aget(kind)
        async with self._turn:
            token = _building.set((*before, self))
            try:
                return await services.aget(kind)
            finally:
                _building.reset(token)
