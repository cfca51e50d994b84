"""What a function wants: its parameters, and which service fills the ones that nobody gave."""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import sys
import types
import typing
import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Use:
    """Names the service for a parameter: `mail: Annotated[SendMail, Use("send_mail")]`."""

    name: str


class Unresolved:
    """Stands for a name in an annotation that exists for type checkers only; it keeps the name."""

    def __class_getitem__(cls, _item: Any) -> type:
        return cls


def stands_for(one: type, other: type) -> bool:
    """Tells whether two classes are the same by name, where only the name of one of them is known."""
    return (issubclass(one, Unresolved) or issubclass(other, Unresolved)) and one.__name__ == other.__name__


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function.

    Attributes:
        name: As it is written.
        kind: One of `inspect.Parameter`'s kinds.
        required: True when it has no default.
        use: The service that `Use` names, or None.
        wanted: The class of its annotation, an `Unresolved` one where that cannot be known, or None.
        annotated: True when it has an annotation.
        annotation: That annotation, evaluated; None where it has none or it cannot be.
    """

    name: str
    kind: Any
    required: bool
    use: str | None
    wanted: type | None
    annotated: bool
    annotation: Any = None

    def is_a(self, cls: type) -> bool:
        """Tells whether the annotation is `cls`, also where that name is imported for type checkers only."""
        return self.wanted is not None and (self.wanted is cls or stands_for(self.wanted, cls))

    def key(self, has: Callable[[str | type], bool]) -> str | type:
        """Picks the service to fill it: the one that `Use` names, else by type, else by name.

        Args:
            has: Tells whether there is a service of that name or type.
        """
        if self.use is not None:
            return self.use
        return self.wanted if self.wanted is not None and has(self.wanted) else self.name


_cache: weakref.WeakKeyDictionary[types.FunctionType, tuple[Parameter, ...]] = weakref.WeakKeyDictionary()


def parameters_of(fn: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Reads the parameters of a callable; none where Python cannot tell them. Kept for each plain function."""
    if not isinstance(fn, types.FunctionType):
        return _read(fn)
    known = _cache.get(fn)
    if known is None:
        known = _cache[fn] = _read(fn)
    return known


def produced_type(factory: Callable[..., Any]) -> type | None:
    """Tells the type that a factory makes: itself if it is a class, else what it says to return or to yield."""
    if isinstance(factory, type):
        return factory
    function = _function(factory)
    made = _evaluate(function, getattr(function, "__annotations__", {}).get("return"))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        made = (typing.get_args(made) or (None if made in _ITERATORS else made,))[0]
    return made if isinstance(made, type) and made not in _SAYS_NOTHING else None


_SAYS_NOTHING = {types.NoneType, object, Any}
"""Annotations by which no service can be told from another; `Any` is a class since Python 3.11."""


_ITERATORS = {
    getattr(collections.abc, name)
    for name in ("Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator")
}
"""What a generator that does not say what it yields is annotated with."""


def _read(fn: Callable[..., Any]) -> tuple[Parameter, ...]:
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some built-in callables have none
        return ()
    function = _function(fn)
    return tuple(_parameter(function, spec) for spec in signature.parameters.values())


def _parameter(function: Callable[..., Any], spec: inspect.Parameter) -> Parameter:
    annotation = whole = None if spec.annotation is spec.empty else _evaluate(function, spec.annotation)
    use = None
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *extras = typing.get_args(annotation)
        use = next((extra.name for extra in extras if isinstance(extra, Use)), None)
    return Parameter(
        name=spec.name,
        kind=spec.kind,
        required=spec.default is spec.empty and spec.kind not in {spec.VAR_POSITIONAL, spec.VAR_KEYWORD},
        use=use,
        wanted=annotation if isinstance(annotation, type) and annotation not in _SAYS_NOTHING else None,
        annotated=spec.annotation is not spec.empty,
        annotation=whole,
    )


def _function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Digs out the function whose module and closure give the annotations their meaning."""
    while isinstance(fn, partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    if isinstance(fn, type):
        return typing.cast("Callable[..., Any]", fn.__init__)  # type: ignore[misc]  # only read, never called
    if not isinstance(fn, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return type(fn).__call__
    return fn


def _evaluate(function: Callable[..., Any], annotation: Any) -> Any:
    """Evaluates one annotation alone, so that one that cannot be does not take the others along."""
    if not isinstance(annotation, str):
        return annotation
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        hints = typing.get_type_hints(holder, {}, _Names(function), include_extras=True)
    except Exception:  # noqa: BLE001 - counts as no annotation: whoever then misses the service is told so
        return None
    return hints["it"]


class _Names(dict[str, Any]):
    """What a name in an annotation means where the function was written; `Unresolved` when that cannot be known."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(_closure(function))
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        self._scopes = (getattr(function, "__globals__", None) or vars(module or builtins), vars(builtins))

    def __missing__(self, name: str) -> Any:
        for scope in self._scopes:
            if name in scope:
                return scope[name]
        return type(name, (Unresolved,), {})


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return {}
    return {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True) if not _is_empty(cell)}


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - a variable that is assigned later has no contents yet
    except ValueError:
        return True
    return False
