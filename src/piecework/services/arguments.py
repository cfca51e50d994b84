"""What a command or a job takes: its function's own parameters, checked and converted by their annotations.

The workspace's parameter and those that services fill are not among them: nobody may give those. All that is wrong
with a call is told at once, each field with its reason.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from piecework.container.parameters import Unresolved, parameters_of
from piecework.errors import NotFoundError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from piecework.container.parameters import Parameter

    Has = Callable[[str | type], bool]


class Arguments:
    """The parameters of a function that its callers give.

    Args:
        what: Names the function in errors: "command 'report'".
        fn: The function.

    Raises:
        ValidationError: It cannot be called, or takes something by place only, which no caller could name.
    """

    def __init__(self, what: str, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise ValidationError(f"{what} needs a function, not {fn!r:.80}")
        self._what = what
        self._parameters = [p for p in parameters_of(fn) if not _is_workspace(p)]
        self._open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters)
        for parameter in self._parameters:
            if parameter.kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}:
                raise ValidationError(
                    f"{what} takes {parameter.name!r} by place, but its arguments are given by name: "
                    "make it a parameter with a name"
                )

    def own(self, has: Has) -> list[Parameter]:
        """The parameters that callers may give.

        Args:
            has: Tells whether there is a service of a name or type.
        """
        return [parameter for parameter in self._named() if not _is_service(parameter, has)]

    def required(self, has: Has) -> list[str]:
        """The names that callers have to give."""
        return [parameter.name for parameter in self.own(has) if parameter.required]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any], has: Has) -> dict[str, Any]:
        """Arguments that were given by place and by name, all of them by name.

        Raises:
            ValidationError: There are too many, or one is given twice.
        """
        names = [parameter.name for parameter in self.own(has)]
        if len(args) > len(names):
            raise ValidationError(f"{self._what} takes {len(names)} arguments, {len(args)} were given")
        twice = [name for name in names[: len(args)] if name in kwargs]
        if twice:
            raise ValidationError(f"{self._what}: {twice[0]!r} is given twice, by place and by name")
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def checked(self, given: Mapping[str, Any], has: Has) -> dict[str, Any]:
        """What was given, converted: a text that stands for a number becomes one where a number is wanted.

        Args:
            given: By name.
            has: Tells whether there is a service of a name or type.

        Raises:
            ValidationError: Something is unknown, missing or of another type; `fields` has the reason of each.
        """
        if not isinstance(given, Mapping):
            raise ValidationError(f"arguments are given by name, as a mapping, not as a {type(given).__name__}")
        own = {parameter.name: parameter for parameter in self.own(has)}
        fields = {name: "is missing" for name, parameter in own.items() if parameter.required and name not in given}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in own and not self._open:
                fields[name] = _unknown(name, own)
                continue
            try:
                values[name] = _converted(value, own[name]) if name in own else value
            except ValueError as error:
                fields[name] = str(error)
        if fields:
            told = "; ".join(f"{name} {reason}" for name, reason in fields.items())
            raise ValidationError(f"{self._what}: {told}", fields=fields)
        return values

    def stored(self, given: Mapping[str, Any], has: Has) -> dict[str, Any]:
        """What was given, checked, as JSON values as far as it has annotations that say what it is read back as.

        Raises:
            ValidationError: As of `checked`.
        """
        typed = {parameter.name for parameter in self._named() if parameter.annotation is not None}
        return {name: _as_json(value) if name in typed else value for name, value in self.checked(given, has).items()}

    def read(self, texts: Mapping[str, Sequence[str]], has: Has) -> dict[str, Any]:
        """What was given in words, as on a command line: each text is read as its parameter's type, else as JSON.

        Args:
            texts: By name, each as often as it was given.
            has: Tells whether there is a service of a name or type.

        Raises:
            ValidationError: As of `checked`.
        """
        own = {parameter.name: parameter for parameter in self.own(has)}
        return self.checked({name: _read(words, own.get(name)) for name, words in texts.items()}, has)

    def _named(self) -> Iterator[Parameter]:
        return (p for p in self._parameters if p.kind is not inspect.Parameter.VAR_KEYWORD)


def _is_workspace(parameter: Parameter) -> bool:
    from piecework.workspace.workspace import Workspace

    return parameter.name == "ws" or parameter.is_a(Workspace)


def _is_service(parameter: Parameter, has: Has) -> bool:
    return parameter.use is not None or (parameter.required and has(parameter.key(has)))


def _unknown(name: str, own: Mapping[str, Parameter]) -> str:
    return "is unknown: " + NotFoundError.among("parameter", name, own).message.partition(": ")[2]


def _converted(value: Any, parameter: Parameter) -> Any:
    kind = parameter.annotation
    if kind is None or (isinstance(kind, type) and issubclass(kind, Unresolved)):
        return value
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"is not acceptable: {error}".replace("`", "'")) from error
    except TypeError:  # not a type of data: whatever it is, the function has to deal with it
        return value


def _as_json(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value)
    except TypeError:  # refused with its path where it is stored
        return value


def _read(words: Sequence[str], parameter: Parameter | None) -> Any:
    if parameter is None:
        return words[-1]
    text = words[-1]
    readings: list[Any] = [text] if len(words) == 1 else []
    with contextlib.suppress(ValueError):  # what is no JSON means itself
        readings.append(json.loads(text))
    readings.append(list(words))
    if parameter.annotation is None:
        return readings[0]
    for reading in readings:
        try:
            _converted(reading, parameter)
        except ValueError:
            continue
        return reading
    return readings[0]
