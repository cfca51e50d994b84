"""Errors as they cross between a node and who asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.errors import clean_text, describe
from piecework.process.protocol import revive

if TYPE_CHECKING:
    from piecework.errors import PieceworkError

_BOUND = 2**63
REFUSED = 0
"""The id of a reply that nobody asked for: why the connection is refused."""


def told_error(error: PieceworkError) -> dict[str, Any]:
    """An error of ours as it crosses: as `describe` tells it, with the values that it is about, as far as they can."""
    data = {name: value for name, value in error.data.items() if _is_plain(value)}
    return describe(error) | ({"data": data} if data else {})


def revived_error(told: dict[str, Any]) -> PieceworkError:
    """The error that `told_error` told, of its own class where that is ours."""
    error = revive(told)
    error.data.update(told.get("data", {}))
    return error


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return clean_text(value) == value
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or (isinstance(value, int | float) and -_BOUND <= value < _BOUND)
