"""Calling a factory and opening what it gives, whatever it is written as.

The error of whoever used a service is never thrown into what comes after `yield`: a service is shared, and how one
of its users ended is no business of its own.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from piecework.container.context import FactoryContext
from piecework.container.registry import Shape
from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from piecework.container.artifact import Build
    from piecework.container.parameters import Parameter
    from piecework.container.registry import Key, Recipe

_NOTHING: Final = object()


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


def open_now(build: Build, made: Any) -> tuple[bool, Any]:
    """Opens what a factory gave, as far as that goes without the event loop.

    Returns:
        True and the instance; or False and what `open_later` has to go on with.
    """
    shape = build.recipe.shape
    if shape in {Shape.GENERATOR, Shape.MANAGER} and inspect.isgenerator(made):
        return True, _open_generator(build, made)
    if shape is Shape.MANAGER and hasattr(made, "__enter__"):
        return True, _open_manager(build, made)
    return not (inspect.isawaitable(made) or _opens_later(shape, made)), made


async def open_later(build: Build, made: Any) -> Any:
    """Opens what needs the event loop: awaits it, enters it, or runs it to its `yield`."""
    if not _opens_later(build.recipe.shape, made):
        return await made
    if inspect.isasyncgen(made):
        return await _open_async_generator(build, made)
    return await _open_async_manager(build, made)


def _opens_later(shape: Shape, made: Any) -> bool:
    if shape is Shape.MANAGER and hasattr(made, "__aenter__"):
        return True
    return shape in {Shape.ASYNC_GENERATOR, Shape.MANAGER} and inspect.isasyncgen(made)


def _open_generator(build: Build, generator: Any) -> Any:
    instance = next(generator, _NOTHING)
    _check_yielded(build, instance)

    def close() -> None:
        if next(generator, _NOTHING) is not _NOTHING:
            generator.close()
            raise _second_yield(build)

    build.closers.callbacks.append(close)
    return instance


async def _open_async_generator(build: Build, generator: Any) -> Any:
    instance = await anext(generator, _NOTHING)
    _check_yielded(build, instance)

    async def close() -> None:
        if await anext(generator, _NOTHING) is not _NOTHING:
            await generator.aclose()
            raise _second_yield(build)

    build.closers.callbacks.append(close)
    return instance


def _open_manager(build: Build, manager: AbstractContextManager[Any]) -> Any:
    instance = manager.__enter__()
    build.closers.callbacks.append(lambda: _discard(manager.__exit__(None, None, None)))
    return instance


async def _open_async_manager(build: Build, manager: AbstractAsyncContextManager[Any]) -> Any:
    instance = await manager.__aenter__()
    build.closers.callbacks.append(lambda: manager.__aexit__(None, None, None))
    return instance


def _discard(_result: object) -> None:
    """Keeps what an `__exit__` returns from being taken for something to await."""


def _check_yielded(build: Build, instance: Any) -> None:
    if instance is _NOTHING:
        raise ValidationError(f"the factory of service {build.name!r} ended without a yield", name=build.name)


def _second_yield(build: Build) -> ValidationError:
    return ValidationError(
        f"the factory of service {build.name!r} yields a second time: only clean-up may follow", name=build.name
    )
