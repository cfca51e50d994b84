"""What a workspace may hand down to one inside it: copies that nobody can change."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from piecework.errors import InvalidStateError, ValidationError

NAMES = ("space", "params", "user")


def check_inherit(inherit: Any) -> tuple[str, ...]:
    """Checks the names of what is inherited.

    Raises:
        ValidationError: One of them is none of space, params and user.
    """
    names = (inherit,) if isinstance(inherit, str) else tuple(inherit)
    for name in names:
        if name not in NAMES:
            raise ValidationError(
                f"inherit={inherit!r}: a workspace can inherit {', '.join(NAMES)}, and not {name!r}", name=name
            )
    return names


def frozen(value: Any) -> Any:
    """Copies plain data so that nobody can change the copy; it equals the original.

    Mappings, lists and sets are copied all the way down; dataclasses and structs are copied; anything else, which
    cannot be copied in general, is the object itself.
    """
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(item) for key, item in value.items()})
    if isinstance(value, list):
        return FrozenList([frozen(item) for item in value])
    if type(value) is tuple:
        return tuple(frozen(item) for item in value)
    if isinstance(value, set | frozenset):
        return frozenset(value)
    if isinstance(value, msgspec.Struct) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return copy.deepcopy(value)
    return value


def _refuse(self: Any, *_args: Any, **_kwargs: Any) -> NoReturn:
    kind = "dict" if isinstance(self, dict) else "list"
    raise InvalidStateError(f"what a workspace has inherited cannot be changed: copy it first, as {kind}(…) does")


class FrozenDict(dict[Any, Any]):
    """A mapping that cannot be changed."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}


class FrozenList(list[Any]):
    """A list that cannot be changed."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(value, memo) for value in self]
