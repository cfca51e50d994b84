"""Calling a function of the user's: the workspace, what the caller gave, and services for the rest.

One rule for how it runs: a coroutine function runs on the event loop; anything else is called in a thread, and if
what it returns can be awaited, that is awaited on the loop. So `lambda send_mail: send_mail(...)` works, since
calling a service only makes the coroutine; and code that blocks never blocks the loop.
"""

from __future__ import annotations

import inspect
import types
import weakref
from typing import TYPE_CHECKING, Any

from piecework.container.parameters import Parameter, parameters_of
from piecework.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from piecework.workspace.threads import SyncThreads
    from piecework.workspace.workspace import Workspace

_BY_PLACE = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


async def call_injected(
    fn: Callable[..., Any],
    ws: Workspace,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    require: Callable[[str | type], Awaitable[Any]] | None = None,
) -> Any:
    """Calls a function inside a workspace and gives what it returns, awaited.

    The workspace fills the parameter named `ws` or annotated `Workspace`, if there is one. `args` fill the others in
    order, `kwargs` theirs. What is then left without a default is a service: the one that `Annotated[T, Use("name")]`
    names, else by type, else by name.

    Args:
        fn: Async or sync; a sync one runs in a thread.
        ws: The workspace.
        args: The function's own arguments, by place.
        kwargs: The function's own arguments, by name.
        require: Gives a service by name or type; None means the workspace's own.

    Raises:
        TypeError: `fn` cannot be called, or not with these arguments.
        NotFoundError: A parameter got no value and there is no such service.
        Exception: Whatever the function raised.
    """
    check_callable(fn)
    places: Sequence[Any] = args
    names: Mapping[str, Any] = {}
    if kwargs or _taken_by_place(fn) != len(args):
        places, names = await _bind(fn, ws, args, dict(kwargs or {}), require or ws.require)
    return await invoke(fn, places, names, ws.host.threads)


async def invoke(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], threads: SyncThreads) -> Any:
    """Calls a function with all its arguments: on the loop if it is async, else in a thread; awaits what it returns."""
    if is_async(fn):
        return await fn(*args, **kwargs)
    result = await threads.run(fn, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


_counts: weakref.WeakKeyDictionary[types.FunctionType, int] = weakref.WeakKeyDictionary()


def _taken_by_place(fn: Callable[..., Any]) -> int:
    """How many arguments a function takes where all go by place and none is the workspace's, as a step's; else -1."""
    if not isinstance(fn, types.FunctionType):
        return -1
    known = _counts.get(fn)
    if known is None:
        parameters = parameters_of(fn)
        plain = all(p.kind in _BY_PLACE for p in parameters) and _workspace_of(parameters) is None
        known = _counts[fn] = len(parameters) if plain else -1
    return known


def _workspace_of(parameters: Sequence[Parameter]) -> Parameter | None:
    """The parameter that the workspace fills by itself."""
    from piecework.workspace.workspace import Workspace as Wanted  # the two modules need each other

    return next((p for p in parameters if p.name == "ws" or p.is_a(Wanted)), None)


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether a function runs on the loop; any other runs in a thread."""
    if type(fn) is types.FunctionType and fn.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # as nearly always: `inspect` would first look for what may be wrapped around it
    if inspect.iscoroutinefunction(fn):
        return True
    return not isinstance(fn, type) and inspect.iscoroutinefunction(type(fn).__call__)


def check_callable(fn: Any) -> None:
    """Refuses what cannot be called, before anything is opened for it.

    Raises:
        TypeError: It says what was given.
    """
    if not callable(fn):
        hint = ": pass the function itself, not what calling it returns" if inspect.isawaitable(fn) else ""
        if inspect.iscoroutine(fn):
            fn.close()
        raise TypeError(f"a workspace runs a function, not {type(fn).__name__} {fn!r:.80}{hint}")


def name_of(fn: Any) -> str:
    """Names a callable for logs."""
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


async def _bind(
    fn: Callable[..., Any],
    ws: Workspace,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    require: Callable[[str | type], Awaitable[Any]],
) -> tuple[list[Any], dict[str, Any]]:
    parameters = parameters_of(fn)
    mine = _workspace_of(parameters)
    values: dict[str, Any] = {}
    if mine is not None and mine.name not in kwargs:
        values[mine.name] = ws
    places = [p for p in parameters if p.kind in _BY_PLACE]
    free = [p for p in places if p is not mine]
    values.update((p.name, value) for p, value in zip(free, args, strict=False))
    for parameter in parameters:
        if parameter.required and parameter.name not in values and parameter.name not in kwargs:
            values[parameter.name] = await _service(fn, parameter, ws, require)
    return _arrange(parameters, places, values, list(args[len(free) :]), kwargs)


async def _service(
    fn: Callable[..., Any], parameter: Parameter, ws: Workspace, require: Callable[[str | type], Awaitable[Any]]
) -> Any:
    key = parameter.key(ws.container.has)
    if not ws.container.has(key):
        raise NotFoundError.among(
            "service",
            str(key),
            ws.container.names(),
            hint=f"Parameter {parameter.name!r} of {name_of(fn)} was not given, so a service has to fill it; "
            "the workspace itself fills one named ws or annotated Workspace",
        )
    return await require(key)


def _arrange(
    parameters: Sequence[Parameter],
    places: Sequence[Parameter],
    values: dict[str, Any],
    extra: list[Any],
    kwargs: dict[str, Any],
) -> tuple[list[Any], dict[str, Any]]:
    """Lays the values out for the call: by place as far as there is no gap, else by name. Python refuses the rest."""
    by_place: list[Any] = []
    for parameter in places:
        if parameter.name not in values:
            break
        by_place.append(values.pop(parameter.name))
    by_name = {p.name: values[p.name] for p in parameters if p.name in values}
    return by_place + extra, {**by_name, **kwargs}
