"""How long a service lives, and which container it lives in. Pure: records in, answer out."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Scope(StrEnum):
    """How long a service lives, the widest first."""

    APP = "app"
    WORKFLOW = "workflow"
    RUN = "run"
    TRANSIENT = "transient"


_ORDER = tuple(Scope)


def parse(value: str) -> Scope:
    """Reads a scope as a person wrote it.

    Raises:
        ValidationError: There is no such scope; the message lists them.
    """
    try:
        return Scope(value)
    except ValueError:
        names = ", ".join(_ORDER)
        raise ValidationError(f"{value!r} is no scope of a service: choose one of {names}", scope=value) from None


def is_wider(one: Scope, other: Scope) -> bool:
    """Tells whether what lives in `one` outlives what lives in `other`."""
    return _ORDER.index(one) < _ORDER.index(other)


def home(scope: Scope | None, levels: Sequence[Scope], *, narrow: bool = False) -> int | None:
    """Finds where an instance lives on the way from the container that is asked to the one that has the recipe.

    Args:
        scope: What the recipe says; None means the container that has the recipe.
        levels: The level of each container on that way, the asked one first.
        narrow: That a transient service is for runs only.

    Returns:
        An index into `levels`; None when nothing on the way lives that short, as when an app's service asks for
        one of a run.
    """
    if scope is None:
        return len(levels) - 1
    if scope is Scope.TRANSIENT:
        # It lives as long as whoever asked for it, so it can never outlive what it was made from.
        return None if narrow and is_wider(levels[0], Scope.RUN) else 0
    for index in range(len(levels) - 1, -1, -1):
        if levels[index] is scope:
            return index
    return None


def refusal(name: str, scope: Scope, asked: Scope, chain: Sequence[str]) -> str:
    """Words the refusal of a service that does not live as long as who asks for it.

    Args:
        name: The service that was asked for.
        scope: How long it lives.
        asked: The level of the container that was asked.
        chain: The services that need it, the outermost first; empty when it was asked for directly.
    """
    if chain:
        return (
            f"service {name!r} has scope {scope}, so {chain[-1]!r}, which lives in scope {asked}, cannot need it "
            f"({' -> '.join([*chain, name])}): give {chain[-1]!r} scope {scope} too, or pass the value at the call"
        )
    where = "a step of a workflow" if scope is Scope.WORKFLOW else "a workspace"
    return f"service {name!r} has scope {scope} and cannot be had from scope {asked}: ask for it in {where}"
