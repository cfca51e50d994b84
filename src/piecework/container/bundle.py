"""Services as data: what `Container.export` gives and `Container.from_` takes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from piecework.container.artifact import Made
from piecework.container.scope import Scope
from piecework.errors import ValidationError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.container.container import Container

VERSION: Final = 1


def export(container: Container) -> dict[str, Any]:
    """What is built in a container and can be serialized, sorted by key and param."""
    container.graph.promote()
    told = [
        {"key": artifact.recipe.name, **({} if artifact.param is None else {"param": artifact.param})}
        | {"value": artifact.recipe.serialize(artifact.made.instance)}
        for artifact in sorted(container.graph, key=lambda artifact: (artifact.recipe.name, artifact.param or ""))
        if artifact.fresh and artifact.made is not None and artifact.recipe.serialize is not None
    ]
    return {"version": VERSION, "artifacts": told}


def register(container: Container, template: Mapping[str, Any]) -> None:
    """Registers a service from a mapping of `register`'s arguments.

    Raises:
        ValidationError: It does not fit them.
    """
    try:
        bound = inspect.signature(container.register).bind(**template)
    except TypeError as error:
        raise ValidationError(
            f"a template has to be a mapping of register's arguments, key and factory at least: {error}"
        ) from error
    container.register(*bound.args, **bound.kwargs)


def restore(container: Container, bundle: Mapping[str, Any]) -> None:
    """Puts what was exported in place; what cannot be used is told by a warning and left to its factory.

    Raises:
        ValidationError: It is nothing that `export` gave, or of another version.
    """
    if not hasattr(bundle, "get") or bundle.get("version") != VERSION or not isinstance(bundle.get("artifacts"), list):
        raise ValidationError(
            f"a bundle of services is what export() gave, of version {VERSION}, not {bundle!r:.80}: leave it out, and "
            "the services are built anew",
            version=bundle.get("version") if hasattr(bundle, "get") else None,
        )
    for entry in bundle["artifacts"]:
        try:
            _restore(container, entry)
        except Exception as error:  # noqa: BLE001 - one that cannot be restored is built when it is asked for
            name = entry.get("key") if isinstance(entry, dict) else repr(entry)[:80]
            signals.emit(signals.SERVICE_NOT_RESTORED, level="warning", service=name, error=describe(error))


def _restore(container: Container, entry: dict[str, Any]) -> None:
    recipe = container.registry.get(entry["key"])
    if recipe is None:
        raise ValidationError("no such service is registered")
    if recipe.deserialize is None or recipe.scope is Scope.TRANSIENT:
        raise ValidationError("it has no deserialize, or is transient")
    param = entry.get("param")
    if param is not None and not isinstance(param, str):
        raise ValidationError(f"its param is no text: {param!r:.80}")
    if (param is None) is not (recipe.param_key is None):
        raise ValidationError("one of the two has a param, the bundle or the service")
    instance = recipe.deserialize(entry["value"])
    graph = container.graph
    artifact = graph.artifact(recipe) if param is None else graph.member(recipe, param)
    graph.complete(artifact, Made(artifact, None), instance)
    graph.trim(recipe)
