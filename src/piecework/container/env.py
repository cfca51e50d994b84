"""`__env__`: variables in layers, read only through `get`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from piecework.errors import InvalidStateError

if TYPE_CHECKING:
    from collections.abc import Mapping


class EnvService:
    """Reads variables: from the workflow's layer first, then from the app's.

    Args:
        layers: The nearest first. Each is copied; None stands for a layer that was not given. A key that maps to
            None counts as not set.
    """

    __slots__ = ("_layers",)
    _layers: tuple[dict[str, str | None], ...]

    def __init__(self, *layers: Mapping[str, str | None] | None) -> None:
        copies = tuple(dict(layer) for layer in layers if layer is not None)
        object.__setattr__(self, "_layers", copies)

    def get(self, key: str) -> str | None:
        """Reads one variable; None when no layer has it."""
        for layer in self._layers:
            value = layer.get(key)
            if value is not None:
                return value
        return None

    def __repr__(self) -> str:
        # Values may be secrets: they are in no log, no error and no dump.
        return f"<env of {len(self._layers)} layers, values not shown>"

    def __reduce__(self) -> NoReturn:
        raise InvalidStateError("the env service does not leave its process, since its values may be secrets")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"the env service has no {name!r}: read variables with env.get({name!r})")

    def __getitem__(self, key: str) -> NoReturn:
        raise TypeError(f"the env service is no mapping: read variables with env.get({key!r})")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise _read_only(name)

    def __setitem__(self, key: str, value: object) -> NoReturn:
        raise _read_only(key)

    def __delattr__(self, name: str) -> NoReturn:
        raise _read_only(name)

    def __delitem__(self, key: str) -> NoReturn:
        raise _read_only(key)


def _read_only(key: str) -> InvalidStateError:
    return InvalidStateError(
        f"the env service is read-only: set {key!r} in env= of the app or of the workflow", key=key
    )
