"""What never stands in a log line's fields or in a timeline: secrets, known by their names or by their values.

By name: what stands under a name such as `password`, `access_token` or `apiKey`, at any depth. By value: variables of
`__env__`, wherever they occur in a text. Data itself, such as a run's state, an event or a result, is never touched.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REDACTED: Final = "[redacted]"
"""Stands where a secret stood."""
_PARTS = ("password", "passwd", "passphrase", "apikey", "privatekey", "accesskey", "authorization", "credential")
_WORDS = frozenset({"secret", "secrets", "token", "tokens", "pwd", "cookie", "cookies"})
_COUNTED = frozenset({"token", "tokens"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_FOLDERS = ("PWD", "OLDPWD")  # of a shell: nothing to do with passwords
_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_SHORTEST = 6  # a shorter value, such as "true" or "3000", would be found in texts that have nothing to do with it


class Redaction:
    """Takes secrets out of what people read.

    Args:
        names: More names of what is secret; also as part of a longer name, however it is written.
        values: Texts that are secret; those shorter than six characters are not looked for.
    """

    __slots__ = ("_given", "_names", "_values")

    def __init__(self, names: Iterable[str] = (), values: Iterable[str] = ()) -> None:
        self._given = tuple(names), tuple(values)
        names, values = self._given
        self._names = (*_PARTS, *filter(None, map(_compact, names)))
        # The longest first: of two values one of which begins with the other none is left in part.
        found = sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, found))) if found else None

    def and_values(self, values: Iterable[str]) -> Redaction:
        """One that knows more values."""
        names, known = self._given
        return Redaction(names, (*known, *values))

    def text(self, text: str) -> str:
        """A text without secret values."""
        return text if self._values is None else self._values.sub(REDACTED, text)

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields without secrets: what their names call secret is replaced, texts in the others are looked through."""
        return {key: self._field(key, value) for key, value in fields.items()}

    def _field(self, name: object, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(name, str) and self._is_secret(name, value):
            return REDACTED
        return self._value(value)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self._field(key, inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(inner) for inner in value]
        return value if value is None or isinstance(value, int | float) else self._shown(value)

    def _shown(self, value: Any) -> Any:
        """What is not JSON is shown by its text: as that, where the text has a secret value in it."""
        if self._values is None:
            return value
        text = repr(value)
        return value if self._values.search(text) is None else self.text(text)

    def _is_secret(self, name: str, value: Any) -> bool:
        compact = _compact(name)
        if any(part in compact for part in self._names):
            return True
        words = _WORDS.intersection(word.lower() for word in _WORD.findall(name))
        # How many tokens a model took is no secret.
        return bool(words) and not (words <= _COUNTED and isinstance(value, int | float))


def secret_values(layer: Mapping[str, str | None], *, given: bool) -> list[str]:
    """The values of a layer of variables that are secret.

    Args:
        layer: Variables by name.
        given: Whether somebody gave the layer, which makes all of its values secret; of the process's own environment
            only those are whose names say so, and addresses with a password in them.
    """
    return [value for name, value in layer.items() if value and (given or _says_so(name, value))]


def _says_so(name: str, value: str) -> bool:
    named = name not in _FOLDERS and PLAIN.fields({name: value})[name] == REDACTED
    return named or _WITH_PASSWORD.search(value) is not None


def _compact(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


PLAIN: Final = Redaction()
"""Knows secrets by their usual names only."""
