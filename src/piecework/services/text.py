"""The builder of plain texts: what a mail's `text` and `html` functions and a notification's are given."""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

INDENT = "    "

Pieces = deque[tuple[bool, Any]]
"""What was built so far: whether a piece starts a new line, and its value."""


class Builder:
    """Collects a text piece by piece. Values may be awaitables; they are awaited one by one, in the order of the calls.

    Each method answers the builder itself, so that a lambda can chain them: `lambda mail: mail.line("a").line("b")`.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def line(self, x: Any = "") -> Builder:
        """Starts a new line with `x`; the very first line is begun already."""
        self._pieces.append((True, x))
        return self

    def echo(self, x: Any) -> Builder:
        """Goes on where the text is, with `x`."""
        self._pieces.append((False, x))
        return self

    def indent(self, fn: Callable[[Builder], Any]) -> Builder:
        """Starts new lines with what `fn` does to a builder of its own, each four spaces in. `fn` may be async."""
        self._pieces.append((True, _Indented(fn)))
        return self


class _Indented:
    """A part whose lines are set in; its function runs when its turn comes."""

    def __init__(self, fn: Callable[[Builder], Any]) -> None:
        self._fn = fn

    def __await__(self) -> Generator[Any, None, str]:
        return self._render().__await__()

    async def _render(self) -> str:
        inner = await render(self._fn)
        return "\n".join(INDENT + line for line in inner.split("\n"))


async def render(source: str | Awaitable[Any] | Callable[[Builder], Any]) -> str:
    """Makes the text that `source` stands for.

    Args:
        source: The text itself, something awaitable that brings it, or a function of a `Builder`, sync or async.
            A text that the function returns is added to what it built.

    Raises:
        ValidationError: It is none of these.
        Exception: Whatever `source` raises.
    """
    if isinstance(source, str) or inspect.isawaitable(source):
        return await _resolve(source)
    if not callable(source):
        raise ValidationError(f"a text has to be a text or a function that builds one, not {source!r:.80}")
    pieces: Pieces = deque()
    try:
        value = source(Builder(pieces))
        if inspect.isawaitable(value):
            value = await value
        if isinstance(value, str):
            pieces.append((False, value))
        return await _joined(pieces)
    finally:
        _drop(pieces)


async def _joined(pieces: Pieces) -> str:
    done: list[str] = []
    while pieces:
        new_line, value = pieces.popleft()
        text = await _resolve(value)
        done.append("\n" + text if new_line and done else text)
    return "".join(done)


def _drop(pieces: Pieces) -> None:
    # Something before them failed; they shall not complain, too, that nobody awaited them.
    for _, value in pieces:
        if inspect.iscoroutine(value):
            value.close()


async def _resolve(value: Any) -> str:
    return str(await value if inspect.isawaitable(value) else value)
