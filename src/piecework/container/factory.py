"""Calling a factory and opening what it gives, whatever it is written as.

The error of whoever used a service is never thrown into what comes after `yield`: a service is shared, and how one
of its users ended is no business of its own.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from piecework.container.context import FactoryContext
from piecework.container.registry import Shape
from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from piecework.container.artifact import Made
    from piecework.container.parameters import Parameter
    from piecework.container.registry import Key, Recipe


def context_parameter(recipe: Recipe, has: Callable[[Key], bool]) -> str | None:
    """Names the parameter of a factory that gets the context; None when there is none.

    It is the one named `ctx` or annotated `FactoryContext`; else the only one of a function, when it has neither an
    annotation nor the name of a service.
    """
    for parameter in recipe.parameters:
        if parameter.name == "ctx" or parameter.is_a(FactoryContext):
            return parameter.name
    needed = [parameter for parameter in recipe.parameters if parameter.required]
    if len(needed) != 1 or needed[0].annotated or isinstance(recipe.factory, type) or has(needed[0].name):
        return None
    return needed[0].name


def injected(recipe: Recipe, context_name: str | None) -> list[Parameter]:
    """Lists the parameters that services fill."""
    return [parameter for parameter in recipe.parameters if parameter.required and parameter.name != context_name]


def call(recipe: Recipe, values: Mapping[str, Any]) -> Any:
    """Calls a factory with values by parameter name."""
    given = [parameter for parameter in recipe.parameters if parameter.name in values]
    by_place = [values[p.name] for p in given if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    by_name = {p.name: values[p.name] for p in given if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return recipe.factory(*by_place, **by_name)


def open_now(made: Made, given: Any) -> tuple[bool, Any]:
    """Opens what a factory gave, as far as that goes without the event loop.

    Returns:
        True and the instance; or False and what `open_later` has to go on with.
    """
    shape = made.artifact.recipe.shape
    if shape is Shape.PLAIN:
        return not (hasattr(given, "__await__") and inspect.isawaitable(given)), given
    if shape in {Shape.GENERATOR, Shape.MANAGER} and inspect.isgenerator(given):
        return True, _open_generator(made, given)
    if shape is Shape.MANAGER and hasattr(given, "__enter__"):
        return True, _open_manager(made, given)
    return not (inspect.isawaitable(given) or _opens_later(shape, given)), given


async def open_later(made: Made, given: Any) -> Any:
    """Opens what needs the event loop: awaits it, enters it, or runs it to its `yield`."""
    if not _opens_later(made.artifact.recipe.shape, given):
        return await given
    if inspect.isasyncgen(given):
        return await open_async_generator(made, given)
    return await _open_async_manager(made, given)


def _opens_later(shape: Shape, given: Any) -> bool:
    if shape is Shape.MANAGER and hasattr(given, "__aenter__"):
        return True
    return shape in {Shape.ASYNC_GENERATOR, Shape.MANAGER} and inspect.isasyncgen(given)


def _open_generator(made: Made, generator: Any) -> Any:
    for instance in generator:
        made.closers.append(generator)
        return instance
    raise unyielded(made.artifact.name)


async def open_async_generator(made: Made, generator: Any) -> Any:
    """Runs an async generator to its `yield`; what comes after is run when the instance is closed."""
    try:
        instance = await generator.__anext__()
    except StopAsyncIteration:
        raise unyielded(made.artifact.name) from None
    made.closers.append(generator)
    return instance


def _open_manager(made: Made, manager: AbstractContextManager[Any]) -> Any:
    instance = manager.__enter__()
    made.closers.append(lambda: _discard(manager.__exit__(None, None, None)))
    return instance


async def _open_async_manager(made: Made, manager: AbstractAsyncContextManager[Any]) -> Any:
    instance = await manager.__aenter__()
    made.closers.append(lambda: manager.__aexit__(None, None, None))
    return instance


def _discard(_result: object) -> None:
    """Keeps what an `__exit__` returns from being taken for something to await."""


def unyielded(name: str) -> ValidationError:
    """The refusal of a generator that gave nothing."""
    return ValidationError(f"the factory of service {name!r} ended without a yield", name=name)
